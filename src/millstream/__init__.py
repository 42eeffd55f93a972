"""Millstream: stream processing in Python, exactly once, on Kafka or on nothing at all."""
