"""Holding a table's changes back: at most one for each key in a time, in a buffer with bounds.

Theory of operation
-------------------
What is held back lies in a table of the operator's own: for each key the time of its first change that is held, the
time and the new value of its latest, and the old value of its first. So a crash, an undo or a move to another
worker treats it like any other table. In memory there is only the order in which changes are due: a heap of
(time, key), made from the table when the part is new. An event that is undone puts back what it had taken out. An entry
of the heap that the table does not confirm is passed over; where undone events have left many of these, the heap is
made anew.
"""

from __future__ import annotations

import heapq
import itertools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from millstream.clock import Duration, duration_ms
from millstream.context import current
from millstream.errors import ConfigurationError, DecodeError, RecordTooLargeError
from millstream.streams._compat import closes_early_ms
from millstream.streams._due import each_due, has_room
from millstream.streams._operator import UNCHANGED, Context, Done, Operator, Windowed
from millstream.streams._pipeline import bound
from millstream.tables import DELETED, MISSING, NEVER, Due, DueRow, TimedPart
from millstream.windows import Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from millstream.clock import Clock
    from millstream.context import PreImage, Scope
    from millstream.serialization import Codec
    from millstream.streams._home import StreamHome
    from millstream.windows import AnyWindows

__all__ = ["Suppress", "SuppressChanges", "emitted_every", "see", "suppressed"]

CHECKED: Final = 100
"""Held changes whose values are decoded before the first event."""

UNCONFIRMED_MAX: Final = 1_000
"""Entries of the heap that undone events may leave there, if they are no more than the others."""

ALL_OUT: Final = b"all"
"""Stored while everything that is held is on its way out."""

_times = struct.Struct(">QQi")

UNKNOWN = -1
"""The time of what came out before what is held: not kept, as in Kafka Streams."""


@dataclass(frozen=True, slots=True)
class Suppress:
    """At most one result for each key in ``limit`` of event time: the latest one.

    Args:
        limit: how long a result is held back, from the key's first change that is held; None: until
            its window is final, so that each window comes out once (``emit="final"`` does so without a buffer).
        bytes_max: the most that the buffer holds, keys and values; no bound where None. Values lie in the
            state store, so the buffer need not fit into memory. Nor need what is due at one moment: it comes out
            in as many commits as it takes, before the next record.
        records_max: the most results that it holds; no bound where None.
        when_full: ``emit``: the oldest results come out early, which goes with a limit; ``stop``: the record is
            an error, which stops the worker unless ``on_error`` says otherwise.

    Raises:
        ConfigurationError: a limit that is no duration or below 0, a bound that is no number above 0, or a word
            that is neither of the two.
    """

    limit: Duration | None = None
    bytes_max: int | None = None
    records_max: int | None = None
    when_full: Literal["emit", "stop"] = "emit"

    def __post_init__(self) -> None:
        if self.limit is not None and duration_ms(self.limit, what="Suppress(limit)") < 0:
            raise ConfigurationError(f"Suppress: limit={self.limit!r} is below 0")
        for name, unit in ("bytes_max", "bytes"), ("records_max", "records"):
            bound = getattr(self, name)
            if bound is not None and (type(bound) is not int or bound < 1):
                raise ConfigurationError(
                    f"Suppress: {name}={bound!r} is not a number of {unit} above 0; leave it out for no bound"
                )
        if self.when_full not in ("emit", "stop"):
            raise ConfigurationError(
                f"Suppress: when_full={self.when_full!r} is neither 'emit' nor 'stop'"
            )


class Held(NamedTuple):
    """A key's changes while they are held back; values in bytes."""

    first: int
    latest: int
    new: bytes | None
    old: bytes | None


def dump_held(held: Held) -> bytes:
    """To the store: two times, the new value's length (-1 for none), the new value, and a mark and the old one."""
    new = held.new or b""
    old = b"" if held.old is None else b"\x01" + held.old
    return _times.pack(held.first, held.latest, -1 if held.new is None else len(new)) + new + old


def load_held(data: bytes) -> Held:
    """From the store."""
    first, latest, size = _times.unpack_from(data)
    end = 20 + max(size, 0)
    old = None if len(data) == end else data[end + 1 :]
    return Held(first, latest, None if size < 0 else data[20:end], old)


class HeldPart(TimedPart):
    """What a `SuppressChanges` holds in one shard."""

    __slots__ = (
        "_bytes_max",
        "_heap",
        "_limit_ms",
        "_records_max",
        "_stale",
        "_values",
        "bytes",
        "count",
        "empties",
    )

    @property
    def kept_as(self) -> str:
        return "changes that are held back"

    def __init__(
        self,
        name: str,
        *,
        limit_ms: int,
        records_max: int,
        bytes_max: int,
        values: Codec[Any],
        **arguments: Any,
    ) -> None:
        """
        Args:
            limit_ms: how long a change is held back.
            records_max: above so many, the oldest are due early.
            bytes_max: above so much, likewise.
            values: the codec of the values in it.
        """
        super().__init__(name, **{**arguments, "mutable": False})
        self._limit_ms = limit_ms
        self._records_max = records_max
        self._bytes_max = bytes_max
        self._values = values
        self._heap: list[tuple[int, bytes, Any]] = []
        self._stale = True
        self.bytes = 0
        """Of keys and values that are held."""
        self.count = 0
        """Keys with something that is held."""
        self.empties = False
        """Whether everything is due, as an event has begun to let it out."""

    def check_stored(self, known: str | None) -> Iterator[int]:
        """Decode some of what is stored; see `TablePart.check_stored`."""
        for data, stored in itertools.islice(self.stored(), CHECKED):
            held = load_held(stored)
            for value in (held.new, held.old):
                if value is not None:
                    self._check_value(self.decode_key(data), value)
            yield 1

    def _check_value(self, key: Any, value: bytes) -> None:
        try:
            self._values.loads(value)
        except Exception as exc:
            raise DecodeError(
                f"table {self.name!r}, key {key!r}",
                part="stored value",
                type_name=self._values.type_name,
                reason=f"{exc}. {self.mend}",
            ) from exc

    def _fresh(self) -> None:
        """Bring the heap and the sums in line with the table."""
        if not self._stale:
            return
        self._stale = False
        self._heap, self.bytes, self.count = [], 0, 0
        for key in list(self.keys(b"\x01", None)):
            held = self._held(key)
            if held is not None:
                self._note(key, held)
        heapq.heapify(self._heap)

    def _held(self, key: Any) -> Held | None:
        value = self.dirty[key] if key in self.dirty else self.load(key)
        return None if value is MISSING or value is DELETED else cast("Held", value)

    def _note(self, key: Any, held: Held) -> None:
        data = self.encode_key(key)
        self._heap.append((held.first, data, key))
        self._count(data, held, 1)

    def _count(self, key: bytes, held: Held, sign: int) -> None:
        self.count += sign
        self.bytes += sign * (len(key) + len(held.new or b"") + len(held.old or b""))

    def hold(self, key: Any, held: Held, scope: Scope) -> None:
        """Hold a key's latest change; its first one decides when it is due."""
        self._fresh()
        before = self.get(key, scope)
        data = self.encode_key(key)
        if before is not MISSING:
            self._count(data, before, -1)
            held = held._replace(first=before.first, old=before.old)
        else:
            heapq.heappush(self._heap, (held.first, data, key))
        self._count(data, held, 1)
        self.set(key, held, scope)

    def oldest(self) -> tuple[int, Any] | None:
        """The time and key of what was held first."""
        self._fresh()
        while self._heap:
            first, _, key = self._heap[0]
            held = self._held(key)
            if held is not None and held.first == first:
                return first, key
            heapq.heappop(self._heap)
        return None

    def next(self, *, everything: bool = False) -> Any:
        """The key of what is due first, by its time or as there is too much; `MISSING` where nothing is."""
        oldest = self.oldest()
        if oldest is None:
            return MISSING
        first, key = oldest
        if (
            first <= self.stream_time - self._limit_ms
            or self.count > self._records_max
            or self.bytes > self._bytes_max
            or everything
            or self.empties
        ):
            return key
        return MISSING

    def release(self, key: Any, scope: Scope) -> Held:
        """Take out what is held of a key."""
        held = cast("Held", self.get(key, scope))
        self._count(self.encode_key(key), held, -1)
        self.delete(key, scope)
        return held

    def undo(self, key: Any, before: PreImage) -> None:
        undone = self._held(key)
        super().undo(key, before)
        if self._stale:
            return
        data, held = self.encode_key(key), self._held(key)
        if undone is not None:
            self._count(data, undone, -1)
        if held is not None:
            self._count(data, held, 1)
            heapq.heappush(self._heap, (held.first, data, key))
        self._stale = len(self._heap) > 2 * self.count + UNCONFIRMED_MAX

    # time that moves without a record ---------------------------------------------------------------

    def recovered(self) -> None:
        super().recovered()
        self._stale = True

    def advance(self, by: int) -> None:
        super().advance(by)
        if self.due():
            self.closing_due = True
            self.on_due()

    def more_is_due(self, mark: bytes = b"") -> None:
        super().more_is_due(ALL_OUT if self.empties else mark)

    def left_over(self, mark: bytes) -> None:
        self.empties = mark == ALL_OUT
        super().left_over(mark)

    def nothing_is_due(self) -> None:
        super().nothing_is_due()
        self.empties = False

    def due(self) -> list[Due]:
        """One entry where something is due, for an event that lets it out."""
        self.closing_due = False
        if self.next() is MISSING:
            self.nothing_is_due()
            return []
        return [Due(None, None, Window(self.stream_time, self.stream_time), b"")]

    def close(self, due: Due, scope: Scope) -> Any:
        """Something is due."""
        return due

    def held_rows(self) -> Iterator[tuple[Any, int, bytes]]:
        for entry in self.keys(b"\x01", None):
            held = self._held(entry)
            if held is None:
                continue
            windowed = isinstance(entry, tuple) and len(entry) == 3
            key, moment = (entry[0], entry[1]) if windowed else (entry, held.latest)
            yield key, moment, self.encode_key(entry)


class SuppressChanges(Operator):
    """Hands on at most one change of each key in a time, or whenever `flush` is called."""

    kind = "suppress"
    changes = True
    uses_time = True
    holds_back = True

    def __init__(
        self,
        parent: Operator,
        *,
        name: str,
        clock: Callable[[], Clock],
        limit_ms: int = NEVER,
        windows: AnyWindows | None = None,
        early_ms: int = 0,
        records_max: int | None = None,
        bytes_max: int | None = None,
        when_full: str = "emit",
    ) -> None:
        """
        Args:
            limit_ms: how long by event time a change is held back.
            windows: hold each window's result until it is final instead.
            early_ms: by how much it is taken for final before it is.
        """
        super().__init__(parent, name=name)
        self.stores.append(name)
        self.limit_ms = limit_ms if windows is None else 0
        self.windows = windows
        self.early_ms = early_ms
        self.records_max = NEVER if records_max is None else records_max
        self.bytes_max = NEVER if bytes_max is None else bytes_max
        self.when_full = when_full
        self._clock = clock

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        part, codec = context.parts[self.name], self.values
        windows, early_ms = self.windows, self.early_ms
        stops, old_wanted = self.when_full == "stop", self.old_wanted or self.uses_old

        def take(key: Any, new: Any, old: Any, timestamp: int) -> Done:
            scope = context.scope
            see(part, timestamp, scope)
            if old is UNCHANGED:
                return self._release(context, forward)
            entry = _entry_of(key)
            held = Held(
                timestamp if windows is None else windows.final_at(key.window) - early_ms,
                timestamp,
                None if new is None else codec.dumps(new),
                codec.dumps(old) if old_wanted and old is not None else None,
            )
            part.hold(entry, held, scope)
            if stops:
                self._refuse_above(part.count, self.records_max, "records_max")
                self._refuse_above(part.bytes, self.bytes_max, "bytes_max")
            return self._release(context, forward)

        return [take]

    def _refuse_above(self, size: int, limit: int, bound: str) -> None:
        if size > limit:
            raise RecordTooLargeError(
                f"suppress {self.name!r}: what is held back",
                size=size,
                limit=limit,
                setting=f"Suppress({bound}=)",
            )

    def _release(
        self, context: Context, forward: Callable[..., Done], *, everything: bool = False
    ) -> Done:
        """Hand on what is due, and what is above the bounds, oldest first."""
        part, loads = context.parts[self.name], self.values.loads
        if part.next(everything=everything) is MISSING:
            return None

        def go(item: tuple[Any, Held]) -> Done:
            entry, held = item
            return forward(
                Windowed(entry[0], Window(*entry[1:])) if self.windowed else entry,
                None if held.new is None else loads(held.new),
                None if held.old is None else loads(held.old),
                held.latest,
            )

        def row_of(item: tuple[Any, Held]) -> DueRow:
            entry, held = item
            window = Window(*entry[1:]) if self.windowed else None
            return DueRow(
                part.name,
                part.encode_key(entry),
                entry[0] if self.windowed else entry,
                held.latest if window is None else window.start,
                window,
                held.new,
            )

        return each_due(context.scope, self._out(context, everything), go, row_of)

    def _out(self, context: Context, everything: bool) -> Iterator[tuple[Any, Held]]:
        part: HeldPart = context.parts[self.name]
        let_out = 0
        while (entry := part.next(everything=everything)) is not MISSING:
            if not has_room(context.scope, let_out):
                part.empties = part.empties or everything
                part.more_is_due()
                return
            let_out += 1
            held = part.release(entry, context.scope)
            if held.new is None and self.windows is not None:
                continue  # nobody has seen a result that this would take back
            yield entry, held

    async def close(self, key: Any, window: Any, value: Any) -> None:
        """Let out what is due: event time has moved without a record, or an event has left some of it."""
        await self._flush(everything=False)

    async def flush(self) -> None:
        """Let out everything."""
        await self._flush(everything=True)

    async def _flush(self, *, everything: bool) -> None:
        scope = current.get()
        assert self.pipeline is not None
        binding = bound(self.pipeline, scope, self._clock())
        done = self._release(binding.context, binding.forward(self), everything=everything)
        if done is not None:
            await done

    def looked_into(self) -> list[Operator]:
        """What is held, and where nothing is, what there is."""
        return [self, *self.parents[0].looked_into()]

    def look_into(self) -> None:
        """Keep the old values: they are what came out last."""
        self.uses_old = True
        super().look_into()

    def getter(self, context: Context) -> Callable[[Any], tuple[Any, int] | None]:
        get = self.parents[0].getter(context)
        part, loads = context.parts[self.name], self.values.loads

        def get_released(key: Any) -> tuple[Any, int] | None:
            held = part.get(_entry_of(key), context.scope)
            if held is MISSING:
                return get(key)
            return None if held.old is None else (loads(held.old), UNKNOWN)

        return get_released


def _entry_of(key: Any) -> Any:
    return (key.key, *key.window) if type(key) is Windowed else key


def see(part: TimedPart, timestamp: int, scope: Scope) -> int:
    """Bring an operator's stream time up to a timestamp, which need not be that of the event's record."""
    event_time, scope.timestamp = scope.timestamp, timestamp
    stream_time = part.seen(scope)
    scope.timestamp = event_time
    return stream_time


def suppressed(
    home: StreamHome,
    parent: Operator,
    suppress: Suppress,
    name: str,
    windows: AnyWindows | None = None,
) -> Operator:
    """An operator's changes, held back as ``suppress`` says.

    Raises:
        ConfigurationError: there is no limit, and no window, or a bound at which windows would come out early.
    """
    if suppress.limit is None and windows is None:
        raise ConfigurationError(
            f"{name}: Suppress() without a limit holds results until their windows are final, and there are"
            f" no windows here: give a limit"
        )
    bounds = {"bytes_max": suppress.bytes_max, "records_max": suppress.records_max}
    bound = ", ".join(f"{key}={most}" for key, most in bounds.items() if most is not None)
    if suppress.limit is None and bound and suppress.when_full == "emit":
        raise ConfigurationError(
            f"{name}: Suppress({bound}) without a limit lets each window out once, when it is final, and a full"
            f" buffer would let it out early, and then again. Leave the bound out, as what is held lies in the"
            f" state store; or stop when it is full, Suppress({bound}, when_full='stop'); or give a limit"
        )
    early_ms = closes_early_ms(windows) if windows is not None and home.compat else 0
    operator = SuppressChanges(
        parent,
        name=name,
        clock=lambda: home.clock,
        limit_ms=0 if suppress.limit is None else duration_ms(suppress.limit),
        windows=windows if suppress.limit is None else None,
        early_ms=early_ms,
        records_max=suppress.records_max,
        bytes_max=suppress.bytes_max,
        when_full=suppress.when_full,
    )
    _keep(home, operator)
    home.due_hook(name, operator.close)
    return operator


def emitted_every(home: StreamHome, parent: Operator, interval: Duration, name: str) -> Operator:
    """The latest change of each key, every ``interval`` of the wall clock.

    Raises:
        ConfigurationError: the interval is no duration, or not above 0.
    """
    if duration_ms(interval, what=f"{parent.name}: emit_every") < 1:
        raise ConfigurationError(f"{parent.name}: emit_every={interval!r} is not above 0")
    operator = SuppressChanges(parent, name=name, clock=lambda: home.clock)
    _keep(home, operator)
    home.due_hook(name, operator.close)  # what a moment of the timer leaves; nothing else is due
    home.shard_timer(interval, name, operator.flush)
    return operator


_UPGRADE_WHAT_CHANGES = (
    "Convert it with upgrade= of the table whose changes these are, or reset both"
)


def _keep(home: StreamHome, operator: SuppressChanges) -> None:
    parent = operator.parents[0]
    home.plan.add(operator)

    def make_part(name: str, **arguments: Any) -> HeldPart:
        return HeldPart(
            name,
            limit_ms=operator.limit_ms,
            records_max=operator.records_max,
            bytes_max=operator.bytes_max,
            values=operator.values,
            **arguments,
        )

    key_type = str if parent.key_type is Any else parent.key_type
    home.kept_table(
        operator.name,
        key=tuple[key_type, int, int] if parent.windowed else key_type,  # type: ignore[valid-type]
        value=Held,
        codec=HeldCodec(),
        like=parent.topics[0],
        make_part=make_part,
        stamped=False,
        checked=False,
        operator=operator,
        mend=parent.mend or _UPGRADE_WHAT_CHANGES,
        help="Changes that are held back.",
    )


class HeldCodec:
    """`Held` to bytes and back."""

    name = "held"
    type_name = "a held change"
    dumps = staticmethod(dump_held)
    loads = staticmethod(load_held)
