"""A worker in its group: shards that come and go, other programs, and the end."""

# a stream is no list, and an app ends with its block

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import Any

import pytest

import millstream as ms
from millstream.errors import LogUnavailableError, TopologyError
from millstream.records import TopicPartition
from millstream.testing import TestApp
from millstream.transports.memory import MemoryTransport
from millstream.worker import ShardAssignment, Worker, _fetch, _shard, _worker, decode_metadata
from tests.kit import Order, counting, second_worker


async def settled(t: TestApp, second: Any) -> None:
    """Let both workers do what there is to do."""
    for _ in range(300):
        await asyncio.sleep(0)
    await t.settle()
    for _ in range(5):
        await second.worker.committer.commit()
        await t.worker.committer.commit()
        for _ in range(50):
            await asyncio.sleep(0)


def owned(runtime: Any) -> list[int]:
    return sorted(number for _, number in runtime.worker.shards)


async def test_two_workers_share_the_shards() -> None:
    """Two workers of one app share the shards, each record is counted once, and one takes over from the other."""
    app, orders, totals = counting(partitions=4)
    other, _, _ = counting(partitions=4)
    async with TestApp(app) as t:
        await t.send_many(orders, [Order(f"a{i}", 1.0) for i in range(40)])
        async with second_worker(other, t) as second:
            await settled(t, second)
            first_owns, second_owns = owned(t._runtime), owned(second)
            assert sorted(first_owns + second_owns) == [0, 1, 2, 3]
            assert (len(first_owns), len(second_owns)) == (2, 2)
            await orders.send_many([Order(f"a{i}", 1.0) for i in range(40)])
            await settled(t, second)
        await t.settle()
        assert owned(t._runtime) == [0, 1, 2, 3]
        assert t.table(totals) == {f"a{i}": 2.0 for i in range(40)}


async def test_workers_tell_the_group_what_they_own() -> None:
    """So the next plan leaves it where it is; and tools hear which partitions that means."""
    app, orders, _ = counting(partitions=4)
    other, _, _ = counting(partitions=4)
    async with TestApp(app) as t, second_worker(other, t) as second:
        await settled(t, second)
        first: Any = t._runtime
        found = await first.transport.describe_group(app.id)
        told = {name: decode_metadata(data) for name, data in found.members.items()}
        workers: list[Any] = [first.worker, second.worker]
        for worker in workers:
            about = told[worker.assignment.member_id]
            assert set(about.owned) == set(worker.shards)
            assert about.generation == worker.assignment.generation == found.generation
            assert about.stateful == (4,)
            inputs = worker.plan.inputs()
            assert inputs.topics() == [orders.name]
            assert sorted(inputs.partitions(worker.assignment.assigned)) == [
                TopicPartition(orders.name, number) for _, number in sorted(worker.shards)
            ]


KEPT = [("", 0, True), ("", 1, True), ("", 2, False), ("another", 1, False), ("another", 0, False)]


async def uncommitted_work(member: str, later: int, kept: bool) -> None:
    app, orders, _ = counting(partitions=1)
    async with TestApp(app) as t:
        worker: Any = t.worker
        assert decode_metadata(worker._metadata(ShardAssignment(), generation=0)).keeps_copies
        before = worker.assignment
        await t.send(orders, Order("ada", 1.0))
        (shard,) = worker.shards.values()
        await orders.send(Order("ada", 1.0))
        while not shard.has_work():  # noqa: ASYNC110
            await asyncio.sleep(0)
        await worker._apply(
            replace(
                before, member_id=member or before.member_id, generation=before.generation + later
            )
        )
        (found,) = worker.shards.values()
        assert (found is shard) is kept
        assert kept or not shard.ready.is_set()


@pytest.mark.parametrize(("member", "later", "kept"), KEPT)
async def test_which_generations_keep_uncommitted_work(member: str, later: int, kept: bool) -> None:
    """The next one, under the same member id: in any other case somebody else may have committed meanwhile."""
    await uncommitted_work(member, later, kept)


async def test_work_kept_for_ever_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every assignment counts as the next one, some of these checks fail."""
    apply = Worker._apply

    async def steady(self: Any, assignment: Any) -> None:
        if self.assignment is not None:
            self.assignment = replace(assignment, generation=assignment.generation - 1)
        await apply(self, assignment)

    monkeypatch.setattr(Worker, "_apply", steady)
    for member, later, kept in KEPT:
        with contextlib.nullcontext() if kept else pytest.raises(AssertionError):
            await uncommitted_work(member, later, kept)


async def test_the_leader_is_one() -> None:
    """A timer of scope ``leader`` runs on one of two workers."""
    app, _, _ = counting(partitions=2)
    other, _, _ = counting(partitions=2)
    ran: list[str] = []
    app.timer("10s", scope="leader")(lambda: ran.append("first"))
    other.timer("10s", scope="leader")(lambda: ran.append("second"))
    async with TestApp(app) as t, second_worker(other, t) as second:
        await settled(t, second)
        for _ in range(3):
            t.clock.advance("10s")
            await settled(t, second)
    assert len(ran) == 3
    assert len(set(ran)) == 1


async def test_another_program_under_the_same_id() -> None:
    """Two programs of one id with other topologies: the one that joins stops, the first one works on."""
    app, orders, totals = counting(partitions=2)
    other = ms.App("shop", partitions=2)
    different = other.topic("orders", value=Order, key_from="account")
    other.table("totals", key=str, value=float, default=0.0)

    @other.agent(different)
    async def something_else(stream: ms.Stream[Order]) -> None:
        async for _ in stream:
            pass

    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0))
        with pytest.raises(
            TopologyError,
            match=r"app 'shop': another program runs under the same app id: it has \[count reads orders; table"
            r" totals of 2\], and this one has \[something_else reads orders; table totals of 2\]\. Give one of them",
        ):
            async with second_worker(other, t):
                await asyncio.Event().wait()
        for _ in range(50):
            await asyncio.sleep(0)
        await t.send(orders, Order("ada", 2.0))
        assert t.table(totals) == {"ada": 3.0}


async def test_a_worker_without_shards() -> None:
    """An app without agents and tables runs its tasks, and joins no group."""
    app = ms.App("bare")
    done: list[int] = []

    @app.task
    async def once() -> None:
        done.append(1)

    async with TestApp(app) as t:
        assert t.worker.membership is None
    assert done == [1]


async def test_the_end_commits_what_is_finished() -> None:
    """A worker that is stopped commits what is finished, and leaves its group."""
    app, orders, totals = counting(partitions=1)
    other, _, _ = counting(partitions=1)
    t = TestApp(app)
    async with t:
        await orders.send(Order("ada", 1.0))
        for _ in range(100):
            await asyncio.sleep(0)
    groups = t._log.groups if hasattr(t._log, "groups") else {}
    assert all(not group.members for group in groups.values())
    from tests.kit import continued

    async with continued(other, t) as t:
        assert t.table(totals) == {"ada": 1.0}


async def test_rebalances_in_a_row() -> None:
    """Many rebalances lose nothing and repeat nothing."""
    app, orders, totals = counting(partitions=3)
    async with TestApp(app) as t:
        for _ in range(10):
            await orders.send_many([Order(f"a{i}", 1.0) for i in range(7)])
            await t.rebalance()
        await t.settle()
        assert t.table(totals) == {f"a{i}": 10.0 for i in range(7)}


async def test_back_pressure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard keeps no more than its bound and what one fetch brings, and everything arrives."""
    monkeypatch.setattr(_fetch, "FETCH_BYTES_MAX", 1_000)
    app, orders, totals = counting(partitions=1, epoch_bytes_max=2_000, inbox_bytes_max=4_000)
    batch = [Order(f"a{i % 10}", 1.0) for i in range(50)]
    async with TestApp(app) as t:
        for _ in range(
            100
        ):  # the log has 100 batches of some 3,000 bytes before the first is looked at
            await orders.send_many(batch)
        (shard,) = t.worker.shards.values()
        inboxes = [inbox for lane in shard.lanes.values() for inbox in lane.inboxes.values()]
        largest = 0
        for turn in range(
            4_000
        ):  # as long as nobody commits, what is taken is up to the bound as well
            await asyncio.sleep(0)
            largest = max(largest, *(inbox.size for inbox in inboxes))
            if turn > 2_000:
                await t.worker.committer.commit()
        await t.settle()
        assert t.table(totals) == {f"a{i}": 500.0 for i in range(10)}
    assert 4_000 <= largest < 4_000 + 4_000, "a fetch brings one batch, where that is larger"


async def test_inputs_share_what_a_shard_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has much leaves room for the others."""
    monkeypatch.setattr(_fetch, "FETCH_BYTES_MAX", 500)
    monkeypatch.setattr(_worker, "STOP_TIMEOUT_S", 0.01)  # the events stand for ever
    app = ms.App("two", partitions=1, inbox_bytes_max=4_000)
    topics = [app.topic(name, value=str) for name in ("much", "little")]

    @app.agent(*topics)
    async def stand(stream: ms.Stream[str]) -> None:
        async for _ in stream:
            await app.clock.sleep(1_000_000)

    async with TestApp(app) as t:
        for topic in topics:
            for _ in range(50):
                await topic.send_many(["x" * 50] * 5)
        (shard,) = t.worker.shards.values()
        inboxes = [inbox for lane in shard.lanes.values() for inbox in lane.inboxes.values()]
        for _ in range(2_000):
            await asyncio.sleep(0)
        assert [2_000 <= inbox.size < 2_600 for inbox in inboxes] == [True, True]


async def test_unrelated_agents_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An agent that stands still holds up nobody else in its shard."""
    monkeypatch.setattr(_worker, "STOP_TIMEOUT_S", 0.01)  # its event stands for ever
    app, orders, totals = counting(partitions=1)
    slow = app.topic("slow", value=int)

    @app.agent(slow)
    async def stand(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            await app.clock.sleep(1_000_000)

    async with TestApp(app) as t:
        await slow.send(1)
        await orders.send(Order("ada", 1.0))
        for _ in range(10):
            await t.settle()
            if t.table(totals) == {"ada": 1.0}:
                break
        assert t.table(totals) == {"ada": 1.0}


async def test_a_log_that_cannot_be_read_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker says so once for each time that the log is away, however often it asks, and then goes on."""
    fetch, answers = MemoryTransport._fetch, iter([False, False, True, False, False])

    async def away(self: MemoryTransport, *asked: Any) -> Any:
        if not next(answers, True):
            raise LogUnavailableError("no broker answers")
        return await fetch(self, *asked)

    monkeypatch.setattr(MemoryTransport, "_fetch", away)
    monkeypatch.setattr(_fetch, "RETRY_S", 0)
    app, orders, totals = counting(partitions=1)
    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0))
        await t.send(orders, Order("ada", 2.0))
        assert t.table(totals) == {"ada": 3.0}
    assert caplog.text.count("agent 'count' waits for the log: no broker answers") == 2


async def test_a_reader_that_finds_nothing_meanwhile(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has not come back where nothing came of it: it is not said again."""
    fetch = MemoryTransport._fetch
    answers: Any = iter([None, [], None, [], None])

    async def away(self: MemoryTransport, *asked: Any) -> Any:
        found = next(answers, "there")
        if found is None:
            raise LogUnavailableError("no broker answers")
        return await fetch(self, *asked) if found else ([], 0)

    monkeypatch.setattr(MemoryTransport, "_fetch", away)
    monkeypatch.setattr(_fetch, "RETRY_S", 0)
    app, orders, totals = counting(partitions=1)
    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0))
        assert t.table(totals) == {"ada": 1.0}
    assert caplog.text.count("agent 'count' waits for the log: no broker answers") == 1


async def test_a_log_that_does_not_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that cannot learn its positions now, because of a broker or another's open epoch, tries again."""
    committed, left = MemoryTransport.committed, [2]

    async def away(self: MemoryTransport, group: str, tps: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise LogUnavailableError("a transaction holds the position")
        return await committed(self, group, tps)

    monkeypatch.setattr(MemoryTransport, "committed", away)
    monkeypatch.setattr(_shard, "RECOVER_AGAIN_S", 0)
    app, orders, totals = counting(partitions=1)
    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0))
        await t.settle()
        assert t.table(totals) == {"ada": 1.0}
    assert left == [0]
