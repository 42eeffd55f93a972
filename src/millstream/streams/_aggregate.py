"""Aggregates of a stream: one value for each key, or for each key and window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.context import current
from millstream.streams._operator import (
    WAITS,
    Context,
    Done,
    Group,
    Operator,
    Windowed,
    each,
    nowhere,
)
from millstream.streams._pipeline import bound
from millstream.tables import DELETED, MISSING, advance
from millstream.windows import Session, Sliding

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from millstream.clock import Clock
    from millstream.tables import TimedPart
    from millstream.windows import AnyWindows, Window

__all__ = ["Aggregate", "Fold", "WindowedAggregate"]


class Fold:
    """How records become one value. ``add(value so far, record's value)`` makes the next one."""

    __slots__ = ("add", "initial", "skips_null")

    def __init__(
        self,
        initial: Callable[[], Any] | None,
        add: Callable[[Any, Any], Any],
        *,
        skips_null: bool = True,
    ) -> None:
        """
        Args:
            initial: None for ``reduce``, where the first value of a group is the value so far.
            skips_null: whether records without a value are dropped.
        """
        self.initial = initial
        self.add = add
        self.skips_null = skips_null


class Aggregate(Group):
    """One value for each key. A value that becomes None deletes the key.

    Each parent has a `Fold` of its own, over the same value: several make a ``cogroup``.
    """

    def __init__(
        self, parents: Sequence[Operator], folds: Sequence[Fold], *, name: str, value_type: Any
    ) -> None:
        super().__init__(*parents, name=name, value_type=value_type)
        self.folds = tuple(folds)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        return [self._bind(fold, context, forward) for fold in self.folds]

    def _bind(
        self, fold: Fold, context: Context, forward: Callable[..., Done]
    ) -> Callable[..., Done]:
        part = context.parts[self.name]
        initial, add, skips_null = fold.initial, fold.add, fold.skips_null
        begin, dropped = self.begin, context.counters

        def before(key: Any, value: Any) -> Any:
            """The stored pair, or None where the record is dropped."""
            if key is None or (value is None and skips_null):
                dropped["null_keys_dropped" if key is None else "null_values_dropped"] += 1
                return None
            return part.get(key, context.scope)

        def after(key: Any, new: Any, stored: Any, timestamp: int) -> Done:
            old = None
            if stored is not MISSING:
                newest, old = stored
                if newest > timestamp:
                    timestamp = newest
            if new is None:
                if old is None:
                    return None
                part.set(key, DELETED, context.scope)
            else:
                part.set(key, (timestamp, new), context.scope)
            return forward(key, new, old, timestamp)

        # a value may change in place while the old one is handed on beside it
        copies, copy = part.mutable and self.old_wanted, part.copy
        loads = not part.mutable
        silent = forward is nowhere

        async def later(key: Any, made: Any, stored: Any, timestamp: int) -> None:
            done = after(key, await made, stored, timestamp)
            if done is not None:
                await done

        def take(key: Any, value: Any, timestamp: int) -> Done:
            if key is not None and value is not None and context.scope.journal is None:
                # the hot path, in one piece: a key that has a value, of this epoch or of one before it
                dirty = part.dirty
                stored = dirty.get(key)
                if stored is None and loads:
                    stored = part.load(key)
                if (
                    stored is not None
                    and stored is not DELETED
                    and stored is not MISSING
                    and not part.fresh
                ):
                    newest, old = stored
                    new = add(copy(key, old) if copies else old, value)
                    if new.__class__ in WAITS:
                        return later(key, new, stored, timestamp)
                    if newest > timestamp:
                        timestamp = newest
                    dirty[key] = DELETED if new is None else (timestamp, new)
                    return None if silent else forward(key, new, old, timestamp)
            stored = before(key, value)
            if stored is None:
                return None
            if stored is MISSING:
                new = value if initial is None else begin(part, initial, add, value)
            else:
                new = add(copy(key, stored[1]) if copies else stored[1], value)
            if new.__class__ in WAITS:
                return later(key, new, stored, timestamp)
            return after(key, new, stored, timestamp)

        return take


class _Nothing:
    """Stands for the value of a window that has none yet, where there is no default."""


NOTHING = _Nothing()


def _nothing() -> Any:
    return NOTHING


def _first_or(add: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda value, added: added if value is NOTHING else add(value, added)


def _shown_pair(key: Any, window: Window, new: Any, old: Any) -> tuple[Windowed, Any, Any, int]:
    return Windowed(key, window), new[1], None if old is MISSING else old[1], new[0]


def _shown_session(key: Any, window: Window, new: Any, old: Any) -> tuple[Windowed, Any, Any, int]:
    return (
        Windowed(key, window),
        None if new is MISSING else new,
        None if old is MISSING else old,
        window.end,
    )


class WindowedAggregate(Operator):
    """One value for each key and window, whichever kind of window it is."""

    kind = "windowed aggregate"
    changes = True

    def __init__(
        self,
        parents: Sequence[Operator],
        folds: Sequence[Fold],
        *,
        name: str,
        value_type: Any,
        windows: AnyWindows,
        clock: Callable[[], Clock],
        final: bool = False,
        merge: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        """
        Args:
            merge: of sessions, makes one value of two.
            final: whether each window comes out once, when it is closed, rather than with each update.
        """
        super().__init__(*parents, name=name)
        self.folds = tuple(folds)
        self.value_type = value_type
        self.codec = None
        self.windows = windows
        self.windowed = True
        self.final = final
        self.merge = merge
        self._clock = clock
        self.stores.append(name)
        several = len(self.folds) > 1 and not final
        self.times = [
            f"{name}-time-{number}" for number in range(len(self.folds) if several else 0)
        ]
        """Names of tables that keep each parent's own stream time, by which its records are late. With final
        results there is one time for all: a window must not change once it is closed."""
        self.stores += self.times

    @property
    def held(self) -> bool:
        return self.final or super().held

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        times = [context.parts[name] for name in self.times] or [None] * len(self.folds)
        return [
            self._bind(fold, time, context, forward)
            for fold, time in zip(self.folds, times, strict=True)
        ]

    def _bind(
        self,
        fold: Fold,
        time: TimedPart | None,
        context: Context,
        forward: Callable[..., Done],
    ) -> Callable[..., Done]:
        part = context.parts[self.name]
        skips_null = fold.skips_null
        dropped = context.counters
        first = fold.initial or _nothing
        add = fold.add if fold.initial is not None else _first_or(fold.add)
        aligned = not isinstance(self.windows, Session | Sliding)
        silent = self.final or forward is nowhere
        part.keeps_old = self.old_wanted and part.mutable and not silent
        shown = _shown_session if isinstance(self.windows, Session) else _shown_pair

        def initial(key: Any, _: Any) -> Any:
            return first()

        def take(key: Any, value: Any, timestamp: int) -> Done:
            if key is None or (value is None and skips_null):
                dropped["null_keys_dropped" if key is None else "null_values_dropped"] += 1
                return None
            scope = context.scope
            event_time = scope.timestamp
            if event_time != timestamp:
                scope.timestamp = timestamp
            changed: list[tuple[Window, Any, Any]] | None = None if silent else []
            mine = None
            if time is not None:
                mine = time.seen(scope)
                if mine > timestamp:
                    time.tie(mine, scope)
            if aligned:
                steps = part.fold(key, value, add, first, scope, changed, mine)
            else:
                steps = part.updating(key, add, value, initial, scope, changed, mine)
            if steps is not None:
                waits = advance(steps)
                if waits is not None:
                    return later(key, steps, waits, changed, event_time)
            if event_time != timestamp:
                scope.timestamp = event_time
            return hand_on(key, changed) if changed else None

        def hand_on(key: Any, changed: list[tuple[Window, Any, Any]]) -> Done:
            if len(changed) == 1:
                return forward(*shown(key, *changed[0]))
            return each([shown(key, *change) for change in changed], forward)

        async def later(
            key: Any,
            steps: Generator[Any, Any, Any],
            waits: Any,
            changed: list[tuple[Window, Any, Any]] | None,
            event_time: int,
        ) -> None:
            """Go on once a function is through: no window closes that an update under way was still accepted by."""
            scope = context.scope
            part.begin_work()
            try:
                while waits is not None:
                    waits = advance(steps, await waits)
            finally:
                part.end_work()
            scope.timestamp = event_time
            done = hand_on(key, changed) if changed else None
            if done is not None:
                await done

        return take

    def getter(self, context: Context) -> Callable[[Any], tuple[Any, int] | None]:
        part, final = context.parts[self.name], self.final

        def get(windowed: Windowed) -> tuple[Any, int] | None:
            found: tuple[Any, int] | None = part.result(*windowed, context.scope, closed=final)
            return None if found is None or found[0] is None else found  # as a change tells it

        return get

    async def close(self, key: Any, window: Window, value: Any) -> None:
        """A window is final: called once for each, in an event of its own."""
        scope = current.get()
        part = scope.parts[self.name]
        if part.is_dropped(window):
            return  # Kafka Streams' own range scan for final windows does not see it
        assert self.pipeline is not None
        binding = bound(self.pipeline, scope, self._clock())
        kept, timestamp = part.closed_value, part.closed_at
        done = binding.forward(self)(Windowed(key, window), kept, None, timestamp)
        if done is not None:
            await done
