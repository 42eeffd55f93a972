"""Answers of a running worker: committed data, positions, waiting for records, and old answers."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from millstream.app._app import App
from millstream.app._runtime import Runtime
from millstream.errors import BadQueryError, NotHereError, UnavailableError, UnknownTableError
from millstream.hooks import observe
from millstream.records import TopicPartition
from millstream.state.memory import MemoryBackend
from millstream.tables._query import (
    Changes,
    Page,
    Read,
    TableInfo,
)
from millstream.transports.memory import MemoryTransport
from millstream.worker import Worker
from millstream.worker import _queries as queries_module
from millstream.worker._queries import GroupQueries, LocalQueries
from millstream.worker._report import WorkerReport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEADLINE_S = 20.0


class Running:
    """An app that counts, and what answers for it."""

    def __init__(self) -> None:
        self.app = App("shop", broker="memory://test", state="memory")
        self.orders = self.app.topic("orders", value=int, key=str)
        self.totals = self.app.table("totals", key=str, value=int, default=0)
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        """Set when the agent has taken a number."""

        @self.app.agent(self.orders)
        async def count(stream: Any) -> None:
            async for key, amount in stream.items():
                self.begun.set()
                await self.gate.wait()
                self.totals[key] += amount

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Running]:
        """Run it."""
        transport = MemoryTransport(clock=self.app.clock)
        runtime = Runtime(self.app, transport=transport, state=MemoryBackend())
        async with runtime.running():
            assert runtime.worker is not None
            self.worker: Worker = runtime.worker
            self.transport = transport
            self.topology = runtime.topology
            declared = self.app.tables["totals"]
            spec = declared.spec(4, [])
            self.tables = {
                "totals": TableInfo(
                    name="totals",
                    layout=declared.layout,
                    codec=declared.codec,
                    partitions=spec.partitions,
                    place=spec.place,
                    partitioner=spec.partitioner,
                )
            }
            self.info = self.tables["totals"]
            self.queries = LocalQueries(self.worker, self.tables)
            await self.worker.ready.wait()
            yield self
            self.queries.close()

    def read(self, key: str | None = "ada", **more: Any) -> Read:
        """A question for one key, or for all."""
        if key is None:
            return Read(table="totals", shards=(0, 1, 2, 3), **more)
        data = self.info.layout.encode(key)
        return Read(table="totals", key=data, shards=(self.info.shard_of(data),), **more)

    async def send(self, key: str, amount: int) -> tuple[str, int, int]:
        """Send a number; where it is."""
        position = await self.orders.send(amount, key=key)
        assert position is not None
        return position.topic, position.partition, position.offset

    async def value(self, **more: Any) -> int | None:
        """The total of ada."""
        return found(await self.queries.read(self.read(**more)))


def found(page: Page) -> int | None:
    """The number in an answer for one key."""
    return int(page.entries[0].value) if page.entries else None


@pytest.fixture
async def shop() -> AsyncIterator[Running]:
    """The app, running."""
    async with asyncio.timeout(DEADLINE_S), Running().running() as running:
        yield running


async def test_read_your_writes(shop: Running) -> None:
    """An answer that has to reflect a record waits for its commit, and tells its position."""
    at = await shop.send("ada", 5)
    page = await shop.queries.read(shop.read(at_least=(at,)))
    assert found(page) == 5
    assert page.position == {f"orders/{at[1]}": at[2] + 1}
    assert page.stale_ms is None


async def test_only_what_is_committed(shop: Running) -> None:
    """An event in the middle shows nothing; a page of all shards has the position of each."""
    shop.gate.clear()
    at = await shop.send("ada", 5)
    waiting = asyncio.create_task(shop.value(at_least=(at,)))
    await shop.begun.wait()
    assert await shop.value() is None
    assert not waiting.done()
    shop.gate.set()
    assert await waiting == 5
    page = await shop.queries.read(shop.read(None))
    assert len(page.entries) == 1
    assert set(page.position) == {f"orders/{number}" for number in range(4)}


async def test_a_commit_that_is_half_written(shop: Running) -> None:
    """Who asks while the store takes a large commit, slice by slice, gets all of it or nothing."""
    asked: list[asyncio.Task[Page]] = []
    number = shop.read("ada").shards[0]
    names = [f"key-{n}" for n in range(8_000)]
    keys = [name for name in names if shop.read(name).shards == (number,)]
    everything = Read(table="totals", shards=(number,), limit=len(keys) + 1)
    (shard,) = [shard for (_, at), shard in shop.worker.shards.items() if at == number]
    (lane,) = shard.lanes.values()

    def ask(point: str, _: dict[str, object]) -> None:
        if point == "commit.applying":
            asked.append(asyncio.create_task(shop.queries.read(everything)))

    with observe(ask):
        async with shop.worker.committer.lock:  # one cut takes all of them
            for key in keys:
                await shop.orders.send(1, key=key)
            tp = TopicPartition("orders", number)
            while lane.position(tp) < len(keys):  # noqa: ASYNC110 - for an agent, which tells nobody
                await asyncio.sleep(0.001)
        while not asked or not all(task.done() for task in asked):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert len(asked) >= 3, "the commit was in one slice"
    assert {len(task.result().entries) for task in asked} <= {0, len(keys)}


async def test_records_that_do_not_come(shop: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting is bounded, and the error tells how far the shard is."""
    monkeypatch.setattr(queries_module, "AT_LEAST_TIMEOUT_S", 0.05)
    topic, partition, offset = await shop.send("ada", 5)
    with pytest.raises(
        UnavailableError, match=f"{topic}/{partition}@{offset + 9} was not processed"
    ):
        await shop.value(at_least=((topic, partition, offset + 9),))


@pytest.mark.parametrize("at", [("payments", 0, 1), ("orders", -1, 0)])
async def test_records_that_the_shard_does_not_read(
    shop: Running, at: tuple[str, int, int]
) -> None:
    """Behind a repartition, or in another partition, a record cannot be waited for."""
    topic, partition, offset = at
    if partition < 0:
        partition = (shop.read().shards[0] + 1) % 4
    with pytest.raises(BadQueryError, match="reads orders"):
        await shop.value(at_least=((topic, partition, offset),))
    if topic == "orders":
        await shop.send("x", 1)
        with pytest.raises(BadQueryError):
            await shop.queries.read(shop.read(None, at_least=(("payments", 0, 1),)))


async def test_what_is_not_here(shop: Running) -> None:
    """A shard of another worker and a table that does not exist are told apart."""
    with pytest.raises(NotHereError, match="Shard 7 of 4 is not owned"):
        await shop.queries.read(Read(table="totals", shards=(7,)))
    with pytest.raises(UnknownTableError, match="it has totals"):
        await shop.queries.read(Read(table="nope", shards=(0,)))
    shard = shop.worker.shards[4, 0]
    shard.ready.clear()
    with pytest.raises(NotHereError, match="being recovered"):
        await shop.queries.read(Read(table="totals", shards=(0,)))
    shard.ready.set()


async def test_a_worker_that_the_group_has_not_confirmed(shop: Running) -> None:
    """Its answers may be old: they are refused, or say their age where that was allowed."""
    await shop.value(at_least=(await shop.send("ada", 5),))
    assert shop.worker.membership is not None
    shop.worker.membership.current = lambda: False  # type: ignore[method-assign]
    with pytest.raises(UnavailableError, match="not confirmed"):
        await shop.value()
    page = await shop.queries.read(shop.read(stale_ms=60_000))
    assert found(page) == 5
    assert page.stale_ms is not None
    assert page.stale_ms < 60_000
    with pytest.raises(UnavailableError):
        await shop.value(stale_ms=0)


async def test_changes_are_those_of_commits(shop: Running) -> None:
    """Whoever follows sees the last value of each key that was committed, and of one key if asked."""
    everything = shop.queries.changes("totals")
    of_bob = shop.queries.changes("totals", shop.info.layout.encode("bob"))
    assert await anext(everything) == Changes(changes=[])
    assert await anext(of_bob) == Changes(changes=[])
    for key, amount in {"ada": 1, "bob": 2}.items():
        at = await shop.send(key, amount)
        await shop.queries.read(shop.read(key, at_least=(at,)))
    seen: dict[str, int] = {}
    while len(seen) < 2:
        for change in (await anext(everything)).changes:
            assert change.value is not None
            seen[shop.info.layout.decode(change.key)] = int(change.value)
    assert seen == {"ada": 1, "bob": 2}
    [change] = (await anext(of_bob)).changes
    assert change.value == b"2"
    for stream in (everything, of_bob):
        await stream.aclose()  # type: ignore[attr-defined]


async def test_who_follows_slowly_keeps_nobody(
    shop: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of one key become one; more keys than are kept are dropped, and that is said."""
    monkeypatch.setattr(queries_module, "PENDING_MAX", 2)
    stream = shop.queries.changes("totals")
    await anext(stream)
    encode = shop.info.layout.encode
    for value in (b"1", b"2", b"3"):
        shop.queries.publish("totals", {encode("ada"): value, b"\x00position": b"x"})
    batch = await anext(stream)
    assert [(change.key, change.value) for change in batch.changes] == [(encode("ada"), b"3")]
    shop.queries.publish("totals", {encode(key): b"1" for key in ("a", "b", "c", "d")})
    batch = await anext(stream)
    assert batch.missed
    assert [change.key for change in batch.changes] == [encode("c"), encode("d")]
    monkeypatch.setattr(queries_module, "FOLLOWERS_MAX", 1)
    with pytest.raises(UnavailableError, match="already follow"):
        await anext(shop.queries.changes("totals"))
    await stream.aclose()  # type: ignore[attr-defined]


async def test_who_owns_what(shop: Running) -> None:
    """The group as the worker sees it, and as a process without one reads it from the log."""
    [peer] = await shop.queries.peers()
    assert peer.here
    assert peer.shards == frozenset((4, number) for number in range(4))
    outside = GroupQueries(shop.transport, "shop", shop.tables)
    [seen] = await outside.peers()
    assert (seen.member, seen.shards, seen.here) == (peer.member, peer.shards, False)
    with pytest.raises(NotHereError):
        await outside.read(shop.read())


async def test_lag_counts_what_is_not_committed(shop: Running) -> None:
    """Lag holds events in the middle and what waits behind them, and is 0 when all is committed."""
    report = WorkerReport(
        shop.worker, topology=shop.topology, transport=shop.transport, group="shop"
    )
    shop.gate.clear()
    for amount in range(3):
        at = await shop.send("ada", amount)
    [agent] = await report.agents()
    assert (agent["name"], agent["lag"], agent["processed"]) == ("count", 3, 0)
    shop.gate.set()
    await shop.value(at_least=(at,))
    [agent] = await report.agents()
    assert (agent["lag"], agent["processed"]) == (0, 3)
    assert report.unready() is None
    described = report.worker()
    assert described["ready"] is True
    assert len(described["shards"]) == 4
    assert described["commit_ms"]["p50"] > 0
    numbers = {
        (metric.name + sample.suffix, *sample.labels.values()): sample.value
        for metric in await report.metrics()
        for sample in metric.samples
    }
    assert numbers["millstream_records_read_total", "orders"] == 3
    assert numbers["millstream_lag_records", "count"] == 0
    assert numbers["millstream_shards", "ready"] == 4
    assert numbers["millstream_commit_seconds_count",] == described["commits"]
    assert 0 < numbers["millstream_commit_seconds_sum",] < DEADLINE_S
    topics = {row["name"]: row for row in await report.topics()}
    assert topics["orders"]["records"] == 3
    assert topics["shop-totals-changelog"]["internal"] is True
    report.close()
    shop.worker.shards[4, 1].ready.clear()
    assert "1 of 4 shards are being recovered" in str(report.unready())
    shop.worker.shards[4, 1].ready.set()
    assert TopicPartition("orders", 0) in shop.worker.shards[4, 0].inputs()
