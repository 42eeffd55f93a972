"""Workers of two releases in one group, of which the newer one shares out shards by a version that the older one does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from millstream.app import _runtime
from millstream.worker import (
    MemberMetadata,
    ShardAssignment,
    Worker,
    _copies,
    decode_assignment,
    decode_metadata,
    encode_metadata,
)
from millstream.worker._assign import Assignor
from millstream.worker._assign_plan import plan_shards
from tests.worker.copying import SHARDS, Group, group

if TYPE_CHECKING:
    from collections.abc import Mapping


def plan_for_one(members: Mapping[str, MemberMetadata]) -> dict[str, ShardAssignment]:
    """A next version of the plan that one can tell from the first: the last worker by name keeps no standby."""
    plan = plan_shards(members)
    last = max(plan)
    return {
        name: msgspec.structs.replace(given, standby=()) if name == last else given
        for name, given in plan.items()
    }


class NextWorker(Worker):
    """A worker of the next release: it knows both versions, and says something that this release does not know."""

    assign = Assignor({1: plan_shards, 2: plan_for_one})

    def _metadata(self, share: ShardAssignment, *, generation: int) -> bytes:
        said = decode_metadata(super()._metadata(share, generation=generation))
        data = encode_metadata(msgspec.structs.replace(said, version=2))
        return msgspec.msgpack.encode([*msgspec.msgpack.decode(data), {"next": True}])


def versions(group: Group) -> set[int]:
    """By which plans the workers have their shards."""
    found = set()
    for member in group.members.values():
        assert member.worker.assignment is not None
        found.add(decode_assignment(member.worker.assignment.assigned).version)
    return found


@pytest.mark.parametrize("back", [False, True])
async def test_a_rolling_upgrade(monkeypatch: pytest.MonkeyPatch, back: bool) -> None:
    """One worker after the other: the old plan holds until the last old one is gone, and nothing is lost or repeated.

    Whoever leads. And so too where the upgrade is taken back halfway.
    """
    monkeypatch.setattr(_copies, "LOOK_S", 0.05)

    async def replace(made: Group, name: str, release: type[Worker]) -> None:
        await made.stop(name)
        monkeypatch.setattr(_runtime, "Worker", release)
        await made.start(name)
        await made.write()
        await made.settled()

    async with group(standby_replicas=1) as made:
        for name in "abc":
            await made.start(name)
        await made.write()
        await made.settled()
        for name in "ab":
            await replace(made, name, NextWorker)
            assert versions(made) == {1}
        if back:
            for name in "ab":
                await replace(made, name, Worker)
                assert versions(made) == {1}
            return
        await replace(made, "c", NextWorker)
        assert versions(made) == {2}
        copies = [len(member.copied) for member in made.members.values()]
        assert min(copies) == 0
        assert sum(copies) < SHARDS
