"""How long shards stand still: workers that are killed, that vanish, that are replaced; and what a replay costs.

Real processes on a real broker, which is started for it. A steady stream of events goes to every partition, and
what is measured is when a reader of committed data sees what became of them.

==========  ==================================================================================
killed      SIGKILL of one of three workers, to the first result of each of its shards from another one
vanished    the same where all of a worker's connections to the broker go silent and stay open, as with a machine that
            is gone, while the process lives on: a proxy lets nothing pass; on a broker of its own, with a session of 10 s
rolling     three workers with standbys are stopped and started one after the other: the longest time between
            two results of a shard, of those that moved and of those that did not
empty disk  a worker replays a changelog of many keys: records a second, and CPU a record
read alone  the same records fetched into a dict, for comparison
restart     the same worker again, on its disk: from starting the process to the first result
==========  ==================================================================================
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.recovery_worker import EVENTS, PARTITIONS, TAKEN, changelog_of
from millstream.records import OutgoingRecord, TopicPartition
from millstream.serialization import key_layout, partitioner
from millstream.transports.base import TopicSpec
from millstream.transports.batch import iterate_records
from millstream.transports.kafka import KafkaTransport
from tests.brokers import Program, unique
from tests.brokers.cluster import Cluster
from tests.brokers.listeners import PROXIED
from tests.brokers.proxy import proxies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["main"]

TICK_S = 0.05
"""Between two events of a shard: nothing shorter is seen."""
UNDISTURBED_S = 5.0
"""How long workers are watched before one of them is restarted."""
DEADLINE_S = 120.0
SESSION_S = 5.0
VANISHED_SESSION_S = 10.0
FILL_RECORDS = 50_000


@dataclass
class Measured:
    """Times in seconds, or a rate."""

    name: str
    unit: str
    count: int
    p50: float
    p99: float
    worst: float
    expected: str


def _measured(name: str, values: list[float], expected: str, *, unit: str = "s") -> Measured:
    ordered = sorted(values)
    return Measured(
        name,
        unit,
        len(ordered),
        statistics.median(ordered),
        ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
        ordered[0] if unit != "s" else ordered[-1],
        expected,
    )


class Group:
    """Workers of one app, a stream of events for them, and what is seen of their results."""

    def __init__(
        self, url: str, folder: Path, *, standbys: int, session_s: float = SESSION_S
    ) -> None:
        self.url, self.folder, self.standbys = url, folder, standbys
        self.session_s = session_s
        self.app = unique("bench")
        self.workers: dict[str, Program] = {}
        self.seen: dict[int, list[tuple[float, int]]] = defaultdict(list)
        """By shard: when a result was seen, and of which process."""
        self._shares: dict[str, dict[str, Any]] = {}
        self._keys = _keys()
        self._sent = 0

    @asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator[Group]:
        """With these workers, and events that go on and on."""
        async with KafkaTransport(self.url) as transport, asyncio.TaskGroup() as tasks:
            self.transport = transport
            await transport.create_topics(
                [
                    TopicSpec(name=f"{self.app}-{topic}", partitions=PARTITIONS)
                    for topic in (EVENTS, TAKEN)
                ]
            )
            serving = [tasks.create_task(self._watch()), tasks.create_task(self._send())]
            try:
                for name in names:
                    await self.start(name)
                if names:
                    await self.settled()
                yield self
            finally:
                for worker in self.workers.values():
                    worker.kill()
                for task in serving:
                    task.cancel()

    async def start(self, name: str, *, url: str | None = None) -> None:
        """One of them, which reaches the broker at another address where one is given."""
        worker = self.workers[name] = Program(
            "bench.recovery_worker",
            url or self.url,
            self.app,
            str(self.folder / self.app / name),
            str(self.standbys),
            f"{self.session_s}s",
            log=self.folder / f"{self.app}-{name}.log",
            ready="joined",
        )
        self._shares.pop(name, None)
        await asyncio.to_thread(worker.start)

    async def stop(self, name: str) -> None:
        """As an orderly restart does."""
        worker = self.workers.pop(name)
        os.kill(worker.pid, signal.SIGTERM)
        await self.until(lambda: not worker.alive, f"the end of {name}")

    def owned(self, name: str) -> list[int]:
        """A worker's shards, as it said last."""
        for facts in _said(self.workers[name]):
            if "shares" in facts:
                self._shares[name] = facts["shares"]
        return list(self._shares.get(name, {}).get("owned", ()))

    async def settled(self) -> None:
        """Every shard has an owner that is ready, in equal shares, and copies are warm."""

        def rests() -> bool:
            sizes = [len(self.owned(name)) for name in self.workers]
            shares = [self._shares.get(name, {}) for name in self.workers]
            return (
                sum(sizes) == PARTITIONS
                and max(sizes) - min(sizes) <= 1
                and all(each.get("ready") and each.get("warm") for each in shares)
                and sum(each["copies"] for each in shares)
                == PARTITIONS * min(self.standbys, len(sizes) - 1)
            )

        await self.until(rests, "a group at rest")
        now = time.perf_counter()
        await self.until(
            lambda: all(self._last(number) > now for number in range(PARTITIONS)), "results"
        )

    async def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for something."""
        patience = time.perf_counter() + DEADLINE_S
        while not holds():
            if time.perf_counter() > patience:
                logs = "\n".join(worker.tail() for worker in self.workers.values())
                raise TimeoutError(f"{what} has not come within {DEADLINE_S:g} s\n{logs}")
            await asyncio.sleep(0.01)

    def _last(self, number: int) -> float:
        return self.seen[number][-1][0] if self.seen[number] else 0.0

    def first_of_others(self, number: int, pid: int, since: float) -> float | None:
        """When a result of a shard was seen that another process has made."""
        for at, who in reversed(self.seen[number]):
            if at < since:
                return None
            if who != pid:
                before = [a for a, w in self.seen[number] if a >= since and w != pid]
                return before[0]
        return None

    def longest_gap(self, number: int, since: float) -> float:
        """Between two results of a shard."""
        times = [since, *(at for at, _ in self.seen[number] if at >= since)]
        return max(later - earlier for earlier, later in itertools.pairwise(times))

    async def _send(self) -> None:
        while True:
            began = time.perf_counter()
            self._sent += 1
            value = b"%d" % self._sent
            now = int(time.time() * 1_000)
            await self.transport.append(
                {
                    TopicPartition(f"{self.app}-{EVENTS}", number): [
                        OutgoingRecord(now, self._keys[number], value, [])
                    ]
                    for number in range(PARTITIONS)
                }
            )
            await asyncio.sleep(max(0.0, TICK_S - (time.perf_counter() - began)))

    async def _watch(self) -> None:
        tps = [TopicPartition(f"{self.app}-{TAKEN}", number) for number in range(PARTITIONS)]
        positions = dict.fromkeys(tps, 0)
        reader = self.transport.reader()
        try:
            while True:
                for fetched in await reader.fetch(positions, max_bytes=1 << 20, max_wait_s=0.5):
                    now = time.perf_counter()
                    at = positions[fetched.tp]
                    for record in iterate_records(fetched.data, where="taken", position=at):
                        number, pid, _ = json.loads(record.value or b"")
                        self.seen[number].append((now, pid))
                    positions[fetched.tp] = fetched.next_offset
        finally:
            await reader.close()


def _said(worker: Program) -> list[dict[str, Any]]:
    found = []
    for line in worker.log.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def _keys() -> list[bytes]:
    """A key for each partition."""
    place = partitioner("murmur2")
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < PARTITIONS:
        key = b"key-%d" % number
        found.setdefault(place(key, PARTITIONS), key)
        number += 1
    return [found[number] for number in range(PARTITIONS)]


# what is measured -------------------------------------------------------------------------------------


async def _killed(url: str, folder: Path, rounds: int) -> list[Measured]:
    """One of three workers is killed, each time in another group."""
    took: list[float] = []
    for turn in range(rounds):
        async with Group(url, folder, standbys=1).running("a", "b", "c") as group:
            name = "abc"[turn % 3]
            took += await _taken_over(group, name, group.workers[name].kill)
    return [_measured("killed", took, "p50 2, p99 4")]


async def _vanished(cluster: Cluster, folder: Path, rounds: int) -> list[Measured]:
    """All connections of one of three workers to the broker go silent, each time in another group."""
    took: list[float] = []
    through = f"kafka://{cluster.address(PROXIED.name)}"
    for _ in range(rounds):
        with proxies(cluster) as (proxy,):
            group = Group(cluster.url, folder, standbys=1, session_s=VANISHED_SESSION_S)
            async with group.running():
                await group.start("a")
                await group.start("b")
                await group.start("c", url=through)
                await group.settled()
                took += await _taken_over(group, "c", proxy.silence)
    return [_measured("vanished", took, f"{VANISHED_SESSION_S + 1:g} (session_timeout + 1)")]


async def _taken_over(group: Group, name: str, end: Callable[[], None]) -> list[float]:
    """For each shard of one of three workers: from its end to the first result of another one."""
    owned = group.owned(name)
    worker = group.workers.pop(name)
    pid, since = worker.pid, time.perf_counter()
    try:
        end()
        firsts: list[float | None] = []

        def back() -> bool:
            firsts[:] = [group.first_of_others(number, pid, since) for number in owned]
            return None not in firsts

        await group.until(back, "a result of each shard")
        return [at - since for at in firsts if at is not None]
    finally:
        worker.kill()


async def _rolling(url: str, folder: Path, rounds: int) -> list[Measured]:
    """Three workers are replaced, one after the other."""
    moved: list[float] = []
    stayed: list[float] = []
    undisturbed: list[float] = []
    async with Group(url, folder, standbys=1).running("a", "b", "c") as group:
        for _ in range(rounds):
            for name in "abc":
                began = time.perf_counter()
                await asyncio.sleep(UNDISTURBED_S)
                undisturbed += [group.longest_gap(number, began) for number in range(PARTITIONS)]
                began = time.perf_counter()
                before = {n: who for who in group.workers for n in group.owned(who)}
                pids = {who: worker.pid for who, worker in group.workers.items()}
                await group.stop(name)
                await group.start(name)
                await group.settled()
                await asyncio.sleep(10 * TICK_S)
                for number, who in before.items():
                    made_by = {pid for at, pid in group.seen[number] if at >= began}
                    where = stayed if made_by == {pids[who]} else moved
                    where.append(group.longest_gap(number, began))
    found = [
        _measured("rolling: shards that move", moved, "p99 1"),
        _measured("rolling: nobody restarts", undisturbed, ""),
    ]
    if stayed:
        found.append(_measured("rolling: shards that stay", stayed, "as if nobody restarted"))
    return found


async def _replayed(url: str, folder: Path, keys: int) -> list[Measured]:
    """A worker on an empty disk, and again on the disk that it has left; after SIGTERM and after SIGKILL."""
    found = []
    async with Group(url, folder, standbys=0).running("first") as group:
        # it has noted of which type the values are; else each of them would be decoded once
        await group.stop("first")
        await _fill(group, keys)
        await group.start("a")
        report: dict[str, float] = {}

        def recovered() -> bool:
            for facts in _said(group.workers["a"]):
                report.update(facts.get("recovered", {}))
            return bool(report)

        patience = time.perf_counter() + max(DEADLINE_S, keys / 20_000)
        while not recovered():
            if time.perf_counter() > patience:
                raise TimeoutError(group.workers["a"].tail())
            await asyncio.sleep(0.1)
        rate = report["records"] / report["wall_s"]
        cpu_us = report["cpu_s"] / report["records"] * 1e6
        bare, bare_cpu_us = await _read_alone(group)
        found.append(_measured("empty disk", [rate], "400,000", unit="records/s"))
        found.append(_measured("empty disk, CPU", [cpu_us], "", unit="us/record"))
        found.append(_measured("read alone", [bare], "", unit="records/s"))
        found.append(_measured("read alone, CPU", [bare_cpu_us], "", unit="us/record"))
        await group.settled()
        for how, expected in (("restart", "3"), ("restart after SIGKILL", "")):
            pid = group.workers["a"].pid
            if how == "restart":
                await group.stop("a")
            else:
                group.workers.pop("a").kill()
            since = time.perf_counter()
            starting = asyncio.create_task(group.start("a"))

            def firsts(pid: int = pid, since: float = since) -> list[float]:
                each = (group.first_of_others(n, pid, since) for n in range(PARTITIONS))
                return [at for at in each if at is not None]

            await group.until(lambda: bool(firsts()), "the first result")
            await starting
            found.append(_measured(how, [min(firsts()) - since], expected))
            await group.settled()
    return found


async def _read_alone(group: Group) -> tuple[float, float]:
    """The least that it can cost: fetch the same records into a dict. Records a second, and CPU in us for one."""
    topic = changelog_of(group.app)
    tps = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    ends = await group.transport.end_offsets(tps)
    positions = {tp: 0 for tp in tps if ends[tp]}
    reader = group.transport.reader()
    entries: dict[bytes | None, bytes | None] = {}
    count, wall, cpu = 0, time.perf_counter(), time.process_time()
    while positions:
        for fetched in await reader.fetch(positions, max_bytes=4 << 20, max_wait_s=1.0):
            for record in iterate_records(
                fetched.data, where=topic, position=positions[fetched.tp]
            ):
                entries[record.key] = record.value
                count += 1
            positions[fetched.tp] = fetched.next_offset
            if fetched.next_offset >= ends[fetched.tp]:
                del positions[fetched.tp]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await reader.close()
    return count / wall, cpu / count * 1e6


async def _fill(group: Group, keys: int) -> None:
    """Write changes as a worker would, many of them."""
    layout, topic = key_layout(str), changelog_of(group.app)
    now = int(time.time() * 1_000)
    for first in range(0, keys, FILL_RECORDS):
        records: dict[TopicPartition, list[OutgoingRecord]] = defaultdict(list)
        for number in range(first, min(keys, first + FILL_RECORDS)):
            key = layout.encode(f"customer-{number:09}")
            records[TopicPartition(topic, number % PARTITIONS)].append(
                OutgoingRecord(now, key, b"%d" % number, [])
            )
        await group.transport.append(records)


def main(
    suites: list[str], *, rounds: int, keys: int, output: str | None, broker: str | None = None
) -> int:
    """Measure, print a table, and write JSON.

    Args:
        broker: where it is, instead of one that is started for this; not for ``vanished``.
    """
    found: list[Measured] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millstream-bench-")))
        own: Cluster | None = None
        if broker is None or "vanished" in suites:
            own = stack.enter_context(Cluster())
        url = broker or (own.url if own is not None else "")
        for suite in suites:
            if suite == "rolling":
                measured = asyncio.run(_rolling(url, folder, max(1, rounds // 3)))
            elif suite == "empty-disk":
                measured = asyncio.run(_replayed(url, folder, keys))
            elif suite == "vanished":
                assert own is not None
                measured = asyncio.run(_vanished(own, folder, max(1, rounds // 3)))
            else:
                measured = asyncio.run(_killed(url, folder, rounds))
            for one in measured:
                _print(one)
            found += measured
    if output:
        result = {
            "python": sys.version.split()[0],
            "cpus": os.cpu_count(),
            "rounds": rounds,
            "keys": keys,
            "measured": [asdict(one) for one in found],
        }
        Path(output).write_text(json.dumps(result, indent=2) + "\n")
    return 0


def _print(one: Measured) -> None:
    digits = 2 if one.p50 < 1_000 else 0
    expected = f"  expected: {one.expected}" if one.expected else ""
    print(
        f"{one.name:26} p50 {one.p50:11,.{digits}f} p99 {one.p99:11,.{digits}f}"
        f" worst {one.worst:11,.{digits}f} {one.unit:9} of {one.count}{expected}",
        flush=True,
    )
