"""Fetching for one agent, over all shards of a worker."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NoReturn

from millstream.errors import LogUnavailableError, OffsetOutOfRangeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from millstream.clock import Clock
    from millstream.records import TopicPartition
    from millstream.transports.base import Fetched, Reader, Transport
    from millstream.worker._lane import Lane

__all__ = ["Fetcher"]

logger = logging.getLogger("millstream.worker")

FETCH_BYTES_MAX = 2 << 20
FETCH_WAIT_S = 0.5
RETRY_S = 0.25


class Fetcher:
    """Keeps the inboxes of one agent's lanes filled, up to their bound."""

    def __init__(
        self,
        agent: str,
        *,
        transport: Transport,
        lanes: Callable[[], Iterable[Lane]],
        clock: Clock,
    ) -> None:
        self._agent = agent
        self._transport = transport
        self._lanes = lanes
        self._clock = clock
        self._stirred = asyncio.Event()
        self._away = False
        """Whether it has been told that the log does not answer; nothing has come since."""

    def stir(self) -> None:
        """There may be room, or other lanes: look again."""
        self._stirred.set()

    async def run(self) -> NoReturn:
        """Fetch for ever."""
        reader = self._transport.reader()
        try:
            while True:
                self._stirred.clear()
                owners: dict[TopicPartition, Lane] = {}
                wanted: dict[TopicPartition, int] = {}
                for lane in self._lanes():
                    for tp, at in lane.wanted().items():
                        owners[tp] = lane
                        wanted[tp] = at
                if not wanted:
                    await self._stirred.wait()
                    continue
                for fetched in await self._fetch(reader, wanted):
                    lane = owners[fetched.tp]
                    inbox = lane.inboxes.get(fetched.tp)
                    if inbox is not None and inbox.fetched == wanted[fetched.tp]:
                        lane.add(fetched)
        finally:
            await reader.close()

    async def _fetch(self, reader: Reader, wanted: dict[TopicPartition, int]) -> list[Fetched]:
        fetch = asyncio.ensure_future(
            reader.fetch(wanted, max_bytes=FETCH_BYTES_MAX, max_wait_s=FETCH_WAIT_S)
        )
        try:
            while not fetch.done():
                stirred = asyncio.ensure_future(self._stirred.wait())
                try:
                    await asyncio.wait([fetch, stirred], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    stirred.cancel()
                if not fetch.done() and self._changed(wanted):
                    return []
                self._stirred.clear()
            fetched = fetch.result()
            if (
                fetched
            ):  # a reader may find nothing for a while before it says that there is no answer
                self._away = False
            return fetched
        except OffsetOutOfRangeError as exc:
            return self._out_of_range(exc, wanted)
        except LogUnavailableError as exc:
            if not self._away:  # once, however long it takes
                self._away = True
                logger.warning("agent %r waits for the log: %s", self._agent, exc)
            await self._clock.sleep(RETRY_S)
            return []
        finally:
            if not fetch.done():
                fetch.cancel()
                await asyncio.wait([fetch])  # the reader is used by one at a time

    def _changed(self, wanted: dict[TopicPartition, int]) -> bool:
        now = {tp: at for lane in self._lanes() for tp, at in lane.wanted().items()}
        return any(wanted.get(tp) != at for tp, at in now.items()) or any(
            tp not in now for tp in wanted
        )

    def _out_of_range(
        self, exc: OffsetOutOfRangeError, wanted: dict[TopicPartition, int]
    ) -> list[Fetched]:
        from millstream.transports.base import Fetched

        for tp, at in wanted.items():
            if str(tp) == exc.partition and at < exc.start:
                # retention has taken the records: they are gone for everybody
                return [Fetched(tp, b"", exc.start, exc.end)]
        raise exc
