"""Copies of shards on a real broker, between processes that are killed, stopped and started again."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.brokers import Program, Record, unique

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.brokers import Kafka

KEYS = [f"key-{number}" for number in range(30)]
PARTITIONS = 6
DEADLINE_S = 60.0
MARKERS = 2 * PARTITIONS * 2
"""Ends of transactions: offsets that a worker reads again although they are no records, a few for each table."""


class Workers:
    """Processes of `tests.integration.counting`, each with state of its own."""

    def __init__(self, kafka: Kafka, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        self.app, self.topic = unique("copies"), kafka.topic("words", partitions=PARTITIONS)
        self.session = "10s"
        self.programs: dict[str, Program] = {}
        self.written = 0

    async def start(self, name: str) -> None:
        """One of them."""
        worker = self.programs[name] = Program(
            "tests.integration.counting",
            self.kafka.url,
            self.app,
            self.topic,
            str(self.folder / name),
            self.session,
            log=self.folder / f"{name}.log",
        )
        await asyncio.to_thread(worker.start)

    async def report(self, name: str) -> dict[str, Any]:
        """How it is."""
        self.programs[name].tell("how are you")
        found: dict[str, Any] = await self.programs[name].hear("report")
        return found

    async def until(
        self, fits: Callable[[dict[str, dict[str, Any]]], object], what: str
    ) -> dict[str, dict[str, Any]]:
        """Wait until the reports of all that run fit."""
        patience = time.monotonic() + DEADLINE_S
        while True:
            found = {n: await self.report(n) for n, p in self.programs.items() if p.alive}
            if fits(found):
                return found
            assert time.monotonic() < patience, f"{what} has not come: {found}"
            await asyncio.sleep(0.1)

    async def shared(self, sizes: list[int], *, copies: int) -> dict[str, dict[str, Any]]:
        """Wait until so many shards are with each, ready, and the copies are where they belong."""

        def fits(found: dict[str, dict[str, Any]]) -> bool:
            return (
                sorted(len(each["owned"]) for each in found.values()) == sizes
                and all(each["ready"] and not each["warming"] for each in found.values())
                and sum(len(each["copied"]) for each in found.values()) == copies
                and sum(each["lag"] for each in found.values()) <= MARKERS
            )

        return await self.until(fits, f"a group of {sizes} with {copies} copies")

    async def write(self, times: int = 1) -> None:
        """Each word so many times."""
        words = [Record(key=key.encode(), value=f'"{key}"'.encode()) for key in KEYS * times]
        await asyncio.to_thread(self.kafka.write, self.topic, words, partitioner="murmur2")
        self.written += times

    async def counted(self) -> None:
        """Every word was counted once."""
        patience = time.monotonic() + DEADLINE_S
        while True:
            found = await asyncio.to_thread(self.kafka.read, f"{self.app}-totals")
            if len(found) >= self.written * len(KEYS):
                break
            assert time.monotonic() < patience, f"{len(found)} of {self.written * len(KEYS)}"
            await asyncio.sleep(0.1)
        by_key: dict[bytes | None, list[int]] = {}
        for record in found:
            by_key.setdefault(record.key, []).append(int(record.value or b""))
        assert by_key == {key.encode(): list(range(1, self.written + 1)) for key in KEYS}

    def kill(self, name: str) -> None:
        """As a machine does that runs out of memory."""
        self.programs.pop(name).kill()

    def end(self) -> None:
        """Kill what runs."""
        for name in list(self.programs):
            self.kill(name)


@pytest.fixture
def workers(kafka: Kafka, tmp_path: Path) -> Iterator[Workers]:
    """None of them runs yet."""
    made = Workers(kafka, tmp_path)
    yield made
    made.end()


def ask(url: str, key: str, **terms: str) -> dict[str, Any]:
    """A worker's answer over HTTP."""
    more = "&".join(f"{name}={value}" for name, value in terms.items())
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{url}/tables/counts/keys/{key}?{more}", timeout=30) as response:
        found: dict[str, Any] = json.loads(response.read())
        return found


async def test_standbys(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take over from a killed owner with the tail alone, and answer for one that does not answer any more."""
    monkeypatch.setenv("MILLSTREAM_STANDBY_REPLICAS", "1")
    await workers.start("a")
    await workers.write(100)
    await workers.counted()
    await workers.start("b")
    found = await workers.shared([3, 3], copies=6)
    assert found["a"]["followed"] <= MARKERS, "what it had is read again"
    assert found["a"]["rebuilt"] == {}
    # killed: what the other one has to read is what it has missed
    before = found["b"]["replayed"]
    workers.kill("a")
    await workers.write()
    found = await workers.shared([6], copies=0)
    assert found["b"]["replayed"] - before <= MARKERS
    await workers.counted()
    # back again, on its disk: copies first, which read what the disk lacks; then the shards move
    await workers.start("a")
    found = await workers.shared([3, 3], copies=6)
    assert found["a"]["replayed"] <= MARKERS
    assert found["a"]["rebuilt"] == {}
    await workers.write()
    await workers.counted()
    # stopped: its shards are asked of the other one
    stopped, asked = workers.programs["a"], found["b"]["url"]
    stopped.pause()
    try:
        for key in KEYS:
            answer = await asyncio.to_thread(ask, asked, key, stale="30s")
            assert answer["value"] == workers.written
        ages = [
            (await asyncio.to_thread(ask, asked, key, stale="30s")).get("stale_ms") for key in KEYS
        ]
        assert any(age is not None for age in ages)
    finally:
        stopped.resume()


async def test_back_on_its_disk(workers: Workers) -> None:
    """Who finds the disk of a killed worker does not wait for its session to end."""
    workers.session = "60s"
    await workers.start("a")
    await workers.write()
    await workers.counted()
    workers.kill("a")
    began = time.monotonic()
    await workers.start("a")
    await workers.shared([6], copies=0)
    await workers.write()
    await workers.counted()
    assert time.monotonic() - began < 30


async def test_a_place_in_the_group(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is back within the session finds everything as it was; who is not is replaced after it, and no sooner."""
    workers.session = "6s"
    for name in "ab":
        monkeypatch.setenv("MILLSTREAM_INSTANCE_ID", f"{workers.app}-{name}")
        await workers.start(name)
    await workers.write()
    found = await workers.shared([3, 3], copies=0)
    generation, owned = found["a"]["generation"], found["b"]["owned"]
    workers.kill("b")
    await workers.write()
    await workers.start("b")
    found = await workers.shared([3, 3], copies=0)
    await workers.counted()
    assert {each["generation"] for each in found.values()} == {generation}
    assert found["b"]["owned"] == owned
    # it stays away
    killed_at = time.monotonic()
    workers.kill("b")
    await workers.until(lambda found: len(found["a"]["owned"]) == 6, "all shards")
    assert time.monotonic() - killed_at > 3
    await workers.write()
    await workers.counted()


@pytest.mark.slow
async def test_places_that_are_given_away_at_once(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that is asked for, a killed worker is replaced as others are."""
    workers.session = "60s"
    monkeypatch.setenv("MILLSTREAM_EVICT_INSTANCES", "true")
    for name in "abc":
        monkeypatch.setenv("MILLSTREAM_INSTANCE_ID", f"{workers.app}-{name}")
        await workers.start(name)
    await workers.write()
    await workers.shared([2, 2, 2], copies=0)
    workers.kill("b")
    began = time.monotonic()
    await workers.shared([3, 3], copies=0)
    assert time.monotonic() - began < 30
    await workers.write()
    await workers.counted()
