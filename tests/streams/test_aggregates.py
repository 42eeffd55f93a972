"""Aggregates of streams, windowed and not."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest

import millstream as ms
from millstream.errors import AgentError, ConfigurationError, EncodeError
from millstream.testing import TestApp
from tests.streams.running import feed

if TYPE_CHECKING:
    from collections.abc import Callable


class Size(enum.IntEnum):
    """A few numbers."""

    SMALL = 1
    LARGE = 2


@dataclass
class Stats:
    """A value that changes in place."""

    n: int = 0

    def seen(self, _: object) -> Stats:
        """One more."""
        self.n += 1
        return self

    def left(self, _: object) -> Stats:
        """One less."""
        self.n -= 1
        return self


def texts(so_far: str, value: str) -> str:
    """Values one after the other."""
    return so_far + value


def cogrouped(windows: str) -> tuple[ms.App, ms.Topic[str], ms.Topic[str], ms.Topic[str]]:
    """Two topics that make one windowed text; the second one's values are capitals."""
    app = ms.App("shop", partitions=1)
    a, b = (app.topic(name, value=str, codec="str") for name in "ab")
    out = app.topic("out", value=str, codec="str")
    groups: Any = app.stream(a).group_by().cogroup(texts)
    groups = groups.cogroup(app.stream(b).group_by(), lambda so_far, value: so_far + value.upper())
    windowed = groups.session("5ms") if windows == "session" else groups.tumbling("10ms")
    windowed.aggregate(default="", name="t", emit="every").to(out)
    return app, a, b, out


@pytest.mark.parametrize("windows", ["tumbling", "session"])
@pytest.mark.parametrize("lose_state", [False, True, None])
async def test_a_slow_input_of_a_cogroup_finds_its_windows(
    windows: str, lose_state: bool | None
) -> None:
    """A window is kept while one input may still add to it, however far the others are ahead."""
    app, a, b, out = cogrouped(windows)
    async with TestApp(app) as t:
        await t.send(b, "x", key="K", timestamp=1)
        await t.send(a, "y", key="K", timestamp=2)
        for timestamp in (100, 200):
            await t.send(a, "z", key="K", timestamp=timestamp)
            if lose_state is not None:
                await t.crash(lose_state=lose_state)
        await t.send(b, "v", key="K", timestamp=3)
        assert t.sent(out)[-1] == "XyV"
        await t.send(b, "w", key="K", timestamp=1_000)  # now nobody may add to it any more
        await t.send(a, "w", key="K", timestamp=1_001)
        starts = {window.start for _, window in t.table(app.tables["t"].table)}
        assert min(starts) >= 100


def without_types(stream: Any) -> Any:
    """A stream of values that nothing declares."""
    return stream.map(lambda value: Stats(value))


UNKNOWN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "reduce": (lambda s: without_types(s).group_by().reduce(lambda a, b: b, name="t"), "=Stats"),
    "top_k": (
        lambda s: without_types(s).group_by().top_k(2, lambda v: v.n, name="t"),
        r"=list\[Stats\]",
    ),
    "max": (lambda s: s.group_by().max(lambda v: (v, "a"), name="t"), r"=tuple\[int, str\]"),
    "min": (
        lambda s: s.group_by().min(lambda v: datetime(2024, 1, 1, tzinfo=UTC), name="t"),
        "=datetime",
    ),
    "sum": (lambda s: s.group_by().sum(lambda v: Decimal("0.1"), name="t"), "=Decimal"),
    "dict": (
        lambda s: s.group_by().aggregate(default=dict, add=lambda d, v: {**d, v: 1}, name="t"),
        r"=dict\[int, int\]",
    ),
    "none": (
        lambda s: s.group_by().aggregate(default=None, add=lambda _, v: Stats(v), name="t"),
        "=Stats",
    ),
    "windowed": (
        lambda s: s.group_by().tumbling("1h").aggregate(default=list, add=tuples, name="t"),
        r"=list\[tuple\[int, int\]\]",
    ),
    "table": (
        lambda s: s.to_table("last").group_by(str, name="g").max(lambda v: (v, v), name="t"),
        r"=list\[tuple\[tuple\[int, int\], int\]\]",
    ),
}


def current() -> Any:
    """The event at hand."""
    event = ms.current_event()
    assert event is not None
    return event


def tuples(so_far: list[Any], value: int) -> list[Any]:
    """A list of what JSON has no form for."""
    return [*so_far, (value, value)]


@pytest.mark.parametrize("what", UNKNOWN)
async def test_values_of_unknown_type_come_back_as_they_went(what: str) -> None:
    """What would come back as something else after a commit is an error, before anything is committed."""
    make, advice = UNKNOWN[what]
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=int)
    make(app.stream(source))
    with pytest.raises(AgentError, match=rf"table 't'.*value{advice}") as caught:
        async with TestApp(app) as t:
            await feed(t, source, [("a", 1, 0)])
    assert isinstance(caught.value.__cause__, EncodeError)


@pytest.mark.parametrize("together", [False, True])
async def test_the_type_is_that_of_the_first_value(together: bool) -> None:
    """A lambda without annotations makes it, too; wherever commits fall, the results are the same."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=int)
    groups: Any = app.stream(source).group_by()
    stats = groups.aggregate(default=lambda: Stats(), add=Stats.seen, name="stats")
    sets = groups.aggregate(default=lambda: set(), add=lambda s, v: s | {v}, name="sets")
    pairs = groups.aggregate(
        default=lambda: (0, 0.0), add=lambda p, v: (p[0] + 1, p[1] + v), name="pairs"
    )
    counts = groups.aggregate(default=None, add=lambda n, _: (n or 0) + 1, name="counts")
    async with TestApp(app) as t:
        records = [("a", value, value) for value in range(3)]
        for batch in [records] if together else [[record] for record in records]:
            await feed(t, source, batch)
        assert t.table(stats) == {"a": Stats(3)}
        assert t.table(sets) == {"a": {0, 1, 2}}
        assert t.table(pairs) == {"a": (3, 3.0)}
        assert t.table(counts) == {"a": 3}


async def test_a_factory_of_plain_values_declares_no_type() -> None:
    """A lambda that makes 0 or an empty container does not say what comes after it."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=float)
    groups: Any = app.stream(source).group_by()
    add: Any = {
        "sums": (lambda: 0, lambda n, v: n + v),
        "texts": (lambda: "", lambda _, v: v),
        "lists": (lambda: [], lambda _, v: {"last": v}),
    }
    tables = [groups.aggregate(default=d, add=fold, name=name) for name, (d, fold) in add.items()]
    async with TestApp(app) as t:
        for at in range(2):
            await feed(t, source, [("a", 1.5, at)])
        assert [t.table(table)["a"] for table in tables] == [3.0, 1.5, {"last": 1.5}]


async def test_a_factory_that_needs_an_event_is_called_in_one() -> None:
    """It says nothing about the type then."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=int)
    first = (
        app.stream(source)
        .group_by()
        .aggregate(default=lambda: current().key, add=lambda key, v: f"{key}{v}", name="t")
    )
    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 0), ("a", 2, 1)])
        assert t.table(first) == {"a": "a12"}


@pytest.mark.parametrize("windows", ["none", "tumbling", "session", "table"])
async def test_a_value_that_is_not_of_the_type(windows: str) -> None:
    """The event that makes it fails, and no other one: on_error decides, and the state can be read."""
    app = ms.App("shop", partitions=1, on_error="skip")
    source = app.topic("source", value=float)
    groups: Any = app.stream(source).group_by()
    fold: dict[str, Any] = {"default": 0, "add": lambda n, v: n + (v if v % 1 else int(v))}
    if windows == "tumbling":
        groups = groups.tumbling("1h")
    elif windows == "session":
        groups = groups.session("1h")
    elif windows == "table":
        groups = app.stream(source).to_table("last").group_by(lambda v: "a", name="g")
        fold["subtract"] = lambda n, _: n
    table = groups.aggregate(name="t", **fold)
    async with TestApp(app) as t:
        for at, value in enumerate([1.0, 0.5, 2.0]):
            await feed(t, source, [("a", value, at)])
        await feed(t, source, [("a", value, 10) for value in (4.0, 0.25, 8.0)])
        await t.crash()
        assert [value for _, value in t.table(table).items()] == [15]


async def test_the_error_names_the_types() -> None:
    """It says where the type came from can be given another one."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=float)
    groups: Any = app.stream(source).group_by()
    groups.aggregate(default=0, add=lambda n, v: n + v, name="spent")
    named = r"table 'spent', key 'a'.*1\.5 would not come back as int.*value=float.*default=0\.0"
    with pytest.raises(AgentError, match=named):
        async with TestApp(app) as t:
            await feed(t, source, [("a", 1.5, 0)])


async def test_a_wider_type_takes_what_is_narrower() -> None:
    """An int is a float."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=int)
    table = (
        app.stream(source)
        .group_by()
        .aggregate(default=0, value=float, add=lambda n, v: n + v, name="t")
    )
    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 0)])
        await feed(t, source, [("a", 2, 0)])
        assert t.table(table) == {"a": 3.0}


@pytest.mark.parametrize("kind", ["plain", "cogroup", "windowed", "table"])
async def test_a_default_object_is_not_shared(kind: str) -> None:
    """Each group has a copy of its own, in whatever way groups are made."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=int)
    groups: Any = app.stream(source).group_by()
    default = Stats()
    fold: dict[str, Any] = {"default": default, "add": Stats.seen}
    if kind == "cogroup":
        groups = groups.cogroup(fold.pop("add"))
    elif kind == "windowed":
        groups = groups.tumbling("1h")
    elif kind == "table":
        groups = app.stream(source).to_table("last").group_by(lambda v: f"{v}", name="g")
        fold["subtract"] = Stats.left
    table = groups.aggregate(name="t", **fold)
    async with TestApp(app) as t:
        await feed(t, source, [(key, at, at) for at, key in enumerate("abac")])
        found = [value.n for _, value in t.table(table).items()]
        assert found == ([0, 1, 1, 1] if kind == "table" else [2, 1, 1])
    assert default == Stats(0)


async def test_a_default_that_cannot_be_copied() -> None:
    """It is an error of the declaration."""
    app = ms.App("shop", partitions=1)
    groups: Any = app.stream(app.topic("source", value=int)).group_by()
    with pytest.raises(ConfigurationError, match=r"default=\{1: 2\}.*value=dict\[int, int\]"):
        groups.aggregate(default={1: 2}, add=lambda d, v: d, name="t")
    with pytest.raises(ConfigurationError, match="object"):
        groups.aggregate(default=object(), add=lambda d, v: d, name="t")
    groups.aggregate(default={1: 2}, value=dict[int, int], add=lambda d, v: d, name="t")


async def test_a_default_may_not_be_async() -> None:
    """Also where it is a lambda that calls what is."""
    app = ms.App("shop", partitions=1)
    groups: Any = app.stream(app.topic("source", value=int)).group_by()

    async def make() -> int:
        return 0

    for default in (make, lambda: make()):
        with pytest.raises(ConfigurationError, match="default= may not be async"):
            groups.aggregate(default=default, add=lambda n, _: n, name="t")


def test_merge_is_for_sessions() -> None:
    """Where it has no use it is refused; where it is missing, the error says where it goes."""
    app = ms.App("shop", partitions=1)
    groups: Any = app.stream(app.topic("source", value=int)).group_by()
    fold: dict[str, Any] = {"default": Stats, "add": Stats.seen, "name": "t"}
    both = groups.cogroup(fold["add"]).tumbling("1h")
    for windowed in (groups.tumbling("1h"), groups.sliding("1h"), both):
        given = {**fold, "merge": lambda a, b: a}
        if windowed is both:
            del given["add"]
        with pytest.raises(ConfigurationError, match=r"merge= is for sessions; .* never merge"):
            windowed.aggregate(**given)
    with pytest.raises(ConfigurationError, match=r"merge=lambda.* of aggregate\(\) for a stream"):
        groups.session("1h").aggregate(**fold)


async def test_a_window_has_a_value() -> None:
    """None, which deletes a group, is an error there."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=int)
    groups: Any = app.stream(source).group_by().tumbling("1h")
    groups.aggregate(default=0, add=lambda n, _: None, name="t")
    with pytest.raises(AgentError, match="a window has to have a value"):
        async with TestApp(app) as t:
            await feed(t, source, [("a", 1, 0)])


@pytest.mark.parametrize("kind", ["tumbling", "sliding", "session"])
async def test_means_that_are_final(kind: str) -> None:
    """What is kept of them is shown once, also where a window is closed."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=int), app.topic("out", value=float)
    windows = getattr(app.stream(source).group_by(), kind)("10ms")
    windows.mean(name="means", emit="final").to(out)
    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 0), ("a", 2, 0), ("a", 9, 1_000)])
        assert t.sent(out) == [1.5]


async def test_sums_of_bools() -> None:
    """They are counts."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=bool)
    stream = app.stream(source)
    total: Any = stream.group_by().sum(name="total")
    by_key: Any = stream.to_table("last").group_by(lambda _: "all", name="g", type=str).sum()
    async with TestApp(app) as t:
        for at, value in enumerate([True, False, True]):
            await feed(t, source, [(f"{at}", value, at), ("a", value, at)])
        assert t.table(total)["a"] == 2
        assert t.table(by_key) == {"all": 3}


@pytest.mark.parametrize("kind", [Literal[1, 2], Size])
async def test_sums_of_a_few_numbers(kind: Any) -> None:
    """Of literals and of enums of numbers: a sum is any number."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=kind)
    total: Any = app.stream(source).group_by().sum(name="total")
    async with TestApp(app) as t:
        for at in range(3):
            await feed(t, source, [("a", Size.LARGE if kind is Size else 2, at)])
        assert t.table(total) == {"a": 6}


@pytest.mark.parametrize("kind", ["stream", "table"])
async def test_a_list_that_is_not_returned(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """None deletes the group; where the value was changed in place, it is said, once, that this was hardly meant."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=int)
    stream = app.stream(source)
    fold: dict[str, Any] = {"default": list, "add": lambda values, v: values.append(v)}
    groups: Any = stream.group_by()
    if kind == "table":
        groups = stream.to_table("last").group_by(lambda _: "all", name="g")
        fold["subtract"] = lambda values, v: values.remove(v)
    lost = groups.aggregate(name="lost", **fold)
    meant = {**fold, "add": lambda values, v: None}
    groups.aggregate(name="meant", **meant)
    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 0), ("b", 2, 1), ("a", 3, 2)])
        assert t.table(lost) == {}
    assert caplog.text.count("changed the group's value in place") == 1
    assert "table 'lost'" in caplog.text


class Shift(msgspec.Struct):
    """What may be added up, and what may not."""

    team: str
    pay: Decimal
    length: timedelta
    begins: datetime
    note: str = ""


SHIFTS = [
    Shift("a", Decimal("0.1"), timedelta(hours=1), datetime(2024, 7, 1, tzinfo=UTC)),
    Shift("a", Decimal("0.2"), timedelta(hours=2), datetime(2024, 7, 2, tzinfo=UTC)),
]


@pytest.mark.parametrize("field", ["pay", "length"])
async def test_numbers_of_other_types(field: str) -> None:
    """Sums and means of Decimal and timedelta are of that type, in windows and without, of streams and of tables."""
    app = ms.App("shop", partitions=1)
    shifts = app.topic("shifts", value=Shift)
    kind = type(getattr(SHIFTS[0], field))
    groups = app.stream(shifts).group_by("team")
    entries = app.topic("entries", value=Shift)
    of_table: Any = app.table("last", topic=entries).group_by("team", name="by-team")
    tables: dict[str, Any] = {
        "sum": groups.sum(field, name="sum"),
        "mean": groups.mean(field, name="mean"),
        "table-sum": of_table.sum(field, name="table-sum"),
        "table-mean": of_table.mean(field, name="table-mean"),
        "session-sum": groups.session("1m").sum(field, name="session-sum"),
        "session-mean": groups.session("1m").mean(field, name="session-mean"),
    }
    outs = {name: app.topic(f"out-{name}", value=kind) for name in tables}
    for name, table in tables.items():
        table.to(outs[name])
    total = sum((getattr(shift, field) for shift in SHIFTS), kind())
    async with TestApp(app) as t:
        rows = [(f"{n}", shift, n) for n, shift in enumerate(SHIFTS)]
        for topic in (shifts, entries):
            await feed(t, topic, rows)
        await t.crash(lose_state=True)
        await feed(t, entries, [("1", None, 3)])
        for name in ("sum", "mean"):
            wanted = total if name == "sum" else total / 2
            assert t.table(tables[name])["a"] == wanted
            assert t.sent(outs[name])[-1] == t.sent(outs[f"session-{name}"])[-1] == wanted
            assert t.sent(outs[f"table-{name}"])[-1] == getattr(SHIFTS[0], field)


@pytest.mark.parametrize(("field", "kind"), [("note", "str"), ("begins", "datetime")])
def test_what_does_not_add_up(field: str, kind: str) -> None:
    """It is refused where it is declared, rather than with the first record."""
    app = ms.App("shop", partitions=1)
    shifts = app.topic("shifts", value=Shift)
    groups: Any = app.stream(shifts).group_by("team")
    of_table: Any = app.table("last", topic=shifts).group_by("team", name="by-team")
    for each in (groups, of_table, groups.tumbling("1m")):
        for step in ("sum", "mean"):
            why = rf"{step}\('{field}'\): values of type {kind} have no {step}\..*Decimal"
            with pytest.raises(ConfigurationError, match=why):
                getattr(each, step)(field)
        each.max(field, name=f"max-{id(each)}")
