"""What is made of windowed tables: filters, maps, groups, joins and what holds back, whatever happens to workers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import millstream as ms
from millstream.errors import AgentError, ConfigurationError, TopologyError
from millstream.testing import TestApp
from tests.streams.running import Disturbance, by_key, feed, fold, interrupt, read
from tests.streams.test_tables import joined

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.streams.running import Record

Change = tuple[str, int, int]
"""Key, value, timestamp."""

each_kind = pytest.mark.parametrize("kind", ["tumbling", "hopping", "sliding", "session", "hour"])


class Step(NamedTuple):
    """Some records at once, and what happens to the worker when it is through with some of the work."""

    changes: list[Change]
    turns: int
    disturbance: Disturbance


@st.composite
def steps(draw: st.DrawFn) -> list[Step]:
    """Records of some keys; time goes forward, with some that are late."""
    now, found = 0, []
    for _ in range(draw(st.integers(1, 6))):
        changes = []
        for _ in range(draw(st.integers(1, 6))):
            now += draw(st.sampled_from([0, 1, 1, 3, 12]))
            late = draw(st.sampled_from([0, 0, 0, 2, 15]))
            key, value = draw(st.sampled_from("ABC")), draw(st.integers(1, 9))
            changes.append((key, value, max(0, now - late)))
        how: Disturbance = draw(st.sampled_from(["", "", "", "crash", "lose", "rebalance"]))
        found.append(Step(changes, draw(st.integers(0, 20)), how))
    return found


def is_odd(number: int) -> bool:
    """Whether it is."""
    return number % 2 == 1


def added(so_far: list[int], value: int) -> list[int]:
    """One more, in place."""
    so_far.append(value)
    return so_far


def merged(earlier: list[int], later: list[int]) -> list[int]:
    """Two sessions' numbers, in place."""
    earlier.extend(later)
    later.clear()
    return earlier


def pair(left: Any, right: Any) -> str:
    """Both sides."""
    return f"{left}|{right}"


def rest(number: int) -> str:
    """The group of a number."""
    return f"{number % 3}"


def length(numbers: list[int]) -> int:
    """The group of a list."""
    return len(numbers)


def windows_of(groups: Any, kind: str, **given: Any) -> Any:
    """Windows of any kind, all but one of about 10 ms."""
    match kind:
        case "hopping":
            return groups.hopping("10ms", "4ms", **given)
        case "hour":
            return groups.calendar("hour", timezone="Europe/Berlin", **given)
        case _:
            return getattr(groups, kind)("10ms", **given)


class Program:
    """Windows of one kind, and all that can be made of them; each result in a topic of its own."""

    def __init__(self, kind: str, partitions: int, on_error: str, **given: Any) -> None:
        self.app = app = ms.App("shop", partitions=partitions, on_error=on_error)
        self.source = app.topic("source", value=int)
        windows = windows_of(app.stream(self.source).group_by(), kind, **given)
        sums, counts = windows.sum(name="sums"), windows.count(name="counts")
        in_place = {"merge": merged} if kind == "session" else {}
        lists = windows.aggregate(default=list[int], add=added, name="lists", **in_place)
        finals = windows.sum(name="finals", emit="final")
        held = windows.sum(name="held", emit=ms.Suppress("5ms"))
        odd = sums.filter(is_odd)
        self.flows: dict[str, Any] = {
            "all": sums,
            "odd": odd,
            "tens": odd.map_values(lambda number: number * 10, value=int),
            "odd-held": odd.suppress(ms.Suppress("5ms"), name="odd-held"),
            "held-odd": held.filter(is_odd),
            "odd-final": odd.suppress(ms.Suppress(), name="odd-final"),
            "final-odd": finals.filter(is_odd),
            "pairs": odd.join(counts.filter(lambda n: n > 1), pair, how="outer"),
            "left": sums.join(counts.map_values(lambda n: -n, value=int), pair, how="left"),
        }
        if given["retention"] is not None:
            final = odd.suppress(ms.Suppress(), name="final")
            self.flows["final-pairs"] = finals.join(final, pair)
        self.topics: dict[str, ms.Topic[Any]] = {}
        for name, flow in self.flows.items():
            self.topics[name] = topic = app.topic(f"{name}-changes", value=Any)
            flow.to(topic)
        by_rest = odd.group_by(rest, name="by-rest")
        self.groups = {
            "sum": by_rest.sum(name="rest-sums"),
            "count": by_rest.count(name="rest-counts"),
            "held": held.group_by(rest, name="held-by-rest").sum(name="held-sums"),
            "final": finals.group_by(rest, name="finals-by-rest").sum(name="final-sums"),
            "length": lists.group_by(length, name="by-length").count(name="lengths"),
        }


def without_noughts(groups: Any) -> dict[Any, int]:
    """Groups that have lost their last member left out."""
    return {group: number for group, number in groups.items() if number}


def only(numbers: dict[Any, int]) -> dict[Any, int]:
    """The odd ones."""
    return {window: number for window, number in numbers.items() if is_odd(number)}


def per_rest(numbers: dict[Any, int]) -> dict[str, int]:
    """The sum of each group."""
    found: Counter[str] = Counter()
    for number in numbers.values():
        found[rest(number)] += number
    return dict(found)


@each_kind
@settings(max_examples=15, deadline=None)
@given(
    steps(),
    st.sampled_from(["0ms", "20ms"]),
    st.sampled_from([None, "3h"]),
    st.sampled_from([1, 3]),
    st.sampled_from(["stop", "skip"]),
)
def test_steps_follow_the_windows(
    kind: str,
    listed: list[Step],
    grace: str,
    retention: str | None,
    partitions: int,
    on_error: str,
) -> None:
    """What is made of the changes is at any time what would be made of the windows; finals come out once."""

    async def run() -> None:
        program = Program(kind, partitions, on_error, grace=grace, retention=retention)
        counted: dict[Any, str] = {}

        def found(name: str) -> dict[Any, Any]:
            return fold(read(t, program.topics[name]))

        async with TestApp(program.app) as t:
            for some, turns, disturbance in listed:
                await feed(t, program.source, some, settle=False)
                await interrupt(t, turns, disturbance)
                sums = found("all")
                counted = fold(read(t, program.topics["left"]))
                counts = {window: -int(both.split("|")[1]) for window, both in counted.items()}
                assert counted == {w: f"{number}|{-counts[w]}" for w, number in sums.items()}
                assert found("odd") == only(sums)
                assert found("tens") == {w: number * 10 for w, number in only(sums).items()}
                several = {window: count for window, count in counts.items() if count > 1}
                assert found("pairs") == joined(only(sums), several, "outer")
                groups = {name: t.table(table) for name, table in program.groups.items()}
                assert without_noughts(groups["sum"]) == per_rest(only(sums))
                in_groups = Counter(rest(number) for number in only(sums).values())
                assert without_noughts(groups["count"]) == in_groups
                assert without_noughts(groups["length"]) == Counter(counts.values())
            await t.advance(stream="2h")
            assert found("odd-held") == found("held-odd") == only(sums)
            assert without_noughts(t.table(program.groups["held"])) == per_rest(sums)
            if kind == "session" and retention is not None:
                return  # one that is final may still be merged, as long as it is kept
            for name in ("odd-final", "final-odd"):
                values = [v for v in by_key(read(t, program.topics[name])).items() if any(v[1])]
                assert {w: v for w, [v] in values} == only(sums), name
            assert without_noughts(t.table(program.groups["final"])) == per_rest(sums)
            if retention is not None:
                pairs = by_key(read(t, program.topics["final-pairs"]))
                assert {w: v for w, [v] in pairs.items()} == joined(only(sums), only(sums), "inner")

    asyncio.run(run())


def rows(records: Iterable[Record]) -> list[Any]:
    """Key, start, end, value, timestamp."""
    return [(*record.windowed, record.value, record.timestamp) for record in records]


async def test_tombstones_of_a_filter() -> None:
    """A window that passes no longer is gone, and so is a merged session; who knows the old values hears less of it."""
    app = ms.App("shop", partitions=1)
    source, out, known = (app.topic(name, value=int) for name in ("source", "out", "known"))
    sessions = app.stream(source).group_by().session("5ms", grace="20ms")
    counts, sums = sessions.count(name="counts"), sessions.sum(name="sums")
    counts.filter(is_odd).to(out)
    odd = counts.filter(is_odd)
    odd.join(sums, lambda left, right: left, how="left", value=int).to(known)
    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, time) for time in (0, 5, 11, 6)])
        assert rows(read(t, out)) == [
            ("a", 0, 0, 1, 0),
            ("a", 0, 0, None, 0),
            ("a", 0, 5, None, 5),
            ("a", 11, 11, 1, 11),
            ("a", 0, 5, None, 5),
            ("a", 11, 11, None, 11),
            ("a", 0, 11, None, 11),
        ]
        # each change twice, as both sides have it
        assert by_key(read(t, known)) == {("a", 0, 0): [1, 1, None], ("a", 11, 11): [1, 1, None]}


async def test_records_of_a_filter() -> None:
    """``to`` is that of the table: values of key, window and value, keys as Kafka Streams has them, tombstones as well."""
    app = ms.App("shop", partitions=1)
    source, named = app.topic("source", value=int), app.topic("named", value=str)
    theirs = app.topic("theirs", key=bytes, value=int)
    groups = app.stream(source).group_by()
    odd = groups.session("5ms", grace="20ms").count(name="counts").filter(is_odd)
    odd.to(named, value=lambda key, window, number: f"{key} {window.start} {number}")
    odd.to(theirs, windowed_key="kafka-streams")
    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 1), ("a", 1, 3)])
        assert [record.value for record in read(t, named)] == ["a 1 1", None, None]
        keys = [b"a" + end.to_bytes(8, "big") + (1).to_bytes(8, "big") for end in (1, 1, 3)]
        assert [(r.key, r.value) for r in read(t, theirs)] == [
            (keys[0], 1),
            (keys[1], None),
            (keys[2], None),
        ]


@pytest.mark.parametrize("crashes", [False, True])
async def test_held_in_a_limit(crashes: bool) -> None:
    """What a step hands on is held back by key and window, with the window's bounds; a crash changes nothing."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=int), app.topic("out", value=int)
    counts = app.stream(source).group_by().tumbling("100ms", grace="1s").count(name="t")
    counts.filter(lambda n: n > 1).suppress(ms.Suppress("20ms")).to(out)
    async with TestApp(app) as t:
        for key, time in [
            ("a", 0),
            ("a", 5),
            ("b", 6),
            ("a", 19),
            ("a", 20),
            ("a", 105),
            ("a", 126),
        ]:
            await feed(t, source, [(key, 1, time)])
            if crashes:
                await t.crash(lose_state=True)
        assert rows(read(t, out)) == [
            ("a", 0, 100, 4, 20),
            ("b", 0, 100, None, 6),
            ("a", 100, 200, 2, 126),
        ]
        assert "t-suppress" in app.tables


@pytest.mark.parametrize("crashes", [False, True])
async def test_held_until_final(crashes: bool) -> None:
    """Without a limit each window that passes comes out once, when it is final; others never do."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=int, idle_timeout="5s"), app.topic("out", value=int)
    counts = app.stream(source).group_by().tumbling("10ms", grace="5ms").count(name="t")
    counts.filter(is_odd).suppress(ms.Suppress(), name="held").to(out)
    async with TestApp(app) as t:
        for key, time in [("a", 0), ("b", 1), ("a", 12), ("b", 2), ("a", 14), ("a", 16), ("a", 3)]:
            await feed(t, source, [(key, 1, time)])
            if crashes:
                await t.crash(lose_state=True)
        assert rows(read(t, out)) == [("a", 0, 10, 1, 0)]
        for _ in range(4):
            await t.advance(wall="5s")
        assert rows(read(t, out)) == [("a", 0, 10, 1, 0), ("a", 10, 20, 3, 16)]
        assert t.table(app.tables["held"].table).items() == []


async def test_what_does_not_pass_brings_time() -> None:
    """Windows are let out when they are due, also where it is known that a change is none to those downstream."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=int), app.topic("out", value=int)
    counts = app.stream(source).group_by().tumbling("10ms").count(name="t")
    held = counts.filter(lambda n: n > 1).suppress(ms.Suppress(), name="held")
    held.to(out)
    numbers = held.group_by(rest, name="by-rest").count(name="numbers")
    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 0), ("a", 1, 1), ("b", 1, 2), ("b", 1, 10)])
        assert rows(read(t, out)) == [("a", 0, 10, 2, 1)]
        assert t.table(numbers) == {"2": 1}
        assert t.table(app.tables["held"].table).items() == []


async def test_by_the_clock() -> None:
    """Behind ``emit_every`` and ``emit=ms.Suppress`` the steps get what comes out there."""
    app = ms.App("shop", partitions=1)
    source, clock, held = (app.topic(name, value=int) for name in ("source", "clock", "held"))
    windows = app.stream(source).group_by().tumbling("1m")
    windows.count(name="by-the-clock", emit_every="10s").filter(is_odd).to(clock)
    windows.count(name="c", emit=ms.Suppress("1s")).map_values(lambda n: n * 2, value=int).to(held)
    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, time) for time in (0, 1, 2)])
        assert read(t, clock) == read(t, held) == []
        await t.advance(wall="10s")
        assert rows(read(t, clock)) == [("a", 0, 60_000, 3, 2)]
        await feed(t, source, [("a", 1, 1_000)])
        assert rows(read(t, held)) == [("a", 0, 60_000, 8, 1_000)]


@pytest.mark.parametrize("how", ["inner", "left", "outer"])
async def test_joins_of_two_streams(how: Any) -> None:
    """Two streams' windows meet by key and window, whichever comes first; one that has expired is gone."""
    app = ms.App("shop", partitions=2)
    shown, clicked, out = (app.topic(name, value=str) for name in ("shown", "clicked", "out"))
    views = app.stream(shown).group_by().tumbling("10ms").count(name="views")
    clicks = app.stream(clicked).group_by().tumbling("10ms", grace="90ms").count(name="clicks")
    views.join(clicks, pair, how=how).to(out)
    async with TestApp(app) as t:
        await feed(t, shown, [("a", "x", 1), ("b", "x", 2)])
        await feed(t, clicked, [("a", "x", 3), ("a", "x", 15)])
        await feed(t, shown, [("a", "x", 2), ("a", "x", 30)])
        await t.crash(lose_state=True)
        await feed(t, clicked, [("a", "x", 4)])  # views of this window have expired
        found = {
            window: [value.replace("None", "-") for value in values]
            for window, values in by_key(read(t, out)).items()
        }
    both, lone = {"inner": 0, "left": 1, "outer": 2}[how], {"inner": 0, "left": 0, "outer": 1}[how]
    wanted = {
        ("a", 0, 10): [*["1|-"] * (both > 0), "1|1", "2|1", *["-|2"] * lone],
        ("b", 0, 10): ["1|-"] * (both > 0),
        ("a", 10, 20): ["-|1"] * lone,
        ("a", 30, 40): ["1|-"] * (both > 0),
    }
    assert found == {window: values for window, values in wanted.items() if values}


async def test_joins_of_finals() -> None:
    """A side counts when its window is final: the result comes out once, when both are."""
    app = ms.App("shop", partitions=1)
    shown, clicked, out = (app.topic(name, value=str) for name in ("shown", "clicked", "out"))
    views, clicks = (
        app.stream(topic).group_by().session("10ms", retention="1s").count(name=name, emit="final")
        for topic, name in ((shown, "views"), (clicked, "clicks"))
    )
    views.join(clicks, pair).to(out)
    async with TestApp(app) as t:
        await feed(t, shown, [("a", "x", 1), ("a", "x", 2), ("a", "x", 50)])
        await feed(t, clicked, [("a", "x", 1)])
        assert read(t, out) == []
        await feed(t, clicked, [("a", "x", 2)])
        await t.crash(lose_state=True)
        await feed(t, clicked, [("a", "x", 50)])
        assert rows(read(t, out)) == [("a", 1, 2, "2|2", 2)]


@pytest.mark.parametrize("kind", ["tumbling", "sliding", "session"])
async def test_a_window_without_a_value(kind: str) -> None:
    """A window whose value is None is not there for the other side: no step before a join is called with it."""
    app = ms.App("shop", partitions=1)
    numbers, others, out = (app.topic(name, value=Any) for name in ("n", "others", "out"))

    def latest(so_far: int | None, number: int) -> int | None:
        return number or None

    given: Any = {"merge": latest} if kind == "session" else {}
    values, counts = (
        getattr(app.stream(topic).group_by(), kind)("10ms", retention="1s")
        for topic in (numbers, others)
    )
    values = values.aggregate(default=int, add=latest, value=int | None, name="values", **given)
    doubled = values.filter(lambda number: number > 1).map_values(lambda n: 2 * n, value=int)
    doubled.join(counts.count(name="counts"), lambda one, other: [one, other]).to(out)
    async with TestApp(app) as t:
        await feed(t, numbers, [("a", 3, 5)])
        await feed(t, others, [("a", 1, 5)])
        await feed(t, numbers, [("a", 0, 5)])
        await feed(t, others, [("a", 1, 5)])
        assert [record.value for record in read(t, out)] == [[6, 1], None]


async def later(number: int) -> int:
    """Its negative, after a while."""
    await asyncio.sleep(0)
    return -number


async def odd_later(number: int) -> bool:
    """Whether it is, after a while."""
    await asyncio.sleep(0)
    return is_odd(number)


@pytest.mark.parametrize("settings", [{}, {"on_error": "skip"}])
async def test_async_functions(settings: Any) -> None:
    """Steps wait for their functions; so may a join that is looked up nowhere."""
    app = ms.App("shop", partitions=1, **settings)
    source, out, joins = (app.topic(name, value=Any) for name in ("source", "out", "joins"))
    windows = app.stream(source, concurrency=4).group_by().tumbling("10ms")
    lists = windows.aggregate(default=list[int], add=added, name="lists")
    lists.map_values(length).filter(odd_later).map_values(later).to(out)
    grouped = lists.group_by(length, name="by-length").count(name="lengths")

    async def pair_later(left: list[int], right: list[int]) -> int:
        return await later(len(left) + len(right))

    others = windows.aggregate(default=list[int], add=added, name="others")
    lists.join(others.filter(bool), pair_later).to(joins)
    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 0), ("b", 1, 1), ("a", 1, 2), ("a", 1, 3), ("a", 1, 11)])
        assert fold(read(t, out)) == {("a", 0, 10): -3, ("b", 0, 10): -1, ("a", 10, 20): -1}
        assert {n: count for n, count in t.table(grouped).items() if count} == {1: 2, 3: 1}
        assert fold(read(t, joins))["a", 0, 10] == -6


async def test_a_lookup_cannot_wait() -> None:
    """A join is refused behind an async function, or says so when it turns out to be one."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=int)
    windows = app.stream(source).group_by().tumbling("10ms")
    sums, counts = windows.sum(name="sums"), windows.count(name="counts")
    with pytest.raises(ConfigurationError, match=r"map_values\(\) before it is async.* behind the"):
        sums.map_values(later).suppress(ms.Suppress("1s")).join(counts, pair)
    pairs = sums.map_values(lambda n: later(n), value=int).join(counts, pair)
    pairs.to(app.topic("pairs", value=str))
    with pytest.raises(AgentError, match="Put the step behind the join"):
        async with TestApp(app) as t:
            await feed(t, source, [("a", 1, 0)])


def test_what_is_refused() -> None:
    """Names of what is kept nowhere, waiting twice for windows to be final, and sides that do not meet."""
    app = ms.App("shop", partitions=1)
    stream = app.stream(app.topic("source", value=int))
    windows = stream.group_by().tumbling("1m")
    counts: Any = windows.count(name="counts")
    sums = windows.sum(name="sums")
    named: list[Any] = [
        lambda: counts.filter(bool, name="kept"),
        lambda: counts.map_values(str, name="kept"),
        lambda: counts.join(sums, pair, name="kept"),
    ]
    for declare in named:
        with pytest.raises(ConfigurationError, match=r"keeps nothing: leave name='kept' out"):
            declare()
    finals = windows.count(name="finals", emit="final").filter(bool)
    with pytest.raises(ConfigurationError, match="those of 'finals' are: leave suppress"):
        finals.suppress(ms.Suppress())
    held = windows.count(name="held", emit=ms.Suppress())
    with pytest.raises(ConfigurationError, match="those of 'held-suppress' are"):
        held.suppress(ms.Suppress())
    with pytest.raises(ConfigurationError, match=r"each of the tables .* a time of its own"):
        counts.join(sums, pair).suppress(ms.Suppress())
    by_time = [
        windows.count(name="by-time", emit=ms.Suppress("1s")),
        windows.count(name="by-clock", emit_every="1s"),
        counts.suppress(ms.Suppress("1s")).filter(bool),
    ]
    for flow in by_time:
        with pytest.raises(
            ConfigurationError, match=r"-(suppress|emit)' holds back by time may come after that"
        ):
            flow.suppress(ms.Suppress(), name="final")
    with pytest.raises(TopologyError, match="name='counts-suppress-2'"):
        counts.suppress(ms.Suppress("2s"))
    with pytest.raises(TopologyError, match="give it a name, for example group_by"):
        counts.group_by(rest)
    with pytest.raises(ConfigurationError, match="none of inner, left, outer"):
        counts.join(sums, pair, how="right")
    other = stream.group_by().hopping("1m", "10s").count(name="hops")
    with pytest.raises(TopologyError, match=r"tumbling\(1m\) and hopping\(1m, advance=10s\)"):
        counts.join(other, pair)
    numbered = app.stream(app.topic("numbered", key=int, value=int)).group_by()
    with pytest.raises(TopologyError, match=r"are of type str, those of .* of type int"):
        counts.join(numbered.tumbling("1m").count(name="numbers"), pair)
    with pytest.raises(ConfigurationError, match=r"windows of 'finals' expire.* longer retention"):
        finals.join(counts, pair)
    plain = stream.group_by().count(name="plain")
    with pytest.raises(TopologyError, match=r"counts.changes\(\).join\(table"):
        counts.join(plain, pair)
    with pytest.raises(TopologyError, match=r"windowed, so a key has no one value"):
        plain.join(counts.filter(bool), pair)
    with pytest.raises(TopologyError, match="it is windowed, so a record has no one value"):
        stream.join(counts.filter(bool), pair)
    entwined: list[Any] = [
        lambda: counts.join(counts, pair),
        lambda: counts.filter(bool).join(counts.map_values(str), pair, how="outer"),
        lambda: sums.join(counts, pair).join(counts.suppress(ms.Suppress("3s"), name="h"), pair),
    ]
    for declare in entwined:
        with pytest.raises(TopologyError, match=r"in one step of that table: .map_values"):
            declare()
    own = app.table("own", key=str, value=int, default=0).tumbling("1m")
    with pytest.raises(TopologyError, match=r"written by agents.*app.stream\(topic\)"):
        own.filter(bool)


def test_names_and_steps() -> None:
    """The steps are drawn like others; what holds back and what moves is named after the table."""
    app = ms.App("shop", partitions=1)
    out = app.topic("out", value=int)
    counts = app.stream(app.topic("source", value=int)).group_by().tumbling("1m").count(name="n")
    counts.filter(is_odd).suppress(ms.Suppress()).to(out)
    counts.group_by(rest, name="by-rest").count(name="groups")
    lines = [line.strip() for line in str(app.topology).splitlines()]
    assert [line for line in lines if line[:2] in ("2.", "3.", "4.", "5.", "6.", "7.")] == [
        "2. windowed aggregate n ← 1 (keeps n)",
        "3. filter n ← 2",
        "4. suppress n-suppress ← 3 (keeps n-suppress)",
        "5. changes n-suppress ← 4",
        "6. to n-suppress-to-out ← 5 → out",
        "7. group_by by-rest-repartition ← 2 → shop-by-rest-repartition",
        "2. aggregate groups ← 1 (keeps groups)",
    ]


async def test_with_defects_of_kafka_streams() -> None:
    """With ``compat`` a session is taken for final a millisecond early, behind a step as in ``emit``."""
    for step in (False, True):
        app = ms.App("shop", partitions=1, compat="kafka-streams")
        source, out = app.topic("source", value=int), app.topic("out", value=int)
        windows = app.stream(source).group_by().session("10ms", grace="5ms")
        if step:
            windows.count(name="n").filter(bool).suppress(ms.Suppress()).to(out)
        else:
            windows.count(name="n", emit=ms.Suppress()).to(out)
        async with TestApp(app) as t:
            await feed(t, source, [("a", 1, 0), ("b", 1, 15)])
            assert rows(read(t, out)) == [("a", 0, 0, 1, 0)]
