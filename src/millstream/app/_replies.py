"""Asking agents: requests by topic, replies by a topic that whoever asks reads from its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NoReturn

from millstream.agents import (
    HEADER_CORRELATION,
    HEADER_ERROR,
    HEADER_REPLY_TO,
    new_correlation_id,
)
from millstream.errors import AskError
from millstream.records import Headers, OutgoingRecord, TopicPartition
from millstream.transports.base import TopicSpec
from millstream.transports.batch import iterate_records

if TYPE_CHECKING:
    from millstream.agents import Topic
    from millstream.clock import Clock
    from millstream.transports.base import Transport

__all__ = ["Replies", "reply_topic"]

RETENTION_MS = 3_600_000


def reply_topic(app: str) -> str:
    """The topic that all replies of an app go through."""
    return f"{app}-replies"


class Replies:
    """Requests on their way, by correlation id."""

    def __init__(self, *, transport: Transport, app: str, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
        self._tp = TopicPartition(reply_topic(app), 0)
        self._waiting: dict[bytes, asyncio.Future[bytes | None]] = {}
        self._position = 0

    async def open(self) -> None:
        """Find the end of the reply topic, which is made where it does not exist."""
        spec = TopicSpec(name=self._tp.topic, partitions=1, retention_ms=RETENTION_MS)
        await self._transport.create_topics([spec])
        self._position = (await self._transport.end_offsets([self._tp]))[self._tp]

    async def run(self) -> NoReturn:
        """Hand out replies as they come."""
        reader = self._transport.reader()
        try:
            while True:
                for fetched in await reader.fetch(
                    {self._tp: self._position}, max_bytes=1 << 20, max_wait_s=0.5
                ):
                    for record in iterate_records(
                        fetched.data, where=str(self._tp), position=self._position
                    ):
                        self._answer(dict(record.headers), record.value)
                    self._position = fetched.next_offset
        finally:
            await reader.close()

    def _answer(self, headers: dict[str, bytes | None], value: bytes | None) -> None:
        future = self._waiting.get(headers.get(HEADER_CORRELATION) or b"")
        if future is None or future.done():
            return
        if HEADER_ERROR in headers:
            future.set_exception(AskError((headers[HEADER_ERROR] or b"").decode()))
        else:
            future.set_result(value)

    async def ask(
        self, topic: Topic[Any, Any], value: Any, *, key: Any, timeout_s: float
    ) -> bytes | None:
        """Send a request and wait for its reply.

        Raises:
            AskError: no reply came in time; the request may be processed all the same.
        """
        correlation = new_correlation_id()
        headers: Headers = [
            (HEADER_REPLY_TO, self._tp.topic.encode()),
            (HEADER_CORRELATION, correlation),
        ]
        tp, record = topic.encode(value, key=key)
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._waiting[correlation] = future
        try:
            await self._transport.append(
                {tp: [OutgoingRecord(record.timestamp, record.key, record.value, headers)]}
            )
            sleep = asyncio.ensure_future(self._clock.sleep(timeout_s))
            try:
                waited: list[asyncio.Future[Any]] = [future, sleep]
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sleep.cancel()
            if not future.done():
                raise AskError(
                    f"no reply through {topic.name!r} within {timeout_s:g} s: is a worker running, and"
                    f" does the agent yield a result for each value?"
                )
            return future.result()
        finally:
            del self._waiting[correlation]
