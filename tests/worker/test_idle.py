"""``idle_timeout``: event time while nothing comes."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

import millstream as ms
from millstream.app._runtime import Runtime
from millstream.errors import ConfigurationError, LogUnavailableError
from millstream.records import TopicPartition
from millstream.state.memory import MemoryBackend
from millstream.testing import TestApp
from millstream.transports.base import OffsetAndMetadata
from millstream.transports.memory import MemoryTransport
from millstream.worker._passage import Passage
from tests.kit import continued

T2013 = int(datetime(2013, 1, 1, tzinfo=UTC).timestamp() * 1_000)


class Click(msgspec.Struct):
    user: str
    at: int


def counting(
    *, topic: Any = None, window: Any = None
) -> tuple[ms.App, ms.Topic[Click], Any, list[tuple[str, int, int]]]:
    """Clicks counted in minutes; what is closed is noted as user, seconds since 2013 began, and count."""
    app = ms.App("clicks", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at", idle_timeout=topic)
    counts = app.table("counts", key=str, value=int, default=0).tumbling(
        "1m", grace="10s", retention="1h", idle_timeout=window
    )
    closed: list[tuple[str, int, int]] = []

    @app.agent(clicks)
    async def count(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            counts[click.user] += 1

    @counts.on_close
    async def note(key: str, window: ms.Window, value: int) -> None:
        closed.append((key, (window.start - T2013) // 1_000, value))

    return app, clicks, counts, closed


@pytest.mark.parametrize("where", ["topic", "window"])
async def test_the_last_window_closes(where: str) -> None:
    """Silence closes the last window, by the time that has passed and not by the wall clock's date."""
    options: dict[str, Any] = {where: "20s"}
    app, clicks, _, closed = counting(**options)
    async with TestApp(app) as t:
        await t.send(clicks, Click("ada", T2013 + 5_000))
        await t.advance("59s")  # at 5 + 40
        assert closed == []
        await t.advance("1s")  # at 65
        assert closed == []
        await t.advance("20s")  # at 85: the end, 60, and 10 of grace are over
        assert closed == [("ada", 0, 1)]
        (shard,) = t.worker.shards.values()
        assert shard.own_parts["counts"].stream_time == T2013 + 85_000  # type: ignore[attr-defined]


async def test_off_by_default() -> None:
    """Without it event time stands still, however long."""
    app, clicks, _, closed = counting()
    async with TestApp(app) as t:
        await t.send(clicks, Click("ada", T2013))
        await t.advance("10m")
        assert closed == []


async def test_each_record_begins_anew() -> None:
    """Time moves only after the whole time-out without a record, each time."""
    app, clicks, _, closed = counting(topic="20s")
    async with TestApp(app) as t:
        for n in range(10):
            await t.send(clicks, Click("ada", T2013 + n))
            await t.advance("19s")
        (shard,) = t.worker.shards.values()
        assert shard.stream_time == T2013 + 9
        await t.advance("1s")
        assert shard.stream_time == T2013 + 9 + 20_000
        assert closed == []


async def test_later_records_and_late_ones() -> None:
    """A record from beyond the moved time goes on from there; one from before is late."""
    app, clicks, counts, closed = counting(topic="1m")
    async with TestApp(app) as t:
        await t.send(clicks, Click("ada", T2013))
        await t.advance("2m")
        assert closed == [("ada", 0, 1)]
        await t.send(clicks, Click("ada", T2013 + 59_000))
        await t.send(clicks, Click("ada", T2013 + 130_000))
        shown = {(w.start - T2013) // 1_000: n for (_, w), n in t.table(counts).items()}
        assert shown == {0: 1, 120: 1}


@pytest.mark.parametrize("lose_state", [False, True])
async def test_a_restart_does_not_go_back(lose_state: bool) -> None:
    """Moved time is committed, and goes on after a restart although no record comes to begin with."""
    app, clicks, _, closed = counting(topic="20s")
    async with TestApp(app) as t:
        await t.send(clicks, Click("ada", T2013))
        await t.advance("40s")
        await t.crash(lose_state=lose_state)
        (shard,) = t.worker.shards.values()
        assert shard.own_parts["counts"].stream_time == T2013 + 40_000  # type: ignore[attr-defined]
        assert shard.stream_time == T2013 + 40_000
        await t.advance("39s")
        assert closed == []
        await t.advance("1s")
        assert closed == [("ada", 0, 1)]
        await t.crash(lose_state=lose_state)
        await t.advance("5m")
        assert closed == [("ada", 0, 1)]


async def test_windows_of_others() -> None:
    """A table goes by the inputs of the agents that use it: busy or steady neighbours do not matter."""
    app, clicks, _, closed = counting(topic="20s")
    steady = app.topic("steady", value=Click, key_from="user", timestamp="at")
    others = app.table("others", key=str, value=int, default=0).tumbling("1m")

    @app.agent(steady)
    async def follow(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            others[click.user] += 1

    async with TestApp(app) as t:
        await t.send(clicks, Click("ada", T2013))
        for n in range(20):
            await t.send(steady, Click("bob", T2013 + n))
            await t.advance("5s")
        (shard,) = t.worker.shards.values()
        assert closed == [("ada", 0, 1)]
        assert shard.own_parts["others"].stream_time == T2013 + 19  # type: ignore[attr-defined]
        assert shard.stream_time_of("others") == T2013 + 19
        assert shard.stream_time_of("counts") == T2013 + 100_000
        await t.advance("1m")
        assert shard.own_parts["others"].stream_time == T2013 + 19  # type: ignore[attr-defined]
        assert shard.stream_time_of("others") == T2013 + 19
        assert shard.stream_time_of("counts") == T2013 + 160_000


async def test_an_outage_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the log cannot tell whether there is more, event time stands still."""
    app, clicks, _, closed = counting(topic="20s")
    async with TestApp(app) as t:
        await t.send(clicks, Click("ada", T2013))
        transport = t._running.transport

        async def unavailable(tps: object) -> Any:
            raise LogUnavailableError("away")

        async def caught_up() -> bool:
            return True

        with monkeypatch.context() as patch:
            patch.setattr(transport, "end_offsets", unavailable)
            patch.setattr(t, "_caught_up", caught_up)
            await t.advance("10m")
        assert closed == []
        await t.advance("100s")
        assert closed == [("ada", 0, 1)]


async def test_unfinished_events_are_no_silence() -> None:
    """An event that waits for something keeps time where it is."""
    app = ms.App("slow", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at", idle_timeout="10s")
    counts = app.table("counts", key=str, value=int, default=0).tumbling("1m", retention="1h")
    closed: list[int] = []

    @app.agent(clicks)
    async def count(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            counts[click.user] += 1
            await app.clock.sleep(300)
            counts[click.user] += 1

    @counts.on_close
    async def note(key: str, window: ms.Window, value: int) -> None:
        closed.append(value)

    async with TestApp(app) as t:
        await t.send(clicks, Click("ada", T2013))
        await t.advance("299s")
        assert closed == []
        await t.advance("1s")
        assert closed == []
        await t.advance("1m")
        assert closed == [2]


async def test_timers_and_expiry() -> None:
    """Timers by event time run, and entries expire, while a whole shard is silent."""
    app = ms.App("t", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at", idle_timeout="10s")
    last = app.table("last", key=str, value=int, ttl="1m")
    ticks: list[int] = []

    @app.agent(clicks)
    async def note(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            last[click.user] = click.at

    @app.timer("30s", scope="shard", time="event")
    async def tick() -> None:
        event = last.get("ada")
        ticks.append(0 if event is None else 1)

    async with TestApp(app) as t:
        await t.send(clicks, Click("ada", T2013))
        assert ticks == [1]
        await t.advance("50s")
        assert ticks == [1, 1]
        await t.advance("40s")
        assert ticks == [1, 1, 0, 0]
        assert t.table(last) == {}


def test_wrong_values() -> None:
    """A time-out above 0, as a duration."""
    app = ms.App("x")
    with pytest.raises(ConfigurationError, match="table 't': idle_timeout has to be above 0"):
        app.table("t").tumbling("1m", idle_timeout=0)
    with pytest.raises(ConfigurationError, match="table 'u': idle_timeout: 'late'"):
        app.table("u").session("1m", idle_timeout="late")


@pytest.mark.parametrize("restart", [False, True])
async def test_streams(restart: bool) -> None:
    """Final results of streams come out over a silence of their topics, also after a restart."""
    app = ms.App("clicks", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at", idle_timeout="20s")
    out = app.topic("out", value=int)
    counted = app.stream(clicks).group_by().tumbling("1m", grace="10s").count(emit="final")
    counted.changes().to(out)
    async with TestApp(app) as t:
        await t.send(clicks, Click("ada", T2013))
        await t.advance("20s")
        if restart:
            await t.crash(lose_state=True)
        await t.advance("40s")
        assert t.sent(out) == []
        await t.advance("20s")
        assert t.sent(out) == [1]


@pytest.mark.parametrize("first", ["early", "late"])
async def test_silence_counts_once_where_agents_become_connected(first: str) -> None:
    """A timer that uses tables of both connects them; the silence before that has moved time already."""
    app = ms.App("clicks", partitions=1)
    tables = {}
    topics = {}
    for name in ("early", "late"):
        topic = app.topic(name, value=Click, key_from="user", timestamp="at", idle_timeout="20s")
        table = app.table(f"{name}-counts", key=str, value=int, default=0)
        topics[name], tables[name] = topic, table

        @app.agent(topic, name=f"count-{name}")
        async def count(stream: ms.Stream[Click], table: ms.Table[str, int] = table) -> None:
            async for click in stream:
                table[click.user] += 1

    @app.timer("95s", scope="shard")
    async def both() -> None:
        for name in sorted(tables, reverse=first == "late"):
            tables[name].get("ada")

    async with TestApp(app) as t:
        await t.send(topics["early"], Click("ada", T2013))
        await t.advance("30s")
        await t.send(topics["late"], Click("ada", T2013))
        await t.advance("64s")
        (shard,) = t.worker.shards.values()
        assert len(shard.subtopologies) == 2
        assert shard.stream_time_of("early-counts") == T2013 + 80_000
        await t.advance("26s")
        assert len(shard.subtopologies) == 1
        assert T2013 + 100_000 <= shard.stream_time_of("early-counts") <= T2013 + 120_000


# between the stages of a program ------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("moves", [1, 2])
async def test_windows_behind_other_keys(partitions: int, moves: int) -> None:
    """Windows close over a silence of the source also where records have moved to the shards of other keys."""
    app = ms.App("shop", partitions=partitions)
    numbers = app.topic("numbers", value=int, idle_timeout="5s")
    out = app.topic("out", value=int)
    stream: Any = app.stream(numbers)
    if moves == 2:
        stream = stream.key_by(str).repartition(name="first")
    groups = stream.group_by(lambda number: f"k{number}", name="second")
    groups.tumbling("1m", grace="10s").count(emit="final").to(out)
    async with TestApp(app) as t:
        await t.send(numbers, 1, key="x", timestamp=T2013)
        await t.send(numbers, 2, key="y", timestamp=T2013 + 1_000)
        await t.advance("65s")
        assert t.records(out) == []
        await t.crash(lose_state=True)
        await t.advance("5s")
        assert sorted(t.records(out)) == [("k1", 1), ("k2", 1)]
        await t.advance("5m")
        assert len(t.records(out)) == 2


@pytest.mark.parametrize("partitions", [1, 3])
async def test_joins_behind_other_keys(partitions: int) -> None:
    """A row without a match comes out over a silence of both sides, which lasts as long as the longer time-out."""
    app = ms.App("shop", partitions=partitions)
    left = app.topic("left", value=str, idle_timeout="5s")
    right = app.topic("right", value=str, idle_timeout="20s")
    out = app.topic("out", value=str)
    sides = [app.stream(side).key_by(lambda text: text[0], type=str) for side in (left, right)]
    joined = sides[0].join(
        sides[1], "{},{}".format, how="outer", within="10s", grace="5s", value=str, name="joined"
    )
    joined.to(out)
    async with TestApp(app) as t:
        await t.send(left, "a1", key="x", timestamp=T2013)
        await t.send(right, "b1", key="y", timestamp=T2013)
        await t.advance("19s")
        assert t.records(out) == []
        await t.advance("1s")
        assert sorted(t.records(out)) == [("a", "a1,None"), ("b", "None,b1")]


async def test_a_quiet_key_behind_a_busy_source() -> None:
    """Each shard goes by its own partition: a key that gets nothing more closes while others go on."""
    app = ms.App("shop", partitions=3)
    numbers = app.topic("numbers", value=int, idle_timeout="5s")
    out = app.topic("out", value=int)
    groups = app.stream(numbers).group_by(lambda number: f"k{number}", name="groups")
    groups.tumbling("1m").count(emit="final").to(out)
    async with TestApp(app) as t:
        await t.send(numbers, 1, timestamp=T2013)
        for _ in range(25):
            await t.send(numbers, 2, timestamp=T2013)
            await t.advance("3s")
        assert t.records(out) == [("k1", 1)]
        await t.advance("1m")
        assert sorted(t.records(out)) == [("k1", 1), ("k2", 25)]


async def test_a_stage_that_is_behind_is_no_silence() -> None:
    """While the stage before has records that are not through, event time behind it stands still."""
    app = ms.App("shop", partitions=1)
    numbers = app.topic("numbers", value=int, idle_timeout="5s")
    out = app.topic("out", value=int)

    async def slowly(number: int) -> int:
        if number > 1:
            await app.clock.sleep(300)
        return number

    groups = app.stream(numbers).map(slowly).group_by(lambda number: "all", name="groups")
    groups.tumbling("1m", grace="10s").count(name="counts", emit="final").to(out)
    async with TestApp(app) as t:
        await t.send(numbers, 1, timestamp=T2013)
        await t.send(numbers, 2, timestamp=T2013 + 1_000)
        await t.advance("299s")
        (shard,) = t.worker.shards.values()
        assert shard.own_parts["counts"].stream_time == T2013  # type: ignore[attr-defined]
        await t.advance("1s")
        await t.advance("65s")
        assert t.sent(out) == []
        await t.advance("5s")
        assert t.sent(out) == [2]


async def test_what_is_held_back_is_not_late() -> None:
    """Windows of final results wait for records: by the time that the first ones close, theirs would have passed."""
    app = ms.App("shop", partitions=1)
    numbers = app.topic("numbers", value=int, idle_timeout="5s")
    finals = app.topic("finals", value=int)
    first = app.stream(numbers).group_by().tumbling("1m").count(name="first", emit="final")
    counts: Any = first.changes().map_keys(lambda windowed: windowed.key, type=str)
    counts.to(finals)
    counts.group_by(lambda count: "all", name="all").tumbling("10s").sum(name="second")
    async with TestApp(app) as t:
        await t.send(numbers, 1, key="x", timestamp=T2013)
        await t.send(numbers, 1, key="x", timestamp=T2013 + 60_000)
        await t.advance("5m")
        assert t.sent(finals) == [1, 1]
        (shard,) = t.worker.shards.values()
        assert shard.own_parts["second"].stream_time == T2013 + 60_000  # type: ignore[attr-defined]


class Log:
    """The positions and ends that a test gives."""

    def __init__(self) -> None:
        self.positions: dict[str, int] = {}
        self.ends: dict[str, int] = {}

    async def committed(self, group: str, tps: Any, *, settled: bool) -> Any:
        assert not settled
        return {tp: OffsetAndMetadata(self.positions[tp.topic], "") for tp in tps}

    async def end_offsets(self, tps: Any) -> Any:
        return {tp: self.ends[tp.topic] for tp in tps}

    async def start_offsets(self, tps: Any) -> Any:
        return dict.fromkeys(tps, 0)


async def test_stages_that_never_rest() -> None:
    """What the source had at one look is through at a later one, and one stage after the other."""
    app = ms.App("shop", partitions=1)
    numbers = app.topic("a", value=int, idle_timeout="5s")
    moved = app.stream(numbers).key_by(str).repartition(name="b").key_by(str).repartition(name="c")
    moved.group_by().count(name="t")
    async with TestApp(app) as t:
        log: Any = Log()
        b, c = "shop-b-repartition", "shop-c-repartition"
        passage = Passage(t.worker.plan.stages, group="shop", transport=log)
        assert passage.until("a", 7) == 7
        log.positions, log.ends = {"a": 10, b: 10}, {"a": 11, b: 11}
        await passage.look([c], 1)
        assert passage.until(b, 1) == passage.until(c, 1) == -math.inf
        log.positions, log.ends = {"a": 11, b: 11}, {"a": 12, b: 12}
        await passage.look(
            [c], 2
        )  # b got more since the first look, of which some is the source's from then
        assert (passage.until(b, 2), passage.until(c, 2)) == (1, -math.inf)
        log.positions, log.ends = {"a": 12, b: 12}, {"a": 13, b: 13}
        await passage.look([c], 3)
        assert (passage.until(b, 3), passage.until(c, 3)) == (2, 1)
        log.positions = log.ends
        await passage.look([c], 4)
        assert passage.until(b, 4) == passage.until(c, 4) == 4


async def test_the_end_of_an_input_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are no records before it, but the ends of transactions: or a stage would be behind for ever."""
    app = ms.App("shop", partitions=1)
    numbers = app.topic("numbers", value=int, idle_timeout="50ms")
    app.stream(numbers).group_by(lambda number: number, name="groups").count(name="counts")
    transport, tp = MemoryTransport(clock=app.clock), TopicPartition("numbers", 0)

    async def committed(offset: int) -> None:
        async with asyncio.timeout(30):
            while True:
                found = await transport.committed("shop", [tp])
                if tp in found and found[tp].offset == offset:
                    return
                await asyncio.sleep(0.01)

    async with Runtime(app, transport=transport, state=MemoryBackend()).running() as runtime:
        assert runtime.worker is not None
        await runtime.worker.ready.wait()
        lane = runtime.worker.shards[1, 0].lanes["stream:numbers"]
        add = lane.add
        monkeypatch.setattr(lane, "add", lambda fetched: add(fetched._replace(data=b"")))
        await numbers.send(1)
        await committed(1)


# added to a program that has run ------------------------------------------------------------------


@pytest.mark.parametrize("merged", [False, True])
async def test_added_to_a_stream(merged: bool) -> None:
    """Windows of before close, although no record comes to tell who fills them."""

    def program(idle: Any, merged: bool) -> tuple[ms.App, ms.Topic[int], ms.Topic[int]]:
        app = ms.App("shop", partitions=1)
        numbers = app.topic("numbers", value=int, idle_timeout=idle)
        out = app.topic("out", value=int)
        stream: Any = app.stream(numbers)
        if merged:  # what reads them has another name then
            stream = stream.merge(app.stream(app.topic("others", value=int)))
        stream.group_by().tumbling("1m").count(name="counts", emit="final").to(out)
        return app, numbers, out

    app, numbers, _ = program(None, False)
    async with TestApp(app) as t:
        await t.send(numbers, 1, key="x", timestamp=T2013)
    app, _, out = program("5s", merged)
    async with continued(app, t) as later:
        await later.advance("55s")
        assert later.sent(out) == []
        await later.advance("5s")
        assert later.sent(out) == [1]


@pytest.mark.parametrize("where", ["topic", "window"])
async def test_added_to_an_agent(where: str) -> None:
    """The same where an agent counts: it was noted that it does."""
    app, clicks, _, closed = counting()
    async with TestApp(app) as t:
        await t.send(clicks, Click("ada", T2013))
    options: dict[str, Any] = {where: "20s"}
    app, _, _, closed = counting(**options)
    async with continued(app, t) as later:
        await later.advance("79s")
        assert closed == []
        await later.advance("1s")
        assert closed == [("ada", 0, 1)]


def two_agents(
    name: str,
    second: str = "follow",
    *,
    both: bool = False,
    topic: Any = None,
    other: Any = None,
    window: Any = None,
) -> tuple[ms.App, ms.Topic[int], ms.Topic[int], list[int]]:
    """Numbers counted in minutes by an agent of this name, and another agent beside it, which may do the same."""
    app = ms.App("shop", partitions=1)
    numbers = app.topic("numbers", value=int, idle_timeout=topic)
    others = app.topic("others", value=int, idle_timeout=other)
    counts = app.table("counts", key=str, value=int, default=0).tumbling("1m", idle_timeout=window)
    closed: list[int] = []

    @app.agent(numbers, name=name)
    async def count(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            counts["all"] += 1

    @app.agent(others, name=second)
    async def follow(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            if both:
                counts["all"] += 1

    @counts.on_close
    async def note(key: str, window: ms.Window, value: int) -> None:
        closed.append(value)

    return app, numbers, others, closed


async def test_an_agent_that_is_gone() -> None:
    """It is not waited for, nor is one that reads the same topic under another name and leaves the table alone."""
    app, numbers, others, _ = two_agents("count", "also", both=True)
    async with TestApp(app) as t:
        await t.send(numbers, 1, key="a", timestamp=T2013)
        await t.send(others, 1, key="a", timestamp=T2013)
    app, _, others, closed = two_agents("count", "follow", topic="20s", other="20s")
    async with continued(app, t) as later:
        for _ in range(6):
            await later.send(others, 1, key="a", timestamp=T2013)
            await later.advance("10s")
        assert closed == [2]


@pytest.mark.parametrize("idle", [{"topic": "20s", "other": "20s"}, {"window": "20s"}], ids=str)
@pytest.mark.parametrize("lose_state", [False, True])
async def test_an_agent_that_has_another_name(idle: dict[str, Any], lose_state: bool) -> None:
    """The windows that it filled under its old one close as well, when all inputs are silent."""
    app, numbers, _, _ = two_agents("count", **idle)
    async with TestApp(app) as t:
        await t.send(numbers, 1, key="a", timestamp=T2013)
    app, numbers, others, closed = two_agents("tally", **idle)
    async with continued(app, t) as later:
        if lose_state:
            await later.crash(lose_state=True)
        for _ in range(10):
            await later.send(others, 1, key="a", timestamp=T2013)
            await later.advance("10s")
        assert closed == []
        await later.advance("50s")
        assert closed == [1]
        await later.send(numbers, 1, key="a", timestamp=T2013 + 180_000)
        await later.advance("80s")
        assert closed == [1, 1]


@pytest.mark.parametrize("idle", [{"other": "20s"}, {"topic": "20s"}], ids=str)
async def test_not_all_inputs_have_a_time_out(idle: dict[str, Any]) -> None:
    """Then nobody knows whether the agent that is gone had one, and windows wait for records."""
    app, numbers, _, _ = two_agents("count")
    async with TestApp(app) as t:
        await t.send(numbers, 1, key="a", timestamp=T2013)
    app, _, _, closed = two_agents("tally", **idle)
    async with continued(app, t) as later:
        await later.advance("10m")
        assert closed == []


async def test_who_reads_windows_does_not_hold_them_open() -> None:
    """An agent that looks at the windows of a stream again and again brings them no time, and is none of their inputs."""
    app = ms.App("shop", partitions=1)
    numbers = app.topic("numbers", value=int, idle_timeout="5s")
    asked, out = app.topic("asked", value=str, key_from=str), app.topic("out", value=int)
    windows = app.stream(numbers).group_by().tumbling("1m").count(name="counts", emit="final")
    windows.changes().to(out)

    @app.agent(asked)
    async def ask(stream: ms.Stream[str]) -> None:
        async for key in stream:
            list(windows[key].windows())

    async with TestApp(app) as t:
        await t.send(numbers, 1, key="a", timestamp=60_000)
        for _ in range(40):
            await t.send(asked, "a", timestamp=60_000)
            await t.advance("3s")
        assert [record.value for record in t.records(out)] == [1]
