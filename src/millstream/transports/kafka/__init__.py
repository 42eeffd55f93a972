"""A Kafka cluster as a log, for brokers from Kafka 2.8 on."""
