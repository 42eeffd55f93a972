"""Bringing a shard's tables up to their changelogs, by bytes: no value is decoded.

Except once, where a table's type is another than when its values were written (`check_stored`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millstream import hooks
from millstream.errors import DecodeError
from millstream.tables import (
    POSITION_KEY,
    RecoveryPlan,
    StorePosition,
    decode_position,
    encode_position,
    plan_recovery,
)
from millstream.transports.batch import iterate_records

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from millstream.clock import Clock
    from millstream.context import IncomingRecord
    from millstream.records import TopicPartition
    from millstream.state.base import ShardStore
    from millstream.tables import TablePart
    from millstream.transports.base import Transport

__all__ = ["RecoveryProgress", "Replay", "check_stored", "recover"]

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
    values_done: int = 0
    values_total: int = 0
    """Stored values that are decoded once, as their type has changed; about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One table to bring up to date.

    ``end`` is given for a table that is read from a topic: it is restored to the committed offset of its
    shard and no further. ``state_key`` turns a record's key into the store's, where they differ, and into None
    where the record is to be left out.
    """

    table: str
    tp: TopicPartition
    topic_id: str
    end: int | None = None
    state_key: Callable[[bytes], bytes | None] | None = None
    index_key: Callable[[bytes], bytes | None] | None = None
    """A second, local entry for each key, which is derived from it."""
    stored_value: Callable[[IncomingRecord], bytes | None] | None = None
    """A record to the bytes that the store has, where these are not its value."""
    position_key: bytes = POSITION_KEY
    leave_out: Callable[[], Collection[int]] = tuple
    """Offsets of records that are no part of the table; asked when what comes first is through."""
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
    first: str = "",
) -> None:
    """Replay what the stores lack. Interrupted, it goes on from where it was.

    Args:
        first: the table that is brought up to date before the others are begun.
    """
    hooks.reached("recovery.started", shard=shard)
    tps = [replay.tp for replay in replays]
    ends = await transport.end_offsets(tps)
    starts = await transport.start_offsets(tps)
    plans: tuple[dict[TopicPartition, tuple[Replay, RecoveryPlan]], ...] = ({}, {})
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
        plans[replay.table != first][replay.tp] = (replay, plan)
        progress.records_total += plan.end - plan.start
    for stage in plans:
        await _replay(store, stage, transport=transport, app=app, clock=clock, progress=progress)
    hooks.reached("recovery.finished", shard=shard)


async def check_stored(part: TablePart, known: str | None, progress: RecoveryProgress) -> None:
    """Decode a table's stored values, unless they are known to be of the present type.

    Raises:
        DecodeError: names table, key and field.
    """
    counted = False
    for checked in part.check_stored(known):
        if not counted:
            progress.values_total += part.store.count()
            counted = True
        progress.values_done += checked
        await asyncio.sleep(0)


async def _replay(
    store: ShardStore,
    plans: Mapping[TopicPartition, tuple[Replay, RecoveryPlan]],
    *,
    transport: Transport,
    app: str,
    clock: Clock,
    progress: RecoveryProgress,
) -> None:
    reader = transport.reader()
    positions = {tp: plan.start for tp, (_, plan) in plans.items()}
    bounds = {tp: plan.end for tp, (_, plan) in plans.items()}
    leave_out = {tp: replay.leave_out() for tp, (replay, _) in plans.items()}
    try:
        for tp in [tp for tp in positions if positions[tp] >= bounds[tp]]:
            _write_position(store, plans[tp][0], positions.pop(tp), app=app, now=clock.now())
        while positions:
            for fetched in await reader.fetch(positions, max_bytes=FETCH_BYTES_MAX, max_wait_s=1.0):
                tp, replay = fetched.tp, plans[fetched.tp][0]
                done = min(fetched.next_offset, bounds[tp])
                await _apply(store, replay, fetched.data, positions[tp], bounds[tp], leave_out[tp])
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


async def _apply(
    store: ShardStore,
    replay: Replay,
    data: bytes,
    start: int,
    end: int,
    leave_out: Collection[int],
) -> None:
    merged: dict[bytes, bytes | None] = {}
    state_key, index_key, stored = replay.state_key, replay.index_key, replay.stored_value
    for record in iterate_records(data, where=str(replay.tp), position=start):
        if record.offset >= end:
            break
        if record.key is None or record.offset in leave_out:
            continue
        key = record.key
        if state_key is not None:
            try:
                made = state_key(key)
            except (TypeError, ValueError) as exc:
                where = f"{replay.tp}@{record.offset}"
                raise DecodeError(
                    where, part="key", type_name=f"that of table {replay.table!r}", reason=str(exc)
                ) from exc
            if made is None:
                continue
            key = made
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
