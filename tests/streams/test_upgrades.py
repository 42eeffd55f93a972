"""What streams have kept of an older form of the program's classes: converted, or an error before the first event."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import millstream as ms
from millstream.errors import ConfigurationError, DecodeError
from millstream.testing import TestApp
from tests.kit import continued
from tests.streams.running import by_key, feed, read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


class Old(msgspec.Struct):
    """What the first version of the program keeps."""

    total: int


class New(msgspec.Struct):
    """What the next one keeps: a field without a default has come."""

    total: int
    since: str


def upgrade(old: Any) -> New:
    """Of the next version."""
    return New(old["total"], "v1")


def old_of(number: int) -> Old:
    return Old(number)


def new_of(number: int) -> New:
    return New(number, "v2")


def old_sum(so_far: Old, number: int) -> Old:
    return Old(so_far.total + number)


def new_sum(so_far: New, number: int) -> New:
    return New(so_far.total + number, so_far.since)


def less(so_far: Any, value: Any) -> Any:
    return msgspec.structs.replace(so_far, total=so_far.total - value)


def both(so_far: Any, value: Any) -> Any:
    return msgspec.structs.replace(so_far, total=so_far.total + value.total)


class Version:
    """What differs between the two versions of a program."""

    def __init__(
        self, app: ms.App, *, old: bool = False, upgrade: Callable[[Any], Any] | None = None
    ) -> None:
        self.app = app
        self.numbers: ms.Topic[int] = app.topic("numbers", value=int)
        self.kind: Any = Old if old else New
        self.make: Any = old_of if old else new_of
        self.add: Any = old_sum if old else new_sum
        self.upgrade = upgrade

    @property
    def stream(self) -> Any:
        return self.app.stream(self.numbers)

    @property
    def values(self) -> Any:
        return self.stream.map(self.make, value=self.kind)

    @property
    def table(self) -> Any:
        """The numbers by key, for what is made of tables."""
        return self.stream.to_table("last")

    def default(self) -> Any:
        return self.make(0)

    def aggregate(self, groups: Any, **options: Any) -> Any:
        return groups.aggregate(
            default=self.default,
            add=self.add,
            value=self.kind,
            name="t",
            upgrade=self.upgrade,
            **options,
        )


def plain(v: Version) -> Any:
    return v.aggregate(v.stream.group_by())


def tumbling(v: Version) -> Any:
    return v.aggregate(v.stream.group_by().tumbling("1h"))


def sliding(v: Version) -> Any:
    return v.aggregate(v.stream.group_by().sliding("1h"))


def session(v: Version) -> Any:
    return v.aggregate(v.stream.group_by().session("1h"), merge=both)


def reduced(v: Version) -> Any:
    return v.values.group_by().reduce(both, name="t", upgrade=v.upgrade)


def reduced_in_windows(v: Version) -> Any:
    return v.values.group_by().tumbling("1h").reduce(both, name="t", upgrade=v.upgrade)


def cogroup(v: Version) -> Any:
    return (
        v.stream.group_by()
        .cogroup(v.add)
        .aggregate(default=v.default, value=v.kind, name="t", upgrade=v.upgrade)
    )


def cogroup_in_windows(v: Version) -> Any:
    return (
        v.stream.group_by()
        .cogroup(v.add)
        .tumbling("1h")
        .aggregate(default=v.default, value=v.kind, name="t", upgrade=v.upgrade)
    )


def to_table(v: Version) -> Any:
    return v.values.to_table("t", upgrade=v.upgrade)


def mapped(v: Version) -> Any:
    return v.table.map_values(v.make, value=v.kind, name="t", upgrade=v.upgrade)


def joined(v: Version) -> Any:
    table = v.table
    return table.join(
        table.map_values(str, value=str),
        lambda number, _: v.make(number),
        name="t",
        value=v.kind,
        upgrade=v.upgrade,
    )


def joined_by_a_field(v: Version) -> Any:
    table = v.table
    return table.join(
        v.stream.to_table("other"),
        lambda number, _: v.make(number),
        on=lambda number: "A",
        name="t",
        value=v.kind,
        upgrade=v.upgrade,
    )


def of_groups(v: Version) -> Any:
    groups = v.table.group_by(str, name="by-number", type=str)
    return v.aggregate(groups, subtract=less)


def of_several_groups(v: Version) -> Any:
    groups = v.table.group_by(str, name="by-number", type=str).cogroup(v.add, less)
    return groups.aggregate(default=v.default, value=v.kind, name="t", upgrade=v.upgrade)


STEPS = [
    (plain, "aggregate"),
    (tumbling, "aggregate"),
    (sliding, "aggregate"),
    (session, "aggregate"),
    (reduced, "reduce"),
    (reduced_in_windows, "reduce"),
    (cogroup, "aggregate"),
    (cogroup_in_windows, "aggregate"),
    (to_table, "to_table"),
    (mapped, "map_values"),
    (joined, "join"),
    (joined_by_a_field, "join"),
    (of_groups, "aggregate"),
    (of_several_groups, "aggregate"),
]


def version(build: Any, **given: Any) -> tuple[ms.App, ms.Topic[int], Any]:
    v = Version(ms.App("shop", partitions=1), **given)
    return v.app, v.numbers, build(v)


async def filled(build: Any, *, lost: bool = False) -> TestApp:
    """What the first version has left."""
    app, numbers, _ = version(build, old=True)
    test = TestApp(app)
    async with test as t:
        await feed(t, numbers, [("A", 1, 0), ("B", 5, 1)])
    if lost:
        test._state.destroy("1-0")
    return test


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(("build", "step"), STEPS, ids=lambda one: getattr(one, "__name__", ""))
async def test_an_error_without(build: Any, step: str, lost: bool) -> None:
    """Before the first event; it names table, key and field, and what converts them."""
    before = await filled(build, lost=lost)
    app, _, _ = version(build)
    with pytest.raises(
        DecodeError,
        match=rf"table 't', key .*: the stored value is not New: .*missing required field `since`.*"
        rf"Convert it with {step}\(\.\.\., upgrade=\)",
    ):
        async with continued(app, before):
            pass


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(("build", "step"), STEPS, ids=lambda one: getattr(one, "__name__", ""))
async def test_converted(build: Any, step: str, lost: bool) -> None:
    """Programs, queries and the next event find the new form; once all of it is written, nothing has to be converted."""
    before = await filled(build, lost=lost)
    app, numbers, table = version(build, upgrade=upgrade)
    second = continued(app, before)
    async with second as t:
        values = [value async for _, value in table.view().items()]
        assert sorted(value.total for value in values) == [1, 5]
        assert {value.since for value in values} == {"v1"}
        await feed(t, numbers, [("A", 1, 2), ("B", 5, 3)])
        await t.crash(lose_state=lost)
        values = [value for _, value in t.table(table).items()]
        assert all(isinstance(value, New) for value in values)
        found = {value.since for value in values}
        takes_the_last = build in (to_table, mapped, joined, joined_by_a_field)
        assert "v2" in found if takes_the_last else "v1" in found
    if build is not sliding:  # where the first windows stay as they were
        app, _, _ = version(build)
        async with continued(app, second):
            pass


async def test_top_k() -> None:
    """Of a stream and of a table: one value after the other is converted."""

    def top(v: Version) -> Any:
        values = v.values
        kept = values.to_table("last", upgrade=v.upgrade)
        kept.group_by(lambda value: "all", name="all", type=str).top_k(
            2, "total", name="of-table", upgrade=v.upgrade
        )
        return values.group_by().top_k(2, "total", name="of-stream", upgrade=v.upgrade)

    before = await filled(top)
    app, numbers, table = version(top, upgrade=upgrade)
    async with continued(app, before) as t:
        await feed(t, numbers, [("A", 3, 2)])
        assert t.table(table)["A"] == [New(3, "v2"), New(1, "v1")]
        assert t.table(app.tables["of-table"].table)["all"] == [New(5, "v1"), New(3, "v2")]
        await feed(t, numbers, [("B", 0, 3)])
        assert t.table(app.tables["of-table"].table)["all"] == [New(3, "v2"), New(0, "v2")]


class Priced(msgspec.Struct):
    """What had no currency at first was in euros."""

    amount: int
    currency: str | None = None


class InACurrency(msgspec.Struct):
    """Of the next version."""

    amount: int
    currency: str


async def test_top_k_of_which_some_are_older() -> None:
    """What can be read stays as it is, and is found again when it is to go."""

    def in_euros(old: Any) -> InACurrency:
        return InACurrency(old["amount"], "EUR")

    def top(kind: Any, upgrade: Any = None) -> tuple[ms.App, Any, Any, Any]:
        app = ms.App("shop", partitions=1)
        prices = app.topic("prices", value=kind)
        table = app.table("last", topic=prices, upgrade=upgrade)
        groups = table.group_by(lambda value: "all", name="all", type=str)
        of_table = groups.top_k(3, "amount", name="of-table", upgrade=upgrade)
        of_stream = (
            app.stream(prices)
            .group_by(lambda value: "all", name="each", type=str)
            .top_k(3, "amount", name="of-stream", upgrade=upgrade)
        )
        return app, prices, of_table, of_stream

    app, prices, _, _ = top(Priced)
    before = TestApp(app)
    async with before as t:
        await feed(t, prices, [("A", Priced(5, "USD"), 0), ("B", Priced(3), 1)])
    app, prices, of_table, of_stream = top(InACurrency, in_euros)
    dollars, euros = InACurrency(5, "USD"), InACurrency(3, "EUR")
    async with continued(app, before) as t:
        assert t.table(of_table)["all"] == t.table(of_stream)["all"] == [dollars, euros]
        await feed(t, prices, [("A", InACurrency(1, "USD"), 2)])
        assert t.table(of_table)["all"] == [euros, InACurrency(1, "USD")]


def held_back(v: Version) -> Any:
    table = v.aggregate(v.stream.group_by(), emit=ms.Suppress("1h"))
    table.to(v.app.topic("out", value=v.kind))
    return table


@pytest.mark.parametrize("lost", [False, True])
async def test_what_is_held_back(lost: bool) -> None:
    """Results that ``emit=`` holds back are converted when they come out, and so is what steps after it have kept."""
    before = await filled(held_back, lost=lost)
    app, numbers, _ = version(held_back, upgrade=upgrade)
    async with continued(app, before) as t:
        await feed(t, numbers, [("A", 1, 1), ("C", 1, 3_700_000)])
        assert by_key(read(t, app.topics["out"])) == {"A": [New(2, "v1")], "B": [New(5, "v1")]}


GIVE_IT_A_NAME = (
    r".*`since`.* Give map_values\(\), which makes these values, a name= and upgrade=, and the step"
    r" behind it name= with this table's name"
)


async def test_what_is_held_back_without() -> None:
    """It is an error before the first event as well, where only the buffer has values of the older form."""

    def mapped(v: Version, **named: Any) -> Any:
        results = v.stream.to_table("last").map_values(v.make, value=v.kind, **named)
        held = results.suppress(ms.Suppress("1h"), name="last-suppress" if named else None)
        held.to(v.app.topic("out", value=v.kind))

    before = await filled(mapped)
    app, _, _ = version(mapped)
    with pytest.raises(DecodeError, match=rf"table 'last-suppress', key 'A': {GIVE_IT_A_NAME}"):
        async with continued(app, before):
            pass
    app, numbers, _ = version(lambda v: mapped(v, name="made", upgrade=upgrade))
    async with continued(app, before) as t:
        await feed(t, numbers, [("C", 1, 3_700_000)])
        out = by_key(read(t, app.topics["out"]))
        assert out == {"A": [New(1, "v1")], "B": [New(5, "v1")]}


async def test_a_table_that_is_filtered() -> None:
    """What is kept of a table's values is converted as they are."""

    def some(v: Version) -> Any:
        return v.aggregate(v.stream.group_by()).filter(lambda value: value.total > 2, name="large")

    before = await filled(some)
    app, _, large = version(some, upgrade=upgrade)
    async with continued(app, before) as t:
        assert t.table(large) == {"B": New(5, "v1")}

    def kept(v: Version, **named: Any) -> Any:
        made = v.table.map_values(v.make, value=v.kind, **named)
        return made.filter(lambda value: value.total > 2, name="large")

    before = await filled(kept)
    app, _, _ = version(kept)
    with pytest.raises(DecodeError, match=rf"table 'large', key 'B': {GIVE_IT_A_NAME}"):
        async with continued(app, before):
            pass
    app, _, large = version(lambda v: kept(v, name="made", upgrade=upgrade))
    async with continued(app, before) as t:
        assert t.table(large) == {"B": New(5, "v1")}


@pytest.mark.parametrize("versioned", [None, "1d"])
async def test_a_table_of_a_topic_that_is_filtered(versioned: Any) -> None:
    """So are those of a table that is read from a topic."""

    def some(v: Version) -> Any:
        changes = v.app.topic("changes", value=v.kind)
        last: Any = v.app.table("last", topic=changes, upgrade=v.upgrade, versioned=versioned)
        return last.filter(lambda value: value.total > 2, name="large")

    app, _, _ = version(some, old=True)
    before = TestApp(app)
    async with before as t:
        await feed(t, app.topics["changes"], [("A", Old(1), 0), ("B", Old(5), 1)])
    app, _, large = version(some, upgrade=upgrade)
    async with continued(app, before) as t:
        assert t.table(large) == {"B": New(5, "v1")}
        assert t.table(app.tables["last"].table)["A"] == New(1, "v1")


async def test_a_step_that_converts_nothing() -> None:
    """The error says so, and what else there is."""

    def sums(kind: Any) -> tuple[ms.App, ms.Topic[int]]:
        app = ms.App("shop", partitions=1)
        numbers = app.topic("numbers", value=int)
        app.stream(numbers).map(kind, value=kind).group_by().max(name="t")
        return app, numbers

    app, numbers = sums(str)
    before = TestApp(app)
    async with before as t:
        await feed(t, numbers, [("A", 1, 0)])
    app, _ = sums(int)
    with pytest.raises(
        DecodeError, match=r"table 't', key 'A': .* max\(\) converts nothing: .*name="
    ):
        async with continued(app, before):
            pass


def as_text(number: int) -> str:
    return str(number)


def as_number(number: int) -> int:
    return number


@pytest.mark.parametrize("step", ["max", "map_values"])
async def test_what_is_held_back_of_a_step_that_converts_nothing(step: str) -> None:
    """It says so there as well: of a number, and of what a step of a windowed table makes."""

    def sums(of: Any) -> tuple[ms.App, ms.Topic[int]]:
        app = ms.App("shop", partitions=1)
        numbers = app.topic("numbers", value=int)
        if step == "max":
            table = app.table("last", topic=numbers)
            groups = table.group_by(as_text, name="same")
            results: Any = groups.max(of, name="t")
        else:
            counts = app.stream(numbers).group_by().tumbling("1h").count(name="t")
            results = counts.map_values(of)
        held = results.suppress(ms.Suppress("1h"), name="held")
        held.group_by(lambda result: "all", name="all", type=str).count(name="of-all")
        return app, numbers

    app, numbers = sums(as_text)
    before = TestApp(app)
    async with before as t:
        await feed(t, numbers, [("A", 1, 0), ("B", 2, 7_200_000)])
        # what has come out is held back as an old value, and nothing but that is left
        await feed(t, numbers, [("A", None, 7_200_001), ("B", None, 7_200_002)])
    app, _ = sums(as_number)
    with pytest.raises(DecodeError, match=rf"table 'held', key .* {step}\(\) converts nothing: "):
        async with continued(app, before):
            pass


async def later(old: Any) -> Any:
    return old


@pytest.mark.parametrize("build", [plain, tumbling, reduced, to_table, mapped, of_groups])
def test_what_is_no_conversion(build: Any) -> None:
    """It is an error where it is declared."""
    with pytest.raises(ConfigurationError, match=r"table 't': upgrade='new' is no function"):
        version(build, upgrade="new")
    with pytest.raises(ConfigurationError, match=r"table 't': upgrade= may not be async"):
        version(build, upgrade=later)


def test_a_step_that_keeps_nothing() -> None:
    """There is nothing to convert without a name."""
    v = Version(ms.App("shop"))
    with pytest.raises(ConfigurationError, match=r"upgrade= of map_values\(\) goes with name="):
        v.table.map_values(v.make, upgrade=upgrade)


# the embedded log --------------------------------------------------------------------------------


def program(at: Path, *, old: bool = False, upgrade: Any = None) -> tuple[ms.App, Any, Any]:
    """Totals, and totals by the hour, which come out when the hour is over."""
    v = Version(
        ms.App("shop", broker=f"local://{at}/shop.db", state_dir=at / "state", partitions=1),
        old=old,
        upgrade=upgrade,
    )
    groups = v.stream.group_by()
    totals = v.aggregate(groups)
    hourly = groups.tumbling("1h").aggregate(
        default=v.default, add=v.add, value=v.kind, name="hourly", emit="final", upgrade=upgrade
    )
    hourly.to(v.app.topic("per-hour", value=v.kind))
    return v.app, v.numbers, totals


@contextlib.asynccontextmanager
async def running(app: ms.App) -> AsyncIterator[None]:
    async with app.running(worker=True, web=False):
        yield


@pytest.mark.parametrize("lost", [False, True])
async def test_on_the_embedded_log(tmp_path: Path, lost: bool) -> None:
    """A worker of the next version ends without a conversion, and goes on with it, also from the changelog alone."""
    app, numbers, totals = program(tmp_path, old=True)
    async with running(app):
        position = await numbers.send(1, key="A", timestamp=0)
        assert await totals.view().get("A", at_least=position) == Old(1)
    if lost:
        shutil.rmtree(tmp_path / "state")
    app, _, _ = program(tmp_path)
    with pytest.raises(DecodeError, match=r"table '(t|hourly)', key .*`since`.*upgrade="):
        async with running(app):
            await asyncio.sleep(60)
    if lost:
        shutil.rmtree(tmp_path / "state")
    app, numbers, totals = program(tmp_path, upgrade=upgrade)
    finals: asyncio.Queue[New] = asyncio.Queue()

    @app.agent(app.topics["per-hour"])
    async def see(stream: ms.Stream[New]) -> None:
        async for value in stream:
            finals.put_nowait(value)

    async with running(app):
        position = await numbers.send(2, key="A", timestamp=1)
        assert await totals.view().get("A", at_least=position) == New(3, "v1")
        await numbers.send(4, key="A", timestamp=7_200_000)
        assert await asyncio.wait_for(finals.get(), 30) == New(3, "v1")
