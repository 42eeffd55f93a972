"""The proxy between a client and a broker."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaException, Producer

from tests.brokers import Action, Api, Kafka, unique
from tests.brokers.listeners import HOST

if TYPE_CHECKING:
    from tests.brokers import Cluster, Proxy

DEADLINE_S = 20.0


def connection(proxy: Proxy) -> socket.socket:
    """A client of its own, without a library's second tries."""
    return socket.create_connection((HOST, proxy.port), timeout=DEADLINE_S)


def ask(client: socket.socket, correlation: int) -> None:
    """Send ApiVersions, version 0, from a client without a name."""
    request = struct.pack(">hhih", Api.API_VERSIONS, 0, correlation, -1)
    client.sendall(struct.pack(">i", len(request)) + request)


def answer(client: socket.socket) -> int:
    """The correlation id of the next answer."""
    (length,) = struct.unpack(">i", receive(client, 4))
    return int.from_bytes(receive(client, length)[:4])


def receive(client: socket.socket, size: int) -> bytes:
    """So many bytes."""
    found = b""
    while len(found) < size:
        found += client.recv(size - len(found))
    return found


def transaction(proxy: Proxy, topic: str) -> Producer:
    """A transaction with one record, before its end."""
    settings = {**Kafka(proxy.bootstrap).settings, "transactional.id": unique("writer")}
    producer = Producer({**settings, "retry.backoff.ms": 10, "reconnect.backoff.max.ms": 100})
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(topic, value=b"once")
    producer.flush(10)
    return producer


def test_the_answer_of_end_txn_is_lost(own_kafka: Cluster, kafka_proxy: Proxy) -> None:
    """The broker has committed, the client hears nothing, asks again, and the record is there once."""
    topic = own_kafka.topic()
    producer = transaction(kafka_proxy, topic)
    rule = kafka_proxy.on_answer(Api.END_TXN, Action.CUT)

    producer.commit_transaction(10)

    assert rule.hits == 1
    assert kafka_proxy.requests[Api.END_TXN] >= 2
    assert [record.value for record in own_kafka.read(topic)] == [b"once"]


def test_a_request_that_is_held_arrives_later(own_kafka: Cluster, kafka_proxy: Proxy) -> None:
    """The broker does not see it until it is let go, whatever becomes of the client."""
    topic = own_kafka.topic()
    producer = transaction(kafka_proxy, topic)
    rule = kafka_proxy.on_request(Api.END_TXN, Action.HOLD)
    with pytest.raises(KafkaException):
        producer.commit_transaction(0.3)
    rule.wait()
    assert own_kafka.read(topic) == []
    assert [record.value for record in own_kafka.read(topic, committed=False)] == [b"once"]

    rule.release()
    producer.commit_transaction(10)

    assert [record.value for record in own_kafka.read(topic)] == [b"once"]


def test_silence_loses_nothing(kafka_proxy: Proxy) -> None:
    """Nothing passes, connections stay open, and afterwards everything arrives."""
    with connection(kafka_proxy) as client:
        kafka_proxy.silence()
        ask(client, 1)
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            answer(client)
        kafka_proxy.resume()
        client.settimeout(DEADLINE_S)
        assert answer(client) == 1


def test_connections_are_cut_and_refused(kafka_proxy: Proxy) -> None:
    """After a cut a client may connect again; while the port is closed it cannot."""
    with connection(kafka_proxy) as client:
        ask(client, 1)
        assert answer(client) == 1
        kafka_proxy.cut()
        assert client.recv(1) == b""
    kafka_proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connection(kafka_proxy)
    kafka_proxy.accept()
    with connection(kafka_proxy) as client:
        ask(client, 2)
        assert answer(client) == 2
    assert kafka_proxy.requests == {Api.API_VERSIONS: 2}


def test_an_answer_is_lost_and_the_connection_stays(kafka_proxy: Proxy) -> None:
    """The next answer is that of the next request."""
    kafka_proxy.on_answer(Api.API_VERSIONS, Action.LOSE)
    with connection(kafka_proxy) as client:
        ask(client, 1)
        ask(client, 2)
        assert answer(client) == 2


def test_a_dead_client_s_request_arrives(kafka_proxy: Proxy) -> None:
    """What was sent before the client died is let go to the broker, which answers it."""
    held = kafka_proxy.on_request(Api.API_VERSIONS, Action.HOLD)
    answered = kafka_proxy.on_answer(Api.API_VERSIONS, Action.LOSE)
    with connection(kafka_proxy) as client:
        ask(client, 1)
    held.wait()
    assert not answered.hits
    held.release()
    answered.wait()


def test_a_delay_is_each_message_s_own(kafka_proxy: Proxy) -> None:
    """A request and its answer take it twice; for messages that follow each other it does not add up."""
    kafka_proxy.delay(0.1)
    with connection(kafka_proxy) as client:
        began = time.monotonic()
        for number in range(10):
            ask(client, number)
        assert [answer(client) for _ in range(10)] == list(range(10))
        took = time.monotonic() - began
    assert 0.2 <= took < 10 * 0.2
