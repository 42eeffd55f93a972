"""Agents of one shard that share no table: none waits for another, keeps journals for it, or shares its time."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import millstream as ms
from millstream.context import Scope
from millstream.errors import IllegalGenerationError, RecordTooLargeError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.testing import TestApp
from millstream.transports.batch import RecordPack
from millstream.worker import Shard, _subtopology, _worker
from millstream.worker._metadata import decode_metadata

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from millstream.transports.base import CommitResult, Epoch

T2013 = int(datetime(2013, 1, 1, tzinfo=UTC).timestamp() * 1_000)
HOUR_MS = 3_600_000

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _no_wait_at_the_end(monkeypatch: Patch) -> None:
    """Workers here stop with events in progress, which wait for a clock that nobody moves any more."""
    monkeypatch.setattr(_worker, "STOP_TIMEOUT_S", 0.01)


class Click(msgspec.Struct):
    user: str
    at: int


@dataclass
class Program:
    """Slow and quick agents; ``counts`` and ``others`` are tables of the quick ones."""

    app: ms.App
    clicks: ms.Topic[Click]
    orders: ms.Topic[Click]
    counts: ms.Table[str, int]
    others: ms.Table[str, int]


def program(*, concurrency: int = 1, **settings: Any) -> Program:
    """Two agents on one topic, of which one waits in the middle of its events, and one on a topic of its own."""
    app = ms.App("apart", partitions=1, **settings)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at")
    orders = app.topic("orders", value=Click, key_from="user", timestamp="at")
    waits = app.table("waits", key=str, value=int, default=0)
    counts = app.table("counts", key=str, value=int, default=0)
    others = app.table("others", key=str, value=int, default=0)

    @app.agent(orders, concurrency=concurrency)
    async def slow(stream: ms.Stream[Click]) -> None:
        async for order in stream:
            waits[order.user] += 1
            await app.clock.sleep(300)
            waits[order.user] += 1

    @app.agent(orders)
    async def beside(stream: ms.Stream[Click]) -> None:
        async for order in stream:
            others[order.user] += 1

    @app.agent(clicks)
    async def quick(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            counts[click.user] += 1

    return Program(app, clicks, orders, counts, others)


async def no_journals(concurrency: int) -> None:
    made = program(concurrency=concurrency)
    async with TestApp(made.app) as t:
        (shard,) = t.worker.shards.values()
        await t.send_many(made.orders, [Click(f"user-{n}", T2013 + n) for n in range(8)])
        await t.send_many(made.clicks, [Click("ada", T2013 + n) for n in range(8)])
        assert shard.in_progress()
        assert shard.lanes["slow"].journaled
        assert not shard.lanes["quick"].journaled
        assert not shard.lanes["beside"].journaled
        assert t.table(made.counts) == {"ada": 8}
        assert len(t.table(made.others)) == 8
        assert shard.input_positions.settled["quick", TopicPartition("clicks", 0)] == 8
        assert shard.input_positions.settled["beside", TopicPartition("orders", 0)] == 8
        assert shard.input_positions.settled["slow", TopicPartition("orders", 0)] == 0


async def no_waiting() -> None:
    made = program()
    async with TestApp(made.app) as t:
        (shard,) = t.worker.shards.values()
        await t.send(made.orders, Click("ada", T2013))
        shard.subtopology_of("slow").close_gate("a test")
        await t.send(made.clicks, Click("ada", T2013))
        assert t.table(made.counts) == {"ada": 1}


async def no_share_of_bytes() -> None:
    made = program(epoch_bytes_max=1_000)
    async with TestApp(made.app) as t:
        (shard,) = t.worker.shards.values()
        await t.send(made.orders, Click("ada", T2013))
        stuck: Any = shard.subtopology_of("slow")
        stuck.epoch_bytes, stuck.cut = 1_000_000, lambda positions: None
        for n in range(8):
            await t.send(made.clicks, Click("ada", T2013 + n))
        assert t.table(made.counts) == {"ada": 8}
        assert not shard.subtopology_of("quick").is_closed_by("epoch full")


async def test_bytes_given_back() -> None:
    """What a refused epoch gives back counts again, and not as output of the event that is at hand."""
    made = program(epoch_bytes_max=1_000)
    async with TestApp(made.app) as t:
        (shard,) = t.worker.shards.values()
        await t.send(made.clicks, Click("ada", T2013))
        quick = shard.subtopology_of("quick")
        scope: Any = SimpleNamespace(journal=None)
        record = OutgoingRecord(T2013, b"k", b"v" * 999, [])
        refused = RecordPack([record] * 2 * _subtopology.EVENT_OUTPUT_EPOCHS)
        tp = TopicPartition("clicks", 0)
        quick._full()
        before = quick.epoch_bytes
        quick.give_back(_subtopology.Share(quick, {}, {tp: refused}, [], [], T2013))
        assert quick.epoch_bytes == before + refused.size
        assert quick.epoch_bytes < quick.epoch_bytes_watch
        quick.filling(scope)
        quick.sent[tp].extend(refused)
        with pytest.raises(RecordTooLargeError, match="the output of this event"):
            quick.filling(scope)
        quick.sent.clear()


async def own_time() -> None:
    made = program()
    async with TestApp(made.app) as t:
        (shard,) = t.worker.shards.values()
        await t.send(made.clicks, Click("ada", T2013))
        await t.send(made.orders, Click("ada", T2013 + HOUR_MS))
        assert shard.stream_time_of("counts") == T2013
        assert shard.stream_time_of("others") == T2013 + HOUR_MS
        await t.crash()
        (shard,) = t.worker.shards.values()
        assert shard.subtopology_of("quick").stream_time == T2013
        assert shard.subtopology_of("beside").stream_time == T2013 + HOUR_MS


async def own_windows() -> None:
    """One that takes long to close a window keeps nobody else's windows open."""
    made = program()
    app = made.app
    closed = []
    long = app.table("long", key=str, value=int, default=0).tumbling("1m")
    short = app.table("short", key=str, value=int, default=0).tumbling("1m")

    @app.agent(made.orders)
    async def count_long(stream: ms.Stream[Click]) -> None:
        async for order in stream:
            long[order.user] += 1

    @app.agent(made.clicks)
    async def count_short(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            short[click.user] += 1

    @long.on_close
    async def wait(key: str, window: ms.Window, value: int) -> None:
        await app.clock.sleep(300)

    @short.on_close
    async def note(key: str, window: ms.Window, value: int) -> None:
        closed.append(value)

    async with TestApp(app) as t:
        for topic in (made.orders, made.clicks):
            await t.send_many(topic, [Click("ada", T2013), Click("ada", T2013 + 60_000)])
        await t.send(made.clicks, Click("ada", T2013 + 60_001))
        assert closed == [1]
        assert t.table(made.counts) == {"ada": 3}


CHECKS: list[Callable[[], Awaitable[None]]] = [
    lambda: no_journals(1),
    lambda: no_journals(20),
    no_waiting,
    no_share_of_bytes,
    own_time,
    own_windows,
]
NAMES = ["no journals", "concurrency", "no waiting", "no share of bytes", "own time", "own windows"]


@pytest.mark.parametrize("check", CHECKS, ids=NAMES)
async def test_apart(check: Callable[[], Awaitable[None]], monkeypatch: Patch) -> None:
    """A slow agent costs the others of its shard nothing."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 5)
    await check()


@pytest.mark.parametrize("check", CHECKS, ids=NAMES)
async def test_found(check: Callable[[], Awaitable[None]], monkeypatch: Patch) -> None:
    """Where everything in a shard is connected, each of the checks shows it."""
    find = Shard.subtopology_of

    def all_in_one(self: Shard, name: str) -> Any:
        found = find(self, "all")
        found.members.add(name)
        self._of[name] = found
        return found

    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 5)
    monkeypatch.setattr(Shard, "subtopology_of", all_in_one)
    with pytest.raises((AssertionError, TimeoutError)):
        await asyncio.wait_for(check(), 5)


async def test_connected_by_tables(monkeypatch: Patch) -> None:
    """Those who use one table are connected, also by way of others, from when they use it."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 5)
    made = program()
    app = made.app
    meeting = app.table("meeting", key=str, value=int, default=0)

    @app.agent(made.clicks)
    async def between(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            if click.user == "bob":
                made.counts[click.user] += 1
                meeting[click.user] += 1

    @app.agent(made.orders)
    async def far(stream: ms.Stream[Click]) -> None:
        async for order in stream:
            meeting[order.user] += 1

    async with TestApp(app) as t:
        (shard,) = t.worker.shards.values()
        await t.send_many(made.clicks, [Click("ada", T2013 + n) for n in range(8)])
        await t.send(made.orders, Click("ada", T2013 + HOUR_MS))
        quick, farther = shard.subtopology_of("quick"), shard.subtopology_of("far")
        assert quick is not farther
        assert not quick.journaled
        await t.send(made.clicks, Click("bob", T2013 + 9))
        assert quick.current() is farther.current() is shard.subtopology_of("between")
        assert shard.stream_time_of("counts") == T2013 + HOUR_MS
        assert shard.subtopology_of("slow") is not quick.current()
        assert t.table(made.counts) == {"ada": 8, "bob": 2}
        assert t.table(meeting) == {"ada": 1, "bob": 1}


async def test_an_event_in_the_middle_is_waited_for_by_the_commit_alone(
    monkeypatch: Patch,
) -> None:
    """A rare wait in an agent without journals keeps connected ones out of the epochs, and nobody from working."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 5)
    app = ms.App("rare", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at")
    seen: Counter[tuple[str, int]] = Counter()
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(clicks)
    async def rare(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            counts[click.user] += 1
            if click.user == "wait":
                await app.clock.sleep(300)
            counts[click.user] += 1

    @app.agent(clicks)
    async def other(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            seen[click.user, counts[click.user]] += 1

    async with TestApp(app) as t:
        (shard,) = t.worker.shards.values()
        await t.send_many(clicks, [Click("ada", T2013 + n) for n in range(8)])
        assert not shard.journaled
        await t.send(clicks, Click("wait", T2013))
        await t.send_many(clicks, [Click("ada", T2013 + n) for n in range(8)])
        assert seen.total() == 17
        assert shard.subtopology_of("rare").gate.is_set()
        assert shard.input_positions.settled["other", TopicPartition("clicks", 0)] <= 9
        await t.advance("5m")
        assert shard.input_positions.settled["other", TopicPartition("clicks", 0)] == 17
        assert t.table(counts) == {"ada": 32, "wait": 2}


async def test_windows_are_closed_once_where_a_callback_connects_their_tables() -> None:
    """Whoever closes windows of the one and of the other does not meet."""
    app = ms.App("closing", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at")
    orders = app.topic("orders", value=Click, key_from="user", timestamp="at")
    notes = app.table("met", key=str, value=int, default=0)
    by_click = app.table("by_click", key=str, value=int, default=0).tumbling("1m")
    by_order = app.table("by_order", key=str, value=int, default=0).tumbling("1m")
    closed: list[str] = []

    @app.agent(clicks)
    async def click_agent(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            by_click[click.user] += 1

    @app.agent(orders)
    async def order_agent(stream: ms.Stream[Click]) -> None:
        async for order in stream:
            notes[order.user] += 1
            by_order[order.user] += 1

    @by_click.on_close
    async def close_clicks(key: str, window: ms.Window, value: int) -> None:
        closed.append(key)
        notes[key] += 1
        await app.clock.sleep(10)

    @by_order.on_close
    async def close_orders(key: str, window: ms.Window, value: int) -> None:
        closed.append(f"order of {key}")

    async with TestApp(app) as t:
        (shard,) = t.worker.shards.values()
        await t.send_many(clicks, [Click(user, T2013) for user in ("ada", "bob", "eve")])
        await t.send(orders, Click("ada", T2013))
        await t.send(clicks, Click("ada", T2013 + 60_000))
        assert closed == ["ada"]
        assert shard.subtopology_of("click_agent") is shard.subtopology_of("order_agent")
        for table in ("by_click", "by_order"):
            part: Any = shard.own_parts[table]
            part.advance(60_000 if table == "by_order" else 0)
            part.begin_work()  # an update that waits for something has begun before
            part.end_work()
        for _ in range(6):
            await t.advance("10s")
        assert closed[0] == "ada"
        assert Counter(closed) == {"ada": 1, "bob": 1, "eve": 1, "order of ada": 1}


@pytest.mark.parametrize("quiet_events", [5, 2_000])
async def test_time_is_committed_with_what_has_brought_it(
    quiet_events: int, monkeypatch: Patch
) -> None:
    """What stays out of the epochs is processed again after a crash, in the time that it had."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", quiet_events)
    app = ms.App("timely", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at")
    counts = app.table("counts", key=str, value=int, default=0)
    others = app.table("others", key=str, value=int, default=0)

    @app.agent(clicks)
    async def rare(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            counts[click.user] += 1
            if click.user == "wait":
                await app.clock.sleep(300)

    @app.agent(clicks)
    async def tied(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            counts["wait"] += 1
            counts[click.user] += 1

    @app.agent(clicks)
    async def beside(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            others[click.user] += 1

    async with TestApp(app) as t:
        (shard,) = t.worker.shards.values()
        runtime: Any = t._runtime
        tp = TopicPartition("clicks", 0)
        await t.send_many(clicks, [Click("ada", T2013) for _ in range(8)])
        assert shard.lanes["tied"].journaled is (quiet_events == 2_000)
        await t.send(clicks, Click("wait", T2013 + 1))
        await t.send_many(clicks, [Click("ada", T2013 + HOUR_MS) for _ in range(8)])
        found = (await runtime.transport.committed(app.id, [tp]))[tp]
        told = decode_metadata(found.metadata)
        assert (found.offset, told.a["beside"]) == (8, 17)
        assert told.time_of("beside") == T2013 + HOUR_MS
        assert told.time_of("tied") <= T2013 + 1
        await t.advance("5m")
        found = (await runtime.transport.committed(app.id, [tp]))[tp]
        assert decode_metadata(found.metadata).time_of("tied") == T2013 + HOUR_MS


async def test_an_epoch_has_the_time_of_its_own_events() -> None:
    """Not of one that began after them and is in the middle: after a crash they would be late in its time."""
    app = ms.App("timely", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at")
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(clicks)
    async def rare(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            counts[click.user] += 1
            if click.user == "wait":
                await app.clock.sleep(300)

    async with TestApp(app) as t:
        (shard,) = t.worker.shards.values()
        runtime: Any = t._runtime
        tp = TopicPartition("clicks", 0)
        async with t.worker.committer.lock:
            await clicks.send_many([Click("ada", T2013), Click("wait", T2013 + HOUR_MS)])
            while shard.stream_time < T2013 + HOUR_MS:  # noqa: ASYNC110 - for an agent, which tells nobody
                await asyncio.sleep(0)
        for offset, time in ((1, T2013), (2, T2013 + HOUR_MS)):
            await t.settle()
            found = (await runtime.transport.committed(app.id, [tp]))[tp]
            assert (found.offset, decode_metadata(found.metadata).time_of("rare")) == (offset, time)
            await t.advance("5m")


@pytest.mark.parametrize("held", [False, True], ids=["between", "held by a batch"])
async def test_journals_end_between_two_cuts(held: bool, monkeypatch: Patch) -> None:
    """While a commit takes its time, quiet events stop having journals, and what was sent stays in order.

    Not while a batch holds some of them: these would be committed as if they were finished.
    """
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 3)
    app = ms.App("late-cut", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at")
    passed = app.topic("passed", value=Click, key_from="user")
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(clicks)
    async def count(stream: ms.Stream[Click]) -> None:
        if held:
            async for some in stream.take(10):
                for click in some:
                    counts[click.user] += 1
        else:
            async for click in stream:
                counts[click.user] += 1
                await passed.send(click)

    async with TestApp(app) as t:
        (shard,) = t.worker.shards.values()
        found = shard.subtopology_of("count")
        clicks_0, passed_0 = TopicPartition("clicks", 0), TopicPartition("passed", 0)
        listed = [Click("ada", T2013 + number) for number in range(60)]
        async with t.worker.committer.lock:
            await clicks.send_many(listed[:45])
            (lane,) = found.lanes
            (instance,) = lane.instances
            for _ in range(10_000):
                if lane.inboxes[clicks_0].position == 45 and instance.idle.is_set():
                    break
                await asyncio.sleep(0)
            for _ in range(20):  # the agent is through: now the shard looks
                await asyncio.sleep(0)
            assert found.journaled is held
            assert bool(found.events) is held
            assert len(found.sent[passed_0]) == (0 if held else 45)
        await t.send_many(clicks, listed[45:])
        assert t.table(counts) == {"ada": 60}
        if not held:
            assert t.sent(passed) == listed


@pytest.mark.parametrize("refused", [False, True], ids=["taken", "refused"])
async def test_journals_end_while_a_commit_is_on_its_way(refused: bool, monkeypatch: Patch) -> None:
    """What the group refuses then goes with the next one, before what came without journals, and under the same values."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 20)
    app = ms.App("late-cut", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user", timestamp="at")
    passed = app.topic("passed", value=Click, key_from="user")
    counts = app.table("counts", key=str, value=int, default=0)
    last = app.table("last", key=str, value=list[int])

    @app.agent(clicks)
    async def count(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            counts[click.user] += 1
            if click.at % 4 == 3:
                last.pop(
                    click.user, None
                )  # before the cut, after it, and after journals have ended
            else:
                last.setdefault(click.user, []).append(click.at)
            await passed.send(click)

    listed = [Click("ada" if n % 3 else "bob", T2013 + n) for n in range(60)]
    wanted: dict[str, list[int]] = {}
    for click in listed:
        if click.at % 4 == 3:
            wanted.pop(click.user, None)
        else:
            wanted.setdefault(click.user, []).append(click.at)

    async with TestApp(app) as t:
        (shard,) = t.worker.shards.values()
        found = shard.subtopology_of("count")
        transport: Any = shard._options.transport
        commit, sent, go_on = transport.commit, asyncio.Event(), asyncio.Event()

        async def held(epoch: Epoch) -> CommitResult:
            if not sent.is_set():
                sent.set()
                await go_on.wait()
                if refused:
                    raise IllegalGenerationError("the group has moved on")
            result: CommitResult = await commit(epoch)
            return result

        async def send(some: list[Click]) -> None:
            (lane,) = found.lanes
            at = lane.inboxes[TopicPartition("clicks", 0)].position + len(some)
            await clicks.send_many(some)
            for _ in range(10_000):
                if (
                    lane.position(TopicPartition("clicks", 0)) == at
                    and lane.instances[0].idle.is_set()
                ):
                    break
                await asyncio.sleep(0)

        monkeypatch.setattr(transport, "commit", held)
        async with t.worker.committer.lock:
            await send(listed[:10])
        committing = asyncio.ensure_future(t.worker.committer.commit())
        await sent.wait()
        await send(listed[10:20])
        assert found.journaled
        await send(listed[20:50])
        assert not found.journaled
        assert not found.events
        await send(listed[50:])
        go_on.set()
        await committing
        await t.advance("2s")  # for the group's next assignment, which does not come
        assert t.sent(passed) == listed
        assert t.table(counts) == {"ada": 40, "bob": 20}
        assert t.table(last) == wanted
        await t.crash()
        assert t.table(counts) == {"ada": 40, "bob": 20}
        assert t.table(last) == wanted


async def test_events_that_overlap_for_ever() -> None:
    """Each is tied to the next one: intake stops now and then, or nothing would ever be committed."""
    events = 40
    app = ms.App("chain", partitions=1)
    ticks = app.topic("ticks", value=int)
    links = app.table("links", key=int, value=int, default=0)

    @app.agent(ticks, concurrency=4)
    async def link(stream: ms.Stream[int]) -> None:
        async for number in stream:
            links[number] += 1
            await app.clock.sleep(0.050)
            links[number + 1] += 1  # which the next one has written, and has not finished

    async with TestApp(app) as t:
        (shard,) = t.worker.shards.values()
        tp = TopicPartition("ticks", 0)
        behind: list[int] = []
        for number in range(events):
            await ticks.send(number, key=f"{number}")
            await t.advance("30ms")
            behind.append(number + 1 - shard.committed[tp])
        assert max(behind) < 20, "what comes in a quarter of a second waits, and no more"
        await t.advance("1s")
        assert t.table(links) == {0: 1, **dict.fromkeys(range(1, events), 2), events: 1}


async def test_what_is_committed_is_forgotten() -> None:
    """Scopes of events that are in the log go, however they have met: no chain of them is kept by the last one."""
    app = ms.App("met", partitions=1)
    clicks = app.topic("clicks", value=Click, key_from="user")
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(clicks, concurrency=5)
    async def meet(stream: ms.Stream[Click]) -> None:
        async for click in stream:
            counts["all"] += 1
            await asyncio.sleep(click.at / 1_000)
            counts["all"] += 1

    @app.timer("1s", scope="shard")
    async def tick() -> None:
        counts["all"] += 1

    async with TestApp(app) as t:
        await t.send_many(clicks, [Click(f"u{at}", at % 3) for at in range(200)])
        for _ in range(50):
            await t.advance("1s")
        assert t.table(counts) == {"all": 450}
        gc.collect()
        scopes = [found for found in gc.get_objects() if type(found) is Scope]
        mine = [scope for scope in scopes if scope.agent in ("meet", "timer:tick")]
        assert len(mine) < 20
