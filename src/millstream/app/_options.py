"""What the declaring methods of `App` take and return, for type checkers.

Each overload of ``app.topic`` and its like says what decides the types of its result; what they have in common
stands here once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from millstream.agents import Agent, OnError, Sink, Stream, Topic
    from millstream.clock import Duration
    from millstream.serialization import Codec
    from millstream.streams import DeclaredStream

__all__ = [
    "AgentDecorator",
    "AgentOptions",
    "OwnTopicDecorator",
    "SetTableOptions",
    "Source",
    "TableOptions",
    "TopicOptions",
]

V = TypeVar("V")
V_contra = TypeVar("V_contra")
R = TypeVar("R")

Source: TypeAlias = "Topic[V, Any] | DeclaredStream[V]"
"""What an agent reads."""


class TopicOptions(TypedDict, total=False):
    """Of `App.topic`."""

    pattern: str | None
    key_from: str | Callable[[Any], Any] | None
    codec: str
    key_codec: str | Codec[Any] | None
    partitions: int | None
    retention: Duration | None
    compacted: bool
    timestamp: str | Callable[[Any], Any] | None
    on_error: OnError | None
    max_wait: Duration
    idle_timeout: Duration | None
    partitioner: str
    internal: bool


class TableOptions(TypedDict, total=False):
    """Of `App.table`."""

    like: Topic[Any, Any] | None
    partitions: int | None
    ttl: Duration | None
    codec: str
    on_change: Callable[..., Any] | None
    upgrade: Callable[[Any], Any] | None
    on_error: OnError | None
    partitioner: str | None
    help: str


class SetTableOptions(TypedDict, total=False):
    """Of `App.set_table`."""

    like: Topic[Any, Any] | None
    partitions: int | None
    help: str


class AgentOptions(TypedDict, total=False):
    """Of `App.agent`."""

    name: str | None
    concurrency: int
    ordered_by: str | Callable[[Any], Any] | None
    sink: Sequence[Sink] | Sink
    on_error: OnError | None


class AgentDecorator(Protocol[V_contra]):
    """Makes an agent over sources whose values are known."""

    @overload
    def __call__(
        self, function: Callable[[Stream[V_contra, Any]], AsyncIterator[R]], /
    ) -> Agent[V_contra, R]: ...
    @overload
    def __call__(
        self, function: Callable[[Stream[V_contra, Any]], Awaitable[None]], /
    ) -> Agent[V_contra, None]: ...


class OwnTopicDecorator(Protocol):
    """Makes an agent with a topic of its own, whose values are what its function takes."""

    @overload
    def __call__(
        self, function: Callable[[Stream[V, Any]], AsyncIterator[R]], /
    ) -> Agent[V, R]: ...
    @overload
    def __call__(
        self, function: Callable[[Stream[V, Any]], Awaitable[None]], /
    ) -> Agent[V, None]: ...
