"""Events that come from no record: a timer's moment, a window's end. What follows when one fails.

The policies are those of records. Where what the event has done can be undone by itself, that is all. Otherwise the
shard starts over from its last commit, and the event comes again: a window because it is still the next one to close,
a timer because its last moment is part of the state. What was decided meanwhile is in `CallHost.call_failures`, which
outlives the new start: how often it was tried, and whether that is enough.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from millstream.agents import user_line
from millstream.context import current
from millstream.errors import AgentError
from millstream.tables import DueError
from millstream.worker._search import table_value_error

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable, Hashable

    from millstream.agents import Policy
    from millstream.clock import Clock
    from millstream.context import Scope
    from millstream.errors import EncodeError, RecordTooLargeError
    from millstream.worker._due import DueFailures

__all__ = ["Call", "CallFailure", "CallHost", "call_error", "log_passed", "run_call"]

logger = logging.getLogger("millstream.worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """An event that comes from no record."""

    name: str
    """What runs: ``timer:tick``, ``on_close:totals``."""
    what: str
    """The same with its moment or window, for people."""
    identity: Hashable
    """By which it is known when it comes again."""
    timestamp: int
    """Event time, ms since the epoch."""
    policy: Policy
    run: Callable[[Scope], Awaitable[object]]
    pass_by: Callable[[Scope, Exception | None], None]
    """Do what is left to do where the call is let pass; with the error, set it aside."""
    position: str | None = None
    """What ``millstream skip`` takes to go past it; None where it does not come again by itself."""


class CallFailure(NamedTuple):
    """What is known of a call that has failed. ``again_s`` is on the monotonic clock."""

    attempts: int
    error: Exception
    is_final: bool
    again_s: float


class CallHost(Protocol):
    """The running shard, as calls need it."""

    clock: Clock
    counters: Counter[str]
    call_failures: dict[Hashable, CallFailure]
    due: DueFailures

    def begin_callback(self, name: str, timestamp: int) -> Scope: ...

    def end_callback(self, scope: Scope) -> None:
        """The event is finished; raises as `millstream.agents.InstanceHost.event_finished` does."""
        ...

    def undo_callback(self, scope: Scope) -> bool:
        """Make it as if the event had not begun; False where only a new start of the shard can."""
        ...

    async def seek(self, error: EncodeError | RecordTooLargeError, scope: Scope) -> None:
        """An event met a table's value that cannot be encoded: return only if it is the event's own."""
        ...

    def rewind(self) -> None:
        """Drop everything that is not committed and start over."""
        ...

    async def commit_before_stop(self) -> None:
        """Commit what is finished, as far as that is possible soon."""
        ...


async def run_call(host: CallHost, call: Call) -> bool:
    """Run the call as an event of its own, under its policy.

    Returns:
        True once it has worked, False where the policy lets it pass.

    Raises:
        AgentError: the policy says stop; everything before the call is committed then.
    """
    failure = host.call_failures.get(call.identity)
    while failure is None or not failure.is_final:
        if failure is not None:
            await host.clock.sleep(max(0.0, failure.again_s - host.clock.monotonic()))
        scope = host.begin_callback(call.name, call.timestamp)
        token = current.set(scope)
        try:
            await call.run(scope)
            host.end_callback(scope)
        except Exception as exc:
            error = exc
        else:
            host.call_failures.pop(call.identity, None)
            return True
        finally:
            current.reset(token)
        refused = table_value_error(error)
        if refused is not None:
            await host.seek(refused, scope)
        if isinstance(error, DueError):
            await _row_failed(host, error, scope)
            continue
        failure = host.call_failures[call.identity] = _noted(host, call, error)
        if not host.undo_callback(scope):
            host.rewind()
            await asyncio.Event().wait()
    if call.policy.action == "stop":
        await host.commit_before_stop()
        raise call_error(call.what, failure.error, call.position)
    _let_pass(host, call, failure.error)
    return False


async def _row_failed(host: CallHost, error: DueError, scope: Scope) -> None:
    """Something that the call has let out has failed: undo the call, and return when it is to run again.

    Raises:
        AgentError: the policy says stop.
    """
    if not host.undo_callback(scope):
        host.due.note(error)  # where it says stop, it does so again after the new start
        host.rewind()
        await asyncio.Event().wait()
    delay_s = host.due.note(error)
    if delay_s is None:
        await host.commit_before_stop()
        raise host.due.stopped(error)
    await host.clock.sleep(delay_s)


def _noted(host: CallHost, call: Call, error: Exception) -> CallFailure:
    before, policy = host.call_failures.get(call.identity), call.policy
    attempts = 1 if before is None else before.attempts + 1
    if attempts > policy.retries:
        return CallFailure(attempts, error, True, 0.0)
    logger.warning("%s: %s; attempt %d of %d", call.what, error, attempts, policy.retries + 1)
    return CallFailure(attempts, error, False, host.clock.monotonic() + policy.delay_s(attempts))


def _let_pass(host: CallHost, call: Call, error: Exception) -> None:
    set_aside = call.policy.action == "dlq"
    log_passed(call.what, error, set_aside=set_aside)
    host.counters["events_dead_lettered" if set_aside else "events_skipped"] += 1
    scope = host.begin_callback(call.name, call.timestamp)
    call.pass_by(scope, error if set_aside else None)
    host.end_callback(scope)
    host.call_failures.pop(call.identity, None)


def log_passed(what: str, error: Exception, *, set_aside: bool) -> None:
    """Say that a call is let pass, and why."""
    line = user_line(error)
    logger.error(
        "%s is %s%s: %s: %s",
        what,
        "set aside" if set_aside else "skipped",
        f" at {line}" if line else "",
        type(error).__name__,
        error,
    )


def call_error(what: str, error: Exception, position: str | None) -> AgentError:
    """The error that stops the worker."""
    return AgentError(what, cause=error, line=user_line(error), position=position)
