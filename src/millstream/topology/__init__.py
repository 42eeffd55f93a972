"""What an app consists of: plain data that is validated, compared and drawn without running."""

from millstream.topology._draw import draw_mermaid, draw_svg, draw_text
from millstream.topology._nodes import (
    AgentNode,
    StepNode,
    TableNode,
    TimerNode,
    TopicNode,
    Topology,
)

__all__ = [
    "AgentNode",
    "StepNode",
    "TableNode",
    "TimerNode",
    "TopicNode",
    "Topology",
    "draw_mermaid",
    "draw_svg",
    "draw_text",
]
