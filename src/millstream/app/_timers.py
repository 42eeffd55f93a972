"""Timers, cron jobs and tasks: when they run, and as what."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from millstream.agents import user_line
from millstream.clock import format_duration
from millstream.context import current
from millstream.errors import AgentError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from millstream.clock import Clock
    from millstream.worker import Shard

__all__ = ["Crontab", "Timer", "run_shard_timer", "run_timer"]


Scope = Literal["worker", "shard", "leader"]


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

    @property
    def schedule(self) -> str:
        """For people."""
        if self.crontab is not None:
            return str(self.crontab)
        assert self.interval_ms is not None
        return f"every {format_duration(self.interval_ms)}"

    def after(self, now: int, last: int) -> int:
        """When it runs next: intervals missed while it ran, or while the machine slept, count once."""
        if self.crontab is not None:
            return self.crontab.after(max(now, last))
        assert self.interval_ms is not None
        due = last + self.interval_ms
        if due <= now:
            due = now - (now - last) % self.interval_ms + self.interval_ms
        return due


async def _call(timer: Timer) -> None:
    result = timer.function()
    if inspect.isawaitable(result):
        await result


def _failed(timer: Timer, exc: Exception) -> AgentError:
    return AgentError(f"timer {timer.name!r}", cause=exc, line=user_line(exc))


async def run_timer(timer: Timer, clock: Clock) -> None:
    """Run a timer of scope ``worker`` or ``leader`` for ever, outside of any event."""
    last = clock.now()
    while True:
        due = timer.after(clock.now(), last)
        await clock.sleep((due - clock.now()) / 1_000)
        last = due
        try:
            await _call(timer)
        except Exception as exc:
            raise _failed(timer, exc) from exc


def run_shard_timer(timer: Timer, clock: Clock) -> Callable[[Shard], Coroutine[Any, Any, None]]:
    """A timer of scope ``shard``, to run beside the shard's agents: each call is an event."""

    async def run(shard: Shard) -> None:
        last = shard.stream_time if timer.time == "event" else clock.now()
        while True:
            if timer.time == "event":
                due = await _stream_time(timer, shard, last)
            else:
                due = timer.after(clock.now(), last)
                await clock.sleep((due - clock.now()) / 1_000)
            last = due
            await shard.gate.wait()
            scope = shard.begin_callback(f"timer:{timer.name}", due)
            current.set(scope)
            try:
                await _call(timer)
            except Exception as exc:
                raise _failed(timer, exc) from exc
            shard.end_callback(
                scope
            )  # a call that failed or was cut off stays open: nobody commits it

    return run


async def _stream_time(timer: Timer, shard: Shard, last: int) -> int:
    """Wait until the shard's stream time passes the timer's next moment, which is aligned to 0."""
    assert timer.interval_ms is not None
    while True:
        now = shard.stream_time
        if now >= 0 and (last < 0 or now // timer.interval_ms > last // timer.interval_ms):
            return now // timer.interval_ms * timer.interval_ms
        await shard.time_moved()
