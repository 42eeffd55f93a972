"""Bringing a shard's tables up to their changelogs, by bytes: no value is decoded.

Except once, where a table's type is another than when its values were written (`check_stored`).

Theory of operation
-------------------
Where a table is in its log is kept in its store, beside the data, and written again with each piece that was replayed.
So whatever ends a replay (a kill, a rebalance that takes the shard away), the next one goes on from there. Values
are absolute: a piece that was written without its position is replayed again, and nothing comes of it.

Of a compacted log a replay sees what is left. A value that it has read, and whose tombstone it reads only a day later,
may stay for ever, because the tombstone is gone by then. So a position tells *since when* the store may lack
deletions: since it was at the end the last time, or was begun empty. Positions on the way do not make it younger.

Several shards are replayed at once. What they hold in memory is bounded for all of them together: `recover`
lets a few of them (``turns``) fetch and apply at a time.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from millstream import hooks
from millstream.errors import DecodeError, OffsetOutOfRangeError
from millstream.records import TopicPartition
from millstream.tables import (
    POSITION_KEY,
    RecoveryPlan,
    StorePosition,
    decode_position,
    encode_position,
    plan_recovery,
)
from millstream.transports.batch import iterate_batches

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from millstream.clock import Clock
    from millstream.context import IncomingRecord
    from millstream.state.base import ShardStore
    from millstream.tables import TablePart
    from millstream.transports.base import Fetched, Transport

__all__ = [
    "Bounds",
    "RecoveryProgress",
    "Replay",
    "Replaying",
    "check_stored",
    "look_up",
    "recover",
    "replay_of",
    "replay_slices",
    "start_replays",
    "write_position",
]

FETCH_BYTES_MAX = 4 << 20
"""What one shard fetches at a time."""
FETCHES_MAX = 4
"""How many shards of a worker fetch and apply at the same time; the others wait for their turn, in order."""
FETCH_WAIT_S = 0.2
"""How long a shard keeps its turn while nothing comes: the last epoch of another owner may still be open."""
SLICE_RECORDS = 4_096
"""Records that are merged, or written, before the event loop turns."""
ATTEMPTS = 5
"""How often a replay is planned anew because the log has let go of the records that it was to read."""


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


class RecoveredTable(Protocol):
    """What is needed of a table's description."""

    @property
    def name(self) -> str: ...
    @property
    def changelog(self) -> str | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def state_key(self) -> Callable[[bytes], bytes] | None: ...
    @property
    def index_key(self) -> Callable[[bytes], bytes | None] | None: ...
    @property
    def stored_value(self) -> Callable[[IncomingRecord], bytes | None] | None: ...


def replay_of(table: RecoveredTable, number: int, topic_ids: Mapping[str, str]) -> Replay:
    """How a shard's part of a table is replayed, to the end of its log."""
    topic = table.changelog or table.source
    assert topic is not None
    return Replay(
        table=table.name,
        tp=TopicPartition(topic, number),
        topic_id=topic_ids[topic],
        state_key=table.state_key,
        index_key=table.index_key,
        stored_value=table.stored_value,
    )


class Bounds(NamedTuple):
    """Where logs begin and end."""

    starts: Mapping[TopicPartition, int]
    ends: Mapping[TopicPartition, int]


@dataclass(slots=True)
class Replaying:
    """A table on its way to ``end``; its store has everything before ``position``."""

    replay: Replay
    position: int
    end: int
    written: int
    """See `StorePosition`."""
    leave_out: Collection[int] = ()


async def recover(
    store: ShardStore,
    replays: Sequence[Replay],
    *,
    transport: Transport,
    app: str,
    clock: Clock,
    progress: RecoveryProgress,
    shard: str,
    first: str = "",
    turns: asyncio.Semaphore | None = None,
) -> None:
    """Replay what the stores lack. Interrupted, it goes on from where it was.

    Args:
        first: the table that is brought up to date before the others are begun.
        turns: bounds how many shards fetch and apply at once.
    """
    hooks.reached("recovery.started", shard=shard)
    attempt = 1
    while True:
        now = clock.now()
        bounds = await look_up(transport, replays)
        begun = start_replays(
            store, replays, bounds, app=app, now=now, progress=progress, shard=shard
        )
        stages = (
            [each for each in begun if each.replay.table == first],
            [each for each in begun if each.replay.table != first],
        )
        try:
            for stage in stages:
                for each in stage:
                    each.leave_out = each.replay.leave_out()
                await _replay(
                    store,
                    stage,
                    transport=transport,
                    app=app,
                    reached=now,
                    progress=progress,
                    turns=turns or asyncio.Semaphore(),
                )
        except OffsetOutOfRangeError:
            # retention has passed us on the way: what is still there is planned anew
            if attempt == ATTEMPTS:
                raise
            attempt += 1
        else:
            break
    hooks.reached("recovery.finished", shard=shard)


async def look_up(transport: Transport, replays: Sequence[Replay]) -> Bounds:
    """Where the logs of tables begin and end now; the end is the high watermark (invariant 13)."""
    tps = [replay.tp for replay in replays]
    ends = await transport.end_offsets(tps)
    return Bounds(await transport.start_offsets(tps), ends)


def start_replays(
    store: ShardStore,
    replays: Sequence[Replay],
    bounds: Bounds,
    *,
    app: str,
    now: int,
    progress: RecoveryProgress,
    shard: str,
) -> list[Replaying]:
    """Find out what the store lacks, and empty what cannot be gone on with.

    Args:
        now: the wall clock (ms) before the logs were asked for their bounds.
    """
    begun = []
    for replay in replays:
        table = store.table(replay.table)
        found = decode_position(table.get(replay.position_key))
        log_end = bounds.ends[replay.tp]
        end = log_end if replay.end is None else min(replay.end, log_end)
        plan = plan_recovery(
            found,
            topic_id=replay.topic_id,
            app=app,
            log_start=min(bounds.starts[replay.tp], end),
            log_end=end,
            now=now,
            tail_kept=1 if end == log_end else 0,
        )
        if plan.rebuild:
            _empty(store, replay, plan, progress=progress, app=app, shard=shard)
        progress.records_total += plan.end - plan.start
        begun.append(Replaying(replay, plan.start, plan.end, plan.written))
    return begun


def _empty(
    store: ShardStore,
    replay: Replay,
    plan: RecoveryPlan,
    *,
    progress: RecoveryProgress,
    app: str,
    shard: str,
) -> None:
    if plan.reason != "new":
        progress.rebuilt[f"{replay.table}/{shard}"] = plan.reason
    if not replay.keep_on_rebuild and (
        # without a position it should be empty; a kill may have left data of which nobody knows how old it is
        plan.reason != "new" or next(iter(store.table(replay.table).keys()), None) is not None
    ):
        store.drop(replay.table)
    position = StorePosition(plan.start, replay.topic_id, plan.written, app)
    store.write({replay.table: {replay.position_key: encode_position(position)}})


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
    stage: Sequence[Replaying],
    *,
    transport: Transport,
    app: str,
    reached: int,
    progress: RecoveryProgress,
    turns: asyncio.Semaphore,
) -> None:
    """Bring tables to their ends.

    Args:
        reached: when these were the ends.
    """
    reader = transport.reader()
    try:
        for each in stage:
            if each.position >= each.end:
                each.written = reached
                write_position(store, each, app=app)
        while left := [each for each in stage if each.position < each.end]:
            positions: dict[TopicPartition, int] = {}
            for each in left:
                tp = each.replay.tp
                positions[tp] = min(each.position, positions.get(tp, each.position))
            async with turns:
                brought = await reader.fetch(
                    positions, max_bytes=FETCH_BYTES_MAX, max_wait_s=FETCH_WAIT_S
                )
                for fetched in brought:
                    for each in [each for each in left if each.replay.tp == fetched.tp]:
                        before = each.position
                        if min(fetched.next_offset, each.end) >= each.end:
                            each.written = reached
                        for _ in replay_slices(store, each, fetched, app=app):
                            await asyncio.sleep(0)
                        progress.records_done += each.position - before
                        hooks.reached("recovery.slice", table=each.replay.table)
    finally:
        await reader.close()


def write_position(store: ShardStore, each: Replaying, *, app: str) -> None:
    """Note how far a table has come."""
    store.write({each.replay.table: {each.replay.position_key: _position(each, app)}})


def _position(each: Replaying, app: str) -> bytes:
    return encode_position(StorePosition(each.position, each.replay.topic_id, each.written, app))


def replay_slices(
    store: ShardStore, each: Replaying, fetched: Fetched, *, app: str
) -> Iterator[None]:
    """Apply what was fetched of a table, up to its end, in steps of a few ms; its position comes last.

    Whoever stops between two steps has lost nothing but the steps.
    """
    position = min(fetched.next_offset, each.end)
    if position <= each.position:
        return
    merged: dict[bytes, bytes | None] = {}
    yield from _merge(each, fetched.data, merged)
    keys = sorted(merged)
    for at in range(0, len(keys) - SLICE_RECORDS, SLICE_RECORDS):
        store.write({each.replay.table: {k: merged[k] for k in keys[at : at + SLICE_RECORDS]}})
        yield
    rest = keys[(len(keys) - 1) // SLICE_RECORDS * SLICE_RECORDS :] if keys else []
    last = {key: merged[key] for key in rest}
    each.position = position
    last[each.replay.position_key] = _position(each, app)
    store.write({each.replay.table: last})
    yield


def _merge(each: Replaying, data: bytes, merged: dict[bytes, bytes | None]) -> Iterator[None]:
    """The last value of each key; a record that was replaced in the same piece is never written."""
    replay, start, end, leave_out = each.replay, each.position, each.end, each.leave_out
    plain = replay.state_key is None and replay.index_key is None and replay.stored_value is None
    count = 0
    for batch in iterate_batches(data, where=str(replay.tp)):
        if batch.is_control_batch or batch.base_offset >= end:
            continue
        if plain and not leave_out:
            for record in batch:
                key = record.key
                if key is not None and start <= record.offset < end:
                    merged[key] = record.value
                count += 1
        else:
            for record in batch:
                if start <= record.offset < end and record.offset not in leave_out:
                    _merge_one(replay, record, merged)
                count += 1
        if count >= SLICE_RECORDS:
            count = 0
            yield


def _merge_one(replay: Replay, record: IncomingRecord, merged: dict[bytes, bytes | None]) -> None:
    key = record.key
    if key is None:
        return
    if replay.state_key is not None:
        try:
            made = replay.state_key(key)
        except (TypeError, ValueError) as exc:
            raise DecodeError(
                f"{replay.tp}@{record.offset}",
                part="key",
                type_name=f"that of table {replay.table!r}",
                reason=str(exc),
            ) from exc
        if made is None:
            return
        key = made
    merged[key] = record.value if replay.stored_value is None else replay.stored_value(record)
    if replay.index_key is not None:
        index = replay.index_key(key)
        if index is not None:
            merged[index] = None if record.value is None else b""
