"""Rows that were due and could not be handed on: what streams have held back, and timers.

A row comes out with a record that brings the time for it, or when time moves by itself. Should it fail, the record is
not to blame: what has been done so far is undone and done again, and it is the row whose attempts are counted, under the
policy of the table that held it. A row that may pass is remembered, because its turn comes again with the next
attempt: it is then taken out, and nothing follows from it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from millstream.agents import user_line
from millstream.errors import AgentError
from millstream.worker._calls import log_passed
from millstream.worker._closing import window_position

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

    from millstream.context import Scope
    from millstream.records import TopicPartition
    from millstream.tables import DueError, DueRow
    from millstream.worker._closing import Closing
    from millstream.worker._specs import TableSpec

__all__ = ["DueFailures"]

logger = logging.getLogger("millstream.worker")

PASSING_MAX = 10_000
"""Rows that are remembered although nothing tells when they are committed."""


class DueFailures:
    """The failures of one shard's rows. What is known of them outlives its new starts."""

    def __init__(self, tables: Sequence[TableSpec], counters: Counter[str]) -> None:
        self._closings: dict[str, Closing] = {
            table.name: table.on_close for table in tables if table.on_close is not None
        }
        self._counters = counters
        self._attempts: dict[tuple[str, bytes, int], int] = {}
        self._brought_by: dict[tuple[str, bytes, int], tuple[TopicPartition, int]] = {}
        self.passing: dict[tuple[str, bytes, int], Exception] = {}
        """Rows that are passed over, and why."""

    def note(self, error: DueError, at: tuple[TopicPartition, int] | None = None) -> float | None:
        """A row has failed once more.

        Args:
            at: the record that has brought it out, if any.

        Returns:
            After how many seconds it is to be tried again, or passed over; None where the worker stops.
        """
        row = error.row
        policy = self._closings[row.table].policy
        attempts = self._attempts.get(row.identity, 0) + 1
        if attempts > policy.retries and policy.action == "stop":
            return None
        cause = _cause(error)
        self._attempts[row.identity] = attempts
        if attempts <= policy.retries:
            total = policy.retries + 1
            logger.warning("%s: %s; attempt %d of %d", _what(row), cause, attempts, total)
            return policy.delay_s(attempts)
        del self._attempts[row.identity]
        while len(self.passing) >= PASSING_MAX:
            self.passing.pop(next(iter(self.passing)))
        self.passing[row.identity] = cause
        if at is not None:
            self._brought_by[row.identity] = at
        set_aside = policy.action == "dlq"
        log_passed(f"{_what(row)},", cause, set_aside=set_aside)
        self._counters["events_dead_lettered" if set_aside else "events_skipped"] += 1
        return 0.0

    def pass_by(self, scope: Scope, row: DueRow) -> bool:
        """Whether the row is passed over; a dead letter goes with the event, if the policy says so."""
        error = self.passing.get(row.identity)
        if error is None:
            return False
        closing = self._closings[row.table]
        if closing.policy.action == "dlq" and closing.set_aside_row is not None:
            closing.set_aside_row(scope, row, error)
        return True

    def stopped(self, error: DueError) -> AgentError:
        """The error that stops the worker."""
        row, cause = error.row, _cause(error)
        position = window_position(row.table, str(row.key), row.moment)
        return AgentError(_what(row), cause=cause, line=user_line(cause), position=position)

    def settled(self, committed: Mapping[TopicPartition, int]) -> None:
        """Everything before these positions is committed."""
        for identity, (tp, offset) in list(self._brought_by.items()):
            if committed.get(tp, 0) > offset:
                del self._brought_by[identity]
                self.passing.pop(identity, None)


def _cause(error: DueError) -> Exception:
    cause = error.__cause__
    return cause if isinstance(cause, Exception) else error


def _what(row: DueRow) -> str:
    return f"what {row.table!r} has held back of key {row.key!r}"
