"""What every kind of window checks: grace and retention."""

from __future__ import annotations

from millstream.clock import Duration, duration_ms, format_duration
from millstream.errors import ConfigurationError


def checked_length(kind: str, name: str, value_ms: int, *, at_least_ms: int) -> None:
    """Refuse a length of time that is too short.

    Raises:
        ConfigurationError: ``value_ms`` is below ``at_least_ms``.
    """
    if value_ms < at_least_ms:
        raise ConfigurationError(
            f"{kind} windows: {name} must be at least {format_duration(at_least_ms)},"
            f" not {format_duration(value_ms)}"
        )


def checked_retention(
    kind: str, retention_ms: int | None, *, grace_ms: int, shortest_ms: int, because: str
) -> int:
    """The retention of a declaration, ``shortest_ms`` where none was given.

    Raises:
        ConfigurationError: a negative grace, or a retention below ``shortest_ms``; the message gives
            ``because`` as the reason.
    """
    checked_length(kind, "grace", grace_ms, at_least_ms=0)
    if not retention_ms:
        return shortest_ms
    if retention_ms < shortest_ms:
        raise ConfigurationError(
            f"{kind} windows: retention must be at least {format_duration(shortest_ms)} ({because}),"
            f" not {format_duration(retention_ms)}"
        )
    return retention_ms


def declared_retention(kind: str, retention: Duration | None) -> int:
    """A retention as users write it, in ms; 0 where none was given.

    Raises:
        ConfigurationError: not a duration, or not above 0.
    """
    if retention is None:
        return 0
    retention_ms = duration_ms(retention, what="retention")
    checked_length(kind, "retention", retention_ms, at_least_ms=1)
    return retention_ms


def described(kind: str, *lengths: str, grace_ms: int, retention_ms: int, shortest_ms: int) -> str:
    """A declaration as the user would write it, without what was left at its default."""
    parts = list(lengths)
    if grace_ms:
        parts.append(f"grace={format_duration(grace_ms)}")
    if retention_ms != shortest_ms:
        parts.append(f"retention={format_duration(retention_ms)}")
    return f"{kind}({', '.join(parts)})"
