"""Seeded schedules of two workers on one log in memory: sends, time, crashes, lost disks, new generations, evictions.

A failure names its seed; ``python -m tests.crash.test_in_process SEED`` runs that one again.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import TYPE_CHECKING

import pytest

from millstream.hooks import POINTS
from millstream.worker import _subtopology
from tests.crash.program import ALWAYS, KEYS, PARTITIONS, Event
from tests.crash.world import (
    AFTER_THE_LOG,
    BEFORE_THE_FENCE,
    CRASH_POINTS,
    Schedule,
    World,
    run_schedule,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SEEDS = 40
LONG_SEEDS = 3_000
CHUNK = 20


def some(always: range, *, of: range) -> pytest.MarkDecorator:
    """Seeds of a schedule: those of each run, which meet every setting that all of them do, and the rest in the long one."""
    rest = [seed for seed in of if seed not in always]
    return pytest.mark.parametrize(
        "seeds", [always, pytest.param(rest, marks=pytest.mark.slow)], ids=["some", "rest"]
    )


seen: dict[int, set[str]] = {}
"""Which points were reached, by the first seed of a chunk of `test_everything_at_once`."""


def quiet_events(seed: int) -> int:
    """How soon shards stop to keep journals: both ways of working are to be met."""
    return random.Random(seed).choice([3, 30, 2_000])


async def run_seeds(
    seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch, schedule: Schedule
) -> set[str]:
    """Run some schedules, and tell which points they reached."""
    reached: set[str] = set()
    for seed in seeds:
        monkeypatch.setattr(_subtopology, "QUIET_EVENTS", quiet_events(seed))
        reached |= (await run_schedule(seed, schedule)).seen
    return reached


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
async def test_everything_at_once(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to two workers, each commit is what its positions say, and the end is whole.

    Every other time each of them keeps copies of the other one's shards.
    """
    schedule = Schedule(standby_replicas=first // CHUNK % 2)
    seen[first] = await run_seeds(range(first, first + CHUNK), monkeypatch, schedule)


async def test_every_point_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A named point that no schedule reaches would be tested by nobody."""
    if not seen:  # this test runs alone
        seen[0] = await run_seeds(range(CHUNK), monkeypatch, Schedule())
    assert set().union(*seen.values()) >= set(CRASH_POINTS)


def test_every_step_has_a_point() -> None:
    """Each point that is declared is one that a process dies at, here or as it leaves its group."""
    assert set(CRASH_POINTS) == set(POINTS) - {"group.left"}


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10_000, 10_000 + LONG_SEEDS, 10 * CHUNK))
async def test_everything_at_once_for_long(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with many more seeds."""
    await run_seeds(range(first, first + 10 * CHUNK), monkeypatch, Schedule())


@some(range(204, 209), of=range(200, 210))
@pytest.mark.parametrize("concurrency", [0, 1, 4, 100])
async def test_new_generations_give_work_back(
    concurrency: int, seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch that is refused while its shards stay goes with the next one, whole."""
    schedule = Schedule(concurrency=concurrency, crashes=False, evictions=False, steps=80)
    await run_seeds(seeds, monkeypatch, schedule)


@some(range(306, 314), of=range(300, 315))
async def test_evictions_drop_everything(
    seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that the group has removed takes nothing of what it had not committed with it."""
    schedule = Schedule(crashes=False, new_generations=False, steps=80)
    await run_seeds(seeds, monkeypatch, schedule)


@pytest.mark.parametrize("point", CRASH_POINTS)
async def test_a_crash_at_each_point(point: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies at a named point of its life leaves nothing half-done."""
    for seed in range(400, 402):
        monkeypatch.setattr(_subtopology, "QUIET_EVENTS", quiet_events(seed))
        await run_schedule(seed, Schedule(), prepare=lambda world: world.arm(point, "crash"))


@pytest.mark.parametrize("action", ["generation", "evict"])
@pytest.mark.parametrize("point", [*BEFORE_THE_FENCE, *AFTER_THE_LOG])
async def test_a_group_that_moves_on_at_each_point(
    point: str, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new generation or an eviction at a named point of a commit is noticed at the fence, or comes too late."""
    for seed in range(500, 502):
        monkeypatch.setattr(_subtopology, "QUIET_EVENTS", quiet_events(seed))
        await run_schedule(seed, Schedule(), prepare=lambda world: world.arm(point, action))


@some(range(602, 607), of=range(600, 610))
async def test_unfinished_events(seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred events at once, asleep for random times, on shared keys: nothing is lost, repeated or out of order."""
    schedule = Schedule(concurrency=100, pauses=(0, 1, 2, 5, 9, 30), steps=100)
    await run_seeds(seeds, monkeypatch, schedule)


@some(range(703, 708), of=range(700, 710))
async def test_values_changed_in_place(
    seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an await in the middle of a change, half a change is in no epoch."""
    schedule = Schedule(concurrency=4, pauses=(0, 0, 1, 4), steps=100)
    await run_seeds(seeds, monkeypatch, schedule)


@some(range(803, 811), of=range(800, 815))
async def test_failed_events_leave_nothing(
    seeds: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that fails for good leaves no trace, one that works the second time counts once."""
    schedule = Schedule(fails=(*(0,) * 15, 1, ALWAYS), steps=80)
    await run_seeds(seeds, monkeypatch, schedule)


@pytest.mark.parametrize("concurrency", [0, 20])
async def test_values_that_cannot_be_committed(
    concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that is found to be wrong at the commit only: its event leaves no trace, or counts once."""
    fails = (*(0,) * 40, 1, ALWAYS, -1, -ALWAYS, -ALWAYS)
    schedule = Schedule(fails=fails, concurrency=concurrency, steps=60)
    await run_seeds(range(900, 905), monkeypatch, schedule)


async def test_ties_do_not_hold_commits_up_for_ever() -> None:
    """Where events on shared keys overlap without end, intake stops now and then, so that they are committed."""
    world = World(3, Schedule(workers=1, concurrency=50, steps=0))
    await world.run_with(_overlapping)


async def _overlapping(world: World) -> None:
    (member,) = world.members
    behind = 0
    for number in range(120):
        for _ in range(3):
            await world.send_event(world.event(stall=-1, note=-1, slow=world.rng.randint(5, 30)))
        for _ in range(30):
            await asyncio.sleep(0)
        world.clock.move_to(world.clock.now() + 5)
        member.commit()
        for _ in range(20):
            await asyncio.sleep(0)
        view = world.view()
        lags = [
            len(view.of("events", partition)) - view.position("slow", "events", partition)
            for partition in range(PARTITIONS)
        ]
        behind = max(lags) if number % 60 == 59 else behind
    assert behind < 150, "360 events were sent, and those of a quarter of a second may wait"
    sent = sum(len(view.of("events", partition)) for partition in range(PARTITIONS))
    assert sum(lags) < sent * 3 // 4


FIRST = -1
"""The id of an event that comes before all others; those of one key ascend."""


async def test_a_slow_event_does_not_hold_up_the_others() -> None:
    """Commits go on while one event is in progress, in other shards and for other agents of its own."""
    world = World(1, Schedule(workers=1, concurrency=100, steps=0, pauses=(0,)))
    await world.run_with(_one_slow_event)


async def _one_slow_event(world: World) -> None:
    (member,) = world.members
    await world.send_event(Event(FIRST, KEYS[0], "group-0", stall=1_000_000, note=-1, slow=-1))
    for _ in range(10):
        await world.send(5)
        for _ in range(60):
            await asyncio.sleep(0)
        member.commit()
        for _ in range(60):
            await asyncio.sleep(0)
    for _ in range(60):
        await member.commit_now()
    view = world.view()
    for partition in range(PARTITIONS):
        records = view.of("events", partition)
        stuck = any(f'"id":{FIRST},'.encode() in (entry.value or b"") for entry in records)
        for agent in ("note", "slow", "window", "count"):
            done = view.position(agent, "events", partition)
            if agent == "count" and stuck:
                assert done <= records[0].offset
            else:
                assert done == records[-1].offset + 1
    world.clock.move_to(world.clock.now() + 2_000_000)


if __name__ == "__main__":
    for number in map(int, sys.argv[1:]):
        _subtopology.QUIET_EVENTS = quiet_events(number)
        asyncio.run(run_schedule(number))
