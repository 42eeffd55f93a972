"""Workers of the program under test in one process, on one log in memory, driven by a seeded schedule.

Nothing here depends on real time: a seed is a schedule. After every commit the log is held against the model, so a
fault shows at the commit that made it, and not only after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from millstream import hooks
from millstream.app._runtime import Runtime
from millstream.clock import ManualClock
from millstream.records import TopicPartition
from millstream.state.memory import MemoryBackend
from millstream.tables import POSITION_KEY, decode_position
from millstream.transports.batch import iterate_records
from millstream.transports.memory import MemoryLog, MemoryTransport
from tests.crash.program import (
    APP,
    GROUPS,
    KEYS,
    START_MS,
    Checker,
    Entry,
    Event,
    LogView,
    Program,
    Violation,
    build,
    changelog,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from millstream.transports.base import (
        Assignment,
        CommitResult,
        Epoch,
        Membership,
    )

__all__ = ["Crash", "Schedule", "World", "run_schedule"]

acting: ContextVar[Member] = ContextVar("acting")

BEFORE_THE_FENCE = ("commit.cut", "commit.encoded", "commit.sent")
AFTER_THE_LOG = ("commit.committed", "commit.applying", "commit.applied")
ELSEWHERE = ("recovery.started", "recovery.slice", "recovery.finished", "group.assigned")
INSIDE = ("commit.writing", "commit.appended", "commit.positioned")
CRASH_POINTS = (*BEFORE_THE_FENCE, *INSIDE, *AFTER_THE_LOG, *ELSEWHERE)


class Crash(Exception):
    """The process is gone."""


class FrozenMembership:
    """A membership that hears nothing of its group while its worker is stopped."""

    def __init__(self, inner: Membership, member: Member) -> None:
        self._inner = inner
        self._member = member

    async def next_assignment(self) -> Assignment:
        """The next assignment, once the worker is awake."""
        await self._member.awake.wait()
        return await self._inner.next_assignment()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class CheckedTransport(MemoryTransport):
    """A worker's view of the log, which checks what each epoch does to it."""

    def __init__(self, world: World) -> None:
        super().__init__(clock=world.clock, log=world.log)
        self._world = world

    async def join(self, group: str, **terms: Any) -> Membership:
        """Join, as a worker that may be stopped."""
        made = await super().join(group, **terms)
        frozen: Any = FrozenMembership(made, acting.get())
        return frozen  # type: ignore[no-any-return]

    async def commit(self, epoch: Epoch) -> CommitResult:
        """Commit, unless the process is gone, and check the log."""
        if acting.get().dead:
            raise Crash
        world = self._world
        world.check_epoch(epoch)
        result = await super().commit(epoch)
        world.check_log()
        return result


class DiskBackend(MemoryBackend):
    """State that a crash takes back to some earlier moment, each table to its own, as RocksDB does without a WAL."""

    def __init__(self) -> None:
        super().__init__()
        self._flushed: dict[tuple[str, str], dict[bytes, bytes]] = {}

    def flush_some(self, rng: random.Random) -> None:
        """Some tables reach the disk as they are."""
        for shard in self.shards():
            store = self._stores[shard]
            if store.closed:
                continue
            for name in store.tables():
                if rng.random() < 0.5:
                    self._flushed[shard, name] = dict(store.table(name).items())

    def crash(self, rng: random.Random, *, lose: bool) -> None:
        """What a killed process leaves behind; every store is closed."""
        for shard in self.shards():
            store = self.open(shard)
            contents = {name: dict(store.table(name).items()) for name in store.tables()}
            store.close()
            self.destroy(shard)
            if lose:
                continue
            store = self.open(shard)
            for name, rows in contents.items():
                if rng.random() < 0.5:
                    rows = self._flushed.get((shard, name), {})
                store.write({name: rows})
            store.close()
        if lose:
            self._flushed.clear()


@dataclass
class Member:
    """A worker's life after life: its program, its disk, and what runs."""

    number: int
    world: World
    disk: DiskBackend = field(default_factory=DiskBackend)
    dead: bool = True
    runtime: Runtime | None = None
    program: Program | None = None
    committing: asyncio.Task[int] | None = None
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    """Cleared while it hears nothing of its group."""
    _life: asyncio.Task[None] | None = None
    _end: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """A new process."""
        self.dead = False
        self.awake.set()
        self._end = asyncio.Event()
        acting.set(self)
        self.program = self.world.build()
        self.runtime = Runtime(
            self.program.app,
            transport=CheckedTransport(self.world),
            state=self.disk,
            commits=False,
        )
        started = asyncio.Event()
        self._life = asyncio.create_task(self._live(self.runtime, started))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait([self._life, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._life.done():
            await self.kill()

    async def _live(self, runtime: Runtime, started: asyncio.Event) -> None:
        async with runtime.running():
            started.set()
            await self._end.wait()

    @property
    def running(self) -> bool:
        """Whether there is a process whose worker works."""
        return not self.dead and self._life is not None and not self._life.done()

    def commit(self) -> None:
        """Begin a commit, unless one is on its way."""
        if self.committing is not None and not self.committing.done():
            return
        assert self.runtime is not None
        worker = self.runtime.worker
        if worker is None:
            return
        acting.set(self)
        self.committing = asyncio.create_task(worker.committer.commit())

    async def commit_now(self) -> None:
        """Let everything come to rest, and commit it."""
        for _ in range(200):
            await asyncio.sleep(0)
        self.commit()
        assert self.committing is not None
        await self.committing

    def failed(self) -> bool:
        """Whether the process has come upon something that ends it."""
        if self.committing is not None and self.committing.done() and self.committing.exception():
            return True
        return self.runtime is not None and self.runtime.failed()

    async def kill(self, *, lose: bool = False) -> None:
        """End the process at once."""
        self.dead = True
        self.awake.set()
        errors: list[BaseException] = []
        if self.runtime is not None and self.runtime.worker is not None:
            self.runtime.worker.abandon()
        self._end.set()
        if self.committing is not None:
            await asyncio.wait([self.committing])
            errors += [e for e in [self.committing.exception()] if e is not None]
            self.committing = None
        if self._life is not None:
            await asyncio.wait([self._life])
            errors += [e for e in [self._life.exception()] if e is not None]
        self.runtime = self._life = self.program = None
        for error in errors:
            _raise_real(error)
        self.disk.crash(self.world.rng, lose=lose)


def _raise_real(error: BaseException) -> None:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            _raise_real(inner)
    elif not isinstance(error, Crash | asyncio.CancelledError):
        raise error


@dataclass(kw_only=True)
class Schedule:
    """What a seed decides before the first step, and how many steps there are."""

    steps: int = 60
    workers: int = 2
    standby_replicas: int = 0
    concurrency: int | None = None
    crashes: bool = True
    evictions: bool = True
    new_generations: bool = True
    pauses: Sequence[int] = (-1, -1, 0, 0, 1, 3, 20)
    fails: Sequence[int] = (0,)


async def _steps(world: World) -> None:
    for _ in range(world.schedule.steps):
        await world.step()
        await world.bury()


class World:
    """Some workers, one log, and the schedule that moves them."""

    def __init__(self, seed: int, schedule: Schedule) -> None:
        self.rng = random.Random(seed)
        self.schedule = schedule
        self.clock = ManualClock(START_MS)
        self.log = MemoryLog()
        rng = self.rng
        self._concurrency = (
            rng.choice([0, 0, 1, 4, 50]) if schedule.concurrency is None else schedule.concurrency
        )
        self._settings: dict[str, Any] = {
            "epoch_bytes_max": rng.choice([300, 3_000, 32 << 20]),
            "inbox_bytes_max": rng.choice([300, 8 << 20]),
            "standby_replicas": schedule.standby_replicas,
        }
        self._outside = MemoryTransport(clock=self.clock, log=self.log)
        self._sender = self.build()
        self.checker = Checker(self._sender)
        self._entries: dict[TopicPartition, list[Entry]] = {}
        self._batches: dict[TopicPartition, int] = {}
        self._positions: dict[TopicPartition, int] = {}
        self.members = [Member(number, self) for number in range(schedule.workers)]
        self._armed: tuple[str, int, str] | None = None
        self.seen: set[str] = set()
        self.commits = 0
        self._ids = 0
        self.rounds = 2_000

    def build(self) -> Program:
        """The program, as each process makes it."""
        return build(clock=self.clock, concurrency=self._concurrency, **self._settings)

    # the schedule -------------------------------------------------------------------------------

    async def run(self) -> None:
        """All of it, and then to the end of the input."""
        await self.run_with(_steps)

    async def run_with(self, steps: Callable[[World], Awaitable[None]]) -> None:
        """Start the workers, do ``steps``, and go to the end of the input."""
        with hooks.observe(self._observe):
            try:
                async with Runtime(
                    self._sender.app, transport=self._outside, worker=False
                ).running():
                    for member in self.members:
                        await member.start()
                    await steps(self)
                    self._armed = None
                    await self._finish()
            finally:
                for member in self.members:
                    if not member.dead:
                        with contextlib.suppress(Exception):
                            await member.kill()

    async def step(self) -> None:
        rng = self.rng
        member = rng.choice(self.members)
        choice = rng.random()
        if choice < 0.25:
            await self.send(rng.choice([1, 2, 4, 6, 12]))
        elif choice < 0.45:
            for _ in range(rng.randint(1, 25)):
                await asyncio.sleep(0)
        elif choice < 0.6:
            self.clock.move_to(self.clock.now() + rng.choice([1, 1, 2, 5, 30]))
        elif choice < 0.87:
            if member.running:
                member.commit()
            for _ in range(rng.choice([0, 0, 1, 2, 4, 8])):
                await asyncio.sleep(0)
        elif choice < 0.90:
            member.disk.flush_some(rng)
        elif choice < 0.93:
            if self._armed is None:
                self._arm()
        elif choice < 0.96:
            if not self.schedule.crashes:
                return
            if not member.dead:
                await member.kill(lose=rng.random() < 0.3)
            else:
                await member.start()
        elif choice < 0.98:
            if self.schedule.new_generations:
                self.new_generation()
        elif choice < 0.985:
            member.awake.set()
        elif self.schedule.evictions:
            self.evict(member)
            if rng.random() < 0.5:
                member.awake.clear()

    def arm(self, point: str, action: str) -> None:
        """Have ``action`` happen when ``point`` is reached a few times more."""
        self._armed = (point, self.rng.randint(1, 6), action)

    def _arm(self) -> None:
        rng = self.rng
        actions = ["crash"] * self.schedule.crashes
        actions += ["generation"] * self.schedule.new_generations
        actions += ["evict"] * self.schedule.evictions
        if not actions:
            return
        action = rng.choice(actions)
        if action == "crash":
            point = rng.choice(CRASH_POINTS)
        else:
            point = rng.choice([*BEFORE_THE_FENCE, *BEFORE_THE_FENCE, *AFTER_THE_LOG, *ELSEWHERE])
        self._armed = (point, rng.choice([1, 1, 1, 2, 3]), action)

    def _observe(self, point: str, facts: Mapping[str, object]) -> None:
        member = acting.get(None)
        if member is None:
            return
        if member.dead:
            raise Crash
        self.seen.add(point)
        if self._armed is None or self._armed[0] != point:
            return
        _, left, action = self._armed
        if left > 1:
            self._armed = (point, left - 1, action)
            return
        self._armed = None
        if action == "crash":
            member.dead = True
            raise Crash
        if action == "generation":
            self.new_generation()
        else:
            self.evict(member)

    async def bury(self) -> None:
        for member in self.members:
            if (member.dead and member.runtime is not None) or (
                not member.dead and member.failed()
            ):
                await member.kill(lose=self.rng.random() < 0.3)

    # what happens -------------------------------------------------------------------------------

    async def send(self, count: int) -> None:
        """Some events from outside."""
        rng, pauses = self.rng, self.schedule.pauses
        listed = [
            self.event(
                stall=rng.choice(pauses),
                note=rng.choice(pauses),
                slow=rng.choice(pauses),
                fails=rng.choice(self.schedule.fails),
            )
            for _ in range(count)
        ]
        if rng.random() < 0.5:
            await self._sender.events.send_many(listed)  # in one batch for each partition
            return
        for event in listed:
            await self.send_event(event)

    def event(self, *, stall: int, note: int, slow: int, fails: int = 0) -> Event:
        """The next event."""
        number, self._ids = self._ids, self._ids + 1
        return Event(
            number,
            self.rng.choice(KEYS),
            self.rng.choice(GROUPS),
            stall=stall,
            note=note,
            slow=slow,
            fails=fails,
        )

    async def send_event(self, event: Event) -> None:
        """One event from outside."""
        await self._sender.events.send(event)

    def new_generation(self) -> None:
        """The group settles anew, with the same members."""
        group = self.log._groups.get(APP)
        if group is not None and group.members:
            group.rebalance()
            self.log._bell.ring()

    def evict(self, member: Member) -> None:
        """The group removes a worker, which does not know yet."""
        runtime = member.runtime
        if member.dead or runtime is None or runtime.worker is None:
            return
        member_id = runtime.worker.committer.member_id
        group = self.log._groups.get(APP)
        if group is not None and member_id in group.members:
            self._outside.evict(APP, member_id)

    async def _finish(self) -> None:
        """Everybody lives, and works until nothing is left."""
        for _ in range(self.rounds):
            await self.bury()
            for member in self.members:
                member.awake.set()
                if member.dead:
                    await member.start()
            for _ in range(20):
                await asyncio.sleep(0)
            for member in self.members:
                if member.running:
                    member.commit()
            for _ in range(30):
                await asyncio.sleep(0)
            self.clock.move_to(self.clock.now() + 7)
            if self._is_complete():
                break
        self.check_log(complete=True)
        self._check_stores()

    def _is_complete(self) -> bool:
        at_rest = all(
            member.runtime is not None
            and member.runtime.worker is not None
            and member.runtime.worker.ready.is_set()
            and (member.committing is None or member.committing.done())
            for member in self.members
        )
        view = self.view() if at_rest else None
        # a check reads everything from the beginning: not for each round of those that lead here
        if view is None or not self.checker.is_read(view):
            return False
        try:
            self.checker.check(view, complete=True)
        except Violation:
            return False
        return True

    # what is checked ----------------------------------------------------------------------------

    def view(self) -> LogView:
        """The log as it is now."""
        for topic, made in self.log._topics.items():
            for partition in range(made.info.partitions):
                tp = TopicPartition(topic, partition)
                batches = self.log.batches(tp)
                entries = self._entries.setdefault(tp, [])
                for data in batches[self._batches.get(tp, 0) :]:
                    for record in iterate_records(data, where=str(tp)):
                        entries.append(
                            Entry(record.offset, record.timestamp, record.key, record.value)
                        )
                self._batches[tp] = len(batches)
        group = self.log._groups.get(APP)
        return LogView(self._entries, {} if group is None else dict(group.positions))

    def check_epoch(self, epoch: Epoch) -> None:
        """The contract of an epoch: each shard in it brings offsets."""
        shards = {tp.partition for tp in epoch.records if tp.topic.endswith("-changelog")}
        bring = {tp.partition for tp in epoch.offsets}
        if not shards <= bring:
            raise Violation(f"an epoch has records of shards {shards} and offsets of {bring}")

    def check_log(self, *, complete: bool = False) -> None:
        """Tables and outputs are what the committed positions say; those never go back."""
        self.commits += 1
        view = self.view()
        for tp, (offset, _) in view.positions.items():
            if offset < self._positions.get(tp, 0):
                raise Violation(f"{tp}: position {offset} after {self._positions[tp]}")
            self._positions[tp] = offset
        self.checker.check(view, complete=complete)

    def _check_stores(self) -> None:
        view = self.view()
        for member in self.members:
            assert member.runtime is not None
            assert member.runtime.worker is not None
            for (_, number), shard in member.runtime.worker.shards.items():
                for name, part in shard.own_parts.items():
                    check_store(view, name, number, dict(part.store.items()))


def check_store(view: LogView, table: str, partition: int, rows: Mapping[bytes, bytes]) -> None:
    """A store is the fold of its changelog up to the position that it holds."""
    position = decode_position(rows.get(POSITION_KEY))
    offset = 0 if position is None else position.offset
    wanted: dict[bytes, bytes] = {}
    for entry in view.of(changelog(table), partition):
        if entry.offset < offset and entry.key is not None:
            if entry.value is None:
                wanted.pop(entry.key, None)
            else:
                wanted[entry.key] = entry.value
    found = {k: v for k, v in rows.items() if k != POSITION_KEY and k[:1] != b"\x04"}
    if found != wanted:
        raise Violation(f"the store of {table}/{partition} holds {found}, the log says {wanted}")


async def run_schedule(
    seed: int,
    schedule: Schedule | None = None,
    *,
    prepare: Callable[[World], None] | None = None,
    rounds: int = 2_000,
) -> World:
    """Run a seed's schedule; what is wrong is raised, with the seed in a note."""
    world = World(seed, schedule or Schedule())
    world.rounds = rounds
    if prepare is not None:
        prepare(world)
    try:
        await world.run()
    except Exception as exc:
        exc.add_note(f"seed {seed}, {world.schedule}")
        raise
    return world
