"""Brokers of the tests' own, as an independent client sees them."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer

from tests.brokers import Cluster, Kafka, NotStartedError, Record, unique
from tests.brokers.listeners import HOST

if TYPE_CHECKING:
    from tests.brokers.old import OldCluster


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
def test_what_is_written_is_read_back(kafka: Kafka, compression: str) -> None:
    """Key, value, headers, time and partition, a tombstone and an empty value included."""
    topic = kafka.topic(partitions=2)
    written = [
        Record(key=b"k", value=b"v", headers=(("h", b"1"), ("h", None)), timestamp=5, partition=1),
        Record(key=b"k", value=None, timestamp=6, partition=0),
        Record(key=None, value=b"", timestamp=7, partition=0),
    ]
    kafka.write(topic, written, compression_type=compression)
    found = [
        (
            record.partition,
            record.offset,
            record.key,
            record.value,
            record.headers,
            record.timestamp,
        )
        for record in kafka.read(topic)
    ]
    assert found == [
        (0, 0, b"k", None, (), 6),
        (0, 1, None, b"", (), 7),
        (1, 0, b"k", b"v", (("h", b"1"), ("h", None)), 5),
    ]


DEADLINE_S = 30.0


def transactions(kafka: Kafka, topic: str) -> None:
    """One that is committed, one that is aborted."""
    producer = Producer({**kafka.settings, "transactional.id": unique("writer")})
    producer.init_transactions(20)
    for value in (b"committed", b"aborted"):
        producer.begin_transaction()
        producer.produce(topic, value=value)
        producer.flush(20)
        if value == b"committed":
            producer.commit_transaction(20)
        else:
            producer.abort_transaction(20)


def test_an_aborted_transaction_is_not_read(kafka: Kafka) -> None:
    """It is there for those who ask for what is not committed."""
    topic = kafka.topic()
    transactions(kafka, topic)
    assert [record.value for record in kafka.read(topic)] == [b"committed"]
    everything = [record.value for record in kafka.read(topic, committed=False)]
    assert everything == [b"committed", b"aborted"]


def test_the_oldest_line(old_kafka: OldCluster) -> None:
    """Kafka 2.8 answers, with transactions."""
    topic = old_kafka.topic()
    transactions(old_kafka, topic)
    assert [record.value for record in old_kafka.read(topic)] == [b"committed"]


def test_compaction_is_soon(own_kafka: Cluster) -> None:
    """Of each key the last record stays, without a wait for the broker's usual times."""
    topic = own_kafka.topic(cleanup_policy="compact", segment_ms=50, min_cleanable_dirty_ratio=0.01)
    patience = time.monotonic() + DEADLINE_S
    number = 0
    while True:
        number += 1
        own_kafka.write(topic, [Record(key=b"k", value=b"%d" % number)])
        if len(own_kafka.read(topic)) < number:
            break
        assert time.monotonic() < patience, "nothing was compacted"


def test_a_broker_that_does_not_start_says_why(own_kafka: Cluster) -> None:
    """Its last lines are in the error, and all of them in a file; no process is left."""
    cluster = Cluster(properties={"log.retention.check.interval.ms": "often"})
    with pytest.raises(NotStartedError, match=r"Invalid value often for configuration") as raised:
        cluster.start()
    assert str(cluster.folder) in str(raised.value)
    assert cluster.folder.is_dir()
    assert not cluster.brokers[0].alive
    cluster.stop()
    assert not cluster.folder.exists()


def test_the_older_protocol_of_transactions() -> None:
    """A broker can be told to keep it, as clusters do after an upgrade."""
    with Cluster(features={"transaction.version": 1}) as cluster:
        host, port = cluster.bootstrap.split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as client:
            # ApiVersions, version 3, of a client without a name, whose software is "t 1"
            request = struct.pack(">hhih", 18, 3, 1, -1) + b"\x00\x02t\x021\x00"
            client.sendall(struct.pack(">i", len(request)) + request)
            answer = b""
            while len(answer) < 4 or len(answer) < 4 + int.from_bytes(answer[:4]):
                answer += client.recv(65_536)
    # the last mention is among the levels in force, which follow the name
    level = answer[answer.rindex(name := b"transaction.version") + len(name) :][:2]
    assert int.from_bytes(level) == 1


@pytest.mark.parametrize("harm", ["kill", "pause"])
def test_a_broker_may_go(kafka_cluster: Cluster, harm: str) -> None:
    """Without one of three brokers the others take and give records; when it is back, it catches up."""
    topic = kafka_cluster.topic(partitions=3)
    everywhere = [Record(value=b"1", partition=number) for number in range(3)]
    kafka_cluster.write(topic, everywhere)
    broker = kafka_cluster.brokers[1]
    getattr(broker, harm)()
    others = [one.ports["DIRECT"] for one in kafka_cluster.brokers if one is not broker]
    without = Kafka(",".join(f"{HOST}:{port}" for port in others))
    without.write(topic, everywhere)
    assert len(without.read(topic)) == 6
    kafka_cluster.heal()
    patience = time.monotonic() + DEADLINE_S
    while kafka_cluster.in_sync(topic) < 3:
        assert time.monotonic() < patience, "it does not catch up"
        time.sleep(0.1)
    assert len(kafka_cluster.read(topic)) == 6
