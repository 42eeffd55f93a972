"""The topics of an app, by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from millstream.agents import Topic, TopicGroup, policy_of
from millstream.errors import (
    ConfigurationError,
    PartitionCountError,
    SettingError,
    TopologyError,
)
from millstream.serialization import codec_for, key_codec_for, partitioner
from millstream.topology import TopicNode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from millstream.agents import Sender
    from millstream.clock import Duration
    from millstream.serialization import Codec
    from millstream.topology import Topology

__all__ = ["Topics", "check_name", "check_partitions"]

_NAME = "letters, digits, dot, underscore and hyphen, at most 200"


def check_name(name: str, what: str) -> str:
    """The name, if Kafka takes it as (a part of) a topic's.

    Raises:
        ConfigurationError: it does not; the message begins with ``what``.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name) or name in (".", ".."):
        raise ConfigurationError(f"{what} {name!r}: a name has {_NAME}")
    return name


def check_partitions(count: int | None, what: str) -> None:
    """Refuse a count below 1."""
    if count is not None and count < 1:
        raise PartitionCountError(f"{what}: partitions={count}, and there has to be at least 1")


class Topics(dict[str, Topic[Any, Any]]):
    """What `App.topic` was given. A topic that is read with others is here as well, until it is declared alone."""

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self._sender = sender
        self.groups: list[TopicGroup[Any, Any]] = []
        """Several topics that are read as one."""
        self._alone: set[str] = set()
        """Those that were declared by themselves."""

    def declare(
        self,
        *names: str,
        pattern: str | None = None,
        key: Any = str,
        value: Any = Any,
        key_from: str | Callable[[Any], Any] | None = None,
        codec: str | Codec[Any] = "json",
        key_codec: str | Codec[Any] | None = None,
        partitions: int | None = None,
        retention: Duration | None = None,
        compacted: bool = False,
        timestamp: str | Callable[[Any], Any] | None = None,
        on_error: Any = None,
        max_wait: Duration = 0,
        idle_timeout: Duration | None = None,
        partitioner: str = "murmur2",
        internal: bool = False,
    ) -> Topic[Any, Any]:
        """Make a topic, or several that are read as one; see `App.topic`."""
        what = f"topic {', '.join(map(repr, names)) or f'pattern={pattern!r}'}"
        self._check(names, pattern, what)
        check_partitions(partitions, what)
        if pattern is not None and (retention is not None or compacted):
            raise TopologyError(
                f"{what}: retention and compacted are for topics that Millstream creates, and those of"
                f" a pattern are there already"
            )
        described: dict[str, Any] = {
            "value_codec": codec_for(codec, value) if isinstance(codec, str) else codec,
            "key_codec": key_codec_for(key, key_codec)
            if isinstance(key_codec, str | None)
            else key_codec,
            "sender": self._sender,
            "partitioner": _partitioner(partitioner),
            "key_from": key_from,
            "timestamp": timestamp,
            "partitions": partitions,
            "retention": retention,
            "compacted": compacted,
            "internal": internal,
            "policy": None if on_error is None else policy_of(on_error),
            "key_type": key,
            "value_type": value,
            "max_wait": max_wait,
            "idle_timeout": idle_timeout,
        }
        if pattern is None and len(names) == 1:
            topic: Topic[Any, Any] = Topic(names[0], **described)
            self[names[0]] = topic
            self._alone.add(names[0])
            return topic
        group: TopicGroup[Any, Any] = TopicGroup(names, pattern=pattern, **described)
        self.groups.append(group)
        for name in names:
            self.setdefault(name, group.named(name))
        return group

    def _check(self, names: tuple[str, ...], pattern: str | None, what: str) -> None:
        if (pattern is None) != bool(names):
            raise TopologyError(
                f"{what}: give names, or a pattern"
                + (", not both" if names else "; there is neither")
            )
        for name in names:
            check_name(name, "topic")
            if names.count(name) > 1:
                raise TopologyError(f"{what}: {name!r} is there twice")
        if len(names) == 1 and names[0] in self._alone:
            raise TopologyError(
                f"{what} is declared twice: keep the first object and use it everywhere"
            )

    def find(self, name: str) -> Topic[Any, Any] | None:
        """The topic of that name, declared or of a pattern; None where the app knows nothing of it."""
        if name in self:
            return self[name]
        found = (group.named(name) for group in self.groups if group.reads(name))
        return next(found, None)

    def find_all(self, names: Iterable[str]) -> list[Topic[Any, Any]]:
        """The topics of these names, as far as the app knows them."""
        return [topic for name in names if (topic := self.find(name)) is not None]

    def read(self, topology: Topology, count: int) -> list[Topic[Any, Any]]:
        """The topics of so many partitions that agents read, once the counts are known."""
        return [
            topic
            for topic in self.find_all(topology.sources)
            if topology.topics[topic.name].partitions == count
        ]

    def all(self) -> Iterator[Topic[Any, Any]]:
        """Every topic, and every group of them."""
        yield from self.values()
        yield from self.groups

    def check_own(self, topic: Any, user: str) -> None:
        """Refuse what is no topic of this app.

        Args:
            user: who wants to read it, for the message.
        """
        if not isinstance(topic, Topic):
            raise TopologyError(
                f"{user}: {topic!r} is not a topic: give what app.topic() has returned"
            )
        if topic is not self.get(topic.name) and topic not in self.groups:
            raise TopologyError(
                f"{user}: {topic.name!r} is a topic of another app; describe it with"
                f" app.topic({topic.name!r}, ...) here as well"
            )

    def nodes(self) -> dict[str, TopicNode]:
        """The topics as data."""
        return {
            topic.name: TopicNode(
                name=topic.name,
                partitions=topic.partitions,
                internal=topic.internal,
                retention_ms=topic.retention_ms,
                compacted=topic.compacted,
                beside=topic.beside,
                pattern=topic.pattern if isinstance(topic, TopicGroup) else None,
            )
            for topic in self.all()
            if not isinstance(topic, TopicGroup) or topic.pattern is not None
        }


def _partitioner(name: str) -> Callable[[bytes, int], int]:
    try:
        return partitioner(name)
    except ConfigurationError as exc:
        raise SettingError("partitioner", str(exc)) from exc
