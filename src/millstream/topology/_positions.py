"""Under which names a group keeps how far its agents are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PIPELINE", "position_name"]

PIPELINE = "stream:"
"""What the names of the agents that run streams begin with; those of a program's own hold no colon."""


def position_name(agent: str, sources: Iterable[str], topic: str) -> str:
    """Under which name it is kept how far an agent is with a topic.

    An agent that runs streams is named after all that it reads, which a line more in the program changes: a join
    with another topic, say. Its position in the one topic stays, so that is named after the topic alone, or
    after the pattern that has found it. No two such agents read what has one name.

    Args:
        sources: the names of what the agent reads; those of patterns begin with a tilde.
    """
    if not agent.startswith(PIPELINE):
        return agent
    names = tuple(sources)
    if topic in names:
        return PIPELINE + topic
    for name in names:
        if name.startswith("~") and re.fullmatch(name[1:], topic):
            return PIPELINE + name
    return agent
