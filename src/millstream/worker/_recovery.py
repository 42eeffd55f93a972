"""Bringing a shard's tables up to their changelogs, by bytes: no value is decoded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millstream import hooks
from millstream.tables import (
    POSITION_KEY,
    StorePosition,
    decode_position,
    encode_position,
    plan_recovery,
)
from millstream.transports.batch import iterate_records

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from millstream.clock import Clock
    from millstream.context import IncomingRecord
    from millstream.records import TopicPartition
    from millstream.state.base import ShardStore
    from millstream.transports.base import Transport

__all__ = ["RecoveryProgress", "Replay", "recover"]

FETCH_BYTES_MAX = 4 << 20
SLICE_RECORDS = 4_096
"""Records that are merged and written before the event loop turns."""


@dataclass(slots=True)
class RecoveryProgress:
    """How far recovery has come, over all shards of a worker."""

    records_done: int = 0
    records_total: int = 0
    rebuilt: dict[str, str] = field(default_factory=dict)
    """Why stores were emptied first, by ``table/shard``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One table to bring up to date.

    ``end`` is given for a table that is read from a topic: it is restored to the committed offset of its
    shard and no further. ``state_key`` turns a record's key into the store's, where they differ.
    """

    table: str
    tp: TopicPartition
    topic_id: str
    end: int | None = None
    state_key: Callable[[bytes], bytes] | None = None
    index_key: Callable[[bytes], bytes | None] | None = None
    """A second, local entry for each key, which is derived from it."""
    stored_value: Callable[[IncomingRecord], bytes | None] | None = None
    """A record to the bytes that the store has, where these are not its value."""
    position_key: bytes = POSITION_KEY
    keep_on_rebuild: bool = False
    """Whether other partitions share the table's store: it is not emptied for this one."""


async def recover(
    store: ShardStore,
    replays: list[Replay],
    *,
    transport: Transport,
    app: str,
    clock: Clock,
    progress: RecoveryProgress,
    shard: str,
) -> None:
    """Replay what the stores lack. Interrupted, it goes on from where it was."""
    hooks.reached("recovery.started", shard=shard)
    tps = [replay.tp for replay in replays]
    ends = await transport.end_offsets(tps)
    starts = await transport.start_offsets(tps)
    plans = {}
    for replay in replays:
        found = decode_position(store.table(replay.table).get(replay.position_key))
        end = ends[replay.tp] if replay.end is None else min(replay.end, ends[replay.tp])
        plan = plan_recovery(
            found,
            topic_id=replay.topic_id,
            app=app,
            log_start=min(starts[replay.tp], end),
            log_end=end,
            now=clock.now(),
        )
        if plan.rebuild and plan.reason != "new":
            progress.rebuilt[f"{replay.table}/{shard}"] = plan.reason
            if not replay.keep_on_rebuild:
                store.drop(replay.table)
        plans[replay.tp] = (replay, plan)
        progress.records_total += plan.end - plan.start
    await _replay(store, plans, transport=transport, app=app, clock=clock, progress=progress)
    hooks.reached("recovery.finished", shard=shard)


async def _replay(
    store: ShardStore,
    plans: Mapping[TopicPartition, tuple[Replay, object]],
    *,
    transport: Transport,
    app: str,
    clock: Clock,
    progress: RecoveryProgress,
) -> None:
    reader = transport.reader()
    positions = {tp: plan.start for tp, (_, plan) in plans.items()}  # type: ignore[attr-defined]
    bounds = {tp: plan.end for tp, (_, plan) in plans.items()}  # type: ignore[attr-defined]
    try:
        for tp in [tp for tp in positions if positions[tp] >= bounds[tp]]:
            _write_position(store, plans[tp][0], positions.pop(tp), app=app, now=clock.now())
        while positions:
            for fetched in await reader.fetch(positions, max_bytes=FETCH_BYTES_MAX, max_wait_s=1.0):
                tp, replay = fetched.tp, plans[fetched.tp][0]
                done = min(fetched.next_offset, bounds[tp])
                await _apply(store, replay, fetched.data, positions[tp], bounds[tp])
                progress.records_done += done - positions[tp]
                _write_position(store, replay, done, app=app, now=clock.now())
                positions[tp] = done
                hooks.reached("recovery.slice", table=replay.table)
                if done >= bounds[tp]:
                    del positions[tp]
    finally:
        await reader.close()


def _write_position(store: ShardStore, replay: Replay, offset: int, *, app: str, now: int) -> None:
    position = StorePosition(offset, replay.topic_id, now, app)
    store.write({replay.table: {replay.position_key: encode_position(position)}})


async def _apply(store: ShardStore, replay: Replay, data: bytes, start: int, end: int) -> None:
    merged: dict[bytes, bytes | None] = {}
    state_key, index_key, stored = replay.state_key, replay.index_key, replay.stored_value
    for record in iterate_records(data, where=str(replay.tp), position=start):
        if record.offset >= end:
            break
        if record.key is None:
            continue
        key = record.key if state_key is None else state_key(record.key)
        merged[key] = record.value if stored is None else stored(record)
        if index_key is not None:
            index = index_key(key)
            if index is not None:
                merged[index] = None if record.value is None else b""
        if len(merged) >= SLICE_RECORDS:
            store.write({replay.table: merged})
            merged = {}
            await asyncio.sleep(0)
    if merged:
        store.write({replay.table: merged})
        await asyncio.sleep(0)
