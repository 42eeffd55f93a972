"""What an app does besides reading its topics: timers, cron jobs and tasks."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from millstream.agents import policy_of
from millstream.app._timers import Crontab, Timer
from millstream.clock import Duration, duration_ms
from millstream.errors import ConfigurationError, TopologyError
from millstream.topology import TimerNode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["Schedule"]

F = TypeVar("F", bound="Callable[..., Any]")


class Schedule:
    """What `App.timer`, `App.crontab` and `App.task` were given."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []
        self.tasks: list[Callable[..., Awaitable[Any]]] = []

    def timer(
        self,
        interval: Duration,
        *,
        scope: Literal["worker", "shard", "leader"],
        time: Literal["wall", "event"],
        on_error: Any = None,
        name: str | None,
        missed: Literal["once", "skip"] = "skip",
        table: str | None = None,
    ) -> Callable[[F], F]:
        """See `App.timer`.

        Args:
            missed: whether moments at which no worker was there are made up for, by one run.
            table: what it is about; see `Timer`.
        """
        interval_ms = duration_ms(interval, what="timer")
        if interval_ms < 1:
            raise ConfigurationError(f"timer: {interval!r} is not above 0")
        if scope not in ("worker", "shard", "leader"):
            raise ConfigurationError(f"timer: scope {scope!r} is none of worker, shard, leader")
        if time == "event" and scope != "shard":
            raise ConfigurationError(
                "timer: event time is each shard's own; add scope='shard', or use time='wall'"
            )

        def declare(function: F) -> F:
            self._add(
                Timer(
                    name=name or function.__name__,
                    function=function,
                    interval_ms=interval_ms,
                    scope=scope,
                    time=time,
                    missed=missed,
                    policy=None if on_error is None else policy_of(on_error),
                    table=table,
                )
            )
            return function

        return declare

    def crontab(
        self,
        expression: str,
        *,
        timezone: str,
        scope: Literal["worker", "shard", "leader"],
        missed: Literal["once", "late", "skip"] | None,
        on_error: Any,
        name: str | None,
    ) -> Callable[[F], F]:
        """See `App.crontab`."""
        crontab = Crontab(expression, timezone)
        if scope not in ("worker", "shard", "leader"):
            raise ConfigurationError(f"crontab: scope {scope!r} is none of worker, shard, leader")
        if missed not in ("once", "late", "skip", None):
            raise ConfigurationError(f"crontab: missed={missed!r} is none of once, late, skip")
        if scope == "worker" and missed in ("once", "late"):
            raise ConfigurationError(
                f"crontab: missed={missed!r} does not go with scope='worker': nobody knows what a worker"
                f" that comes back has missed; use scope='leader' or scope='shard'"
            )

        def declare(function: F) -> F:
            self._add(
                Timer(
                    name=name or function.__name__,
                    function=function,
                    crontab=crontab,
                    scope=scope,
                    missed=missed or ("skip" if scope == "worker" else "once"),
                    policy=None if on_error is None else policy_of(on_error),
                )
            )
            return function

        return declare

    def _add(self, timer: Timer) -> None:
        if any(timer.name == other.name for other in self.timers):
            raise TopologyError(
                f"two timers are named {timer.name!r}: give one of them name=, as when they ran is"
                f" stored by it"
            )
        self.timers.append(timer)

    def task(self, function: F) -> F:
        """See `App.task`."""
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(
                f"task {function.__name__!r} is not an async function: write"
                f" `async def {function.__name__}()`"
            )
        self.tasks.append(function)
        return function

    def nodes(self) -> dict[str, TimerNode]:
        """The timers as data."""
        return {
            timer.name: TimerNode(name=timer.name, schedule=timer.schedule, scope=timer.scope)
            for timer in self.timers
        }
