"""Topics, streams and agents: what programs declare, and what runs them."""

from millstream.agents._agent import (
    HEADER_CORRELATION,
    HEADER_ERROR,
    HEADER_REPLY_TO,
    Agent,
    Asker,
    Sink,
    new_correlation_id,
    reply_headers,
)
from millstream.agents._declared import AgentSource, Step
from millstream.agents._event import Event, current_event
from millstream.agents._fields import field_getter
from millstream.agents._instance import Failure, Instance, InstanceHost, Run, Source
from millstream.agents._lines import user_line, waiting_line
from millstream.agents._policy import Dlq, OnError, Policy, Retry, policy_of
from millstream.agents._stream import SKIP, Stream
from millstream.agents._topic import Sender, Topic
from millstream.agents._topic_group import TopicGroup

__all__ = [
    "HEADER_CORRELATION",
    "HEADER_ERROR",
    "HEADER_REPLY_TO",
    "SKIP",
    "Agent",
    "AgentSource",
    "Asker",
    "Dlq",
    "Event",
    "Failure",
    "Instance",
    "InstanceHost",
    "OnError",
    "Policy",
    "Retry",
    "Run",
    "Sender",
    "Sink",
    "Source",
    "Step",
    "Stream",
    "Topic",
    "TopicGroup",
    "current_event",
    "field_getter",
    "new_correlation_id",
    "policy_of",
    "reply_headers",
    "user_line",
    "waiting_line",
]
