"""Every table from any worker: what is not here is asked of the worker that has it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import msgspec

from millstream.errors import NotHereError, QueryError, UnavailableError, UnknownTableError
from millstream.tables._query import (
    Changes,
    Page,
    merge_pages,
)
from millstream.web._wire import (
    BEAT_S,
    PREFIX,
    decode_page,
    encode_read,
    error_of,
    read_frames,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence

    from millstream.tables._query import Peer, Read, TableInfo

__all__ = ["Cluster", "Local"]

OWNER_WAIT_S = 2.0
"""How long a question waits for a shard that moves, or for an owner that does not answer."""
OWNER_RETRY_S = 0.05
CONNECT_TIMEOUT_S = 1.0
READ_TIMEOUT_S = 15.0
"""Above the time that an answer waits for the records of ``at_least``."""
REPORT_TIMEOUT_S = 1.0
PEERS_INTERVAL_S = 0.5
"""How soon one who follows changes hears of another worker."""
OWNER_PATIENCE_S = 1.0
"""How long an owner may take to answer one who would be content with a copy."""
READY_TIMEOUT_S = 2.0
BATCHES_MAX = 8


class Local(Protocol):
    """What this process can answer itself, and who answers the rest."""

    @property
    def tables(self) -> Mapping[str, TableInfo]: ...

    async def peers(self) -> list[Peer]:
        """The workers of the group, this one included."""
        ...

    async def read(self, read: Read) -> Page:
        """Answer from the shards that the question names; NotHereError for one that is elsewhere."""
        ...

    def changes(self, table: str, key: bytes | None = None) -> AsyncIterator[Changes]:
        """Changes of the shards that are here."""
        ...


class Cluster:
    """A `Queries` over all workers of the group. Close it with `aclose`."""

    def __init__(self, local: Local) -> None:
        self.local = local
        self._client: httpx.AsyncClient | None = None

    @property
    def tables(self) -> Mapping[str, TableInfo]:
        """Every table, by name."""
        return self.local.tables

    async def __aenter__(self) -> Cluster:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections to other workers."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @property
    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=16),
                trust_env=False,
            )
        return self._client

    # reading --------------------------------------------------------------------------------------

    async def read(self, read: Read) -> Page:
        """Answer from whoever owns the shards; see `Queries.read`.

        A page over several shards is of one commit of each.
        """
        info = self.tables.get(read.table)
        if info is None:
            raise UnknownTableError(read.table, self.tables)
        read.check(info)
        numbers = tuple(range(info.partitions)) if read.key is None else (info.shard_of(read.key),)
        deadline = time.monotonic() + OWNER_WAIT_S
        while True:
            try:
                return await self._read(info, read, numbers)
            except (NotHereError, UnavailableError) as exc:
                if read.stale_ms is not None:
                    with contextlib.suppress(
                        NotHereError, UnavailableError
                    ):  # then the owner's answer
                        return await self._read_copies(info, read, numbers)
                if isinstance(exc, UnavailableError):
                    raise
                if time.monotonic() > deadline:
                    raise UnavailableError(f"{exc} Ask again.") from exc
            await asyncio.sleep(OWNER_RETRY_S)

    async def _read(self, info: TableInfo, read: Read, numbers: tuple[int, ...]) -> Page:
        peers = await self.local.peers()
        if info.everywhere:
            anyone = sorted(peers, key=lambda peer: not peer.here)[:1]
            asked = {peer.member: (peer, [0]) for peer in anyone}
        else:
            asked = {}
            for number in numbers:
                owner = _owner(peers, (info.partitions, number), stale=read.stale_ms is not None)
                asked.setdefault(owner.member, (owner, []))[1].append(number)
        if not asked:
            raise NotHereError("No worker is running.")
        pages = await asyncio.gather(
            *(self._ask(peer, _of_shards(read, owned)) for peer, owned in asked.values())
        )
        return merge_pages(info, pages, limit=read.limit, reverse=read.reverse)

    async def _read_copies(self, info: TableInfo, read: Read, numbers: tuple[int, ...]) -> Page:
        """Answer from anybody who has each shard, where an owner does not answer."""
        peers = await self.local.peers()
        pages = await asyncio.gather(
            *(self._read_copy(peers, (info.partitions, number), read) for number in numbers)
        )
        return merge_pages(info, pages, limit=read.limit, reverse=read.reverse)

    async def _read_copy(self, peers: list[Peer], shard: tuple[int, int], read: Read) -> Page:
        having = [peer for peer in peers if shard in peer.shards or shard in peer.copies]
        having.sort(key=lambda peer: (not peer.here, shard in peer.shards, peer.member))
        for peer in having:
            with contextlib.suppress(NotHereError, UnavailableError):  # perhaps the next one has it
                return await self._ask(peer, _of_shards(read, [shard[1]]))
        raise NotHereError(
            f"No worker has a copy of shard {shard[1]} of {shard[0]} that is new enough."
        )

    async def _ask(self, peer: Peer, read: Read) -> Page:
        if peer.here:
            return await self.local.read(read)
        if not peer.url:
            raise UnavailableError(
                f"Worker {peer.member} owns what was asked for, and serves no HTTP (web=False)."
            )
        try:
            waits_s = READ_TIMEOUT_S
            if read.stale_ms is not None and not read.at_least:
                waits_s = OWNER_PATIENCE_S
            answer = await self._http.post(
                f"{peer.url}{PREFIX}/read",
                content=encode_read(read),
                timeout=httpx.Timeout(waits_s, connect=CONNECT_TIMEOUT_S),
            )
        except httpx.HTTPError as exc:
            raise NotHereError(
                f"The worker at {peer.url}, which owns what was asked for, does not answer"
                f" ({type(exc).__name__})."
            ) from exc
        if answer.status_code != 200:
            raise error_of(answer.content)
        return decode_page(answer.content)

    # following ------------------------------------------------------------------------------------

    async def changes(self, table: str, key: bytes | None = None) -> AsyncIterator[Changes]:
        """Changes of all workers; see `Queries.changes`.

        When a worker goes or comes, changes may be missed, and this is said.
        """
        if table not in self.tables:
            raise UnknownTableError(table, self.tables)
        following = _Following(self, table, key)
        try:
            async for batch in following.batches():
                yield batch
        finally:
            await following.stop()

    async def follow_peer(self, url: str, table: str, key: bytes | None) -> AsyncIterator[Changes]:
        """Changes of one other worker's shards."""
        parameters = {} if key is None else {"key": key.hex()}
        async with self._http.stream(
            "GET",
            f"{url}{PREFIX}/changes/{table}",
            params=parameters,
            timeout=httpx.Timeout(CONNECT_TIMEOUT_S, read=3 * BEAT_S),
        ) as answer:
            if answer.status_code != 200:
                raise error_of(await answer.aread())
            async for batch in read_frames(answer.aiter_bytes()):
                yield batch

    # the group ------------------------------------------------------------------------------------

    async def workers(self, me: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What each worker tells of itself; ``error`` in the place of that, where one does not answer."""
        peers = await self.local.peers()
        if not peers:
            return [dict(me, here=True)]
        return await asyncio.gather(*(self._worker(peer, me) for peer in peers))

    async def _worker(self, peer: Peer, me: Mapping[str, Any]) -> dict[str, Any]:
        if peer.here:
            return dict(me, here=True)
        known = {
            "url": peer.url,
            "member": peer.member,
            "ready": False,
            "shards": [{"count": c, "number": n} for c, n in sorted(peer.shards)],
        }
        if not peer.url:
            return {**known, "error": "It serves no HTTP."}
        try:
            answer = await self._http.get(f"{peer.url}{PREFIX}/worker", timeout=REPORT_TIMEOUT_S)
            answer.raise_for_status()
            return dict(answer.json())
        except (httpx.HTTPError, ValueError) as exc:
            return {**known, "error": f"It does not answer ({type(exc).__name__})."}


def _of_shards(read: Read, numbers: Sequence[int]) -> Read:
    return msgspec.structs.replace(read, shards=tuple(numbers), prefix=None)


def _owner(peers: list[Peer], shard: tuple[int, int], *, stale: bool = False) -> Peer:
    """Who answers for a shard: its owner, or this process where a copy is here and will do."""
    for peer in peers:
        if stale and peer.here and shard in peer.copies:
            return peer
    for peer in peers:
        if shard in peer.shards:
            return peer
    count, number = shard
    raise NotHereError(f"No worker owns shard {number} of {count} at the moment.")


class _Following:
    """One who follows a table over all workers: a task for each of them, and one that looks for new ones."""

    def __init__(self, cluster: Cluster, table: str, key: bytes | None) -> None:
        self._cluster = cluster
        self._table = table
        self._key = key
        self._queue: asyncio.Queue[Changes | Exception] = asyncio.Queue(BATCHES_MAX)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        """Those that follow workers that have gone, and are cancelled."""
        self._begun: set[str] = set()
        self._all_begun = asyncio.Event()
        self._ready = False

    async def batches(self) -> AsyncIterator[Changes]:
        await self._look()
        self._start("", self._watch())
        with contextlib.suppress(TimeoutError):  # one that begins later brings ``missed``
            await asyncio.wait_for(self._all_begun.wait(), READY_TIMEOUT_S)
        self._ready = True
        yield Changes(changes=[])
        while True:
            batch = await self._queue.get()
            if isinstance(batch, Exception):
                raise batch
            yield batch

    async def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), *self._ending, return_exceptions=True)

    def _start(self, url: str, following: Coroutine[Any, Any, None]) -> None:
        async def guarded() -> None:
            try:
                await following
            except Exception as exc:
                await self._queue.put(exc)  # `batches` raises it

        self._tasks[url] = asyncio.create_task(guarded(), name=f"follow {self._table} {url}")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PEERS_INTERVAL_S)
            await self._look()

    async def _look(self) -> None:
        """Follow this process and every other worker; those that have gone end by themselves."""
        urls = {
            peer.url for peer in await self._cluster.local.peers() if not peer.here and peer.url
        }
        for url in {"here", *urls} - self._tasks.keys():
            self._start(url, self._follow(url))
        for url in self._tasks.keys() - {"", "here", *urls}:
            gone = self._tasks.pop(url)
            gone.cancel()
            self._ending.add(gone)
            gone.add_done_callback(self._ending.discard)

    async def _follow(self, url: str) -> None:
        cluster, table, key = self._cluster, self._table, self._key
        while True:
            if url == "here":
                stream = cluster.local.changes(table, key)
            else:
                stream = cluster.follow_peer(url, table, key)
            try:
                async with contextlib.aclosing(stream) as batches:  # type: ignore[type-var]
                    first = True
                    async for batch in batches:
                        if first:
                            await self._begins(url)
                        elif batch.changes or batch.missed:
                            await self._queue.put(batch)
                        first = False
            except httpx.HTTPError:
                pass  # it restarts, or the group will say that it has gone
            except QueryError:
                if url == "here":
                    raise  # another worker that refuses may know better soon
            self._begun.discard(url)
            await asyncio.sleep(PEERS_INTERVAL_S)

    async def _begins(self, url: str) -> None:
        if self._ready:
            await self._queue.put(Changes(changes=[], missed=True))
        self._begun.add(url)
        if self._tasks.keys() - {""} <= self._begun:
            self._all_begun.set()
