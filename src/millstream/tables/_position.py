"""How far a table's store has come in its changelog, kept in the table's own column family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

__all__ = [
    "POSITION_KEY",
    "STALE_MARGIN_MS",
    "RecoveryPlan",
    "StorePosition",
    "decode_position",
    "encode_position",
    "plan_recovery",
]

POSITION_KEY = b"\x00position"
"""Where a `StorePosition` is in each table's store; it is not part of the changelog."""
TOMBSTONES_KEPT_MS = 24 * 3_600_000
"""Kafka's ``delete.retention.ms`` for our changelogs."""
STALE_MARGIN_MS = 3_600_000


class StorePosition(msgspec.Struct, frozen=True, array_like=True):
    """The store holds everything of ``topic_id`` before ``offset``.

    ``written`` is when it was at the end of the log the last time, or was begun empty, by the wall clock (ms): what
    was deleted since then can still be read in the log, as long as the log keeps tombstones. The position of a replay
    that is under way does not make it any younger.
    """

    offset: int
    topic_id: str
    written: int
    app: str = ""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(StorePosition)


def encode_position(position: StorePosition) -> bytes:
    """The position as the store keeps it."""
    return _encoder.encode(position)


def decode_position(data: bytes | None) -> StorePosition | None:
    """The position, or None where there is none or it is of a form that we do not know."""
    if data is None:
        return None
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError:
        return None


@dataclass(frozen=True, slots=True)
class RecoveryPlan:
    """Replay ``[start, end)``; with ``rebuild`` the store is emptied first, for ``reason``.

    ``written`` goes into the positions on the way, see `StorePosition`.
    """

    start: int
    end: int
    written: int
    rebuild: bool = False
    reason: Literal["", "new", "other log", "away too long", "log purged", "ahead of the log"] = ""


def plan_recovery(
    found: StorePosition | None,
    *,
    topic_id: str,
    app: str,
    log_start: int,
    log_end: int,
    now: int,
    tail_kept: int = 1,
) -> RecoveryPlan:
    """What a table has to replay, from what its store holds and what the log holds.

    State that was away for longer than tombstones are kept is rebuilt, or keys that were deleted meanwhile
    would come back; so is state of another topic, even of the same name, or of another app.

    Args:
        tail_kept: how many of the last offsets are surely as they were written. A log never compacts its newest
            batch, so that nothing is missing between a store and the end where the end of a transaction is all that
            lies there. 0 where ``log_end`` is not the end of the log.
    """
    reason: Literal["", "new", "other log", "away too long", "log purged", "ahead of the log"] = ""
    if found is None:
        reason = "new"
    elif found.topic_id != topic_id or found.app != app:
        reason = "other log"
    elif found.offset > log_end:
        reason = "ahead of the log"
    elif (
        found.offset + tail_kept < log_end
        and now - found.written > TOMBSTONES_KEPT_MS - STALE_MARGIN_MS
    ):
        reason = "away too long"
    elif found.offset < log_start:
        reason = "log purged"
    if found is None or reason:
        return RecoveryPlan(log_start, log_end, now, rebuild=True, reason=reason)
    return RecoveryPlan(found.offset, log_end, found.written)
