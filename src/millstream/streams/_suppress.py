"""Holding results back: at most one for each key in a time, or in a buffer with bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from millstream.clock import Duration, duration_ms
from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from millstream.streams._home import StreamHome

__all__ = ["Suppress", "suppressed"]


@dataclass(frozen=True, slots=True)
class Suppress:
    """At most one result for each key in ``limit`` of event time: the latest one.

    Args:
        limit: how long a result is held back.
        bytes_max: the most that the buffer holds, keys and values; no bound where None. It lies in the state
            store, so it need not fit into memory.
        records_max: the most results that it holds; no bound where None.
        when_full: ``emit``: the oldest results come out early; ``stop``: the worker stops, with an error.
    """

    limit: Duration
    bytes_max: int | None = None
    records_max: int | None = None
    when_full: Literal["emit", "stop"] = "emit"

    def __post_init__(self) -> None:
        duration_ms(self.limit, what="Suppress(limit)")
        if self.when_full not in ("emit", "stop"):
            raise ConfigurationError(
                f"Suppress: when_full={self.when_full!r} is neither 'emit' nor 'stop'"
            )


def suppressed(home: StreamHome, table: Any, emit: Any, emit_every: Duration | None) -> None:
    """Put what ``emit`` asks for behind a table's changes."""
    if isinstance(emit, Suppress) or emit_every is not None:
        raise ConfigurationError("Suppress and emit_every are not there yet")


def suppressed_changes(stream: Any, suppress: Suppress, name: str | None) -> Any:
    raise ConfigurationError("not there yet")
