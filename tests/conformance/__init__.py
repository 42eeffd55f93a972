"""Small programs against what Kafka Streams answers; ``python -m tests.conformance FILE`` runs any such file."""
