"""The streams DSL on the embedded log: against agents that do the same, and against itself with more keys and windows.

Changelogs, RocksDB and exactly-once epochs are on. What is measured is CPU of the whole process per event; a rate is
that of one core, ``1 / CPU per event``. Ratios are of runs that follow one another in one process: agent and
DSL take turns, and the least of each counts.

Most rows go through a log that is full already, as fast as they can: epochs are long then, and where keys are few all of
an epoch's changes of a key become one. Rows that say *live* are fed by another process at a steady rate, as a worker is
that keeps up: epochs are short, and nearly every record has a key of its own in them.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import millstream as ms
from bench.dsl_programs import JOINS, PAIRS, WINDOWS, many_keys, many_windows
from bench.program import Event
from millstream.state.rocks import RocksBackend
from millstream.worker import tune_garbage_collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.dsl_programs import Program
    from millstream.transports.base import Transport
    from millstream.worker import Worker

__all__ = ["GROUPS", "KEYED", "Sizes", "main"]

GROUPS = ("pairs", "joins", "keys", "windows")
KEYED = ("count", "tumbling", "stream-stream", "table-table")
FEED_AT_ONCE = 20_000
LOOKED_UP_AT_ONCE, WRITTEN_AT_ONCE = 64, 512
"""As the engine does."""
PAIR_ALLOWED, FLAT_ALLOWED = 1.3, 1.5
STEP_S = 0.01
"""What is due at a steady rate is sent this often."""
WARM_S = 2.0
"""Of a steady feed, before the measurement begins, at most."""
FEED_FOR = 3
"""A steady feed ends by itself after so many times what is measured."""
LATE_ALLOWED = 0.1
QUIET_CPU_S, QUIET_ROUNDS_MAX = 0.1, 600
"""All is tidied up when a round of upkeep, and a while without, use no more CPU; so many rounds are waited for that."""


@dataclass
class Row:
    """One line of the table. CPU is in us per event, of the whole process."""

    group: str
    name: str
    events: int
    cpu_us: float
    events_per_s: float = 0.0
    ratio: float | None = None
    ratio_allowed: float | None = None
    events_per_s_wanted: int | None = None

    def __post_init__(self) -> None:
        self.events_per_s = 1e6 / self.cpu_us

    @property
    def missed(self) -> bool:
        """Whether it is not what it should be."""
        over = self.ratio and self.ratio_allowed and self.ratio > self.ratio_allowed
        under = self.events_per_s_wanted and self.events_per_s < self.events_per_s_wanted
        return bool(over or under)

    def __str__(self) -> str:
        text = f"{self.group:8} {self.name:30} {self.events_per_s:10,.0f} events/s {self.cpu_us:7.2f} us"
        if self.ratio is not None:
            text += f"  {self.ratio:5.2f} x"
        if self.ratio_allowed is not None:
            text += f" (at most {self.ratio_allowed:g})"
        if self.events_per_s_wanted is not None:
            text += f"  (at least {self.events_per_s_wanted:,})"
        return text + ("  MISSED" if self.missed else "")


@dataclass(frozen=True)
class Sizes:
    """How much is run."""

    events: int
    keys: int
    keys_max: int
    windows: int
    """Windows in all."""
    windows_max: int
    """Windows of a key."""
    rounds: int
    rate: int
    """Events a second of what is fed live."""
    live_s: float
    quiet_s: float
    """Without any work before a live measurement begins."""


class Bench:
    """Runs programs on logs below a directory."""

    def __init__(self, directory: Path, sizes: Sizes) -> None:
        self._directory = directory
        self._sizes = sizes
        self.rows: list[Row] = []

    def app(self, log: str, name: str, program: Program, **options: Any) -> tuple[ms.App, Any]:
        """An app on a log, with the topics of a program."""
        app = ms.App(name, broker=f"local://{self._directory / log}.db", web=False)
        topics = {
            topic: app.topic(topic, value=Event, key_from="key", **options)
            for topic in program.topics
        }
        return app, topics

    async def feed(self, log: str, program: Program, count: int, keys: int) -> int:
        """Fill the topics; how many records there are."""
        app, topics = self.app(log, "feed", program, timestamp="ts")
        rows: Iterator[Any] = program.feed(count, keys)
        total = 0
        async with app.running(worker=False):
            while batch := list(islice(rows, FEED_AT_ONCE)):
                total += len(batch)
                for name, topic in topics.items():
                    await topic.send_many([value for at, value in batch if at == name])
        return total

    async def run(
        self, log: str, name: str, program: Program, total: int, skip: int = 0, done: int = 0
    ) -> tuple[int, float]:
        """Process what is in the topics, until it is committed.

        Args:
            skip: records that are processed before the measurement begins, about.
            done: records that were processed by an earlier run.

        Returns:
            How many events were measured, and the CPU of one in us.
        """
        app, topics = self.app(log, name, program)
        program.declare(app, topics)
        async with app.running():
            assert app.runtime is not None
            worker = app.runtime.worker
            assert worker is not None
            await worker.ready.wait()
            committed = asyncio.Event()
            worker.committer.listeners.append(lambda cut: committed.set())
            began, cpu = done, time.process_time()
            while (now := _processed(worker, program.topics)) < total:
                if skip and (now < skip or not began):
                    began, cpu = now, time.process_time()
                committed.clear()
                await committed.wait()
            if program.waits:
                await _to_the_end(worker, app.runtime.transport, committed)
            cpu = time.process_time() - cpu
        return total - began, cpu / (total - began) * 1e6

    def add(self, row: Row) -> None:
        """Keep and show a row."""
        self.rows.append(row)
        print(row, flush=True)

    # groups ---------------------------------------------------------------------------------------

    def pairs(self) -> None:
        """The same program as agent and as DSL."""
        sizes = self._sizes
        for name, (agent, dsl) in PAIRS.items():
            total = asyncio.run(self.feed(name, agent, sizes.events, sizes.keys))
            skip = total - sizes.events
            costs: dict[str, list[float]] = {"agent": [], "dsl": []}
            for number in range(sizes.rounds):
                for kind, program in (("agent", agent), ("dsl", dsl)):
                    app = f"{kind}-{number}"
                    _, cpu_us = asyncio.run(self.run(name, app, program, total, skip))
                    costs[kind].append(cpu_us)
            low = min(costs["agent"])
            self.add(Row("pairs", f"{name} agent", sizes.events, low))
            self.add(
                Row(
                    "pairs",
                    f"{name} dsl",
                    sizes.events,
                    min(costs["dsl"]),
                    ratio=min(costs["dsl"]) / low,
                    ratio_allowed=PAIR_ALLOWED,
                )
            )

    def joins(self) -> None:
        """What joins cost."""
        sizes = self._sizes
        for name, (program, wanted) in JOINS.items():
            log = name.replace(" ", "-")
            total = asyncio.run(self.feed(log, program, sizes.events, sizes.keys))
            cpu_us = min(
                asyncio.run(self.run(log, f"join-{number}", program, total))[1]
                for number in range(sizes.rounds)
            )
            self.add(Row("joins", name, total, cpu_us, events_per_s_wanted=wanted))

    def keys(self, kinds: Sequence[str] = KEYED) -> None:
        """The same with more keys.

        The state is filled by a run of its own: epochs are long where much has changed, so what is committed tells
        little about what has been done for the records behind it. The first rows are what nobody gets around who
        keeps so many keys in RocksDB: one look-up and one write for each event, and nothing else.
        """
        sizes = self._sizes
        first: float | None = None
        first_live: float | None = None
        for keys in (sizes.keys, sizes.keys_max):
            cpu_us = self._store_alone(keys)
            self.add(_flat("keys", f"store alone {keys:,} keys", sizes.events, cpu_us, first, None))
            first = first or cpu_us
        for kind in kinds:
            first = first_live = None
            for keys in (sizes.keys, sizes.keys_max):
                (filling, program), log = many_keys(kind, keys), f"keys-{kind}-{keys}"
                known = asyncio.run(self.feed(log, filling, sizes.events, keys))
                asyncio.run(self.run(log, "keys", filling, known))
                total = known + asyncio.run(self.feed(log, program, sizes.events, keys))
                _, cpu_us = asyncio.run(self.run(log, "keys", program, total, done=known))
                self.add(_flat("keys", f"{kind} {keys:,} keys", total - known, cpu_us, first))
                first = first or cpu_us
                count, cpu_us = asyncio.run(self._live(log, kind, keys))
                self._remove(log)
                self.add(_flat("keys", f"{kind} {keys:,} keys live", count, cpu_us, first_live))
                first_live = first_live or cpu_us

    async def _live(self, log: str, kind: str, keys: int) -> tuple[int, float]:
        """Go on with records that come at a steady rate; how many were measured, and the CPU of one in us."""
        sizes = self._sizes
        warm_s = min(WARM_S, sizes.live_s)
        _, program = many_keys(kind, keys)
        app, topics = self.app(log, "keys", program)
        program.declare(app, topics)
        feeder = multiprocessing.get_context("spawn").Process(
            target=feed_live, args=(self._directory, log, kind, keys, sizes)
        )
        async with app.running():
            assert app.runtime is not None
            worker = app.runtime.worker
            assert worker is not None
            await worker.ready.wait()
            await _tidied(app.runtime.transport, sizes.quiet_s)
            begun = _processed(worker, program.topics)
            feeder.start()
            try:
                while _processed(worker, program.topics) < begun + warm_s * sizes.rate:
                    await asyncio.sleep(STEP_S)
                    assert not feeder.exitcode, "the feeder failed"
                begun, cpu = _processed(worker, program.topics), time.process_time()
                await asyncio.sleep(sizes.live_s)
                count = _processed(worker, program.topics) - begun
                cpu = time.process_time() - cpu
            finally:
                feeder.terminate()
                feeder.join()
        late = 1 - count / (sizes.rate * sizes.live_s)
        if late > LATE_ALLOWED:
            print(f"the next row fell {late:.0%} short of {sizes.rate:,} events/s")
        return count, cpu / count * 1e6

    def _store_alone(self, keys: int) -> float:
        """CPU in us of a look-up and a write of a small value in a table of so many keys, many at once."""
        choose = random.Random(1)
        backend = RocksBackend(self._directory / "store")
        store = backend.open("0")
        table = store.table("counts")
        for at in range(0, keys, WRITTEN_AT_ONCE):
            rows = range(at, min(keys, at + WRITTEN_AT_ONCE))
            store.write({"counts": {b"key-%d" % number: b"0" * 10 for number in rows}})
        store.flush()
        chosen = [b"key-%d" % choose.randrange(keys) for _ in range(self._sizes.events)]
        cpu = time.process_time()
        for at in range(0, len(chosen), WRITTEN_AT_ONCE):
            written = chosen[at : at + WRITTEN_AT_ONCE]
            for first in range(0, len(written), LOOKED_UP_AT_ONCE):
                table.get_many(written[first : first + LOOKED_UP_AT_ONCE])
            store.write({"counts": dict.fromkeys(written, b"1" * 10)})
        cpu = time.process_time() - cpu
        store.close()
        backend.destroy("0")
        return cpu / len(chosen) * 1e6

    def windows(self) -> None:
        """The same with more of the windows in one key's hands."""
        sizes = self._sizes
        for kind in WINDOWS:
            first: float | None = None
            for open_windows in (1, sizes.windows_max):
                program, log = many_windows(kind, open_windows), f"windows-{kind}-{open_windows}"
                total = asyncio.run(self.feed(log, program, sizes.events, sizes.windows))
                _, cpu_us = asyncio.run(self.run(log, "windows", program, total))
                self._remove(log)
                name = f"{kind} {open_windows:,} open a key"
                self.add(_flat("windows", name, total, cpu_us, first))
                first = first or cpu_us

    def _remove(self, log: str) -> None:
        for path in self._directory.glob(f"{log}.db*"):
            path.unlink(missing_ok=True)


def _flat(
    group: str,
    name: str,
    events: int,
    cpu_us: float,
    first: float | None,
    allowed: float | None = FLAT_ALLOWED,
) -> Row:
    if first is None:
        return Row(group, name, events, cpu_us)
    return Row(group, name, events, cpu_us, ratio=cpu_us / first, ratio_allowed=allowed)


def _processed(worker: Worker, topics: Sequence[str]) -> int:
    return sum(
        offset
        for shard in worker.shards.values()
        for tp, offset in shard.committed.items()
        if tp.topic in topics
    )


async def _tidied(transport: Transport, quiet_s: float) -> None:
    """Have the log compacted, and wait for RocksDB, so that nothing is left to do for what was there before."""
    for _ in range(QUIET_ROUNDS_MAX):
        cpu = time.process_time()
        await transport.maintain()
        if time.process_time() - cpu < QUIET_CPU_S:
            await asyncio.sleep(quiet_s)
            if time.process_time() - cpu < QUIET_CPU_S:
                return


def feed_live(directory: Path, log: str, kind: str, keys: int, sizes: Sizes) -> None:
    """Send records at a steady rate, in a process of its own, until it is ended."""
    bench = Bench(directory, sizes)
    count = int(sizes.rate * (WARM_S + sizes.live_s) * FEED_FOR)
    _, program = many_keys(kind, keys, after=sizes.events)
    app, topics = bench.app(log, "feed", program, timestamp="ts")
    rows = list(program.feed(count, keys))

    async def send() -> None:
        async with app.running(worker=False):
            began, sent = time.perf_counter(), 0
            while sent < count:
                due = int((time.perf_counter() - began) * sizes.rate)
                for name, topic in topics.items():
                    await topic.send_many([value for at, value in rows[sent:due] if at == name])
                sent = due
                await asyncio.sleep(STEP_S)

    asyncio.run(send())


async def _to_the_end(worker: Worker, transport: Any, committed: asyncio.Event) -> None:
    """Wait until the topics between the operators have been read as well."""
    while True:
        committed.clear()
        positions = {
            tp: offset for shard in worker.shards.values() for tp, offset in shard.committed.items()
        }
        ends = await transport.end_offsets(list(positions))
        if all(positions[tp] >= end for tp, end in ends.items()):
            return
        await committed.wait()


def main(groups: Sequence[str], sizes: Sizes, output: str | None) -> int:
    """Measure, print a table, and write JSON."""
    tune_garbage_collector()  # as `millstream worker` does
    with tempfile.TemporaryDirectory(prefix="millstream-bench-") as name:
        bench = Bench(Path(name), sizes)
        for group in groups:
            getattr(bench, group)()
    if output:
        result = {
            "python": sys.version.split()[0],
            "cpus": os.cpu_count(),
            "sizes": asdict(sizes),
            "rows": [{**asdict(row), "missed": row.missed} for row in bench.rows],
        }
        Path(output).write_text(json.dumps(result, indent=2) + "\n")
    missed = [row for row in bench.rows if row.missed]
    print(f"{len(missed)} of {len(bench.rows)} rows missed what they should reach")
    return 0
