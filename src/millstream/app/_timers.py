"""Timers and cron jobs as programs declare them: when they run."""

from __future__ import annotations

import inspect
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from millstream.clock import format_duration, format_timestamp
from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.agents import Policy

__all__ = ["LATE_RUNS_MAX", "Crontab", "Timer"]

LATE_RUNS_MAX = 1_000
"""Missed moments that ``missed="late"`` makes up for at once: the latest ones."""

Scope = Literal["worker", "shard", "leader"]
Missed = Literal["once", "late", "skip"]


@dataclass(frozen=True, slots=True)
class Crontab:
    """A cron expression in a time zone; raises ConfigurationError where either is wrong."""

    expression: str
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        from croniter import croniter

        if not croniter.is_valid(self.expression):
            raise ConfigurationError(
                f"crontab {self.expression!r} is not a cron expression: write five fields, for"
                f' example "0 9 * * *"'
            )
        self.zone()

    def zone(self) -> tzinfo:
        """The time zone."""
        try:
            return UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError) as exc:
            raise ConfigurationError(f"crontab: there is no time zone {self.timezone!r}") from exc

    def after(self, now: int) -> int:
        """The first moment after ``now`` that the expression names, both in ms.

        As cron does: what is due in the hour that summer time leaves out runs when that hour would end; in
        the hour that comes twice, jobs at a named hour run once, and those of every hour both times.
        """
        from croniter import croniter

        zone = self.zone()
        moments = croniter(self.expression, datetime.fromtimestamp(now / 1_000, zone))
        every_hour = "*" in self.expression.partition(" ")[2].split(" ")[0]
        while True:
            moment = int(moments.get_next(datetime).timestamp())
            if every_hour or not datetime.fromtimestamp(moment, zone).fold:
                return moment * 1_000

    def between(self, last: int, now: int, count: int) -> list[int]:
        """The latest ``count`` moments after ``last`` and up to ``now``, in ms, in order."""
        from croniter import croniter

        # a bound from the other end first, as there may be very many; two more for what summer time does
        backwards = croniter(self.expression, datetime.fromtimestamp(now / 1_000, self.zone()))
        bound = now
        for _ in range(count + 2):
            if bound <= last:
                break
            bound = int(backwards.get_prev(datetime).timestamp()) * 1_000
        moments: deque[int] = deque(maxlen=count)
        moment = self.after(max(last, bound - 1))
        while moment <= now:
            moments.append(moment)
            moment = self.after(moment)
        return list(moments)

    def __str__(self) -> str:
        return f"{self.expression} {self.timezone}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    """Something that runs again and again. Exactly one of ``interval_ms`` and ``crontab`` is set."""

    name: str
    function: Callable[..., Any]
    interval_ms: int | None = None
    crontab: Crontab | None = None
    scope: Scope = "worker"
    time: Literal["wall", "event"] = "wall"
    missed: Missed = "skip"
    """What becomes of moments at which nobody was there to run it."""
    policy: Policy | None = None
    table: str | None = None
    """With scope ``shard``: the table that it is about. It runs in the shards that have a part of it."""

    @property
    def schedule(self) -> str:
        """For people."""
        if self.crontab is not None:
            return str(self.crontab)
        assert self.interval_ms is not None
        return f"every {format_duration(self.interval_ms)}"

    @property
    def noted(self) -> bool:
        """Whether the last moment is kept in the notes of a shard."""
        return self.scope == "shard" or (self.scope == "leader" and self.missed != "skip")

    @property
    def comes_again(self) -> bool:
        """Whether a moment that was not finished comes again after a restart."""
        return self.noted and (self.missed != "skip" or self.time == "event")

    def after(self, now: int, last: int) -> int:
        """When it runs next: intervals missed while it ran, or while the machine slept, count once."""
        if self.crontab is not None:
            return self.crontab.after(max(now, last))
        assert self.interval_ms is not None
        due = last + self.interval_ms
        if due <= now:
            due = now - (now - last) % self.interval_ms + self.interval_ms
        return due

    def passed(self, last: int, now: int) -> list[int]:
        """Moments after ``last`` and up to ``now`` that are to be run now, in order."""
        if self.crontab is not None:
            return self.crontab.between(last, now, LATE_RUNS_MAX if self.missed == "late" else 1)
        assert self.interval_ms is not None
        latest = now - (now - last) % self.interval_ms
        return [latest] if latest > last else []

    async def call(self, moment: int) -> None:
        """Call the function; one with a parameter is given the moment."""
        result = (
            self.function(self._shown(moment)) if _takes_one(self.function) else self.function()
        )
        if inspect.isawaitable(result):
            await result

    def _shown(self, moment: int) -> datetime:
        zone = UTC if self.crontab is None else self.crontab.zone()
        return datetime.fromtimestamp(moment / 1_000, zone)

    def what(self, moment: int) -> str:
        """For people."""
        return f"timer {self.name!r} of {format_timestamp(moment)}"

    def position(self, moment: int, shard: str | None) -> str | None:
        """What ``millstream skip`` takes to go past a moment."""
        if not self.comes_again:
            return None
        where = "" if shard is None else f"/{shard}"
        return f"timer:{self.name}{where}@{format_timestamp(moment)}"


def _takes_one(function: Callable[..., Any]) -> bool:
    """Whether the function needs an argument; defaults are its own affair."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin that does not tell
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return any(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters)
