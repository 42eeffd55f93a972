"""The agents of an app, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from millstream.agents import Agent, AgentSource, Topic, TopicGroup, field_getter, policy_of
from millstream.app._topics import check_name
from millstream.errors import TopologyError
from millstream.serialization import codec_for
from millstream.streams import DeclaredStream
from millstream.topology import AgentNode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millstream.app._sender import AppSender
    from millstream.app._streams import Streams
    from millstream.app._topics import Topics

__all__ = ["Agents"]


class Agents(dict[str, Agent[Any, Any]]):
    """What `App.agent` was given."""

    def __init__(self, app: str, topics: Topics, sender: AppSender, streams: Streams) -> None:
        super().__init__()
        self._app = app
        self._topics = topics
        self._sender = sender
        self._streams = streams

    def declare(
        self,
        function: Callable[..., Any],
        sources: Sequence[Any],
        *,
        name: str | None,
        concurrency: int,
        ordered_by: str | Callable[[Any], Any] | None,
        sink: Sequence[Any] | Any,
        on_error: Any,
    ) -> Agent[Any, Any]:
        """Make an agent; see `App.agent`."""
        agent_name = check_name(name or function.__name__, "agent")
        streams = [self._as_stream(source, agent_name) for source in sources]
        topic: Topic[Any, Any] | None = None
        if not streams:
            topic = self._topics.declare(
                f"{self._app}-{agent_name}", value=_stream_type(function), internal=True
            )
            streams = [AgentSource((topic,))]
        elif len(streams) == 1 and len(streams[0].topics) == 1 and not streams[0].steps:
            only = streams[0].topics[0]
            topic = None if isinstance(only, TopicGroup) else only
        agent: Agent[Any, Any] = Agent(
            function,
            name=agent_name,
            sources=streams,
            topic=topic,
            result_codec=codec_for("json", _result_type(function)),
            sinks=list(sink) if isinstance(sink, (list, tuple)) else [sink],
            concurrency=concurrency,
            ordered_by=None if ordered_by is None else field_getter(ordered_by),
            policy=None if on_error is None else policy_of(on_error),
            asker=self._sender,
        )
        return self.add(agent)

    def add(self, agent: Agent[Any, Any]) -> Agent[Any, Any]:
        """Take an agent that is made.

        Raises:
            TopologyError: there is one of that name.
        """
        if agent.name in self:
            raise TopologyError(
                f"two agents are named {agent.name!r}: give one of them name=, as positions are"
                f" stored by it"
            )
        self[agent.name] = agent
        return agent

    def _as_stream(self, source: Any, agent: str) -> AgentSource:
        if isinstance(source, DeclaredStream):
            return self._streams.source(source, agent)
        if isinstance(source, Topic):
            self._topics.check_own(source, f"agent {agent!r}")
            return AgentSource((source,))
        raise TopologyError(
            f"agent {agent!r}: {source!r} is neither a topic nor a stream of this app: give what app.topic()"
            f" or app.stream() has returned"
        )

    def nodes(self) -> dict[str, AgentNode]:
        """The agents as data."""
        return {agent.name: self._node(agent) for agent in self.values()}

    def _node(self, agent: Agent[Any, Any]) -> AgentNode:
        steps = self._streams.steps.get(agent.name, ())
        topics = [topic for stream in agent.sources for topic in stream.topics]
        return AgentNode(
            name=agent.name,
            sources=tuple(dict.fromkeys(name for topic in topics for name in topic.names)),
            sinks=tuple(_sink_name(sink) for sink in agent.sinks),
            concurrency=agent.concurrency,
            internal=agent.internal,
            tables=tuple(dict.fromkeys(table for step in steps for table in step.keeps)),
            steps=steps,
        )


def _sink_name(sink: Any) -> str:
    if isinstance(sink, str):
        return sink
    if isinstance(sink, Topic):
        return sink.name
    if isinstance(sink, Agent):
        return sink.topic.name if sink.topic is not None else sink.name
    return getattr(sink, "__name__", repr(sink))


def _stream_type(function: Callable[..., Any]) -> Any:
    """The V of ``stream: Stream[V]``, or Any."""
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):
        return Any
    hints.pop("return", None)
    for hint in hints.values():
        arguments = get_args(hint)
        if arguments:
            return arguments[0]
    return Any


def _result_type(function: Callable[..., Any]) -> Any:
    """The R of ``-> AsyncIterator[R]``, or Any."""
    try:
        result = get_type_hints(function).get("return")
    except (NameError, TypeError):
        return Any
    arguments = get_args(result)
    return arguments[0] if arguments else Any
