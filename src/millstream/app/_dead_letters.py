"""What goes to a dead-letter topic where there is no record that could: a window's end, or a timer's moment.

=================  ==========================================================================================
a window's end     key and value as the table has them; the window in ``ms-window-start`` and ``ms-window-end``
                   (ms since the epoch), the table in ``ms-table``; timestamp: the window's end
a row that was     key and value as they were held back, by ``ms.Suppress``, a join or a processor's timer (which has
held back          no value); the table that held it in ``ms-table``, and the window, if it is of one; timestamp: the
                   row's own, of a window its end
a timer's moment   no key; the value is JSON, ``{"timer": "tick", "moment": "2024-07-01T09:00:00.000+00:00"}``,
                   and for a timer of scope ``shard`` also ``"shard": "4-2"``; the name in ``ms-timer``
=================  ==========================================================================================

The error is in the same headers as for a record (Kafka Streams' names); those that say where the record was are missing.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

import msgspec

from millstream.clock import format_timestamp
from millstream.records import OutgoingRecord

if TYPE_CHECKING:
    from millstream.records import Headers
    from millstream.tables import DueRow
    from millstream.windows import Window

__all__ = ["ERROR_HEADERS", "error_headers", "row_letter", "timer_letter", "window_letter"]

ERROR_HEADERS = "__streams.errors."
"""Kafka Streams' names for the headers of dead letters begin so."""
TRACE_CHARS = 4_000
"""The end of a traceback that goes along."""


def error_headers(error: BaseException) -> Headers:
    """What went wrong, as headers."""
    facts = {
        "exception": f"{type(error).__module__}.{type(error).__qualname__}",
        "message": str(error),
        "stacktrace": "".join(traceback.format_exception(error))[-TRACE_CHARS:],
    }
    return [(ERROR_HEADERS + name, text.encode()) for name, text in facts.items()]


def window_letter(
    table: str, key: bytes, window: Window, value: bytes | None, error: BaseException
) -> OutgoingRecord:
    """The dead letter of a final window."""
    headers = [
        ("ms-table", table.encode()),
        ("ms-window-start", str(window.start).encode()),
        ("ms-window-end", str(window.end).encode()),
        *error_headers(error),
    ]
    return OutgoingRecord(window.end, key, value, headers)


def row_letter(row: DueRow, key: bytes, error: BaseException) -> OutgoingRecord:
    """The dead letter of what was held back."""
    if row.window is not None:
        return window_letter(row.table, key, row.window, row.data, error)
    headers = [("ms-table", row.table.encode()), *error_headers(error)]
    return OutgoingRecord(row.moment, key, row.data, headers)


def timer_letter(
    name: str, moment: int, shard: str | None, error: BaseException, *, now: int
) -> OutgoingRecord:
    """The dead letter of a timer's moment."""
    facts = {"timer": name, "moment": format_timestamp(moment)}
    if shard is not None:
        facts["shard"] = shard
    headers = [("ms-timer", name.encode()), *error_headers(error)]
    return OutgoingRecord(now, None, msgspec.json.encode(facts), headers)
