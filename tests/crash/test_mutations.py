"""Promises that are removed on purpose: the checks must find each of them within a few seeds.

Each mutation patches one thing of the engine, as somebody might break it. Where the check does not find it,
either the check has become blind, or the promise is kept elsewhere too and the mutation has to go.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from millstream import hooks
from millstream.agents import Instance
from millstream.errors import IllegalGenerationError, MillstreamError, UnknownMemberError
from millstream.tables import DELETED, MISSING, POSITION_KEY, StorePosition, encode_position
from millstream.tables._part import TablePart
from millstream.tables._position import RecoveryPlan, plan_recovery
from millstream.transports.base import CommitResult, Epoch
from millstream.transports.memory import MemoryTransport
from millstream.worker import (
    Committer,
    Shard,
    Worker,
    _cut,
    _recovery,
    _subtopology,
    decode_metadata,
    encode_metadata,
)
from millstream.worker._subtopology import SubTopology
from tests.crash.program import APP, Violation
from tests.crash.world import Schedule, run_schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crash.world import World

SEEDS = 100
Patch = pytest.MonkeyPatch

CALM = Schedule(crashes=False, evictions=False, new_generations=False)
REFUSALS = Schedule(crashes=False, evictions=False, steps=80)
EVICTIONS = Schedule(crashes=False, steps=150)
INTERRUPTIONS = replace(CALM, concurrency=0, pauses=(*(-1,) * 30, 2), steps=150)
FAILURES = replace(CALM, fails=(0, 0, 0, 1, 1_000_000_000), steps=80)


async def not_atomic(self: MemoryTransport, epoch: Epoch) -> CommitResult:
    """Records are there before the positions are."""
    self._fence(self._group(epoch.group), epoch)
    hooks.reached("commit.writing")
    encoded = self._encoded(epoch.records)
    self._append(encoded)
    hooks.reached("commit.appended")
    await asyncio.sleep(0)
    self._group(epoch.group).positions.update(epoch.offsets)
    hooks.reached("commit.positioned")
    return CommitResult(next_offsets={tp: self._partition(tp).end_offset for tp in encoded})


def commit_not_atomic(patch: Patch) -> None:
    """Records are appended outside of the transaction with the offsets."""
    patch.setattr(MemoryTransport, "commit", not_atomic)


async def position_first(self: Any, cut: Any, result: CommitResult, now: int) -> None:
    """As `Committer._apply`, the wrong way round."""
    shard = cut.shard
    async with shard.store_lock:
        for part in cut.parts:
            slices = cut.changes[part.name]
            topic = shard.changelog(part.name)
            if not slices:
                continue
            offset = next(
                at for tp, at in result.next_offsets.items() if tp == (topic, shard.number)
            )
            position = StorePosition(offset, self._topic_ids[topic], now, self._app)
            shard.store.write({part.name: {POSITION_KEY: encode_position(position)}})
            hooks.reached("commit.applying", table=part.name)
            await asyncio.sleep(0)
            for slice_ in slices:
                shard.store.write({part.name: slice_})
        shard.settle(cut)


def position_before_data(patch: Patch) -> None:
    """The store says that it holds what it does not hold yet."""
    patch.setattr(Committer, "_apply", position_first)


def unfinished_in_the_cut(patch: Patch) -> None:
    """What unfinished events have done goes with the epoch."""
    patch.setattr(_subtopology, "choose_excluded", lambda events, limits: set())


def generation_of_the_commit(patch: Patch) -> None:
    """The generation is what the group says when the epoch is sent, not what was applied at the cut."""
    send = Committer._send

    async def late(self: Committer, epoch: Epoch) -> CommitResult:
        transport: Any = self._transport
        group = transport.log._groups[APP]
        membership = transport._memberships[-1]
        return await send(
            self,
            replace(epoch, generation=group.generation, member_id=membership._member_id),
        )

    patch.setattr(Committer, "_send", late)


def no_generation(patch: Patch) -> None:
    """The offsets are committed without a generation, as with the oldest TxnOffsetCommit."""
    patch.setattr(MemoryTransport, "_fence", lambda self, group, epoch: None)


def work_kept_for_ever(patch: Patch) -> None:
    """Uncommitted work outlives an eviction, and gaps between generations."""
    fence, apply = MemoryTransport._fence, Worker._apply

    def soft(self: MemoryTransport, group: Any, epoch: Epoch) -> None:
        try:
            fence(self, group, epoch)
        except UnknownMemberError as exc:
            raise IllegalGenerationError(str(exc)) from exc

    async def steady(self: Worker, assignment: Any) -> None:
        if self.assignment is not None:
            self.assignment = replace(assignment, generation=assignment.generation - 1)
        await apply(self, assignment)

    tell = Worker._metadata

    def without_copies(self: Worker, *args: Any, **facts: Any) -> bytes:
        # a shard that comes back by way of a warm copy has been given up before, whatever else is broken
        told = decode_metadata(tell(self, *args, **facts))
        return encode_metadata(msgspec.structs.replace(told, keeps_copies=False))

    patch.setattr(MemoryTransport, "_fence", soft)
    patch.setattr(Worker, "_apply", steady)
    patch.setattr(Worker, "_metadata", without_copies)


def rewind_keeps_the_overlay(patch: Patch) -> None:
    """A rewind reads the changelog, and leaves what agents have written in memory."""
    recover, reset = Shard._recover, Shard._reset

    def forgetful(self: Shard) -> None:
        kept = self.own_parts
        reset(self)
        self.own_parts = kept

    async def keeping(self: Shard) -> None:
        kept = self.own_parts
        await recover(self)
        if kept:
            self.own_parts = kept
            self.parts = dict(kept)

    patch.setattr(Shard, "_reset", forgetful)
    patch.setattr(Shard, "_recover", keeping)


def recovery_from_the_end(patch: Patch) -> None:
    """Recovery goes by the log's end and not by the store's own position."""
    plan = plan_recovery

    def far(found: StorePosition | None, **facts: Any) -> RecoveryPlan:
        planned = plan(found, **facts)
        return (
            planned if planned.rebuild else RecoveryPlan(planned.end, planned.end, planned.written)
        )

    patch.setattr(_recovery, "plan_recovery", far)


def shared_values(patch: Patch) -> None:
    """A value on its way to the log is handed to the next event as it is."""
    load = TablePart._load_mutable

    def shared(self: TablePart, key: Any) -> Any:
        value = self.committing.get(key, MISSING)
        if value is MISSING or value is DELETED or key in self.committing_fresh:
            return load(self, key)
        self.dirty[key] = value
        return value

    patch.setattr(TablePart, "_load_mutable", shared)


def timers_without_offsets(patch: Patch) -> None:
    """An epoch in which only a timer has written brings no offsets."""
    cut = Shard.cut

    def bare(self: Shard) -> Any:
        made = cut(self)
        if made is not None and all(
            offset == self.committed.get(tp) for tp, (offset, _) in made.offsets.items()
        ):
            made.offsets.clear()
        return made

    patch.setattr(Shard, "cut", bare)


def ties_ignored(patch: Patch) -> None:
    """Who has seen an unfinished event's work is committed without it."""

    def loose(events: Any, limits: Any) -> Any:
        for event in events:
            event.depends.clear()
        return _cut.choose_excluded(events, limits)

    patch.setattr(_subtopology, "choose_excluded", loose)


def images_not_restored(patch: Patch) -> None:
    """After a refusal, what an open event found is still said to be of an earlier epoch."""
    patch.setattr(TablePart, "_restore_images", lambda self, events: None)


def outputs_not_given_back(patch: Patch) -> None:
    """After a refusal, tables go with the next epoch, and outputs do not."""
    give_back = Shard.give_back

    def forgetful(self: Shard, cut: Any) -> None:
        for share in cut.shares:
            share.outputs.clear()
        give_back(self, cut)

    patch.setattr(Shard, "give_back", forgetful)


def deletions_forgotten(patch: Patch) -> None:
    """A default that is read after a deletion hides the deletion."""
    keep = TablePart.keep_default

    def hiding(self: TablePart, key: Any, value: Any) -> None:
        keep(self, key, value)
        self.gone.discard(key)

    patch.setattr(TablePart, "keep_default", hiding)


def rest_forgotten(patch: Patch) -> None:
    """What an interrupted instance leaves of its run counts as finished until it is taken back."""
    take = Instance.position

    def hasty(self: Instance, tp: Any) -> int | None:
        if tp not in self.held and self.idle.is_set() and not self._again:
            return None
        return take(self, tp)

    patch.setattr(Instance, "position", hasty)


def undo_forgets_who_was_before(patch: Patch) -> None:
    """After an event is undone, its predecessors on an entry are tied to nobody."""

    def careless(self: SubTopology, scope: Any, part: Any, key: Any) -> None:
        del part.last_toucher[key]

    patch.setattr(SubTopology, "_forget_toucher", careless)


def undo_leaves_writes(patch: Patch) -> None:
    """A failed event's outputs go, and its writes stay."""
    patch.setattr(TablePart, "undo", lambda self, key, before: None)


def overlaps_ignored(patch: Patch) -> None:
    """Journals begin, and events in the middle that have none go with the epoch."""
    cut = SubTopology.cut

    def hasty(self: SubTopology, positions: Any) -> Any:
        if not self.journaled and self.in_progress():
            self.set_journaled(True)
        self.overlapped = False
        return cut(self, positions)

    patch.setattr(SubTopology, "cut", hasty)


def merged_in_the_middle(patch: Patch) -> None:
    """Where two sub-topologies become one, what is in the middle without a journal counts for nothing."""
    absorb = SubTopology.absorb

    def careless(self: SubTopology, other: SubTopology) -> None:
        absorb(self, other)
        self.overlapped = False

    patch.setattr(SubTopology, "absorb", careless)


def never_merged(patch: Patch) -> None:
    """Who uses a table of another sub-topology stays apart."""

    def apart(self: Shard, name: str, table: str) -> None:
        if table not in self._owners:
            connect(self, name, table)

    connect = Shard.connect
    patch.setattr(Shard, "connect", apart)


DIES_AT: dict[Callable[[Patch], None], str] = {
    commit_not_atomic: "commit.appended",
    position_before_data: "commit.applying",
}
"""Where a process dies early in each schedule, besides what the schedule has of its own."""

FOUND_BY: dict[Callable[[Patch], None], int] = {
    position_before_data: 7,
    no_generation: 6,
    generation_of_the_commit: 17,
    work_kept_for_ever: 6,
    undo_forgets_who_was_before: 6,
    merged_in_the_middle: 5,
}
"""Which seed is tried before the others, as it has shown the mutation before: a hint, which may become wrong."""

MUTATIONS: list[tuple[Callable[[Patch], None], Schedule]] = [
    (commit_not_atomic, Schedule()),
    (position_before_data, Schedule()),
    (unfinished_in_the_cut, CALM),
    (no_generation, EVICTIONS),
    (generation_of_the_commit, EVICTIONS),
    (work_kept_for_ever, EVICTIONS),
    (rewind_keeps_the_overlay, FAILURES),
    (recovery_from_the_end, Schedule()),
    (shared_values, CALM),
    (timers_without_offsets, CALM),
    (ties_ignored, CALM),
    (images_not_restored, REFUSALS),
    (outputs_not_given_back, REFUSALS),
    (deletions_forgotten, CALM),
    (rest_forgotten, INTERRUPTIONS),
    (undo_forgets_who_was_before, FAILURES),
    (undo_leaves_writes, FAILURES),
    (overlaps_ignored, INTERRUPTIONS),
    (merged_in_the_middle, CALM),
    (never_merged, INTERRUPTIONS),
]


async def found_by(mutate: Callable[[Patch], None], schedule: Schedule, patch: Patch) -> int | None:
    """A seed whose schedule shows the mutation."""
    point = DIES_AT.get(mutate)

    def prepare(world: World) -> None:
        if point is not None:
            world.arm(point, "crash")

    with patch.context() as mutated:
        mutate(mutated)
        hint = FOUND_BY.get(mutate, 0)
        for seed in (hint, *(seed for seed in range(SEEDS) if seed != hint)):
            mutated.setattr(_subtopology, "QUIET_EVENTS", 3 if seed % 2 else 2_000)
            try:
                await run_schedule(seed, schedule, prepare=prepare, rounds=150)
            except (Violation, MillstreamError, AssertionError, KeyError):
                return seed
    return None


@pytest.mark.parametrize(
    ("mutate", "schedule"), MUTATIONS, ids=[mutate.__name__ for mutate, _ in MUTATIONS]
)
async def test_found(
    mutate: Callable[[Patch], None], schedule: Schedule, monkeypatch: Patch
) -> None:
    """The checks see that the promise is gone."""
    assert await found_by(mutate, schedule, monkeypatch) is not None
