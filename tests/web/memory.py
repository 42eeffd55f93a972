"""An app without an engine: tables in memory, in shards, with positions and changes, and facts about them."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from millstream.errors import NotHereError
from millstream.serialization import codec_for, key_codec_for, key_layout, partitioner
from millstream.state.memory import MemoryBackend
from millstream.tables._query import (
    Change,
    Changes,
    Page,
    Peer,
    Read,
    TableInfo,
    merge_pages,
)
from millstream.topology import AgentNode, TableNode, TimerNode, TopicNode, Topology
from millstream.web import Cluster, Serving, build_web, serve
from millstream.windows import AnyWindows, Window, calendar, sliding, tumbling
from millstream.worker._read import read_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from starlette.applications import Starlette

HOUR_MS = 3_600_000
SHARDS = 4


class Order(msgspec.Struct):
    """A value of several fields."""

    account: str
    amount: float


def table_info(
    name: str, key: Any, value: Any, *, codec: str = "json", windows: AnyWindows | None = None
) -> TableInfo:
    """A table as an app declares it."""
    return TableInfo(
        name=name,
        layout=key_layout(key),
        codec=codec_for(codec, value),
        windows=windows,
        partitions=SHARDS,
        place=key_codec_for(key).dumps,
        partitioner=partitioner("murmur2"),
    )


TABLES = {
    info.name: info
    for info in (
        table_info("totals", str, float),
        table_info("last", str, Order, codec="msgpack"),
        table_info("pairs", tuple[str, int], int),
        table_info("hourly", str, int, windows=tumbling("1h", retention="100d")),
        table_info(
            "daily",
            str,
            int,
            windows=calendar("day", timezone="America/New_York", retention="100d"),
        ),
        table_info("recent", str, int, windows=sliding("10s", retention="100d")),
    )
}


class Stores:
    """The state of all shards, as a log would give it back to whoever owns them."""

    def __init__(self) -> None:
        backend = MemoryBackend()
        self.shards = [backend.open(f"{SHARDS}-{number}") for number in range(SHARDS)]
        self.offsets = [0] * SHARDS


class MemoryTables:
    """The shards of one worker: a `Queries` for itself, and the local part of a `Cluster`."""

    def __init__(
        self, owned: Sequence[int] = range(SHARDS), *, stores: Stores | None = None
    ) -> None:
        self.tables: Mapping[str, TableInfo] = TABLES
        self.owned = set(owned)
        self.copied: dict[int, int] = {}
        """Shards of which this worker has a copy, and how old its answers are, in ms."""
        self.members: list[Peer] = []
        self.stores = stores or Stores()
        self.asked: list[Read] = []
        self.stale_ms: int | None = None
        self._moved = asyncio.Event()
        self._followers: dict[str, list[tuple[bytes | None, asyncio.Queue[Changes]]]] = {}

    @property
    def followers(self) -> int:
        """How many follow changes now."""
        return sum(map(len, self._followers.values()))

    async def until(self, reached: Callable[[], Any]) -> None:
        """Wait until somebody has asked, followed or gone, so that ``reached`` is true."""
        while not reached():
            self._moved.clear()
            await self._moved.wait()

    async def peers(self) -> list[Peer]:
        """Who is said to own what."""
        return self.members

    def put(self, table: str, key: Any, value: Any, window: Window | None = None) -> None:
        """Commit a value; ``...`` deletes."""
        info = self.tables[table]
        key_bytes = info.layout.encode(key)
        shard = info.shard_of(key_bytes)
        data = None if value is ... else info.codec.dumps(value)
        stored = data
        if table == "recent" and data is not None:
            stored = bytes(8) + data
        state_key = info.state_key(key_bytes, window)
        self.stores.shards[shard].write({table: {state_key: stored}})
        self.stores.offsets[shard] += 1
        for followed, queue in self._followers.get(table, []):
            if followed in (None, key_bytes):
                queue.put_nowait(Changes(changes=[Change(key_bytes, window, data)]))

    def overrun(self, table: str) -> None:
        """Let those who follow the table miss something."""
        for _, queue in self._followers[table]:
            queue.put_nowait(Changes(changes=[], missed=True))

    async def read(self, read: Read) -> Page:
        """As `Queries.read`."""
        info = self.tables[read.table]
        read.check(info)
        self.asked.append(read)
        self._moved.set()
        numbers = read.shards
        if not numbers:
            numbers = range(SHARDS) if read.key is None else (info.shard_of(read.key),)  # type: ignore[assignment]
        pages = []
        for number in numbers:
            age = self.copied.get(number)
            if age is not None and (read.stale_ms is None or age > read.stale_ms):
                raise NotHereError(f"The copy of shard {number} is behind.")
            if age is None and number not in self.owned:
                raise NotHereError(f"Shard {number} is elsewhere.")
            store = self.stores.shards[number].table(read.table)
            entries, after = read_store(store, info, read)
            position = {f"orders/{number}": self.stores.offsets[number]}
            pages.append(
                Page(
                    entries=entries,
                    position=position,
                    next=after,
                    stale_ms=self.stale_ms if age is None else age,
                )
            )
        return merge_pages(info, pages, limit=read.limit, reverse=read.reverse)

    async def changes(self, table: str, key: bytes | None = None) -> AsyncIterator[Changes]:
        """As `Queries.changes`."""
        follower = (key, asyncio.Queue[Changes]())
        self._followers.setdefault(table, []).append(follower)
        self._moved.set()
        try:
            yield Changes(changes=[])
            while True:
                yield await follower[1].get()
        finally:
            self._followers[table].remove(follower)
            self._moved.set()


class Sample(NamedTuple):
    """A number."""

    value: float
    labels: Mapping[str, str] = {}
    suffix: str = ""


class Metric(NamedTuple):
    """Numbers."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


class MemoryFacts:
    """Facts about an app that does not run."""

    log = "memory://test"

    def __init__(self) -> None:
        self.why: str | None = None
        self.lag = 0
        self.member = "worker-1"
        self.topology = Topology(
            app="shop",
            topics={"orders": TopicNode(name="orders", partitions=SHARDS)},
            tables={
                name: TableNode(name=name, changelog=f"shop-{name}-changelog", partitions=SHARDS)
                for name in TABLES
            },
            agents={"count": AgentNode(name="count", sources=("orders",), sinks=("large",))},
            timers={"tick": TimerNode(name="tick", schedule="every 10s", scope="shard")},
        )

    async def topics(self) -> list[dict[str, Any]]:
        """One topic."""
        return [
            {
                "name": "orders",
                "partitions": SHARDS,
                "records": 12,
                "end": {"orders/0": 12},
                "compacted": False,
                "retention_ms": 7 * 24 * HOUR_MS,
                "internal": False,
            }
        ]

    async def agents(self) -> list[dict[str, Any]]:
        """One agent."""
        return [
            {
                "name": "count",
                "sources": ["orders"],
                "sinks": ["large"],
                "concurrency": 2,
                "internal": False,
                "processed": 12,
                "lag": self.lag,
            }
        ]

    def worker(self) -> dict[str, Any]:
        """This worker."""
        return {
            "url": "",
            "member": self.member,
            "ready": self.why is None,
            "why": self.why,
            "shards": [{"count": SHARDS, "number": 0, "ready": True}],
            "commits": 3,
            "commit_ms": {"p50": 1.5, "p99": 4.25},
        }

    def unready(self) -> str | None:
        """As the test says."""
        return self.why

    def generation(self) -> int:
        """Always the same."""
        return 3

    async def metrics(self) -> Sequence[Metric]:
        """Three, of each kind one."""
        return [
            Metric("millstream_commits_total", "counter", "Commits.", [Sample(3)]),
            Metric(
                "millstream_lag_records", "gauge", "Lag\nof all.", [Sample(0.5, {"agent": 'a"\\'})]
            ),
            Metric("millstream_nothing", "gauge", "Left out.", []),
        ]


class RunningApp(NamedTuple):
    """An app that is served on a port of its own."""

    tables: MemoryTables
    facts: MemoryFacts
    web: Starlette
    cluster: Cluster
    served: Serving


@contextlib.asynccontextmanager
async def running(tables: MemoryTables, member: str = "worker-1") -> AsyncIterator[RunningApp]:
    """Serve the tables, as one worker of a group."""
    facts = MemoryFacts()
    facts.member = member
    async with Cluster(tables) as cluster:
        web = build_web(cluster, facts, cluster=cluster)
        async with serve(web, port=0) as served:
            app = RunningApp(tables, facts, web, cluster, served)
            tell_peers([app])
            yield app


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[RunningApp, RunningApp]]:
    """Two workers that own two shards each."""
    stores = Stores()
    async with (
        running(MemoryTables([0, 1], stores=stores)) as one,
        running(MemoryTables([2, 3], stores=stores), "worker-2") as other,
    ):
        tell_peers([one, other])
        yield one, other


def tell_peers(apps: Sequence[RunningApp]) -> None:
    """Every one of them learns where the others are."""
    peers = [
        Peer(
            member=app.facts.member,
            url=app.served.url,
            shards=frozenset((SHARDS, number) for number in app.tables.owned),
            copies=frozenset((SHARDS, number) for number in app.tables.copied),
        )
        for app in apps
    ]
    for app in apps:
        app.tables.members = [replace(peer, here=peer.member == app.facts.member) for peer in peers]


def keys_of(numbers: Sequence[int], count: int) -> list[str]:
    """The first keys of a row that belong to these shards of the table of totals."""
    info = TABLES["totals"]
    keys = (f"key-{number:03}" for number in range(1_000))
    found = [key for key in keys if info.shard_of(info.layout.encode(key)) in numbers]
    return found[:count]
