"""Promises on Kafka that are removed on purpose: a schedule for each that shows it, on a real broker.

The schedules are led by hand (`tests.crash.pair`): who hears what and who commits when is no matter of chance. Each
is run as it is, where it has to end well, and with the mutations that it is there for, of which each has to be
found. That of recovering to the last stable offset only is in `tests.integration.test_kafka_recovery`.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from millstream.errors import ConfigurationError, OutcomeUnknownError
from millstream.transports.base import CommitResult
from millstream.transports.kafka import KafkaTransport, _transactions
from millstream.worker import Committer, Worker
from tests.brokers import Action, Api
from tests.crash.pair import DEADLINE_S, Pair
from tests.crash.program import Violation
from tests.crash.test_mutations import rewind_keeps_the_overlay, timers_without_offsets
from tests.integration.groups import evict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from millstream.transports.base import Epoch
    from tests.brokers import Cluster, Proxy

Patch = pytest.MonkeyPatch

HELD_S = 0.8
"""How long positions are held: less than the new owner of a shard takes to end the transaction that holds them."""


# schedules


async def a_shard_moves(pair: Pair, _: Proxy) -> None:
    """Half of the shards go to another worker, which processes and commits; the first one has not heard of it."""
    one, two = pair.side("one"), pair.side("two")
    await one.start()
    await pair.write()
    await one.processed(1)
    await one.commit()
    await pair.write()
    await one.processed(2)
    one.awake.clear()
    await two.start()
    await two.processed(2)
    await two.commit()
    await one.commit()
    one.awake.set()
    await one.until(lambda: len(one.worker.shards) == 1)
    await one.processed(2)
    await one.commit()
    await pair.check()


async def a_timer_of_a_shard_that_moves(pair: Pair, _: Proxy) -> None:
    """The same, and nothing but timers has written anything."""
    one, two = pair.side("one"), pair.side("two")
    await one.start()
    await one.ticked()
    await one.commit()
    await one.ticked()
    one.awake.clear()
    await two.start()
    await two.ticked()
    await two.commit()
    await one.commit()
    one.awake.set()
    await one.until(lambda: len(one.worker.shards) == 1)
    await pair.check()


async def a_gap_between_generations(pair: Pair, proxy: Proxy) -> None:
    """A worker keeps its id, and misses the generation in which another one had half of its shards.

    That one makes copies of them first, which takes a generation.
    """
    one, two = pair.side("one", f"kafka://{proxy.bootstrap}"), pair.side("two")
    await one.start()
    await pair.write()
    await one.processed(1)
    await one.commit()
    await pair.write()
    await one.processed(2)
    alone = one.generation
    two.awake.clear()
    starting = asyncio.ensure_future(two.start())
    await one.until(lambda: one.generation == alone + 1)
    before = one.worker.assignment
    assert before is not None
    share = proxy.on_answer(Api.SYNC_GROUP, Action.HOLD)
    two.awake.set()
    await starting
    await asyncio.to_thread(share.wait)
    await two.processed(2)
    await two.commit()
    await two.stop()
    proxy.cut()
    share.release()
    await one.until(lambda: one.worker.assignment is not before and len(one.shards()) == 2)
    after = one.worker.assignment
    assert after is not None
    assert (after.member_id, after.generation - before.generation) == (before.member_id, 2)
    await one.processed(2)
    await one.commit()
    await pair.check()


async def a_fenced_epoch(pair: Pair, _: Proxy) -> None:
    """Somebody ends a worker's transactions: it starts over with the same shards."""
    one = pair.side("one")
    await one.start()
    await pair.write()
    await one.processed(1)
    await one.commit()
    await pair.write()
    await one.processed(2)
    async with KafkaTransport(
        pair.kafka.url, transactional_id=lambda: one.transactional_id
    ) as other:
        await other._opened().epochs.settle(take=True)
    await one.commit()
    await one.processed(2)
    await one.commit()
    await pair.check()


async def an_end_that_comes_late(pair: Pair, proxy: Proxy) -> None:
    """A worker has sent what belongs into an epoch, and then its machine is silent; another one takes all it had."""
    one, two = pair.side("one", f"kafka://{proxy.bootstrap}"), pair.side("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_transactions, "TRANSACTION_TIMEOUT_S", 2 * DEADLINE_S)
        await one.start()
        await two.start()
    await one.until(lambda: len(one.worker.shards) == 1)
    await pair.write()
    await one.processed(1)
    await two.processed(1)
    await two.commit()
    ending = proxy.on_request(Api.END_TXN, Action.HOLD)
    committing = asyncio.ensure_future(one.commit())
    await asyncio.to_thread(ending.wait)
    asked, known = two.positions
    proxy.silence()
    assert one.worker.assignment is not None
    await evict(pair.kafka.url, pair.app, one.worker.assignment.member_id)
    await two.until(lambda: two.positions[0] > asked)
    with suppress(TimeoutError):  # nobody hears them before the end has come, or two has made one
        async with asyncio.timeout(HELD_S):
            await two.until(lambda: two.positions[1] > known)
    proxy.reset()
    await two.processed(1)
    await two.commit()
    await committing
    await pair.check()


async def an_epoch_of_a_timer_of_which_nobody_tells(pair: Pair, proxy: Proxy) -> None:
    """It repeats the positions before it, its end never arrives, and the worker gives up asking."""
    one = pair.side("one", f"kafka://{proxy.bootstrap}")
    await one.start()
    await pair.write()
    await one.processed(1)
    await one.commit()
    await one.ticked()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_transactions, "ANSWER_TIMEOUT_S", 0.3)
        patch.setattr(_transactions, "END_TIMEOUT_S", 0.5)
        proxy.on_request(Api.END_TXN, Action.LOSE, times=100)
        committing = asyncio.ensure_future(one.commit())
        await asyncio.wait([committing], timeout=5)
        proxy.reset()
    await committing
    await one.ticked()
    await one.commit()
    await pair.write()
    await one.processed(2)
    await one.commit()
    await pair.check()


# mutations


def no_generation(patch: Patch) -> None:
    """The offsets are committed without a generation, as with the oldest TxnOffsetCommit."""
    commit = KafkaTransport.commit

    async def bare(self: KafkaTransport, epoch: Epoch) -> CommitResult:
        return await commit(self, replace(epoch, member_id="", generation=-1))

    patch.setattr(KafkaTransport, "commit", bare)


def generation_of_the_commit(patch: Patch) -> None:
    """The generation is the one that the member has when the epoch is sent, not what was applied at the cut."""
    commit = KafkaTransport.commit

    async def late(self: KafkaTransport, epoch: Epoch) -> CommitResult:
        member = self._opened().memberships[-1]._member
        return await commit(
            self, replace(epoch, member_id=member.member_id, generation=member._generation)
        )

    patch.setattr(KafkaTransport, "commit", late)


def work_kept_across_a_gap(patch: Patch) -> None:
    """Uncommitted work outlives generations that the worker has not seen."""
    apply = Worker._apply

    async def steady(self: Worker, assignment: Any) -> None:
        if self.assignment is not None:
            self.assignment = replace(assignment, generation=assignment.generation - 1)
        await apply(self, assignment)

    patch.setattr(Worker, "_apply", steady)


def positions_taken_for_the_outcome(patch: Patch) -> None:
    """Where nobody tells whether an epoch was committed, positions like its own are taken for a yes."""
    send = Committer._send

    async def guess(self: Committer, epoch: Epoch) -> CommitResult:
        while True:
            try:
                return await send(self, epoch)
            except OutcomeUnknownError:
                found = await self._transport.committed(self._group, list(epoch.offsets))
                if all(found.get(tp) == at for tp, at in epoch.offsets.items()):
                    ends = await self._transport.end_offsets(list(epoch.records))
                    return CommitResult(next_offsets=ends)

    patch.setattr(Committer, "_send", guess)


def positions_that_are_not_settled(patch: Patch) -> None:
    """Who takes a shard over does not wait for transactions that are open over its positions."""
    committed = KafkaTransport.committed

    async def at_once(self: KafkaTransport, group: str, tps: Any, *, settled: bool = True) -> Any:
        return await committed(self, group, tps, settled=False)

    patch.setattr(KafkaTransport, "committed", at_once)


SCHEDULES: dict[Callable[[Pair, Proxy], Awaitable[None]], list[Callable[[Patch], None]]] = {
    a_shard_moves: [no_generation, generation_of_the_commit],
    a_timer_of_a_shard_that_moves: [timers_without_offsets],
    a_gap_between_generations: [work_kept_across_a_gap],
    an_end_that_comes_late: [positions_that_are_not_settled],
    a_fenced_epoch: [rewind_keeps_the_overlay],
    an_epoch_of_a_timer_of_which_nobody_tells: [positions_taken_for_the_outcome],
}


@asynccontextmanager
async def a_pair(kafka: Cluster) -> AsyncIterator[Pair]:
    """Workers to come, which end with the block."""
    pair = await asyncio.to_thread(Pair, kafka)
    try:
        yield pair
    finally:
        await pair.close()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.__name__)
async def test_kept(
    schedule: Callable[[Pair, Proxy], Awaitable[None]], own_kafka: Cluster, kafka_proxy: Proxy
) -> None:
    """Nothing is lost, and nothing is repeated."""
    async with a_pair(own_kafka) as pair:
        await schedule(pair, kafka_proxy)


@pytest.mark.parametrize(
    ("schedule", "mutate"),
    [(schedule, mutate) for schedule, mutations in SCHEDULES.items() for mutate in mutations],
    ids=lambda found: found.__name__,
)
async def test_found(
    schedule: Callable[[Pair, Proxy], Awaitable[None]],
    mutate: Callable[[Patch], None],
    own_kafka: Cluster,
    kafka_proxy: Proxy,
    monkeypatch: Patch,
) -> None:
    """The schedule shows that the promise is gone."""
    mutate(monkeypatch)
    async with a_pair(own_kafka) as pair:
        with pytest.raises(Violation):
            await schedule(pair, kafka_proxy)


async def test_two_workers_in_one_slot(own_kafka: Cluster) -> None:
    """They fence each other: one of them ends, says why, and the other one does the work, all of it once."""
    async with a_pair(own_kafka) as pair:
        sides = [pair.side("same", commits=True) for _ in range(2)]
        for side in sides:
            await side.start()
        patience = time.monotonic() + 2 * DEADLINE_S
        while not any(side.over() for side in sides) and time.monotonic() < patience:
            await pair.write()
        (error,) = [error for side in sides if (error := side.over()) is not None]
        assert isinstance(error, ConfigurationError)
        assert re.search("two workers share one slot.*-same.*slot=", str(error))
        await pair.check()


async def test_who_was_refused_waits_for_the_group(own_kafka: Cluster) -> None:
    """Under the old assignment another commit would be in vain: one a second is tried, no more, until the next comes."""
    async with a_pair(own_kafka) as pair:
        one, two = pair.side("one", commits=True), pair.side("two")
        await one.start()
        one.awake.clear()
        await two.start()
        committer = one.worker.committer
        await one.until(lambda: committer.refused >= 1)
        began = time.monotonic()
        await one.until(lambda: committer.refused >= 3)
        assert time.monotonic() - began > 1.5
        one.awake.set()
        await one.until(lambda: committer.moved.is_set() and len(one.worker.shards) == 1)
        await two.commit()
        await pair.check()
