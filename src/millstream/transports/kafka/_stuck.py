"""Transactions that somebody who is gone has left open, and that hold the positions of a group.

They would end by themselves after their time-out. Until then nobody can take over what their owner had. Who it
was the brokers tell (KIP-664, from Kafka 3.0 on): the transactions whose id begins as ours, that are open for a
while, and that have to do with the partition in which our group's positions are. Ending one by InitProducerId
fences its owner, if it is alive after all: nothing of it will be visible.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from kio.schema.describe_transactions.v0 import (
    DescribeTransactionsRequest,
    DescribeTransactionsResponse,
)
from kio.schema.init_producer_id.v4 import InitProducerIdRequest, InitProducerIdResponse
from kio.schema.list_transactions.v0 import ListTransactionsRequest, ListTransactionsResponse
from kio.schema.types import ProducerId, TransactionalId
from kio.static.primitive import i16

from millstream.errors import ConfigurationError, LogUnavailableError
from millstream.transports.kafka._cluster import TRANSACTION
from millstream.transports.kafka._errors import AnswerLostError
from millstream.transports.kafka._messages import duration
from millstream.transports.kafka._transactions import TRANSACTION_TIMEOUT_S

if TYPE_CHECKING:
    from millstream.transports.kafka._cluster import Cluster
    from millstream.transports.kafka._transactions import Transactions

__all__ = ["Relief", "partition_of"]

logger = logging.getLogger("millstream.transports.kafka")

OWN_S = 0.1
"""How long positions are held before we look whether we, or who had our transactional id, hold them."""
LOOK_S = 0.5
"""How long, before we look who else does."""
STUCK_S = 1.0
"""How much later it has to be the same transaction to count as left behind. A commit takes some ms."""
POSITIONS_TOPIC = "__consumer_offsets"


def partition_of(group: str, count: int) -> int:
    """Where a group's positions are: the absolute value of Java's ``hashCode`` of its name, modulo the count."""
    code = 0
    units = group.encode("utf-16-be")
    for at in range(0, len(units), 2):
        code = (31 * code + int.from_bytes(units[at : at + 2], "big")) & 0xFFFFFFFF
    signed = code - (1 << 32) if code >> 31 else code
    return 0 if signed == -(1 << 31) else abs(signed) % count


class Relief:
    """What a worker does while positions of its group are held by an open transaction.

    Args:
        cluster: where.
        group: whose positions.
        own: our transactions; None where we write without any, and others may have left some open before.
        prefix: what the transactional ids of the group's workers begin with.
    """

    def __init__(
        self, cluster: Cluster, group: str, *, own: Transactions | None, prefix: str
    ) -> None:
        self._cluster = cluster
        self._group = group
        self._own = own
        self._prefix = prefix
        self._asked_ourselves = False
        self._seen: set[_Open] = set()
        self._look_at_s = LOOK_S

    async def __call__(self, held_s: float) -> None:
        """Do what is due after so many seconds."""
        if self._own is not None and not self._asked_ourselves and held_s >= OWN_S:
            self._asked_ourselves = True
            await self._own.settle(take=True)
        elif held_s >= self._look_at_s:
            self._look_at_s = held_s + STUCK_S
            before, self._seen = self._seen, await self._look()
            for found in before & self._seen:
                await self._end(found.transactional_id)

    async def _end(self, name: str) -> None:
        try:
            node = await self._cluster.coordinator(TRANSACTION, name)
            answer = await self._cluster.send(
                node,
                InitProducerIdRequest(
                    transactional_id=TransactionalId(name),
                    transaction_timeout=duration(TRANSACTION_TIMEOUT_S),
                    producer_id=ProducerId(-1),
                    producer_epoch=i16(-1),
                ),
                InitProducerIdResponse,
            )
        except (LogUnavailableError, AnswerLostError, ConfigurationError) as exc:
            logger.info("the transaction that %r has left open was not ended: %s", name, exc)
        else:
            # the answer is mostly that it is being ended
            logger.info("the transaction that %r has left open: %s", name, answer.error_code.name)

    async def _look(self) -> set[_Open]:
        """The open transactions of others that may hold the positions; nothing where nobody tells."""
        try:
            described = (await self._cluster.describe([POSITIONS_TOPIC]))[POSITIONS_TOPIC]
            partition = partition_of(self._group, len(described.leaders))
            found: set[_Open] = set()
            for node in list(self._cluster.nodes):
                listed = await self._cluster.send(
                    node,
                    ListTransactionsRequest(state_filters=("Ongoing",)),
                    ListTransactionsResponse,
                )
                names = tuple(
                    each.transactional_id
                    for each in listed.transaction_states
                    if each.transactional_id.startswith(self._prefix)
                )
                if not names:
                    continue
                states = await self._cluster.send(
                    node,
                    DescribeTransactionsRequest(transactional_ids=names),
                    DescribeTransactionsResponse,
                )
                found |= {
                    _Open(each.transactional_id, each.producer_epoch, each.transaction_start_time)
                    for each in states.transaction_states
                    if not each.error_code
                    and any(
                        topic.topic == POSITIONS_TOPIC and partition in topic.partitions
                        for topic in each.topics
                    )
                }
        except (LogUnavailableError, AnswerLostError, ConfigurationError, KeyError) as exc:
            logger.info("open transactions of group %r were not found: %s", self._group, exc)
            return set()
        return found


class _Open(NamedTuple):
    """An open transaction, and no other of the same name."""

    transactional_id: str
    epoch: int
    since: object
