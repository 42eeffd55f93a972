"""Transactions of one transactional id, one after the other.

Theory of operation
-------------------
Two protocols; which one a broker speaks is in its finalized features (``transaction.version``).

Classic::

    AddPartitionsToTxn, AddOffsetsToTxn      to the transaction's coordinator
    Produce   and   TxnOffsetCommit          to the leaders, and to the group's coordinator, together
    EndTxn (commit)                          to the transaction's coordinator

From transaction version 2 on (KIP-890) the first line falls away: partitions and the group join the
transaction with the first request that names them. EndTxn's answer gives the producer a new epoch, so that
nothing of an earlier transaction can get into a later one.

A transaction becomes visible by EndTxn alone. Until it is sent, whatever goes wrong leaves nothing; after it
was sent without an answer it is repeated, until the answer is definite. Abort is InitProducerId: it ends what
is open and gives a new epoch, and so a request that is still on its way cannot open the transaction again
(before KIP-890, EndTxn (abort) would let it).

For a few ms after EndTxn the coordinator is still writing markers: what comes meanwhile is answered with
CONCURRENT_TRANSACTIONS, by Produce also with NOT_ENOUGH_REPLICAS, and is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from kio.schema.add_offsets_to_txn.v3 import AddOffsetsToTxnRequest, AddOffsetsToTxnResponse
from kio.schema.add_partitions_to_txn.v3 import (
    AddPartitionsToTxnRequest,
    AddPartitionsToTxnResponse,
)
from kio.schema.add_partitions_to_txn.v3.request import AddPartitionsToTxnTopic
from kio.schema.end_txn import v3 as end_v3
from kio.schema.end_txn import v5 as end_v5
from kio.schema.errors import ErrorCode
from kio.schema.init_producer_id.v4 import InitProducerIdRequest, InitProducerIdResponse
from kio.schema.produce import v12
from kio.schema.txn_offset_commit import v3 as offsets_v3
from kio.schema.txn_offset_commit import v5 as offsets_v5
from kio.schema.txn_offset_commit.v3 import request as offsets_v3_parts
from kio.schema.txn_offset_commit.v5 import request as offsets_v5_parts
from kio.schema.types import GroupId, ProducerId, TopicName, TransactionalId
from kio.static.primitive import i16, i32, i64

from millstream.errors import (
    ConfigurationError,
    FencedError,
    IllegalGenerationError,
    LogUnavailableError,
    MillstreamError,
    OutcomeUnknownError,
    UnknownMemberError,
    UnknownTopicError,
)
from millstream.hooks import reached
from millstream.transports.kafka._cluster import GROUP, TRANSACTION
from millstream.transports.kafka._errors import (
    COORDINATOR_MOVED,
    AnswerLostError,
    Patience,
    refusal,
)
from millstream.transports.kafka._messages import by_topic, duration, numbers
from millstream.transports.kafka._produce import (
    FENCED,
    Identity,
    TakenError,
    Written,
    fenced,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kio.static.protocol import Payload

    from millstream.records import TopicPartition
    from millstream.transports.base import OffsetAndMetadata
    from millstream.transports.batch import Outgoing
    from millstream.transports.kafka._cluster import Cluster

__all__ = ["Positions", "Transactions"]

R = TypeVar("R", bound="Payload")

logger = logging.getLogger("millstream.transports.kafka")

TRANSACTION_TIMEOUT_S = 10.0
"""After so long the broker ends a transaction that we have left open."""
FILL_TIMEOUT_S = 8.0
"""How long we try to write what belongs into one."""
END_TIMEOUT_S = 30.0
"""How long we ask for the outcome."""
ABORT_TIMEOUT_S = 5.0
BEGIN_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 3.0
"""How long a coordinator may take; then it is looked up again, and asked again."""
NEWER = 2
"""The level of the feature ``transaction.version`` from which on KIP-890 holds."""

TAKEN_S = 1.0
"""A transaction that somebody ends sooner than this was in nobody's way: its id is used elsewhere (see `Relief`)."""
TAKEN_TIMES = 3
TAKEN_WITHIN_S = 60.0
"""So often in so long is no restart of a worker any more."""

_AGAIN = (
    COORDINATOR_MOVED
    | {
        ErrorCode.concurrent_transactions,
        ErrorCode.request_timed_out,
        ErrorCode.not_enough_replicas,
        ErrorCode.unknown_server_error,  # a coordinator in the middle of fencing us (4.1): the next answer is definite
    }
)
_OFFSETS: dict[bool, tuple[Any, Any]] = {
    False: (offsets_v3, offsets_v3_parts),
    True: (offsets_v5, offsets_v5_parts),
}
"""By whether it is the newer protocol; both versions look alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """What a group's member commits in a transaction."""

    group: str
    member_id: str
    generation: int
    offsets: Mapping[TopicPartition, OffsetAndMetadata]


class Transactions:
    """Writes of one transactional id.

    Args:
        cluster: where.
        transactional_id: gives it, when it is first needed. Whoever uses it next ends what this one has
            open, and fences it.
    """

    def __init__(self, cluster: Cluster, transactional_id: Callable[[], str]) -> None:
        self._cluster = cluster
        self._named = transactional_id
        self._id = Identity()
        self._lock = asyncio.Lock()
        self._running: set[asyncio.Task[object]] = set()
        self._clean = False
        """Whether we have an epoch, and no transaction of it is open."""
        self._taken: deque[float] = deque(maxlen=TAKEN_TIMES)
        """When somebody else was seen to use our transactional id, the last few times."""
        self._left: ConfigurationError | None = None
        """Why it is the other one's from now on. Who has begun last lives: so we never begin again."""

    async def commit(
        self,
        records: Mapping[TopicPartition, Outgoing],
        positions: Positions | None = None,
    ) -> dict[TopicPartition, Written]:
        """Write records and positions, all of it or nothing. Cancelled, it is carried out all the same.

        Raises:
            TooLargeError: a record that its topic does not take; nothing was written.
            UnknownTopicError, IllegalGenerationError, UnknownMemberError, FencedError,
            LogUnavailableError, ConfigurationError, TransportError: nothing was written. The last but one also
                where others use our transactional id again and again.
            OutcomeUnknownError: it may be visible, or never be.
        """
        task = asyncio.ensure_future(self._commit(records, positions))
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def claim(self) -> None:
        """Get an epoch before there is anything to write: who had the transactional id is fenced now.

        Raises:
            ConfigurationError: the brokers do not let us use it.
            LogUnavailableError: there was no answer in time.
        """
        async with self._lock:
            if not self._clean:
                await self._begin(BEGIN_TIMEOUT_S)

    async def settle(self, *, take: bool = False) -> None:
        """Wait for what runs, and end a transaction that could not be ended before.

        Args:
            take: also that of whoever had the transactional id before us.
        """
        async with self._lock:
            if self._left is None and not self._clean and (take or self._id.producer_id >= 0):
                with contextlib.suppress(FencedError):
                    await self._begin(ABORT_TIMEOUT_S)

    async def close(self) -> None:
        """Wait for what runs."""
        while self._running:
            await asyncio.wait(self._running)

    # inside

    @property
    def _name(self) -> str:
        if self._id.transactional_id is None:
            self._id.transactional_id = self._named()
        return self._id.transactional_id

    def _finished(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # who waited for it may be gone

    async def _commit(
        self,
        records: Mapping[TopicPartition, Outgoing],
        positions: Positions | None,
    ) -> dict[TopicPartition, Written]:
        async with self._lock:
            if not self._clean:
                await self._begin(BEGIN_TIMEOUT_S)
            newer = await self._newer()
            self._clean = False
            began = time.monotonic()
            try:
                written = await self._fill(records, positions, newer)
                await self._end(newer)
            except TakenError as exc:
                self._taken_over(exc, began)
                raise
            self._clean = True
            return written

    def _taken_over(self, error: TakenError, began: float) -> None:
        """Somebody has ended the transaction that began then; the next time we take the id, and fence the other.

        Nothing is asked under the old epoch any more. While the other has a transaction open, an
        InitProducerId with the right producer id and an epoch that is long gone ends it all the same: the
        coordinator compares epochs only where none is open.

        Raises:
            ConfigurationError: it uses our transactional id, and not for the first time.
        """
        self._id.become(-1, -1)
        now = time.monotonic()
        if now - began >= TAKEN_S:
            return
        self._taken.append(now)
        if len(self._taken) == TAKEN_TIMES and now - self._taken[0] < TAKEN_WITHIN_S:
            self._left = ConfigurationError(
                f"two workers share one slot: {TAKEN_TIMES} times in {now - self._taken[0]:.0f} s somebody else"
                f" has used {self._name!r} for transactions at {self._cluster.url}. This worker ends here, and"
                f" the other one goes on. Give each a slot of its own (slot=)"
            )
            raise self._left from error

    async def _newer(self) -> bool:
        """Whether the cluster has the newer protocol, as the coordinator's connection has it."""
        node = await self._cluster.coordinator(TRANSACTION, self._name)
        connection = await self._cluster.connection(node)
        return connection.features.get("transaction.version", 0) >= NEWER and all(
            map(
                connection.supports,
                (v12.ProduceRequest, end_v5.EndTxnRequest, offsets_v5.TxnOffsetCommitRequest),
            )
        )

    async def _fill(
        self,
        records: Mapping[TopicPartition, Outgoing],
        positions: Positions | None,
        newer: bool,
    ) -> dict[TopicPartition, Written]:
        """Write what belongs into a transaction; ends it where that does not work."""
        try:
            return await self._write(records, positions, newer)
        except TakenError:
            raise  # there is nothing to end: see `_taken_over`
        except Exception as exc:
            await self._abort()
            if isinstance(exc, AnswerLostError):
                raise LogUnavailableError(
                    f"a commit was given up before its end, nothing of it is visible: {exc}"
                ) from exc
            raise

    async def _write(
        self,
        records: Mapping[TopicPartition, Outgoing],
        positions: Positions | None,
        newer: bool,
    ) -> dict[TopicPartition, Written]:
        facts: dict[str, object] = {}
        if positions is not None:
            facts = {
                "group": positions.group,
                "member_id": positions.member_id,
                "generation": positions.generation,
            }
            reached("commit.writing", **facts)
        patience = Patience(FILL_TIMEOUT_S, first_s=0.002, longest_s=0.25)
        if not newer:
            await self._add_partitions([tp for tp, some in records.items() if some], patience)
            if positions is not None and positions.offsets:
                await self._add_offsets(positions.group, patience)
        writing = asyncio.ensure_future(
            write(self._cluster, self._id, records, newer=newer, within_s=patience.left_s)
        )
        try:
            if positions is not None and positions.offsets:
                await self._offsets(positions, patience, newer)
            written = await writing
        finally:
            if not writing.done():
                writing.cancel()
            await asyncio.wait([writing])
            if not writing.cancelled():
                writing.exception()
        if positions is not None:
            reached("commit.appended", **facts)
            reached("commit.positioned", **facts)
        return written

    # requests to coordinators

    async def _begin(self, within_s: float) -> None:
        """Get an epoch; ends what is open under the one before."""
        if self._left is not None:
            raise self._left
        doing = f"begin with transactional id {self._name!r}"
        try:
            answer = await self._ask(
                InitProducerIdRequest(
                    transactional_id=TransactionalId(self._name),
                    transaction_timeout=duration(TRANSACTION_TIMEOUT_S),
                    producer_id=ProducerId(self._id.producer_id),
                    producer_epoch=i16(self._id.epoch),
                ),
                InitProducerIdResponse,
                lambda answer: [answer.error_code],
                kind=TRANSACTION,
                key=self._name,
                patience=Patience(within_s, first_s=0.002, longest_s=0.5),
                doing=doing,
            )
        except AnswerLostError as exc:  # an epoch more, and nothing else
            raise LogUnavailableError(str(exc)) from exc
        code = answer.error_code
        if not code:
            self._id.become(answer.producer_id, answer.producer_epoch)
            self._clean = True
            return
        if code in FENCED:
            error = fenced(self._id, code, where=self._cluster.url)
            self._id.become(-1, -1)
            raise error
        if code is ErrorCode.invalid_transaction_timeout:
            raise ConfigurationError(
                f"{self._cluster.url} does not allow transactions of {TRANSACTION_TIMEOUT_S:g} s:"
                f" raise the broker's transaction.max.timeout.ms"
            )
        raise refusal(code, doing, where=self._cluster.url)

    async def _abort(self) -> None:
        """End what is open, as far as that is possible now; else the broker does it after its time-out."""
        try:
            await self._begin(ABORT_TIMEOUT_S)
        except MillstreamError as exc:
            logger.info("a transaction was left open: %s", exc)

    async def _add_partitions(self, tps: Sequence[TopicPartition], patience: Patience) -> None:
        if not tps:
            return
        answer = await self._ask(
            AddPartitionsToTxnRequest(
                v3_and_below_transactional_id=TransactionalId(self._name),
                v3_and_below_producer_id=ProducerId(self._id.producer_id),
                v3_and_below_producer_epoch=i16(self._id.epoch),
                v3_and_below_topics=tuple(
                    AddPartitionsToTxnTopic(name=TopicName(name), partitions=found)
                    for name, found in numbers(tps).items()
                ),
            ),
            AddPartitionsToTxnResponse,
            lambda answer: [
                part.partition_error_code
                for topic in answer.results_by_topic_v3_and_below
                for part in topic.results_by_partition
            ],
            kind=TRANSACTION,
            key=self._name,
            patience=patience,
            doing="add partitions to a transaction",
        )
        for topic in answer.results_by_topic_v3_and_below:
            for part in topic.results_by_partition:
                code, where = part.partition_error_code, f"{topic.name}/{part.partition_index}"
                if code and code is not ErrorCode.operation_not_attempted:
                    self._refused(code, f"add {where} to a transaction", partition=where)

    async def _add_offsets(self, group: str, patience: Patience) -> None:
        doing = f"add the positions of group {group!r} to a transaction"
        answer = await self._ask(
            AddOffsetsToTxnRequest(
                transactional_id=TransactionalId(self._name),
                producer_id=ProducerId(self._id.producer_id),
                producer_epoch=i16(self._id.epoch),
                group_id=GroupId(group),
            ),
            AddOffsetsToTxnResponse,
            lambda answer: [answer.error_code],
            kind=TRANSACTION,
            key=self._name,
            patience=patience,
            doing=doing,
        )
        if answer.error_code:
            self._refused(answer.error_code, doing)

    async def _offsets(self, positions: Positions, patience: Patience, newer: bool) -> None:
        version, parts = _OFFSETS[newer]
        answer: offsets_v5.TxnOffsetCommitResponse = await self._ask(
            version.TxnOffsetCommitRequest(
                transactional_id=TransactionalId(self._name),
                group_id=GroupId(positions.group),
                producer_id=ProducerId(self._id.producer_id),
                producer_epoch=i16(self._id.epoch),
                generation_id=i32(positions.generation),
                member_id=positions.member_id,
                topics=tuple(
                    parts.TxnOffsetCommitRequestTopic(
                        name=TopicName(name),
                        partitions=tuple(
                            parts.TxnOffsetCommitRequestPartition(
                                partition_index=i32(number),
                                committed_offset=i64(offset),
                                committed_metadata=metadata,
                            )
                            for number, (offset, metadata) in found.items()
                        ),
                    )
                    for name, found in by_topic(positions.offsets).items()
                ),
            ),
            version.TxnOffsetCommitResponse,
            lambda answer: [
                part.error_code for topic in answer.topics for part in topic.partitions
            ],
            kind=GROUP,
            key=positions.group,
            patience=patience,
            doing=f"commit positions of group {positions.group!r}",
        )
        for topic in answer.topics:
            for part in topic.partitions:
                if part.error_code:
                    where = f"{topic.name}/{part.partition_index}"
                    self._refused(
                        part.error_code,
                        f"commit the position of {where} in group {positions.group!r}",
                        positions,
                        where,
                    )

    def _refused(
        self,
        code: ErrorCode,
        doing: str,
        positions: Positions | None = None,
        partition: str | None = None,
    ) -> NoReturn:
        if positions is not None:
            member = f"member {positions.member_id!r} of group {positions.group!r}"
            if code is ErrorCode.illegal_generation:
                raise IllegalGenerationError(
                    f"{member} is not in generation {positions.generation} any more; nothing of its"
                    f" epoch was written"
                )
            if code is ErrorCode.unknown_member_id:
                raise UnknownMemberError(
                    f"{member} was removed; nothing of its epoch was written. Its shards belong to"
                    f" others now: it must join again."
                )
            if code is ErrorCode.fenced_instance_id:
                raise FencedError(f"{member} was replaced; nothing of its epoch was written")
        if code in FENCED:
            raise fenced(self._id, code, where=self._cluster.url)
        if code is ErrorCode.unknown_topic_or_partition and partition is not None:
            raise UnknownTopicError(partition, where=self._cluster.url)
        if code in (ErrorCode.transaction_abortable, ErrorCode.invalid_txn_state):
            raise LogUnavailableError(f"{self._cluster.url} ended a transaction: {code.name}")
        raise refusal(code, doing, where=self._cluster.url)

    async def _end(self, newer: bool) -> None:
        """Commit, and know it."""
        request: Payload
        response: type[end_v3.EndTxnResponse] | type[end_v5.EndTxnResponse]
        version = end_v5 if newer else end_v3
        request, response = (
            version.EndTxnRequest(
                transactional_id=TransactionalId(self._name),
                producer_id=ProducerId(self._id.producer_id),
                producer_epoch=i16(self._id.epoch),
                committed=True,
            ),
            version.EndTxnResponse,
        )
        patience = Patience(END_TIMEOUT_S, first_s=0.002, longest_s=0.5)
        doubtful = False
        why = ""
        while True:
            try:
                node = await self._cluster.coordinator(TRANSACTION, self._name)
                answer = await self._cluster.send(
                    node, request, response, timeout_s=ANSWER_TIMEOUT_S
                )
            except AnswerLostError as exc:
                doubtful, why = True, str(exc)
            except (LogUnavailableError, ConfigurationError) as exc:
                why = str(exc)
            else:
                code = answer.error_code
                if not code:
                    if isinstance(answer, end_v5.EndTxnResponse):
                        self._id.become(answer.producer_id, answer.producer_epoch)
                    return
                why = code.name
                doubtful = doubtful or code is ErrorCode.unknown_server_error
                if code in FENCED:
                    if not doubtful:
                        self._refused(code, "end a transaction")
                    self._id.become(-1, -1)
                    raise self._unknown(why)
                if code not in _AGAIN:
                    if not doubtful:
                        await self._abort()
                        self._refused(code, "end a transaction")
                    break
            if why != ErrorCode.concurrent_transactions.name:
                self._cluster.forget_coordinator(TRANSACTION, self._name)
            try:
                await patience.pause(LogUnavailableError(why))
            except LogUnavailableError:
                break
        await self._abort()
        if not doubtful:
            raise LogUnavailableError(
                f"a commit could not be ended, nothing of it is visible: {why}"
            )
        raise self._unknown(why)

    def _unknown(self, why: str) -> OutcomeUnknownError:
        return OutcomeUnknownError(
            f"{self._cluster.url} did not say whether a commit is done ({why}): it is, or never will be"
        )

    async def _ask(
        self,
        request: Payload,
        response: type[R],
        codes: Callable[[R], Sequence[ErrorCode]],
        *,
        kind: int,
        key: str,
        patience: Patience,
        doing: str,
    ) -> R:
        """Ask a coordinator until it has an answer that asking again would not change.

        Raises:
            LogUnavailableError: there was none in time.
            AnswerLostError: there was none, and one request at least was sent.
        """
        lost = False
        while True:
            problem: Exception
            try:
                node = await self._cluster.coordinator(kind, key)
                answer = await self._cluster.send(
                    node, request, response, timeout_s=ANSWER_TIMEOUT_S
                )
            except (AnswerLostError, LogUnavailableError) as exc:
                lost = lost or isinstance(exc, AnswerLostError)
                self._cluster.forget_coordinator(kind, key)
                problem = exc
            else:
                found = {code for code in codes(answer) if code}
                if not found & _AGAIN:
                    return answer
                if found & COORDINATOR_MOVED:
                    self._cluster.forget_coordinator(kind, key)
                problem = LogUnavailableError(
                    f"{self._cluster.url} cannot {doing} now:"
                    f" {', '.join(sorted(code.name for code in found))}"
                )
            if lost and patience.left_s <= 0:
                raise AnswerLostError(str(problem))
            await patience.pause(problem)
