"""Operators that programs write themselves, with timers: the way out where no other operator fits.

A processor keeps its state in the app's tables, like an agent. Its timers lie in a table of the operator's own, so they
survive restarts, move with the shard, and are undone with the event that set them. In memory there is only the
order in which they are due, made from that table. An entry there that the table does not confirm is passed over.
"""

from __future__ import annotations

import heapq
import inspect
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from millstream.clock import Duration, duration_ms, format_timestamp, timestamp_ms
from millstream.context import current
from millstream.errors import ConfigurationError, ProgramError
from millstream.streams._due import hand_on_due, has_room
from millstream.streams._operator import Context, Done, Operator, each
from millstream.streams._pipeline import bound
from millstream.tables import DELETED, MISSING, Due, DueFirstError, DueRow, TimedPart
from millstream.windows import Window

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from datetime import datetime

    from millstream.clock import Clock
    from millstream.context import PreImage, Scope
    from millstream.streams._home import StreamHome
    from millstream.streams._plan import Pipeline

__all__ = ["ProcessContext", "Processor", "process"]

EVENT, WALL = 0, 1
UNDONE_MAX: Final = 1_000
"""Timers that undone events may have set or taken out, before all are read again, if there are not many more."""


class Processor(Protocol):
    """What `DeclaredStream.process` takes: an object with these methods; they may be async.

    ``on_timer`` may be left out where no timers are set.
    """

    def process(self, key: Any, value: Any, context: ProcessContext, /) -> Any:
        """Take a record."""
        ...


class ProcessContext:
    """What a processor can do besides using tables, while it is called."""

    __slots__ = ("_context", "_keyed", "_process", "fired", "key", "results", "timestamp")

    def __init__(self, context: Context, process: Process) -> None:
        self._context = context
        self._process = process
        self._keyed = process.keyed()
        self.key: Any = None
        """The key at hand."""
        self.timestamp = 0
        """Event time, in ms: of the record, or the moment for which the timer was set."""
        self.results: list[tuple[Any, Any, int]] = []
        self.fired: tuple[int, int, Any] | None = None
        """The timer that is being called, if any."""

    @property
    def stream_time(self) -> int:
        """The highest event time that the processor has seen in this shard; -1 before the first record."""
        part: TimedPart = self._context.parts[self._process.name]
        return part.stream_time

    def forward(self, value: Any, *, key: Any = None, timestamp: int | None = None) -> None:
        """Hand on a result; with the key and the time at hand unless told otherwise.

        Raises:
            ProgramError: another key, where what follows needs the results in the shards of their keys and
                ``process(..., key=)`` has not said that there are others.
        """
        if key is None:
            key = self.key
        elif self._keyed is not None and key != self.key:
            raise ProgramError(
                f"processor {self._process.name!r} has forwarded under {key!r}, with {self.key!r} at hand, and"
                f" {self._keyed.kind} {self._keyed.name!r} after it needs each key in its own shard. Say that"
                f" it forwards under other keys, with their type, so that the results move there:"
                f" process(..., key={type(key).__name__})"
            )
        self.results.append((key, value, self.timestamp if timestamp is None else timestamp))

    def set_timer(
        self,
        at: datetime | float | None = None,
        *,
        after: Duration | None = None,
        key: Any = None,
        time: Literal["event", "wall"] = "event",
    ) -> None:
        """Have ``on_timer(key, context)`` called once, when time has reached a moment.

        Setting a timer again for the same key and moment changes nothing. One that ``on_timer`` sets for a moment
        that has come already is called next: over a gap in event time, a timer that sets itself again is called
        for each moment in it, unless it is set by ``stream_time``.

        Args:
            at: the moment, in ms since the epoch, or an aware datetime.
            after: instead of it: so long after the event's time, or after now by the wall clock.
            key: the key at hand, unless told otherwise; it has to be one of this shard.
            time: by which clock.

        Raises:
            ProgramError: neither or both of ``at`` and ``after``, no ``on_timer``, or no interval for the wall
                clock was given; or a timer sets one by the same clock that is not later than itself.
        """
        if (at is None) == (after is None):
            raise ProgramError("set_timer: give either the moment, or after=")
        self._process.on_timer()
        if time == "wall" and not self._process.wall:
            raise ProgramError(
                f"processor {self._process.name!r}: timers of the wall clock need to be looked at; say how often:"
                f" process(..., wall_timers='1s')"
            )
        if at is not None:
            moment = timestamp_ms(at)
        else:
            assert after is not None
            now = self.timestamp if time == "event" else self._context.clock.now()
            moment = now + duration_ms(after, what="set_timer(after=)")
        clock = WALL if time == "wall" else EVENT
        fired = self.fired
        if fired is not None and fired[0] == clock:
            begins = fired[1] if at is not None or clock == EVENT else now
            if moment <= begins:
                raise ProgramError(
                    f"processor {self._process.name!r}: on_timer() at {format_timestamp(begins)}, key"
                    f" {fired[2]!r}, has set a timer for {format_timestamp(moment)}, which would be called at"
                    f" once, and again without end: set it for a later moment, as in set_timer(after='1s')"
                )
        part: TimerPart = self._context.parts[self._process.name]
        part.schedule((clock, moment, self.key if key is None else key), self._context.scope)

    def cancel_timer(
        self, at: datetime | float, *, key: Any = None, time: Literal["event", "wall"] = "event"
    ) -> None:
        """Forget a timer; nothing happens if there is none."""
        part: TimerPart = self._context.parts[self._process.name]
        entry = (
            WALL if time == "wall" else EVENT,
            timestamp_ms(at),
            self.key if key is None else key,
        )
        part.forget(entry, self._context.scope)


class TimerPart(TimedPart):
    """Timers of a processor in one shard: entries ``(clock, moment, key)``."""

    __slots__ = ("_heaps", "_stale", "_undone", "wall_until")

    @property
    def kept_as(self) -> str:
        return "timers"

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__(name, **{**arguments, "mutable": False})
        self._heaps: dict[int, list[tuple[int, bytes, Any]]] = {}
        self._stale = True
        self._undone = 0
        self.wall_until = -1
        """What is due by the wall clock up to here, an event has left to the next one; -1 for nothing."""

    def _fresh(self) -> None:
        if self._stale:
            self._stale = False
            self._undone = 0
            self._heaps = {EVENT: [], WALL: []}
            for entry in list(self.keys(b"\x01", None)):
                self._note(entry)

    def _note(self, entry: tuple[int, int, Any]) -> None:
        heapq.heappush(self._heaps[entry[0]], (entry[1], self.encode_key(entry), entry))

    def _is_set(self, entry: Any) -> bool:
        value = self.dirty[entry] if entry in self.dirty else self.load(entry)
        return value is not MISSING and value is not DELETED

    def schedule(self, entry: tuple[int, int, Any], scope: Scope) -> None:
        """Set a timer."""
        self._fresh()
        if self.get(entry, scope) is MISSING:
            self.set(entry, b"", scope)
            self._note(entry)

    def forget(self, entry: tuple[int, int, Any], scope: Scope) -> None:
        """Take a timer out."""
        if self.get(entry, scope) is not MISSING:
            self.delete(entry, scope)

    def next(self, clock: int, now: int) -> tuple[int, int, Any] | None:
        """The first timer that is due by a clock."""
        self._fresh()
        heap = self._heaps[clock]
        while heap and heap[0][0] <= now:
            entry: tuple[int, int, Any] = heap[0][2]
            if self._is_set(entry):
                return entry
            heapq.heappop(heap)
        return None

    def undo(self, key: Any, before: PreImage) -> None:
        super().undo(key, before)
        if self._stale:
            return
        self._undone += 1
        if self._is_set(key):
            self._note(key)
        # what the event had set stays in its heap, and is passed over when its moment comes
        self._stale = self._undone > UNDONE_MAX + sum(map(len, self._heaps.values())) // 2

    def advance(self, by: int) -> None:
        super().advance(by)
        if self.due():
            self.closing_due = True
            self.on_due()

    def more_is_due(self, mark: bytes = b"") -> None:
        super().more_is_due(str(self.wall_until).encode())

    def left_over(self, mark: bytes) -> None:
        self.wall_until = int(mark)
        super().left_over(mark)

    def due(self) -> list[Due]:
        self.closing_due = False
        if self.next(EVENT, self.stream_time) is None and self.next(WALL, self.wall_until) is None:
            self.wall_until = -1
            self.nothing_is_due()
            return []
        return [Due(None, None, Window(self.stream_time, self.stream_time), b"")]

    def close(self, due: Due, scope: Scope) -> Any:
        return due

    def held_rows(self) -> Iterator[tuple[Any, int, bytes]]:
        for entry in self.keys(b"\x01", None):
            yield entry[2], entry[1], self.encode_key(entry)


class Process(Operator):
    """Hands records and timers to an object of the program."""

    kind = "process"
    holds_back = True

    def __init__(
        self,
        parent: Operator,
        processor: Any,
        *,
        name: str,
        clock: Callable[[], Clock],
        wall: bool,
        key_type: Any,
        value_type: Any,
    ) -> None:
        """
        Args:
            key_type: of what it hands on, where its keys may be others; else None.
        """
        super().__init__(parent, name=name)
        self.processor = processor
        self.value_type, self.codec = value_type, None
        if key_type is not None:
            self.key_type = key_type
            self.makes_keys = self.rekeyed = True
            self.windowed = False
        self.stores.append(name)
        self._clock = clock
        self.wall = wall

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        part = context.parts[self.name]
        call = self.processor.process
        face = ProcessContext(context, self)

        def take(key: Any, value: Any, timestamp: int) -> Done:
            scope = context.scope
            event_time, scope.timestamp = scope.timestamp, timestamp
            stream_time = part.seen(scope)
            scope.timestamp = event_time
            if part.next(EVENT, stream_time) is not None:
                return later(key, value, timestamp)
            face.key, face.timestamp = key, timestamp
            waits = call(key, value, face)
            if waits is not None:
                return rest(self._awaitable(waits, "process"))
            return self._hand_on(face, forward)

        async def later(key: Any, value: Any, timestamp: int) -> None:
            scope, now = context.scope, part.stream_time
            # what a row brings that was held back cannot wait: it is out already
            waits = scope.tp is not None
            if not await self._fire(context, face, forward, EVENT, now, bounded=waits):
                raise DueFirstError(self.name, now)
            face.key, face.timestamp = key, timestamp
            waits = call(key, value, face)
            if waits is not None:
                await self._awaitable(waits, "process")
            done = self._hand_on(face, forward)
            if done is not None:
                await done

        async def rest(waits: Awaitable[Any]) -> None:
            await waits
            done = self._hand_on(face, forward)
            if done is not None:
                await done

        return [take]

    def on_timer(self) -> Callable[[Any, ProcessContext], Any]:
        """What the program has for its timers.

        Raises:
            ProgramError: it has nothing.
        """
        found: Any = getattr(self.processor, "on_timer", None)
        if not callable(found):
            raise ProgramError(
                f"processor {self.name!r} sets timers, and {self.processor!r} has no method"
                f" on_timer(key, context) that they could call"
            )
        return found  # type: ignore[no-any-return]

    def _awaitable(self, returned: Any, method: str) -> Awaitable[Any]:
        if not inspect.isawaitable(returned):
            raise ProgramError(
                f"processor {self.name!r}: {method}() has returned {returned!r}, and nobody takes that: hand"
                f" results on with context.forward(value), and return nothing"
            )
        return returned

    def keyed(self) -> Operator | None:
        """What takes the results by their keys in this very shard, where these may be no others."""
        assert self.pipeline is not None
        return None if self.rekeyed else _by_key(self, self.pipeline)

    @staticmethod
    def _hand_on(face: ProcessContext, forward: Callable[..., Done]) -> Done:
        if not face.results:
            return None
        results, face.results = face.results, []
        return each(results, forward)

    async def _fire(
        self,
        context: Context,
        face: ProcessContext,
        forward: Callable[..., Done],
        clock: int,
        now: int,
        *,
        bounded: bool = True,
    ) -> bool:
        """Call ``on_timer`` for what is due, in order; False where there is more than one event lets out."""
        part: TimerPart = context.parts[self.name]

        async def go(entry: tuple[int, int, Any]) -> None:
            face.fired = entry
            _, face.timestamp, face.key = entry
            face.results = []
            waits = self.on_timer()(face.key, face)
            if waits is not None:
                await self._awaitable(waits, "on_timer")
            done = self._hand_on(face, forward)
            if done is not None:
                await done

        def row_of(entry: tuple[int, int, Any]) -> DueRow:
            return DueRow(self.name, part.encode_key(entry), entry[2], entry[1], None, None)

        let_out = 0
        try:
            while (entry := part.next(clock, now)) is not None:
                if bounded and not has_room(context.scope, let_out):
                    return False
                let_out += 1
                part.forget(entry, context.scope)
                done = hand_on_due(context.scope, entry, go, row_of)
                if done is not None:
                    await done
        finally:
            face.fired = None
        return True

    async def close(self, key: Any, window: Any, value: Any) -> None:
        """Event time has moved without a record, or an event has left some of what is due."""
        part: TimerPart = current.get().parts[self.name]
        await self._wake(EVENT, part.stream_time)
        if part.wall_until >= 0:
            await self._wake(WALL, part.wall_until)

    async def tick(self) -> None:
        """Look at the timers of the wall clock."""
        scope = current.get()
        part: TimerPart = scope.parts[self.name]
        now = self._clock().now()
        if part.next(WALL, now) is not None:
            await self._wake(WALL, now)

    async def _wake(self, clock: int, now: int) -> None:
        scope = current.get()
        assert self.pipeline is not None
        context = bound(self.pipeline, scope, self._clock()).context
        part: TimerPart = scope.parts[self.name]
        forward = bound(self.pipeline, scope, self._clock()).forward(self)
        if not await self._fire(context, ProcessContext(context, self), forward, clock, now):
            if clock == WALL:
                part.wall_until = now
            part.more_is_due()


def _by_key(operator: Operator, pipeline: Pipeline) -> Operator | None:
    """What takes an operator's results by their keys, before these change or go through a topic."""
    for child, _ in pipeline.children[operator]:
        if child.goes_by_key:
            return child
        found = None if child.rekeyed else _by_key(child, pipeline)
        if found is not None:
            return found
    return None


def process(
    home: StreamHome,
    parent: Operator,
    processor: Any,
    *,
    name: str,
    wall_timers: Duration | None,
    key_type: Any,
    value_type: Any,
) -> Operator:
    """Declare the operator and the table of its timers.

    Raises:
        ConfigurationError: the object has no ``process``, or the interval is not above 0.
    """
    wall_ms = None if wall_timers is None else duration_ms(wall_timers, what=f"{name}: wall_timers")
    if wall_ms is not None and wall_ms < 1:
        raise ConfigurationError(f"process({name!r}): wall_timers={wall_timers!r} is not above 0")
    if not callable(getattr(processor, "process", None)):
        raise ConfigurationError(
            f"process({name!r}): {processor!r} has no method process(key, value, context)"
        )
    operator = Process(
        parent,
        processor,
        name=name,
        clock=lambda: home.clock,
        wall=wall_timers is not None,
        key_type=key_type,
        value_type=value_type,
    )
    home.plan.add(operator)
    keyed_by = str if parent.key_type is Any else parent.key_type
    home.kept_table(
        name,
        key=tuple[int, int, keyed_by],  # type: ignore[valid-type]
        value=bytes,
        codec="raw",
        like=parent.topics[0],
        make_part=make_timers,
        stamped=False,
        checked=False,
        operator=operator,
        help="Timers.",
    )
    home.due_hook(name, operator.close)
    if wall_timers is not None:
        home.shard_timer(wall_timers, name, operator.tick)
    return operator


def make_timers(name: str, **arguments: Any) -> TimerPart:
    """A shard's timers."""
    return TimerPart(name, **arguments)
