"""Timers and cron jobs: when they run, and as what.

A timer of scope ``shard`` is an event of its shard. The moment for which it ran is noted in that event
(`millstream.worker.NotesPart`): so a moment whose event was lost, with its shard's other work, comes again, and one
whose event is committed does not.

What runs outside of events, a cron job of scope ``leader``, is noted when it is done, in the shard that makes a worker
the leader. Whoever leads next goes on from there, and repeats at most the run that was not noted.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from millstream.clock import format_duration, format_timestamp
from millstream.errors import ConfigurationError
from millstream.worker import Call, call_error, log_passed, run_call, timer_note

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from millstream.agents import Policy
    from millstream.clock import Clock
    from millstream.context import Scope as EventScope
    from millstream.worker import NotesPart, Shard

__all__ = [
    "LATE_RUNS_MAX",
    "Crontab",
    "Timer",
    "run_leader_crontab",
    "run_shard_timer",
    "run_timer",
]

logger = logging.getLogger("millstream.app")

LATE_RUNS_MAX = 1_000
"""Missed moments that ``missed="late"`` makes up for at once: the latest ones."""
NOTE_PAUSE_S, NOTE_PAUSE_S_MAX = 0.02, 1.0
"""Between two attempts to commit a note; real time."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Passing:
    """What is done where a timer fails outside of events, and its policy lets that pass."""

    policy: Policy
    count: Callable[[str], None]
    set_aside: Callable[[Timer, int, Exception], Awaitable[None]]


async def run_timer(timer: Timer, clock: Clock, passing: Passing) -> None:
    """Run a timer of scope ``worker`` or ``leader`` for ever, outside of any event."""

    async def run(moment: int) -> None:
        await _run_outside(timer, moment, clock, passing)

    await _follow(timer, clock, run, last=clock.now())


async def run_leader_crontab(
    timer: Timer,
    clock: Clock,
    passing: Passing,
    leading: Callable[[], Awaitable[Shard]],
) -> None:
    """Run a cron job of scope ``leader`` for ever, from where the leader before has left it.

    Args:
        leading: the shard that makes this worker the leader, once it is ready.
    """

    async def run(moment: int) -> None:
        await _run_outside(timer, moment, clock, passing)
        await _note(timer, moment, leading)

    last = _last(timer, await leading())
    if last is None:
        last = clock.now()
        await _note(timer, last, leading)
    await _follow(timer, clock, run, last=last)


async def _follow(
    timer: Timer, clock: Clock, run: Callable[[int], Awaitable[object]], *, last: int
) -> None:
    """Run it at its moments, for ever; at once for those since ``last`` that have passed."""
    moments = timer.passed(last, clock.now())
    while True:
        for moment in moments:
            await run(moment)
            last = moment
        due = timer.after(clock.now(), last)
        await clock.sleep((due - clock.now()) / 1_000)
        moments = [due]


async def _run_outside(timer: Timer, moment: int, clock: Clock, passing: Passing) -> None:
    """Call it under its policy; there is nothing to undo.

    Raises:
        AgentError: the policy says stop.
    """
    policy = passing.policy
    for attempt in range(1, policy.retries + 2):
        try:
            await timer.call(moment)
        except Exception as exc:
            error = exc
        else:
            return
        if attempt <= policy.retries:
            what = timer.what(moment)
            logger.warning("%s: %s; attempt %d of %d", what, error, attempt, policy.retries + 1)
            await clock.sleep(policy.delay_s(attempt))
    if policy.action == "stop":
        raise call_error(timer.what(moment), error, timer.position(moment, None)) from error
    set_aside = policy.action == "dlq"
    log_passed(timer.what(moment), error, set_aside=set_aside)
    passing.count("events_dead_lettered" if set_aside else "events_skipped")
    if set_aside:
        await passing.set_aside(timer, moment, error)


def _last(timer: Timer, shard: Shard) -> int | None:
    found = _notes(shard).read(timer_note(timer.name))
    return found if isinstance(found, int) else None


def _notes(shard: Shard) -> NotesPart:
    assert shard.notes is not None, "a timer whose moments are noted has a shard with notes"
    return shard.notes


async def _note(timer: Timer, moment: int, leading: Callable[[], Awaitable[Shard]]) -> None:
    """Note a moment, and return once that is committed."""
    name = timer_note(timer.name)
    pause_s = NOTE_PAUSE_S
    while True:
        shard = await leading()
        notes = _notes(shard)
        scope = shard.begin_callback(f"timer:{timer.name}", moment)
        notes.write(name, moment, scope)
        shard.end_callback(scope)
        await shard.commit()
        if notes.is_committed(name, moment):
            return
        # refused, or kept out by an event in progress: real time, as that has nothing to do with the clock
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, NOTE_PAUSE_S_MAX)


def run_shard_timer(
    timer: Timer,
    clock: Clock,
    policy: Policy,
    set_aside: Callable[[EventScope, Timer, int, Exception], None],
) -> Callable[[Shard], Coroutine[Any, Any, None]]:
    """A timer of scope ``shard``, to run beside the shard's agents: each call is an event."""
    note = timer_note(timer.name)

    async def run(shard: Shard) -> None:
        notes = _notes(shard)

        async def at(moment: int) -> None:
            async def inside(scope: EventScope) -> None:
                await timer.call(moment)
                notes.write(note, moment, scope)

            def pass_by(scope: EventScope, error: Exception | None) -> None:
                notes.write(note, moment, scope)
                if error is not None:
                    set_aside(scope, timer, moment, error)

            await shard.gate.wait()
            await run_call(
                shard,
                Call(
                    name=note,
                    what=timer.what(moment),
                    identity=note,
                    timestamp=moment,
                    policy=policy,
                    run=inside,
                    pass_by=pass_by,
                    position=timer.position(moment, shard.name),
                ),
            )

        last = _last(timer, shard)
        if timer.time == "event":
            last = shard.stream_time if last is None else last
            while True:
                last = await _stream_time(timer, shard, last)
                await at(last)
        if last is None:
            last = shard.began
            if timer.comes_again:
                scope = shard.begin_callback(note, last)
                notes.write(note, last, scope)
                shard.end_callback(scope)
        elif not timer.comes_again:
            last = max(last, shard.began)
        await _follow(timer, clock, at, last=last)

    return run


async def _stream_time(timer: Timer, shard: Shard, last: int) -> int:
    """Wait until the shard's stream time passes the timer's next moment, which is aligned to 0."""
    assert timer.interval_ms is not None
    while True:
        now = shard.stream_time
        if now >= 0 and (last < 0 or now // timer.interval_ms > last // timer.interval_ms):
            return now // timer.interval_ms * timer.interval_ms
        await shard.time_moved()
