"""Processors of programs: state in tables, timers by event time and by the wall clock; and distinct."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import millstream as ms
from millstream.errors import AgentError, ConfigurationError, ProgramError
from millstream.testing import TestApp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from millstream.streams import ProcessContext


class Quiet:
    """Says of each key when it was silent for 10 s."""

    def __init__(self, seen: ms.Table[str, int]) -> None:
        self.seen = seen

    def process(self, key: str, value: str, context: ProcessContext) -> None:
        before = self.seen.get(key)
        if before is not None:
            context.cancel_timer(before + 10_000)
        self.seen[key] = context.timestamp
        context.set_timer(after="10s")
        if value == "bad":
            raise ValueError("bad")

    async def on_timer(self, key: str, context: ProcessContext) -> None:
        context.forward(f"silent since {self.seen[key]}")


def quiet() -> tuple[ms.App, ms.Topic[str], ms.Topic[str]]:
    app = ms.App("quiet", partitions=1, on_error="skip")
    beats, out = app.topic("beats", value=str), app.topic("out", value=str)
    seen = app.table("seen", key=str, value=int)
    app.stream(beats).process(Quiet(seen), name="silence").to(out)
    return app, beats, out


@pytest.mark.parametrize("crashes", [False, True])
async def test_timers_of_event_time(crashes: bool) -> None:
    """A timer is called once, when event time has reached its moment, before the record that brought it."""
    app, beats, out = quiet()
    async with TestApp(app) as t:
        for key, at in [("a", 0), ("b", 1_000), ("a", 5_000), ("b", 11_500), ("b", 40_000)]:
            await t.send(beats, "beat", key=key, timestamp=at)
            if crashes:
                await t.crash(lose_state=True)
        assert t.sent(out) == ["silent since 1000", "silent since 5000", "silent since 11500"]
        await t.advance(stream="1m")
        assert t.sent(out)[3:] == ["silent since 40000"]


async def test_a_timer_goes_with_its_event() -> None:
    """What a failed record has set or cancelled is as it was before."""
    app, beats, out = quiet()
    async with TestApp(app) as t:
        await t.send(beats, "beat", key="a", timestamp=0)
        await t.send(beats, "bad", key="a", timestamp=5_000)
        await t.send(beats, "bad", key="b", timestamp=6_000)
        await t.send(beats, "beat", key="c", timestamp=12_000)
        assert t.sent(out) == ["silent since 0"]


class Remind:
    """Reminds of each record an hour later, by the wall clock."""

    async def process(self, key: str, value: str, context: ProcessContext) -> None:
        context.set_timer(after="1h", time="wall")

    def on_timer(self, key: str, context: ProcessContext) -> None:
        context.forward(f"{key}!")


async def test_timers_of_the_wall_clock() -> None:
    """They need no record to be called."""
    app = ms.App("remind", partitions=1)
    notes, out = app.topic("notes", value=str), app.topic("out", value=str)
    app.stream(notes).process(Remind(), name="remind", wall_timers="1m").to(out)
    async with TestApp(app) as t:
        await t.send(notes, "call", key="ada", timestamp=5)
        await t.advance(wall="59m")
        assert t.sent(out) == []
        await t.crash(lose_state=True)
        await t.advance(wall="2m")
        assert t.sent(out) == ["ada!"]
        await t.advance(wall="2h")
        assert t.sent(out) == ["ada!"]


async def test_the_wall_clock_beside_another_number_of_partitions() -> None:
    """Timers and ``emit_every`` run in the shards of their operator, and in no others that the app has."""
    app = ms.App("remind", partitions=1)
    notes, out = app.topic("notes", value=str), app.topic("out", value=str)
    stream = app.stream(notes)
    stream.process(Remind(), name="remind", wall_timers="1m").to(out)
    counts = stream.group_by().count(name="counts", emit_every="1m")
    seen = app.topic("seen", value=int)
    counts.to(seen)
    spread = stream.repartition(partitions=3, name="spread").to_table("spread")
    async with TestApp(app) as t:
        await t.send(notes, "call", key="ada", timestamp=5)
        await t.advance(wall="61m")
        assert (t.sent(out), t.sent(seen)) == (["ada!"], [1])
        assert t.table(spread) == {"ada": "call"}


async def test_wall_timers_have_to_be_asked_for() -> None:
    """Without an interval nobody would look at them: the error says so."""
    app = ms.App("remind", partitions=1)
    notes = app.topic("notes", value=str)
    app.stream(notes).process(Remind(), name="remind")
    with pytest.raises(Exception, match=r"wall_timers='1s'"):
        async with TestApp(app) as t:
            await t.send(notes, "call", key="ada")
    with pytest.raises(ConfigurationError, match="has no method process"):
        app.stream(notes).process(object(), name="other")  # type: ignore[call-overload]
    assert issubclass(ProgramError, Exception)


class Wrong:
    """Does what it is told."""

    def __init__(self, does: Any) -> None:
        self.process = does


def one_by_one(key: str, value: str, context: ProcessContext) -> Iterator[str]:
    yield value


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda key, value, context: 5, r"'wrong': process\(\) has returned 5, .*context\.forward"),
        (one_by_one, r"'wrong': process\(\) has returned <generator .*context\.forward"),
        (
            lambda key, value, context: context.set_timer(after="1h"),
            r"no method on_timer\(key, con",
        ),
    ],
)
async def test_processors_that_cannot_work(does: Any, said: str) -> None:
    """The first record says what is wrong: a result that nobody takes, a timer that nobody answers."""
    app = ms.App("wrong", partitions=1)
    notes = app.topic("notes", value=str)
    app.stream(notes).process(Wrong(does), name="wrong")
    with pytest.raises(AgentError, match=said):
        async with TestApp(app) as t:
            await t.send(notes, "call", key="ada")


class Country:
    """Forwards each account under its country."""

    def process(self, key: str, value: str, context: ProcessContext) -> None:
        context.forward(key, key=value)


class Same:
    """Forwards each record as it is."""

    def process(self, key: str, value: str, context: ProcessContext) -> None:
        context.forward(value, key=key)


async def test_other_keys_move_where_something_needs_them() -> None:
    """With ``key=`` groups, joins, distinct and another process share one topic, named after the process."""
    app = ms.App("shop", partitions=4)
    accounts, out = app.topic("accounts", value=str), app.topic("out", value=str)
    names = app.table("names", topic=app.topic("countries", value=str))
    by_country = app.stream(accounts).process(Country(), name="by-country", key=str, value=str)
    by_country.group_by().count(name="counts")
    by_country.join(names, lambda account, name: f"{account}: {name}").to(out)
    by_country.distinct(within="1h").to(app.topic("first", value=str))
    by_country.process(Same(), name="again", value=str).to_table("last")
    async with TestApp(app) as t:
        for country in ("de", "fr", "it"):
            await t.send(app.topics["countries"], country.upper(), key=country)
        for number, account in enumerate("abcdef"):
            await t.send(accounts, ("de", "fr", "it")[number % 3], key=account)
        assert t.table(app.tables["counts"].table) == {"de": 2, "fr": 2, "it": 2}
        assert sorted(t.sent(out)) == ["a: DE", "b: FR", "c: IT", "d: DE", "e: FR", "f: IT"]
        assert sorted(t.sent(app.topics["first"])) == ["a", "b", "c"]
        assert t.table(app.tables["last"].table) == {"de": "d", "fr": "e", "it": "f"}
    moved = [name for name in app.topology.topics if name.endswith("-repartition")]
    assert moved == ["shop-by-country-repartition"]


async def test_other_keys_that_nobody_said() -> None:
    """Without ``key=`` nothing moves, and another key is an error where something goes by keys, not else."""
    app = ms.App("shop", partitions=1)
    accounts, out = app.topic("accounts", value=str), app.topic("out", value=str)
    stream = app.stream(accounts)
    stream.process(Country(), name="sent", value=str).to(out)
    stream.process(Country(), name="moved", value=str).key_by(str.upper).group_by().count(name="n")
    stream.process(Same(), name="same", value=str).filter(bool).group_by().count(name="counts")
    countries, named = app.topic("countries", value=str), app.topic("named", value=str)
    everywhere = app.global_table("everywhere", topic=countries)
    looked_up = stream.process(Country(), name="looked-up", value=str)
    looked_up.join(everywhere, lambda account, name: f"{account}: {name}").to(named)
    loose = [app.topic(f"loose-{n}", value=str, partitioner="any") for n in range(2)]
    app.stream(*loose).process(Same(), name="of-two", value=str).to(app.topic("both", value=str))
    async with TestApp(app) as t:
        await t.send(countries, "Germany", key="de")
        await t.settle()
        for topic in (accounts, *loose):
            await t.send(topic, "de", key="a")
        assert t.sent(named) == ["a: Germany"]
        assert t.sent(app.topics["both"]) == ["de", "de"]
        assert [(record.key, record.value) for record in t.records(out)] == [("de", "a")]
        assert t.table(app.tables["n"].table) == {"A": 1}
        assert t.table(app.tables["counts"].table) == {"a": 1}
    moved = [name for name in app.topology.topics if name.endswith("-repartition")]
    assert moved == ["shop-moved-keyed-repartition"]
    stream.process(Country(), name="by-country", value=str).filter(bool).to_table("last")
    with pytest.raises(
        AgentError, match=r"'by-country' has .* 'de', with 'a' .*\(\.\.\., key=str\)"
    ):
        async with TestApp(app) as t:
            await t.send(accounts, "de", key="a")


@pytest.mark.parametrize("crashes", [False, True])
async def test_distinct(crashes: bool) -> None:
    """The first of those with one key within a time passes, whatever the order of the others."""
    app = ms.App("once", partitions=2)
    clicks, out = app.topic("clicks", value=dict[str, str]), app.topic("out", value=dict[str, str])
    app.stream(clicks).distinct("id", within="10s").to(out)
    cases = [("a", 20), ("a", 25), ("b", 26), ("a", 11), ("a", 10), ("a", 30), ("a", 39), ("a", 45)]
    async with TestApp(app) as t:
        for number, (click, at) in enumerate(cases):
            value = {"id": click, "n": str(number)}
            await t.send(clicks, value, key=str(number), timestamp=at * 1_000)
            if crashes:
                await t.crash(lose_state=True)
        passed = sorted(int(value["n"]) for value in t.sent(out))
    assert [cases[number] for number in passed] == [
        ("a", 20),
        ("b", 26),
        ("a", 10),
        ("a", 30),
        ("a", 45),
    ]
