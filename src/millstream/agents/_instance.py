"""One running instance of an agent function, in one shard."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from millstream.agents._lines import user_line
from millstream.agents._stream import SKIP, Stream
from millstream.context import Scope, current
from millstream.errors import AgentError, ConfigurationError, DecodeError, ProgramError
from millstream.records import Position, TopicPartition

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence

    from millstream.agents._agent import Agent
    from millstream.clock import Clock
    from millstream.context import IncomingRecord

__all__ = ["Failure", "Instance", "InstanceHost", "Run", "Source"]

logger = logging.getLogger("millstream.agents")


class Source(NamedTuple):
    """How an agent reads one of its topics."""

    topic: str
    decode: Callable[[bytes], Any]
    decode_key: Callable[[bytes], Any]
    time_of: Callable[[Any], int | None] | None
    type_name: str
    max_wait_s: float = 0.0
    """How long the other sources' records wait for this one, when it has nothing."""
    idle_ms: int | None = None
    """After so long without records event time moves on by itself."""
    partitioner: Callable[[bytes, int], int] | None = None
    """How its writers choose partitions; None where that does not matter."""
    ours: bool = False
    """Whether only we write it, as its partitioner says."""
    drops_keyless: bool = False
    """Whether its records without a key are nothing to the agent."""


class Run:
    """Records of one partition in offset order, on their way through one agent."""

    __slots__ = ("records", "source", "start", "tp")

    def __init__(
        self,
        tp: TopicPartition,
        source: Source,
        records: Iterator[IncomingRecord],
        *,
        start: int,
    ) -> None:
        self.tp = tp
        self.source = source
        self.start = start
        """An offset at or before the first one, and after any record of an earlier run."""
        self.records = records
        """What is left of them."""


class Failure(NamedTuple):
    """An event that did not work out."""

    scope: Scope
    run: Run
    record: IncomingRecord
    error: BaseException
    ran: bool = True
    """Whether the agent function has seen the event, so that there may be something to undo."""
    before: Sequence[tuple[Run, IncomingRecord]] = ()
    """Of a batch: the records that came before ``record``, which share its fate."""


class EventRefused(BaseException):
    """Ends an agent function whose event is undone although the function is through with it.

    No `Exception`, as it is none of the function's business.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class InstanceHost(Protocol):
    """The agent in its running shard, as an instance needs it."""

    clock: Clock

    @property
    def journaled(self) -> bool:
        """Whether events that begin from now on have journals."""
        ...

    def scope(self, agent: str, *, journaled: bool) -> Scope: ...

    def event_begun(self, scope: Scope) -> BaseException | None:
        """A journaled event begins.

        Returns:
            The error for which the event must not run again: the policy decides over it at once.
        """
        ...

    async def event_failed(self, instance: Instance, failure: Failure) -> bool:
        """Undo the event and decide what comes next.

        Returns:
            True to try the record again, False to go past it.

        Raises:
            AgentError: the policy says stop.
        """
        ...

    def event_finished(self, scope: Scope) -> None:
        """A journaled event is finished.

        Raises:
            ProgramError: it is not, as what it has written cannot be committed.
        """
        ...

    def time_reached(self, timestamp: int) -> None:
        """Event time, where it is not the record's own."""
        ...


class Instance:
    """Runs an agent function over the runs that it is given, one event at a time."""

    def __init__(
        self,
        agent: Agent[Any, Any],
        *,
        host: InstanceHost,
        sources: Mapping[str, Source],
        emit: Callable[[Scope, Any], Awaitable[None]],
        number: int = 0,
    ) -> None:
        self.agent = agent
        self.sources = sources
        self.number = number
        self._host = host
        self._emit = emit
        self.scope = host.scope(agent.name, journaled=False)
        self.journaled = host.journaled
        self._rest_from: int | None = None
        """Of an idle instance: the first offset of what it left of its run, until that is taken back."""
        self.interrupted = False
        """Set to have the instance stop between two events and ask for its next run."""
        self.run: Run | None = None
        self.held: dict[TopicPartition, int] = {}
        """First offsets of records that a batch holds and that are not finished."""
        self._batch: list[tuple[Run, IncomingRecord]] = []
        """Records of the batch that is gathered, or that the function works on."""
        self._again: deque[Run] = deque()
        """Runs to go through after the present one: a failed batch that is tried again."""
        self._error: tuple[IncomingRecord, BaseException] | None = None
        self._condemned: BaseException | None = None
        self._fatal: AgentError | None = None
        self._wanted: asyncio.Future[Run] | None = None
        self.idle = asyncio.Event()
        """Set while the instance waits for a run."""
        self.running: Any = None
        """What the agent function gave when it was called last: a coroutine, or an async generator."""
        self.run_began = 0.0
        """When the instance was last given a run, on the monotonic clock."""
        self.run_s = 0.0
        """How long the last run took, from when it began."""
        self.on_idle: Callable[[Instance], None] | None = None
        self.more: Callable[[Instance], Run | None] | None = None
        """Gives the next run without a turn of the event loop, if it is time for one."""

    # for the shard --------------------------------------------------------------------------------

    def deliver(self, run: Run) -> None:
        """Give an idle instance its next run."""
        assert self._wanted is not None
        self.idle.clear()
        self._rest_from = None
        self.run = run
        if not self._wanted.done():
            self._wanted.set_result(run)

    @property
    def in_event(self) -> bool:
        """Whether an event is in progress, seen from outside: it waits for something."""
        return self.scope.open

    def position(self, tp: TopicPartition) -> int | None:
        """The offset of the first unfinished record, or None where nothing of ``tp`` is unfinished."""
        if tp in self.held:
            return self.held[tp]
        position = self._position_in_run(tp)
        if self._again:
            starts = [run.start for run in self._again if run.tp == tp]
            return min([position, *starts] if position is not None else starts, default=None)
        return position

    def _position_in_run(self, tp: TopicPartition) -> int | None:
        run = self.run
        if run is None or run.tp != tp:
            return None
        if self.idle.is_set():
            return self._rest_from
        record = self.scope.record
        if record is None or self.scope.tp != tp or record.offset < run.start:
            return run.start
        return record.offset if self.scope.open else record.offset + 1

    def take_rest(self) -> Run | None:
        """Of an idle instance: what it left of its run when it was interrupted."""
        run, self.run = self.run, None
        self._rest_from = None
        if run is None:
            return None
        first = next(run.records, None)
        if first is None:
            return None
        return Run(run.tp, run.source, _before(first, run.records), start=first.offset)

    async def serve(self) -> None:
        """Run the agent function until cancelled, and again whenever it fails or returns.

        Raises:
            AgentError: the policy of a failed record says stop, or the function failed outside of an event.
        """
        while True:
            self.scope = self._host.scope(self.agent.name, journaled=False)
            current.set(self.scope)
            self.held.clear()
            self._batch.clear()
            served = self.run
            stream: Stream[Any] = Stream(self)
            self.scope.stream = stream
            try:
                result = self.running = self.agent.function(stream)
                if inspect.isasyncgen(result):
                    async for output in result:
                        await self._emit(self.scope, output)
                else:
                    await result
                if self.scope.open:
                    self.finish()
            except asyncio.CancelledError:
                raise
            except EventRefused as refused:
                await self._failed(refused.error)
            except Exception as exc:
                if self._fatal is None:
                    await self._failed(exc)
            else:
                if self.scope.record is None and served is self.run:
                    raise ProgramError(
                        f"agent {self.agent.name!r} returned without reading its stream:"
                        f" write `async for value in stream`"
                    )
                self._close()
            if self._fatal is not None:
                raise self._fatal

    # for the stream -------------------------------------------------------------------------------

    async def next_run(self, timeout_s: float | None = None) -> Run | None:
        """The next run with records; None when ``timeout_s`` is over."""
        if self.run is not None and not self.idle.is_set():
            rest = next(self.run.records, None)
            if rest is not None:
                self.run.records = _before(rest, self.run.records)
                if not self.interrupted or self._again:
                    return self.run
                self._rest_from = rest.offset
            elif self._again:
                self.run = self._again.popleft()
                return self.run
            elif self.more is not None and not self.interrupted:
                more = self.more(self)
                if more is not None:
                    self.run = more
                    self.journaled = self._host.journaled
                    return more
        self.run_s = self._host.clock.monotonic() - self.run_began
        self.journaled = self._host.journaled
        if self._wanted is None or self._wanted.done():
            self._wanted = asyncio.get_running_loop().create_future()
        self.idle.set()
        if self.on_idle is not None:
            self.on_idle(self)
        if timeout_s is None:
            run = await self._wanted
        else:
            sleep = asyncio.ensure_future(self._host.clock.sleep(timeout_s))
            try:
                waited: list[asyncio.Future[Any]] = [self._wanted, sleep]
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleep.cancel()
            if not self._wanted.done():
                return None
            run = self._wanted.result()
        self.journaled = self._host.journaled
        self.interrupted = False
        self.run_began = self._host.clock.monotonic()
        return run

    def begin(self, run: Run, record: IncomingRecord) -> Any:
        """Open an event outside of the flat loop over a run; its value, or `SKIP`."""
        if self.journaled:
            stream = self.scope.stream
            scope = self.scope = self._host.scope(self.agent.name, journaled=True)
            scope.stream = stream
            current.set(scope)
        else:
            scope = self.plain_scope()
        scope.tp = run.tp
        scope.record = record
        scope.timestamp = record.timestamp
        scope.open = True
        if self.journaled:
            error = self._host.event_begun(scope)
            if error is not None:
                self._condemned = error
                self._error = (record, error)
                return SKIP
        data = record.value
        return None if data is None else self._read(run.source, data, record)

    def _read(self, source: Source, data: bytes, record: IncomingRecord) -> Any:
        try:
            value = source.decode(data)
            if source.time_of is not None:
                moment = source.time_of(value)
                if moment is not None:
                    self.scope.timestamp = moment
                    self._host.time_reached(moment)
        except Exception as exc:
            return self.tombstone_or_error(record, exc)
        return value

    def time_reached(self, moment: int) -> None:
        """Event time, where it is not the record's own."""
        self._host.time_reached(moment)

    def plain_scope(self) -> Scope:
        """The scope that all events share while the shard keeps no journals."""
        scope = self.scope
        if scope.journal is not None:
            stream = scope.stream
            scope = self.scope = self._host.scope(self.agent.name, journaled=False)
            scope.stream = stream
            current.set(scope)
        return scope

    def finish(self) -> None:
        """The event at hand is finished; raises `EventRefused` where it cannot be committed."""
        scope = self.scope
        if scope.journal is not None:
            try:
                self._host.event_finished(scope)
            except ProgramError as exc:
                raise EventRefused(exc) from exc
        scope.open = False

    def tombstone_or_error(self, record: IncomingRecord, exc: Exception) -> Any:
        """None where the record has no value; else `SKIP`, and `undecodable` decides."""
        if record.value is None:
            return None
        self._error = (record, exc)
        return SKIP

    async def undecodable(self) -> Any:
        """Apply the policy to a record whose value or time cannot be read.

        Returns:
            `SKIP` to go past it, or the value, which another attempt could read.
        """
        while self._error is not None:
            assert self.run is not None
            run, (record, exc) = self.run, self._error
            self._error = None
            if exc is not self._condemned and not isinstance(exc, ProgramError):
                where = str(Position(*run.tp, record.offset))
                error = DecodeError(
                    where, part="value", type_name=run.source.type_name, reason=str(exc)
                )
                error.__cause__ = exc
                exc = error
            failure = Failure(self.scope, run, record, exc, ran=False)
            try:
                again = await self._host.event_failed(self, failure)
            except AgentError as stop:
                self._fatal = stop  # whatever the agent function makes of it
                raise
            if not again:
                break
            data = record.value
            value = None if data is None else self._read(run.source, data, record)
            if value is not SKIP:
                return value
        self.scope.open = False
        return SKIP

    async def batches(self, count: int, wait_s: float | None) -> AsyncIterator[list[Any]]:
        """Lists of values for `Stream.take`."""
        if self.agent.concurrency > 1:
            raise ConfigurationError(
                f"agent {self.agent.name!r}: take() gathers events one after the other, and"
                f" concurrency={self.agent.concurrency} works on many at once. Use one of the two"
            )
        clock = self._host.clock
        values: list[Any] = []
        deadline = 0.0
        run: Run | None = None
        while True:
            left = None
            if values and wait_s is not None:
                left = max(0.0, deadline - clock.monotonic())
            if run is None:
                run = await self.next_run(left)
            if run is not None:
                for record in run.records:
                    self.held.setdefault(run.tp, record.offset)
                    value = self.begin(run, record)
                    if value is SKIP:
                        value = await self.undecodable()
                    self.scope.open = False
                    if value is SKIP:
                        continue
                    self._batch.append((run, record))
                    if not values and wait_s is not None:
                        deadline = clock.monotonic() + wait_s
                    values.append(value)
                    if len(values) >= count:
                        break
                else:
                    run = None
            elif not values:
                continue
            if len(values) >= count or (
                values and wait_s is not None and clock.monotonic() >= deadline
            ):
                self.scope.open = True
                batch, values = values, []
                yield batch
                self.finish()
                self.held.clear()
                self._batch.clear()

    # failures -------------------------------------------------------------------------------------

    def _close(self) -> None:
        """The function has ended: what it has seen of its run is finished."""
        self.scope.open = False
        record, run = self.scope.record, self.run
        if run is not None and record is not None and self.scope.tp == run.tp:
            run.start = max(run.start, record.offset + 1)

    async def _failed(self, error: Exception) -> None:
        scope, run = self.scope, self.run
        if not scope.open or run is None or scope.record is None:
            raise AgentError(
                f"agent {self.agent.name!r}", cause=error, line=user_line(error)
            ) from error
        record = scope.record
        batch = self._batch or [(run, record)]
        failure = Failure(scope, run, record, error, before=batch[:-1])
        again = await self._host.event_failed(self, failure)
        self._close()
        if again:
            runs = [_run_of(list(group)) for _, group in itertools.groupby(batch, key=_run_id)]
            self._again.extendleft([run, *reversed(runs[1:])])
            self.run = runs[0]


def _run_id(taken: tuple[Run, IncomingRecord]) -> int:
    return id(taken[0])


def _run_of(taken: list[tuple[Run, IncomingRecord]]) -> Run:
    """Records of one run, to go through it once more."""
    run, records = taken[0][0], [record for _, record in taken]
    return Run(run.tp, run.source, iter(records), start=records[0].offset)


def _before(record: IncomingRecord, rest: Iterator[IncomingRecord]) -> Iterator[IncomingRecord]:
    yield record
    yield from rest
