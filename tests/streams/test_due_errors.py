"""What was held back and fails when it is due: the row pays for it, not the record that brought the time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import millstream as ms
from millstream.errors import AgentError
from millstream.streams import _due
from millstream.streams._process import TimerPart
from millstream.streams._suppress import HeldPart
from millstream.testing import TestApp
from millstream.worker import _subtopology
from tests.kit import continued
from tests.streams.running import read

LATER = 1_000
"""Event time at which everything is due that came before."""


def held(app: ms.App, source: ms.Topic[str]) -> Any:
    """Held by a suppress."""
    return app.stream(source).to_table("last").suppress(ms.Suppress("100ms"), name="rows").changes()


def windows(app: ms.App, source: ms.Topic[str]) -> Any:
    """Windows, held by a suppress until they are final."""
    groups = app.stream(source).group_by().tumbling("100ms")
    table = groups.reduce(lambda a, b: b, emit=ms.Suppress(), name="w")
    return table.changes().map_keys(lambda windowed: windowed.key, type=str)


def unmatched(app: ms.App, source: ms.Topic[str]) -> Any:
    """Rows of a left join without a partner."""
    other = app.topic("other", value=str)
    pairs = app.stream(source).join(
        app.stream(other), lambda left, right: left, how="left", within="100ms", name="rows"
    )
    return pairs


def as_of(app: ms.App, source: ms.Topic[str]) -> Any:
    """Records that wait for a versioned table."""
    table = app.table("known", topic=app.topic("other", value=str), versioned="1s")
    return app.stream(source).join(
        table, lambda left, right: left, how="left", grace="100ms", name="rows"
    )


class Echo:
    """Says after a while what key it was."""

    def process(self, key: str, value: str, context: Any) -> None:
        if value != "time":
            context.set_timer(after="100ms", key=key)

    def on_timer(self, key: str, context: Any) -> None:
        context.forward(key)


def timers(app: ms.App, source: ms.Topic[str]) -> Any:
    """Timers of a processor."""
    return app.stream(source).process(Echo(), name="rows", value=str)


TABLES = {
    held: "rows",
    windows: "w-suppress",
    unmatched: "rows-unmatched",
    as_of: "rows-waiting",
    timers: "rows",
}
BUILDS = list(TABLES)
KEYS = ["a", "bad", "c", "d"]


def program(build: Any, on_error: Any, later: bool = False) -> tuple[ms.App, Any, Any]:
    """Everything is held back; what comes of ``bad`` fails behind that."""
    app = ms.App("shop", partitions=1, on_error=on_error)
    source, out = app.topic("source", value=str), app.topic("out", value=str)

    def check(value: str) -> str:
        if value == "bad":
            raise ValueError("it is bad")
        return value

    async def check_later(value: str) -> str:
        await asyncio.sleep(0)
        return check(value)

    build(app, source).map(check_later if later else check, value=str).to(out)
    return app, source, out


async def fill(t: TestApp, source: ms.Topic[str], keys: list[str] = KEYS) -> None:
    """Have one row held back for each key."""
    for at, key in enumerate(keys):
        await t.send(source, key, key=key, timestamp=at)


async def bring(t: TestApp, source: ms.Topic[str], how: str) -> None:
    """Bring the time for all of them: by one record, then another; or without."""
    if how == "record":
        await t.send(source, "time", key="z", timestamp=LATER)
        await t.send(source, "time", key="z", timestamp=2 * LATER)
    else:
        await t.advance(stream=LATER / 1_000)


@pytest.mark.parametrize("quiet", [0, 2_000])
@pytest.mark.parametrize("how", ["record", "time"])
@pytest.mark.parametrize("build", BUILDS)
async def test_a_row_is_let_pass(
    build: Any, how: str, quiet: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``dlq`` the row alone is set aside, with key, value and time; the records go on, a crash changes nothing."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", quiet)
    app, source, out = program(build, "dlq", later=how == "time")
    dead = app.topic("shop-dlq", value=bytes, codec="raw")
    async with TestApp(app) as t:
        await fill(t, source)
        await t.crash(lose_state=True)
        await bring(t, source, how)
        await t.crash(lose_state=True)
        found = [value for value in t.sent(out) if value != "time"]
        assert sorted(found) == ["a", "c", "d"]
        (letter,) = read(t, dead, raw_keys=True)
        assert letter.key == b"bad"
        assert letter.value == (None if build is timers else b'"bad"')
        assert letter.headers["ms-table"] == TABLES[build].encode()
        assert letter.headers["__streams.errors.message"] == b"it is bad"


@pytest.mark.parametrize("how", ["record", "time"])
@pytest.mark.parametrize("build", [held, unmatched, as_of, timers])  # windows go to a topic next
async def test_a_row_whose_value_is_refused_at_the_commit(build: Any, how: str) -> None:
    """A table's value is encoded only there: the row that it came from is set aside, and the error says whose it was."""
    app = ms.App("shop", partitions=1, on_error="dlq")
    source, out = app.topic("source", value=str), app.topic("out", value=str)
    dead = app.topic("shop-dlq", value=bytes, codec="raw")

    def value_of(value: str) -> Any:
        return object() if value == "bad" else value

    rows = build(app, source).map(value_of, value=str)
    kept = rows.to_table("kept")
    rows.filter(lambda value: value in KEYS).to(out)
    async with TestApp(app) as t:
        await fill(t, source)
        await bring(t, source, how)
        if how == "time":  # which nobody brings again after the new start
            await bring(t, source, how)
        assert {k: v for k, v in t.table(kept).items() if k != "z"} == {k: k for k in "acd"}
        (letter,) = read(t, dead, raw_keys=True)
        assert letter.key == b"bad"
        assert letter.headers["ms-table"] == TABLES[build].encode()
        told = letter.headers["__streams.errors.message"].decode()
        assert "table 'kept', key 'bad': a value of type object cannot be encoded" in told
        assert sorted(t.sent(out)) == ["a", "c", "d"]


@pytest.mark.parametrize("build", BUILDS)
async def test_a_row_stops_the_worker(build: Any) -> None:
    """The error names what has held it back, its key, and the command that takes it out; the rest goes on then."""
    app, source, _ = program(build, "stop")
    test = TestApp(app)

    async def run() -> None:
        async with test as t:
            await fill(t, source)
            await t.send(source, "time", key="z", timestamp=LATER)

    with pytest.raises(AgentError, match=r"of key 'bad' raised ValueError") as caught:
        await run()
    position = caught.value.position
    assert position is not None
    assert position.rpartition("@")[0] == f"{TABLES[build]}@bad"
    assert isinstance(caught.value.__cause__, ValueError)
    mended, _, other = program(build, "skip")
    async with continued(mended, test) as t:
        assert sorted(set(t.sent(other)) - {"time"}) == ["a", "c", "d"]


async def test_the_blame_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, each record that brings the time would be skipped, and all that waits with it be stuck."""
    monkeypatch.setattr(_due, "_blamed", lambda error, item, row_of: error)
    app, source, out = program(held, "skip")
    async with TestApp(app) as t:
        await fill(t, source)
        await bring(t, source, "record")
        assert t.sent(out) == []


async def test_a_retry_may_work() -> None:
    """The record that brings the time is not counted twice, whatever the row needs."""
    app = ms.App("shop", partitions=1, on_error=ms.Retry(times=2, backoff=0))
    source, out = app.topic("source", value=str), app.topic("out", value=str)
    tries: list[str] = []

    def once_more(value: str) -> str:
        tries.append(value)
        if tries.count(value) < 3:
            raise ValueError(value)
        return value

    counts = app.stream(source).group_by().count(name="counts")
    held(app, source).map(once_more, value=str).to(out)
    async with TestApp(app) as t:
        await t.send(source, "x", key="a", timestamp=0)
        await t.send(source, "y", key="b", timestamp=LATER)
        assert t.sent(out) == ["x"]
        assert t.table(counts) == {"a": 1, "b": 1}


async def test_by_the_wall_clock() -> None:
    """What is sent every so often follows the policy as well, row by row."""
    app = ms.App("shop", partitions=1, on_error="skip")
    source, out = app.topic("source", value=str), app.topic("out", value=str)

    def check(value: str) -> str:
        if value == "bad":
            raise ValueError(value)
        return value

    last = app.stream(source).group_by().reduce(lambda a, b: b, emit_every="1m", name="last")
    last.changes().map(check, value=str).to(out)
    async with TestApp(app) as t:
        await fill(t, source)
        await t.advance(wall="2m")
        assert sorted(t.sent(out)) == ["a", "c", "d"]
        await t.send(source, "again", key="bad")
        await t.advance(wall="2m")
        assert sorted(t.sent(out)) == ["a", "again", "c", "d"]


@pytest.mark.parametrize(("build", "part"), [(held, HeldPart), (timers, TimerPart)])
async def test_a_failed_record_does_not_read_all_that_is_held(
    build: Any, part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has held is gone, and what it has let out is held again, with no more work than that."""
    walked: list[str] = []
    keys = part.keys

    def counted(self: Any, *arguments: Any, **more: Any) -> Any:
        walked.append(self.name)
        return keys(self, *arguments, **more)

    monkeypatch.setattr(part, "keys", counted)
    app = ms.App("shop", partitions=1, on_error="skip")
    source, out = app.topic("source", value=str), app.topic("out", value=str)
    build(app, source).to(out)

    def refuse(value: str) -> None:
        if value == "bad":
            raise ValueError("it is bad")

    app.stream(source).foreach(refuse)
    async with TestApp(app) as t:
        await t.send(source, "first", key="first", timestamp=0)
        await t.send(source, "bad", key="bad", timestamp=1)  # from now on with journals
        await t.send(source, "second", key="second", timestamp=2)
        before = len(walked)
        for at in range(10):
            await t.send(source, "bad", key=f"bad-{at}", timestamp=3 + at)
            await t.send(source, "bad", key="second", timestamp=150)  # lets the others out
        assert len(walked) == before
        await t.send(source, "time", key="z", timestamp=LATER)
        await t.crash()
        await t.send(source, "time", key="z", timestamp=2 * LATER)
        assert sorted(value for value in t.sent(out) if value != "time") == ["first", "second"]
