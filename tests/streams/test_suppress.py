"""Results that are held back: by event time, by the wall clock, until windows are final, within bounds."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import millstream as ms
from millstream.errors import AgentError, ConfigurationError
from millstream.testing import TestApp
from tests.streams.running import Disturbance, by_key, disturb, feed, fold, interrupt, read
from tests.streams.test_tables import joined, pair

Change = tuple[str, str | None, int]
"""Key, value, timestamp."""


class Step(NamedTuple):
    """Some changes at once, and what happens to the worker when it is through with some of the work."""

    changes: list[Change]
    turns: int
    disturbance: Disturbance


@st.composite
def changes(draw: st.DrawFn) -> list[Change]:
    """Changes of some keys; time goes forward, with some that are late."""
    now, found = 0, []
    for number in range(draw(st.integers(1, 30))):
        now += draw(st.sampled_from([0, 1, 1, 3, 12]))
        late = draw(st.sampled_from([0, 0, 0, 2, 15]))
        value = draw(st.sampled_from([None, "v", "v", "v"]))
        key = draw(st.sampled_from("ABC"))
        found.append((key, value and f"{value}{number}", max(0, now - late)))
    return found


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """The same, some at a time."""
    left, found = draw(changes()), []
    while left:
        size = draw(st.integers(1, 6))
        some, left = left[:size], left[size:]
        how: Disturbance = draw(st.sampled_from(["", "", "", "crash", "lose", "rebalance"]))
        found.append(Step(some, draw(st.integers(0, 20)), how))
    return found


def suppressed(listed: list[Change], limit: int, records_max: int) -> list[Change]:
    """The naive model: a list of what is held, looked through after each change."""
    held: dict[str, list[Any]] = {}
    out: list[Change] = []
    stream_time = -1
    for key, value, time in listed:
        stream_time = max(stream_time, time)
        first = held[key][0] if key in held else time
        held[key] = [first, key, value, time]
        while held:
            oldest = min(held.values(), key=lambda one: (one[0], one[1]))
            if oldest[0] > stream_time - limit and len(held) <= records_max:
                break
            out.append(tuple(held.pop(oldest[1])[1:]))
    return out


def table_with(suppress: ms.Suppress, **settings: Any) -> Any:
    """A table read from a topic, its changes held back on their way to another."""
    app = ms.App("shop", partitions=1, **settings)
    source, out = (app.topic(name, value=str, codec="str") for name in ("source", "out"))
    app.table("t", topic=source).suppress(suppress, name="held").to(out)
    return app, source, out


@settings(max_examples=60, deadline=None)
@given(steps(), st.sampled_from([0, 1, 10]), st.sampled_from([None, 1, 2]))
def test_at_most_one_in_a_limit(listed: list[Step], limit: int, records_max: int | None) -> None:
    """A key's latest change comes out, when its first one is old enough, or when the buffer is full."""

    async def run() -> None:
        app, source, out = table_with(ms.Suppress(limit / 1_000, records_max=records_max))
        async with TestApp(app) as t:
            for some, turns, disturbance in listed:
                await feed(t, source, some, settle=False)
                await interrupt(t, turns, disturbance)
            all_changes = [change for step in listed for change in step.changes]
            wanted = suppressed(all_changes, limit, 1 << 60 if records_max is None else records_max)
            assert [(r.key, r.value, r.timestamp) for r in read(t, out)] == wanted
            await t.advance(stream="1h")
            newest = {key: value for key, value, _ in all_changes}
            assert newest == {key: values[-1] for key, values in by_key(read(t, out)).items()}
            assert t.table(app.tables["held"].table).items() == []

    asyncio.run(run())


@settings(max_examples=30, deadline=None)
@given(changes(), st.integers(1, 12))
def test_the_promise_itself(listed: list[Change], limit: int) -> None:
    """Where time does not go back, two results of a key are at least the limit apart."""
    times: dict[str, list[int]] = {}

    async def run() -> None:
        app, source, out = table_with(ms.Suppress(limit / 1_000))
        seen = 0
        async with TestApp(app) as t:
            for key, value, time in sorted(listed, key=lambda change: change[2]):
                await feed(t, source, [(key, value, time)])
                records = read(t, out)
                for record in records[seen:]:
                    times.setdefault(record.key, []).append(time)
                seen = len(records)

    asyncio.run(run())
    assert all(b - a >= limit for of_key in times.values() for a, b in itertools.pairwise(of_key))


@pytest.mark.parametrize("crashes", [False, True])
async def test_windows_in_a_limit(crashes: bool) -> None:
    """A window's results count as those of a key: the latest in a limit, with the window's bounds."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=int), app.topic("out", value=int)
    groups = app.stream(source).group_by().tumbling("100ms", grace="1s")
    groups.count(name="t", emit=ms.Suppress("20ms")).to(out)
    async with TestApp(app) as t:
        for key, time in [
            ("a", 0),
            ("a", 5),
            ("b", 6),
            ("a", 19),
            ("a", 20),
            ("a", 105),
            ("b", 126),
        ]:
            await feed(t, source, [(key, 1, time)])
            if crashes:
                await t.crash(lose_state=True)
        found = [(*record.windowed, record.value, record.timestamp) for record in read(t, out)]
        assert found == [("a", 0, 100, 4, 20), ("b", 0, 100, 1, 6), ("a", 100, 200, 1, 105)]


async def test_the_wall_clock() -> None:
    """``emit_every``: the latest of each key, once in the interval, whatever event time does."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=int), app.topic("out", value=int)
    app.stream(source).group_by().sum(name="sums", emit_every="10s").to(out)
    async with TestApp(app) as t:
        for number in range(14):
            await feed(t, source, [("a", 1, number * 100_000), ("b", 2, 0)])
            await t.advance(wall="1s")
        assert by_key(read(t, out)) == {"a": [10], "b": [20]}
        await t.crash()
        assert len(read(t, out)) == 2
        await t.advance(wall="10s")
        assert by_key(read(t, out)) == {"a": [10, 14], "b": [20, 28]}
        await t.advance(wall="1h")
        assert len(read(t, out)) == 4
        assert t.table(app.tables["sums"].table) == {"a": 14, "b": 28}


async def test_a_full_buffer_lets_the_oldest_out() -> None:
    """Bounds in bytes count keys and values, new and old."""
    app, source, out = table_with(ms.Suppress("1h", bytes_max=40))
    async with TestApp(app) as t:
        await feed(t, source, [("a", "x" * 10, 0), ("b", "x" * 10, 1), ("c", "x" * 10, 2)])
        assert read(t, out) == []
        await feed(t, source, [("a", "x" * 30, 3)])
        assert [record.key for record in read(t, out)] == ["a"]
        await t.crash(lose_state=True)
        await feed(t, source, [("d", "x" * 30, 4)])
        assert [record.key for record in read(t, out)] == ["a", "b", "c"]


async def test_a_full_buffer_may_stop_the_worker() -> None:
    """``when_full="stop"``: the error names the bound; with ``on_error="skip"`` the record leaves no trace."""
    app, source, out = table_with(ms.Suppress("1h", records_max=2, when_full="stop"))
    with pytest.raises(AgentError, match=r"Suppress\(records_max=\)"):
        async with TestApp(app) as t:
            await feed(t, source, [(key, "x", 0) for key in "abc"])
    app, source, out = table_with(
        ms.Suppress("1m", records_max=2, when_full="stop"), on_error="skip"
    )
    async with TestApp(app) as t:
        await feed(t, source, [(key, "x", 0) for key in "abca"])
        assert sorted(t.table(app.tables["held"].table)) == ["a", "b"]
        await feed(t, source, [("a", "y", 60_000), ("c", "y", 60_001)])
        assert by_key(read(t, out)) == {"a": ["y"], "b": ["x"]}
        assert sorted(t.table(app.tables["held"].table)) == ["c"]


async def test_a_queried_table_shows_what_is_held() -> None:
    """What is held back is held from those downstream; the table itself has it."""
    app, source, out = table_with(ms.Suppress("1h"))
    async with TestApp(app) as t:
        await feed(t, source, [("a", "x", 0)])
        assert t.table(app.tables["t"].table) == {"a": "x"}
        await disturb(t, "lose")
        assert t.table(app.tables["t"].table) == {"a": "x"}
        assert read(t, out) == []


def owner_of(value: str) -> str:
    """A key, by its number."""
    return "ABC"[int(value[1:]) % 3]


def with_owners(rows: dict[str, str], owners: dict[str, str]) -> dict[str, str]:
    """The inner join by a foreign key."""
    owned = {key: owner_of(value) for key, value in rows.items()}
    return {key: pair(rows[key], owners[owner]) for key, owner in owned.items() if owner in owners}


@settings(max_examples=40, deadline=None)
@given(steps(), steps(), st.sampled_from([1, 10]), st.sampled_from([None, 1]))
def test_joins_with_what_is_held(
    listed: list[Step], others: list[Step], limit: int, records_max: int | None
) -> None:
    """At any time they are joins with what has come out, whichever side changes."""

    async def run() -> None:
        app = ms.App("shop", partitions=1)
        names = "source", "out", "other", "pairs", "late"
        source, out, other, pairs, late = (app.topic(n, value=str, codec="str") for n in names)
        table = app.table("right", topic=other)
        suppress = ms.Suppress(limit / 1_000, records_max=records_max)
        held = app.table("left", topic=source).suppress(suppress, name="held")
        held.to(out)
        held.join(table, pair, how="outer").to(pairs)
        mapped = held.map_values(str.upper).join(table, pair)
        numbers = mapped.group_by(lambda value: value[0], name="g", type=str).count(name="n")
        foreign = table.join(held, pair, on=owner_of, name="foreign")
        back = held.join(table, pair, on=owner_of, name="back")
        app.stream(other).filter(bool).join(held, pair, how="left", name="looked").to(late)
        right: dict[str, Any] = {}
        async with TestApp(app) as t:
            for step, theirs in itertools.zip_longest(listed, others, fillvalue=Step([], 0, "")):
                await feed(t, source, step.changes)
                left = fold(read(t, out))
                seen = len(read(t, late))
                await feed(t, other, [(key, value, 0) for key, value, _ in theirs.changes])
                await interrupt(t, step.turns, step.disturbance)
                right |= {key: value for key, value, _ in theirs.changes}
                some = {key: value for key, value in right.items() if value is not None}
                assert fold(read(t, out)) == left
                assert fold(read(t, pairs)) == joined(left, some, "outer")
                wanted = len(joined(left, some, "inner"))
                assert t.table(numbers).get("V", 0) == wanted
                assert t.table(foreign) == with_owners(some, left)
                assert t.table(back) == with_owners(left, some)
                found = [(r.key, r.value) for r in read(t, late)[seen:]]
                values = [(key, value) for key, value, _ in theirs.changes if value is not None]
                assert found == [(key, pair(value, left.get(key))) for key, value in values]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("given", "last"),
    [
        (
            {"emit": ms.Suppress("10s")},
            "4/4",
        ),  # with the record of second 16 that of second 4 is due
        ({"emit_every": "10s"}, "4/3"),  # what there was at second 12
    ],
)
async def test_lookups_in_an_aggregate_that_is_held(given: dict[str, Any], last: str) -> None:
    """A join with an aggregate's table finds what has come out of it, as those who hear of its changes do."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=int), app.topic("out", value=str)
    orders, both = app.topic("orders", value=int), app.topic("both", value=str)
    sums = app.stream(source).group_by().sum(name="sums", **given)
    app.stream(orders).join(sums, "{}/{}".format, how="left", value=str).to(out)
    app.table("last", topic=orders).join(sums, "{}/{}".format, how="left", value=str).to(both)
    async with TestApp(app, start=0) as t:
        for number in range(1, 5):
            await feed(t, source, [("a", 1, number * 4_000)])
            await feed(t, orders, [("a", number, number * 4_000)])
            if number == 2:
                await t.crash()
            await t.advance(wall="4s")
        assert t.sent(out) == ["1/None", "2/None", "3/None", last]
        assert t.sent(both)[:2] == ["1/None", "2/None"]
        assert t.sent(both)[-1] == last
        assert t.table(sums) == {"a": 4}


async def test_what_a_filter_drops_brings_time() -> None:
    """What is due comes out with any change of the table, also where a group wants no news that are none."""
    app = ms.App("shop", partitions=1)
    source, out = (app.topic(name, value=str, codec="str") for name in ("source", "out"))
    passing = app.table("t", topic=source).filter(lambda value: value == "x")
    held = passing.suppress(ms.Suppress("10ms"), name="held")
    held.to(out)
    groups = held.group_by(str, name="groups").count(name="count")
    async with TestApp(app) as t:
        await feed(t, source, [("a", "x", 0), ("b", "y", 10)])
        assert [(r.key, r.value, r.timestamp) for r in read(t, out)] == [("a", "x", 0)]
        assert t.table(groups) == {"x": 1}
        await t.advance(stream="1h")
        assert [(r.key, r.value) for r in read(t, out)] == [("a", "x")]


@pytest.mark.parametrize("how", ["inner", "left", "outer"])
async def test_that_time_is_no_change(how: Any) -> None:
    """What a filter drops brings time to suppress(), beside a join or behind it, and nothing to anybody else."""
    app = ms.App("shop", partitions=1)
    left, right = (app.topic(name, value=str, codec="str") for name in ("left", "right"))
    out, behind, rows, late = (app.topic(name, value=str, codec="str") for name in "obrl")
    passing = app.table("t", topic=left).filter(lambda value: value == "x")
    joined = passing.join(app.table("u", topic=right), "{}|{}".format, how=how, value=str)
    joined.to(out)
    joined.suppress(ms.Suppress("10ms"), name="behind").to(behind)
    kept = passing.map_values(str.upper, name="kept")
    kept.to(rows)
    kept.group_by(str, name="groups").count(name="count")
    kept.suppress(ms.Suppress("10ms"), name="late").to(late)
    async with TestApp(app) as t:
        await feed(t, right, [("a", "7", 0), ("b", "8", 0)])
        await feed(t, left, [("a", "y", 1), ("a", "z", 2), ("b", "x", 3), ("a", "y", 4)])
        alone = [("a", "None|7"), ("b", "None|8")] if how == "outer" else []
        assert [(r.key, r.value) for r in read(t, out)] == [*alone, ("b", "x|8")]
        assert [(r.key, r.value) for r in read(t, rows)] == [("b", "X")]
        assert read(t, late) == []
        await feed(t, left, [("a", "y", 20)])
        assert [(r.key, r.value) for r in read(t, late)] == [("b", "X")]
        await t.advance(stream="1h")
        assert [(r.key, r.value) for r in read(t, behind)] == [*alone[:1], ("b", "x|8")]


def test_what_cannot_be() -> None:
    """No limit without windows; finals neither; words other than the two; limits and bounds that are none."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=str)
    with pytest.raises(ConfigurationError, match="there are no windows here"):
        app.table("t", topic=source).suppress(ms.Suppress())
    with pytest.raises(ConfigurationError, match="goes with windows"):
        app.stream(source).group_by().count(name="c", emit="final")
    with pytest.raises(ConfigurationError, match="none of update, every, final"):
        app.stream(source).group_by().count(name="d", emit="often")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="neither 'emit' nor 'stop'"):
        ms.Suppress("1s", when_full="drop")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="limit='-5s' is below 0"):
        ms.Suppress("-5s")
    windows = app.stream(source).group_by().tumbling("1m")
    early = ms.Suppress(bytes_max=9, records_max=2)
    for declare in (
        lambda: windows.count(name="e", emit=early),
        lambda: windows.count(name="f").suppress(early),
    ):
        with pytest.raises(
            ConfigurationError, match=r"Suppress\(bytes_max=9, records_max=2, when_full='stop'\)"
        ):
            declare()
    windows.count(name="g", emit=ms.Suppress(records_max=2, when_full="stop"))
    bounds: list[Any] = [-1, 0, "1MB", 1.5, True]
    for bound in bounds:
        with pytest.raises(
            ConfigurationError, match=f"bytes_max={bound!r} is not a number of bytes"
        ):
            ms.Suppress("1s", bytes_max=bound)
        with pytest.raises(
            ConfigurationError, match=f"records_max={bound!r} is not a number of rec"
        ):
            ms.Suppress("1s", records_max=bound)
