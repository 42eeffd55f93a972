"""A running shard: its tables, its agents, and what they have done since the last commit."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from millstream.context import Scope, current
from millstream.errors import LogUnavailableError, WrongShardError
from millstream.records import TopicPartition
from millstream.tables import TimedPart
from millstream.worker._closing import WINDOWS_DUE, FinalWindows
from millstream.worker._due import DueFailures
from millstream.worker._failures import Failures
from millstream.worker._idle import follow_silence
from millstream.worker._input_positions import InputPositions
from millstream.worker._lane import Lane
from millstream.worker._metadata import decode_metadata
from millstream.worker._notes import NOTES, NotesPart
from millstream.worker._passage import Passage
from millstream.worker._placement import Placement
from millstream.worker._recovery import Replay, check_stored, recover, replay_of
from millstream.worker._subtopology import Positions, Share, SubTopology

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Collection,
        Coroutine,
        Hashable,
        Mapping,
        Sequence,
    )

    from millstream.errors import EncodeError, RecordTooLargeError
    from millstream.state.base import ShardStore
    from millstream.tables import TablePart, WindowedPart
    from millstream.transports.base import OffsetAndMetadata
    from millstream.worker._calls import CallFailure
    from millstream.worker._specs import AgentSpec, ShardOptions, TableSpec

__all__ = ["Shard", "ShardCut"]

logger = logging.getLogger("millstream.worker")

RECOVER_AGAIN_S = 1.0
"""Between two attempts at a log that does not answer."""


@dataclass(slots=True)
class ShardCut:
    """A shard's part of an epoch."""

    shard: Shard
    offsets: dict[TopicPartition, tuple[int, str]]
    shares: list[Share]
    unused: list[TablePart]
    """Parts that belong to no sub-topology and have changes of their own: notes, and tables that nobody has used."""
    changes: dict[str, list[dict[bytes, bytes | None]]] = field(default_factory=dict)
    """By table: slices of state key to value bytes."""

    def drop_outputs(self) -> None:
        """They are in the log, although the epoch was refused."""
        for share in self.shares:
            share.outputs.clear()

    @property
    def parts(self) -> list[TablePart]:
        """The parts of tables that are in it."""
        return [*chain.from_iterable(share.parts for share in self.shares), *self.unused]


class _Rewind(Exception):
    """Carries the wish to start over from the last commit up through the shard's tasks."""


class Shard:
    """Shard ``number`` of ``count``: runs as long as `run` runs."""

    def __init__(
        self,
        count: int,
        number: int,
        *,
        store: ShardStore,
        tables: Sequence[TableSpec],
        agents: Sequence[AgentSpec],
        options: ShardOptions,
        table_counts: Mapping[str, int],
    ) -> None:
        self.count, self.number = count, number
        self.name = f"{count}-{number}"
        self.store = store
        self.table_counts = table_counts
        self.clock = options.clock
        self.turns = options.turns
        self._tables = {table.name: table for table in tables}
        self._agents = {spec.agent.name: spec for spec in agents}
        self._placed_by: dict[str, Callable[[bytes, int], int]] = {}
        """How the writers of an input choose partitions."""
        self._looked_at: dict[str, Callable[[bytes, int], int] | None] = {}
        """The same, of inputs whose records are looked at: see `Placement`."""
        self._keeps_by_key = count > 1 and not self._tables.keys() <= {NOTES}
        self._options = options
        self.own_parts: dict[str, TablePart] = {}
        self.parts: dict[str, Any] = {}
        self._used_parts: dict[str, _UsedParts] = {}
        """By agent, timer or callback."""
        self.lanes: dict[str, Lane] = {}
        self.subtopologies: list[SubTopology] = []
        self._closed_by: set[str] = set()
        """Why nobody in the shard may take in anything more."""
        self.failures = Failures(self, tables=tables, topic_ids=options.topic_ids)
        self.suspending: set[str] = set()
        """Agents and callbacks that keep journals for good, as their events are found in the middle, or undone."""
        self.bindings: dict[Any, Any] = {}
        """What streams keep for events that come from no record, until the shard starts over."""
        self._of: dict[str, SubTopology] = {}
        """By agent, timer or callback."""
        self._owners: dict[str, SubTopology] = {}
        """By table, as soon as somebody uses it."""
        self.store_lock = asyncio.Lock()
        """Held while the store takes an epoch, so that queries see all of it or nothing."""
        self.ready = asyncio.Event()
        self.wake: Callable[[], None] = lambda: None
        """Called when a lane has room to fetch again."""
        self.counters: Counter[str] = Counter()
        self.due = DueFailures(tables, self.counters)
        self.input_positions = InputPositions()
        self._ends: dict[TopicPartition, int] = {}
        """Where its inputs ended when it was recovered."""
        self.call_failures: dict[Hashable, CallFailure] = {}
        """Timers' moments and windows' ends that have failed, and come again."""
        self.began = options.clock.now()
        """Since when the shard is here, in ms."""
        self._time_moved = asyncio.Event()
        self._final_windows = FinalWindows(self, owner_of=self._owners.__getitem__)
        self._rewind: asyncio.Future[None] | None = None
        self.commit: Callable[[], Awaitable[object]] = _nothing
        """Commits what is finished, in all shards of the worker."""
        self.before_recovery: Callable[[], Awaitable[None]] = _nothing
        self.local_tasks: list[Callable[[Shard], Coroutine[Any, Any, None]]] = []
        """Timers of scope ``shard``: run beside the lanes."""

    def __repr__(self) -> str:
        return f"<Shard {self.number} of {self.count}>"

    # life -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Recover, then process until cancelled; from the start again after a rewind.

        Raises:
            AgentError: a record stops the worker.
        """
        while True:
            # first, because a commit on its way may still give back what it took
            await self.before_recovery()
            self._reset()
            try:
                async with asyncio.TaskGroup() as tasks:
                    await self._recover_when_possible()
                    self._rewind = asyncio.get_running_loop().create_future()
                    self._start_lanes(tasks)
                    options = self._options
                    for name in self._final_windows.tables:
                        tasks.create_task(self._final_windows.close(name), name=f"close {name}")
                    if options.idles:
                        passage = Passage(
                            options.stages, group=options.group, transport=options.transport
                        )
                        tasks.create_task(follow_silence(self, options.transport, passage))
                    for local in self.local_tasks:
                        tasks.create_task(local(self))
                    self.ready.set()
                    self.wake()
                    await self._rewind
                    raise _Rewind
            except* _Rewind:
                logger.info("shard %s of %s starts over from its last commit", *self._id)
            finally:
                self.ready.clear()
                self._close_scopes()
                self.lanes = {}
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                # a task group that ends with an error swallows a cancellation that comes meanwhile
                raise asyncio.CancelledError
            self.wake()

    @property
    def committed(self) -> dict[TopicPartition, int]:
        """Committed offsets of the inputs: the position that the store reflects."""
        return self.input_positions.committed

    @property
    def _id(self) -> tuple[int, int]:
        return self.number, self.count

    def _close_scopes(self) -> None:
        """Nobody may write for an event that was dropped; only once no cut can take it for finished."""
        scopes = [i.scope for lane in self.lanes.values() for i in lane.instances]
        for each in self.subtopologies:
            scopes += [*each.events, *each.callbacks]
        for scope in scopes:
            scope.open = False

    def _reset(self) -> None:
        self.subtopologies = []
        self._closed_by.clear()
        self._of.clear()
        self._owners.clear()
        self._used_parts.clear()
        self._final_windows.forget()
        self.own_parts = {}
        self.parts = {}
        self.bindings.clear()

    def rewind(self) -> None:
        """Drop everything that is not committed and start over."""
        self.ready.clear()  # at once: no cut may take any of it while the shard's tasks come to their end
        if self._rewind is not None and not self._rewind.done():
            self._rewind.set_result(None)

    def inputs(self) -> list[TopicPartition]:
        """The partitions that this shard reads, sorted."""
        topics = {topic for spec in self._agents.values() for topic in spec.sources}
        return [TopicPartition(topic, self.number) for topic in sorted(topics)]

    async def _recover_when_possible(self) -> None:
        """Recover; a log that does not answer, or whose positions are held by another's epoch, is waited for."""
        while True:
            try:
                return await self._recover()
            except LogUnavailableError as exc:
                logger.warning("shard %s of %s waits for the log: %s", *self._id, exc)
                await self.clock.sleep(RECOVER_AGAIN_S)

    async def _recover(self) -> None:
        options = self._options
        inputs = self.inputs()
        found: Mapping[TopicPartition, OffsetAndMetadata] = {}
        if inputs:
            found = await options.transport.committed(options.group, inputs)
            starts = await options.transport.start_offsets(inputs)
        self.input_positions = InputPositions()
        for tp in inputs:
            self._place(tp, found.get(tp), starts[tp])
        replays = []
        for table in self._tables.values():
            replay = replay_of(table, self.number, options.topic_ids)
            if table.source is not None:
                tp = replay.tp
                end = self.input_positions.begun[table.reader, tp]
                passed = partial(self._passed, replay, starts[tp], end)
                replay = replace(replay, end=end, leave_out=passed)
            replays.append(replay)
        if replays:
            await recover(
                self.store,
                replays,
                first=NOTES,
                transport=options.transport,
                app=options.app,
                clock=options.clock,
                progress=options.progress,
                shard=self.name,
                turns=options.recoveries,
            )
        for table in self._tables.values():
            if table.name not in self.own_parts:
                self.own_parts[table.name] = self._make_part(table)
        self.parts = {**self._options.everywhere, **self.own_parts}
        for table in self._tables.values():
            if table.clocks:
                clocks = [cast("TimedPart", self.own_parts[name]) for name in table.clocks]
                cast("WindowedPart", self.own_parts[table.name]).clocks = clocks
        # Late, as recovery takes its time: a partition with records that nobody has heard of would count as read
        self._ends = await options.transport.readable_ends(inputs) if inputs else {}
        for part in self.own_parts.values():
            part.recovered()
            part.check_form()
            await check_stored(part, self._known_schema(part), options.progress)
            if self._options.idles and isinstance(part, TimedPart):
                part.fed_by(self._tables[part.name].users)
                for feeder in part.feeders & self._agents.keys():
                    self.connect(feeder, part.name)
            closing = self._tables[part.name].on_close
            if isinstance(part, TimedPart) and closing is not None:
                self.connect(f"on_close:{part.name}", part.name)
                if part.closing_due:  # what is left of that comes before their next record
                    for user in self._agents.keys() & self._tables[part.name].users:
                        self.connect(user, part.name)
                self._final_windows.follow(part, closing)

    def _place(self, tp: TopicPartition, found: OffsetAndMetadata | None, start: int) -> None:
        """Begin to read a partition where its agents were, or at its start."""
        metadata = decode_metadata("" if found is None else found.metadata)
        metadata.check_finished(self._options.group)
        at = start if found is None else max(found.offset, start)
        names = {
            agent: spec.position_name(tp.topic)
            for agent, spec in self._agents.items()
            if tp.topic in spec.sources
        }
        agents = {agent: max(metadata.position_of(name, at), at) for agent, name in names.items()}
        self.input_positions.begin(tp, at, agents, names)
        for agent, name in names.items():
            found_time, of = metadata.time_of(name), self.subtopology_of(agent)
            of.time_reached(found_time)
            of.cut_time = max(of.cut_time, found_time)

    async def take_new_inputs(self) -> None:
        """Read the partitions of topics that have become sources of agents since the shard was recovered."""
        lanes = self.lanes
        new = [tp for tp in self.inputs() if tp not in self.committed]
        if not new or not self.ready.is_set():
            return
        found = await self._options.transport.committed(self._options.group, new)
        starts = await self._options.transport.start_offsets(new)
        ends = await self._options.transport.readable_ends(new)
        if self.lanes is not lanes or not self.ready.is_set():
            return  # it starts over, with all of them
        self._know_sources()
        for tp in new:
            self._place(tp, found.get(tp), starts[tp])
            for name, lane in lanes.items():
                if tp.topic in self._agents[name].sources:
                    lane.add_input(tp, self.input_positions.begun[name, tp], ends[tp])

    def _make_part(self, table: TableSpec) -> TablePart:
        return table.make(self.store.table(table.name), self._check(table))

    def _passed(self, replay: Replay, start: int, end: int) -> Collection[int]:
        """Records of a table's source that are no part of it; asked when the notes are whole."""
        if NOTES not in self.own_parts:
            self.own_parts[NOTES] = self._make_part(self._tables[NOTES])
        assert self.notes is not None
        return self.notes.passed(replay.table, topic_id=replay.topic_id, start=start, end=end)

    def _known_schema(self, part: TablePart) -> str | None:
        """With which type a table's stored values can be read; one that is read from a topic has a note of it."""
        if self._tables[part.name].source is None:
            return part.known_schema()
        notes, note = self.notes, f"schema:{part.name}"
        assert notes is not None
        part.keep_schema = partial(notes.put, note)
        known = notes.read(note)
        return known if isinstance(known, str) else None

    def _know_sources(self) -> None:
        self._placed_by = {
            topic: source.partitioner
            for spec in self._agents.values()
            for topic, source in spec.sources.items()
            if source.partitioner is not None
        }
        self._looked_at = {
            topic: source.partitioner
            for spec in self._agents.values()
            for topic, source in spec.sources.items()
            if self._keeps_by_key and Placement.looks_at(source)
        }

    def _start_lanes(self, tasks: asyncio.TaskGroup) -> None:
        self._know_sources()
        for name, spec in self._agents.items():
            lane = Lane(
                spec,
                shard=self,
                positions=self.input_positions.of_agent(name),
                ends=self._ends,
                inbox_bytes_max=self._options.inbox_bytes_max,
                placement=Placement(self.count) if self._keeps_by_key else None,
            )
            self.lanes[name] = lane
            for instance in lane.instances:
                tasks.create_task(instance.serve(), name=f"{name}/{self.name}")
            tasks.create_task(lane.pump(), name=f"pump {name}/{self.name}")

    def own_partition(
        self, scope: Scope, key: bytes, place: Callable[[bytes, int], int]
    ) -> int | None:
        """The partition, one of `count`, of the key that the event's record has; None where it has to be computed.

        The record lies in it, and records are looked at: a comparison costs less than a hash.
        """
        record, tp = scope.record, scope.tp
        if record is None or tp is None or not key or record.key != key:
            return None
        return tp.partition if self._looked_at.get(tp.topic) is place else None

    def _check(self, table: TableSpec) -> Callable[[Any], None]:
        if not table.checked:
            return _accept

        def check(key: Any) -> None:
            try:
                data = table.place(key)
            except (TypeError, ValueError) as exc:
                raise TypeError(
                    f"table {table.name!r}: {key!r} cannot be a key of it: {exc}"
                ) from exc
            scope = current.get(None)
            if scope is not None and scope.record is not None and scope.record.key == data:
                assert scope.tp is not None
                placed_by = self._placed_by.get(scope.tp.topic)
                if placed_by is None or placed_by is table.partitioner:
                    return
            owner = table.partitioner(data, self.count)
            if owner != self.number:
                raise WrongShardError(
                    table=table.name, key=key, shard=self.number, owner=owner, count=self.count
                )

        return check

    def changelog(self, table: str) -> str | None:
        """The topic that a table's changes go to; None where it is read from one."""
        return self._tables[table].changelog

    def source(self, table: str) -> str | None:
        """The topic that a table is read from, or None."""
        return self._tables[table].source

    def index_key(self, table: str) -> Callable[[bytes], bytes | None] | None:
        """What derives a table's local index entries from its keys, or None."""
        return self._tables[table].index_key

    # sub-topologies -------------------------------------------------------------------------------

    def subtopology_of(self, name: str) -> SubTopology:
        """That of an agent, a timer or a callback."""
        found = self._of.get(name)
        if found is None:
            found = SubTopology(self, epoch_bytes_max=self._options.epoch_bytes_max)
            found.members.add(name)
            for reason in self._closed_by:
                found.close_gate(reason)
            self._of[name] = found
            self.subtopologies.append(found)
        return found

    def connect(self, name: str, table: str) -> None:
        """An agent, timer or callback uses one of the shard's own tables, perhaps for the first time."""
        mine, other = self.subtopology_of(name), self._owners.get(table)
        if other is None:
            mine.parts[table] = self.own_parts[table]
            self._owners[table] = mine
        elif other is not mine:
            other.absorb(mine)
            self.subtopologies.remove(mine)
            for member in mine.members:
                self._of[member] = other
            for part in mine.parts:
                self._owners[part] = other

    @property
    def journaled(self) -> bool:
        """Whether some of its events keep journals."""
        return any(each.journaled for each in self.subtopologies)

    @property
    def stream_time(self) -> int:
        """The highest of its sub-topologies'."""
        return max((each.stream_time for each in self.subtopologies), default=-1)

    def stream_time_of(self, table: str) -> int:
        """That of those who use a table; the shard's where nobody has used it yet."""
        found = self._owners.get(table)
        return self.stream_time if found is None else found.stream_time

    def has_user(self, table: str) -> bool:
        """Whether anybody uses one of the shard's own tables, as far as is known: an agent, a timer, a callback."""
        return table in self._owners

    def close_gate(self, reason: str) -> None:
        """Take in nothing more, for this reason."""
        self._closed_by.add(reason)
        for each in self.subtopologies:
            each.close_gate(reason)

    def open_gate(self, reason: str) -> None:
        """The reason holds no longer."""
        self._closed_by.discard(reason)
        for each in self.subtopologies:
            each.open_gate(reason)

    async def until_open(self, name: str) -> None:
        """Wait until an agent, a timer or a callback may begin an event."""
        while not self.subtopology_of(name).gate.is_set():
            await self.subtopology_of(name).gate.wait()

    def is_full(self, of: SubTopology) -> bool:
        """Whether what waits for the next commit is above its bound, and this sub-topology has more than its share."""
        limit = self._options.epoch_bytes_max
        if of.epoch_bytes <= limit // max(1, sum(bool(e.lanes) for e in self.subtopologies)):
            return False
        return sum(each.epoch_bytes for each in self.subtopologies) > limit

    # events that come from no record --------------------------------------------------------------

    def scope(self, agent: str, *, journaled: bool) -> Scope:
        """A scope whose tables are this shard's."""
        return Scope(
            shard=self,
            agent=agent,
            parts=self.parts_of(agent),
            subtopology=self.subtopology_of(agent),
            journaled=journaled,
        )

    def parts_of(self, user: str) -> Mapping[str, Any]:
        """The tables as an agent, a timer or a callback uses them."""
        found = self._used_parts.get(user)
        if found is None:
            found = self._used_parts[user] = _UsedParts(self, user, noted=user in self._agents)
        return found

    @property
    def has_callbacks(self) -> bool:
        """Whether there are events that come from no record."""
        return bool(self.local_tasks or self._final_windows.tables)

    @property
    def is_closing(self) -> bool:
        """Whether final windows are being closed."""
        return any(each.is_closed_by(WINDOWS_DUE) for each in self.subtopologies)

    def begin_callback(self, name: str, timestamp: int) -> Scope:
        """Open an event that comes from no record: a timer's, or a window's end."""
        found = self.subtopology_of(name)
        scope = self.scope(name, journaled=found.journaled)
        scope.timestamp = timestamp
        scope.open = True
        if found.journaled:
            found.events[scope] = None
        else:
            found.callbacks.add(scope)
        return scope

    def end_callback(self, scope: Scope) -> None:
        """The event is finished; see `millstream.worker._calls.CallHost`."""
        self.failures.check(scope)
        scope.open = False
        scope.subtopology.callbacks.discard(scope)
        scope.subtopology.took_run()

    def undo_callback(self, scope: Scope) -> bool:
        """Make it as if the event had not begun; see `millstream.worker._calls.CallHost`."""
        if not scope.subtopology.undo(scope):
            self.suspending.add(scope.agent)
            return False
        scope.open = False
        scope.subtopology.events.pop(scope, None)
        return True

    async def seek(self, error: EncodeError | RecordTooLargeError, scope: Scope) -> None:
        """See `millstream.worker._calls.CallHost`."""
        await self.failures.seek(error, scope)

    async def commit_before_stop(self) -> None:
        """See `millstream.worker._calls.CallHost`."""
        await self.failures.commit_before_stop()

    @property
    def notes(self) -> NotesPart | None:
        """What the shard remembers besides its tables; None where nothing is to be remembered."""
        found = self.own_parts.get(NOTES)
        return found if isinstance(found, NotesPart) else None

    def note(self, name: str, value: int | str, scope: Scope) -> None:
        """Remember something, as part of an event; it connects the event with nobody."""
        scope.wrote = True
        scope.subtopology.notes.append((name, value, scope))

    def put_note(self, name: str, value: int | str) -> None:
        """Remember something with the epoch that is cut now."""
        assert self.notes is not None
        self.notes.put(name, value)

    # event time -----------------------------------------------------------------------------------

    def advance_stream_time(self, by: int) -> None:
        """Move event time forward by hand, in ms, everywhere in the shard."""
        for each in self.subtopologies:
            each.stream_time = max(each.stream_time, 0) + by
            each.time_advanced = True
        for part in self.own_parts.values():
            part.advance(by)
        self.time_moves()
        self.wake()

    def advance_idle(self, of: SubTopology | TimedPart, by: int) -> None:
        """Move the event time of a window table, or of a sub-topology, over a silence of its inputs, in ms."""
        if isinstance(of, TimedPart):
            of.advance(by)
            self._owners[of.name].time_advanced = True
        else:
            of.stream_time += by
            of.time_advanced = True
            for part in of.parts.values():
                if not isinstance(part, TimedPart):
                    part.advance(by)
        self.time_moves()
        self.wake()

    def time_moves(self) -> None:
        """Stream time may have moved."""
        self._time_moved.set()

    async def time_moved(self) -> None:
        """Wait until stream time may have moved."""
        self._time_moved.clear()
        await self._time_moved.wait()

    def in_progress(self) -> bool:
        """Whether some event is in the middle, waiting for something."""
        return any(each.in_progress() for each in self.subtopologies)

    def has_written(self, scope: Scope) -> bool:
        """Whether the event has written or sent. Who asks keeps journals."""
        self.suspending.add(scope.agent)
        return any(output[-1] is scope for output in scope.subtopology.output) or any(
            part.has_changed(key, before) for (part, key), before in (scope.journal or {}).items()
        )

    def cannot_commit(self, error: EncodeError | RecordTooLargeError) -> None:
        """Something that an event has written cannot be committed; see `Failures.cannot_commit`."""
        self.failures.cannot_commit(error)

    # the commit -----------------------------------------------------------------------------------

    def positions(self) -> Positions:
        """Up to where its agents have finished."""
        found: Positions = {}
        for each in self.subtopologies:
            found.update(each.positions())
        return found

    def has_work(self) -> bool:
        """Whether there may be something to commit."""
        return self.ready.is_set() and (
            any(map(self._has_work, self.subtopologies)) or bool(self._unused_work())
        )

    def _has_work(self, of: SubTopology) -> bool:
        return of.has_work() or self.input_positions.is_behind(of.positions())

    def _unused_work(self) -> list[TablePart]:
        return [
            part
            for name, part in self.own_parts.items()
            if name not in self._owners and part.is_dirty()
        ]

    def cut(self) -> ShardCut | None:
        """Take the finished prefix out; None when nothing can be taken now."""
        if not self.ready.is_set():
            return None
        shares, reached = [], self.input_positions.cut
        for each in self.subtopologies:
            share = each.cut(reached) if self._has_work(each) else None
            if share is not None:
                shares.append(share)
                reached.update(share.limits)
        unused = self._unused_work()
        if not shares and not unused:
            return None
        for part in unused:
            part.cut({})
        offsets = self.input_positions.offsets(lambda name: self._of[name].cut_time)
        return ShardCut(self, offsets or self._fence(), shares, unused)

    def _fence(self) -> dict[TopicPartition, tuple[int, str]]:
        """For a shard that reads nothing, something to commit: a zombie is refused by its offsets alone."""
        topics = sorted(t.changelog for t in self._tables.values() if t.changelog is not None)
        return {TopicPartition(topic, self.number): (0, "") for topic in topics[:1]}

    def settle(self, cut: ShardCut) -> None:
        """The store holds the cut."""
        for part in cut.parts:
            part.settle()
        self.input_positions.settle(cut.offsets, [share.limits for share in cut.shares])
        self.failures.settled(self.committed, self.input_positions.settled)
        self.due.settled(self.committed)

    def give_back(self, cut: ShardCut) -> None:
        """The epoch was refused, and the shard stays here: what was cut goes with the next one."""
        self.input_positions.give_back()
        for share in cut.shares:
            share.subtopology.current().give_back(share)
        for part in cut.unused:
            owner = self._owners.get(part.name)
            part.restore(() if owner is None else owner.events)
        if self.notes is not None:  # they wait with their events again
            self.notes.withdraw(name for share in cut.shares for name, _, _ in share.notes)

    # queries --------------------------------------------------------------------------------------

    def position_text(self) -> dict[str, int]:
        """Committed offsets of the inputs, as queries report them."""
        return {str(tp): offset for tp, offset in sorted(self.committed.items())}


def _accept(_: Any) -> None:
    return None


class _UsedParts(dict[str, Any]):
    """The shard's parts as one agent or callback uses them: when that begins, the shard is told."""

    def __init__(self, shard: Shard, user: str, *, noted: bool) -> None:
        """
        Args:
            noted: whether each part is told as well.
        """
        super().__init__()
        self._shard = shard
        self._user = user
        self._noted = noted

    def __missing__(self, name: str) -> Any:
        shard = self._shard
        part = shard.parts[name]
        if name in shard.own_parts:
            shard.connect(self._user, name)
            if self._noted:
                part.used_by(self._user)
        self[name] = part
        return part


async def _nothing() -> None:
    return None
