"""Operators that keep nothing: one record after the other, with its key, timestamp and headers."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgspec
import pytest

import millstream as ms
from millstream.errors import AgentError, ConfigurationError, TopologyError
from millstream.testing import TestApp
from tests.streams.running import Record, by_key, feed, read


class Click(msgspec.Struct):
    """What most of the programs here are about."""

    user: str
    n: int


INPUT = [Click("ada", 1), Click("bob", 2), Click("ada", 3), Click("bob", 4), Click("ada", 5)]


def program(**settings: Any) -> tuple[ms.App, ms.Topic[Click], ms.Topic[Any]]:
    app = ms.App("shop", partitions=1, **settings)
    return app, app.topic("clicks", value=Click, key_from="user"), app.topic("out", value=Any)


async def sent(app: ms.App, clicks: ms.Topic[Click], out: ms.Topic[Any]) -> list[Record]:
    """What came out of the clicks, sent at 0, 10, 20 ..., each with a header."""
    async with TestApp(app) as t:
        for number, click in enumerate(INPUT):
            await feed(t, clicks, [(None, click, number * 10)], headers={"n": str(number)})
        return read(t, out)


def later(function: Any) -> Any:
    """The same function, async; the greater the number, the sooner it is through."""

    async def slow(click: Any) -> Any:
        n = click.n if isinstance(click, Click) else len(click)
        for _ in range(20 - 3 * n):
            await asyncio.sleep(0)
        return function(click)

    return slow


def as_it_is(function: Any) -> Any:
    """The function itself."""
    return function


seen: list[Any] = []

STEPS: dict[str, tuple[Any, list[tuple[Any, Any, int]]]] = {
    "filter": (
        lambda s, f: s.filter(f(lambda click: click.n % 2)).map(lambda click: click.n),
        [("ada", 1, 0), ("ada", 3, 20), ("ada", 5, 40)],
    ),
    "map": (
        lambda s, f: s.map(f(lambda click: click.n * 2)),
        [("ada", 2, 0), ("bob", 4, 10), ("ada", 6, 20), ("bob", 8, 30), ("ada", 10, 40)],
    ),
    "flat_map": (
        lambda s, f: s.flat_map(f(lambda click: range(click.n - 3))),
        [("bob", 0, 30), ("ada", 0, 40), ("ada", 1, 40)],
    ),
    "key_by": (
        lambda s, f: s.key_by(f(lambda click: f"{click.n % 2}")).map(lambda click: click.n),
        [("1", 1, 0), ("0", 2, 10), ("1", 3, 20), ("0", 4, 30), ("1", 5, 40)],
    ),
    "map_keys": (
        lambda s, f: s.map_keys(f(lambda key: key.upper())).map(lambda click: click.n),
        [("ADA", 1, 0), ("BOB", 2, 10), ("ADA", 3, 20), ("BOB", 4, 30), ("ADA", 5, 40)],
    ),
    "peek": (
        lambda s, f: s.peek(f(lambda click: seen.append(click.n))).map(lambda click: seen[-1]),
        [("ada", 1, 0), ("bob", 2, 10), ("ada", 3, 20), ("bob", 4, 30), ("ada", 5, 40)],
    ),
    "merge": (
        lambda s, f: s.filter(f(lambda c: c.n == 1)).merge(s.filter(f(lambda c: c.n < 3)))
        .map(lambda click: click.n),
        [("ada", 1, 0), ("ada", 1, 0), ("bob", 2, 10)],
    ),
    "split": (
        lambda s, f: s.split({"odd": f(lambda c: c.n % 2), "all": f(lambda c: c.n < 4)})["all"]
        .map(lambda click: click.n),
        [("bob", 2, 10)],
    ),
    "default": (
        lambda s, f: s.split({"odd": f(lambda c: c.n % 2)}, default="even")["even"]
        .map(lambda click: click.n),
        [("bob", 2, 10), ("bob", 4, 30)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", [as_it_is, later])
@pytest.mark.parametrize("name", STEPS)
async def test_a_step(name: str, how: Any) -> None:
    """Each does what it is named for; an async function does the same, one record after the other."""
    app, clicks, out = program()
    step, wanted = STEPS[name]
    step(app.stream(clicks), how).to(out)
    found = await sent(app, clicks, out)
    assert [record[:3] for record in found] == wanted
    assert [record.headers["n"] for record in found] == [
        str(timestamp // 10).encode() for _, _, timestamp in wanted
    ]


async def test_foreach_is_the_end() -> None:
    """It is called for each value, whether or not anything comes of the stream."""
    app, clicks, out = program()
    found: list[int] = []
    app.stream(clicks).filter(lambda click: click.user == "bob").foreach(
        lambda click: found.append(click.n)
    )
    assert await sent(app, clicks, out) == []
    assert found == [2, 4]


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_order_of_a_key(concurrency: int) -> None:
    """Async functions may take their time: of one key nothing overtakes; with concurrency, others may."""
    app, clicks, out = program()
    done: list[int] = []
    takes_s = {"ada": 60, "bob": 1}

    @app.agent(app.stream(clicks).filter(lambda click: click.n), concurrency=concurrency)
    async def wait(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            await app.clock.sleep(takes_s[click.user])
            done.append(click.n)
            await out.send(click.n, key=click.user)

    async with TestApp(app) as t:
        await t.send_many(clicks, INPUT)
        await t.advance("10s")
        assert done == ([] if concurrency == 1 else [2, 4])
        await t.advance("5m")
        assert by_key(read(t, out)) == {"ada": [1, 3, 5], "bob": [2, 4]}


# -- topics ---------------------------------------------------------------------------------------


async def test_to_topics() -> None:
    """A topic, one chosen for each record, one that derives its own keys, and on ``through`` one."""
    app, clicks, out = program()
    odd, even = app.topic("odd", value=Click), app.topic("even", value=Click)
    by_n = app.topic("by-n", value=Click, key_from=lambda click: f"{click.n}")
    stream = app.stream(clicks)
    stream.to(lambda click: odd if click.n % 2 else even)
    stream.through(by_n).map(lambda click: click.user).to(out)
    async with TestApp(app) as t:
        await t.send_many(clicks, INPUT)
        assert [record[:2] for record in read(t, odd)] == [("ada", c) for c in INPUT if c.n % 2]
        assert [record[:2] for record in read(t, even)] == [
            ("bob", c) for c in INPUT if not c.n % 2
        ]
        assert [record.key for record in read(t, by_n)] == ["1", "2", "3", "4", "5"]
        assert [record[:2] for record in read(t, out)] == [(f"{c.n}", c.user) for c in INPUT]


async def test_to_what_is_no_topic() -> None:
    """An error that says so: at once, or with the record when a function chose it."""
    app, clicks, _ = program()
    with pytest.raises(TopologyError, match="neither a topic nor a function"):
        app.stream(clicks).to("out")  # type: ignore[arg-type]
    other = ms.App("other").topic("out", value=Click)
    with pytest.raises(TopologyError, match="out"):
        app.stream(clicks).to(other)
    app.stream(clicks).to(lambda click: "out")  # type: ignore[arg-type, return-value]
    with pytest.raises(AgentError, match="'out' is no topic"):
        async with TestApp(app) as t:
            await t.send(clicks, INPUT[0])


def elsewhere() -> Any:
    """A stream of another app."""
    app, clicks, _ = program()
    return app.stream(clicks)


WRONG: list[tuple[Any, str]] = [
    (lambda s: s.filter(None), r"filter\(\) of 'clicks': None is not a function"),
    (lambda s: s.map(3), r"map\(\) of 'clicks': 3 is not a function"),
    (lambda s: s.flat_map([1]), r"flat_map\(\) of 'clicks': \[1\] is not a function"),
    (lambda s: s.peek("print"), r"peek\(\) of 'clicks': 'print' is not a function"),
    (lambda s: s.map_keys("user"), r"map_keys\(\) of 'clicks': 'user' is not a function"),
    (lambda s: s.key_by(3), "3 is neither the name of a field nor a function"),
    (lambda s: s.group_by(3), "3 is neither the name of a field nor a function"),
    (lambda s: s.group_by(3, name="three"), "3 is neither the name of a field nor a function"),
    (lambda s: s.split([bool]), "does not name the branches.*for example split"),
    (lambda s: s.split({"all": True}), r"split\(\) of 'clicks': True is not a function"),
    (lambda s: s.merge(s.to_table("t")), r"'t'> is not a stream.*table\.changes\(\)"),
    (lambda s: s.merge(elsewhere()), "they belong to different apps"),
    (lambda s: s.to_table("t").filter(None), r"filter\(\) of 't': None is not a function"),
    (lambda s: s.to_table("t").map_values(3), r"map_values\(\) of 't': 3 is not a function"),
    (lambda s: s.to_table("t").group_by(3), "3 is neither the name of a field nor a function"),
    (lambda s: s.group_by().top_k("n"), r"top_k\('n'\): the first argument is how many"),
    (lambda s: s.group_by().count(emit_every=0), "clicks-count: emit_every=0 is not above 0"),
    (lambda s: s.distinct(within=0), r"distinct\(within=0, grace=None\): .*above 0"),
    (lambda s: s.distinct(within=1, grace=-1), r"distinct\(within=1, grace=-1\): .*below 0"),
    (lambda s: s.process(Peeked(), name="p", wall_timers=0), "'p'.*: wall_timers=0 is not above 0"),
]


class Peeked:
    """A processor that does nothing."""

    def process(self, key: str, click: Click, context: Any) -> None: ...


@pytest.mark.parametrize(("step", "said"), WRONG)
def test_steps_that_are_none(step: Any, said: str) -> None:
    """What no step can be is an error where it is declared, and names the step and the option."""
    app, clicks, _ = program()
    with pytest.raises((ConfigurationError, TopologyError), match=said):
        step(app.stream(clicks))


def test_tables_of_what_is_no_topic() -> None:
    """A name is no topic: the error says what is."""
    app, _, _ = program()
    for declare in (app.table, app.global_table):
        with pytest.raises(TopologyError, match=r"'clicks' is not a topic: give what app\.topic"):
            declare("t", topic="clicks")  # type: ignore[call-overload]
    with pytest.raises(TopologyError, match=r"'clicks' is not a topic: give what app\.topic"):
        app.table("t", topic="clicks", versioned="1d")  # type: ignore[call-overload]


async def test_tombstones_and_missing_keys() -> None:
    """A record without a value reaches the functions as None, one without a key keeps having none."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=str), app.topic("out", value=str)
    app.stream(source).filter(lambda value: value != "x").to(out)
    async with TestApp(app) as t:
        await feed(t, source, [("k", None, 1), (None, "y", 2), ("k", "x", 3)])
        assert [record[:3] for record in read(t, out)] == [("k", None, 1), (None, "y", 2)]


# -- windowed results as records ------------------------------------------------------------------


def kafka_windowed_key(key: bytes, start: int) -> bytes:
    """`TimeWindowedSerializer`: the key, then the start in eight bytes."""
    return key + struct.pack(">q", start)


def kafka_session_key(key: bytes, start: int, end: int) -> bytes:
    """`SessionWindowedSerializer` (SessionKeySchema): the key, the end, the start."""
    return key + struct.pack(">qq", end, start)


@pytest.mark.parametrize("kind", ["tumbling", "sliding", "session"])
async def test_windowed_results(kind: str) -> None:
    """The window is in headers, in a value of the program's own, or in Kafka Streams' bytes of the key."""
    app, clicks, out = program()
    own, raw = app.topic("own", value=Any), app.topic("raw", value=int, key=bytes, partitions=8)
    groups = app.stream(clicks).group_by()
    windows: Any = {
        "tumbling": lambda: groups.tumbling("10ms"),
        "sliding": lambda: groups.sliding("10ms"),
        "session": lambda: groups.session("10ms"),
    }[kind]()
    table = windows.count(name="t", emit="every")
    table.to(out)
    table.to(own, value=lambda key, window, count: [key, window.start, window.end, count])
    table.to(raw, windowed_key="kafka-streams")
    async with TestApp(app) as t:
        for timestamp in (12, 15, 40):
            await feed(t, clicks, [(None, Click("ada", 1), timestamp)])
        rows = [(*record.windowed, record.value) for record in read(t, out)]
        assert [record.value for record in read(t, own) if record.value] == [
            list(row) for row in rows if row[3]
        ]
        assert [record.key for record in read(t, raw, raw_keys=True)] == [
            kafka_session_key(b"ada", start, end)
            if kind == "session"
            else kafka_windowed_key(b"ada", start)
            for _, start, end, _ in rows
        ]
        assert {record.partition for record in read(t, raw, raw_keys=True)} == {
            raw.partitioner(b"ada", 8)
        }
    assert rows == {
        "tumbling": [("ada", 10, 20, 1), ("ada", 10, 20, 2), ("ada", 40, 50, 1)],
        "sliding": [("ada", 2, 12, 1), ("ada", 13, 23, 1), ("ada", 5, 15, 2), ("ada", 30, 40, 1)],
        "session": [
            ("ada", 12, 12, 1), ("ada", 12, 12, None), ("ada", 12, 15, 2), ("ada", 40, 40, 1),
        ],
    }[kind]  # fmt: skip


async def test_headers_of_the_record_go_along() -> None:
    """A windowed result has the headers of the record that made it as well; a final one comes from none."""
    app, clicks, out = program()
    finals = app.topic("finals", value=int)
    groups = app.stream(clicks).group_by().tumbling("10ms")
    groups.count(name="updates").to(out)
    groups.count(name="finals", emit="final").to(finals)
    raw = app.topic("raw", value=int, key=bytes)
    groups.count(name="raw-counts").to(raw, windowed_key="kafka-streams")
    async with TestApp(app) as t:
        for timestamp in (0, 10):
            await feed(t, clicks, [(None, Click("ada", 1), timestamp)], headers={"n": "1"})
        window = {"ms-window-start": b"0", "ms-window-end": b"10"}
        assert read(t, out)[0].headers == {"n": b"1", **window}
        assert [record.headers for record in read(t, raw)] == [{"n": b"1"}] * 2
        assert [record.headers for record in read(t, finals)] == [window]
