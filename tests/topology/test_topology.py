"""What an app consists of, as data: partition counts resolved, and two programs told apart."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

import millstream as ms
from millstream.errors import PartitionCountError, TopologyError
from millstream.topology import AgentNode, TableNode, TimerNode, TopicNode, Topology


def topology(
    *,
    topics: tuple[TopicNode, ...] = (),
    tables: tuple[TableNode, ...] = (),
    agents: tuple[AgentNode, ...] = (),
) -> Topology:
    return Topology(
        app="shop",
        topics={topic.name: topic for topic in topics},
        tables={table.name: table for table in tables},
        agents={agent.name: agent for agent in agents},
    )


def topic(name: str, partitions: int | None = None, **facts: Any) -> TopicNode:
    return TopicNode(name=name, partitions=partitions, **facts)


def table(name: str, **facts: Any) -> TableNode:
    changelog = None if facts.get("source") else f"shop-{name}-changelog"
    return TableNode(name=name, changelog=changelog, **facts)


def agent(name: str, *sources: str) -> AgentNode:
    return AgentNode(name=name, sources=sources)


def test_counts_of_topics() -> None:
    """Each row: declared, existing on the log, resolved with a default of 4."""
    rows: list[tuple[int | None, int | None, int]] = [
        (None, None, 4),  # neither: the setting
        (7, None, 7),  # declared, and to be created
        (None, 9, 9),  # existing, and nothing declared
        (9, 9, 9),  # both
    ]
    for declared, existing, expected in rows:
        resolved = topology(topics=(topic("a", declared),)).resolved(
            {} if existing is None else {"a": existing}, 4
        )
        assert resolved.topics["a"].partitions == expected


def test_another_count_than_declared() -> None:
    """A topic that exists with another count is an error with both numbers and two ways out."""
    with pytest.raises(
        PartitionCountError,
        match=r"topic 'a' has 3 partitions, and the program declares 4\. Declare partitions=3, or use",
    ):
        topology(topics=(topic("a", 4),)).resolved({"a": 3}, 4)


def test_counts_of_tables() -> None:
    """Each row: what the table says, counts of the app's source topics, and the table's own."""
    rows: list[tuple[dict[str, Any], dict[str, int], int]] = [
        ({}, {"a": 3, "b": 3}, 3),  # the one count of all sources
        ({"partitions": 5}, {"a": 3, "b": 4}, 5),  # its own
        ({"like": "b"}, {"a": 3, "b": 4}, 4),  # another topic's
        ({"source": "b"}, {"a": 3, "b": 4}, 4),  # the topic that it is read from
        ({}, {}, 4),  # no sources at all: the setting
    ]
    for facts, counts, expected in rows:
        resolved = topology(
            topics=tuple(topic(name) for name in counts),
            tables=(table("t", **facts),),
            agents=tuple(agent(f"reads-{name}", name) for name in counts),
        ).resolved(counts, 4)
        assert resolved.tables["t"].partitions == expected


def test_changelogs() -> None:
    """A resolved table brings its changelog: compacted, internal, with as many partitions."""
    resolved = topology(tables=(table("t", partitions=3),)).resolved({}, 4)
    assert resolved.topics["shop-t-changelog"] == TopicNode(
        name="shop-t-changelog", partitions=3, internal=True, compacted=True
    )


def test_unresolved_table() -> None:
    """A table whose count cannot be told lists the topics and both ways out."""
    with pytest.raises(
        PartitionCountError,
        match=r"table 't': .*different partition counts \(a 3, b 4\)\. .*like=topic, or partitions=n",
    ):
        topology(
            topics=(topic("a"), topic("b")),
            tables=(table("t"),),
            agents=(agent("x", "a"), agent("y", "b")),
        ).resolved({"a": 3, "b": 4}, 4)


def test_another_count_than_the_changelog() -> None:
    """A table whose changelog has another count is an error that names the command to start anew."""
    with pytest.raises(
        PartitionCountError,
        match=r"table 't' would have 4 partitions, and its changelog 'shop-t-changelog' has 3\..*reset",
    ):
        topology(tables=(table("t"),)).resolved({"shop-t-changelog": 3}, 4)


def test_like_no_topic() -> None:
    """``like`` names a topic of the app."""
    with pytest.raises(TopologyError, match="like='nowhere' is no topic of this app"):
        topology(tables=(table("t", like="nowhere"),)).resolved({}, 4)


def test_repartition_topics() -> None:
    """An internal topic takes the one count of the outer sources, so that tables match."""
    nodes = topology(
        topics=(topic("a", 6), topic("a-by-key", internal=True)),
        tables=(table("t"),),
        agents=(agent("key", "a"), agent("count", "a-by-key")),
    ).resolved({}, 4)
    assert nodes.topics["a-by-key"].partitions == 6
    assert nodes.tables["t"].partitions == 6


def test_shard_counts() -> None:
    """Agents and tables are grouped by the partition count of what they read."""
    nodes = topology(
        topics=(topic("a", 2), topic("b", 3), topic("c", 3)),
        tables=(table("t", partitions=5), table("g", partitions=7, everywhere=True)),
        agents=(agent("x", "a"), agent("y", "b", "c")),
    ).resolved({}, 4)
    assert nodes.shard_counts() == {2: ["x"], 3: ["y"], 5: []}


def test_not_co_partitioned() -> None:
    """An agent over topics of different counts is an error that lists them."""
    nodes = topology(
        topics=(topic("a", 2), topic("b", 3)), agents=(agent("x", "a", "b"),)
    ).resolved({}, 4)
    with pytest.raises(
        PartitionCountError,
        match=r"'x' reads topics that are not co-partitioned: a has 2, b has 3\. .*group_by",
    ):
        nodes.shard_counts()


def test_sources() -> None:
    """Sources are what agents and tables read, once each, sorted."""
    nodes = topology(
        topics=(topic("a"), topic("b"), topic("out")),
        tables=(table("t", source="b"),),
        agents=(agent("x", "b", "a"),),
    )
    assert nodes.sources == ["a", "b"]


def test_fingerprint() -> None:
    """Two programs differ by agents, sources, tables, counts and windows, and by nothing else."""
    base = {"agents": (agent("x", "a"),), "tables": (table("t", partitions=4),)}
    same = topology(topics=(topic("a"),), **base)  # type: ignore[arg-type]
    assert same.fingerprint() == topology(**base).fingerprint()  # type: ignore[arg-type]
    others = [
        topology(agents=(agent("x", "b"),), tables=base["tables"]),  # type: ignore[arg-type]
        topology(agents=(agent("y", "a"),), tables=base["tables"]),  # type: ignore[arg-type]
        topology(agents=base["agents"], tables=(table("t", partitions=5),)),  # type: ignore[arg-type]
        topology(agents=base["agents"], tables=(table("t", partitions=4, window="1h"),)),  # type: ignore[arg-type]
        topology(agents=base["agents"]),  # type: ignore[arg-type]
    ]
    found = {other.fingerprint() for other in [same, *others]}
    assert len(found) == 6


def test_is_data() -> None:
    """A topology does not change, and two equal ones are equal."""
    nodes = topology(topics=(topic("a"),))
    assert nodes == topology(topics=(topic("a"),))
    with pytest.raises(FrozenInstanceError):
        nodes.app = "other"  # type: ignore[misc]


def test_of_an_app() -> None:
    """Declarations become a topology without anything running."""
    app = ms.App("shop")
    orders = app.topic("orders", value=int, partitions=3, retention="1h")
    out = app.topic("out", value=int, compacted=True)
    app.table("totals", key=str, value=int)
    app.table("hourly", key=str, value=int, default=0).tumbling("1h")
    app.table("from-topic", topic=out)
    app.global_table("rates", key=str, value=float)

    @app.agent(orders, sink=[out], concurrency=5)
    async def count(stream: ms.Stream[int]) -> None:
        pass

    @app.timer("5m", scope="shard")
    async def tick() -> None:
        pass

    found = app.topology
    assert found.topics["orders"] == TopicNode(name="orders", partitions=3, retention_ms=3_600_000)
    assert found.topics["out"].compacted
    assert found.tables["totals"] == TableNode(name="totals", changelog="shop-totals-changelog")
    assert found.tables["hourly"].window is not None
    assert found.tables["from-topic"].source == "out"
    assert found.tables["rates"].everywhere
    assert found.agents["count"] == AgentNode(
        name="count", sources=("orders",), sinks=("out",), concurrency=5
    )
    assert found.agents["table:from-topic"].internal
    assert found.timers["tick"] == TimerNode(name="tick", schedule="every 5m", scope="shard")
