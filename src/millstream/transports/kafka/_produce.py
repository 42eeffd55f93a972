"""Writing records to the leaders of their partitions, once each, whatever is repeated on the way.

A producer has an id and an epoch from the broker, and numbers the records of each partition. The broker takes
a batch whose number follows on the last one, and answers a repeated batch with what it answered the first time
(KIP-98): a request without an answer is simply sent again. One batch of a partition is on its way at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from kio.schema.errors import ErrorCode
from kio.schema.produce import v9, v12
from kio.schema.produce.v9 import request as v9_parts
from kio.schema.produce.v12 import request as v12_parts
from kio.schema.types import TopicName, TransactionalId
from kio.static.primitive import Records, i16, i32

from millstream.errors import FencedError, LogUnavailableError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.batch import (
    PACK_BYTES,
    Producer,
    RecordPack,
    iterate_records,
    packed,
    sign,
)
from millstream.transports.kafka._errors import (
    LEADER_MOVED,
    AnswerLostError,
    Patience,
    refusal,
)
from millstream.transports.kafka._messages import by_topic, duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.transports.batch import Outgoing
    from millstream.transports.kafka._cluster import Cluster, Leader

__all__ = ["FENCED", "Identity", "TakenError", "TooLargeError", "Written", "fenced", "write"]

REQUEST_BYTES = 8 << 20
"""Batches of several partitions in one request, together; brokers take 100 MB."""
SLICE_BYTES = 100_000
"""What may be built before the event loop turns."""
BATCH_FRONT_BYTES = 61
BROKER_TIMEOUT_S = 3.0
"""How long a leader waits for its replicas."""
ANSWER_TIMEOUT_S = 5.0

_MESSAGES: dict[bool, tuple[Any, Any]] = {False: (v9, v9_parts), True: (v12, v12_parts)}
"""By whether it is the newer protocol; both versions look alike."""

FENCED = frozenset(
    {
        ErrorCode.invalid_producer_epoch,
        ErrorCode.producer_fenced,
        ErrorCode.invalid_producer_id_mapping,
    }
)
"""Somebody else has taken the transactional id, or the transaction was ended for us."""

_AGAIN = LEADER_MOVED | {
    ErrorCode.unknown_topic_or_partition,  # the leader has not heard of it yet, or it is gone
    ErrorCode.not_enough_replicas,  # also said where a transaction is just ending (KIP-890)
    ErrorCode.not_enough_replicas_after_append,
    ErrorCode.request_timed_out,
    ErrorCode.network_exception,
    ErrorCode.concurrent_transactions,
    ErrorCode.coordinator_load_in_progress,
    ErrorCode.coordinator_not_available,
    ErrorCode.not_coordinator,
}
_PERHAPS = frozenset(
    {
        ErrorCode.not_enough_replicas_after_append,
        ErrorCode.request_timed_out,
        ErrorCode.network_exception,
    }
)
"""It may be in the log all the same."""
_TOO_LARGE = frozenset({ErrorCode.message_too_large, ErrorCode.record_list_too_large})


class TooLargeError(Exception):
    """One record is more than its topic takes. Never leaves the transport."""

    def __init__(self, tp: TopicPartition, record: OutgoingRecord, size: int) -> None:
        super().__init__(f"{TopicPartition(*tp)}: a record of {size} bytes")
        self.tp, self.record, self.size = tp, record, size


class TakenError(FencedError):
    """Somebody else has ended our transaction, or begun one under our id."""


class Written(NamedTuple):
    """Where a partition's records are: the offset of the first, and the one after the last."""

    first: int
    next: int


@dataclass(slots=True)
class Identity:
    """Who writes. ``producer_id`` is -1 until the broker has given one."""

    transactional_id: str | None = None
    producer_id: int = -1
    epoch: int = -1
    sequences: dict[TopicPartition, int] = field(default_factory=dict)
    """What the next record of each partition has; 0 where nothing was written yet."""

    def become(self, producer_id: int, epoch: int) -> None:
        """Take what the broker gave; the sequences begin again unless it is what we had."""
        if (producer_id, epoch) != (self.producer_id, self.epoch):
            self.producer_id, self.epoch = producer_id, epoch
            self.sequences.clear()


@dataclass(slots=True)
class _Queue:
    """What is left of one partition's batches, and the one that is on its way."""

    left: deque[tuple[bytearray, int]]
    """Batches, and how many records are in each; the first one may be on its way."""
    batch: bytes = b""
    """The one that is on its way."""
    bytes_max: int = PACK_BYTES
    first: int = -1
    next: int = -1

    @property
    def count(self) -> int:
        """Records of the batch that is on its way."""
        return self.left[0][1]

    def load(self, producer: Producer) -> None:
        """Make the next batch ready, if there is none on its way."""
        if not self.batch:
            if len(self.left[0][0]) > self.bytes_max and self.count > 1:
                self._split()
            batch, _ = self.left[0]
            sign(batch, producer)
            self.batch = bytes(batch)

    def halve(self) -> bool:
        """Make the next batch smaller; False where it is one record already."""
        if self.count == 1:
            return False
        self.bytes_max = max(1, min(self.bytes_max, len(self.batch)) // 2)
        self.batch = b""
        return True

    def _split(self) -> None:
        batch, _ = self.left.popleft()
        records = iterate_records(bytes(batch), where="a batch on its way")
        again = (OutgoingRecord(r.timestamp, r.key, r.value, list(r.headers)) for r in records)
        self.left.extendleft(reversed(RecordPack(again, bytes_max=self.bytes_max).batches()))

    def record(self) -> OutgoingRecord:
        """The first one of the batch that is on its way."""
        first = next(iter(iterate_records(self.batch, where="a batch on its way")))
        return OutgoingRecord(first.timestamp, first.key, first.value, list(first.headers))

    def done(self, base_offset: int) -> bool:
        """The batch is in the log; whether that was all."""
        if self.first < 0:
            self.first = base_offset
        self.next = base_offset + self.count
        self.left.popleft()
        self.batch = b""
        return not self.left


def fenced(identity: Identity, code: ErrorCode, *, where: str) -> TakenError:
    """The error for `FENCED`."""
    return TakenError(
        f"{where}: the transaction of {identity.transactional_id!r} was ended by somebody else"
        f" ({code.name}), or took too long; nothing of it is visible. If it happens again and again,"
        f" two workers share one slot: give each a slot of its own."
    )


async def write(
    cluster: Cluster,
    identity: Identity,
    records: Mapping[TopicPartition, Outgoing],
    *,
    newer: bool,
    within_s: float,
    whole: bool = False,
) -> dict[TopicPartition, Written]:
    """Write everything, and return when all replicas in sync have it.

    Args:
        newer: send Produce v12, with which a partition joins the transaction by itself.
        within_s: how long to try.
        whole: one batch for each partition, or none.

    Raises:
        AnswerLostError: something may be in the log that should not be, or the other way round: the
            producer needs a new epoch.
        LogUnavailableError: it did not work in that time, and nothing is left in doubt.
        TooLargeError: a record that its topic does not take.
        UnknownTopicError, FencedError, ConfigurationError, TransportError: as their names say.
    """
    patience = Patience(within_s, first_s=0.002, longest_s=0.25)
    queues = {tp: _Queue(deque(packed(some).batches())) for tp, some in records.items() if some}
    written: dict[TopicPartition, Written] = {}
    doubtful: set[TopicPartition] = set()
    while queues:
        leaders = await cluster.leaders(queues)
        by_node: dict[int, list[TopicPartition]] = {}
        loaded: dict[int, int] = {}
        for tp, queue in queues.items():
            node = leaders[tp].node
            if loaded.get(node, 0) >= REQUEST_BYTES:
                continue
            queue.load(
                Producer(
                    identity.producer_id,
                    identity.epoch,
                    identity.sequences.get(tp, 0),
                    identity.transactional_id is not None,
                )
            )
            if whole and len(queue.left) > 1:
                raise TooLargeError(tp, queue.record(), len(queue.batch))
            by_node.setdefault(node, []).append(tp)
            loaded[node] = loaded.get(node, 0) + len(queue.batch)
            if len(queue.batch) > SLICE_BYTES:
                await asyncio.sleep(0)  # building a batch takes up to 10 ms
        answers = await asyncio.gather(
            *(
                _send(cluster, identity, node, {tp: queues[tp] for tp in tps}, newer=newer)
                for node, tps in by_node.items()
            )
        )
        again: Exception | None = None
        for answer in answers:
            for tp, outcome in answer.items():
                if not isinstance(outcome, (ErrorCode, Exception)):
                    doubtful.discard(tp)
                    sent = queues[tp].count
                    identity.sequences[tp] = (identity.sequences.get(tp, 0) + sent) & 0x7FFFFFFF
                    if queues[tp].done(outcome):
                        queue = queues.pop(tp)
                        written[tp] = Written(queue.first, queue.next)
                    continue
                if isinstance(outcome, AnswerLostError) or outcome in _PERHAPS:
                    doubtful.add(tp)
                again = (
                    _judge(cluster, identity, tp, queues[tp], outcome, leaders[tp], whole=whole)
                    or again
                )
        if again is not None:
            try:
                await patience.pause(again)
            except LogUnavailableError as exc:
                if doubtful:
                    raise AnswerLostError(str(exc)) from exc
                raise
    return written


def _judge(
    cluster: Cluster,
    identity: Identity,
    tp: TopicPartition,
    queue: _Queue,
    outcome: ErrorCode | Exception,
    leader: Leader,
    *,
    whole: bool,
) -> Exception | None:
    """What to say if it is not tried again; raises where that would be of no use."""
    name = str(TopicPartition(*tp))
    if isinstance(outcome, Exception):
        cluster.forget_leader(tp, leader.epoch)
        return outcome
    if outcome in _TOO_LARGE:
        if not whole and queue.halve():
            return None
        raise TooLargeError(tp, queue.record(), len(queue.batch) - BATCH_FRONT_BYTES)
    if outcome in FENCED:
        raise fenced(identity, outcome, where=cluster.url)
    if outcome in (
        ErrorCode.out_of_order_sequence_number,
        ErrorCode.unknown_producer_id,
        ErrorCode.duplicate_sequence_number,
    ):
        raise AnswerLostError(f"{cluster.url} has lost track of what we wrote to {name}")
    if outcome not in _AGAIN:
        raise refusal(outcome, f"write to {name}", where=cluster.url)
    if outcome in LEADER_MOVED or outcome is ErrorCode.unknown_topic_or_partition:
        cluster.forget_leader(tp, leader.epoch)
    return LogUnavailableError(
        f"{cluster.url} cannot write to {name} now: {outcome.name} ({outcome.value})"
    )


async def _send(
    cluster: Cluster,
    identity: Identity,
    node: int,
    queues: Mapping[TopicPartition, _Queue],
    *,
    newer: bool,
) -> dict[TopicPartition, int | ErrorCode | Exception]:
    """One request: for each partition the offset of its batch, or what went wrong."""
    produce, parts = _MESSAGES[newer]
    transactional_id = identity.transactional_id
    request = produce.ProduceRequest(
        transactional_id=None if transactional_id is None else TransactionalId(transactional_id),
        acks=i16(-1),
        timeout=duration(BROKER_TIMEOUT_S),
        topic_data=tuple(
            parts.TopicProduceData(
                name=TopicName(name),
                partition_data=tuple(
                    parts.PartitionProduceData(index=i32(number), records=Records(queue.batch))
                    for number, queue in partitions.items()
                ),
            )
            for name, partitions in by_topic(queues).items()
        ),
    )
    try:
        answer: v12.ProduceResponse = await cluster.send(
            node, request, produce.ProduceResponse, timeout_s=ANSWER_TIMEOUT_S
        )
    except (LogUnavailableError, AnswerLostError) as exc:
        return dict.fromkeys(queues, exc)
    found: dict[TopicPartition, int | ErrorCode | Exception] = {}
    for topic in answer.responses:
        for part in topic.partition_responses:
            tp = TopicPartition(topic.name, part.index)
            found[tp] = part.error_code if part.error_code else int(part.base_offset)
    return {
        tp: found.get(tp, AnswerLostError(f"no answer for {TopicPartition(*tp)}")) for tp in queues
    }
