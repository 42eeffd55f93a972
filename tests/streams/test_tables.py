"""Tables that streams make and use: after any changes, each is what its definition says of its sources."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import millstream as ms
from millstream.errors import ConfigurationError, OutsideEventError, TopologyError
from millstream.testing import TestApp
from tests.streams.running import Disturbance, feed, fold, interrupt, read

if TYPE_CHECKING:
    from collections.abc import Callable


class Change(NamedTuple):
    """A record of the left or of the right table: a key, and ``group:number`` or nothing."""

    left: bool
    key: str
    value: str | None


class Step(NamedTuple):
    """Some changes at once, and what happens to the worker when it is through with some of the work."""

    changes: list[Change]
    turns: int
    disturbance: Disturbance


steps = st.lists(
    st.builds(
        Step,
        st.lists(
            st.builds(
                Change,
                st.booleans(),
                st.sampled_from(["k1", "k2", "k3", "k4"]),
                st.none()
                | st.builds(lambda g, n: f"{g}:{n}", st.sampled_from("ABC-"), st.integers(0, 5)),
            ),
            min_size=1,
            max_size=8,
        ),
        st.integers(0, 40),
        st.sampled_from(["", "", "", "crash", "lose", "rebalance"]),
    ),
    min_size=1,
    max_size=6,
)


def group_of(value: str) -> str | None:
    """What is before the colon; entries of ``-`` belong to no group."""
    return None if value[0] == "-" else value[0]


def number_of(value: str) -> int:
    """What is after it."""
    return int(value[2:])


def added(so_far: list[int], value: str) -> list[int]:
    """Numbers in order, changed in place."""
    so_far.append(number_of(value))
    so_far.sort()
    return so_far


def removed(so_far: list[int], value: str) -> list[int]:
    """The other way."""
    so_far.remove(number_of(value))
    return so_far


def grouped(table: dict[str, str]) -> dict[str, list[int]]:
    """The numbers of each group."""
    members: dict[str, list[int]] = {}
    for value in table.values():
        if group_of(value) is not None:
            members.setdefault(value[0], []).append(number_of(value))
    return members


def plus(so_far: int, value: str) -> int:
    """With a number."""
    return so_far + number_of(value)


def minus(so_far: int, value: str) -> int:
    """Without it."""
    return so_far - number_of(value)


async def slowly(value: str) -> str:
    """In capitals, after a while."""
    await asyncio.sleep(0)
    return value.swapcase()


def pair(left: str | None, right: str | int | None) -> str:
    """Both sides."""
    return f"{left}|{right}"


HOW: tuple[Any, ...] = ("inner", "left", "outer")


class Program:
    """Two tables, and much that follows from them; each result in a table and in a topic of its own."""

    def __init__(self, partitions: int) -> None:
        self.app = app = ms.App("shop", partitions=partitions)
        self.right, self.left = (app.topic(side, value=str, codec="str") for side in ("r", "l"))
        left, right = app.table("left", topic=self.left), app.table("right", topic=self.right)
        groups = left.group_by(group_of, name="groups")
        others = right.group_by(group_of, name="other-groups")
        numbers = right.map_values(number_of)
        even = left.filter(is_even)
        grouped_only = left.map_values(group_of)
        self.results: dict[str, Any] = {
            "count": groups.count(name="count"),
            "sum": groups.sum(number_of, name="sum"),
            "mean": groups.mean(number_of, name="mean"),
            "min": groups.min(number_of, name="min"),
            "max": groups.max(number_of, name="max"),
            "list": groups.aggregate(default=list[int], add=added, subtract=removed, name="list"),
            "top": groups.top_k(2, number_of, name="top"),
            "both": groups.cogroup(plus, minus)
            .cogroup(others, minus, plus)
            .aggregate(default=0, name="both"),
            "even": left.filter(is_even, name="even"),
            "slow": left.map_values(slowly, name="slow"),
            "again": left.changes().to_table("again"),
            "even-join": even.join(numbers, pair, how="outer", name="even-join"),
            **{f"{how}-join": left.join(right, pair, how=how, name=f"{how}-join") for how in HOW},
            **{
                f"{how}-some": right.join(grouped_only, pair, how=how, name=f"{how}-some")
                for how in HOW
            },
        }
        for how in HOW:
            self.results[f"{how}-self"] = even.join(
                grouped_only, pair, how=how, name=f"{how}-self", value=str
            )
        self.results["kept-self"] = self.results["even"].join(
            self.results["slow"], pair, how="outer", name="kept-self"
        )
        by_value = self.results["inner-self"].group_by(str, name="by-value")
        self.results["self-count"] = by_value.count(name="self-count")
        unnamed = left.join(even, pair, how="left", value=str).map_values(str.upper)
        again = unnamed.join(left, lambda one, two: f"{one}|{two}", value=str)
        grouped_again = again.group_by(str, name="by-other-value")
        self.results["unnamed-count"] = grouped_again.count(name="unnamed-count")
        self.topics: dict[str, ms.Topic[Any]] = {}
        for name, table in self.results.items():
            self.topics[name] = topic = app.topic(f"{name}-changes", value=Any)
            table.to(topic)

    @staticmethod
    def wanted(left: dict[str, str], right: dict[str, str]) -> dict[str, dict[str, Any]]:
        """Everything, made at once from the two tables as they are."""
        members, others = grouped(left), grouped(right)
        even = {key: value for key, value in left.items() if is_even(value)}
        numbers = {key: number_of(value) for key, value in right.items()}
        groups = {key: group_of(value) for key, value in left.items()}
        grouped_only = {key: group for key, group in groups.items() if group is not None}
        return {
            "count": {group: len(found) for group, found in members.items()},
            "sum": {group: sum(found) for group, found in members.items()},
            "mean": {group: sum(found) / len(found) for group, found in members.items()},
            "min": {group: min(found) for group, found in members.items()},
            "max": {group: max(found) for group, found in members.items()},
            "list": {group: sorted(found) for group, found in members.items()},
            "top": {
                group: [f"{group}:{number}" for number in sorted(found, reverse=True)[:2]]
                for group, found in members.items()
            },
            "both": {
                group: sum(members.get(group, [])) - sum(others.get(group, []))
                for group in members.keys() | others
            },
            "even": even,
            "slow": {key: value.swapcase() for key, value in left.items()},
            "again": left,
            "even-join": joined(even, numbers, "outer"),
            **{f"{how}-join": joined(left, right, how) for how in HOW},
            **{f"{how}-some": joined(right, grouped_only, how) for how in HOW},
            **{f"{how}-self": joined(even, grouped_only, how) for how in HOW},
            "kept-self": joined(
                even, {key: value.swapcase() for key, value in left.items()}, "outer"
            ),
            "self-count": Counter(joined(even, grouped_only, "inner").values()),
            "unnamed-count": Counter(
                f"{both.upper()}|{left[key]}" for key, both in joined(left, even, "left").items()
            ),
        }


def is_even(value: str) -> bool:
    """Whether its number is."""
    return number_of(value) % 2 == 0


def joined(left: dict[str, Any], right: dict[str, Any], how: str) -> dict[str, str]:
    """The join of two tables."""
    keys = {"inner": left.keys() & right.keys(), "left": left.keys()}.get(how, left.keys() | right)
    return {key: pair(left.get(key), right.get(key)) for key in keys}


async def run(listed: list[Step], partitions: int) -> None:
    program = Program(partitions)
    left: dict[str, str] = {}
    right: dict[str, str] = {}
    now = 0
    async with TestApp(program.app) as t:
        for changes, turns, disturbance in listed:
            for change in changes:
                now += 1
                topic = program.left if change.left else program.right
                await feed(t, topic, [(change.key, change.value, now)], settle=False)
                table = left if change.left else right
                table.pop(change.key, None)
                if change.value is not None:
                    table[change.key] = change.value
            await interrupt(t, turns, disturbance)
            for name, wanted in program.wanted(left, right).items():
                kept = dict(t.table(program.results[name]).items())
                shown = fold(read(t, program.topics[name]))
                if name in (
                    "count",
                    "sum",
                    "list",
                    "both",
                    "self-count",
                    "unnamed-count",
                ):  # a group that has lost its last member shows nothing much
                    groups = {group for group in kept if group in wanted or kept[group]}
                    kept, shown = ({g: found[g] for g in groups} for found in (kept, shown))
                assert kept == wanted, name
                assert shown == wanted, name


@settings(max_examples=60, deadline=None)
@given(steps, st.sampled_from([1, 3]))
def test_tables_follow_their_sources(listed: list[Step], partitions: int) -> None:
    """Whatever changes, and whatever happens to workers meanwhile, tables and their changes say what is so."""
    asyncio.run(run(listed, partitions))


MICRO: dict[str, Any] = {
    # a group that changes: the old one first; the same group: one result
    "count": (
        ["k1=x", "k1=y", "k1=x", "k1=x", "k1=null"],
        ["x=1", "x=0", "y=1", "y=0", "x=1", "x=1", "x=0"],
    ),
    "inner": (["R@5", "L@3", "R=null@7", "L=null@8"], ["(L,R)@5", "null@7"]),
    "outer": (
        ["R@5", "L@3", "R=null@7", "L=null@8", "L=null@9"],
        ["(None,R)@5", "(L,R)@5", "(L,None)@7", "null@8"],
    ),
}
"""Rows 9 to 11 of the micro cases."""


async def test_counts_of_a_table() -> None:
    """Row 9: subtract the old value, add the new one; nought is a result."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=str), app.topic("out", value=int)
    app.table("t", topic=source).group_by(str, name="values").count(name="counts").to(out)
    inputs, wanted = MICRO["count"]
    async with TestApp(app) as t:
        for number, text in enumerate(inputs):
            key, _, value = text.partition("=")
            await feed(t, source, [(key, None if value == "null" else value, number)])
        assert [f"{record.key}={record.value}" for record in read(t, out)] == wanted


async def test_groups_in_a_limit() -> None:
    """What is made of a table's groups follows ``emit`` as what is made of a stream's does."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=str), app.topic("out", value=int)
    groups = app.table("t", topic=source).group_by(group_of, name="groups")
    groups.max(number_of, name="most", emit=ms.Suppress("10s")).to(out)
    async with TestApp(app) as t:
        for at, value in enumerate(["a:1", "a:7", "a:3"]):
            await feed(t, source, [(value, value, at)])
        assert t.sent(out) == []
        await feed(t, source, [("a:7", None, 5_000), ("later", "b:1", 20_000)])
        assert t.sent(out) == [3]


async def test_the_greatest_of_a_tables_groups() -> None:
    """Greatest first, earlier ones first where they are equal; the next one comes when one of them leaves."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=str)
    groups = app.table("t", topic=source).group_by(lambda value: "all", name="groups", type=str)

    async def later(value: str) -> int:
        await asyncio.sleep(0)
        return number_of(value)

    top, slow = groups.top_k(2, number_of, name="top"), groups.top_k(2, later, name="slow")
    async with TestApp(app) as t:
        await feed(t, source, [(key, f"{key}:{at % 2}", at) for at, key in enumerate("abcdef")])
        assert t.table(top)["all"] == t.table(slow)["all"] == ["b:1", "d:1"]
        await feed(t, source, [("b", None, 10), ("d", "d:0", 11)])
        assert t.table(top)["all"] == t.table(slow)["all"] == ["f:1", "a:0"]
        await feed(t, source, [("f", "f:1", 12)])
        assert t.table(top)["all"] == t.table(slow)["all"] == ["f:1", "a:0"]
        await feed(t, source, [(key, None, 13) for key in "abcdef"])
        assert t.table(top) == t.table(slow) == {}
    with pytest.raises(ConfigurationError, match="top_k: 0 is not above 0"):
        groups.top_k(0, number_of)


async def test_groups_of_a_table_by_the_clock() -> None:
    """``emit_every``: the latest value of each group, at most so often."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=str), app.topic("out", value=int)
    groups = app.table("t", topic=source).group_by(group_of, name="groups")
    groups.sum(number_of, name="sums", emit_every="10s").to(out)
    async with TestApp(app) as t:
        await feed(t, source, [(value, value, 0) for value in ("a:1", "a:7", "a:3")])
        assert t.sent(out) == []
        await t.advance("10s")
        assert t.sent(out) == [11]


@pytest.mark.parametrize("how", ["inner", "outer"])
async def test_joins_of_tables(how: Any) -> None:
    """Rows 10 and 11: the timestamp is the higher one; a tombstone only where there may have been a result."""
    app = ms.App("shop", partitions=1)
    topics = {side: app.topic(side, value=str) for side in "LR"}
    left, right = (app.table(f"table-{side}", topic=topics[side]) for side in "LR")
    out = app.topic("out", value=str)
    left.join(right, lambda x, y: f"({x},{y})", how=how).to(out)
    inputs, wanted = MICRO[how]
    async with TestApp(app) as t:
        for text in inputs:
            change, _, time = text.partition("@")
            value = None if change.endswith("null") else change[0]
            await feed(t, topics[change[0]], [("k", value, int(time))])
        found = [f"{record.value or 'null'}@{record.timestamp}" for record in read(t, out)]
        assert found == wanted


@pytest.mark.parametrize("name", [None, "pairs"])
async def test_a_table_and_what_follows_from_it(name: Any) -> None:
    """Its change comes by both sides of a join; what follows knows what was, and that nothing is left."""
    app = ms.App("shop", partitions=1)
    source, out, parts = (app.topic(name, value=int) for name in ("source", "out", "parts"))
    table = app.table("t", topic=source)
    pairs = table.join(table.map_values(lambda v: v + 1, value=int), int.__add__, name=name)
    sums = pairs.group_by(lambda _: "all", name="all", type=str).sum(name="sums")
    pairs.to(out)
    large = table.filter(lambda number: number > 4)
    table.join(large, lambda one, other: other or 0, how="left", value=int, name="both").to(parts)
    with pytest.raises(TopologyError, match=f"name='{name or 't-t-join'}-2'"):
        table.join(large, int.__add__, name=name)
    found = []
    async with TestApp(app) as t:
        for number in (1, 10, None, 5):
            await feed(t, source, [("k", number, 0)])
            found.append(t.table(sums)["all"])
            await t.crash()
        assert found == [3, 21, 0, 11]
        assert t.sent(out) == [3, 3, 21, 21, None, 11, 11]
        assert t.sent(parts) == [0, 10, 10, None, 5, 5]
        assert t.table(app.tables[name or "t-t-join"].table) == {"k": 11}


async def test_no_value_is_no_entry() -> None:
    """Where a function returns None there is nothing, whoever looks there: a step, a join, a stream."""
    app = ms.App("shop", partitions=1)
    names = "first", "second", "third"
    first, second, third = (app.topic(name, value=str, codec="str") for name in names)
    one, two, three = (
        app.table(f"t-{topic.name}", topic=topic) for topic in (first, second, third)
    )
    some: Any = one.map_values(group_of)
    nested: Any = one.join(two, lambda value, _: group_of(value))
    found: dict[str, Any] = {
        "filtered": three.join(some.filter(str.isupper), pair, how="left"),
        "mapped": three.join(some.map_values(str.lower), pair, how="left"),
        "nested": three.join(nested.map_values(str.lower), pair, how="left"),
        "inner": three.join(nested, pair),
        "stream": app.stream(third).join(some, pair, name="looked-up"),
    }
    outs = {name: app.topic(f"{name}-out", value=str) for name in found}
    for name, flow in found.items():
        flow.to(outs[name])
    async with TestApp(app) as t:
        await feed(t, first, [("k", "-:1", 0)])
        await feed(t, second, [("k", "B:2", 1)])
        await feed(t, third, [("k", "A:2", 2)])
        values = {name: [value for value in t.sent(out) if value] for name, out in outs.items()}
        alone = ["A:2|None"]
        assert values.pop("inner") == values.pop("stream") == []
        assert values == {"filtered": alone, "mapped": alone, "nested": alone}


async def test_an_async_fold_is_awaited() -> None:
    """One change after the other, although each takes a while."""

    async def add(so_far: list[str], value: str) -> list[str]:
        before = list(so_far)
        await asyncio.sleep(0)
        return [*before, value]

    async def subtract(so_far: list[str], value: str) -> list[str]:
        await asyncio.sleep(0)
        return [one for one in so_far if one != value]

    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=str)
    groups = app.table("t", topic=source).group_by(group_of, name="groups")
    table = groups.aggregate(default=list[str], add=add, subtract=subtract, name="list")
    async with TestApp(app) as t:
        records = [("k1", "A:1", 0), ("k2", "A:2", 1), ("k1", "A:3", 2), ("k2", None, 3)]
        await feed(t, source, records)
        assert t.table(table) == {"A": ["A:3"]}


async def test_agents_read_what_streams_make() -> None:
    """Inside of an agent the table is a mapping that cannot be written; outside, a view."""
    app = ms.App("shop", partitions=2)
    source = app.topic("source", value=int)
    sums = app.stream(source).group_by().sum(name="sums")
    asked = app.topic("asked", value=str, key_from=str)
    seen: list[Any] = []

    @app.agent(asked)
    async def ask(stream: ms.Stream[str]) -> None:
        async for key in stream:
            seen.append((key in sums, sums.get(key, -1), sums.get(key)))
            with pytest.raises(ConfigurationError, match="is made by a stream"):
                sums[key] = 0

    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 0), ("b", 5, 0), ("a", 2, 0)])
        await t.send_many(asked, ["a", "c"])
        assert sorted(seen, key=str) == [(False, -1, None), (True, 3, 3)]
        view = sums.view()
        assert await view.get("b") == 5
        assert sorted([pair async for pair in view.items()]) == [("a", 3), ("b", 5)]


@pytest.mark.parametrize("interruption", ["", "crash", "rebalance"])
async def test_what_a_table_was(interruption: Disturbance) -> None:
    """``as_of`` finds the value of a time, whatever came when, as far as history goes."""
    app = ms.App("history", partitions=1)
    prices, questions = app.topic("prices", value=float), app.topic("questions", value=int)
    of_topic = app.table("of-topic", topic=prices, versioned="1m")
    own = app.table("own", key=str, value=float, versioned="1m")
    found: list[tuple[Any, Any]] = []

    @app.agent(prices)
    async def keep(stream: ms.Stream[float]) -> None:
        async for event in stream.events():
            own[event.key] = event.value

    @app.agent(questions)
    async def ask(stream: ms.Stream[int]) -> None:
        async for key, moment in stream.items():
            at = datetime.fromtimestamp(moment / 1_000, UTC)
            found.append((of_topic.as_of(key, moment, "none"), own.as_of(key, at, "none")))

    async with TestApp(app) as t:
        for moment, price in [(10_000, 1.0), (30_000, 3.0), (20_000, 2.0)]:
            await t.send(prices, price, key="a", timestamp=moment)
        await t.send(prices, 9.0, key="b", timestamp=35_000)
        await t.send(prices, None, key="a", timestamp=40_000)
        if interruption == "crash":
            await t.crash()
        elif interruption == "rebalance":
            await t.rebalance()
        for moment in (9_999, 10_000, 19_999, 20_000, 29_999, 30_000, 39_999):
            await t.send(questions, moment, key="a", timestamp=40_000)
        of_both = [pair[0] for pair in found]
        assert of_both == ["none", 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
        assert [pair[1] for pair in found] == of_both
        await t.send(questions, 40_000, key="a", timestamp=40_000)
        assert found[-1][0] == "none"  # deleted
        await t.send(prices, 1.0, key="b", timestamp=95_000)
        await t.send(questions, 34_999, key="b", timestamp=95_000)
        await t.send(questions, 35_000, key="b", timestamp=95_000)
        assert [pair[0] for pair in found[-2:]] == ["none", 9.0]  # a minute, and no more
    with pytest.raises(OutsideEventError, match="of-topic"):
        of_topic.as_of("a", 10_000)


async def test_steps_of_what_a_table_was() -> None:
    """Behind a filter and a map a stream finds what there was at its time, and may wait for it; a kept step knows the latest."""
    app = ms.App("history", partitions=1)
    prices, orders = app.topic("prices", value=int), app.topic("orders", value=int)
    known = app.table("known", topic=prices, versioned="1m")
    even = known.filter(lambda price: price % 2 == 0)
    some = known.map_values(lambda price: price * 10 if price < 5 else None, value=int)
    tables: dict[str, Any] = {
        "known": known,
        "even": even,
        "some": some,
        "both": even.map_values(lambda price: -price, value=int).filter(lambda price: price < -2),
        "kept": known.filter(bool, name="kept"),
    }
    outs = {name: app.topic(f"{name}-out", value=str) for name in [*tables, "late"]}
    stream = app.stream(orders)
    for name, table in tables.items():
        stream.join(table, "{}/{}".format, how="left", value=str).to(outs[name])
    stream.join(some, "{}/{}".format, grace="10s", name="late", value=str).to(outs["late"])
    with pytest.raises(TopologyError, match=r"filter\(\) and map_values\(\) without a name"):
        stream.join(tables["kept"], "{}/{}".format, grace="10s")
    async with TestApp(app) as t:
        await feed(t, prices, [("k", price, price * 1_000) for price in (1, 2, 4, 5)])
        await feed(t, orders, [("k", second, second * 1_000) for second in (1, 2, 4, 5)])
        await feed(t, prices, [("k", 3, 3_000)])
        await feed(t, orders, [("k", 3, 3_000), ("k", 60, 60_000)])
        found = {name: t.sent(out)[:5] for name, out in outs.items()}
    assert found == {
        "known": ["1/1", "2/2", "4/4", "5/5", "3/3"],
        "even": ["1/None", "2/2", "4/4", "5/None", "3/None"],
        "some": ["1/10", "2/20", "4/40", "5/None", "3/30"],
        "both": ["1/None", "2/None", "4/-4", "5/None", "3/None"],
        "kept": ["1/5", "2/5", "4/5", "5/5", "3/5"],
        "late": ["1/10", "2/20", "3/30", "4/40"],
    }


async def test_what_agents_read_is_their_own() -> None:
    """A value that is changed in place stays as it was in the table, be it of a stream or of a topic."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", key=str, value=list[int])
    rows = app.table("rows", topic=source, default=list[int]())
    kept = app.stream(source).to_table("kept")
    asked = app.topic("asked", value=str, key_from=str)
    seen: list[Any] = []

    @app.agent(asked)
    async def ask(stream: ms.Stream[str]) -> None:
        async for key in stream:
            for table in (rows, kept):
                table[key].append(7)
                (table.get(key) or []).append(8)
                next(table.items())[1].append(9)
                next(table.values()).append(10)
                seen.append(table[key])
            rows["no one"].append(11)
            seen.append(rows["no one"])

    async with TestApp(app) as t:
        await t.send(source, [1], key="a")
        await t.send_many(asked, ["a", "a"])
        assert seen == [[1], [1], []] * 2
        assert t.table(rows) == t.table(kept) == {"a": [1]}


@pytest.mark.parametrize("kind", ["tumbling", "session", "sliding"])
async def test_agents_read_windows_that_streams_make(kind: str) -> None:
    """Inside of an agent they give plain values, and cannot be written in any way."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=int)
    sums = getattr(app.stream(source).group_by(), kind)("1h").sum(name="sums")
    asked = app.topic("asked", value=str, key_from=str)
    seen: list[Any] = []

    @app.agent(asked)
    async def ask(stream: ms.Stream[str]) -> None:
        async for key in stream:
            seen.append((sums[key].current(), [value for _, value in sums[key].windows()]))
            seen.append([value for _, value in sums.items()])
            with pytest.raises(ConfigurationError, match="is made by a stream"):
                sums[key] += 1
            with pytest.raises(ConfigurationError, match="is made by a stream"):
                sums[key] |= 1
            with pytest.raises(ConfigurationError, match="is made by a stream"):
                sums[key].apply(lambda value: 99)
            with pytest.raises(ConfigurationError, match="is made by a stream"):
                sums[key].event_windows()
            with pytest.raises(ConfigurationError, match="is made by a stream"):
                sums[key] = 1
            with pytest.raises(ConfigurationError, match="is made by a stream"):
                del sums[key]

    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 5), ("a", 2, 5)])
        await t.send(asked, "a", timestamp=5)
        await feed(t, source, [("a", 4, 5)])
        assert seen == [(3, [3]), [3]]
        assert [value for _, value in t.table(sums).items()] == [7]


@pytest.mark.parametrize("kind", ["tumbling", "session", "sliding"])
async def test_reading_windows_brings_no_time(kind: str) -> None:
    """An agent that reads at a later time closes no window, and makes no record of the stream late."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=int)
    sums = getattr(app.stream(source).group_by(), kind)("10s").sum(name="sums")
    asked = app.topic("asked", value=str, key_from=str)
    seen: list[Any] = []

    @app.agent(asked)
    async def ask(stream: ms.Stream[str]) -> None:
        async for key in stream:
            seen.append([value for _, value in sums[key].windows()])
            seen.append([value for _, value in sums.items()])
            seen.append(key in sums)

    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 1_000)])
        await t.send(asked, "a", timestamp=1_000_000)
        await feed(t, source, [("a", 2, 1_000)])
        assert seen == [[1], [1], False]
        assert [value for _, value in t.table(sums).items()] == [3]


def test_what_tables_refuse() -> None:
    """Lookups cannot wait, and what is named after nothing gets no name of ours."""
    app = ms.App("shop", partitions=1)
    table = app.table("t", topic=app.topic("source", value=str))
    with pytest.raises(ConfigurationError, match=r"filter\(\) needs a name"):
        table.filter(slowly)
    with pytest.raises(ConfigurationError, match=r"map_values\(\) needs a name"):
        table.map_values(slowly)
    with pytest.raises(ConfigurationError, match=r"join\(\) needs a name"):
        table.join(table.filter(bool), lambda a, b: a).join(table, pair_later)
    with pytest.raises(ConfigurationError, match="none of inner, left, outer"):
        table.join(table, pair, how="right")  # type: ignore[call-overload]
    with pytest.raises(TopologyError, match="give it a name, for example group_by"):
        table.group_by(group_of)
    groups = table.group_by(group_of, name="groups")
    with pytest.raises(ConfigurationError, match="'final' goes with windows"):
        groups.count(emit="final")
    with pytest.raises(ConfigurationError, match="none of update, every, final"):
        groups.max(number_of, emit="sometimes")  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="written by agents"):
        app.table("own", key=str, value=int).changes()
    with pytest.raises(TopologyError, match="cannot be windowed: a stream makes it"):
        groups.count(name="count").tumbling("1m")


def topics(app: ms.App) -> dict[str, ms.Topic[Any, Any]]:
    """Topics of which none goes with another."""
    return {
        "text": app.topic("text", key=str, value=str),
        "number": app.topic("number", key=int, value=str),
        "packed": app.topic("packed", key=int, value=str, key_codec="msgpack"),
        "other": app.topic("other", key=str, value=str, partitioner="crc32"),
        "any": app.topic("any", key=str, value=str, partitioner="any"),
        "three": app.topic("three", key=str, value=str, partitions=3),
        "four": app.topic("four", key=str, value=str, partitions=4),
    }


APART = [
    ("text", "number", "are of type str, those of .* of type int"),
    ("number", "packed", "write keys in different ways"),
    ("text", "other", "choose partitions in different ways"),
    ("text", "any", "may be in any partition"),
    ("three", "four", "has 3 partitions and 'four' has 4"),
]


@pytest.mark.parametrize(("left", "right", "why"), APART)
def test_sides_whose_keys_do_not_meet(left: str, right: str, why: str) -> None:
    """Joins, cogroups and what is grouped after a merge are refused where they are declared."""
    app = ms.App("shop", partitions=2)
    one, two = topics(app)[left], app.topics[right]
    with pytest.raises(TopologyError, match=why):
        app.table("one", topic=one).join(app.table("two", topic=two), pair)
    groups = app.stream(one).group_by(), app.stream(two).group_by()
    cogroup = groups[0].cogroup(plus).cogroup(groups[1], plus)
    with pytest.raises(TopologyError, match=why):
        cogroup.aggregate(default=0)
    with pytest.raises(TopologyError, match=why):
        cogroup.tumbling("1m").aggregate(default=0)
    merged = app.stream(one).merge(app.stream(two))
    with pytest.raises(TopologyError, match=why):
        merged.filter(bool).group_by().count()
    with pytest.raises(TopologyError, match=why):
        merged.to_table("merged")
    with pytest.raises(TopologyError, match=why):
        app.stream(one, two).distinct(within="1m")


async def test_a_merge_with_other_keys() -> None:
    """It may be of any topics of one count, where its records are moved or only sent on."""
    app = ms.App("shop", partitions=2)
    found = topics(app)
    merged = app.stream(found["text"]).merge(*(app.stream(found[n]) for n in ("number", "other")))
    count = merged.group_by(group_of, name="groups", type=str).count(name="count")
    out = app.topic("out", key=str, value=str)
    app.stream(found["text"]).merge(app.stream(found["other"])).to(out)
    async with TestApp(app) as t:
        await t.send(found["text"], "A:1", key="a")
        await t.send(found["number"], "A:2", key=1)
        await t.send(found["other"], "B:3", key="b")
        assert t.table(count) == {"A": 2, "B": 1}
        assert sorted(t.sent(out)) == ["A:1", "B:3"]


class Order(msgspec.Struct, tag=True):
    """One of several types in a stream."""

    amount: int


class Refund(msgspec.Struct, tag=True):
    """Another one, with the same fields."""

    amount: int


class Gift(msgspec.Struct):
    """One that nothing tells apart in what is kept."""

    amount: int


class Loan(msgspec.Struct):
    """Another one."""

    amount: int


class Visit(pydantic.BaseModel):
    """One of pydantic's."""

    amount: int


class Call(pydantic.BaseModel):
    """Another one: values of the one are valid for the other."""

    amount: int


SEVERAL: list[tuple[str, Any, Any, Any, Any]] = [
    # the codec, types of two topics, values
    ("json", Order, Order, Order(1), Order(2)),
    ("msgpack", Order, Order, Order(1), Order(2)),
    ("json", Order, Refund, Order(1), Refund(2)),
    ("msgpack", Order, Refund, Order(1), Refund(2)),
    ("msgpack", int, str, 1, "2"),
    ("json", list[int], dict[str, int], [1], {"two": 2}),
    ("json", list[int], list[str], [1], ["2"]),
]


@pytest.mark.parametrize("how", ["inner", "left"])
@pytest.mark.parametrize(("codec", "first", "second", "one", "two"), SEVERAL)
async def test_a_join_of_several_topics(
    codec: str, first: Any, second: Any, one: Any, two: Any, how: Any
) -> None:
    """What comes out is what went in, whichever side comes last, and without a partner too."""
    app = ms.App("shop", partitions=1)
    a, b = (app.topic(n, value=kind, codec=codec) for n, kind in (("a", first), ("b", second)))
    right = app.topic("right", value=int)
    seen: list[Any] = []
    joined = app.stream(a, b).join(
        app.stream(right), lambda left, right: seen.append((left, right)), how=how, within="1s"
    )
    joined.foreach(lambda _: None)
    async with TestApp(app) as t:
        await feed(t, a, [("k", one, 0)])
        await feed(t, b, [("k", two, 1)])
        await feed(t, right, [("k", 7, 2)])
        await feed(t, a, [("k", one, 3), ("alone", one, 5_000)])
        await feed(t, b, [("alone", two, 5_001), ("k", two, 90_000)])
    assert seen[:3] == [(one, 7), (two, 7), (one, 7)]
    assert seen[3:] == ([(one, None), (two, None)] if how == "left" else [])


@pytest.mark.parametrize(
    ("first", "second"), [(Gift, Loan), (Gift, dict), (Visit, Call), (Visit, Loan)]
)
@pytest.mark.parametrize("merged", [False, True])
def test_types_that_are_not_told_apart(first: Any, second: Any, merged: bool) -> None:
    """Of several topics or merged: keeping or moving them is refused, and the error says what to write."""
    app = ms.App("shop", partitions=1)
    a, b = app.topic("a", value=first), app.topic("b", value=second)
    stream: Any = app.stream(a).merge(app.stream(b)) if merged else app.stream(a, b)
    stream = stream.filter(bool)
    why = (
        rf"those of 'a' of type {first.__name__} and those of 'b' of type {second.__name__}: .*"
        r"\.map\(f, value=T\)\.merge\("
    )
    other: Any = app.stream(app.topic("other", value=int))
    keeping: list[Callable[[], Any]] = [
        lambda: stream.join(other, pair, within="1s", name="one"),
        lambda: other.join(stream, pair, within="1s", name="two"),
        lambda: stream.join(stream, pair, within="1s", name="self"),
        lambda: stream.key_by(str, type=str).to_table("moved"),
        lambda: stream.repartition(name="again"),
        lambda: stream.to_table("kept"),
        lambda: stream.group_by().reduce(pair, name="reduced"),
        lambda: stream.group_by().top_k(2, "amount", name="greatest"),
    ]
    for declare in keeping:
        with pytest.raises(TopologyError, match=why):
            declare()
    stream.group_by().count(name="count")
    stream.to(lambda value: a if isinstance(value, first) else b)
    one = stream.map(lambda value: value, value=first)
    one.join(other, pair, within="1s", name="mapped")


def test_groups_of_tables_that_do_not_meet() -> None:
    """A cogroup of tables is checked likewise."""
    app = ms.App("shop", partitions=2)
    left = app.table("left", topic=app.topic("l", value=str))
    by_name = left.group_by(group_of, name="by-name", type=str)
    by_number = left.group_by(number_of, name="by-number")
    cogroup = by_name.cogroup(plus, minus).cogroup(by_number, plus, minus)  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match=r"are of type str, those of .* of type int"):
        cogroup.aggregate(default=0)


def test_keys_of_one_stream_made_in_two_ways() -> None:
    """Steps may have the same name: all of their keys count. So do those of topics before a processor with timers."""
    app = ms.App("shop", partitions=2)
    rows = app.stream(app.topic("rows", value=str))
    other: Any = rows.map_keys(str.upper, type=str)
    both = rows.map_keys(len, type=int).merge(other)
    with pytest.raises(TopologyError, match=r"are of type int, those of .* of type str"):
        both.group_by().count(name="counts")

    class Timed:
        def process(self, key: Any, value: str, context: ms.streams.ProcessContext) -> None: ...
        def on_timer(self, key: Any, context: ms.streams.ProcessContext) -> None: ...

    numbered = app.topic("numbered", key=int, value=str)
    with pytest.raises(TopologyError, match=r"are of type str, those of .* of type int"):
        app.stream(app.topics["rows"], numbered).process(Timed(), name="timed")


def test_sides_of_another_app() -> None:
    """They are refused by name, whatever they are to be part of."""
    apps = ms.App("shop"), ms.App("other")
    mine, theirs = (app.topic("source", value=str) for app in apps)
    table, other = (app.table("t", topic=app.topics["source"]) for app in apps)
    stream, stranger = apps[0].stream(mine), apps[1].stream(theirs)
    with pytest.raises(TopologyError, match="different apps"):
        table.join(other, pair)
    with pytest.raises(TopologyError, match="different apps"):
        table.join(other, pair, on=group_of)
    with pytest.raises(TopologyError, match="different apps"):
        stream.merge(stranger)
    cogroup = stream.group_by().cogroup(plus).cogroup(stranger.group_by(), plus)
    with pytest.raises(TopologyError, match="different apps"):
        cogroup.aggregate(default=0)
    groups = [one.group_by(group_of, name="groups") for one in (table, other)]
    both = groups[0].cogroup(plus, minus).cogroup(groups[1], plus, minus)
    with pytest.raises(TopologyError, match="different apps"):
        both.aggregate(default=0)


def test_what_is_no_side() -> None:
    """A join says what it was given, and what to write for it."""
    app = ms.App("shop", partitions=1)
    topic = app.topic("source", value=str)
    table, stream = app.table("t", topic=topic), app.stream(topic)
    windowed = stream.group_by().tumbling("1m").count(name="windowed")
    no_table: Any
    for no_table, why in (
        (None, "None is no table of this app"),
        (stream, r"is no table. Join it with the table, stream.join\(table"),
        (windowed, r"windowed, so a key has no one value .* windowed.changes\(\).join\(table"),
    ):
        with pytest.raises(TopologyError, match=why):
            table.join(no_table, pair)
    no_side: Any
    for no_side, why in (
        (topic, r"'source' is a topic. Join with its stream, app.stream\(topic\)"),
        (None, "None is neither a stream nor a table"),
    ):
        with pytest.raises(TopologyError, match=why):
            stream.join(no_side, pair, within="1m")
        with pytest.raises(TopologyError, match=why):
            stream.join(no_side, pair)
    with pytest.raises(TopologyError, match="None is not a stream"):
        stream.merge(no_side)


def test_what_windowed_keys_are_not() -> None:
    """A step that keeps something by key wants a plain one; other names are no attributes."""
    app = ms.App("shop", partitions=1)
    stream = app.stream(app.topic("source", value=str))
    windowed: Any = stream.group_by().tumbling("1m").count(name="windowed")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = windowed.nothing
    changes = windowed.changes()
    merged = app.stream(app.topic("numbers", value=int)).merge(changes)
    for kept in (
        lambda: changes.group_by().count(),
        lambda: changes.filter(bool).group_by().session("1m").sum(),
        lambda: changes.to_table("kept"),
        lambda: changes.distinct(within="1m"),
        lambda: changes.process(WithTimers(), name="timed"),
        lambda: merged.to_table("kept"),
    ):
        with pytest.raises(TopologyError, match=r"are windows. .*map_keys\(lambda windowed"):
            kept()


class WithTimers:
    """Does nothing, later."""

    def process(self, key: Any, value: Any, context: Any) -> None:
        """Nothing."""

    def on_timer(self, key: Any, context: Any) -> None:
        """Nothing."""


async def pair_later(left: str, right: str) -> str:
    """Both sides, after a while."""
    return pair(left, right)
