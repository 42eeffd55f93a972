"""Letting the first of several equal records pass: equal by key, within a time.

Two records of a key that pass are at least ``within`` apart, so in a table of tumbling windows of that size each window
holds at most one of them. A record looks at its own window and at its neighbours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.streams._operator import Context, Done, Operator
from millstream.tables import MISSING
from millstream.windows import Tumbling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millstream.streams._home import StreamHome

__all__ = ["Distinct", "distinct"]


class Distinct(Operator):
    """Drops a record if one of its key has passed less than ``within`` before or after it, by event time."""

    kind = "distinct"
    keeps_records = True

    def __init__(self, parent: Operator, within_ms: int, *, name: str) -> None:
        super().__init__(parent, name=name)
        self.within_ms = within_ms
        self.stores.append(name)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        part, within, counters = context.parts[self.name], self.within_ms, context.counters

        def take(key: Any, value: Any, timestamp: int) -> Done:
            if key is None:
                counters["null_keys_dropped"] += 1
                return None
            scope = context.scope
            event_time, scope.timestamp = scope.timestamp, timestamp
            stream_time = part.seen(scope)
            scope.timestamp = event_time
            start = timestamp // within * within
            if part.windows.final_at(part.windows.window(start)) <= stream_time:
                counters["late_records"] += 1
                return None
            for near in (start, start - within, start + within):
                passed: Any = part.peek((near, key), scope) if near >= 0 else MISSING
                if passed is not MISSING and abs(passed[0] - timestamp) < within:
                    return None
            part.set((start, key), (timestamp, 1), scope)
            return forward(key, value, timestamp)

        return [take]


def distinct(
    home: StreamHome, parent: Operator, within_ms: int, grace_ms: int, name: str
) -> Operator:
    """Declare the operator and what it remembers."""
    operator = Distinct(parent, within_ms, name=name)
    home.plan.add(operator)
    home.kept_table(
        name,
        key=parent.key_type,
        value=int,
        like=parent.topics[0],
        windows=Tumbling(
            within_ms, grace_ms=grace_ms, retention_ms=max(grace_ms, within_ms) + 2 * within_ms
        ),
        operator=operator,
        help="What has passed.",
    )
    return operator
