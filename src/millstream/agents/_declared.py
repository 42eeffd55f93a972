"""Streams as programs declare them: a source topic, and steps on the way to an agent.

A declared stream is a value: every step makes a new one. ``group_by`` and ``through`` end in a topic, which
an agent of Millstream's own feeds; what follows reads from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.agents._topic import Topic

__all__ = ["DeclaredStream", "Step", "StreamHome"]

V = TypeVar("V")
W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Step:
    """``filter`` or ``map`` with its function."""

    kind: str
    function: Callable[[Any], Any]


class StreamHome(Protocol):
    """Where declared streams put the topics and agents that they need: the app."""

    def regroup(
        self, stream: DeclaredStream[Any], key: str | Callable[[Any], Any], name: str | None
    ) -> Topic[Any, Any]: ...

    def forward(self, stream: DeclaredStream[Any], topic: Topic[Any, Any]) -> None: ...


@dataclass(frozen=True, slots=True)
class DeclaredStream(Generic[V]):
    """The records of some topics, with the steps that they take."""

    topics: tuple[Topic[Any, Any], ...]
    home: StreamHome = field(repr=False, compare=False)
    steps: tuple[Step, ...] = ()

    def filter(self, keep: Callable[[V], Any]) -> DeclaredStream[V]:
        """The values for which ``keep`` is true."""
        return replace(self, steps=(*self.steps, Step("filter", keep)))

    def map(self, function: Callable[[V], W]) -> DeclaredStream[W]:
        """What ``function`` makes of each value; the key stays."""
        mapped = replace(self, steps=(*self.steps, Step("map", function)))
        return cast("DeclaredStream[W]", mapped)

    def group_by(
        self, key: str | Callable[[V], Any], *, name: str | None = None
    ) -> DeclaredStream[V]:
        """The same values keyed anew, so that each shard holds all the values of its keys.

        They go through a topic of their own, named after the sources and the key; a function needs a
        ``name``. Records whose key is None are dropped.
        """
        return DeclaredStream((self.home.regroup(self, key, name),), self.home)

    def through(self, topic: Topic[W, Any]) -> DeclaredStream[W]:
        """The same values by way of ``topic``, with its key, partitions and codec."""
        self.home.forward(self, topic)
        return DeclaredStream((topic,), self.home)
