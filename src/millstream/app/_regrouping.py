"""What declared streams need of an app: topics that regroup them, and agents that feed these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.agents import Agent, field_getter
from millstream.context import current
from millstream.errors import TopologyError
from millstream.serialization import key_codec_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.agents import DeclaredStream, Topic
    from millstream.app._agents import Agents
    from millstream.app._topics import Topics

__all__ = ["Regrouping"]


class Regrouping:
    """The home of an app's declared streams."""

    def __init__(self, app: str, topics: Topics, agents: Agents) -> None:
        self._app = app
        self._topics = topics
        self._agents = agents

    def regroup(
        self, stream: DeclaredStream[Any], key: str | Callable[[Any], Any], name: str | None
    ) -> Topic[Any, Any]:
        """Make the topic and the agent behind ``group_by``; see `DeclaredStream.group_by`."""
        sources = "-".join(topic.name.removeprefix(f"{self._app}-") for topic in stream.topics)
        if name is None:
            if not isinstance(key, str):
                raise TopologyError(
                    f"group_by over {sources} has a function: give it a name, for example"
                    f" group_by(..., name={sources + '-regrouped'!r}). The topic behind it is named"
                    f" after it, and has to keep its name"
                )
            name = f"{sources}-by-{key}"
        full = f"{self._app}-{name}-repartition"
        if full in self._topics:
            raise TopologyError(
                f"two streams over {sources} are grouped under the name {name!r}: give one of them"
                f" another, for example group_by(..., name={name + '-2'!r})"
            )
        first = stream.topics[0]
        getter = field_getter(key)
        topic = self._topics.declare(
            full,
            key=Any,
            value=Any if any(step.kind == "map" for step in stream.steps) else first.value_type,
            codec=first.value_codec.name,
            key_codec=_AnyKeyCodec(),
            retention="7d",
            internal=True,
        )
        self._forwarder(name, stream, topic, getter)
        return topic

    def forward(self, stream: DeclaredStream[Any], topic: Topic[Any, Any]) -> None:
        """Make the agent behind ``through``; see `DeclaredStream.through`."""
        self._forwarder(f"to-{topic.name}", stream, topic, None)

    def _forwarder(
        self,
        name: str,
        stream: DeclaredStream[Any],
        topic: Topic[Any, Any],
        key_of: Callable[[Any], Any] | None,
    ) -> None:
        async def forward(events: Any) -> None:
            async for value in events:
                scope = current.get()
                if key_of is None:
                    key = topic.key_of(value)
                    if key is None and scope.record is not None and scope.tp is not None:
                        key = events.decode_key(scope.tp.topic, scope.record.key)
                else:
                    key = key_of(value)
                    if key is None:
                        continue
                record = scope.record
                topic.put(
                    scope,
                    value,
                    key=key,
                    timestamp=scope.timestamp,
                    headers=record.headers if record is not None and record.headers else None,
                )

        forward.__doc__ = f"Brings records to {topic.name}."
        self._agents.add(
            Agent(
                forward,
                name=name,
                sources=[stream],
                topic=None,
                internal=True,
                sinks=[topic],
            )
        )


class _AnyKeyCodec:
    """Keys of a regrouped stream: str as UTF-8, bytes as they are, others as JSON text."""

    name = "key"
    type_name = "key"

    def __init__(self) -> None:
        self._json = key_codec_for(Any, "json")

    def dumps(self, key: Any) -> bytes:
        if type(key) is str:
            return key.encode()
        if type(key) is bytes:
            return key
        return self._json.dumps(key)

    def loads(self, data: bytes) -> Any:
        return data.decode("utf-8", "surrogateescape")
