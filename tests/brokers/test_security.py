"""Brokers with TLS, SASL and access rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import ResourceType

from tests.brokers import Kafka, Record, unique
from tests.brokers.security import MECHANISMS

if TYPE_CHECKING:
    from tests.brokers.security import Secured


def written_and_read(kafka: Kafka, topic: str) -> list[bytes | None]:
    """What a client has written and then reads."""
    kafka.write(topic, [Record(value=b"1")])
    return [record.value for record in kafka.read(topic)]


@pytest.mark.parametrize("listener", ["SSL", "MTLS"])
def test_tls(secured_kafka: Secured, listener: str) -> None:
    """A client that trusts our authority gets in, with a certificate of its own where one is required."""
    topic = secured_kafka.cluster.topic()
    secured_kafka.allow("User:CN=client", ResourceType.TOPIC, topic)
    secured_kafka.allow("User:CN=client", ResourceType.GROUP, "reader")
    assert written_and_read(secured_kafka.client(listener), topic) == [b"1"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("listener", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_sasl(secured_kafka: Secured, listener: str, mechanism: str) -> None:
    """A user gets in by every mechanism, with and without TLS."""
    topic = secured_kafka.cluster.topic()
    assert written_and_read(secured_kafka.client(listener, mechanism=mechanism), topic) == [b"1"]


def test_a_wrong_password(secured_kafka: Secured) -> None:
    """It is refused."""
    wrong = secured_kafka.client("SASL_PLAINTEXT", mechanism="PLAIN", password="wrong")
    with pytest.raises(KafkaException):
        wrong.admin().list_topics(timeout=1)


def test_no_certificate_where_one_is_required(secured_kafka: Secured) -> None:
    """The client is refused."""
    settings = secured_kafka.client("SSL").settings
    address = secured_kafka.cluster.address("MTLS")
    stranger = Kafka(address, settings | {"bootstrap.servers": address})
    with pytest.raises(KafkaException):
        stranger.admin().list_topics(timeout=1)


def test_access_rules(secured_kafka: Secured) -> None:
    """A user may write to no topic, until a rule allows it."""
    name = unique("shop")
    topic = secured_kafka.cluster.topic(name)
    alice = secured_kafka.client("SASL_PLAINTEXT", user="alice", mechanism="PLAIN")
    with pytest.raises(KafkaException) as refused:
        alice.write(topic, [Record(value=b"1")], message_timeout_ms=1_000)
    assert refused.value.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED

    secured_kafka.allow("User:alice", ResourceType.TOPIC, name)

    alice.write(topic, [Record(value=b"2")])
    assert [record.value for record in secured_kafka.cluster.read(topic)] == [b"2"]
