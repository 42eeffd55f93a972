"""What an agent reads: topics, and what is done to their values before it sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.agents._topic import Topic

__all__ = ["AgentSource", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """``filter`` or ``map`` with its function."""

    kind: str
    function: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class AgentSource:
    """The records of some topics, with the steps that they take on the way to the agent."""

    topics: tuple[Topic[Any, Any], ...]
    steps: tuple[Step, ...] = ()
