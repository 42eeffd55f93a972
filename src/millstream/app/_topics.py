"""The topics of an app, by name."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from millstream.agents import Topic, policy_of
from millstream.errors import (
    ConfigurationError,
    PartitionCountError,
    SettingError,
    TopologyError,
)
from millstream.serialization import codec_for, key_codec_for, partitioner
from millstream.topology import TopicNode

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.agents import Sender
    from millstream.clock import Duration
    from millstream.serialization import Codec

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
    """What `App.topic` was given."""

    def __init__(self, sender: Sender) -> None:
        super().__init__()
        self._sender = sender

    def declare(
        self,
        name: str,
        *,
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
        partitioner: str = "murmur2",
        internal: bool = False,
    ) -> Topic[Any, Any]:
        """Make a topic; see `App.topic`."""
        check_name(name, "topic")
        check_partitions(partitions, f"topic {name!r}")
        if name in self:
            raise TopologyError(
                f"topic {name!r} is declared twice: keep the first object and use it everywhere"
            )
        topic: Topic[Any, Any] = Topic(
            name,
            value_codec=codec_for(codec, value) if isinstance(codec, str) else codec,
            key_codec=key_codec_for(key, key_codec)
            if isinstance(key_codec, str | None)
            else key_codec,
            sender=self._sender,
            partitioner=_partitioner(partitioner),
            key_from=key_from,
            timestamp=timestamp,
            partitions=partitions,
            retention=retention,
            compacted=compacted,
            internal=internal,
            policy=None if on_error is None else policy_of(on_error),
            key_type=key,
            value_type=value,
        )
        self[name] = topic
        return topic

    def check_own(self, topic: Any, user: str) -> None:
        """Refuse what is no topic of this app.

        Args:
            user: who wants to read it, for the message.
        """
        if not isinstance(topic, Topic):
            raise TopologyError(f"{user}: {topic!r} is not a topic")
        if self.get(topic.name) is not topic:
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
            )
            for topic in self.values()
        }


def _partitioner(name: str) -> Callable[[bytes, int], int]:
    try:
        return partitioner(name)
    except ConfigurationError as exc:
        raise SettingError("partitioner", str(exc)) from exc
