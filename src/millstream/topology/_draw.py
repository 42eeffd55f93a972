"""A topology as text, as a Mermaid diagram, and as SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millstream.topology._nodes import Topology

__all__ = ["draw_mermaid", "draw_svg", "draw_text"]

_ROW_PX, _GAP_PX, _BOX_PX = 56, 60, 36
_LETTER_PX = 7.6
"""No letter of a name is wider on average, in any font that a browser has for the drawing."""


def draw_text(topology: Topology) -> str:
    """One agent after the other, with what it reads and sends to, then tables and timers."""
    lines = [topology.app]
    for agent in topology.agents.values():
        sinks = f" → {', '.join(agent.sinks)}" if agent.sinks else ""
        many = f"  (concurrency {agent.concurrency})" if agent.concurrency > 1 else ""
        lines.append(f"  {', '.join(agent.sources)} → agent {agent.name}{sinks}{many}")
    for table in topology.tables.values():
        window = f", {table.window}" if table.window else ""
        origin = table.source or table.changelog or ""
        scope = "on every worker" if table.everywhere else f"{table.partitions or '?'} shards"
        lines.append(f"  table {table.name} ({scope}{window}) ⇄ {origin}")
    lines += [f"  timer {t.name} ({t.schedule}, {t.scope})" for t in topology.timers.values()]
    return "\n".join(lines)


def _edges(topology: Topology) -> list[tuple[str, str]]:
    edges = []
    for agent in topology.agents.values():
        edges += [(f"topic:{source}", f"agent:{agent.name}") for source in agent.sources]
        edges += [(f"agent:{agent.name}", f"topic:{sink}") for sink in agent.sinks]
    edges += [
        (f"topic:{table.source}", f"table:{table.name}")
        for table in topology.tables.values()
        if table.source
    ]
    return edges


def draw_mermaid(topology: Topology) -> str:
    """A Mermaid flowchart: topics as cylinders, agents as boxes, tables as rounded boxes."""
    ids: dict[str, str] = {}
    lines = ["flowchart LR"]
    shapes = {"topic": '[("{}")]', "agent": '["{}"]', "table": '("{}")'}
    nodes = [name for edge in _edges(topology) for name in edge]
    nodes += [f"table:{name}" for name in topology.tables]
    for node in dict.fromkeys(nodes):
        kind, name = node.split(":", 1)
        ids[node] = f"n{len(ids)}"
        shown = name.replace('"', "#quot;")
        lines.append(f"    {ids[node]}{shapes[kind].format(shown)}")
    lines += [f"    {ids[a]} --> {ids[b]}" for a, b in _edges(topology)]
    return "\n".join(lines)


def draw_svg(topology: Topology) -> str:
    """An SVG drawing with one column for each step away from the sources."""
    from html import escape

    edges = _edges(topology)
    nodes = list(dict.fromkeys([name for edge in edges for name in edge]))
    nodes += [f"table:{t}" for t in topology.tables if f"table:{t}" not in nodes]
    depth = dict.fromkeys(nodes, 0)
    for _ in nodes:
        for before, after in edges:
            depth[after] = min(max(depth[after], depth[before] + 1), len(nodes))
    columns: dict[int, list[str]] = {}
    for node in nodes:
        columns.setdefault(depth[node], []).append(node)
    label = {node: node.replace(":", " ", 1) for node in nodes}
    place: dict[str, tuple[int, int]] = {}
    box_width: dict[str, int] = {}
    x = 20
    for _, column in sorted(columns.items()):
        widest = max(120, *(20 + int(len(label[node]) * _LETTER_PX) for node in column))
        for y, node in enumerate(column):
            place[node] = x, 20 + y * _ROW_PX
            box_width[node] = widest
        x += widest + _GAP_PX
    width = max(x - _GAP_PX, 20) + 20
    height = 20 + max((len(column) for column in columns.values()), default=1) * _ROW_PX
    colours = {"topic": "#e8f0fe", "agent": "#fef7e0", "table": "#e6f4ea"}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' font-family="system-ui, sans-serif" font-size="13">'
    ]
    middle = _BOX_PX // 2
    for before, after in edges:
        (x1, y1), (x2, y2) = place[before], place[after]
        x1 += box_width[before]
        y1, y2 = y1 + middle, y2 + middle
        parts.append(
            f'<path d="M{x1},{y1} C{x1 + 30},{y1} {x2 - 30},{y2} {x2},{y2}"'
            f' fill="none" stroke="#5f6368"/>'
        )
    for node, (x, y) in place.items():
        kind = node.partition(":")[0]
        parts.append(
            f'<rect x="{x}" y="{y}" width="{box_width[node]}" height="{_BOX_PX}" rx="6"'
            f' fill="{colours[kind]}" stroke="#5f6368"/>'
            f'<text x="{x + 10}" y="{y + 23}">{escape(label[node])}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)
