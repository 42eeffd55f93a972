"""A topology as text, as a Mermaid diagram, and as SVG."""

from __future__ import annotations

import re
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


def pipeline() -> Topology:
    """A stream that looks into two tables, keeps one, moves, and sends to topics, one of them chosen by a function."""
    app = ms.App("shop")
    orders, large = (
        app.topic("orders", value=dict, key_from="account"),
        app.topic("large", value=str),
    )
    people = app.table("people", topic=app.topic("person-changes", value=str))
    rates = app.global_table("rates", topic=app.topic("rate-changes", value=str))
    stream = app.stream(orders).filter(bool)
    named = stream.join(people, lambda order, name: str(name), value=str)
    named.to(lambda name: large)
    stream.join(rates, lambda order, rate: str(rate), on="country", value=str).to(large)
    stream.group_by("country").tumbling("1m").count(name="counts")
    return app.topology


def test_steps_in_text() -> None:
    """Of an agent that runs streams each step is shown: what it takes, where it sends, what it reads and keeps."""
    assert draw_text(pipeline()).splitlines() == [
        "shop",
        "  orders, person-changes → agent stream:orders+person-changes"
        " → large, shop-orders-by-country-repartition",
        "    1. source orders ← topic orders",
        "    2. filter orders ← 1",
        "    3. table people ← topic person-changes (keeps people)",
        "    4. join orders-people-join ← 2 (reads people)",
        "    5. to orders-people-join-to-chosen ← 4 → the topic that is chosen",
        "    6. join orders-rates-join ← 2 (reads rates)",
        "    7. to orders-rates-join-to-large ← 6 → large",
        "    8. key_by orders-by-country ← 2",
        "    9. to orders-by-country-repartition ← 8 → shop-orders-by-country-repartition",
        "  shop-orders-by-country-repartition → agent stream:shop-orders-by-country-repartition",
        "    1. source shop-orders-by-country-repartition"
        " ← topic shop-orders-by-country-repartition",
        "    2. windowed aggregate counts ← 1 (keeps counts)",
        "  table people (? shards) ⇄ person-changes",
        "  table rates (on every worker) ⇄ rate-changes",
        "  table counts (? shards, tumbling(1m)) ⇄ shop-counts-changelog",
    ]


def test_steps_in_mermaid() -> None:
    """An agent's steps are a subgraph; arrows go from step to step, and to and from topics and tables."""
    lines = [line.strip() for line in draw_mermaid(pipeline()).splitlines()]
    ids = {line.split('"')[1]: re.split(r"[\[(]", line)[0] for line in lines if '"' in line}
    subgraphs = [line.split('"')[1] for line in lines if line.startswith("subgraph ")]
    assert subgraphs == [
        "stream:orders+person-changes",
        "stream:shop-orders-by-country-repartition",
    ]
    assert lines.count("end") == 2
    edges = [
        ("orders", "-->", "source orders"),
        ("source orders", "-->", "filter orders"),
        ("person-changes", "-->", "table people"),
        ("table people", "-->", "people"),
        ("filter orders", "-->", "join orders-people-join"),
        ("people", "-.->", "join orders-people-join"),
        (
            "join orders-people-join",
            "-->",
            "to orders-people-join-to-chosen → the topic that is chosen",
        ),
        ("rate-changes", "-->", "rates"),
        ("rates", "-.->", "join orders-rates-join"),
        ("join orders-rates-join", "-->", "to orders-rates-join-to-large"),
        ("to orders-rates-join-to-large", "-->", "large"),
        ("filter orders", "-->", "key_by orders-by-country"),
        ("to orders-by-country-repartition", "-->", "shop-orders-by-country-repartition"),
        ("windowed aggregate counts", "-->", "counts"),
    ]
    for before, arrow, after in edges:
        assert f"{ids[before]} {arrow} {ids[after]}" in lines, (before, after)


def test_steps_in_svg() -> None:
    """They stand in the agent's box, which is high enough for them, and every table has a line to it."""
    topology = pipeline()
    root = ElementTree.fromstring(draw_svg(topology))
    space = "{http://www.w3.org/2000/svg}"
    texts = [node.text for node in root.iter(f"{space}text")]
    assert "4. join orders-people-join ← 2 (reads people)" in texts
    boxes = list(root.iter(f"{space}rect"))
    assert max(int(box.attrib["height"]) for box in boxes) > 9 * 15
    assert max(int(b.attrib["y"]) + int(b.attrib["height"]) for b in boxes) <= int(
        root.attrib["height"]
    )
    assert {name: agent.tables for name, agent in topology.agents.items()} == {
        "stream:orders+person-changes": ("people",),
        "stream:shop-orders-by-country-repartition": ("counts",),
    }
    # topics read and sent to, tables kept, the global table's topic, and the table that is looked up
    assert len(list(root.iter(f"{space}path"))) == 3 + 2 + 2 + 1 + 1


def test_steps_of_patterns() -> None:
    """Where a pattern stands for topics, so does it in the steps, until it is resolved."""
    app = ms.App("shop")
    app.stream(app.topic(pattern="orders-.*", value=int)).foreach(print)
    resolved = app.topology.resolved({"orders-fr": 2, "orders-de": 2, "other": 2}, 2)
    assert "1. source" in draw_text(resolved)
    assert "← topic orders-de, topic orders-fr" in draw_text(resolved)
    ElementTree.fromstring(draw_svg(resolved))
    assert draw_mermaid(resolved).count("-->") == 3


def test_a_pattern_that_no_topic_matches() -> None:
    """The agent, which reads nothing yet, is drawn all the same, with its steps."""
    app = ms.App("shop")
    app.stream(app.topic(pattern="orders-.*", value=int)).filter(bool).foreach(print)
    resolved = app.topology.resolved({}, 2)
    texts = list(ElementTree.fromstring(draw_svg(resolved)).itertext())
    assert "agent stream:~orders-.*" in texts
    assert any(text.startswith("2. filter") for text in texts)
    mermaid = draw_mermaid(resolved)
    assert 'subgraph n0["stream:~orders-.*"]' in mermaid
    assert "n0s1 --> n0s2" in mermaid


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
    assert f"    {by_name['people']} --> {by_name['table:names']}" in lines
    assert f"    {by_name['table:names']} --> {by_name['names']}" in lines
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


def test_columns_of_a_cycle() -> None:
    """Agents that send to one another are drawn from left to right as well, by all but the last edge."""
    app = ms.App("loop")
    left = app.table("left", topic=app.topic("l", value=dict))
    right = app.table("right", topic=app.topic("r", value=str))
    left.join(right, lambda one, other: other, on="key", name="rows", value=str)
    root = ElementTree.fromstring(draw_svg(app.topology))
    boxes = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert (
        len({box.attrib["x"] for box in boxes}) == 5
    )  # topic, agent, topic, agent, what it writes


def test_of_an_app() -> None:
    """``print(app.topology)`` shows it, and it draws itself in notebooks."""
    nodes = shop()
    assert str(nodes) == draw_text(nodes)
    assert nodes.mermaid() == draw_mermaid(nodes)
    assert nodes.svg() == nodes._repr_svg_() == draw_svg(nodes)
