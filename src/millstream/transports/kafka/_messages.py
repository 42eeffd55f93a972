"""Small things that many requests need."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from kio.static.primitive import i32, i32Timedelta

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from millstream.records import TopicPartition

__all__ = ["by_topic", "duration", "numbers"]

T = TypeVar("T")


def duration(seconds: float) -> i32Timedelta:
    """A duration as requests have it."""
    return i32Timedelta.parse(timedelta(seconds=seconds))


def by_topic(found: Mapping[TopicPartition, T]) -> dict[str, dict[int, T]]:
    """The same, topic by topic."""
    topics: dict[str, dict[int, T]] = {}
    for (topic, partition), value in found.items():
        topics.setdefault(topic, {})[partition] = value
    return topics


def numbers(tps: Iterable[TopicPartition]) -> dict[str, tuple[i32, ...]]:
    """The partitions' numbers, topic by topic."""
    topics: dict[str, list[i32]] = {}
    for topic, partition in tps:
        topics.setdefault(topic, []).append(i32(partition))
    return {topic: tuple(found) for topic, found in topics.items()}
