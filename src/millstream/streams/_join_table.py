"""Joins of a stream with a table: each record looks up what the table has for its key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.context import current
from millstream.streams._join_delivery import deliver_waiting, delivery
from millstream.streams._join_streams import keep_rows, plain_encoder
from millstream.streams._join_waiting import WaitingPart
from millstream.streams._operator import (
    WAITS,
    Context,
    Done,
    Operator,
    Windowed,
    finish,
)
from millstream.streams._pipeline import bound
from millstream.tables import MISSING, no_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from millstream.clock import Clock
    from millstream.streams._home import StreamHome
    from millstream.streams._join_delivery import Pair
    from millstream.streams._join_waiting import Waiting

__all__ = ["TableJoin", "find_as_of", "find_by_operator", "find_in_part"]


def find_in_part(table: str) -> Callable[[Context], Callable[[Any, int], Any]]:
    """Looks into a table that agents write, or into a global one: the value now."""

    def bind(context: Context) -> Callable[[Any, int], Any]:
        part = _part(context, table)

        def find(key: Any, timestamp: int) -> Any:
            stored = part.get(key, context.scope)
            return None if stored is MISSING else part.value_of(stored)

        return find

    return bind


def find_by_operator(operator: Operator) -> Callable[[Context], Callable[[Any, int], Any]]:
    """Looks into a table that a stream or a topic makes: the value at the record's time, where it has history, or now."""
    if operator.history_ms is not None:
        return operator.getter_as_of

    def bind(context: Context) -> Callable[[Any, int], Any]:
        get = operator.getter(context)

        def find(key: Any, timestamp: int) -> Any:
            pair = get(key)
            return None if pair is None else pair[0]

        return find

    return bind


def find_as_of(table: str) -> Callable[[Context], Callable[[Any, int], Any]]:
    """Looks into a table with history that agents write: the value at the record's time."""

    def bind(context: Context) -> Callable[[Any, int], Any]:
        part = _part(context, table)

        def find(key: Any, timestamp: int) -> Any:
            found = part.value_at(key, timestamp, context.scope)
            return None if found is MISSING else found

        return find

    return bind


def _part(context: Context, table: str) -> Any:
    try:
        return context.parts[table]
    except KeyError:
        raise no_part(table, context.scope) from None


class TableJoin(Operator):
    """Inner and left joins of a stream with a table. Changes of the table make no results."""

    kind = "join"

    def __init__(
        self,
        parent: Operator,
        find: Callable[[Context], Callable[[Any, int], Any]],
        joiner: Callable[[Any, Any], Any],
        *,
        name: str,
        left: bool,
        value_type: Any,
        tables: Sequence[str],
        everywhere: bool = False,
        on: Callable[[Any], Any] | None = None,
        grace_ms: int | None = None,
    ) -> None:
        """
        Args:
            find: looks up a key.
            left: whether records come out that find nothing.
            tables: where it looks.
            everywhere: whether each shard has these whole.
            on: makes the key to look up of a value; the record's own key where None.
            grace_ms: records wait until stream time is beyond theirs by this, and leave in order of time.
        """
        super().__init__(parent, name=name)
        self.find = find
        self.joiner = joiner
        self.left = left
        self.value_type = value_type
        self.codec = None
        self.reads += tables
        self._everywhere = everywhere
        self.on = on
        self.grace_ms = grace_ms
        self.waits = f"{name}-waiting"
        self.holds_back = grace_ms is not None
        if grace_ms is not None:
            self.stores.append(self.waits)
        self._clock: Callable[[], Clock] | None = None

    @property
    def goes_by_key(self) -> bool:
        return not self._everywhere or bool(self.stores)

    def takes_keyless(self, port: int) -> bool:
        return self.left

    def declare(self, home: StreamHome) -> None:
        """Declare what it keeps."""
        if self.grace_ms is None:
            return
        self._clock = lambda: home.clock
        parent = self.parents[0]
        holds = {True: self.grace_ms - 1}
        encode_plain = plain_encoder(parent)

        def make_part(name: str, **arguments: Any) -> WaitingPart:
            codecs = {True: parent.values}
            return WaitingPart(
                name, codecs=codecs, holds_ms=holds, encode_plain=encode_plain, **arguments
            )

        keep_rows(
            home,
            parent,
            self.waits,
            make_part,
            key=lambda kind: tuple[bool, int, kind, int],  # type: ignore[valid-type]
            values=parent.values,
            help=f"Records that wait for the table of join {self.name!r}.",
        )
        home.due_hook(self.waits, self.close)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        deliver = delivery(self.joiner, forward)
        pair_of = self._pairs(context)
        counters, on = context.counters, self.on
        find, joiner, left = self.find(context), self.joiner, self.left
        plain = on is None

        def take(key: Any, value: Any, timestamp: int) -> Done:
            if value is None:
                counters["null_values_dropped"] += 1
                return None
            if plain and key is not None and type(key) is not Windowed:
                found = find(key, timestamp)
                if found is None and not left:
                    return None
                made = joiner(value, found)
                if made.__class__ in WAITS:
                    return finish(made, lambda result: forward(key, result, timestamp))
                return forward(key, made, timestamp)
            if on is not None:
                wanted = on(value)
                if wanted.__class__ in WAITS:
                    return finish(wanted, lambda found: hand_on(found, key, value, timestamp))
                return hand_on(wanted, key, value, timestamp)
            return hand_on(key, key, value, timestamp)

        def hand_on(wanted: Any, key: Any, value: Any, timestamp: int) -> Done:
            pair = pair_of(key, value, timestamp, wanted)
            return None if pair is None else deliver([pair])

        if self.grace_ms is None:
            return [take]
        waiting: WaitingPart = context.parts[self.waits]
        grace_ms = self.grace_ms

        def hold(key: Any, value: Any, timestamp: int) -> Done:
            scope = context.scope
            if key is None or value is None:
                return take(key, value, timestamp)
            if timestamp < waiting.stream_time - grace_ms:
                waiting.tie(timestamp + grace_ms + 1, scope)
                return take(key, value, timestamp)
            headers = scope.record.headers if scope.record is not None else []
            waiting.put(True, timestamp, key, waiting.dump(key, value), headers, scope)
            if waiting.reached(timestamp, scope) < waiting.next_due:
                return None
            return deliver_waiting(
                waiting, waiting.release(scope), scope, deliver, own_key(pair_of)
            )

        return [hold]

    def _pairs(self, context: Context) -> Callable[[Any, Any, int, Any], Pair | None]:
        """What makes of a record, and the key to look up, its pair; None where it is dropped."""
        find, left = self.find(context), self.left
        counters = context.counters

        def pair_of(key: Any, value: Any, timestamp: int, wanted: Any) -> Pair | None:
            if wanted is None:
                found = None
                if not left:
                    counters["null_keys_dropped"] += 1
            else:
                found = find(wanted.key if type(wanted) is Windowed else wanted, timestamp)
            return None if found is None and not left else (key, value, found, timestamp)

        return pair_of

    async def close(self, key: Any, window: Any, value: Iterable[Waiting]) -> None:
        """Event time has moved without a record, or far: let out what is due."""
        scope = current.get()
        assert self.pipeline is not None
        assert self._clock is not None
        binding = bound(self.pipeline, scope, self._clock())
        deliver = delivery(self.joiner, binding.forward(self))
        done = deliver_waiting(
            scope.parts[self.waits],
            value,
            scope,
            deliver,
            own_key(self._pairs(binding.context)),
        )
        if done is not None:
            await done


def own_key(
    pair_of: Callable[[Any, Any, int, Any], Pair | None],
) -> Callable[[Any, Any, int], Pair | None]:
    """The same for records whose own key is looked up."""
    return lambda key, value, timestamp: pair_of(key, value, timestamp, key)
