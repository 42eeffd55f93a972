"""A topology as text, as a Mermaid diagram, and as SVG.

All three show which agent reads and writes what, and of agents that run streams each step, by its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millstream.topology._nodes import AgentNode, StepNode, Topology

__all__ = ["draw_mermaid", "draw_svg", "draw_text"]

_ROW_PX, _GAP_PX, _BOX_PX, _LINE_PX = 56, 60, 36, 17
_LETTER_PX = 7.6
"""No letter of a name is wider on average, in any font that a browser has for the drawing."""


def draw_text(topology: Topology) -> str:
    """One agent after the other, with what it reads and sends to and its steps, then tables and timers."""
    lines = [topology.app]
    for agent in topology.agents.values():
        sinks = f" → {', '.join(agent.sinks)}" if agent.sinks else ""
        many = f"  (concurrency {agent.concurrency})" if agent.concurrency > 1 else ""
        lines.append(f"  {', '.join(agent.sources)} → agent {agent.name}{sinks}{many}")
        lines += [f"    {line}" for line in _step_lines(agent)]
    for table in topology.tables.values():
        window = f", {table.window}" if table.window else ""
        origin = table.source or table.changelog or ""
        scope = "on every worker" if table.everywhere else f"{table.partitions or '?'} shards"
        lines.append(f"  table {table.name} ({scope}{window}) ⇄ {origin}")
    lines += [f"  timer {t.name} ({t.schedule}, {t.scope})" for t in topology.timers.values()]
    return "\n".join(lines)


def _step_lines(agent: AgentNode) -> list[str]:
    """Its steps: number, kind and name, ← what it takes, → where it sends, and its tables."""
    lines = []
    for number, step in enumerate(agent.steps, start=1):
        taken = [*(f"topic {topic}" for topic in step.topics), *map(str, step.after)]
        sent = [*step.sinks, *(["the topic that is chosen"] if step.chooses else [])]
        line = f"{number}. {_title(step)} ← {', '.join(taken)}"
        if sent:
            line += f" → {', '.join(sent)}"
        uses = [f"{verb} {', '.join(names)}" for verb, names in _tables_of(step) if names]
        lines.append(f"{line} ({'; '.join(uses)})" if uses else line)
    return lines


def _title(step: StepNode) -> str:
    return f"{step.kind} {step.name}"


def _tables_of(step: StepNode) -> list[tuple[str, tuple[str, ...]]]:
    return [("reads", step.reads), ("keeps", step.keeps)]


def _edges(topology: Topology) -> list[tuple[str, str]]:
    """What goes from where to where, with an agent as one node."""
    edges: list[tuple[str, str]] = []
    written: set[str] = set()
    for agent in topology.agents.values():
        node = f"agent:{agent.name}"
        written |= set(agent.tables)
        read = dict.fromkeys(table for step in agent.steps for table in step.reads)
        edges += [(f"topic:{source}", node) for source in agent.sources]
        edges += [(f"table:{table}", node) for table in read if table not in agent.tables]
        edges += [(node, f"topic:{sink}") for sink in agent.sinks]
        edges += [(node, f"table:{table}") for table in agent.tables]
    edges += [
        (f"topic:{table.source}", f"table:{table.name}")
        for table in topology.tables.values()
        if table.source and table.name not in written
    ]
    return edges


def _nodes(topology: Topology, edges: list[tuple[str, str]]) -> list[str]:
    """Each node once, in the order of the edges; then agents and tables that no edge leads to."""
    nodes = [name for edge in edges for name in edge]
    nodes += [f"agent:{name}" for name in topology.agents]
    nodes += [f"table:{name}" for name in topology.tables]
    return list(dict.fromkeys(nodes))


def draw_mermaid(topology: Topology) -> str:
    """A Mermaid flowchart: topics as cylinders, agents and steps as boxes, tables as rounded boxes.

    The steps of an agent are a subgraph; a table that a step looks up has a dotted arrow to it.
    """
    edges = _edges(topology)
    steps = {f"agent:{a.name}": a.steps for a in topology.agents.values() if a.steps}
    ids: dict[str, str] = {}
    lines = ["flowchart LR"]
    shapes = {"topic": '[("{}")]', "agent": '["{}"]', "table": '("{}")'}
    for node in _nodes(topology, edges):
        kind, name = node.split(":", 1)
        ids[node] = f"n{len(ids)}"
        if node not in steps:
            lines.append(f"    {ids[node]}{shapes[kind].format(_quoted(name))}")
            continue
        lines.append(f'    subgraph {ids[node]}["{_quoted(name)}"]')
        for number, step in enumerate(steps[node], start=1):
            shown = _title(step) + (" → the topic that is chosen" if step.chooses else "")
            lines.append(f'        {ids[node]}s{number}["{_quoted(shown)}"]')
        lines.append("    end")
    lines += [f"    {ids[a]} --> {ids[b]}" for a, b in edges if a not in steps and b not in steps]
    for node, listed in steps.items():
        for number, step in enumerate(listed, start=1):
            here = f"{ids[node]}s{number}"
            lines += [f"    {ids[f'topic:{topic}']} --> {here}" for topic in step.topics]
            lines += [f"    {ids[node]}s{before} --> {here}" for before in step.after]
            lines += [f"    {ids[f'table:{table}']} -.-> {here}" for table in step.reads]
            lines += [f"    {here} --> {ids[f'table:{table}']}" for table in step.keeps]
            lines += [f"    {here} --> {ids[f'topic:{topic}']}" for topic in step.sinks]
    return "\n".join(lines)


def _quoted(name: str) -> str:
    return name.replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")


def _depths(nodes: list[str], edges: list[tuple[str, str]]) -> dict[str, int]:
    """How many steps each node is away from the sources at most; an edge that closes a circle does not count."""
    follows: dict[str, list[str]] = {node: [] for node in nodes}
    for before, after in edges:
        follows[before].append(after)
    entered = {after for _, after in edges}
    open_now: dict[str, bool] = {}
    onward: dict[str, list[str]] = {node: [] for node in nodes}
    finished: list[str] = []

    def visit(node: str) -> None:
        open_now[node] = True
        for after in follows[node]:
            if after not in open_now:
                visit(after)
            if not open_now[after]:
                onward[node].append(after)
        open_now[node] = False
        finished.append(node)

    for node in sorted(nodes, key=lambda node: node in entered):
        if node not in open_now:
            visit(node)
    depth = dict.fromkeys(nodes, 0)
    for node in reversed(finished):
        for after in onward[node]:
            depth[after] = max(depth[after], depth[node] + 1)
    return depth


def draw_svg(topology: Topology) -> str:
    """An SVG drawing with one column for each step away from the sources."""
    from html import escape

    edges = _edges(topology)
    nodes = _nodes(topology, edges)
    depth = _depths(nodes, edges)
    columns: dict[int, list[str]] = {}
    for node in nodes:
        columns.setdefault(depth[node], []).append(node)
    label = {node: [node.replace(":", " ", 1)] for node in nodes}
    for agent in topology.agents.values():
        if agent.steps:
            label[f"agent:{agent.name}"] += _step_lines(agent)
    box_height = {node: _BOX_PX + _LINE_PX * (len(label[node]) - 1) for node in nodes}
    place: dict[str, tuple[int, int]] = {}
    box_width: dict[str, int] = {}
    x, height = 20, 20 + _ROW_PX
    for _, column in sorted(columns.items()):
        longest = max(len(line) for node in column for line in label[node])
        widest = max(120, 20 + int(longest * _LETTER_PX))
        y = 20
        for node in column:
            place[node] = x, y
            box_width[node] = widest
            y += box_height[node] + _ROW_PX - _BOX_PX
        height = max(height, y)
        x += widest + _GAP_PX
    width = max(x - _GAP_PX, 20) + 20
    colours = {"topic": "#e8f0fe", "agent": "#fef7e0", "table": "#e6f4ea"}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' font-family="system-ui, sans-serif" font-size="13">'
    ]
    for before, after in edges:
        (x1, y1), (x2, y2) = place[before], place[after]
        x1 += box_width[before]
        y1, y2 = y1 + box_height[before] // 2, y2 + box_height[after] // 2
        parts.append(
            f'<path d="M{x1},{y1} C{x1 + 30},{y1} {x2 - 30},{y2} {x2},{y2}"'
            f' fill="none" stroke="#5f6368"/>'
        )
    for node, (x, y) in place.items():
        kind = node.partition(":")[0]
        parts.append(
            f'<rect x="{x}" y="{y}" width="{box_width[node]}" height="{box_height[node]}" rx="6"'
            f' fill="{colours[kind]}" stroke="#5f6368"/>'
        )
        parts += [
            f'<text x="{x + 10}" y="{y + 23 + row * _LINE_PX}">{escape(line)}</text>'
            for row, line in enumerate(label[node])
        ]
    parts.append("</svg>")
    return "".join(parts)
