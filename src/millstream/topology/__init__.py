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
from millstream.topology._positions import PIPELINE, position_name

__all__ = [
    "PIPELINE",
    "AgentNode",
    "StepNode",
    "TableNode",
    "TimerNode",
    "TopicNode",
    "Topology",
    "draw_mermaid",
    "draw_svg",
    "draw_text",
    "position_name",
]
