"""The recorded cases while workers die, lose their disks and are moved about: the same output, exactly once."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.conformance.local import run_on_disk
from tests.conformance.run import difference, expected
from tests.conformance.test_cases import GROUPS, check, right_answer

if TYPE_CHECKING:
    from pathlib import Path

SEED = 7
"""Decides which cases a usual run takes."""

each_group = pytest.mark.parametrize("group", GROUPS)
each_disturbance = pytest.mark.parametrize("disturbed", ["crash", "lose", "rebalance", "torn"])


def sample(group: str, count: int) -> list[dict[str, Any]]:
    """Some cases of a group, the same ones in each run."""
    return random.Random(f"{group} {SEED}").sample(GROUPS[group], count)


@each_disturbance
@each_group
async def test_disturbed_after_each_record(group: str, disturbed: str) -> None:
    """A sample of the cases, with crashes in either mode."""
    ours, theirs = sample(group, 2)
    await check(ours, right_answer(ours), disturbed=disturbed)
    if disturbed == "crash":
        await check(theirs, expected(theirs), disturbed=disturbed, compat="kafka-streams")


@pytest.mark.slow
@each_disturbance
@each_group
async def test_disturbed_after_each_record_for_long(group: str, disturbed: str) -> None:
    """All cases, in either mode."""
    for case in GROUPS[group]:
        await check(case, right_answer(case), disturbed=disturbed)
        await check(case, expected(case), disturbed=disturbed, compat="kafka-streams")


SOME = sorted(random.Random(SEED).sample(sorted(GROUPS), 8))
"""Groups of which a usual run takes a case on disk."""


@pytest.mark.parametrize("group", SOME)
async def test_on_disk(group: str, tmp_path: Path) -> None:
    """On the embedded log and RocksDB, with a crash now and then."""
    (case,) = sample(group, 1)
    found = await run_on_disk(case, tmp_path, crash_every=5)
    assert difference(case, found, right_answer(case)) is None


@pytest.mark.parametrize("group", SOME[:4])
async def test_moved_on_disk(group: str, tmp_path: Path) -> None:
    """In the middle the shard moves to another worker, with a disk of its own."""
    (case,) = sample(group, 1)
    found = await run_on_disk(case, tmp_path, moves=True)
    assert difference(case, found, right_answer(case)) is None


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"crash_every": 1}, {"moves": True}], ids=["crashed", "moved"])
@each_group
async def test_on_disk_for_long(group: str, how: dict[str, Any], tmp_path: Path) -> None:
    """A crash after each record, and a move in the middle, for some cases of every group."""
    for number, case in enumerate(sample(group, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = await run_on_disk(case, folder, **how)
        assert difference(case, found, right_answer(case)) is None
