"""Running timers and cron jobs: as events of a shard, or outside of any event.

A timer of scope ``shard`` is an event of its shard. The moment for which it ran is noted in that event
(`millstream.worker.NotesPart`): so a moment whose event was lost, with its shard's other work, comes again, and one
whose event is committed does not.

What runs outside of events, a cron job of scope ``leader``, is noted when it is done, in the shard that makes a worker
the leader. Whoever leads next goes on from there, and repeats at most the run that was not noted.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millstream.worker import Call, call_error, log_passed, run_call, timer_note

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from millstream.agents import Policy
    from millstream.app._timers import Timer
    from millstream.clock import Clock
    from millstream.context import Scope
    from millstream.worker import NotesPart, Shard

__all__ = ["Passing", "run_leader_crontab", "run_shard_timer", "run_timer"]

logger = logging.getLogger("millstream.app")

NOTE_PAUSE_S, NOTE_PAUSE_S_MAX = 0.02, 1.0
"""Between two attempts to commit a note; real time."""


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
        shard.note(name, moment, scope)
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
    set_aside: Callable[[Scope, Timer, int, Exception], None],
) -> Callable[[Shard], Coroutine[Any, Any, None]]:
    """A timer of scope ``shard``, to run beside the shard's agents: each call is an event."""
    note = timer_note(timer.name)

    async def run(shard: Shard) -> None:
        async def at(moment: int) -> None:
            async def inside(scope: Scope) -> None:
                await timer.call(moment)
                shard.note(note, moment, scope)

            def pass_by(scope: Scope, error: Exception | None) -> None:
                shard.note(note, moment, scope)
                if error is not None:
                    set_aside(scope, timer, moment, error)

            await shard.until_open(note)
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
                shard.note(note, last, scope)
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
