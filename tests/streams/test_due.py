"""What is due at one moment leaves in as many events, and commits, as it takes: nothing is lost, and nobody is blamed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import millstream as ms
from millstream.errors import AgentError
from millstream.streams import _due
from millstream.testing import TestApp
from millstream.worker import _subtopology
from tests.streams.running import Disturbance, disturb, feed, read
from tests.streams.test_due_errors import LATER, as_of, held, timers, unmatched, windows

ROWS = 120
EPOCH_BYTES = 12_000
"""With a row's 1,000 bytes, all of them are above what one event may send."""


def grouped(app: ms.App, source: ms.Topic[str]) -> Any:
    """By the wall clock."""
    table = app.stream(source).group_by().reduce(lambda a, b: b, name="last", emit_every="1m")
    return table.changes()


def final(app: ms.App, source: ms.Topic[str]) -> Any:
    """Final windows."""
    groups = app.stream(source).group_by().tumbling("100ms")
    table = groups.reduce(lambda a, b: b, name="w", emit="final")
    return table.changes().map_keys(lambda windowed: windowed.key, type=str)


class Later:
    """Says after a while by the wall clock what key it was."""

    def process(self, key: str, value: str, context: Any) -> None:
        context.set_timer(after="10s", time="wall")

    def on_timer(self, key: str, context: Any) -> None:
        context.forward(key)


def wall(app: ms.App, source: ms.Topic[str]) -> Any:
    """Timers of the wall clock."""
    return app.stream(source).process(Later(), name="rows", wall_timers="1m", value=str)


BUILDS = [held, grouped, windows, final, unmatched, as_of, timers, wall]


def program(build: Any, on_error: Any, later: bool = False) -> tuple[ms.App, Any, Any]:
    """Everything is held back, and large when it comes out."""
    app = ms.App("shop", partitions=1, epoch_bytes_max=EPOCH_BYTES, on_error=on_error)
    source, out = app.topic("source", value=str), app.topic("out", value=str)

    def enlarge(value: str) -> str:
        return value.ljust(1_000)

    async def enlarge_later(value: str) -> str:
        await asyncio.sleep(0)
        return enlarge(value)

    rows = build(app, source)
    rows.map_values(enlarge_later if later else enlarge, value=str).to(out)
    return app, source, out


def filled() -> list[tuple[str, str, int]]:
    """Rows that are due together."""
    return [(f"k{number:03}", f"k{number:03}", number % 50) for number in range(ROWS)]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("quiet", [0, 2_000])
@pytest.mark.parametrize("how", ["record", "time"])
@pytest.mark.parametrize("build", BUILDS)
async def test_more_than_an_event_may_send(
    build: Any, how: str, quiet: int, later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``skip`` no row is dropped; each comes out once, before the results of the next record."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", quiet)
    app, source, out = program(build, "skip", later)
    async with TestApp(app) as t:
        await feed(t, source, filled())
        if how == "record":
            await feed(t, source, [("y", "y", LATER), ("z", "z", 2 * LATER)])
        else:
            await t.advance(stream=LATER / 1_000)
        await t.advance(wall="2m")
        found = [record.value.strip() for record in read(t, out)]
        rows = [value for value in found if value not in "yz"]
        assert sorted(rows) == [value for _, value, _ in filled()]
        assert found[:ROWS] == rows
        assert t.worker.counters["events_skipped"] == 0


@pytest.mark.parametrize("how", ["crash", "lose", "rebalance"])
@pytest.mark.parametrize("build", BUILDS)
async def test_the_rest_of_what_is_due_outlives_the_worker(
    build: Any, how: Disturbance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was let out is not let out again, and the rest leaves without another record or moment."""
    monkeypatch.setattr(_due, "LET_OUT_MAX", 7)
    app, source, out = program(build, "stop")
    async with TestApp(app) as t:
        await feed(t, source, filled())
        if build in (grouped, wall):
            t.clock.move_to(t.clock.now() + 60_000)
        else:
            await feed(t, source, [("z", "z", LATER)], settle=False)
        while not read(t, out):
            await asyncio.sleep(0)
            await t.worker.committer.commit()
        assert len(read(t, out)) < ROWS // 2
        await disturb(t, how)
        await t.settle()
        found = [record.value.strip() for record in read(t, out)]
        rows = [value for value in found if value != "z"]
        assert sorted(rows) == [value for _, value, _ in filled()]


async def test_a_row_that_alone_is_too_large() -> None:
    """Its own output is above what an event may send: then it is the row that the error names."""
    app = ms.App("shop", partitions=1, epoch_bytes_max=EPOCH_BYTES)
    source, out = app.topic("source", value=str), app.topic("out", value=str)

    def many(value: str) -> list[str]:
        return ["x" * 1_000] * (100 if value == "k003" else 1)

    held(app, source).flat_map(many, value=str).to(out)
    with pytest.raises(AgentError, match=r"'rows' has held back of key 'k003'.*output of this"):
        async with TestApp(app) as t:
            await feed(t, source, [*filled()[:10], ("z", "z", LATER)])


class Census:
    """Counts the timers that were called, and says to each record how many."""

    def __init__(self, called: ms.Table[str, int]) -> None:
        self.called = called

    def process(self, key: str, value: str | None, context: Any) -> None:
        if value == "row":
            context.set_timer(after="100ms", key=f"{key}{context.timestamp}")
        else:
            context.forward(self.called.get("all", 0), key=key)

    def on_timer(self, key: str, context: Any) -> None:
        self.called["all"] = self.called.get("all", 0) + 1


@pytest.mark.parametrize("value", ["time", None])
@pytest.mark.parametrize("quiet", [0, 2_000])
@pytest.mark.parametrize("how", ["", "crash", "lose", "rebalance"])
async def test_timers_before_the_record_that_brings_their_time(
    how: Disturbance, quiet: int, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are: it sees all that they did, and so do those after it."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", quiet)
    monkeypatch.setattr(_due, "LET_OUT_MAX", 7)
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=str), app.topic("out", value=int)
    called = app.table("called", key=str, value=int, like=source)
    app.stream(source).process(Census(called), name="census", value=int).to(out)
    async with TestApp(app) as t:
        await feed(t, source, [("k", "row", number) for number in range(ROWS)])
        records: list[Any] = [("k", "early", 50), ("y", value, LATER), ("z", value, 2 * LATER)]
        await feed(t, source, records, settle=False)
        while t.table(called).get("all", 0) < 30:
            await asyncio.sleep(0)
            await t.worker.committer.commit()
        if how:
            assert t.table(called)["all"] < ROWS
        await disturb(t, how)
        await t.settle()
        assert [record.value for record in read(t, out)] == [20, ROWS, ROWS]
        (shard,) = t.worker.shards.values()
        assert not shard.suspending


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("quiet", [0, 2_000])
@pytest.mark.parametrize("how", ["", "crash", "lose", "rebalance"])
async def test_rows_without_a_partner_before_the_pair_of_the_record(
    how: Disturbance, quiet: int, later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many they are: what is made of the record that brings their time comes after them."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", quiet)
    monkeypatch.setattr(_due, "LET_OUT_MAX", 7)
    app, source, out = program(unmatched, "stop", later)
    async with TestApp(app) as t:
        await feed(t, source, [*filled(), ("z", "z", 99)])
        await feed(t, app.topics["other"], [("z", "other", 199)], settle=False)
        while not read(t, out):
            await asyncio.sleep(0)
            await t.worker.committer.commit()
        await disturb(t, how)
        await t.settle()
        found = [record.value.strip() for record in read(t, out)]
        assert found == [key for key, _, _ in sorted(filled(), key=lambda row: row[2])] + ["z"]


class Pulse:
    """Beats every 10 ms of event time."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.turn = 0

    async def turns(self) -> None:
        while True:
            self.turn += 1
            await asyncio.sleep(0)

    def process(self, key: str, value: str, context: Any) -> None:
        if value == "begin":
            context.set_timer(after="10ms")
        context.forward(value)

    def on_timer(self, key: str, context: Any) -> None:
        self.calls.append(self.turn)
        context.set_timer(after="10ms")
        context.forward(f"{context.timestamp}")


async def test_a_timer_that_sets_itself_again_over_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called for each moment, before the record behind the gap; the loop turns meanwhile."""
    monkeypatch.setattr(_due, "LET_OUT_MAX", 7)
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=str), app.topic("out", value=str)
    pulse = Pulse()
    app.stream(source).process(pulse, name="pulse", value=str).to(out)
    async with TestApp(app) as t:
        turning = asyncio.ensure_future(pulse.turns())
        await feed(t, source, [("k", "begin", 0), ("k", "end", 1_000)])
        moments = [str(moment) for moment in range(10, 1_001, 10)]
        assert t.sent(out) == ["begin", *moments, "end"]
        turning.cancel()
    assert max(pulse.calls.count(turn) for turn in set(pulse.calls)) == 7


class Again:
    """Sets a timer that is not later than the one that sets it."""

    def __init__(self, again: Any) -> None:
        self.again = again

    def process(self, key: str, value: str, context: Any) -> None:
        context.set_timer(after="1s")
        context.set_timer(after="1s", time="wall")

    def on_timer(self, key: str, context: Any) -> None:
        self.again(context)


@pytest.mark.parametrize(
    ("again", "bring"),
    [
        (lambda context: context.set_timer(at=context.timestamp), {"stream": 5}),
        (lambda context: context.set_timer(after=0, key="other"), {"stream": 5}),
        (lambda context: context.set_timer(at=1, key="other"), {"stream": 5}),
        (lambda context: context.set_timer(after=0, time="wall"), {"wall": 5}),
    ],
)
async def test_a_timer_that_would_be_called_without_end(again: Any, bring: Any) -> None:
    """It is an error that says so."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=str)
    app.stream(source).process(Again(again), name="again", wall_timers="1s")

    async def run() -> None:
        async with TestApp(app) as t:
            await t.send(source, "row", key="k", timestamp=2)
            await t.advance(**bring)

    with pytest.raises(AgentError, match=r"on_timer\(\) at .*, key 'k', has set a timer .* later"):
        await run()
