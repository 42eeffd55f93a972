"""A Kafka cluster as a log, for brokers from Kafka 2.8 on."""

from millstream.transports.kafka._security import Security
from millstream.transports.kafka.transport import KafkaTransport

__all__ = ["KafkaTransport", "Security"]
