"""What ``@app.agent(...)`` returns, for type checkers: functions and generators make agents of their types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from millstream.agents import Agent, Stream

__all__ = ["AgentDecorator", "OwnTopicDecorator"]

V = TypeVar("V")
V_contra = TypeVar("V_contra")
R = TypeVar("R")


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
