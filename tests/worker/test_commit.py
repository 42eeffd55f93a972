"""Epochs: what goes together, what is tried again, and what is never committed."""

# ruff: noqa: PERF401  # a stream is no list, and an app ends with its block

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

import millstream as ms
from millstream import hooks
from millstream.context import current
from millstream.errors import (
    AgentError,
    IllegalGenerationError,
    LogUnavailableError,
    OutcomeUnknownError,
)
from millstream.records import TopicPartition
from millstream.testing import TestApp
from millstream.transports.batch import iterate_records
from millstream.worker._commit import APPLY_KEYS_MAX
from tests.kit import Order, counting

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.transports.base import CommitResult, Epoch


def changelog(t: TestApp, topic: str, partitions: int) -> list[tuple[bytes | None, bytes | None]]:
    """Keys and values of a changelog, in order; entries of the table itself left out."""
    found = []
    for partition in range(partitions):
        tp = TopicPartition(topic, partition)
        for data in t._log.batches(tp):
            for record in iterate_records(data, where=str(tp)):
                if record.key is None or record.key[:1] != b"\x00":
                    found.append((record.key, record.value))
    return found


def intercept(t: TestApp, monkeypatch: pytest.MonkeyPatch, replaced: Callable[..., Any]) -> None:
    """Have ``replaced(commit, epoch)`` take the place of the transport's commit."""
    assert t._runtime is not None
    commit = t._runtime.transport.commit
    monkeypatch.setattr(t._runtime.transport, "commit", lambda epoch: replaced(commit, epoch))


async def test_one_epoch() -> None:
    """Offsets, outputs and table changes of an event are in one epoch."""
    app = ms.App("shop", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    out = app.topic("out", value=float)
    totals = app.table("totals", key=str, value=float, default=0.0)

    @app.agent(orders, sink=out)
    async def forward(stream: ms.Stream[Order]) -> Any:
        async for order in stream:
            totals[order.account] += order.amount
            yield order.amount

    epochs: list[Epoch] = []
    async with TestApp(app) as t:
        with pytest.MonkeyPatch.context() as patch:

            async def note(commit: Any, epoch: Epoch) -> CommitResult:
                epochs.append(epoch)
                return await commit(epoch)  # type: ignore[no-any-return]

            intercept(t, patch, note)
            await t.send(orders, Order("ada", 1.0))
    topics = {tp.topic for tp in epochs[0].records}
    assert topics == {"out", "shop-totals-changelog"}
    assert epochs[0].offsets[TopicPartition("orders", 0)].offset == 1


@pytest.mark.parametrize("reads", [True, False])
async def test_every_epoch_has_offsets(reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By them alone a zombie is refused: also one of a timer, and in a shard that reads nothing."""
    app = ms.App("ticking", partitions=2)
    table = app.table("ticks", key=int, value=int, default=0)

    @app.timer(10, scope="shard")
    async def tick() -> None:
        table[current.get().shard.number] += 1

    if reads:

        @app.agent(app.topic("words", value=str))
        async def read(stream: ms.Stream[str]) -> None:
            async for _ in stream:
                pass

    epochs: list[Epoch] = []

    async def noted(commit: Callable[[Epoch], Any], epoch: Epoch) -> CommitResult:
        epochs.append(epoch)
        done: CommitResult = await commit(epoch)
        return done

    async with TestApp(app) as t:
        intercept(t, monkeypatch, noted)
        await t.advance("25s")
    assert epochs
    for epoch in epochs:
        written = {tp.partition for tp, records in epoch.records.items() if records}
        assert written <= {tp.partition for tp in epoch.offsets}


async def test_the_last_value_of_a_key_reaches_the_changelog() -> None:
    """Many writes to one key in an epoch become one record of its changelog."""
    app, orders, totals = counting(partitions=1)
    async with TestApp(app) as t:
        await t.send_many(orders, [Order("ada", 1.0)] * 50)
        found = changelog(t, "shop-totals-changelog", 1)
        assert len(found) < 50
        assert found[-1][1] == b"50.0"
        assert t.table(totals) == {"ada": 50.0}


async def test_changelogs_go_by_the_wall_clock() -> None:
    """Whatever the events' time: a log's retention would delete reprocessed history otherwise."""
    app, orders, _ = counting(partitions=1)
    async with TestApp(app) as t:
        await orders.send(Order("ada", 1.0), timestamp=1_000)
        await t.settle()
        tp = TopicPartition("shop-totals-changelog", 0)
        found = [
            record.timestamp
            for data in t._log.batches(tp)
            for record in iterate_records(data, where=str(tp))
        ]
        assert found
        assert set(found) == {t.clock.now()}


async def test_the_loop_turns_during_a_large_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of many keys is encoded, and written to the store, in slices, between which others have their turn."""
    keys = 4 * APPLY_KEYS_MAX
    app = ms.App("large", partitions=1)
    go = app.topic("go", value=int)
    table = app.table("t", key=int, value=int)

    @app.agent(go)
    async def fill(stream: ms.Stream[int]) -> None:
        async for count in stream:
            for key in range(count):
                table[key] = key

    turns = 0
    at: dict[str, int] = {}

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def note(point: str, _: dict[str, object]) -> None:
        at[point] = turns

    async with TestApp(app) as t:
        turning = asyncio.ensure_future(turn())
        with hooks.observe(note):
            await t.send(go, keys)
        turning.cancel()
        assert len(t.table(table)) == keys
    assert at["commit.encoded"] - at["commit.cut"] >= 4
    assert at["commit.applied"] - at["commit.committed"] >= 4


async def test_deleted_keys_are_tombstones() -> None:
    """A key that is deleted is a record without a value in the changelog."""
    app = ms.App("gone", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    table = app.table("t", key=str, value=float)

    @app.agent(orders)
    async def keep(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            if order.amount:
                table[order.account] = order.amount
            else:
                table.pop(order.account, None)

    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0))
        await t.send(orders, Order("ada", 0.0))
        assert [value for _, value in changelog(t, "gone-t-changelog", 1)] == [b"1.0", None]
        await t.crash(lose_state=True)
        assert t.table(table) == {}


async def test_reading_writes_nothing() -> None:
    """Values that are read and not changed cost no record, mutable ones as well."""
    app = ms.App("quiet", partitions=1)
    topic = app.topic("t", value=int)
    lists = app.table("lists", key=str, value=list[int], default=list)

    @app.agent(topic)
    async def read(stream: ms.Stream[int]) -> None:
        async for number in stream:
            if number:
                lists["x"].append(number)
            assert lists["x"] == [1]
            assert lists["y"] == []

    async with TestApp(app) as t:
        await t.send_many(topic, [1, 0, 0])
        await t.send_many(topic, [0, 0])
        assert len(changelog(t, "quiet-lists-changelog", 1)) == 1


async def test_a_log_that_is_away() -> None:
    """A commit that the log does not take is tried again, with its back-off, until it does."""
    app, orders, totals = counting(partitions=1)
    attempts = 0

    async def refuse(commit: Any, epoch: Epoch) -> CommitResult:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise LogUnavailableError("away")
        return await commit(epoch)  # type: ignore[no-any-return]

    async with TestApp(app) as t:
        with pytest.MonkeyPatch.context() as patch:
            intercept(t, patch, refuse)
            sending = asyncio.ensure_future(t.send(orders, Order("ada", 1.0)))
            for _ in range(200):
                await asyncio.sleep(0)
                t.clock.advance("100ms")
            await sending
        assert t.table(totals) == {"ada": 1.0}
    assert attempts == 3


@pytest.mark.parametrize("happened", [True, False])
async def test_unknown_outcome(happened: bool) -> None:
    """After a commit without an answer its shards look what is there: not repeated where it happened, else repeated."""
    app, orders, totals = counting(partitions=1)
    attempts = 0

    async def lose_answer(commit: Any, epoch: Epoch) -> CommitResult:
        nonlocal attempts
        attempts += 1
        if attempts > 1:
            return await commit(epoch)  # type: ignore[no-any-return]
        if happened:
            await commit(epoch)
        raise OutcomeUnknownError("no answer")

    async with TestApp(app) as t:
        with pytest.MonkeyPatch.context() as patch:
            intercept(t, patch, lose_answer)
            await t.send(orders, Order("ada", 1.0))
        assert t.table(totals) == {"ada": 1.0}
        assert changelog(t, "shop-totals-changelog", 1) == [(b"ada\x01", b"1.0")]
        await t.crash(lose_state=True)
        assert t.table(totals) == {"ada": 1.0}
    assert attempts == (1 if happened else 2)


async def test_another_generation() -> None:
    """What a commit of an old generation had is committed with the next one, once."""
    app, orders, totals = counting(partitions=1)
    attempts = 0

    async def fence(commit: Any, epoch: Epoch) -> CommitResult:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise IllegalGenerationError("the group has moved on")
        return await commit(epoch)  # type: ignore[no-any-return]

    async with TestApp(app) as t:
        with pytest.MonkeyPatch.context() as patch:
            intercept(t, patch, fence)
            await t.send(orders, Order("ada", 1.0))
            await t.settle()
        await t.rebalance()
        await t.send(orders, Order("ada", 2.0))
        assert t.table(totals) == {"ada": 3.0}


@pytest.mark.parametrize("point", sorted(p for p in hooks.POINTS if p.startswith("commit.")))
async def test_dying_at_each_step(point: str) -> None:
    """A worker that dies at any step of a commit has committed all of an epoch, or nothing."""
    app, orders, totals = counting(partitions=1)
    out = app.topic("out", value=float)

    @app.agent(orders, sink=out)
    async def forward(stream: ms.Stream[Order]) -> Any:
        async for order in stream:
            yield order.amount

    class Died(BaseException):
        pass

    died = False

    def die(reached: str, facts: dict[str, object]) -> None:
        nonlocal died
        if reached == point and not died:
            died = True
            raise Died

    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0))
        with hooks.observe(die), contextlib.suppress(Died):
            await t.send_many(orders, [Order("ada", 2.0), Order("bob", 1.0)])
        await t.crash()
        await t.send(orders, Order("ada", 4.0))
        assert t.table(totals) == {"ada": 7.0, "bob": 1.0}
        assert t.sent(out) == [1.0, 2.0, 1.0, 4.0]
        await t.crash(lose_state=True)
        assert t.table(totals) == {"ada": 7.0, "bob": 1.0}
    assert died or point == "commit.writing"


async def test_nothing_behind_an_error() -> None:
    """When a record stops the worker, what was done before it may be committed, and nothing behind it is."""
    app, orders, _ = counting(partitions=1)
    t = TestApp(app)
    with pytest.raises(AgentError):
        async with t:
            await t.send_many(orders, [Order("ada", 1.0), Order("ada", -2.0), Order("ada", 4.0)])
    found = changelog(t, "shop-totals-changelog", 1)
    assert [value for _, value in found] in ([], [b"1.0"])


async def test_statistics() -> None:
    """Each commit leaves its times and counts, and its number goes up."""
    app, orders, _ = counting(partitions=1)
    async with TestApp(app) as t:
        await t.send(
            orders, Order("ada", 1.0)
        )  # with the mark that tells the type of what is stored
        assert t.worker.committer.stats[-1].records == 2
        before = t.worker.committer.epochs
        await t.send(orders, Order("ada", 1.0))
        committer = t.worker.committer
        assert committer.epochs == before + 1
        assert committer.stats[-1].records == 1
        assert committer.stats[-1].shards == 1


async def test_listeners() -> None:
    """Listeners are told of each committed part of an epoch, once the store holds it."""
    app, orders, _ = counting(partitions=1)
    seen: list[Any] = []
    async with TestApp(app) as t:

        def listen(cut: Any) -> None:
            seen.append(cut.shard.store.table("totals").get(b"ada\x01"))

        t.worker.committer.listeners.append(listen)
        await t.send(orders, Order("ada", 1.0))
    assert seen == [b"1.0"]
