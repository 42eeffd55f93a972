"""What a real broker makes of epochs, appends and reads; an independent client looks at it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from kio.schema.end_txn import v3 as end_v3
from kio.schema.errors import ErrorCode
from kio.schema.types import ProducerId, TransactionalId
from kio.static.primitive import i16

from millstream.errors import (
    ConfigurationError,
    FencedError,
    LogUnavailableError,
    OutcomeUnknownError,
    RecordTooLargeError,
    UnknownTopicError,
)
from millstream.hooks import observe
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import OffsetAndMetadata, TopicSpec
from millstream.transports.batch import iterate_records
from millstream.transports.kafka import KafkaTransport, _cluster, _produce, _transactions
from millstream.transports.kafka._cluster import TRANSACTION
from tests.brokers import Record, proxies, unique
from tests.brokers.messages import Action, Api
from tests.integration.groups import evict, member_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.brokers import Cluster, Kafka
    from tests.brokers.proxy import Proxy

DEADLINE_S = 30.0
LATE_S = 5.0


def rec(key: str, value: str = "v", *, at: int = 1_000) -> OutgoingRecord:
    """A record with text for bytes."""
    return OutgoingRecord(at, key.encode(), value.encode(), [])


async def read(transport: KafkaTransport, tp: TopicPartition) -> list[str]:
    """The keys of a partition, as our reader brings them."""
    reader = transport.reader()
    position = (await transport.start_offsets([tp]))[tp]
    end = (await transport.end_offsets([tp]))[tp]
    found: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        while position < end:
            for fetched in await reader.fetch({tp: position}, max_bytes=1 << 20, max_wait_s=1):
                found += [
                    record.key.decode()
                    for record in iterate_records(fetched.data, where=str(tp), position=position)
                ]
                position = fetched.next_offset
    await reader.close()
    return found


def last_stable(kafka: Kafka, topic: str) -> int:
    """Where readers of committed records have to stop for now."""
    from confluent_kafka import IsolationLevel
    from confluent_kafka import TopicPartition as Partition
    from confluent_kafka.admin import OffsetSpec

    admin = kafka.admin()
    (found,) = admin.list_offsets(
        {Partition(topic, 0): OffsetSpec.latest()},  # type: ignore[no-untyped-call]
        isolation_level=IsolationLevel.READ_COMMITTED,
    ).values()
    return int(found.result(DEADLINE_S).offset)


@pytest.fixture(params=["kafka", "old_kafka"], ids=["newest", "Kafka 2.8"])
def either(request: pytest.FixtureRequest) -> Kafka:
    """A broker with the transactions of today, and one with those from before KIP-890."""
    found: Kafka = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def transport(kafka: Kafka) -> AsyncIterator[KafkaTransport]:
    """A transport to the broker that all share."""
    async with KafkaTransport(kafka.url) as opened:
        yield opened


# epochs


async def test_epochs_by_either_protocol(either: Kafka) -> None:
    """One after the other: records and positions are there for an independent client."""
    topic, group = either.topic(partitions=2), unique("group")
    one, two = TopicPartition(topic, 0), TopicPartition(topic, 1)
    member = await member_of(either.url, group)
    async with KafkaTransport(either.url) as transport:
        for number in range(20):
            await transport.commit(
                member.epoch({one: number + 1}, {one: [rec(f"{number}")] * 3, two: [rec("x")]})
            )
        assert await transport.committed(group, [one]) == {one: OffsetAndMetadata(20)}
        assert await read(transport, one) == [f"{n}" for n in range(20) for _ in range(3)]
    found = either.read(topic)
    assert [record.key for record in found if record.partition == 0] == [
        b"%d" % number for number in range(20) for _ in range(3)
    ]
    assert len(found) == 80


async def test_an_aborted_epoch_is_not_read(either: Kafka) -> None:
    """What fails between two epochs leaves offsets, and no record; open ones hide what is behind them."""
    topic, group = either.topic(), unique("group")
    tp = TopicPartition(topic, 0)
    member = await member_of(either.url, group)

    def fail(point: str, _: dict[str, object]) -> None:
        if point == "commit.positioned":
            raise ZeroDivisionError

    async with KafkaTransport(either.url) as transport:
        for number in range(6):
            if number % 2:
                with observe(fail), pytest.raises(ZeroDivisionError):
                    await transport.commit(member.epoch({tp: number}, {tp: [rec(f"{number}")]}))
            else:
                await transport.commit(member.epoch({tp: number}, {tp: [rec(f"{number}")]}))
        assert await read(transport, tp) == ["0", "2", "4"]
        assert await transport.committed(group, [tp]) == {tp: OffsetAndMetadata(4)}
    assert [record.key for record in either.read(topic, committed=False)] == [
        b"%d" % number for number in range(6)
    ]


async def test_transactions_of_several_producers_through_each_other(
    kafka: Kafka, transport: KafkaTransport
) -> None:
    """Aborted, committed and plain batches of one partition are told apart, whoever wrote them."""
    from confluent_kafka import Producer

    topic = kafka.topic()
    tp = TopicPartition(topic, 0)
    producers = {
        name: Producer({**kafka.settings, "transactional.id": unique(name), "linger.ms": 0})
        for name in ("good", "bad")
    }
    expected = []
    for producer in producers.values():
        producer.init_transactions(DEADLINE_S)
    for number in range(5):
        for name, producer in producers.items():
            producer.begin_transaction()
            producer.produce(topic, key=f"{name}-{number}", partition=0)
            producer.flush(DEADLINE_S)
            if name == "good":
                expected.append(f"{name}-{number}")
        await transport.append({tp: [rec(f"plain-{number}")]})
        expected.append(f"plain-{number}")
        producers["bad"].abort_transaction(DEADLINE_S)
        producers["good"].commit_transaction(DEADLINE_S)
    assert await read(transport, tp) == expected


async def test_two_transports_of_one_transactional_id(kafka: Kafka) -> None:
    """The later one fences the earlier, of which nothing is visible; and then the other way round."""
    topic, group, name = kafka.topic(), unique("group"), unique("slot")
    tp = TopicPartition(topic, 0)
    member = await member_of(kafka.url, group)
    async with (
        KafkaTransport(kafka.url, transactional_id=lambda: name) as first,
        KafkaTransport(kafka.url, transactional_id=lambda: name) as second,
    ):
        await first.commit(member.epoch({tp: 1}, {tp: [rec("1")]}))
        await second.commit(member.epoch({tp: 2}, {tp: [rec("2")]}))
        with pytest.raises(FencedError, match="slot"):
            await first.commit(member.epoch({tp: 3}, {tp: [rec("3")]}))
        await first.commit(member.epoch({tp: 4}, {tp: [rec("4")]}))
        assert await read(second, tp) == ["1", "2", "4"]


async def test_one_of_two_in_a_slot_goes_on(either: Kafka) -> None:
    """Who has begun last: the other one ends, and its end is in nobody's way, whatever the one has open then."""
    topic, group, name = either.topic(), unique("group"), unique("slot")
    tp = TopicPartition(topic, 0)
    member = await member_of(either.url, group)
    first = KafkaTransport(either.url, transactional_id=lambda: name)
    second = KafkaTransport(either.url, transactional_id=lambda: name)
    async with first, second:
        sent: list[str] = []

        async def commit(transport: KafkaTransport) -> None:
            key = f"{len(sent)}"
            await transport.commit(member.epoch({tp: len(sent) + 1}, {tp: [rec(key)]}))
            sent.append(key)

        await commit(first)
        await commit(second)
        for _ in range(_transactions.TAKEN_TIMES - 1):
            for transport in (first, second):
                with pytest.raises(FencedError, match="slot"):
                    await commit(transport)
                await commit(transport)
        positioned, go_on = asyncio.Event(), asyncio.Event()
        end = _transactions.Transactions._end

        async def end_late(self: _transactions.Transactions, newer: bool) -> None:
            positioned.set()
            await go_on.wait()
            await end(self, newer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_transactions.Transactions, "_end", end_late)
            open_one = asyncio.ensure_future(commit(second))
            await positioned.wait()
        last = asyncio.ensure_future(commit(first))
        # in the lock's queue behind it, as a shard that recovers and finds the positions held by the other one
        settling = asyncio.ensure_future(first._opened().epochs.settle(take=True))
        try:
            with pytest.raises(ConfigurationError, match="two workers share one slot"):
                await last
            await settling
        finally:
            go_on.set()
            await open_one
        with pytest.raises(ConfigurationError, match="two workers share one slot"):
            await commit(first)
        await commit(second)
        assert await read(second, tp) == sent


async def test_several_that_start_in_one_slot_at_once(kafka: Kafka) -> None:
    """None of them is refused, also where there is a transaction to be ended first; the last one has it."""
    topic, group, name = kafka.topic(), unique("group"), unique("slot")
    tp = TopicPartition(topic, 0)
    member = await member_of(kafka.url, group)
    async with AsyncExitStack() as stack:
        several = [
            await stack.enter_async_context(
                KafkaTransport(kafka.url, transactional_id=lambda: name)
            )
            for _ in range(5)
        ]
        former = several.pop()
        stuck, positioned = asyncio.Event(), asyncio.Event()

        async def never_end(*_: object) -> None:
            positioned.set()
            await stuck.wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_transactions.Transactions, "_end", never_end)
            commit = asyncio.ensure_future(former.commit(member.epoch({tp: 1}, {tp: [rec("1")]})))
            await positioned.wait()
        await asyncio.gather(*(transport._opened().epochs.claim() for transport in several))
        stuck.set()
        await commit
        done = await asyncio.gather(
            *(each.commit(member.epoch({tp: 2}, {tp: [rec("2")]})) for each in several),
            return_exceptions=True,
        )
        refused = [found for found in done if isinstance(found, BaseException)]
        assert len(refused) == len(several) - 1
        assert all(isinstance(error, FencedError) for error in refused)
        assert await read(former, tp) == ["2"]


async def test_a_transaction_of_ours_from_before_is_ended(kafka: Kafka) -> None:
    """A worker that comes back in its slot does not wait for what it had open when it was killed."""
    topic, group, name = kafka.topic(), unique("group"), unique("slot")
    tp = TopicPartition(topic, 0)
    member = await member_of(kafka.url, group)
    killed = KafkaTransport(kafka.url, transactional_id=lambda: name)
    async with killed, KafkaTransport(kafka.url, transactional_id=lambda: name) as again:
        stuck, positioned = asyncio.Event(), asyncio.Event()

        async def never_end(*_: object) -> None:
            positioned.set()
            await stuck.wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_transactions, "TRANSACTION_TIMEOUT_S", 2 * DEADLINE_S)
            patch.setattr(_transactions.Transactions, "_end", never_end)
            commit = asyncio.ensure_future(killed.commit(member.epoch({tp: 1}, {tp: [rec("1")]})))
            await positioned.wait()
        try:
            async with asyncio.timeout(DEADLINE_S / 2):
                assert await again.committed(group, [tp]) == {}
        finally:
            stuck.set()
            await commit
        await again.commit(member.epoch({tp: 2}, {tp: [rec("2")]}))
        assert await read(again, tp) == ["2"]


async def test_a_worker_that_stands_still_in_a_commit(
    kafka: Kafka, transport: KafkaTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker ends its transaction after a while: nothing of it is visible, and the next one goes on."""
    topic, group = kafka.topic(), unique("group")
    tp = TopicPartition(topic, 0)
    member = await member_of(kafka.url, group)
    monkeypatch.setattr(_transactions, "TRANSACTION_TIMEOUT_S", 1.0)

    def stand_still(point: str, _: dict[str, object]) -> None:
        if point == "commit.positioned":
            deadline = time.monotonic() + DEADLINE_S
            while last_stable(kafka, topic) == 0:
                assert time.monotonic() < deadline

    with observe(stand_still), pytest.raises((FencedError, LogUnavailableError)):
        await transport.commit(member.epoch({tp: 1}, {tp: [rec("1")]}))
    assert await transport.committed(group, [tp]) == {}
    await transport.commit(member.epoch({tp: 2}, {tp: [rec("2")]}))
    assert await read(transport, tp) == ["2"]


async def test_a_transaction_of_another_worker_is_ended(kafka: Kafka) -> None:
    """Who takes over does not wait for its time-out; of the owner, alive after all, nothing is visible."""
    topic, app = kafka.topic(), unique("app")
    tp = TopicPartition(topic, 0)
    member = await member_of(kafka.url, app)
    hanging = KafkaTransport(kafka.url, transactional_id=lambda: f"{app}-1", client_id=app)
    taking = KafkaTransport(kafka.url, transactional_id=lambda: f"{app}-2", client_id=app)
    async with hanging, taking:
        stuck, positioned = asyncio.Event(), asyncio.Event()
        end = _transactions.Transactions._end

        async def end_late(self: _transactions.Transactions, newer: bool) -> None:
            positioned.set()
            await stuck.wait()
            await end(self, newer)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_transactions, "TRANSACTION_TIMEOUT_S", 2 * DEADLINE_S)
            patch.setattr(_transactions.Transactions, "_end", end_late)
            commit = asyncio.ensure_future(hanging.commit(member.epoch({tp: 1}, {tp: [rec("1")]})))
            await positioned.wait()
            try:
                async with asyncio.timeout(DEADLINE_S / 2):
                    assert await taking.committed(app, [tp]) == {}
            finally:
                stuck.set()
            with pytest.raises((FencedError, LogUnavailableError)):
                await commit
        await taking.commit(member.epoch({tp: 2}, {tp: [rec("2")]}))
        assert await read(taking, tp) == ["2"]


@pytest.mark.parametrize("slot", ["1", "2"], ids=["its own slot", "another slot"])
async def test_what_was_left_open_when_it_is_at_least_once(kafka: Kafka, slot: str) -> None:
    """A worker that uses no transactions ends those of the runs before it, for its group and for all readers."""
    topic, app = kafka.topic(), unique("app")
    tp = TopicPartition(topic, 0)
    member = await member_of(kafka.url, app)
    hanging = KafkaTransport(kafka.url, transactional_id=lambda: f"{app}-1", client_id=app)
    taking = KafkaTransport(kafka.url, former_id=lambda: f"{app}-{slot}", client_id=app)
    async with hanging, taking:
        stuck, positioned = asyncio.Event(), asyncio.Event()

        async def never_end(*_: object) -> None:
            positioned.set()
            await stuck.wait()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_transactions, "TRANSACTION_TIMEOUT_S", 2 * DEADLINE_S)
            patch.setattr(_transactions.Transactions, "_end", never_end)
            commit = asyncio.ensure_future(hanging.commit(member.epoch({tp: 1}, {tp: [rec("1")]})))
            await positioned.wait()
        try:
            assert await asyncio.to_thread(last_stable, kafka, topic) == 0
            await evict(kafka.url, app, member.member_id)
            await taking.join(
                app, metadata=b"", assign=lambda members: members, session_timeout_s=10
            )
            if slot == "2":
                async with asyncio.timeout(DEADLINE_S / 2):
                    assert await taking.committed(app, [tp]) == {}
            assert await asyncio.to_thread(last_stable, kafka, topic) > 0
        finally:
            stuck.set()
            await commit


async def test_an_epoch_larger_than_a_request(kafka: Kafka, transport: KafkaTransport) -> None:
    """Many batches of several partitions go into one transaction."""
    topic, group = kafka.topic(partitions=3), unique("group")
    tps = [TopicPartition(topic, number) for number in range(3)]
    member = await member_of(kafka.url, group)
    records = [rec(f"{number}", "v" * 1_000) for number in range(5_000)]
    result = await transport.commit(member.epoch({tps[0]: 1}, dict.fromkeys(tps, records)))
    assert result.next_offsets == dict.fromkeys(tps, 5_000)
    for tp in tps:
        assert await read(transport, tp) == [f"{number}" for number in range(5_000)]


async def test_a_record_that_the_topic_does_not_take(
    kafka: Kafka, transport: KafkaTransport
) -> None:
    """It is named, with its size, the bound and where that is set; batches of small ones are made smaller."""
    topic, group = kafka.topic(max_message_bytes=20_000), unique("group")
    tp = TopicPartition(topic, 0)
    member = await member_of(kafka.url, group)
    small = [rec(f"{number}", "v" * 1_000) for number in range(100)]
    with pytest.raises(RecordTooLargeError, match=r"'large'") as caught:
        await transport.commit(member.epoch({tp: 1}, {tp: [*small, rec("large", "v" * 30_000)]}))
    assert caught.value.limit == 20_000
    assert 30_000 < caught.value.size < 30_100
    assert f"max.message.bytes of topic '{topic}'" in str(caught.value)
    with pytest.raises(RecordTooLargeError):
        await transport.append({tp: [rec("large", "v" * 30_000)]})
    assert await read(transport, tp) == []
    await transport.commit(member.epoch({tp: 1}, {tp: small}))
    await transport.append({tp: small})
    assert await read(transport, tp) == [f"{number}" for number in range(100)] * 2


async def a_late_produce(old_kafka: Kafka, proxy: Proxy) -> None:
    """A commit is given up while its records are on their way; they arrive when that is done, and then the next one."""
    topic, group = old_kafka.topic(), unique("group")
    tp = TopicPartition(topic, 0)
    member = await member_of(old_kafka.url, group)
    async with KafkaTransport(f"kafka://{proxy.bootstrap}") as transport:
        await transport.commit(member.epoch({tp: 1}, {tp: [rec("1")]}))
        held = proxy.on_request(Api.PRODUCE, Action.HOLD, times=100)
        with pytest.raises(LogUnavailableError):
            await transport.commit(member.epoch({tp: 2}, {tp: [rec("2")]}))
        before = (await transport.end_offsets([tp]))[tp]
        held.release()
        for _ in range(20):  # where they are taken, that is seen
            await asyncio.sleep(0.05)
            if (await transport.end_offsets([tp]))[tp] > before:
                break
        await transport.commit(member.epoch({tp: 3}, {tp: [rec("3")]}))
        async with asyncio.timeout(LATE_S):
            assert await read(transport, tp) == ["1", "3"]


@pytest.fixture
def old_proxy(old_kafka: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before a broker from before KIP-890, and a transport that gives up soon."""
    monkeypatch.setattr(_transactions, "FILL_TIMEOUT_S", 1.0)
    monkeypatch.setattr(_produce, "ANSWER_TIMEOUT_S", 0.5)
    with proxies(old_kafka) as (proxy,):
        yield proxy


async def test_a_late_produce_is_in_no_transaction(old_kafka: Cluster, old_proxy: Proxy) -> None:
    """The epoch has been bumped by then (invariant 5)."""
    await a_late_produce(old_kafka, old_proxy)


async def test_an_abort_that_keeps_the_epoch_is_seen(
    old_kafka: Cluster, old_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is EndTxn, a late Produce is taken for the next transaction's, or opens one that nobody ends."""

    async def end(self: _transactions.Transactions) -> None:
        request = end_v3.EndTxnRequest(
            transactional_id=TransactionalId(self._name),
            producer_id=ProducerId(self._id.producer_id),
            producer_epoch=i16(self._id.epoch),
            committed=False,
        )
        node = await self._cluster.coordinator(TRANSACTION, self._name)
        await self._cluster.send(node, request, end_v3.EndTxnResponse)
        self._clean = True

    monkeypatch.setattr(_transactions.Transactions, "_abort", end)
    with pytest.raises((TimeoutError, AssertionError)):
        await a_late_produce(old_kafka, old_proxy)


# answers that never come


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits for coordinators."""
    monkeypatch.setattr(_transactions, "ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(_transactions, "END_TIMEOUT_S", 2.0)


LOST = [
    # whose answer is lost, and how
    (Api.END_TXN, Action.LOSE),
    (Api.END_TXN, Action.CUT),
    (Api.PRODUCE, Action.CUT),
    (Api.TXN_OFFSET_COMMIT, Action.LOSE),
    (Api.INIT_PRODUCER_ID, Action.LOSE),
]


@pytest.mark.parametrize(("api", "action"), LOST, ids=lambda value: value.name)
async def test_an_answer_that_is_lost(
    own_kafka: Cluster, kafka_proxy: Proxy, impatient: None, api: Api, action: Action
) -> None:
    """The request is repeated, and everything is there once."""
    topic, group = own_kafka.topic(), unique("group")
    tp = TopicPartition(topic, 0)
    member = await member_of(own_kafka.url, group)
    async with KafkaTransport(f"kafka://{kafka_proxy.bootstrap}") as transport:
        if api is not Api.INIT_PRODUCER_ID:
            await transport.commit(member.epoch({tp: 1}, {tp: [rec("1")]}))
        rule = kafka_proxy.on_answer(api, action)
        await transport.commit(member.epoch({tp: 2}, {tp: [rec("2")]}))
        assert rule.hits == 1
        await transport.commit(member.epoch({tp: 3}, {tp: [rec("3")]}))
        found = await read(transport, tp)
        assert found == (["2", "3"] if api is Api.INIT_PRODUCER_ID else ["1", "2", "3"])
        assert await transport.committed(group, [tp]) == {tp: OffsetAndMetadata(3)}


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
async def test_a_coordinator_that_does_not_know(
    either: Kafka, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the broker's own says neither yes nor no: the end is sent again, and the answer to that counts."""
    topic, group = either.topic(), unique("group")
    tp = TopicPartition(topic, 0)
    member = await member_of(either.url, group)
    send, ends = _cluster.Cluster.send, 0

    async def fail_once(
        self: _cluster.Cluster, node: int, request: Any, response: Any, **how: Any
    ) -> Any:
        nonlocal ends
        ending = type(request).__name__ == "EndTxnRequest"
        ends += ending
        if not ending or ends > 1:
            return await send(self, node, request, response, **how)
        if done:
            await send(self, node, request, response, **how)
        return SimpleNamespace(error_code=ErrorCode.unknown_server_error)

    monkeypatch.setattr(_cluster.Cluster, "send", fail_once)
    async with KafkaTransport(either.url) as transport:
        for number in range(2):
            await transport.commit(member.epoch({tp: number + 1}, {tp: [rec(f"{number}")]}))
        assert await read(transport, tp) == ["0", "1"]
        assert await transport.committed(group, [tp]) == {tp: OffsetAndMetadata(2)}
    assert ends >= 3


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
async def test_an_outcome_that_nobody_tells(
    own_kafka: Cluster, kafka_proxy: Proxy, impatient: None, done: bool
) -> None:
    """It is an error of its own; the committed positions say what happened, and the next epoch goes on."""
    topic, group = own_kafka.topic(), unique("group")
    tp = TopicPartition(topic, 0)
    member = await member_of(own_kafka.url, group)
    async with KafkaTransport(f"kafka://{kafka_proxy.bootstrap}") as transport:
        await transport.commit(member.epoch({tp: 1}, {tp: [rec("1")]}))
        lose = kafka_proxy.on_answer if done else kafka_proxy.on_request
        lose(Api.END_TXN, Action.LOSE, times=100)
        with pytest.raises(OutcomeUnknownError):
            await transport.commit(member.epoch({tp: 2}, {tp: [rec("2")]}))
        kafka_proxy.reset()
        assert await transport.committed(group, [tp]) == {tp: OffsetAndMetadata(1 + done)}
        await transport.commit(member.epoch({tp: 3}, {tp: [rec("3")]}))
        assert await read(transport, tp) == (["1", "2", "3"] if done else ["1", "3"])


async def test_an_append_whose_answer_is_lost(own_kafka: Cluster, kafka_proxy: Proxy) -> None:
    """It is sent again, and is there once."""
    topic = own_kafka.topic()
    tp = TopicPartition(topic, 0)
    async with KafkaTransport(f"kafka://{kafka_proxy.bootstrap}") as transport:
        for number in range(5):
            rule = kafka_proxy.on_answer(Api.PRODUCE, Action.CUT)
            assert await transport.append({tp: [rec(f"{number}")]}) == {tp: number}
            assert rule.hits == 1
        assert await read(transport, tp) == [f"{number}" for number in range(5)]


async def test_reading_through_cuts(own_kafka: Cluster, kafka_proxy: Proxy) -> None:
    """Connections that break are replaced, and nothing is lost or read twice."""
    topic = own_kafka.topic()
    tp = TopicPartition(topic, 0)
    async with KafkaTransport(f"kafka://{kafka_proxy.bootstrap}") as transport:
        reader, position = transport.reader(), 0
        found: list[str] = []
        for number in range(10):
            await transport.append({tp: [rec(f"{number}")]})
            await asyncio.to_thread(kafka_proxy.cut)
            async with asyncio.timeout(DEADLINE_S):
                while len(found) <= number:
                    for fetched in await reader.fetch(
                        {tp: position}, max_bytes=1 << 20, max_wait_s=1
                    ):
                        found += [
                            record.key.decode()
                            for record in iterate_records(fetched.data, where="", position=position)
                        ]
                        position = fetched.next_offset
        assert found == [f"{number}" for number in range(10)]


async def test_partitions_that_become_wanted_one_by_one(
    kafka: Kafka, transport: KafkaTransport
) -> None:
    """Each is fetched at once, though requests for the others wait at the broker."""
    topic = kafka.topic(partitions=8)
    reader, positions = transport.reader(), {}
    for number in range(8):
        tp = TopicPartition(topic, number)
        await transport.append({tp: [rec("k")]})
        positions[tp] = 0
        async with asyncio.timeout(DEADLINE_S):
            (fetched,) = await reader.fetch(positions, max_bytes=1 << 20, max_wait_s=DEADLINE_S)
        assert fetched.tp == tp
        positions[tp] = 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await reader.fetch(positions, max_bytes=1 << 20, max_wait_s=DEADLINE_S)
    assert len(reader._flights) <= 2  # type: ignore[attr-defined]


async def test_a_topic_that_is_made_again_under_a_reader(
    kafka: Kafka, transport: KafkaTransport
) -> None:
    """Its positions mean nothing in the new one: the reader says so instead of reading on."""
    name = unique("topic")
    tp = TopicPartition(name, 0)
    reader = transport.reader()
    await transport.create_topics([TopicSpec(name=name, partitions=1)])
    await transport.append({tp: [rec("k")] * 3})
    (fetched,) = await reader.fetch({tp: 0}, max_bytes=1 << 20, max_wait_s=DEADLINE_S)
    assert fetched.next_offset == 3
    await transport.delete_topics([name])
    await transport.create_topics([TopicSpec(name=name, partitions=1)])
    await transport.append({tp: [rec("k")] * 5})
    with pytest.raises(UnknownTopicError, match="another one"):
        await reader.fetch({tp: 3}, max_bytes=1 << 20, max_wait_s=DEADLINE_S)


# what others have written


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_compressions(kafka: Kafka, transport: KafkaTransport, compression: str) -> None:
    """Batches of other clients are read whatever they are compressed with."""
    topic = kafka.topic()
    records = [Record(key=b"%d" % number, value=b"v" * 100) for number in range(500)]
    kafka.write(topic, records, compression_type=compression, linger_ms=100)
    found = await read(transport, TopicPartition(topic, 0))
    assert found == [f"{number}" for number in range(500)]


async def test_a_compression_that_cannot_be_read(
    kafka: Kafka, transport: KafkaTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the record, the compression and what to install."""
    topic = kafka.topic()
    kafka.write(topic, [Record(value=b"v" * 1_000)], compression_type="zstd")
    monkeypatch.setattr("aiokafka.codec.cramjam", None)
    with pytest.raises(ConfigurationError, match=rf"{topic}/0@0.*zstd.*millstream\[kafka\]"):
        await read(transport, TopicPartition(topic, 0))


# topics


async def test_a_topic_with_settings_of_its_own(kafka: Kafka, transport: KafkaTransport) -> None:
    """Retention, compaction and any other setting reach the broker."""
    name = unique("topic")
    await transport.create_topics(
        [
            TopicSpec(
                name=name,
                partitions=2,
                retention_ms=3_600_000,
                compacted=True,
                config={"segment.bytes": "1048576"},
            )
        ]
    )
    from confluent_kafka.admin import ConfigResource, ResourceType

    resource = ConfigResource(ResourceType.TOPIC, name)
    admin = kafka.admin()
    settings: Any = admin.describe_configs([resource])[resource].result(DEADLINE_S)
    assert settings["cleanup.policy"].value == "compact,delete"
    assert settings["retention.ms"].value == "3600000"
    assert settings["segment.bytes"].value == "1048576"
    await transport.delete_topics([name])
    assert name not in await transport.topics()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"replication": 5}, "cannot have 5 replicas"),
        ({"config": {"no.such.setting": "1"}}, "no.such.setting"),
        ({"config": {"segment.bytes": "many"}}, "segment.bytes"),
    ],
    ids=["replication", "unknown setting", "wrong setting"],
)
async def test_a_topic_that_this_cluster_does_not_take(
    transport: KafkaTransport, wrong: dict[str, Any], says: str
) -> None:
    """The error names the topic and what is wrong with it."""
    name = unique("topic")
    with pytest.raises(ConfigurationError, match=says) as caught:
        await transport.create_topics([TopicSpec(name=name, partitions=1, **wrong)])
    assert name in str(caught.value)
    assert name not in await transport.topics()
