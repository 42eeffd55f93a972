"""One agent in one shard: what was fetched for it, and the instances that work on it.

Each agent has an inbox, positions and a pace of its own, so agents never wait for one another. Where an agent
reads several partitions of its shard, the record whose partition's head is oldest comes first; a partition
that is known to have more data, which is not here yet, is waited for.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import TYPE_CHECKING, Any, NoReturn

from millstream.agents import Instance, Run, Source
from millstream.context import Scope
from millstream.transports.batch import iterate_batches
from millstream.worker._ahead import ReadAhead
from millstream.worker._key_queue import KeyQueue, Waiting
from millstream.worker._placement import Placement

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from millstream.agents import Failure
    from millstream.context import IncomingRecord
    from millstream.records import TopicPartition
    from millstream.transports.base import Fetched
    from millstream.worker._shard import Shard
    from millstream.worker._specs import AgentSpec

__all__ = ["Lane"]

RUN_TARGET_S = 0.005
"""How long a run should take at most, so that the event loop turns."""
RUN_RECORDS_MIN, RUN_RECORDS_MAX = 16, 4_096
CLOCK_RUNS = 8
"""Short runs, one after the other, between two looks at the clock."""
PIECE_RECORDS = 64
"""Records that are read at once: what is read long before its turn is cold by then."""
AHEAD_EVENTS_MAX = 4_096
"""With concurrency: events that wait for an earlier one before they can be committed; then intake stops."""
CHAIN_EVENTS = 4
"""With concurrency: events that an instance may go on with by itself in any case; then while its turn lasts."""
PENDING_PER_INSTANCE = 16
"""With concurrency: events taken in, per instance, while others with their key are in progress."""


class Inbox:
    """What was fetched of one partition and not taken yet."""

    __slots__ = (
        "_lane",
        "batch",
        "batch_end",
        "batch_time",
        "chunks",
        "end",
        "fetched",
        "head",
        "head_time",
        "looked_at",
        "position",
        "size",
        "source",
        "wait_until",
    )

    def __init__(self, source: Source, position: int, end: int, lane: Lane) -> None:
        self.source = source
        self.looked_at = Placement.looks_at(source)
        """Whether its records are looked at, if those of the lane are."""
        self._lane = lane
        self.position = position
        """The offset of the next record to take."""
        self.fetched = position
        """The offset to fetch from."""
        self.end = max(position, end)
        """The end of the partition, as far as it is known."""
        self.chunks: deque[Iterator[Any]] = deque()
        self.size = 0
        """Bytes fetched and not taken, counted in whole chunks."""
        self.batch: Iterator[IncomingRecord] = iter(())
        self.batch_end = position
        self.batch_time = -1
        self.head: IncomingRecord | None = None
        self.head_time = -1
        """Event time of ``head``."""
        self.wait_until: float | None = None
        """While it is empty and others of the lane are not: until when those wait for it."""

    def add(self, fetched: Fetched) -> None:
        """Take what a fetch brought."""
        news = fetched.next_offset > self.fetched
        self.fetched = fetched.next_offset
        self.end = max(self.end, fetched.end_offset)
        if not news:
            return  # there is more, which this fetch had no room for
        if fetched.data:
            self.size += len(fetched.data)
            self.chunks.append(self._read(fetched))
        elif self.is_empty():
            self.position = fetched.next_offset
        else:
            self.chunks.append(iter([(iter(()), fetched.next_offset, -1)]))

    def _read(self, fetched: Fetched) -> Iterator[tuple[Iterator[IncomingRecord], int, int]]:
        data = fetched.data
        for batch in iterate_batches(data, where=str(fetched.tp), checked=fetched.checked):
            if batch.next_offset <= self.position:
                continue
            if batch.is_control_batch:
                yield iter(()), batch.next_offset, -1
            elif batch.base_offset < self.position:
                position = self.position
                rest = (record for record in batch if record.offset >= position)
                yield rest, batch.next_offset, batch.max_timestamp
            else:
                # a batch may be iterated once, and not be asked for its iterator again
                yield itertools.chain(batch), batch.next_offset, batch.max_timestamp
        # behind the records there may be others that were never committed, and the ends of transactions
        yield iter(()), fetched.next_offset, -1
        self.size -= len(data)
        self._lane.subtopology.epoch_bytes += len(data)

    def take(self, count: int) -> tuple[list[IncomingRecord], Iterator[IncomingRecord]] | None:
        """Up to ``count`` records, read as they are asked for: the first few, and all; None when there is nothing here.

        Nothing else may be taken before the last one has been.
        """
        while True:
            first = self._piece(count)
            if first:
                return first, itertools.chain.from_iterable(self._pieces(first, count))
            if not self._next_batch():
                return None

    def _pieces(self, first: list[IncomingRecord], count: int) -> Iterator[list[IncomingRecord]]:
        piece = first
        while piece:
            yield piece
            count -= len(piece)
            piece = self._piece(count)

    def _piece(self, count: int) -> list[IncomingRecord]:
        count = min(count, PIECE_RECORDS)
        records = list(itertools.islice(self.batch, count))
        if len(records) < count:
            self.position = max(self.position, self.batch_end)
            self.batch = iter(())  # a batch must not be asked again after its end
        elif records:
            self.position = records[-1].offset + 1
        return records

    def _next_batch(self) -> bool:
        self.batch = iter(())
        self.position = max(self.position, self.batch_end)
        if self.source.time_of is None:
            self._lane.time_reached(self.batch_time)
        while self.chunks:
            found = next(self.chunks[0], None)
            if found is not None:
                batch, self.batch_end, self.batch_time = found
                if self.source.drops_keyless:
                    batch = self._lane.keyed(batch)
                self.batch = self._lane.ahead_of.batch(batch, self.source)
                return True
            self.chunks.popleft()
        return False

    def peek(self) -> IncomingRecord | None:
        """The next record, or None when there is nothing here."""
        while self.head is None:
            self.head = next(self.batch, None)
            if self.head is not None:
                self.head_time = self._time(self.head)
            elif not self._next_batch():
                return None
        return self.head

    def _time(self, record: IncomingRecord) -> int:
        time_of = self.source.time_of
        if time_of is None or record.value is None:
            return record.timestamp
        try:
            moment = time_of(self.source.decode(record.value))
        except Exception:
            return record.timestamp  # the agent's policy meets it when its turn comes
        return record.timestamp if moment is None else moment

    def take_until(self, bound: float, count: int) -> list[IncomingRecord]:
        """The record that `peek` showed, and up to ``count`` with those behind it whose event time is at most ``bound``."""
        record, batch, time_of = self.head, self.batch, self.source.time_of
        assert record is not None
        records = [record]
        while len(records) < count:
            following = next(batch, None)
            if following is None:
                self.head = None
                self.batch = iter(())  # a batch must not be asked again after its end
                self.position = record.offset + 1
                following = self.peek()
                if following is None:
                    return records
                batch = self.batch
            else:
                self.head = following
                self.head_time = following.timestamp if time_of is None else self._time(following)
            if self.head_time > bound:
                break
            record = following
            records.append(record)
        else:
            self.head = None
        self.position = max(self.position, record.offset + 1)
        return records

    def is_empty(self) -> bool:
        return not self.chunks and self.head is None


class Lane:
    """An agent of a running shard: inboxes, instances, and what is unfinished."""

    def __init__(
        self,
        spec: AgentSpec,
        *,
        shard: Shard,
        positions: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        inbox_bytes_max: int,
        placement: Placement | None = None,
    ) -> None:
        """
        Args:
            positions: from where its inputs are read.
            ends: where these end now: what lies before has its place in the order of time.
            inbox_bytes_max: bound on what is fetched and not taken; each input has an equal share of it.
            placement: looks whether records are where their keys belong; None where that does not matter.
        """
        self._spec = spec
        self.agent = spec.agent
        self.shard = shard
        self.clock = shard.clock
        self.subtopology = shard.subtopology_of(spec.agent.name)
        self.subtopology.lanes.append(self)
        self._parts = shard.parts_of(spec.agent.name)
        # many at once take their records in long before they work on them
        self.ahead_of = ReadAhead(self._parts if spec.agent.concurrency == 1 else {})
        self._failures = shard.failures
        self.ahead = 0
        """Journaled events that are not committed."""
        self.instances = [
            Instance(spec.agent, host=self, sources=spec.sources, emit=spec.emit, number=number)
            for number in range(spec.agent.concurrency)
        ]
        self.inboxes: dict[TopicPartition, Inbox] = {}
        """In the order of their names."""
        self._placement = placement
        self._bytes_max = inbox_bytes_max
        self._inbox_bytes_max = inbox_bytes_max // max(1, len(positions))
        for tp in sorted(positions):
            self.inboxes[tp] = Inbox(spec.sources[tp.topic], positions[tp], ends[tp], self)
        self.active_at = shard.clock.monotonic()
        """When data came last, or something was still to do; see `millstream.worker._idle`."""
        self._wait_until: float | None = None
        """When it is worth looking again, although nothing has arrived."""
        self._arrived = asyncio.Event()
        self._run_records = 256
        self._rest: deque[Run] = deque()
        self._goes_on = 0
        """How often an instance went on with another run in its turn."""
        self._queue = KeyQueue(self._order_key)
        """With concurrency: what is taken in and waits for an instance."""
        self._dispatched: dict[Instance, Waiting] = {}
        self._idle: deque[Instance] = deque()
        self._turn_began = 0.0
        self._chained: dict[Instance, int] = {}
        """How many events an instance has gone on with by itself."""
        if spec.agent.concurrency > 1:
            for instance in self.instances:
                instance.on_idle = self._instance_idle
                instance.more = self._more_of_many
        else:
            self.instances[0].more = self._more

    # for instances --------------------------------------------------------------------------------

    @property
    def journaled(self) -> bool:
        """Whether events that begin from now on have journals."""
        return self.subtopology.journaled

    def scope(self, agent: str, *, journaled: bool) -> Scope:
        """A scope for the next event; see `millstream.agents.InstanceHost`."""
        return Scope(
            shard=self.shard,
            agent=agent,
            parts=self._parts,
            subtopology=self.subtopology,
            journaled=journaled,
        )

    def event_begun(self, scope: Scope) -> BaseException | None:
        self.subtopology.events[scope] = None
        self.ahead += 1
        return self._failures.condemned(scope)

    def event_finished(self, scope: Scope) -> None:
        self._failures.check(scope)
        if self.subtopology.event_finished(scope):
            self.ahead -= 1

    async def event_failed(self, instance: Instance, failure: Failure) -> bool:
        return await self._failures.failed(self._spec, failure)

    def time_reached(self, timestamp: int) -> None:
        if timestamp > self.subtopology.stream_time:
            self.subtopology.time_reached(timestamp)

    def keyed(self, records: Iterator[IncomingRecord]) -> Iterator[IncomingRecord]:
        """The records that have a key."""
        for record in records:
            if record.key is None:
                self.shard.counters["null_keys_dropped"] += 1
            else:
                yield record

    # fetching -------------------------------------------------------------------------------------

    def wanted(self) -> dict[TopicPartition, int]:
        """Partitions with room in their inbox, and where to fetch from."""
        return {
            tp: inbox.fetched
            for tp, inbox in self.inboxes.items()
            if inbox.size < self._inbox_bytes_max
        }

    def add(self, fetched: Fetched) -> None:
        """Take what a fetch brought."""
        self.inboxes[fetched.tp].add(fetched)
        if fetched.data:
            self.active_at = self.shard.clock.monotonic()
        self._arrived.set()

    def add_input(self, tp: TopicPartition, at: int, end: int) -> None:
        """Read another partition as well, from ``at`` on; its topic is among the sources by now."""
        self.inboxes[tp] = Inbox(self._spec.sources[tp.topic], at, end, self)
        self.inboxes = dict(sorted(self.inboxes.items()))
        self._inbox_bytes_max = self._bytes_max // len(self.inboxes)

    # positions ------------------------------------------------------------------------------------

    def position(self, tp: TopicPartition) -> int:
        """The offset of the first record of ``tp`` that is not finished."""
        unfinished = [self.inboxes[tp].position]
        for instance in self.instances:
            at = instance.position(tp)
            if at is not None:
                unfinished.append(at)
        unfinished += [run.start for run in self._rest if run.tp == tp]
        if self._queue:
            waiting = self._queue.first_offset(tp)
            if waiting is not None:
                unfinished.append(waiting)
        unfinished += [w.record.offset for w in self._dispatched.values() if w.run.tp == tp]
        return min(unfinished)

    def in_progress(self) -> bool:
        """Whether some event is in the middle."""
        return any(instance.in_event for instance in self.instances)

    def is_quiet(self) -> bool:
        """Whether everything that is here is finished."""
        return (
            not self._rest
            and not self._queue
            and not self._dispatched
            and all(instance.idle.is_set() and not instance.held for instance in self.instances)
            and all(
                inbox.is_empty() and inbox.fetched >= inbox.end for inbox in self.inboxes.values()
            )
        )

    # pumping --------------------------------------------------------------------------------------

    async def pump(self) -> NoReturn:
        """Bring records to the instances, for ever."""
        for instance in self.instances:
            await instance.idle.wait()
        if self.agent.concurrency > 1:
            await self._pump_many()
        while True:
            await self.shard.turns.mine()
            while not self.subtopology.gate.is_set():
                await self.subtopology.gate.wait()
            run = self._rest.popleft() if self._rest else self._next_run()
            if run is None:
                self._arrived.clear()
                await self._arrival()
                continue
            await self._feed(run)
            self.subtopology.took_run()

    async def _arrival(self) -> None:
        """Wait until something has arrived, or a wait for an empty partition is over."""
        if self._wait_until is None:
            await self._arrived.wait()
            return
        clock = self.shard.clock
        waits = [
            asyncio.ensure_future(clock.sleep(self._wait_until - clock.monotonic())),
            asyncio.ensure_future(self._arrived.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _next_run(self) -> Run | None:
        if len(self.inboxes) == 1:
            ((tp, inbox),) = self.inboxes.items()
            start = inbox.position
            found = inbox.take(self._run_records)
            if found is None:
                return None
            first, records = found
        else:
            chosen = self._oldest()
            if chosen is None:
                return None
            tp, inbox, bound = chosen
            start = inbox.position
            first = inbox.take_until(bound, self._run_records)
            records = iter(first)
        if inbox.looked_at and self._placement is not None:
            self._placement.look(tp, inbox.source, first)
        return Run(tp, inbox.source, records, start=start)

    def _oldest(self) -> tuple[TopicPartition, Inbox, float] | None:
        """The input whose head is oldest, and up to which time it goes before the others; of equal ones the first by name."""
        oldest: tuple[TopicPartition, Inbox] | None = None
        least = bound = float("inf")
        awaited = []
        self._wait_until = None
        for tp, inbox in self.inboxes.items():
            if inbox.head is None and inbox.peek() is None:
                if inbox.position < inbox.end:
                    return None
                if inbox.source.max_wait_s:
                    awaited.append(inbox)
                continue
            inbox.wait_until = None
            time = inbox.head_time
            if oldest is None or time < least:
                # those before it by name come first in a moment that they share
                oldest, least, bound = (tp, inbox), time, least - 1
            elif time < bound:
                bound = time
        if oldest is None:
            for inbox in awaited:
                inbox.wait_until = None
            return None
        if awaited and self._waits_for(awaited):
            return None
        return *oldest, bound

    def _waits_for(self, empty: list[Inbox]) -> bool:
        """Whether records of other partitions are held back for one of these, as ``max_wait`` says."""
        now = self.shard.clock.monotonic()
        for inbox in empty:
            if inbox.wait_until is None:
                inbox.wait_until = now + inbox.source.max_wait_s
        left = [inbox.wait_until for inbox in empty if inbox.wait_until > now]  # type: ignore[operator]
        self._wait_until = max(left, default=None)  # type: ignore[type-var]
        return bool(left)

    def _more(self, instance: Instance) -> Run | None:
        """What comes after a run: where partitions alternate, runs are short, and a turn costs more than one."""
        if len(self.inboxes) == 1 or self._rest or not self.subtopology.gate.is_set():
            return None
        self._goes_on += 1
        if self._goes_on % CLOCK_RUNS == 0 and (
            self.clock.monotonic() - instance.run_began > RUN_TARGET_S / 2
        ):
            return None
        return self._next_run()

    async def _feed(self, run: Run) -> None:
        instance = self.instances[0]
        count = self._run_records
        instance.deliver(run)
        await instance.idle.wait()
        rest = instance.take_rest()
        if rest is not None:
            self._rest.appendleft(rest)
            return
        spent = instance.run_s
        if spent < RUN_TARGET_S / 2:
            self._run_records = min(RUN_RECORDS_MAX, count * 2)
        elif spent > RUN_TARGET_S:
            self._run_records = max(RUN_RECORDS_MIN, count // 2)

    # many at once ---------------------------------------------------------------------------------

    async def _pump_many(self) -> NoReturn:
        bound = PENDING_PER_INSTANCE * len(self.instances)
        while True:
            await self.shard.turns.mine()
            self._arrived.clear()
            self._turn_began = self.clock.monotonic()
            is_open = self.subtopology.gate.is_set()
            if is_open:
                while len(self._queue) < bound and self.ahead < AHEAD_EVENTS_MAX:
                    run = self._next_run()
                    if run is None:
                        break
                    self._queue.add(run)
                    self.subtopology.took_run()
            while self._idle:
                # what was taken in may close the gate, and has to begin all the same: without it, there may be
                # nothing to commit that would open it again
                waiting = self._take(is_open=is_open)
                if waiting is None:
                    break
                instance = self._idle.popleft()
                self._chained[instance] = 0
                instance.deliver(self._begun_by(instance, waiting))
            await self._arrival()

    def stir(self) -> None:
        """The gate has opened."""
        self._arrived.set()

    def _take(self, *, is_open: bool) -> Waiting | None:
        if is_open:
            return self._queue.take()
        # an event that waited for its key keeps those behind it, finished or not, out of the epoch
        return self._queue.take_gap() if self.journaled else None

    def _begun_by(self, instance: Instance, waiting: Waiting) -> Run:
        self._dispatched[instance] = waiting
        run, record, _ = waiting
        return Run(run.tp, run.source, iter((record,)), start=record.offset)

    def _more_of_many(self, instance: Instance) -> Run | None:
        """What an instance goes on with, without a turn of the event loop, once its event is through."""
        done = self._dispatched.pop(instance)
        self._queue.finished(done.key)
        self._chained[instance] += 1
        if self._chained[instance] > CHAIN_EVENTS and (
            self.clock.monotonic() - self._turn_began > RUN_TARGET_S
        ):
            return None
        waiting = self._take(is_open=self.subtopology.gate.is_set())
        return None if waiting is None else self._begun_by(instance, waiting)

    def _instance_idle(self, instance: Instance) -> None:
        waiting = self._dispatched.pop(instance, None)
        if waiting is not None:
            if instance.take_rest() is None:
                self._queue.finished(waiting.key)
            else:
                self._queue.put_back(waiting)
        self._idle.append(instance)
        self._arrived.set()

    def _order_key(self, run: Run, record: IncomingRecord) -> Any:
        ordered_by = self.agent.ordered_by
        if ordered_by is None or record.value is None:
            return record.key
        try:
            return ordered_by(run.source.decode(record.value))
        except Exception:
            return record.key  # the instance meets the same error, and the policy decides
