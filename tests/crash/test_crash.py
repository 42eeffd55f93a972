"""Worker processes on the embedded log are killed, stopped and woken, at random moments and at every named point.

A failure names its seed; ``python -m tests.crash.test_crash SEED`` runs that one again. What is random is the schedule:
the processes and the machine add their own chance to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from millstream.hooks import POINTS
from millstream.records import TopicPartition
from millstream.state.rocks import RocksBackend
from millstream.tables import POSITION_KEY, decode_position
from millstream.transports.batch import iterate_records
from tests.crash.forked import Forked
from tests.crash.program import (
    ALWAYS,
    APP,
    GROUPS,
    KEYS,
    PARTITIONS,
    Checker,
    Entry,
    Event,
    LogView,
    Violation,
    build,
    changelog,
    main,
)
from tests.crash.world import check_store

if TYPE_CHECKING:
    from millstream.transports.base import OffsetAndMetadata, Transport

SEEDS = len(POINTS)
"""Each kills a process at a point of its own."""
LONG_SEEDS = 200
AT_ONCE = 2
EVENTS = 1_500
BATCH = 50
STOPPED_S = 1.6
"""Longer than a lease, which is 1 s."""
PATIENCE_S = 120.0

logger = logging.getLogger(__name__)

used: set[str] = set()
ran: set[int] = set()


class Process:
    """A worker process on a slot of its own."""

    def __init__(self, log: Path, slot: str, point: str = "", count: int = 1) -> None:
        self.slot, self.point, self.stopped = slot, point, False
        self.ended = False
        self._errors = log.parent / f"errors-{slot}"
        arguments = [str(log), slot, *([point, str(count)] if point else [])]
        self.child = Forked(main, *arguments, errors=self._errors)

    def tell(self, number: int) -> None:
        """Send a signal, if it lives."""
        self.child.send_signal(number)

    async def end(self, number: int = signal.SIGKILL) -> None:
        """End it, and see that it did not end by itself before, in another way than by being killed."""
        self.ended = True
        self.tell(number)
        self.tell(signal.SIGCONT)
        code = await asyncio.to_thread(self.child.wait, 30)
        allowed = {0, -signal.SIGTERM} if number == signal.SIGTERM else set()
        if code not in {-signal.SIGKILL, *allowed}:
            said = self._errors.read_text(errors="replace")[-4_000:]
            raise AssertionError(f"worker {self.slot} ended with {code}:\n{said}")

    def gone(self) -> bool:
        """Whether it has ended."""
        return self.child.poll() is not None


class Run:
    """One seed: a log, worker processes, and what happens to them."""

    def __init__(self, seed: int, directory: Path, *, events: int = EVENTS) -> None:
        self.rng = random.Random(seed)
        self.log = directory / "crash.db"
        self.events = events
        names = list(POINTS)
        self.point = names[seed % len(names)]
        self.program = build(broker=f"local://{self.log}", state_dir=directory / "unused")
        self.checker = Checker(self.program)
        self.processes: list[Process] = []
        self._positions: dict[TopicPartition, int] = {}
        self._slots = 0
        self.times: dict[str, float] = {}

    async def run(self) -> bool:
        """Everything; tells whether a process has died at the seed's point."""
        began = time.monotonic()

        def note(what: str) -> None:
            self.times[what] = round(time.monotonic() - began, 1)

        try:
            async with self.program.app.running(worker=False):
                for _ in range(self.rng.randint(1, 3)):
                    self.start()
                feeding = asyncio.create_task(self.feed(0, self.events - BATCH))
                try:
                    await self.trouble(feeding)
                    await feeding
                finally:
                    feeding.cancel()
                if self.point != "group.left" and not self.has_died():
                    await self.insist()
                await self.feed(self.events - BATCH, self.events)
                note("fed")
                await self.until_complete()
                note("complete")
                died = self.has_died()
                await asyncio.gather(*(p.end(signal.SIGTERM) for p in self.living()))
                view = await self.view()
                self.checker.check(view, complete=True)
                self.check_stores(view)
                note("checked")
                return died
        finally:
            for process in self.processes:
                process.tell(signal.SIGKILL)
                process.child.wait(30)

    def has_died(self) -> bool:
        """Whether a process has died at the seed's point."""
        return Path(f"{self.log}.died-at-{self.point}").exists()

    def living(self) -> list[Process]:
        """Processes that were not ended."""
        return [process for process in self.processes if not process.ended]

    def start(self, slot: str = "", point: str = "", *, at_once: bool = False) -> Process:
        """A new process, on a slot of its own or on that of a dead one."""
        if not slot:
            slot = f"slot-{self._slots}"
            self._slots += 1
        at_once = at_once or point.startswith(("recovery", "group"))
        count = 1 if at_once else self.rng.randint(1, 25)
        process = Process(self.log, slot, point, count)
        self.processes.append(process)
        return process

    async def feed(self, begin: int, end: int) -> None:
        """Send events; all of them take about two seconds."""
        rng = self.rng
        pauses = (-1,) * 12 + (0, 1, 5)
        for first in range(begin, end, BATCH):
            listed = [
                Event(
                    number,
                    rng.choice(KEYS),
                    rng.choice(GROUPS),
                    stall=rng.choice(pauses),
                    note=rng.choice(pauses),
                    slow=rng.randint(0, 15),
                    fails=rng.choice((0,) * 1_500 + (1, ALWAYS)),
                )
                for number in range(first, first + BATCH)
            ]
            await self.program.events.send_many(listed)
            await asyncio.sleep(2.5 * BATCH / self.events)

    async def trouble(self, feeding: asyncio.Task[None]) -> None:
        """While the feeder sends: kill, stop, wake, start; and one process dies at the seed's point."""
        rng = self.rng
        await asyncio.sleep(rng.uniform(0.5, 1.2))
        doomed = self.start(point=self.point)
        waking: list[asyncio.Task[None]] = []
        while not feeding.done():
            await asyncio.sleep(rng.uniform(0.05, 0.5))
            await self.note_positions()
            living = [p for p in self.living() if p is not doomed and not p.stopped]
            choice = rng.random()
            if choice < 0.35 and living:
                await self.replace(rng.choice(living), lose=rng.random() < 0.3)
            elif choice < 0.6 and living:
                waking.append(asyncio.create_task(self.stop(rng.choice(living))))
            elif len(self.living()) < 4:
                self.start()
        if waking:
            await asyncio.gather(*waking)
        if self.point == "group.left":
            await self.until_complete()
            doomed.tell(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.to_thread(doomed.child.wait, 20)

    async def insist(self) -> None:
        """A slow machine did not come to the seed's point: all the work is for one process, which will.

        It has no state on disk, all the shards, and something left to commit.
        """
        await self.until_complete()  # there is something to recover
        await asyncio.gather(*(process.end() for process in self.living()))
        self.start(point=self.point, at_once=True)

    async def replace(self, process: Process, *, lose: bool) -> None:
        """Kill a process, and start another in its place, perhaps without its state."""
        await process.end()
        if lose:
            shutil.rmtree(self.log.parent / ".millstream" / APP / process.slot, ignore_errors=True)
        self.start(process.slot)

    async def stop(self, process: Process) -> None:
        """Stop a process beyond its lease, and wake it."""
        process.stopped = True
        process.tell(signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S)
        process.tell(signal.SIGCONT)
        process.stopped = False

    async def until_complete(self) -> None:
        """Until everything is processed; the dead are replaced."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            for process in self.living():
                if process.gone():
                    await process.end()
                    self.start(process.slot)
            await asyncio.sleep(0.2)
            await self.note_positions()
            if asyncio.get_running_loop().time() < deadline and not await self.is_read():
                continue
            view = await self.view()
            try:
                self.checker.check(view, complete=True)
            except Violation:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            else:
                return

    # looking at the log -------------------------------------------------------------------------

    def transport(self) -> Transport:
        """The feeder's view of the log."""
        runtime = self.program.app.runtime
        assert runtime is not None
        return runtime.transport

    async def positions(self) -> dict[TopicPartition, OffsetAndMetadata]:
        """Committed positions of all topics."""
        tps = [
            TopicPartition(name, partition)
            for name, info in (await self.transport().topics()).items()
            for partition in range(info.partitions)
        ]
        return await self.transport().committed(APP, tps)

    async def note_positions(self) -> None:
        """Positions never go back."""
        for tp, (offset, _) in (await self.positions()).items():
            if offset < self._positions.get(tp, 0):
                raise AssertionError(f"{tp}: position {offset} after {self._positions[tp]}")
            self._positions[tp] = offset

    async def is_read(self) -> bool:
        """Whether committed positions are at the ends."""
        topics = ("events", "numbered", self.checker.group_topic)
        tps = [TopicPartition(name, number) for name in topics for number in range(PARTITIONS)]
        ends = await self.transport().end_offsets(tps)
        return all(self._positions.get(tp, 0) == end for tp, end in ends.items())

    async def view(self) -> LogView:
        """Positions, and all records."""
        transport = self.transport()
        positions = await self.positions()
        records: dict[TopicPartition, list[Entry]] = {}
        tps = [
            TopicPartition(name, partition)
            for name, info in (await transport.topics()).items()
            for partition in range(info.partitions)
        ]
        at = await transport.start_offsets(tps)
        ends = await transport.end_offsets(tps)
        reader = transport.reader()
        while at := {tp: offset for tp, offset in at.items() if offset < ends[tp]}:
            for found in await reader.fetch(at, max_bytes=8 << 20, max_wait_s=0.0):
                listed = records.setdefault(found.tp, [])
                for record in iterate_records(found.data, where=str(found.tp)):
                    if record.offset >= at[found.tp]:
                        listed.append(
                            Entry(record.offset, record.timestamp, record.key, record.value)
                        )
                at[found.tp] = found.next_offset
        await reader.close()
        return LogView(records, positions)

    def check_stores(self, view: LogView) -> None:
        """Each store on disk that has come to the end of its changelog is the fold of it."""
        checked = 0
        for slot in (self.log.parent / ".millstream" / APP).iterdir():
            backend = RocksBackend(slot)
            for name in backend.shards():
                partition = int(name.partition("-")[2])
                store = backend.open(name)
                try:
                    for table in store.tables():
                        rows = dict(store.table(table).items())
                        position = decode_position(rows.get(POSITION_KEY))
                        log = view.of(changelog(table), partition)
                        if position is not None and log and position.offset > log[-1].offset:
                            check_store(view, table, partition, rows)
                            checked += 1
                finally:
                    store.close()
        assert checked


async def run_seed(seed: int) -> None:
    """Run a seed in a directory of its own, which stays when it fails."""
    directory = Path(tempfile.mkdtemp(prefix=f"millstream-crash-{seed}-"))
    try:
        run = Run(seed, directory)
        died = await run.run()
    except BaseException as exc:
        exc.add_note(f"seed {seed}, see {directory}")
        raise
    shutil.rmtree(directory, ignore_errors=True)
    ran.add(seed)
    logger.info("seed %d: %s", seed, run.times)
    if died:
        used.add(list(POINTS)[seed % len(POINTS)])


async def run_seeds(first: int) -> None:
    """Some seeds at once: most of the time of one is waiting for processes to start, and for leases to end."""
    async with asyncio.TaskGroup() as together:
        for seed in range(first, first + AT_ONCE):
            together.create_task(run_seed(seed))


@pytest.mark.parametrize("first", range(0, SEEDS, AT_ONCE))
async def test_nothing_is_lost_or_repeated(first: int) -> None:
    """Every input counts once in every table, every output is there once and in order, whatever happened."""
    await run_seeds(first)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(SEEDS, LONG_SEEDS, AT_ONCE))
async def test_nothing_is_lost_or_repeated_for_long(first: int) -> None:
    """The same with many more seeds."""
    await run_seeds(first)


def test_every_point_was_used() -> None:
    """Processes have died at every named point."""
    if not ran >= set(range(SEEDS)):
        pytest.skip("counts over all seeds, and some were not run")
    assert set(POINTS) - used == set()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("millstream").setLevel(logging.ERROR)
    for number in map(int, sys.argv[1:]):
        asyncio.run(run_seed(number))
