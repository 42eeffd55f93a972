"""Appending outside of epochs.

What fits into one batch of one partition is written at once, by a producer that only counts (a repeated
request is recognised): a batch is there as a whole or not at all. Anything else is a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from kio.schema.errors import ErrorCode
from kio.schema.init_producer_id.v4 import InitProducerIdRequest, InitProducerIdResponse
from kio.schema.types import ProducerId
from kio.static.primitive import i16

from millstream.errors import LogUnavailableError, OutcomeUnknownError
from millstream.records import TopicPartition
from millstream.transports.kafka._errors import AnswerLostError, Patience, refusal
from millstream.transports.kafka._messages import duration
from millstream.transports.kafka._produce import Identity, TooLargeError, write
from millstream.transports.kafka._transactions import Transactions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from millstream.transports.batch import Outgoing
    from millstream.transports.kafka._cluster import Cluster

__all__ = ["Appends"]

WITHIN_S = 30.0
"""How long an append is tried."""


class Appends:
    """Appends of one transport; each is done before the next one begins.

    Args:
        cluster: where.
        transactional_id: for those that take more than a batch; nobody else's.
    """

    def __init__(self, cluster: Cluster, transactional_id: str) -> None:
        self._cluster = cluster
        self._identity = Identity()
        self._transactions = Transactions(cluster, lambda: transactional_id)
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()

    async def append(self, records: Mapping[TopicPartition, Outgoing]) -> dict[TopicPartition, int]:
        """Write all of it or nothing; the first offset in each partition. Cancelled, it is carried out.

        Raises:
            TooLargeError: a record that its topic does not take.
            OutcomeUnknownError: it may be there.
        """
        some = {tp: listed for tp, listed in records.items() if listed}
        if not some:
            return {}
        task = asyncio.ensure_future(self._at_once(some) if len(some) == 1 else self._whole(some))
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def append_loosely(
        self, records: Mapping[TopicPartition, Outgoing]
    ) -> dict[TopicPartition, int]:
        """Write without a transaction; the offset after the last record of each partition. Cancelled, it is carried out.

        Raises:
            TooLargeError: a record that its topic does not take; others may be there.
            LogUnavailableError: some of it may be there, or all.
        """
        task = asyncio.ensure_future(
            self._loosely({tp: listed for tp, listed in records.items() if listed})
        )
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def _loosely(
        self, records: Mapping[TopicPartition, Outgoing]
    ) -> dict[TopicPartition, int]:
        if not records:
            return {}
        try:
            async with self._counting(records):
                written = await write(
                    self._cluster, self._identity, records, newer=False, within_s=WITHIN_S
                )
        except AnswerLostError as exc:
            raise LogUnavailableError(
                f"{self._cluster.url} did not say whether it has taken what was sent: {exc}"
            ) from exc
        return {tp: place.next for tp, place in written.items()}

    async def close(self) -> None:
        """Wait for what runs."""
        while self._running:
            await asyncio.wait(self._running)

    def _finished(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # who waited for it may be gone

    async def _at_once(
        self, records: Mapping[TopicPartition, Outgoing]
    ) -> dict[TopicPartition, int]:
        try:
            async with self._counting(records):
                written = await write(
                    self._cluster,
                    self._identity,
                    records,
                    newer=False,
                    within_s=WITHIN_S,
                    whole=True,
                )
        except TooLargeError:
            if sum(map(len, records.values())) == 1:
                raise
            return await self._whole(records)  # several batches
        except AnswerLostError as exc:
            raise OutcomeUnknownError(
                f"{self._cluster.url} did not say whether it has taken what was sent: {exc}"
            ) from exc
        return {tp: place.first for tp, place in written.items()}

    @contextlib.asynccontextmanager
    async def _counting(self, records: Mapping[TopicPartition, object]) -> AsyncIterator[None]:
        """The producer that only counts, for one write; it begins anew after one that failed."""
        async with self._lock:
            if self._identity.producer_id < 0:
                await self._begin(f"write to {TopicPartition(*next(iter(records)))}")
            try:
                yield
            except BaseException:
                self._identity.become(-1, -1)
                raise

    async def _whole(self, records: Mapping[TopicPartition, Outgoing]) -> dict[TopicPartition, int]:
        written = await self._transactions.commit(records)
        return {tp: place.first for tp, place in written.items()}

    async def _begin(self, doing: str) -> None:
        """Get a producer id, from any broker."""
        patience = Patience(WITHIN_S)
        while True:
            answer = await self._cluster.ask(
                InitProducerIdRequest(
                    transactional_id=None,
                    transaction_timeout=duration(0),
                    producer_id=ProducerId(-1),
                    producer_epoch=i16(-1),
                ),
                InitProducerIdResponse,
            )
            if not answer.error_code:
                self._identity.become(answer.producer_id, answer.producer_epoch)
                return
            error = refusal(answer.error_code, doing, where=self._cluster.url)
            if not (
                isinstance(error, LogUnavailableError)
                or answer.error_code is ErrorCode.concurrent_transactions
            ):
                raise error
            await patience.pause(error)
