"""What happens when a record cannot be processed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from millstream.clock import Duration, duration_ms
from millstream.errors import SettingError

__all__ = ["Dlq", "OnError", "Policy", "Retry", "policy_of"]


@dataclass(frozen=True, slots=True)
class Dlq:
    """Send the record to a dead-letter topic, in the same epoch; ``<app>-dlq`` where none is named."""

    topic: str | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again up to ``times`` times, waiting ``backoff``, then twice as long each time; then ``then``."""

    times: int = 3
    backoff: Duration = "1s"
    max_backoff: Duration = "1m"
    then: Literal["stop", "skip", "dlq"] | Dlq = "stop"

    def __post_init__(self) -> None:
        if self.times < 1:
            raise SettingError("on_error", "Retry(times=) is at least 1")
        duration_ms(self.backoff, what="Retry(backoff=)")
        duration_ms(self.max_backoff, what="Retry(max_backoff=)")


OnError = Literal["stop", "skip", "dlq"] | Dlq | Retry
"""One of the four forms: stop the worker, skip the record, set it aside, or try again."""


@dataclass(frozen=True, slots=True)
class Policy:
    """An `OnError` in one form. ``action`` comes after ``retries`` attempts more."""

    action: Literal["stop", "skip", "dlq"] = "stop"
    topic: str | None = None
    retries: int = 0
    backoff_s: float = 0.0
    max_backoff_s: float = 0.0

    def delay_s(self, attempt: int) -> float:
        """How long to wait before attempt number ``attempt`` (1 is the first retry)."""
        return float(min(self.backoff_s * 2 ** min(attempt - 1, 30), self.max_backoff_s))


def policy_of(value: Any) -> Policy:
    """Read what a user wrote as ``on_error=``.

    Raises:
        SettingError: it is none of the four forms.
    """
    if isinstance(value, Policy):
        return value
    if isinstance(value, Dlq):
        return Policy(action="dlq", topic=value.topic)
    if isinstance(value, Retry):
        last = policy_of(value.then)
        return Policy(
            action=last.action,
            topic=last.topic,
            retries=value.times,
            backoff_s=duration_ms(value.backoff) / 1_000,
            max_backoff_s=duration_ms(value.max_backoff) / 1_000,
        )
    if value in ("stop", "skip", "dlq"):
        return Policy(action=value)
    raise SettingError(
        "on_error", f'{value!r} is none of "stop", "skip", "dlq", Dlq(topic) and Retry(...)'
    )
