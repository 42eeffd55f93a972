"""A program for the tests of ``Program``: it writes each line that it reads to a topic."""

from __future__ import annotations

import sys

from tests.brokers.kafka import Kafka, Record
from tests.brokers.program import say

if __name__ == "__main__":
    bootstrap, topic = sys.argv[1:]
    say(ready=True)
    for line in sys.stdin:
        Kafka(bootstrap).write(topic, [Record(value=line.strip().encode())])
        say(written=line.strip())
