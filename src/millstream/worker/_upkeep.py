"""Keeping stores young: what is on disk stays close to what is in memory, and positions tell that they are current.

A store has no log of its own: what a kill leaves of a table is what was flushed last, which may be long ago where little
is written. And a position tells when its table was at the end of its changelog: of a table that nobody writes to it
would grow so old that the state is taken for stale (invariant 18), although nothing was missed.

The owner of a shard is the only one who writes to its changelogs. So while the group confirms it, and no epoch is
on its way, its tables are at their ends.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NoReturn

import msgspec

from millstream.errors import StateError
from millstream.tables import POSITION_KEY, decode_position, encode_position

if TYPE_CHECKING:
    from millstream.state.base import ShardStore
    from millstream.worker._shard import Shard
    from millstream.worker._worker import Worker

__all__ = ["StoreUpkeep"]

logger = logging.getLogger("millstream.worker")

INTERVAL_S = 600.0
"""After a kill, no more than what this time has brought is replayed of a table whose store was current."""


class StoreUpkeep:
    """Confirms positions and flushes stores, of a worker's shards and copies.

    Args:
        flushes: whether there is a disk to bring them to.
    """

    def __init__(self, worker: Worker, *, flushes: bool) -> None:
        self._worker = worker
        self._flushes = flushes
        self._flushing: asyncio.Future[None] | None = None

    async def run(self) -> NoReturn:
        """Do it again and again."""
        while True:
            await self._worker.options.clock.sleep(INTERVAL_S)
            await self.once()

    async def once(self) -> None:
        """Confirm the positions of all shards, and flush all stores, one after the other."""
        worker = self._worker
        async with worker.committer.lock:
            for shard in worker.shards.values():
                if shard.ready.is_set() and self._is_current():
                    self._confirm(shard)
        for store in self._stores() if self._flushes else ():
            await self.settled()
            if store in self._stores():  # it may have been closed meanwhile
                await self._flush(store)

    def _stores(self) -> list[ShardStore]:
        worker = self._worker
        return [
            *(shard.store for shard in worker.shards.values()),
            *(copy.store for copy in worker.copies.by_shard.values()),
        ]

    def _is_current(self) -> bool:
        return self._worker.membership is not None and self._worker.membership.current()

    def _confirm(self, shard: Shard) -> None:
        """A table that is read from a topic is left alone: there may be more of it than was processed."""
        now = self._worker.options.clock.now()
        for name in shard.own_parts:
            found = decode_position(shard.store.table(name).get(POSITION_KEY))
            if found is not None and shard.changelog(name) is not None:
                confirmed = msgspec.structs.replace(found, written=now)
                shard.store.write({name: {POSITION_KEY: encode_position(confirmed)}})

    async def _flush(self, store: ShardStore) -> None:
        """In a thread, as it takes a while; who closes stores waits for it."""
        self._flushing = asyncio.ensure_future(asyncio.to_thread(store.flush))
        try:
            await asyncio.shield(self._flushing)
        except StateError as exc:
            logger.warning("a store was not flushed: %s", exc)
        except asyncio.CancelledError:
            await self.settled()
            raise

    async def settled(self) -> None:
        """Wait until no store is being flushed."""
        while self._flushing is not None and not self._flushing.done():
            await asyncio.wait([self._flushing])
