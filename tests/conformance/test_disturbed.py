"""The recorded cases while workers die, lose their disks and are moved about: the same output, exactly once."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.conformance.local import run_on_disk
from tests.conformance.run import Output, difference, expected, run_case
from tests.conformance.test_cases import GROUPS, WAITING, check, group_of, right_answer

if TYPE_CHECKING:
    from pathlib import Path

SEED = 7
"""Decides which cases a usual run takes."""

each_group = pytest.mark.parametrize("group", GROUPS)
each_disturbance = pytest.mark.parametrize("disturbed", ["crash", "lose", "rebalance"])


def sample(group: str, count: int) -> list[dict[str, Any]]:
    """Some cases of a group, the same ones in each run."""
    return random.Random(f"{group} {SEED}").sample(GROUPS[group], count)


async def wanted(case: dict[str, Any]) -> Output:
    """The right answer; where the recorded one is late, what comes out undisturbed."""
    return await run_case(case) if group_of(case) in WAITING else right_answer(case)


@each_disturbance
@each_group
async def test_disturbed_after_each_record(group: str, disturbed: str) -> None:
    """A sample of the cases, with crashes in either mode."""
    ours, theirs = sample(group, 2)
    await check(ours, await wanted(ours), disturbed=disturbed)
    if (
        disturbed == "crash" and group not in WAITING
    ):  # for how long rows wait there, a crash forgets
        await check(theirs, expected(theirs), disturbed=disturbed, compat="kafka-streams")


@pytest.mark.slow
@each_disturbance
@each_group
async def test_disturbed_after_each_record_for_long(group: str, disturbed: str) -> None:
    """All cases, in either mode."""
    for case in GROUPS[group]:
        await check(case, await wanted(case), disturbed=disturbed)
        if group not in WAITING:
            await check(case, expected(case), disturbed=disturbed, compat="kafka-streams")


@pytest.mark.parametrize("group", sorted(random.Random(SEED).sample(sorted(GROUPS), 8)))
async def test_on_disk(group: str, tmp_path: Path) -> None:
    """On the embedded log and RocksDB, with a crash now and then."""
    (case,) = sample(group, 1)
    found = await run_on_disk(case, tmp_path, crash_every=5)
    assert difference(case, found, await wanted(case)) is None


@pytest.mark.slow
@each_group
async def test_on_disk_for_long(group: str, tmp_path: Path) -> None:
    """The same for some cases of every group."""
    for number, case in enumerate(sample(group, 3)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = await run_on_disk(case, folder, crash_every=3)
        assert difference(case, found, await wanted(case)) is None
