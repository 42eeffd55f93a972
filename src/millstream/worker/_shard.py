"""A running shard: its tables, its agents, and what they have done since the last commit."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, cast

from millstream.agents import Failure, Instance, Policy, Source, user_line
from millstream.context import Output, PreImage, Scope, current
from millstream.errors import (
    AgentError,
    EncodeError,
    InternalError,
    LogUnavailableError,
    MillstreamError,
    RecordTooLargeError,
    WrongShardError,
)
from millstream.records import Position, TopicPartition
from millstream.tables import TimedPart
from millstream.worker._closing import Closing, close_due
from millstream.worker._cut import before_excluded, choose_excluded
from millstream.worker._idle import follow_silence
from millstream.worker._lane import Lane
from millstream.worker._metadata import decode_metadata, encode_metadata
from millstream.worker._notes import NOTES, NotesPart, passed_note
from millstream.worker._recovery import (
    FETCHES_MAX,
    RecoveryProgress,
    Replay,
    check_stored,
    recover,
    replay_of,
)
from millstream.worker._search import BlameSearch, table_value_error
from millstream.worker._turns import Turns

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

    from millstream.agents import Agent
    from millstream.clock import Clock
    from millstream.context import IncomingRecord
    from millstream.state.base import ShardStore, TableStore
    from millstream.tables import TablePart, WindowedPart
    from millstream.transports.base import OffsetAndMetadata, Transport
    from millstream.worker._calls import CallFailure

__all__ = ["AgentSpec", "Shard", "ShardCut", "ShardOptions", "TableSpec"]

logger = logging.getLogger("millstream.worker")

STOP_WAIT_S = 1.0
"""How long a record that stops the worker waits for those before it."""
EVENT_OUTPUT_EPOCHS = 4
"""How many times ``epoch_bytes_max`` the output of one event may be."""
QUIET_EVENTS = 2_000
"""After so many events of which none was found in the middle, a shard stops keeping journals."""
RECOVER_AGAIN_S = 1.0
"""Between two attempts at a log that does not answer."""
TIED_S = 0.25
"""When finished events were kept out of the epochs for so long, by ties to others, intake stops until they go."""


class MakePart(Protocol):
    def __call__(self, store: TableStore, check: Callable[[Any], None]) -> TablePart: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSpec:
    """A table, as a shard needs it. Exactly one of ``changelog`` and ``source`` is its truth."""

    name: str
    partitions: int
    changelog: str | None
    source: str | None = None
    reader: str = ""
    """The agent that reads the table from ``source``."""
    make: MakePart
    place: Callable[[Any], bytes]
    """A key of the table to its bytes in the source topic's key codec."""
    partitioner: Callable[[bytes, int], int]
    on_close: Closing | None = None
    """What to do for each final window."""
    state_key: Callable[[bytes], bytes] | None = None
    index_key: Callable[[bytes], bytes | None] | None = None
    checked: bool = True
    """Whether a key has to belong to the shard that uses it."""
    clocks: Sequence[str] = ()
    """Tables whose time decides what expires in this one, the slowest one's; its own where there are none."""
    stored_value: Callable[[IncomingRecord], bytes | None] | None = None
    """A record of ``source`` to the bytes that the store has, where these are not the record's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """An agent, as a shard needs it."""

    agent: Agent[Any, Any]
    sources: dict[str, Source]
    """By topic; it grows where a pattern finds further topics."""
    policy: Policy
    """For records of topics that have none of their own."""
    emit: Callable[[Scope, Any], Awaitable[None]]
    dead_letter: Callable[[Scope, Failure], None]
    """Send the record of a failure to the agent's dead-letter topic."""
    refuse: Callable[[Scope, Failure], None] | None = None
    """Tell whoever has asked that there will be no answer."""
    policies: dict[str, Policy] = field(default_factory=dict)
    """By topic; grows likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """What all shards of a worker share."""

    app: str
    group: str
    clock: Clock
    transport: Transport
    topic_ids: Mapping[str, str]
    everywhere: Mapping[str, TablePart]
    """Parts of the global tables."""
    idles: bool = False
    """Whether some topic or table has an ``idle_timeout``."""
    inbox_bytes_max: int = 8 << 20
    epoch_bytes_max: int = 32 << 20
    """Input and output of one shard between two cuts, above which intake stops."""
    turns: Turns = field(default_factory=Turns)
    progress: RecoveryProgress = field(default_factory=RecoveryProgress)
    recoveries: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(FETCHES_MAX))
    """Bounds how many shards read their changelogs at the same time."""


@dataclass(slots=True)
class ShardCut:
    """A shard's share of an epoch."""

    shard: Shard
    offsets: dict[TopicPartition, tuple[int, str]]
    outputs: list[Output]
    parts: list[TablePart]
    changes: dict[str, list[dict[bytes, bytes | None]]] = field(default_factory=dict)
    """By table: slices of state key to value bytes."""


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
        self._options = options
        self.own_parts: dict[str, TablePart] = {}
        self.parts: dict[str, Any] = {}
        self._used_parts: dict[str, _UsedParts] = {}
        self.lanes: dict[str, Lane] = {}
        self.bindings: dict[Any, Any] = {}
        """What streams keep for events that come from no record, until the shard starts over."""
        self.output: list[Output] = []
        self.epoch_bytes = 0
        """Input taken since the last cut."""
        self.stream_time = -1
        self.time_advanced = False
        """Whether event time has moved without a record, and is to be committed."""
        self.journaled = True
        self._suspends = False
        self._quiet_events = 0
        self._finished_events = 0
        self._events: dict[Scope, None] = {}
        """Events with a journal that are open, or that have written and are not committed, in order."""
        self._failures: dict[tuple[str, TopicPartition, int], tuple[int, BaseException]] = {}
        self._condemned: dict[tuple[str, TopicPartition, int], BaseException] = {}
        """Records that have failed for good, and whose work others had seen: they do not run once more."""
        self._search: BlameSearch | None = None
        """While the event is looked for whose value could not be committed."""
        self.gate = asyncio.Event()
        self._closed_by: set[str] = set()
        self.committed: dict[TopicPartition, int] = {}
        """Committed offsets: the position that the store reflects."""
        self.store_lock = asyncio.Lock()
        """Held while the store takes an epoch, so that queries see all of it or nothing."""
        self.ready = asyncio.Event()
        self.wake: Callable[[], None] = lambda: None
        """Called when a lane has room to fetch again."""
        self.counters: Counter[str] = Counter()
        self._last_offsets: dict[TopicPartition, int] = {}
        self._cut_positions: dict[tuple[str, TopicPartition], int] = {}
        self._tied: dict[tuple[str, TopicPartition], tuple[int, float]] = {}
        """Where ties hold back finished events: from which offset, and since when."""
        self.epoch_bytes_watch = options.epoch_bytes_max
        """Above it, an event that sends calls `filling`."""
        self._full_at = 0
        self.ahead: Counter[str] = Counter()
        """Journaled events that are not committed, by agent."""
        self._callbacks: set[Scope] = set()
        self.call_failures: dict[Hashable, CallFailure] = {}
        """Timers' moments and windows' ends that have failed, and come again."""
        self.began = options.clock.now()
        """Since when the shard is here, in ms."""
        self._time_moved = asyncio.Event()
        self._due = asyncio.Event()
        self._room = asyncio.Event()
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
                    if any(table.on_close is not None for table in self._tables.values()):
                        tasks.create_task(self._close_windows())
                    if self._options.idles:
                        tasks.create_task(follow_silence(self, self._options.transport))
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
    def _id(self) -> tuple[int, int]:
        return self.number, self.count

    def _close_scopes(self) -> None:
        """Nobody may write for an event that was dropped; only once no cut can take it for finished."""
        instances = [instance for lane in self.lanes.values() for instance in lane.instances]
        for scope in (*self._events, *self._callbacks, *(each.scope for each in instances)):
            scope.open = False

    def _reset(self) -> None:
        self.output.clear()
        self.epoch_bytes_watch = self._options.epoch_bytes_max
        self._cut_positions.clear()
        self._tied = {}
        self._events.clear()
        self._callbacks.clear()
        self.ahead.clear()
        self._due.clear()
        self.epoch_bytes = 0
        self.journaled = True
        self._quiet_events = 0
        self._closed_by.clear()
        self.gate.set()
        self.own_parts = {}
        self.parts = {}
        self.bindings.clear()
        self._used_parts = {}
        self.time_advanced = False

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
        self._positions: dict[tuple[str, TopicPartition], int] = {}
        self.committed = {}
        for tp in inputs:
            self._place(tp, found.get(tp), starts[tp])
        replays = []
        for table in self._tables.values():
            replay = replay_of(table, self.number, options.topic_ids)
            if table.source is not None:
                tp = replay.tp
                end = self._positions[table.reader, tp]
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
        for part in self.own_parts.values():
            part.recovered()
            await check_stored(part, self._known_schema(part), options.progress)
            if isinstance(part, TimedPart) and self._tables[part.name].on_close is not None:
                part.on_due = self._windows_due
                if part.closing_due:
                    self._windows_due()

    def _place(self, tp: TopicPartition, found: OffsetAndMetadata | None, start: int) -> None:
        """Begin to read a partition where its agents were, or at its start."""
        metadata = decode_metadata("" if found is None else found.metadata)
        metadata.check_finished(self._options.group)
        self.stream_time = max(self.stream_time, metadata.t)
        at = start if found is None else max(found.offset, start)
        self.committed[tp] = self._last_offsets[tp] = at
        for name, spec in self._agents.items():
            if tp.topic in spec.sources:
                self._positions[name, tp] = max(metadata.a.get(name, at), at)

    async def take_new_inputs(self) -> None:
        """Read the partitions of topics that have become sources of agents since the shard was recovered."""
        lanes = self.lanes
        new = [tp for tp in self.inputs() if tp not in self.committed]
        if not new or not self.ready.is_set():
            return
        found = await self._options.transport.committed(self._options.group, new)
        starts = await self._options.transport.start_offsets(new)
        if self.lanes is not lanes or not self.ready.is_set():
            return  # it starts over, with all of them
        for tp in new:
            self._place(tp, found.get(tp), starts[tp])
            for name, lane in lanes.items():
                if tp.topic in self._agents[name].sources:
                    lane.add_input(tp, self._positions[name, tp])

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

    def _start_lanes(self, tasks: asyncio.TaskGroup) -> None:
        for name, spec in self._agents.items():
            positions = {tp: at for (agent, tp), at in self._positions.items() if agent == name}
            instances = [
                Instance(spec.agent, host=self, sources=spec.sources, emit=spec.emit, number=number)
                for number in range(spec.agent.concurrency)
            ]
            lane = Lane(
                spec.agent,
                shard=self,
                sources=spec.sources,
                positions=positions,
                instances=instances,
                inbox_bytes_max=self._options.inbox_bytes_max,
            )
            lane.taken = self.took_run
            self.lanes[name] = lane
            for instance in instances:
                tasks.create_task(instance.serve(), name=f"{name}/{self.name}")
            tasks.create_task(lane.pump(), name=f"pump {name}/{self.name}")

    def _windows_due(self) -> None:
        """Windows became final: they are closed before the next record is taken."""
        self.close_gate("windows due")
        self._due.set()
        for lane in self.lanes.values():
            for instance in lane.instances:
                instance.interrupted = True

    async def _close_windows(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            for part in self.own_parts.values():
                closing = self._tables[part.name].on_close
                if isinstance(part, TimedPart) and closing is not None:
                    await close_due(self, part, closing, pause=self._until_room)
            if not self._due.is_set():  # a callback may have made another table due
                self.open_gate("windows due")
            self.took_run()

    async def _until_room(self) -> None:
        """Wait while the next epoch is full."""
        self.took_run()
        if "epoch full" in self._closed_by:
            self._room.clear()
            await self._room.wait()

    @property
    def is_closing(self) -> bool:
        """Whether final windows are being closed."""
        return "windows due" in self._closed_by

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

    # the gate: intake stops while any reason holds ------------------------------------------------

    def close_gate(self, reason: str) -> None:
        """Take in nothing more, for this reason."""
        self._closed_by.add(reason)
        self.gate.clear()

    def open_gate(self, reason: str) -> None:
        """The reason holds no longer."""
        self._closed_by.discard(reason)
        if reason == "epoch full":
            self._room.set()
        if not self._closed_by and not self.gate.is_set():
            self.gate.set()
            for lane in self.lanes.values():
                lane.stir()

    def took_run(self) -> None:
        """A run is through: bound what waits for the next commit."""
        if self.epoch_bytes > self._options.epoch_bytes_max:
            self._full()
        self._time_moved.set()
        self.wake()

    def _full(self) -> None:
        """The next epoch is above its bound: the events at hand are the last ones before a commit."""
        if "epoch full" in self._closed_by:
            return
        self.close_gate("epoch full")
        self._full_at = len(self.output)
        self.epoch_bytes_watch = self.epoch_bytes + self._options.epoch_bytes_max
        for lane in self.lanes.values():
            for instance in lane.instances:
                instance.interrupted = True

    def filling(self, scope: Scope) -> None:
        """An event sends although the next epoch is full: that is fine, up to several times the bound.

        Raises:
            RecordTooLargeError: this event alone has sent more than that.
        """
        self._full()
        self.epoch_bytes_watch = self.epoch_bytes + self._options.epoch_bytes_max
        limit = self._options.epoch_bytes_max * EVENT_OUTPUT_EPOCHS
        if scope.journal is None:
            mine = self.output[self._full_at :]
        else:
            mine = [output for output in self.output if output[-1] is scope]
        size = sum(len(key or b"") + len(value or b"") for _, _, key, value, _, _ in mine)
        if size > limit:
            raise RecordTooLargeError(
                "the output of this event", size=size, limit=limit, setting="epoch_bytes_max"
            )

    # for instances --------------------------------------------------------------------------------

    def scope(self, agent: str, *, journaled: bool) -> Scope:
        """A scope whose tables are this shard's."""
        parts: Mapping[str, Any] = self.parts
        if self._options.idles and agent in self._agents:
            if agent not in self._used_parts:
                self._used_parts[agent] = _UsedParts(self.parts, agent)
            parts = self._used_parts[agent]
        return Scope(
            shard=self,
            agent=agent,
            parts=parts,
            output=self.output,
            journaled=journaled,
        )

    def event_begun(self, scope: Scope) -> BaseException | None:
        self._events[scope] = None
        self.ahead[scope.agent] += 1
        if not self._condemned or scope.tp is None or scope.record is None:
            return None
        return self._condemned.get((scope.agent, scope.tp, scope.record.offset))

    def event_finished(self, scope: Scope) -> None:
        """A journaled event is finished; one that has written nothing is of no further interest.

        Raises:
            EncodeError, RecordTooLargeError: what it has written cannot be committed; it is not finished then.
        """
        if self._search is not None:
            self._search.check(scope)
        if not scope.wrote and not scope.has_times:
            self._events.pop(scope, None)
            self.ahead[scope.agent] -= 1
        self._finished_events += 1

    def time_reached(self, timestamp: int) -> None:
        if timestamp > self.stream_time:
            self.stream_time = timestamp
            self._time_moved.set()

    def begin_callback(self, name: str, timestamp: int) -> Scope:
        """Open an event that comes from no record: a timer's, or a window's end."""
        scope = self.scope(name, journaled=self.journaled)
        scope.timestamp = timestamp
        scope.open = True
        if self.journaled:
            self._events[scope] = None
        else:
            self._callbacks.add(scope)
        return scope

    def end_callback(self, scope: Scope) -> None:
        """The event is finished; see `millstream.worker._calls.CallHost`."""
        if self._search is not None:
            self._search.check(scope)
        scope.open = False
        self._callbacks.discard(scope)
        self.took_run()

    def undo_callback(self, scope: Scope) -> bool:
        """Make it as if the event had not begun; see `millstream.worker._calls.CallHost`."""
        if not self._undo(scope):
            self._suspends = True
            return False
        scope.open = False
        self._events.pop(scope, None)
        return True

    async def commit_before_stop(self) -> None:
        """Commit what is finished, once events in progress have ended, as far as they do in time."""
        self.close_gate("stopping")
        loop = asyncio.get_running_loop()  # real time: a clock that is moved by hand stands still
        deadline = loop.time() + STOP_WAIT_S
        while self.in_progress() and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # nobody says when the last one ends
        await self.commit()

    @property
    def notes(self) -> NotesPart | None:
        """What the shard remembers besides its tables; None where nothing is to be remembered."""
        found = self.own_parts.get(NOTES)
        return found if isinstance(found, NotesPart) else None

    def advance_stream_time(self, by: int) -> None:
        """Move event time forward by hand, in ms, everywhere in the shard."""
        self.stream_time = max(self.stream_time, 0) + by
        for part in self.own_parts.values():
            part.advance(by)
        self.time_advanced = True
        self.took_run()

    def advance_idle(self, table: str, by: int) -> None:
        """Move the event time of a window table, or of the shard, which is "", over a silence of its inputs, in ms."""
        if table:
            self.own_parts[table].advance(by)
        else:
            self.stream_time += by
            for part in self.own_parts.values():
                if not isinstance(part, TimedPart):
                    part.advance(by)
        self.time_advanced = True
        self.took_run()

    async def time_moved(self) -> None:
        """Wait until stream time may have moved."""
        self._time_moved.clear()
        await self._time_moved.wait()

    def in_progress(self) -> bool:
        """Whether some event is in the middle, waiting for something."""
        return bool(self._callbacks) or any(lane.in_progress() for lane in self.lanes.values())

    def has_written(self, scope: Scope) -> bool:
        """Whether the event has written or sent. Who asks makes the shard keep journals."""
        self._suspends = True
        return any(output[-1] is scope for output in self.output) or any(
            part.has_changed(key, before) for (part, key), before in (scope.journal or {}).items()
        )

    async def event_failed(self, instance: Instance, failure: Failure) -> bool:
        """Apply the policy; see `millstream.agents.InstanceHost`."""
        spec = self._agents[instance.agent.name]
        tp, offset = failure.run.tp, failure.record.offset
        refused = table_value_error(failure.error)
        if failure.ran and refused is not None:
            await self.seek(refused, failure.scope)
        attempts = self._failures.get((spec.agent.name, tp, offset), (0, None))[0] + 1
        policy = spec.policies.get(tp.topic, spec.policy)
        if not failure.ran and (spec.agent.name, tp, offset) in self._condemned:
            attempts = max(attempts, policy.retries + 1)
        if policy.action == "stop" and attempts > policy.retries:
            await self._stop(spec, failure)
        self._failures[spec.agent.name, tp, offset] = (attempts, failure.error)
        if failure.ran and not self._undo(failure.scope):
            self._suspends = True
            if attempts > policy.retries and failure.scope.journal is not None:
                # the same would happen again, and again the others would have to start over
                for run, record in (*failure.before, (failure.run, failure.record)):
                    self._condemned[spec.agent.name, run.tp, record.offset] = failure.error
            self.rewind()
            await asyncio.Event().wait()
        where = Position(*tp, offset)
        if attempts <= policy.retries:
            logger.warning(
                "agent %r: %s: %s; attempt %d of %d",
                spec.agent.name,
                where,
                failure.error,
                attempts,
                policy.retries + 1,
            )
            await self.clock.sleep(policy.delay_s(attempts))
            return True
        line = user_line(failure.error)
        logger.error(
            "agent %r: %s %s (key %r)%s: %s: %s",
            spec.agent.name,
            "sets aside" if policy.action == "dlq" else "skips",
            where,
            failure.record.key,
            f" at {line}" if line else "",
            type(failure.error).__name__,
            failure.error,
        )
        self.counters["events_" + ("dead_lettered" if policy.action == "dlq" else "skipped")] += 1
        if policy.action == "dlq":
            spec.dead_letter(failure.scope, failure)
        self._note_passed(spec, failure)
        if spec.refuse is not None:
            spec.refuse(failure.scope, failure)
        del self._failures[spec.agent.name, tp, offset]
        return False

    def _note_passed(self, spec: AgentSpec, failure: Failure) -> None:
        """What a table's reader lets pass is no part of the table: recovery, which decodes nothing, is told."""
        notes = self.notes
        for table in self._tables.values():
            if (
                notes is not None
                and table.source is not None
                and table.source == failure.run.tp.topic
                and table.reader == spec.agent.name
            ):
                note = passed_note(table.name, failure.record.offset)
                notes.write(note, self._options.topic_ids[table.source], failure.scope)

    def cannot_commit(self, error: EncodeError | RecordTooLargeError) -> None:
        """Something that an event has written cannot be committed: start over, and find the event.

        Raises:
            EncodeError, RecordTooLargeError: that has been done, and found nobody to blame.
        """
        if not self.ready.is_set():
            return  # an event has met the value before the commit did, and the shard starts over already
        if self._search is not None:
            raise error
        logger.warning("shard %s of %s looks for the event that did this: %s", *self._id, error)
        self._search = BlameSearch(
            {
                (name, tp): lane.position(tp)
                for name, lane in self.lanes.items()
                for tp in lane.inboxes
            },
            callbacks=bool(self.local_tasks)
            or any(table.on_close is not None for table in self._tables.values()),
            quiet_events=QUIET_EVENTS,
        )
        self.rewind()

    async def seek(self, error: EncodeError | RecordTooLargeError, scope: Scope) -> None:
        """An event met a table's value that cannot be encoded: return only if it is the event's own."""
        if self._search is None or not self.ready.is_set():
            self.cannot_commit(error)
            await asyncio.Event().wait()
        assert self._search is not None
        self._search.found()
        other = error.culprit
        if not isinstance(other, Scope) or other is scope:
            return
        if other.record is not None and other.tp is not None:
            self._condemned[other.agent, other.tp, other.record.offset] = error
            self.rewind()
            await asyncio.Event().wait()

    async def _stop(self, spec: AgentSpec, failure: Failure) -> NoReturn:
        """Commit what comes before the record, so that one can go past it, and stop the worker.

        Where the event cannot be undone, the shard starts over, and stops when the record's turn comes again,
        without giving it to the agent.
        """
        tp, offset = failure.run.tp, failure.record.offset
        stopped = self._stopped(spec, failure)
        if not self.journaled or (failure.ran and not self._undo(failure.scope)):
            self._suspends = True
            for run, record in (*failure.before, (failure.run, failure.record)):
                self._condemned[spec.agent.name, run.tp, record.offset] = failure.error
            self.rewind()
            await asyncio.Event().wait()
        loop = asyncio.get_running_loop()  # real time: a clock that is moved by hand stands still
        deadline = loop.time() + STOP_WAIT_S
        lane = self.lanes[spec.agent.name]
        while lane.position(tp) < offset and loop.time() < deadline:  # noqa: ASYNC110
            # with concurrency, events before it may be in progress, and nobody says when the last one ends
            await asyncio.sleep(0.005)
        await self.commit()
        raise stopped

    def _undo(self, scope: Scope) -> bool:
        """Make it as if the event had not run; False where only a rewind can."""
        if scope.journal is None:
            return False
        if any(scope in event.depends for event in self._events if event is not scope):
            return False
        for (part, key), before in scope.journal.items():
            part.undo(key, before)
            if part.last_toucher.get(key) is scope:
                self._forget_toucher(scope, part, key)
        for part in scope.times:
            part.undo_time(scope)
        scope.journal.clear()
        scope.depends.clear()
        scope.times.clear()
        scope.wrote = False
        self.output[:] = [output for output in self.output if output[-1] is not scope]
        if self.epoch_bytes > self._options.epoch_bytes_max:
            self.epoch_bytes = sum(
                len(key or b"") + len(value or b"") for _, _, key, value, _, _ in self.output
            )
        return True

    def _forget_toucher(self, scope: Scope, part: Any, key: Any) -> None:
        """Whoever touches the entry next sees the work of those who did before ``scope``."""
        before = [
            (event.journal[part, key].order, event)
            for event in self._events
            if event is not scope and event.journal and (part, key) in event.journal
        ]
        if before:
            part.last_toucher[key] = max(before, key=lambda found: found[0])[1]
        else:
            del part.last_toucher[key]

    def _stopped(self, spec: AgentSpec, failure: Failure) -> MillstreamError:
        key = failure.record.key
        shown = None if key is None else key.decode("utf-8", "backslashreplace")
        return AgentError(
            f"agent {spec.agent.name!r}",
            cause=failure.error,
            record=str(Position(*failure.run.tp, failure.record.offset)),
            key=shown,
            line=user_line(failure.error),
        )

    # the commit -----------------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Whether there may be something to commit."""
        if not self.ready.is_set():
            return False
        if (
            self.output
            or self.time_advanced
            or any(part.is_dirty() for part in self.own_parts.values())
        ):
            return True
        return any(
            lane.position(tp) > self._cut_positions.get((name, tp), self._positions[name, tp])
            for name, lane in self.lanes.items()  # not the committed offset: the slowest agent's
            for tp in lane.inboxes
        )

    def cut(self) -> ShardCut | None:
        """Take the finished prefix out; None when nothing can be taken now."""
        if not self.ready.is_set():
            return None
        if not self.journaled and self.in_progress():
            self._begin_journals()
            return None
        limits = {
            (name, tp): lane.position(tp)
            for name, lane in self.lanes.items()
            for tp in lane.inboxes
        }
        unfinished = limits.copy()
        excluded = choose_excluded(list(self._events), limits) if self._events else set()
        self._watch_ties(unfinished, limits)
        taken_events = [event for event in self._events if event not in excluded]
        if excluded and not taken_events and not self._moves(limits):
            return None
        # only now, as it rewrites the events' journals for the cut
        before: Mapping[Any, dict[Any, PreImage]] = before_excluded(excluded) if excluded else {}
        kept = [output for output in self.output if output[-1] in excluded] if excluded else []
        outputs = (
            [output for output in self.output if output[-1] not in excluded]
            if kept
            else self.output.copy()
        )
        self.output[:] = kept
        self._events = {event: None for event in self._events if event in excluded}
        self.ahead.clear()
        self.ahead.update(event.agent for event in excluded)
        for lane in self.lanes.values():
            lane.stir()
        for event in excluded:
            if event.has_ties:
                event.depends &= excluded
        parts = []
        for part in self.own_parts.values():
            if self.journaled:
                part.take_times(taken_events)
            part.cut(before.get(part, {}))
            if self.journaled:
                part.last_toucher = {k: s for k, s in part.last_toucher.items() if s in excluded}
            parts.append(part)
        self.epoch_bytes = 0
        self.epoch_bytes_watch = self._options.epoch_bytes_max
        self.time_advanced = False
        self._note_quiet(taken_events, excluded)
        return ShardCut(self, self._offsets(limits) or self._fence(), outputs, parts)

    def _fence(self) -> dict[TopicPartition, tuple[int, str]]:
        """For a shard that reads nothing, something to commit: a zombie is refused by its offsets alone."""
        topics = sorted(t.changelog for t in self._tables.values() if t.changelog is not None)
        return {TopicPartition(topic, self.number): (0, "") for topic in topics[:1]}

    def _watch_ties(
        self,
        unfinished: Mapping[tuple[str, TopicPartition], int],
        limits: Mapping[tuple[str, TopicPartition], int],
    ) -> None:
        """Stop intake where finished events stay out again and again, tied to others that overlap for ever."""
        now = self.clock.monotonic()
        tied = {}
        for source, at in limits.items():
            if at < unfinished[source]:
                before = self._tied.get(source)
                tied[source] = before if before is not None and before[0] == at else (at, now)
        self._tied = tied
        if not tied:
            self.open_gate("tied events")
        elif any(now - since >= TIED_S for _, since in tied.values()):
            self.close_gate("tied events")

    def _moves(self, limits: Mapping[tuple[str, TopicPartition], int]) -> bool:
        """Whether there is something in a cut at these positions, although it takes no event."""
        return any(output[-1] is None for output in self.output) or any(
            at > self._cut_positions.get(source, -1) for source, at in limits.items()
        )

    def _offsets(
        self, limits: Mapping[tuple[str, TopicPartition], int]
    ) -> dict[TopicPartition, tuple[int, str]]:
        by_tp: dict[TopicPartition, dict[str, int]] = {}
        for (name, tp), at in limits.items():
            by_tp.setdefault(tp, {})[name] = at
            self._cut_positions[name, tp] = at
        offsets = {tp: encode_metadata(self.stream_time, at) for tp, at in by_tp.items()}
        for tp, (offset, _) in offsets.items():
            if offset < self._last_offsets.get(tp, 0):
                raise InternalError(f"the position of {tp} went back to {offset}")
            self._last_offsets[tp] = offset
        return offsets

    def _note_quiet(self, taken: Sequence[Scope], excluded: set[Scope]) -> None:
        if not self.journaled or self._search is not None:
            return
        if excluded or any(lane.agent.concurrency > 1 for lane in self.lanes.values()):
            self._suspends = True
        self._quiet_events, self._finished_events = (
            self._quiet_events + self._finished_events,
            0,
        )
        if not self._suspends and self._quiet_events >= QUIET_EVENTS and not self._events:
            self._set_journaled(False)

    def _begin_journals(self) -> None:
        """Events in the middle were found: wait for them, and keep journals from then on."""
        self._suspends = True
        self.close_gate("journals begin")
        for lane in self.lanes.values():
            for instance in lane.instances:
                instance.interrupted = True

    def check_journals(self) -> None:
        """Finish what `cut` began when it found events in the middle."""
        if "journals begin" in self._closed_by and not self.in_progress():
            self._set_journaled(True)
            self.open_gate("journals begin")

    def _set_journaled(self, on: bool) -> None:
        self.journaled = on
        for lane in self.lanes.values():
            for instance in lane.instances:
                instance.interrupted = True

    def settle(self, cut: ShardCut) -> None:
        """The store holds the cut."""
        for part in cut.parts:
            part.settle()
        for tp, (offset, _) in cut.offsets.items():
            if tp in self.committed:
                self.committed[tp] = offset
        if self._search is not None and self._search.is_over(self._cut_positions):
            self._search = None
        if self._condemned:
            self._condemned = {
                (agent, tp, offset): error
                for (agent, tp, offset), error in self._condemned.items()
                if offset >= self.committed.get(tp, 0)
            }

    def give_back(self, cut: ShardCut) -> None:
        """The epoch was refused, and the shard stays here: what was cut goes with the next one."""
        self._cut_positions.clear()
        for part in cut.parts:
            part.restore(self._events)
        self.output[:0] = [(*output[:5], None) for output in cut.outputs]

    # queries --------------------------------------------------------------------------------------

    def position_text(self) -> dict[str, int]:
        """Committed offsets of the inputs, as queries report them."""
        return {str(tp): offset for tp, offset in sorted(self.committed.items())}


def _accept(_: Any) -> None:
    return None


class _UsedParts(dict[str, Any]):
    """The shard's parts as one agent uses them: each part is told when that begins."""

    def __init__(self, parts: Mapping[str, Any], agent: str) -> None:
        super().__init__()
        self._parts = parts
        self._agent = agent

    def __missing__(self, name: str) -> Any:
        part = self[name] = self._parts[name]
        part.used_by(self._agent)
        return part


async def _nothing() -> None:
    return None
