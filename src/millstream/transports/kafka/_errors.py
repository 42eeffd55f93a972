"""What a broker's error codes mean to us, and how long we go on asking."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from kio.schema.errors import ErrorCode

from millstream.errors import ConfigurationError, LogUnavailableError, TransportError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COORDINATOR_MOVED", "LEADER_MOVED", "AnswerLostError", "Patience", "refusal"]

COORDINATOR_MOVED = frozenset(
    {
        ErrorCode.coordinator_load_in_progress,
        ErrorCode.coordinator_not_available,
        ErrorCode.not_coordinator,
    }
)
"""Ask for the coordinator again, and then the coordinator."""

LEADER_MOVED = frozenset(
    {
        ErrorCode.leader_not_available,
        ErrorCode.not_leader_or_follower,
        ErrorCode.replica_not_available,
        ErrorCode.fenced_leader_epoch,
        ErrorCode.unknown_leader_epoch,
        ErrorCode.kafka_storage_error,
        ErrorCode.offset_not_available,
        ErrorCode.listener_not_found,
        ErrorCode.broker_not_available,
        ErrorCode.unknown_topic_id,
        ErrorCode.inconsistent_topic_id,
    }
)
"""Ask for the metadata again, and then the partition's leader."""

_NOT_ALLOWED: Mapping[ErrorCode, str] = {
    ErrorCode.topic_authorization_failed: "on the topic",
    ErrorCode.group_authorization_failed: "on the group",
    ErrorCode.cluster_authorization_failed: "on the cluster",
    ErrorCode.transactional_id_authorization_failed: "on the transactional id",
    ErrorCode.delegation_token_authorization_failed: "on the delegation token",
}


class AnswerLostError(Exception):
    """A request was sent, and its answer never came: it may have been carried out.

    Never leaves the transport.
    """


def refusal(
    code: ErrorCode, doing: str, *, where: str, message: str | None = None
) -> TransportError | ConfigurationError:
    """The error for a code that the caller has no answer to.

    Args:
        doing: what was refused, after "to": ``create topic 'orders'``.
        where: the cluster's url.
        message: what the broker says about it.
    """
    said = f": {message.rstrip('.')}" if message else ""
    if code in _NOT_ALLOWED:
        return ConfigurationError(
            f"{where} does not allow us to {doing}{said}. Give this user the permission"
            f" {_NOT_ALLOWED[code]} (an ACL), or log in as another one"
            f" (sasl_username, ssl_certfile)."
        )
    if code.retriable:
        return LogUnavailableError(f"{where} cannot {doing} now: {code.name} ({code.value}){said}")
    return TransportError(f"{where} refused to {doing}: {code.name} ({code.value}){said}")


class Patience:
    """Pauses between attempts, growing from ms to a second, until a time is over.

    Args:
        within_s: how long it lasts, from now on, in seconds.
        first_s: the first pause, in seconds.
    """

    def __init__(self, within_s: float, *, first_s: float = 0.005, longest_s: float = 1.0) -> None:
        self._deadline = asyncio.get_running_loop().time() + within_s
        self._pause_s = first_s
        self._longest_s = longest_s

    @property
    def left_s(self) -> float:
        """What is left of the time, in seconds; not below 0."""
        return max(0.0, self._deadline - asyncio.get_running_loop().time())

    async def pause(self, cause: Exception) -> None:
        """Wait before the next attempt.

        Raises:
            Exception: ``cause``, when the time is over.
        """
        if self.left_s <= 0:
            raise cause
        await asyncio.sleep(min(self._pause_s * random.uniform(0.8, 1.2), self.left_s))
        self._pause_s = min(self._pause_s * 2, self._longest_s)
