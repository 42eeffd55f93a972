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
    """The store holds everything of ``topic_id`` before ``offset``, as of wall-clock ``written`` (ms)."""

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
    """Replay ``[start, end)``; with ``rebuild`` the store is emptied first, for ``reason``."""

    start: int
    end: int
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
) -> RecoveryPlan:
    """What a table has to replay, from what its store holds and what the log holds.

    State that was away for longer than tombstones are kept is rebuilt, or keys that were deleted meanwhile
    would come back; so is state of another topic, even of the same name, or of another app.
    """
    reason: Literal["", "new", "other log", "away too long", "log purged", "ahead of the log"] = ""
    if found is None:
        reason = "new"
    elif found.topic_id != topic_id or found.app != app:
        reason = "other log"
    elif found.offset > log_end:
        reason = "ahead of the log"
    elif found.offset < log_end and now - found.written > TOMBSTONES_KEPT_MS - STALE_MARGIN_MS:
        reason = "away too long"
    elif found.offset < log_start:
        reason = "log purged"
    if found is None or reason:
        return RecoveryPlan(log_start, log_end, rebuild=True, reason=reason)
    return RecoveryPlan(found.offset, log_end)
