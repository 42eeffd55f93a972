"""Timers and ``on_close`` functions that fail: the policies of records hold for them, too."""

# ruff: noqa: PT012  # an app ends with its block

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

import pytest

import millstream as ms
from millstream.errors import AgentError, TopologyError
from millstream.records import TopicPartition
from millstream.testing import TestApp
from millstream.transports.batch import iterate_records
from millstream.windows import Window
from millstream.worker import _subtopology
from tests.kit import append, continued

if TYPE_CHECKING:
    from datetime import datetime

START = 1_700_000_000_000
POLICIES = ["skip", "dlq"]


def letters(t: TestApp, topic: str) -> list[tuple[bytes | None, bytes | None, dict[str, bytes]]]:
    """Key, value and headers of what is in a dead-letter topic."""
    tp = TopicPartition(topic, 0)
    return [
        (record.key, record.value, dict(record.headers))
        for data in t._log.batches(tp)
        for record in iterate_records(data, where=str(tp))
    ]


async def quiet(t: TestApp, topic: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the shards keep no journals."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 3)
    for _ in range(3):
        await t.send_many(topic, [0] * 40)
    assert not any(shard.journaled for shard in t.worker.shards.values())


# timers ------------------------------------------------------------------------------------------


def ticking(scope: Any, fails: list[int], **options: Any) -> tuple[ms.App, Any, Any, Any]:
    """A timer that writes, sends, and fails as often as ``fails`` says; an agent that counts."""
    app = ms.App("ticks", partitions=1)
    numbers = app.topic("numbers", value=int)
    out = app.topic("out", value=str, partitions=1)
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(numbers)
    async def count(stream: ms.Stream[int]) -> None:
        async for number in stream:
            counts["sum"] += number

    @app.timer("10s", scope=scope, **options)
    async def tick() -> None:
        if scope == "shard":
            counts["ticks"] += 1
        await out.send("tick")
        if fails[0]:
            fails[0] -= 1
            raise ValueError("broken clock")

    return app, numbers, out, counts


@pytest.mark.parametrize("journaled", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
async def test_a_shard_timer_is_let_pass(
    policy: str, journaled: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What the call has written and sent is undone, all else stays, and the next call comes at its time."""
    app, numbers, out, counts = ticking("shard", [1], on_error=policy)
    async with TestApp(app) as t:
        if not journaled:
            await quiet(t, numbers, monkeypatch)
        await t.send(numbers, 5)
        await t.advance("10s")
        assert t.table(counts) == {"sum": 5}
        assert t.sent(out) == []
        await t.send(numbers, 6)
        await t.advance("10s")
        assert t.table(counts) == {"sum": 11, "ticks": 1}
        assert t.sent(out) == ["tick"]
        counted = "events_skipped" if policy == "skip" else "events_dead_lettered"
        assert sum(shard.counters[counted] for shard in t.worker.shards.values()) == 1
        if policy == "dlq":
            ((key, value, headers),) = letters(t, "ticks-dlq")
            assert key is None
            assert value is not None
            assert json.loads(value) == {
                "timer": "tick",
                "moment": "2023-11-14T22:13:30.000+00:00",
                "shard": "1-0",
            }
            assert headers["ms-timer"] == b"tick"
            assert headers["__streams.errors.exception"] == b"builtins.ValueError"
            assert headers["__streams.errors.message"] == b"broken clock"
            assert b"test_calls.py" in headers["__streams.errors.stacktrace"]
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith("timer 'tick' of 2023-11-14T22:13:30.000+00:00 is ")
    assert "test_calls.py" in errors[0]
    assert errors[0].endswith("ValueError: broken clock")


@pytest.mark.parametrize("scope", ["worker", "leader"])
@pytest.mark.parametrize("policy", POLICIES)
async def test_another_timer_is_let_pass(policy: str, scope: str) -> None:
    """Outside of events there is nothing to undo: what it has sent is sent."""
    app, _, out, _ = ticking(scope, [1], on_error=policy)
    async with TestApp(app) as t:
        await t.advance("20s")
        assert t.sent(out) == ["tick", "tick"]
        counted = "events_skipped" if policy == "skip" else "events_dead_lettered"
        assert t.worker.counters[counted] == 1
        if policy == "dlq":
            ((_, value, headers),) = letters(t, "ticks-dlq")
            assert value == b'{"timer":"tick","moment":"2023-11-14T22:13:30.000+00:00"}'
            assert headers["ms-timer"] == b"tick"


@pytest.mark.parametrize("journaled", [True, False])
async def test_a_shard_timer_is_tried_again(
    journaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempts come with their pauses, each as if none had been before it."""
    policy = ms.Retry(times=2, backoff="1s")
    app, numbers, out, counts = ticking("shard", [2], on_error=policy)
    async with TestApp(app) as t:
        if not journaled:
            await quiet(t, numbers, monkeypatch)
        await t.send(numbers, 5)
        await t.advance("10s")
        assert t.table(counts) == {"sum": 5}
        await t.advance("1s")
        assert t.table(counts) == {"sum": 5}
        await t.send(numbers, 6)  # others do not wait for it
        assert t.table(counts) == {"sum": 11}
        await t.advance("2s")
        assert t.table(counts) == {"sum": 11, "ticks": 1}
        assert t.sent(out) == ["tick"]


@pytest.mark.parametrize("scope", ["worker", "leader"])
async def test_another_timer_is_tried_again(scope: str) -> None:
    """Where all attempts fail, what comes after them applies."""
    policy = ms.Retry(times=2, backoff="1s", then=ms.Dlq("late"))
    app, _, out, _ = ticking(scope, [3], on_error=policy)
    async with TestApp(app) as t:
        await t.advance("15s")
        assert t.sent(out) == ["tick"] * 3
        assert len(letters(t, "late")) == 1
        await t.advance("5s")
        assert t.sent(out) == ["tick"] * 4


async def test_the_policy_of_the_app() -> None:
    """Where a timer says nothing, the app's policy counts."""
    app = ms.App("ticks", partitions=1, on_error="skip")
    calls: list[int] = []

    @app.timer("10s")
    def tick() -> None:
        calls.append(1)
        raise ValueError("broken clock")

    async with TestApp(app) as t:
        await t.advance("30s")
        assert t.worker.counters["events_skipped"] == 3
    assert len(calls) == 3


@pytest.mark.parametrize("journaled", [True, False])
async def test_a_stop_commits_what_came_before(
    journaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is undone; records before it are kept, and none is counted twice when the worker starts again."""
    app, numbers, _, _ = ticking("shard", [1])
    t = TestApp(app)
    with pytest.raises(AgentError, match=r"timer 'tick' of \S+ raised ValueError: broken clock"):
        async with t:
            if not journaled:
                await quiet(t, numbers, monkeypatch)
            await numbers.send(5)
            t.clock.move_to(t.clock.now() + 10_000)
            await t.settle()
    again, _, out, counts = ticking("shard", [0])
    async with continued(again, t) as t:
        assert t.table(counts) == {"sum": 5}
        await t.advance("10s")
        assert t.table(counts) == {"sum": 5, "ticks": 1}
        assert t.sent(out) == ["tick"]


@pytest.mark.parametrize(
    ("scope", "options", "position"),
    [
        ("leader", {}, "timer:job@2023-11-14T22:14:00.000+00:00"),
        ("shard", {"missed": "late"}, "timer:job/1-0@2023-11-14T22:14:00.000+00:00"),
        ("shard", {"missed": "skip"}, None),  # it does not come again
        ("leader", {"missed": "skip"}, None),
        ("worker", {}, None),
    ],
)
async def test_a_job_that_stops_the_worker(scope: Any, options: Any, position: str | None) -> None:
    """A moment that comes again is named, with the command that goes past it; it does come again."""
    fails = [True]
    calls: list[datetime] = []

    def program() -> ms.App:
        app = ms.App("jobs", partitions=1)
        app.topic("numbers", value=int)

        @app.crontab("* * * * *", scope=scope, **options)
        def job(moment: datetime) -> None:
            calls.append(moment)
            if fails[0]:
                raise ValueError("no")

        return app

    t = TestApp(program(), start=START)
    with pytest.raises(AgentError, match="timer 'job' of") as raised:
        async with t:
            await t.advance("1m")
    assert raised.value.position == position
    assert (f"with: millstream skip {position}" in str(raised.value)) == (position is not None)
    assert len(calls) == 1
    fails[0] = False
    async with continued(program(), t) as t:
        await t.settle()
        assert calls[1:] == (calls[:1] if position is not None else [])


async def test_a_timer_by_event_time_is_let_pass() -> None:
    """Its moment is over then, and does not come again."""
    app = ms.App("ticks", partitions=1, on_error="skip")
    numbers = app.topic("numbers", value=int)
    counts = app.table("counts", key=str, value=int, default=0)
    at: list[int] = []

    @app.agent(numbers)
    async def count(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            counts["records"] += 1

    @app.timer("1m", scope="shard", time="event")
    def tick(moment: datetime) -> None:
        at.append(int(moment.timestamp()) // 60)
        counts["ticks"] += 1
        if at[-1] == 2:
            raise ValueError("no")

    async with TestApp(app) as t:
        for minute in (1, 2, 3):
            await t.send(numbers, 1, timestamp=minute * 60_000 + 1)
        await t.crash()
        assert at == [1, 2, 3]
        assert t.table(counts) == {"records": 3, "ticks": 2}


async def test_another_event_has_seen_what_the_timer_wrote() -> None:
    """Where the call cannot be undone alone, its shard starts over, and the same comes out."""
    app = ms.App("ticks", partitions=1, on_error="skip")
    numbers = app.topic("numbers", value=int)
    counts = app.table("counts", key=str, value=int, default=0)
    half, seen = asyncio.Event(), asyncio.Event()

    @app.agent(numbers)
    async def count(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            counts["records"] = counts["ticks"] + 1
            seen.set()

    @app.timer("10s", scope="shard")
    async def tick() -> None:
        counts["ticks"] += 100
        half.set()
        await seen.wait()
        raise ValueError("no")

    async with TestApp(app) as t:
        t.clock.move_to(t.clock.now() + 10_000)
        await half.wait()
        await t.send(numbers, 1)
        assert t.table(counts) == {"records": 1}
        assert sum(shard.counters["events_skipped"] for shard in t.worker.shards.values()) == 1


# windows -----------------------------------------------------------------------------------------


def closing(
    fails: dict[tuple[str, int], int], *, kind: str = "tumbling", **options: Any
) -> tuple[ms.App, Any, Any, Any, Any]:
    """Windows of 10 s; ``fails`` says how often the closing of one fails, by key and start in s."""
    app = ms.App("windows", partitions=1)
    seen = app.topic("seen", value=int, key=str)
    closed = app.topic("closed", value=list[Any], partitions=1)
    declared = app.table("counts", key=str, value=list[int], default=list, **options)
    counts: Any
    if kind == "tumbling":
        counts = declared.tumbling("10s", retention="10m")
    elif kind == "session":
        counts = declared.session("5s", retention="10m")
    else:
        counts = declared.sliding("10s", retention="10m")
    totals = app.table("totals", key=str, value=int, default=0)

    @app.agent(seen)
    async def count(stream: ms.Stream[int, str]) -> None:
        async for key, value in stream.items():
            counts[key].apply(lambda listed, value=value: [*listed, value])

    async def close(key: str, window: Window, value: list[int]) -> None:
        await closed.send([key, window.start // 1_000, value])
        totals[key] += sum(value)
        value.append(-1)
        if fails.get((key, window.start // 1_000), 0):
            fails[key, window.start // 1_000] -= 1
            raise ValueError("no")

    counts.on_close(close)
    return app, seen, closed, counts, totals


async def feed(t: TestApp, seen: Any, *events: tuple[str, int, int]) -> None:
    """Send key, value and time in s."""
    for key, value, at in events:
        await seen.send(value, key=key, timestamp=at * 1_000)
    await t.settle()


EVENTS = [("a", 1, 0), ("b", 2, 1), ("a", 3, 2), ("c", 4, 11), ("a", 5, 12), ("a", 6, 30)]


@pytest.mark.parametrize("kind", ["tumbling", "session"])
@pytest.mark.parametrize("journaled", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
async def test_a_window_is_let_pass(
    policy: str,
    journaled: bool,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What closing it has written and sent is undone, and the windows after it are closed, each once."""
    app, seen, closed, _, totals = closing({("a", 0): 9}, kind=kind, on_error=policy)
    async with TestApp(app) as t:
        if not journaled:
            monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 3)
            for _ in range(3):
                await feed(t, seen, *[("a", 0, 0)] * 20)
            assert not t.worker.shards[1, 0].journaled
        await feed(t, seen, *EVENTS)
        starts = (1, 11, 12) if kind == "session" else (0, 10, 10)
        expected = sorted(
            (
                [["b", starts[0], [2]], ["c", starts[1], [4]], ["a", starts[2], [5]]]
                if kind == "session"
                else [["b", 0, [2]], ["a", 10, [5]], ["c", 10, [4]]]
            ),
            key=str,
        )
        assert sorted(t.sent(closed), key=str) == expected
        assert t.table(totals) == {"a": 5, "b": 2, "c": 4}
        await t.crash(lose_state=True)
        assert sorted(t.sent(closed), key=str) == expected
        if policy == "dlq":
            ((key, value, headers),) = letters(t, "windows-dlq")
            assert key == b"a"
            assert value is not None
            assert [n for n in json.loads(value) if n] == [1, 3]
            assert headers["ms-table"] == b"counts"
            assert headers["ms-window-start"] == b"0"
            assert headers["ms-window-end"] == (b"2000" if kind == "session" else b"10000")
            assert headers["__streams.errors.message"] == b"no"
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith("on_close of table 'counts', window 1970-01-01T00:00:00.000+00:00/")
    assert "key 'a', is" in errors[0]


@pytest.mark.parametrize("journaled", [True, False])
async def test_a_window_is_tried_again(journaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attempt has the window as it was; windows and records behind it wait meanwhile."""
    policy = ms.Retry(times=2, backoff="1s")
    app, seen, closed, counts, totals = closing({("a", 0): 2}, on_error=policy)
    async with TestApp(app) as t:
        if not journaled:
            monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 3)
            await feed(t, seen, *[("a", 0, 0)] * 20)
            await feed(t, seen, *[("a", 0, 0)] * 20)
            assert not t.worker.shards[1, 0].journaled
        await feed(t, seen, *EVENTS)
        assert t.sent(closed) == []
        await t.advance("1s")
        assert t.sent(closed) == []
        await t.advance("2s")
        found = [[key, start, [n for n in value if n]] for key, start, value in t.sent(closed)]
        assert found == [["a", 0, [1, 3]], ["b", 0, [2]], ["a", 10, [5]], ["c", 10, [4]]]
        assert t.table(totals) == {"a": 9, "b": 2, "c": 4}
        kept = t.table(counts)["a", Window(0, 10_000)]
        assert [n for n in kept if n] == [1, 3]  # what on_close did to the value is its own affair


@pytest.mark.parametrize("journaled", [True, False])
async def test_a_window_that_stops_the_worker(
    journaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names table, window, key and the command; what came before it is committed, nothing behind it."""
    app, seen, _, _, _ = closing({("b", 0): 9})
    t = TestApp(app)
    with pytest.raises(
        AgentError,
        match=r"on_close of table 'counts', window 1970-01-01T00:00:00.000\+00:00/1970-01-01T00:00:10.000\+00:00,"
        r" key 'b', raised ValueError: no at .*test_calls.py.* Nothing of it was committed\. .*"
        r"millstream skip counts@b@1970-01-01T00:00:00.000\+00:00$",
    ) as raised:
        async with t:
            if not journaled:
                monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 3)
                await feed(t, seen, *[("z", 0, 0)] * 20)
                await feed(t, seen, *[("z", 0, 0)] * 20)
                assert not t.worker.shards[1, 0].journaled
            await feed(t, seen, *EVENTS)
    assert raised.value.position == "counts@b@1970-01-01T00:00:00.000+00:00"
    assert raised.value.record is None
    left = [json.loads(value or b"")[:2] for _, value, _ in letters(t, "closed")]
    assert left == [["a", 0]]
    again, seen, closed, _, totals = closing({})
    async with continued(again, t) as t:
        await t.settle()
        assert [row[:2] for row in t.sent(closed) if row[0] != "z"] == [
            ["a", 0],
            ["b", 0],
            ["a", 10],
            ["c", 10],
        ]
        assert {k: v for k, v in t.table(totals).items() if k != "z"} == {"a": 9, "b": 2, "c": 4}


async def test_a_closing_value_that_cannot_be_committed() -> None:
    """What a window's closing writes, and cannot be encoded, is blamed on that window."""
    app = ms.App("windows", partitions=1, on_error="skip")
    seen = app.topic("seen", value=int, key=str)
    counts = app.table("counts", key=str, value=int, default=0).tumbling("10s")
    last = app.table("last", key=str, value=int)

    @app.agent(seen)
    async def count(stream: ms.Stream[int, str]) -> None:
        async for key, value in stream.items():
            counts[key] += value

    @counts.on_close
    async def close(key: str, window: Window, value: int) -> None:
        last[key] = value if key != "b" else object()  # type: ignore[assignment]

    async with TestApp(app) as t:
        await feed(t, seen, *EVENTS)
        assert t.table(last) == {"a": 5, "c": 4}
        assert sum(shard.counters["events_skipped"] for shard in t.worker.shards.values()) == 1


async def test_a_timers_value_that_cannot_be_committed() -> None:
    """What a timer writes, and cannot be encoded, is blamed on that timer when it comes again."""
    app = ms.App("ticks", partitions=1, on_error="skip")
    numbers = app.topic("numbers", value=int)
    last = app.table("last", key=str, value=int)

    @app.agent(numbers)
    async def count(stream: ms.Stream[int]) -> None:
        async for number in stream:
            last["number"] = number

    @app.timer("10s", scope="shard")
    def tick() -> None:
        last["tick"] = object()  # type: ignore[assignment]

    async with TestApp(app) as t:
        await t.send(numbers, 5)
        await t.advance("10s")
        await t.send(numbers, 6)
        assert t.table(last) == {"number": 6}
        await t.advance("20s")
        assert sum(shard.counters["events_skipped"] for shard in t.worker.shards.values()) == 3


# tables ------------------------------------------------------------------------------------------


async def test_the_policy_of_a_table_that_is_read() -> None:
    """A table that is read from a topic has a policy for what it cannot read, before that of the topic."""
    app = ms.App("reads", partitions=1)
    names = app.topic("names", key=str, value=str, on_error="stop")
    table = app.table("names-by-key", topic=names, on_error="skip")
    async with TestApp(app) as t:
        await append(t, "names", b'"Ada"', b"nonsense", key=b"a")
        assert t.table(table) == {"a": "Ada"}


async def test_a_policy_without_effect() -> None:
    """A table that neither reads a topic nor closes windows has nothing that the policy could be for."""
    app = ms.App("plain", partitions=1)
    app.table("t", key=str, value=int, on_error="skip")
    with pytest.raises(TopologyError, match=r"table 't': on_error= is for what comes from a topic"):
        async with TestApp(app):
            pass
