"""A topology as text, as a Mermaid diagram, and as SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import millstream as ms
from millstream.topology import Topology, draw_mermaid, draw_svg, draw_text


def shop() -> Topology:
    app = ms.App("shop")
    orders = app.topic("orders", value=int)
    large = app.topic("large", value=int)
    people = app.topic("people", value=str)
    app.table("totals", key=str, value=int)
    app.table("names", topic=people, partitions=None)
    app.global_table("rates", key=str, value=float)

    @app.agent(orders, sink=large, concurrency=3)
    async def count(stream: ms.Stream[int]) -> None:
        pass

    @app.timer("1m", scope="leader")
    async def tick() -> None:
        pass

    return app.topology


def test_text() -> None:
    """Agents with what they read and send to, then tables, then timers."""
    assert draw_text(shop()).splitlines() == [
        "shop",
        "  orders → agent count → large  (concurrency 3)",
        "  people → agent table:names",
        "  table totals (? shards) ⇄ shop-totals-changelog",
        "  table names (? shards) ⇄ people",
        "  table rates (on every worker) ⇄ shop-rates-global",
        "  timer tick (every 1m, leader)",
    ]


def test_text_of_a_resolved_topology() -> None:
    """Once counts are known they are shown."""
    assert "table totals (4 shards)" in draw_text(shop().resolved({}, 4))


def test_mermaid() -> None:
    """Topics, agents and tables are nodes with shapes of their own, each once, and every edge is there."""
    lines = draw_mermaid(shop()).splitlines()
    assert lines[0] == "flowchart LR"
    names = {
        line.split("[", 1)[0].split("(", 1)[0].strip(): line for line in lines[1:] if '"' in line
    }
    by_name = {line.split('"')[1]: node for node, line in names.items()}
    assert len(names) == len([line for line in lines if '"' in line])
    assert f"    {by_name['orders']} --> {by_name['count']}" in lines
    assert f"    {by_name['count']} --> {by_name['large']}" in lines
    assert f"    {by_name['people']} --> {by_name['names']}" in lines
    assert '[("orders")]' in draw_mermaid(shop())
    assert '["count"]' in draw_mermaid(shop())
    assert '("totals")' in draw_mermaid(shop())


def test_svg() -> None:
    """The drawing is well-formed XML with a box for each node and a line for each edge."""
    root = ElementTree.fromstring(draw_svg(shop()))
    space = "{http://www.w3.org/2000/svg}"
    texts = [node.text for node in root.iter(f"{space}text")]
    assert {"topic orders", "agent count", "topic large", "table totals"} <= set(texts)
    assert len(texts) == len(set(texts)) == len(list(root.iter(f"{space}rect")))
    assert len(list(root.iter(f"{space}path"))) >= 4


def test_boxes_do_not_overlap() -> None:
    """No two boxes share a place, and all are within the drawing."""
    root = ElementTree.fromstring(draw_svg(shop()))
    boxes = [
        tuple(int(box.attrib[name]) for name in ("x", "y", "width", "height"))
        for box in root.iter("{http://www.w3.org/2000/svg}rect")
    ]
    assert len({box[:2] for box in boxes}) == len(boxes)
    assert max(x + width for x, _, width, _ in boxes) <= int(root.attrib["width"])
    assert max(y + height for _, y, _, height in boxes) <= int(root.attrib["height"])


def test_long_names() -> None:
    """A box is as wide as what stands in it, and the next column begins beyond it."""
    app = ms.App("long")
    name = "the-orders-of-all-the-shops-in-all-the-countries"

    @app.agent(app.topic(name, value=int))
    async def count(stream: ms.Stream[int]) -> None:
        pass

    root = ElementTree.fromstring(draw_svg(app.topology))
    topic, agent = root.iter("{http://www.w3.org/2000/svg}rect")
    assert int(topic.attrib["width"]) > 7 * len(f"topic {name}")
    assert int(agent.attrib["x"]) > int(topic.attrib["x"]) + int(topic.attrib["width"])


def test_names_are_escaped() -> None:
    """What a name could break is escaped, and an empty app has a drawing as well."""
    app = ms.App("x")

    def sink(value: int) -> None:
        pass

    sink.__name__ = "<lambda>"

    @app.agent(app.topic("t", value=int), sink=sink)
    async def count(stream: ms.Stream[int]) -> None:
        pass

    assert "&lt;lambda&gt;" in draw_svg(app.topology)
    ElementTree.fromstring(draw_svg(app.topology))
    ElementTree.fromstring(draw_svg(Topology("empty")))
    assert draw_text(Topology("empty")) == "empty"
    assert draw_mermaid(Topology("empty")) == "flowchart LR"


def test_cycles() -> None:
    """An agent that sends to its own source is drawn, too."""
    app = ms.App("loop")
    topic = app.topic("t", value=int)

    @app.agent(topic, sink=topic)
    async def again(stream: ms.Stream[int]) -> None:
        pass

    ElementTree.fromstring(draw_svg(app.topology))
    assert "t → agent again → t" in draw_text(app.topology)


def test_of_an_app() -> None:
    """``print(app.topology)`` shows it, and it draws itself in notebooks."""
    nodes = shop()
    assert str(nodes) == draw_text(nodes)
    assert nodes.mermaid() == draw_mermaid(nodes)
    assert nodes.svg() == nodes._repr_svg_() == draw_svg(nodes)
