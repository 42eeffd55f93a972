"""A worker: one process, one event loop, a set of shards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from millstream import hooks
from millstream.errors import (
    FencedError,
    IllegalGenerationError,
    LogUnavailableError,
    TopologyError,
)
from millstream.records import TopicPartition
from millstream.transports.base import GroupInputs
from millstream.worker._assign import (
    LAG_UNKNOWN,
    Assignor,
    MemberMetadata,
    ShardAssignment,
    ShardId,
    assign_shards,
    decode_assignment,
    encode_metadata,
    processes_of,
    urls_of,
)
from millstream.worker._assign_handover import assign_in_two_rounds
from millstream.worker._commit import Committer
from millstream.worker._copies import Copies
from millstream.worker._fetch import Fetcher
from millstream.worker._open_events import OpenEvents
from millstream.worker._purge import PURGE_INTERVAL_S, Purge
from millstream.worker._shard import Shard
from millstream.worker._specs import AgentSpec, ShardOptions, Stage, TableSpec
from millstream.worker._state import StateLog, WorkerState
from millstream.worker._upkeep import StoreUpkeep
from millstream.worker._watch import PeerWatch, neighbours

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Collection,
        Coroutine,
        Mapping,
        Sequence,
    )

    from millstream.clock import Clock
    from millstream.state.base import ShardStore, StateBackend
    from millstream.transports.base import (
        Assignment,
        Membership,
        TopicInfo,
        Transport,
    )
    from millstream.worker._lane import Lane

__all__ = ["Worker", "WorkerPlan"]

logger = logging.getLogger("millstream.worker")

ALIVE_INTERVAL_S = 0.5
MAINTENANCE_INTERVAL_S = 5.0
TOPICS_INTERVAL_S = 5.0
"""How soon a topic that matches a pattern is found."""
LOOK_INTERVAL_S = 30.0
"""How soon it is noticed that a topic has more partitions than before, where no pattern asks for more."""
STOP_TIMEOUT_S = 1.5
"""How long a stopping worker waits for events in progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPlan:
    """What a worker runs, resolved against the log."""

    app: str
    fingerprint: str
    agents: Mapping[int, Sequence[AgentSpec]]
    """By partition count of their sources."""
    tables: Mapping[int, Sequence[TableSpec]]
    topic_ids: Mapping[str, str]
    idles: bool = False
    """Whether some topic or table has an ``idle_timeout``."""
    stages: Mapping[str, Sequence[Stage]] = field(default_factory=dict)
    """By topic between two stages of the app: what fills it."""
    commit_interval_s: float = 0.02
    session_timeout_s: float = 5.0
    standby_replicas: int = 0
    rack: str = ""
    inbox_bytes_max: int = 8 << 20
    epoch_bytes_max: int = 32 << 20
    shard_tasks: Mapping[int, Sequence[Callable[[Shard], Coroutine[Any, Any, None]]]] = field(
        default_factory=dict
    )
    """Timers of scope ``shard``, by partition count."""
    worker_tasks: Sequence[Callable[[], Awaitable[None]]] = ()
    """The user's tasks, and timers of scope ``worker``: run once the first shards are ready."""
    look: Callable[[Mapping[str, TopicInfo]], None] = lambda infos: None
    """Is shown all topics now and then; raises where the worker cannot go on with what they are now."""
    follow: Callable[[Mapping[str, TopicInfo]], None] | None = None
    """Takes those of the log's topics that match a pattern into the agents' sources."""
    leader_tasks: Sequence[Callable[[Callable[[], Awaitable[Shard]]], Awaitable[None]]] = ()
    """Run where the first shard of the largest group is; given what waits until it is ready."""
    atomic: bool = True
    """Whether an epoch is one transaction; else results are written at least once."""
    passing: Collection[str] = ()
    """Topics of which nobody reads a record again that was processed: the log may forget those."""

    @property
    def counts(self) -> list[int]:
        """Partition counts for which there is something to run, sorted."""
        return sorted(set(self.agents) | set(self.tables))

    def inputs(self) -> GroupInputs:
        """What the workers read, whatever it is at the time."""

        def topics(count: int) -> list[str]:
            specs = self.agents.get(count, ())
            return sorted({topic for spec in specs for topic in list(spec.sources)})

        def partitions(assigned: bytes) -> list[TopicPartition]:
            active = decode_assignment(assigned).active
            read = {count: topics(count) for count in {count for count, _ in active}}
            return [
                TopicPartition(topic, number) for count, number in active for topic in read[count]
            ]

        return GroupInputs(
            topics=lambda: [topic for count in self.agents for topic in topics(count)],
            partitions=partitions,
        )


class Worker:
    """Runs the shards that its group gives it."""

    assign: ClassVar[Assignor] = assign_shards
    """What it does where it leads its group; it tells the versions that this knows in its metadata."""

    def __init__(
        self,
        plan: WorkerPlan,
        *,
        transport: Transport,
        state: StateBackend,
        clock: Clock,
        everywhere: Mapping[str, Any] = {},
        url: str = "",
        slot: str = "",
    ) -> None:
        self.plan = plan
        self.url = url
        self.slot = slot
        self.shards: dict[ShardId, Shard] = {}
        self.ready = asyncio.Event()
        """Set while every assigned shard is ready, after the first assignment."""
        self.membership: Membership | None = None
        self.assignment: Assignment | None = None
        self.assigned: list[Callable[[list[ShardId]], Awaitable[None]]] = []
        self.revoked: list[Callable[[list[ShardId]], Awaitable[None]]] = []
        self.states = StateLog()
        self._transport = transport
        self._state = state
        self._clock = clock
        self._stores: dict[ShardId, ShardStore] = {}
        self._running: dict[ShardId, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._stopping = asyncio.Event()
        self._abandoned = False
        self._leading: list[asyncio.Task[Any]] = []
        self.counters: Counter[str] = Counter()
        """What happened outside of shards, under the names of `Shard.counters`."""
        self._watch = PeerWatch(self._suspect)
        self._process = uuid.uuid4().hex
        self._inputs = plan.inputs()
        self.options = ShardOptions(
            app=plan.app,
            group=plan.app,
            clock=clock,
            transport=transport,
            topic_ids=plan.topic_ids,
            everywhere=everywhere,
            idles=plan.idles,
            stages=plan.stages,
            inbox_bytes_max=plan.inbox_bytes_max,
            epoch_bytes_max=plan.epoch_bytes_max,
        )
        self.committer = Committer(
            transport=transport,
            group=plan.app,
            app=plan.app,
            clock=clock,
            interval_s=plan.commit_interval_s,
            topic_ids=plan.topic_ids,
            atomic=plan.atomic,
        )
        self.committer.shards = self.shards
        self.committer.fenced = self._fenced
        self.fetchers = {
            spec.agent.name: Fetcher(
                spec.agent.name,
                transport=transport,
                lanes=self._lanes_of(spec.agent.name),
                clock=clock,
            )
            for specs in plan.agents.values()
            for spec in specs
        }
        self.copies = Copies(
            self.options,
            tables=plan.tables,
            agents=plan.agents,
            caught_up=self._tell_again,
            note=self._note,
            has_work=lambda: bool(self.shards),
        )
        self._upkeep = StoreUpkeep(self, flushes=state.durable)

    def _lanes_of(self, agent: str) -> Callable[[], list[Any]]:
        return lambda: [
            shard.lanes[agent]
            for shard in self.shards.values()
            if shard.ready.is_set() and agent in shard.lanes
        ]

    def _lanes(self) -> list[Lane]:
        return [lane for shard in self.shards.values() for lane in shard.lanes.values()]

    def _stir(self) -> None:
        self.committer.stirred.set()
        for fetcher in self.fetchers.values():
            fetcher.stir()
        if self.assignment is None or self.states.is_ending:
            return
        if all(s.ready.is_set() for s in self.shards.values()):
            self.ready.set()
            self.states.move(WorkerState.RUNNING)
        else:
            self.states.move(WorkerState.RECOVERING)

    # life -----------------------------------------------------------------------------------------

    async def run(self, *, commits: bool = True) -> None:
        """Work until `stop` is called, then commit what is finished and leave the group.

        Args:
            commits: whether to commit by itself; a test calls `Committer.commit` instead.

        Raises:
            AgentError: a record stopped the worker.
            TopologyError: the running group has another topology.
        """
        end = WorkerState.STOPPED
        try:
            await self._run(commits)
        except Exception:
            end = WorkerState.FAILED
            raise
        finally:
            self.states.move(end)
            if not self._abandoned:
                await self.states.tell()

    async def _run(self, commits: bool) -> None:
        try:
            await self._work(commits)
        finally:
            # after the group was left: others wait for the shards, and not for what is written to disk here
            with contextlib.ExitStack() as closing:  # all of them, whatever one has to say
                for store in self._stores.values():
                    closing.callback(store.close)
                self._stores.clear()

    async def _work(self, commits: bool) -> None:
        async with self._joined():
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._tasks = tasks
                    if not self.plan.counts:
                        self.states.move(WorkerState.RUNNING)
                    serving = [
                        tasks.create_task(self.states.tell_for_ever(), name="on_state"),
                        tasks.create_task(self._follow_group(), name="group"),
                        tasks.create_task(self._tell_alive(), name="alive"),
                        tasks.create_task(self._watch.run(), name="peers"),
                        tasks.create_task(self._maintain(), name="maintenance"),
                        tasks.create_task(self._follow_topics(), name="topics"),
                        tasks.create_task(self._forget_processed(), name="purge"),
                        tasks.create_task(OpenEvents(self._lanes).run(), name="open events"),
                        tasks.create_task(self.copies.run(), name="copies"),
                        tasks.create_task(self._upkeep.run(), name="stores"),
                        *(
                            tasks.create_task(fetcher.run(), name=f"fetch {name}")
                            for name, fetcher in self.fetchers.items()
                        ),
                        *(
                            tasks.create_task(self._when_ready(task), name="user task")
                            for task in self.plan.worker_tasks
                        ),
                    ]
                    if commits:
                        serving.append(tasks.create_task(self.committer.run(), name="committer"))
                    await self._stopping.wait()
                    self.states.move(WorkerState.STOPPING)
                    await self._finish()
                    for task in [*serving, *self._leading, *self._running.values()]:
                        task.cancel()
            finally:
                self._running.clear()
                self._leading.clear()
                self._tasks = None
                self.ready.clear()
                self.shards.clear()
                for shard_id in list(self.copies.by_shard):
                    self._stores[shard_id] = self.copies.release(shard_id)

    def stop(self) -> None:
        """Have `run` come to its end: within a second or two."""
        self._stopping.set()

    def abandon(self) -> None:
        """Have `run` come to its end at once, with nothing committed any more: for tests of crashes."""
        self._abandoned = True
        self._stopping.set()

    @contextlib.asynccontextmanager
    async def _joined(self) -> AsyncIterator[None]:
        if not self.plan.counts:
            yield
            return
        self.membership = await self._transport.join(
            self.plan.app,
            metadata=self._metadata(ShardAssignment(), generation=0),
            assign=type(self).assign if self.plan.atomic else assign_in_two_rounds,
            session_timeout_s=self.plan.session_timeout_s,
            inputs=self._inputs,
        )
        try:
            yield
        finally:
            await asyncio.shield(self.membership.leave())
            hooks.reached("group.left")

    async def _finish(self) -> None:
        """Let the events in progress end, as far as they do in time, and commit."""
        if self._abandoned:
            return
        for shard in self.shards.values():
            shard.close_gate("stopping")
        await _until_finished(self.shards.values())
        await self.committer.commit()

    async def _when_ready(self, task: Callable[[], Awaitable[None]]) -> None:
        if self.plan.counts:
            await self.ready.wait()
        await task()

    async def _tell_alive(self) -> None:
        while self.membership is not None:
            self.membership.alive()
            await asyncio.sleep(ALIVE_INTERVAL_S)

    async def _maintain(self) -> None:
        while True:
            await self._clock.sleep(MAINTENANCE_INTERVAL_S)
            await self._transport.maintain()

    async def _follow_topics(self) -> None:
        """Look for topics that match a pattern, and at those that are read, again and again."""
        follow = self.plan.follow
        untold = False
        while True:
            await self._clock.sleep(LOOK_INTERVAL_S if follow is None else TOPICS_INTERVAL_S)
            with contextlib.suppress(
                LogUnavailableError
            ):  # what was not done is done the next time
                infos = await self._transport.topics()
                self.plan.look(infos)
                if follow is None:
                    continue
                before = set(self._inputs.topics())
                follow(infos)
                untold = untold or before != set(self._inputs.topics())
                if untold and self._leads():
                    await self._tell_again()
                untold = False
                for shard in list(self.shards.values()):
                    await shard.take_new_inputs()
            self._stir()

    async def _forget_processed(self) -> None:
        purge = Purge(self._transport, self.plan.passing)
        while self.plan.passing:
            await self._clock.sleep(PURGE_INTERVAL_S)
            shards = [shard for shard in self.shards.values() if shard.ready.is_set()]
            await purge.run({tp: at for shard in shards for tp, at in shard.committed.items()})

    # the group ------------------------------------------------------------------------------------

    def _metadata(self, share: ShardAssignment, *, generation: int) -> bytes:
        """What this worker says of itself: what it was given last, and what else it has on disk."""
        names = (name.partition("-") for name in self._state.shards())
        on_disk = [
            (int(count), int(number))
            for count, _, number in names
            if count.isdigit() and number.isdigit() and int(number) < int(count)
        ]
        lags = {**dict.fromkeys(on_disk, LAG_UNKNOWN), **self.copies.lags()}
        owned = set(share.active)
        if not self.plan.atomic:
            owned |= set(self.shards)  # others wait for those that are about to be handed over
        return encode_metadata(
            MemberMetadata(
                url=self.url,
                slot=self.slot,
                topology=self.plan.fingerprint,
                process=self._process,
                guarantee="exactly_once" if self.plan.atomic else "at_least_once",
                counts=tuple(self.plan.counts),
                stateful=tuple(sorted(count for count, some in self.plan.tables.items() if some)),
                rack=self.plan.rack,
                standby_replicas=self.plan.standby_replicas,
                keeps_copies=True,
                generation=generation,
                owned=tuple(sorted(owned)),
                standby=share.standby,
                warming=share.warming,
                held={shard: lag for shard, lag in lags.items() if shard not in owned},
            )
        )

    async def _follow_group(self) -> None:
        if self.membership is None:
            return
        while True:
            assignment = await self.membership.next_assignment()
            if refused := decode_assignment(assignment.assigned).refused:
                raise TopologyError(f"app {self.plan.app!r}: {refused}")
            self._warn_of_refused(assignment)
            await self._apply(assignment)

    def _warn_of_refused(self, assignment: Assignment) -> None:
        for member, data in assignment.shares.items():
            if refused := decode_assignment(data).refused:
                logger.error("%s is refused, and this worker goes on: %s", member, refused)

    async def _apply(self, assignment: Assignment) -> None:
        before = self.assignment
        assert self.membership is not None
        share = decode_assignment(assignment.assigned)
        mine = set(share.active)
        steady = (
            before is not None
            and before.member_id == assignment.member_id
            and assignment.generation in (before.generation, before.generation + 1)
        )
        lost = set(self.shards) - mine if steady else set(self.shards)
        self.ready.clear()
        copies = dict.fromkeys(share.standby, False) | dict.fromkeys(share.warming, True)
        if not self.plan.atomic:
            if steady:
                # the group did not know yet that the others were here: somebody may be at work on them already
                left = lost.intersection(share.withheld)
                async with self.committer.lock:
                    await self._stop_shards(sorted(lost - left), kept=())
                lost = left
                if not await self._let_go(lost, assignment):
                    return
            for shard_id in mine & set(self.shards):
                self.shards[shard_id].open_gate("moving")
        async with self.committer.lock:
            await self._stop_shards(sorted(lost), kept=copies)
            self.assignment = assignment
            self.committer.member_id = assignment.member_id
            self.committer.generation = assignment.generation
            self.committer.moved.set()
        gained = sorted(mine - set(self.shards))
        await self._keep_copies(copies, gained)
        self.membership.note(self._metadata(share, generation=assignment.generation))
        self._watch.follow(neighbours(assignment.member_id, urls_of(assignment.members)))
        for callback in self.assigned:
            await callback(gained)
        for shard_id in gained:
            self._start_shard(shard_id)
        hooks.reached("group.assigned", generation=assignment.generation)
        self._lead()
        self._stir()
        if share.withheld:
            await self._tell_again()

    async def _let_go(self, lost: set[ShardId], assignment: Assignment) -> bool:
        """Finish and commit what shards have in hand that are about to be handed over (see `_assign_handover`).

        Returns:
            False where the group has moved on meanwhile: the shards are kept until the next assignment.
        """
        self.assignment = assignment
        self.committer.generation = assignment.generation  # the shards are nobody else's in it
        self.committer.moved.set()
        if not lost:
            return True
        shards = [self.shards[shard_id] for shard_id in lost]
        for shard in shards:
            shard.close_gate("moving")
        await _until_finished(shards)
        await self._until_settled()  # what is on its way is of the generation before
        refused = self.committer.refused
        await self.committer.commit()
        return self.committer.refused == refused

    async def _keep_copies(self, wanted: Mapping[ShardId, bool], gained: Sequence[ShardId]) -> None:
        """Follow what is to be copied; what this worker owns from now on needs no copy."""
        following = self.copies.by_shard
        await self._upkeep.settled()
        for shard_id in [shard_id for shard_id in following if shard_id not in wanted]:
            store = self.copies.release(shard_id)
            if shard_id in gained:
                self._stores[shard_id] = store
            else:
                store.close()
        for shard_id, warming in wanted.items():
            if shard_id in following:
                self.copies.set_role(shard_id, warming=warming)
            else:
                had = shard_id in self._stores
                store = self._stores.pop(shard_id) if had else self._open(shard_id)
                self.copies.keep(shard_id, store, warming=warming)

    def _open(self, shard_id: ShardId) -> ShardStore:
        count, number = shard_id
        return self._state.open(f"{count}-{number}")

    def _note(self) -> None:
        """Have the group know with the next rebalance how far behind copies are."""
        if self.membership is not None and self.assignment is not None:
            share = decode_assignment(self.assignment.assigned)
            self.membership.note(self._metadata(share, generation=self.assignment.generation))

    async def _tell_again(self) -> None:
        """Join again, so that the log hears of all topics whose positions it is to keep, and of copies that are warm."""
        if self.membership is not None and self.assignment is not None:
            share = decode_assignment(self.assignment.assigned)
            await self.membership.update(
                self._metadata(share, generation=self.assignment.generation)
            )

    async def _suspect(self, member_id: str) -> bool:
        """A worker's process is gone, as far as this one can see."""
        if self.membership is None or self.assignment is None:
            return False
        processes = processes_of(self.assignment.members)
        return await self.membership.suspect(member_id, processes=processes)

    async def _stop_shards(self, shard_ids: list[ShardId], *, kept: Collection[ShardId]) -> None:
        """Stop shards, and close their stores but those that are kept as copies."""
        if not shard_ids:
            return
        running = [self._running.pop(shard_id) for shard_id in shard_ids]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._upkeep.settled()
        for shard_id in shard_ids:
            self.shards.pop(shard_id)
            if shard_id not in kept:
                self._stores.pop(shard_id).close()
        for callback in self.revoked:
            await callback(shard_ids)

    def _start_shard(self, shard_id: ShardId) -> None:
        count, number = shard_id
        store = self._stores.get(shard_id) or self._open(shard_id)
        self._stores[shard_id] = store
        shard = Shard(
            count,
            number,
            store=store,
            tables=self.plan.tables.get(count, ()),
            agents=self.plan.agents.get(count, ()),
            options=self.options,
            table_counts={
                table.name: other for other, tables in self.plan.tables.items() for table in tables
            },
        )
        shard.wake = self._stir
        shard.before_recovery = self._until_known
        shard.commit = self.committer.commit
        shard.local_tasks = list(self.plan.shard_tasks.get(count, ()))
        self.shards[shard_id] = shard
        assert self._tasks is not None
        self._running[shard_id] = self._tasks.create_task(shard.run(), name=f"shard {shard.name}")

    async def _until_settled(self) -> None:
        """No commit is on its way: committed offsets are what the log says."""
        async with self.committer.lock:
            pass

    async def _until_known(self) -> None:
        """No commit is on its way, and what the group has refused one for is applied, if it comes soon."""
        await self._until_settled()
        await self.committer.until_moved()

    def _leads(self) -> bool:
        return bool(self.plan.counts) and (max(self.plan.counts), 0) in self.shards

    def _lead(self) -> None:
        leads = self._leads()
        if leads and not self._leading:
            assert self._tasks is not None
            self._leading = [
                self._tasks.create_task(self._when_ready(partial(task, self._leading_shard)))
                for task in self.plan.leader_tasks
            ]
        elif not leads:
            for task in self._leading:
                task.cancel()
            self._leading = []

    async def _leading_shard(self) -> Shard:
        """The shard that makes this worker the leader, once it is ready."""
        while True:
            await self.ready.wait()
            shard = self.shards.get((max(self.plan.counts), 0))
            if shard is None:  # it has been taken away, and whoever waits here is about to be ended
                await asyncio.Event().wait()
            assert shard is not None
            if shard.ready.is_set():
                return shard
            await shard.ready.wait()

    def _fenced(self, error: FencedError) -> None:
        """A commit was refused: the next assignment tells what is still ours."""
        logger.info("a commit was refused: %s", error)
        if not isinstance(error, IllegalGenerationError):
            for shard in self.shards.values():
                shard.rewind()

    def in_progress(self) -> bool:
        """Whether any event is in the middle."""
        return any(shard.in_progress() for shard in self.shards.values())


async def _until_finished(shards: Collection[Shard]) -> None:
    """Wait for events in progress, as far as they end in time."""
    loop = asyncio.get_running_loop()  # real time: a clock that is moved by hand stands still
    deadline = loop.time() + STOP_TIMEOUT_S
    while any(shard.in_progress() for shard in shards):
        if loop.time() >= deadline:
            break
        await asyncio.sleep(0.005)  # nobody says when the last one ends
