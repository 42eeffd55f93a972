"""Kafka brokers pass the suite: each of the two protocols for transactions has one."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kio.schema.errors import ErrorCode
from kio.schema.produce import v12

from millstream.errors import LogUnavailableError, MillstreamError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import Epoch, OffsetAndMetadata
from millstream.transports.kafka import _cluster, _produce, _transactions
from millstream.transports.kafka.transport import KafkaTransport
from tests.brokers import Cluster, unique
from tests.integration.groups import evict
from tests.transports.conformance import *  # noqa: F403

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOPICS = ["a", "b", "right", "short", "t", "table"]
GROUPS = ["g", "h"]
DEADLINE_S = 30.0


class KafkaLab:
    """A broker of the tests' own, without what the suite has left there before."""

    dense = False

    def __init__(self, broker: Cluster) -> None:
        self._broker = broker
        admin = broker.admin()

        def there() -> set[str]:
            return set(admin.list_topics(timeout=DEADLINE_S).topics) & set(TOPICS)

        if old := sorted(there()):
            for deleted in admin.delete_topics(old).values():
                deleted.result(DEADLINE_S)
        patience = time.monotonic() + DEADLINE_S
        while left := there():  # a broker lists one for a moment after it is deleted
            assert time.monotonic() < patience, f"{left} were deleted, and are still listed"
        groups = {each.group_id for each in admin.list_consumer_groups().result(DEADLINE_S).valid}
        for name in groups & set(GROUPS):
            admin.delete_consumer_groups([name])[name].result(DEADLINE_S)

    def open_transport(self) -> KafkaTransport:
        return KafkaTransport(self._broker.url)

    async def evict(self, group: str, member_id: str) -> None:
        await evict(self._broker.url, group, member_id)

    def advance(self, milliseconds: int) -> None:
        pytest.skip("a broker has its own clock")


@pytest.fixture(scope="session")
def classic_kafka() -> Iterator[Cluster]:
    """A broker of today whose transactions are those from before KIP-890."""
    with Cluster(features={"transaction.version": 0}) as cluster:
        yield cluster


@pytest.fixture(params=["own_kafka", "classic_kafka"], ids=["KIP-890", "classic"])
def lab(request: pytest.FixtureRequest) -> KafkaLab:
    """A broker as if it were new, for each of the two protocols of transactions."""
    return KafkaLab(request.getfixturevalue(request.param))


# the order of requests of a transaction, and what is sent again: before KIP-890, and since

EPOCHS = 30
"""So many one after the other meet the markers of the one before."""


async def _commit_some(kafka: Cluster) -> None:
    """Epochs with records and positions, one right after the other, of which all are there in the end."""
    topic, group = kafka.topic("records"), unique("group")
    tp = TopicPartition(topic, 0)
    async with KafkaTransport(kafka.url) as transport:
        for number in range(1, EPOCHS + 1):
            await transport.commit(
                Epoch(
                    group=group,
                    member_id="",
                    generation=-1,
                    offsets={tp: OffsetAndMetadata(number, "")},
                    records={tp: [OutgoingRecord(number, b"k", b"v", [])]},
                )
            )
        assert (await transport.committed(group, [tp]))[tp].offset == EPOCHS
    assert len(kafka.read(topic)) == EPOCHS


async def _nothing(*_: object) -> None:
    pass


def _leave_out(name: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_transactions.Transactions, name, _nothing)


def _take_no_for_an_answer(patch: pytest.MonkeyPatch) -> None:
    again = _transactions._AGAIN - {ErrorCode.concurrent_transactions}
    patch.setattr(_transactions, "_AGAIN", again)


async def test_the_order_of_requests(classic_kafka: Cluster) -> None:
    """Partitions and positions are announced first, and what the markers of the epoch before hold up is sent again."""
    await _commit_some(classic_kafka)


@pytest.mark.parametrize(
    "mutate",
    [
        partial(_leave_out, "_add_partitions"),
        partial(_leave_out, "_add_offsets"),
        _take_no_for_an_answer,
    ],
    ids=["no AddPartitionsToTxn", "no AddOffsetsToTxn", "CONCURRENT_TRANSACTIONS is an error"],
)
async def test_another_order_is_found(
    classic_kafka: Cluster,
    mutate: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker refuses it."""
    mutate(monkeypatch)
    with pytest.raises(MillstreamError):
        await _commit_some(classic_kafka)


async def test_what_is_refused_for_a_moment(own_kafka: Cluster) -> None:
    """Since KIP-890 nothing is announced, and what comes before the last epoch's markers are written is sent again."""
    await _commit_some(own_kafka)


async def test_no_is_taken_for_an_answer(
    own_kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker says CONCURRENT_TRANSACTIONS here as well."""
    _take_no_for_an_answer(monkeypatch)
    with pytest.raises(MillstreamError, match="concurrent_transactions"):
        await _commit_some(own_kafka)


def _refuse_to_produce(patch: pytest.MonkeyPatch, code: ErrorCode, *, times: int) -> list[int]:
    """Answer the next Produce requests with a code; they do not arrive. How many there were, in all."""
    send, seen = _cluster.Cluster.send, [0]

    async def refuse(
        self: _cluster.Cluster, node: int, request: Any, response: Any, **how: Any
    ) -> Any:
        if not isinstance(request, v12.ProduceRequest):
            return await send(self, node, request, response, **how)
        seen[0] += 1
        if seen[0] > times:
            return await send(self, node, request, response, **how)
        return SimpleNamespace(
            responses=[
                SimpleNamespace(
                    name=topic.name,
                    partition_responses=[
                        SimpleNamespace(index=part.index, error_code=code, base_offset=-1)
                        for part in topic.partition_data
                    ],
                )
                for topic in request.topic_data
            ]
        )

    patch.setattr(_cluster.Cluster, "send", refuse)
    return seen


MOMENTARY = [ErrorCode.not_enough_replicas, ErrorCode.concurrent_transactions]
"""How brokers from 4.0 on say that the markers of the last transaction are not written: 4.0 the first, 4.1 either."""


@pytest.mark.parametrize("code", MOMENTARY, ids=lambda code: code.name)
async def test_a_partition_that_cannot_join_yet(
    own_kafka: Cluster, code: ErrorCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records are sent again under the same sequence, and are there once."""
    seen = _refuse_to_produce(monkeypatch, code, times=5)
    await _commit_some(own_kafka)
    assert seen[0] >= EPOCHS + 5


async def test_a_partition_that_never_may_join(
    own_kafka: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That ends as well, with nothing written: too few replicas are said with the same code."""
    monkeypatch.setattr(_transactions, "FILL_TIMEOUT_S", 0.3)
    seen = _refuse_to_produce(monkeypatch, ErrorCode.not_enough_replicas, times=10_000)
    with pytest.raises(LogUnavailableError, match=r"not_enough_replicas \(19\)"):
        await _commit_some(own_kafka)
    assert 1 < seen[0] < 200


def _refusals_end_it(code: ErrorCode, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(_produce, "_AGAIN", _produce._AGAIN - {code})


def _another_sequence(_: ErrorCode, patch: pytest.MonkeyPatch) -> None:
    judge = _produce._judge

    def moving(
        cluster: Any, identity: Any, tp: TopicPartition, queue: Any, *facts: Any, **more: Any
    ) -> Any:
        identity.sequences[tp] = identity.sequences.get(tp, 0) + 1
        queue.batch = b""
        return judge(cluster, identity, tp, queue, *facts, **more)

    patch.setattr(_produce, "_judge", moving)


@pytest.mark.parametrize("mutate", [_refusals_end_it, _another_sequence])
@pytest.mark.parametrize("code", MOMENTARY, ids=lambda code: code.name)
async def test_not_sent_again_is_found(
    own_kafka: Cluster,
    code: ErrorCode,
    mutate: Callable[[ErrorCode, pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor is another sequence taken."""
    mutate(code, monkeypatch)
    _refuse_to_produce(monkeypatch, code, times=1)
    with pytest.raises(MillstreamError):
        await _commit_some(own_kafka)
