"""Timers in three scopes, by the wall clock and by event time; cron, with summer time; tasks."""

# ruff: noqa: PT012  # a stream is no list, and an app ends with its block

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pytest

import millstream as ms
from millstream.app import _timers
from millstream.app._timers import Crontab, Timer
from millstream.errors import AgentError, ConfigurationError, OutsideEventError, TopologyError
from millstream.testing import TestApp
from tests.kit import Order, continued, second_worker

if TYPE_CHECKING:
    from millstream.clock import Duration
    from millstream.transports.base import CommitResult, Epoch

BERLIN = ZoneInfo("Europe/Berlin")


def reading(partitions: int = 2, **settings: Any) -> tuple[ms.App, ms.Topic[Order]]:
    app = ms.App("timers", partitions=partitions, **settings)
    orders = app.topic("orders", value=Order, key_from="account")

    @app.agent(orders)
    async def read(stream: ms.Stream[Order]) -> None:
        async for _ in stream:
            pass

    return app, orders


@pytest.mark.parametrize(("scope", "calls"), [("worker", 1), ("leader", 1), ("shard", 2)])
async def test_scopes(scope: Any, calls: int) -> None:
    """A timer runs once on a worker, once on the leader, or once for each shard, every interval."""
    app, _ = reading()
    at: list[int] = []

    @app.timer("10s", scope=scope)
    async def tick() -> None:
        at.append(app.clock.now() - start)

    async with TestApp(app) as t:
        start = t.clock.now()
        await t.advance("25s")
    assert at == [10_000] * calls + [20_000] * calls


async def test_plain_functions() -> None:
    """A timer may be a plain function."""
    app, _ = reading()
    calls: list[int] = []

    @app.timer(1)
    def tick() -> None:
        calls.append(1)

    async with TestApp(app) as t:
        await t.advance("3s")
    assert calls == [1, 1, 1]


async def test_shard_timers_are_events() -> None:
    """A timer of scope ``shard`` writes tables and sends, in its shard, exactly once."""
    app, _ = reading()
    out = app.topic("out", value=int)
    counts = app.table("counts", key=int, value=int, default=0)

    @app.timer("10s", scope="shard")
    async def tick() -> None:
        for key in range(20):
            try:
                counts[key] += 1
            except ms.errors.WrongShardError:
                continue
        await out.send(1)

    async with TestApp(app) as t:
        await t.advance("20s")
        assert t.table(counts) == dict.fromkeys(range(20), 2)
        assert t.sent(out) == [1] * 4
        await t.crash(lose_state=True)
        assert t.table(counts) == dict.fromkeys(range(20), 2)
        await t.advance("10s")
        assert t.table(counts) == dict.fromkeys(range(20), 3)


@pytest.mark.parametrize("scope", ["worker", "leader"])
async def test_tables_in_other_timers(scope: Any) -> None:
    """Elsewhere a table raises, and a send leaves at once."""
    app, _ = reading()
    out = app.topic("out", value=int)
    counts = app.table("counts", key=str, value=int, default=0)
    errors: list[Exception] = []

    @app.timer("10s", scope=scope)
    async def tick() -> None:
        assert await out.send(1) is not None
        try:
            counts["x"] += 1
        except OutsideEventError as exc:
            errors.append(exc)

    async with TestApp(app) as t:
        await t.advance("10s")
        assert t.sent(out) == [1]
    assert len(errors) == 1


async def test_event_time() -> None:
    """A timer by event time runs when its shard's stream time passes a multiple of the interval."""
    app, orders = reading(partitions=1)
    at: list[int] = []

    @app.timer("1m", scope="shard", time="event")
    async def tick() -> None:
        event_time = t.worker.shards[1, 0].stream_time
        at.append(event_time // 60_000)

    async with TestApp(app) as t:
        await t.advance("10m")
        assert at == []
        for minute in (100, 100, 101, 101, 105):
            await t.send(orders, Order("a", 1.0), timestamp=minute * 60_000 + 30_000)
        assert at == [100, 101, 105]
        await t.advance(stream="1m")
        assert at == [100, 101, 105, 106]


async def test_missed_intervals_count_once() -> None:
    """A timer whose call took longer than its interval goes on with the next moment, and does not catch up."""
    app, _ = reading()
    at: list[int] = []

    @app.timer("10s")
    async def tick() -> None:
        at.append(app.clock.now() - start)
        if len(at) == 1:
            await app.clock.sleep(35)

    async with TestApp(app) as t:
        start = t.clock.now()
        await t.advance("65s")
    assert at == [10_000, 50_000, 60_000]


def test_after() -> None:
    """Each row: interval, now, the last moment, the next one."""
    rows = [
        (10, 0, 0, 10),  # the first one
        (10, 3, 0, 10),
        (10, 10, 10, 20),
        (10, 12, 10, 20),
        (10, 35, 10, 40),  # missed 20 and 30
        (10, 40, 10, 50),  # 40 is now: it counts as missed
    ]
    for interval_ms, now, last, expected in rows:
        timer = Timer(name="t", function=print, interval_ms=interval_ms)
        assert timer.after(now, last) == expected


def moments(expression: str, timezone: str, start: datetime, count: int) -> list[str]:
    crontab = Crontab(expression, timezone)
    at, found = int(start.timestamp() * 1_000), []
    for _ in range(count):
        at = crontab.after(at)
        found.append(datetime.fromtimestamp(at / 1_000, ZoneInfo(timezone)).strftime("%d %H:%M %Z"))
    return found


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        # an ordinary day
        ("0 9 * * *", datetime(2024, 6, 1, 9, tzinfo=BERLIN), ["02 09:00 CEST", "03 09:00 CEST"]),
        # nine stays nine when summer time begins, and when it ends
        ("0 9 * * *", datetime(2024, 3, 30, 10, tzinfo=BERLIN), ["31 09:00 CEST", "01 09:00 CEST"]),
        ("0 9 * * *", datetime(2024, 10, 26, 10, tzinfo=BERLIN), ["27 09:00 CET", "28 09:00 CET"]),
        # a time that the clock skips is run when the skipped hour is over
        ("30 2 * * *", datetime(2024, 3, 30, 3, tzinfo=BERLIN), ["31 03:00 CEST", "01 02:30 CEST"]),
        # a time that comes twice is run once
        ("30 2 * * *", datetime(2024, 10, 26, 3, tzinfo=BERLIN), ["27 02:30 CEST", "28 02:30 CET"]),
        # every hour is every hour
        (
            "0 * * * *",
            datetime(2024, 10, 27, 1, 30, tzinfo=BERLIN),
            ["27 02:00 CEST", "27 02:00 CET", "27 03:00 CET"],
        ),
        (
            "0 * * * *",
            datetime(2024, 3, 31, 0, 30, tzinfo=BERLIN),
            ["31 01:00 CET", "31 03:00 CEST", "31 04:00 CEST"],
        ),
        # the first of the month
        ("0 0 1 * *", datetime(2024, 1, 31, tzinfo=BERLIN), ["01 00:00 CET", "01 00:00 CET"]),
    ],
)
def test_crontab_in_summer_time(expression: str, start: datetime, expected: list[str]) -> None:
    """Cron goes by the clock on the wall of its time zone."""
    assert moments(expression, "Europe/Berlin", start, len(expected)) == expected


async def test_crontab() -> None:
    """A cron job runs on one worker, at its moments."""
    app, _ = reading()
    at: list[str] = []

    @app.crontab("*/20 * * * *", timezone="America/New_York")
    async def job() -> None:
        moment = datetime.fromtimestamp(app.clock.now() / 1_000, ZoneInfo("America/New_York"))
        at.append(moment.strftime("%H:%M"))

    start = int(
        datetime(2024, 7, 1, 12, 5, tzinfo=ZoneInfo("America/New_York")).timestamp() * 1_000
    )
    async with TestApp(app, start=start) as t:
        await t.advance("1h")
    assert at == ["12:20", "12:40", "13:00"]


async def test_crontab_alone() -> None:
    """An app that has nothing but a cron job runs it."""
    app = ms.App("cron")
    calls: list[int] = []

    @app.crontab("* * * * *")
    def job() -> None:
        calls.append(1)

    async with TestApp(app) as t:
        await t.advance("3m")
    assert calls == [1, 1, 1]


async def test_a_run_missed_while_running_is_run_once() -> None:
    """Moments that pass while the job is at work are left out."""
    app, _ = reading()
    at: list[int] = []

    @app.crontab("* * * * *")
    async def job() -> None:
        at.append((app.clock.now() - start) // 60_000)
        if len(at) == 1:
            await app.clock.sleep(150)

    async with TestApp(app, start=1_700_000_040_000) as t:
        start = t.clock.now()
        await t.advance("5m")
    assert at == [1, 4, 5]


MINUTE = 60_000
START = int(datetime(2024, 7, 1, 12, 29, 40, tzinfo=BERLIN).timestamp() * 1_000)


def every_minute(
    ran: list[str], *, scope: Any = "leader", partitions: int = 2, **options: Any
) -> ms.App:
    """A job at each full minute, which tells for which one it ran."""
    app, _ = reading(partitions)

    @app.crontab("* * * * *", timezone="Europe/Berlin", scope=scope, **options)
    async def job(moment: datetime) -> None:
        ran.append(moment.strftime("%H:%M"))

    return app


@pytest.mark.parametrize("lose_state", [False, True])
@pytest.mark.parametrize("scope", ["leader", "shard"])
@pytest.mark.parametrize(
    ("options", "late"),
    [
        ({}, ["12:35"]),  # the default
        ({"missed": "once"}, ["12:35"]),
        ({"missed": "late"}, ["12:31", "12:32", "12:33", "12:34", "12:35"]),
        ({"missed": "skip"}, []),
    ],
)
async def test_runs_missed_while_down(
    options: Any, late: list[str], scope: Any, lose_state: bool
) -> None:
    """Moments that passed while no worker ran: one run for the last, each of them in order, or none."""
    ran: list[str] = []
    first = TestApp(every_minute(ran, scope=scope, partitions=1, **options), start=START)
    async with first as t:
        await t.advance("1m")
        assert ran == ["12:30"]
    first.clock.advance("5m")
    if lose_state:
        for shard in first._state.shards():
            first._state.destroy(shard)
    second = continued(every_minute(ran, scope=scope, partitions=1, **options), first)
    async with second as t:
        await t.settle()
        assert ran == ["12:30", *late]
        await t.advance("1m")
        assert ran == ["12:30", *late, "12:36"]
    async with continued(every_minute(ran, scope=scope, partitions=1, **options), second) as t:
        await t.settle()
        assert ran == ["12:30", *late, "12:36"]


async def test_a_run_missed_before_the_first_one() -> None:
    """What counts begins when the job is first there, not when it first ran."""
    ran: list[str] = []
    first = TestApp(every_minute(ran), start=START)
    async with first as t:
        await t.advance("5s")
    assert ran == []
    first.clock.advance("90s")
    async with continued(every_minute(ran), first) as t:
        await t.settle()
    assert ran == ["12:31"]


async def test_scope_worker_makes_up_for_nothing() -> None:
    """Nobody knows what a worker has missed."""
    ran: list[str] = []
    first = TestApp(every_minute(ran, scope="worker"), start=START)
    async with first as t:
        await t.advance("1m")
    first.clock.advance("5m")
    async with continued(every_minute(ran, scope="worker"), first) as t:
        await t.settle()
    assert ran == ["12:30"]


async def test_the_next_leader_goes_on() -> None:
    """Where leadership moves, what has run is not repeated, and what was missed in between is run."""
    ran: list[str] = []
    others: list[str] = []
    first = TestApp(every_minute(ran), start=START)
    async with contextlib.AsyncExitStack() as stack:
        t = await stack.enter_async_context(first)
        other = await stack.enter_async_context(second_worker(every_minute(others), t))
        assert other.worker is not None
        await t.settle()
        await t.advance("1m")
        assert (ran, others) == (["12:30"], [])
        assert (2, 0) in t.worker.shards
        t.clock._now += MINUTE  # the leader sleeps on, as a suspended machine does
        t.worker.abandon()
        await t._stop()
        for _ in range(200):
            await asyncio.sleep(0)
        assert (ran, others) == (["12:30"], ["12:31"])
        assert (2, 0) in other.worker.shards


async def test_late_runs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of very many missed moments, the latest are made up for."""
    monkeypatch.setattr(_timers, "LATE_RUNS_MAX", 3)
    ran: list[str] = []
    first = TestApp(every_minute(ran, missed="late"), start=START)
    async with first:
        pass
    first.clock.advance("1000d")
    async with continued(every_minute(ran, missed="late"), first) as t:
        await t.settle()
    assert ran == ["12:27", "12:28", "12:29"]


@pytest.mark.parametrize(
    ("expression", "last", "now", "expected"),
    [
        # nothing has passed
        ("0 9 * * *", datetime(2024, 6, 1, 9), datetime(2024, 6, 2, 8, 59), []),
        # exactly now counts
        ("0 9 * * *", datetime(2024, 6, 1, 9), datetime(2024, 6, 2, 9), ["02 09:00 CEST"]),
        # the latest three
        (
            "0 9 * * *",
            datetime(2024, 1, 1, 9),
            datetime(2024, 6, 9, 10),
            ["07 09:00 CEST", "08 09:00 CEST", "09 09:00 CEST"],
        ),
        # a time that the clock skips
        (
            "30 2 * * *",
            datetime(2024, 3, 29, 3),
            datetime(2024, 4, 1, 3),
            ["30 02:30 CET", "31 03:00 CEST", "01 02:30 CEST"],
        ),
        # a time that comes twice is run once
        (
            "30 2 * * *",
            datetime(2024, 10, 25, 3),
            datetime(2024, 10, 28, 3),
            ["26 02:30 CEST", "27 02:30 CEST", "28 02:30 CET"],
        ),
        # twice a year, and the last one long ago
        (
            "0 0 1 1,7 *",
            datetime(2023, 1, 2),
            datetime(2024, 8, 1),
            ["01 00:00 CEST", "01 00:00 CET", "01 00:00 CEST"],
        ),
    ],
)
def test_moments_between(
    expression: str, last: datetime, now: datetime, expected: list[str]
) -> None:
    """The latest moments of a stretch of time are those that would have come one after the other."""
    begin, end = (int(m.replace(tzinfo=BERLIN).timestamp() * 1_000) for m in (last, now))
    crontab = Crontab(expression, "Europe/Berlin")
    found = crontab.between(begin, end, 3)
    shown = [datetime.fromtimestamp(m / 1_000, BERLIN).strftime("%d %H:%M %Z") for m in found]
    assert shown == expected
    one_by_one, moment = [], crontab.after(begin)
    while moment <= end:
        one_by_one.append(moment)
        moment = crontab.after(moment)
    assert found == one_by_one[-3:]


async def test_a_run_that_was_lost_comes_again() -> None:
    """A shard's job and what it wrote are one event: a crash before the commit repeats both, one after it none."""
    app, _ = reading(partitions=1)
    counts = app.table("counts", key=str, value=int, default=0)
    ran: list[str] = []

    @app.crontab("* * * * *", scope="shard", missed="skip")
    async def job(moment: datetime) -> None:
        ran.append(moment.strftime("%H:%M"))
        counts["runs"] += 1

    @app.timer("1m", scope="shard")
    def tick(moment: datetime) -> None:
        ran.append(moment.strftime("tick %H:%M"))
        counts["ticks"] += 1

    async with TestApp(app, start=START) as t:
        shard = t.worker.shards[1, 0]
        t.clock.move_to(t.clock.now() + MINUTE)
        for _ in range(20):
            await asyncio.sleep(0)
        assert sorted(ran) == ["10:30", "tick 10:30"]
        shard.rewind()  # before anything was committed
        await t.settle()
        assert sorted(ran) == ["10:30", "10:30", "tick 10:30", "tick 10:30"]
        assert t.table(counts) == {"runs": 1, "ticks": 1}
        shard.rewind()
        await t.settle()
        assert t.table(counts) == {"runs": 1, "ticks": 1}


async def test_event_time_after_a_restart() -> None:
    """The moment of a timer by event time is part of the state: none is lost or repeated."""
    ran: list[int] = []

    def program() -> tuple[ms.App, ms.Topic[Order]]:
        app, orders = reading(partitions=1)

        @app.timer("1m", scope="shard", time="event")
        async def tick(moment: datetime) -> None:
            ran.append(int(moment.timestamp()) // 60)

        return app, orders

    app, orders = program()
    async with TestApp(app) as t:
        await t.send(orders, Order("a", 1.0), timestamp=100 * 60_000 + 5)
        await t.crash(lose_state=True)
        assert ran == [100]
        await t.send(orders, Order("a", 1.0), timestamp=100 * 60_000 + 6)
        assert ran == [100]
        await t.send(orders, Order("a", 1.0), timestamp=102 * 60_000)
        assert ran == [100, 102]


async def test_what_a_timer_is_given() -> None:
    """A function with a parameter is given its moment; defaults are the function's own affair."""
    app, _ = reading(partitions=1)
    seen: list[Any] = []

    @app.timer("1s")
    def with_default(number: int = 7) -> None:
        seen.append(number)

    @app.timer("1s", scope="leader")
    async def with_moment(moment: datetime) -> None:
        seen.append(moment)

    async with TestApp(app, start=1_700_000_000_000) as t:
        await t.advance("1s")
    assert sorted(seen, key=str) == [datetime(2023, 11, 14, 22, 13, 21, tzinfo=UTC), 7]


def test_two_timers_of_one_name() -> None:
    """What is stored goes by the name, so there is one of each."""
    app, _ = reading()
    app.timer("1s", name="tick")(print)
    with pytest.raises(TopologyError, match="two timers are named 'tick': give one of them name="):
        app.crontab("0 9 * * *", name="tick")(print)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"missed": "twice"}, "missed='twice' is none of once, late, skip"),
        ({"missed": "late", "scope": "worker"}, "does not go with scope='worker': nobody knows"),
        ({"scope": "cluster"}, "'cluster' is none of worker, shard, leader"),
        ({"on_error": "ignore"}, "'ignore' is none of \"stop\""),
    ],
)
def test_wrong_crontab_options(options: Any, says: str) -> None:
    """A wrong option is refused at the declaration."""
    with pytest.raises(ConfigurationError, match=says):
        ms.App("wrong").crontab("0 9 * * *", **options)(print)


async def test_a_topic_where_the_notes_are() -> None:
    """A topic of the program that has the name of ours is an error before the first event."""
    app = every_minute([])
    app.topic("timers-notes-of-2-changelog", value=int)
    with pytest.raises(TopologyError, match="is Millstream's own, for what shards remember"):
        async with TestApp(app):
            pass


@pytest.mark.parametrize(
    ("interval", "options", "says"),
    [
        (0, {}, "0 is not above 0"),
        ("-1s", {}, "'-1s' is not above 0"),
        ("often", {}, "timer: 'often' is not a duration"),
        ("1s", {"scope": "cluster"}, "'cluster' is none of worker, shard, leader"),
        ("1s", {"time": "event"}, "event time is each shard's own; add scope='shard'"),
    ],
)
def test_wrong_timers(interval: Duration, options: Any, says: str) -> None:
    """A wrong interval, scope or time is refused at the declaration."""
    with pytest.raises(ConfigurationError, match=says):
        ms.App("wrong").timer(interval, **options)


@pytest.mark.parametrize(
    ("expression", "timezone", "says"),
    [
        ("every day", "UTC", 'is not a cron expression: write five fields, for example "0 9'),
        ("60 * * * *", "UTC", "is not a cron expression"),
        ("", "UTC", "is not a cron expression"),
        ("0 9 * * *", "Mars/Olympus", "there is no time zone 'Mars/Olympus'"),
    ],
)
def test_wrong_crontabs(expression: str, timezone: str, says: str) -> None:
    """A wrong expression or time zone is refused at the declaration."""
    with pytest.raises(ConfigurationError, match=says):
        ms.App("wrong").crontab(expression, timezone=timezone)


@pytest.mark.parametrize("scope", ["worker", "leader", "shard"])
async def test_exceptions(scope: Any) -> None:
    """What a timer raises stops the worker with its name and line; earlier events stay committed."""
    app, orders = reading(partitions=1)
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(orders)
    async def count(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            counts[order.account] += 1

    @app.timer("10s", scope=scope)
    async def tick() -> None:
        if scope == "shard":
            counts["ada"] += 100
        raise ValueError("broken clock")

    t = TestApp(app)
    with pytest.raises(
        AgentError,
        match=r"timer 'tick' of \S+ raised ValueError: broken clock at .*test_timers.* Nothing of it was",
    ):
        async with t:
            await t.send(orders, Order("ada", 1.0))
            await t.advance("10s")
    again = ms.App("timers", partitions=1)
    again.topic("orders", value=Order, key_from="account")
    table = again.table("counts", key=str, value=int, default=0)
    async with continued(again, t) as t:
        assert t.table(table) == {"ada": 1}


async def test_tasks() -> None:
    """A task runs once on each worker, when its shards are ready; it may take the app."""
    app, orders = reading()
    seen: list[Any] = []

    @app.task
    async def alone() -> None:
        seen.append(app.runtime is not None)
        await orders.send(Order("ada", 1.0))

    @app.task
    async def with_app(of: ms.App) -> None:
        seen.append(of)

    async with TestApp(app) as t:
        assert seen == [True, app]
        assert t.sent(orders) == [Order("ada", 1.0)]


async def test_exception_in_a_task() -> None:
    """What a task raises stops the worker with its name and line."""
    app, _ = reading()

    @app.task
    async def broken() -> None:
        raise ValueError("no")

    with pytest.raises(
        AgentError, match=r"task 'broken' raised ValueError: no at .*test_timers\.py:\d+"
    ):
        async with TestApp(app):
            pass


def test_tasks_are_async() -> None:
    """A task is an async function."""

    def plain() -> None:
        pass

    with pytest.raises(ConfigurationError, match="task 'plain' is not an async function"):
        ms.App("t").task(plain)


async def refuse(epoch: Epoch) -> CommitResult:
    """As a group does that has moved on."""
    raise ms.errors.IllegalGenerationError("the group has moved on")


@pytest.mark.parametrize("refused", [False, True])
async def test_a_run_waits_with_what_it_has_seen(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has seen an unfinished event's work is not committed before it, and neither is that it has run.

    Nor where it has seen none, and its epoch was refused: it is noted with what it has written, or not at all.
    """
    app = ms.App("timers", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    counts = app.table("counts", key=str, value=int, default=0)
    hold = asyncio.Event()

    @app.agent(orders)
    async def slow(stream: ms.Stream[Order]) -> None:
        async for _ in stream:
            counts["all"] += 100
            await hold.wait()

    @app.crontab("* * * * *", scope="shard")
    async def job() -> None:
        counts[its] += 1

    its = "job" if refused else "all"
    total = {"all": 100, "job": 1} if refused else {"all": 101}
    async with TestApp(app, start=START) as t:
        shard = t.worker.shards[1, 0]
        await orders.send(Order("a", 1.0))
        for moment, wanted in ((t.clock.now(), {"all": 100}), (t.clock.now() + MINUTE, total)):
            async with t.worker.committer.lock:
                t.clock.move_to(moment)
                for _ in range(1_000):
                    if shard.own_parts["counts"].dirty == wanted:
                        break
                    await asyncio.sleep(0.001)
                assert shard.own_parts["counts"].dirty == wanted
        if refused:
            with monkeypatch.context() as patch:
                patch.setattr(shard._options.transport, "commit", refuse)
                await t.worker.committer.commit()
        await t.worker.committer.commit()
        hold.set()
        await t.crash()
        await t.settle()
        assert t.table(counts) == total
