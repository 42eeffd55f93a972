"""Which messages a proxy does something to, and what."""

from __future__ import annotations

import asyncio
import threading
from enum import Enum, IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Action", "Api", "Rule"]

DEADLINE_S = 30.0


class Api(IntEnum):
    """Kafka's API keys."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    DESCRIBE_GROUPS = 15
    SASL_HANDSHAKE = 17
    API_VERSIONS = 18
    CREATE_TOPICS = 19
    DELETE_RECORDS = 21
    INIT_PRODUCER_ID = 22
    OFFSET_FOR_LEADER_EPOCH = 23
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28
    SASL_AUTHENTICATE = 36
    CREATE_PARTITIONS = 37
    DESCRIBE_TRANSACTIONS = 65


class Action(Enum):
    """What is done to a message."""

    LOSE = "lose"
    """It never arrives, and the connection stays."""
    CUT = "cut"
    """It never arrives, and the connection is closed."""
    HOLD = "hold"
    """It waits, and all that follows on its connection in its direction, until the rule's ``release``."""


class Rule:
    """What is done to the next messages of one kind; ``Proxy.on_answer`` and ``on_request`` make it.

    Attributes:
        hits: How many it was done to.
    """

    def __init__(
        self,
        api: int,
        action: Action,
        *,
        times: int,
        answer: bool,
        release: Callable[[Rule], None],
    ) -> None:
        self.action = action
        self.hits = 0
        self.released = asyncio.Event()
        self._kind = (api, answer)
        self._times = times
        self._release = release
        self._hit = threading.Event()

    def wait(self, timeout_s: float = DEADLINE_S) -> None:
        """Wait, blocking, until it was done to the first message.

        Raises:
            AssertionError: no such message came in time.
        """
        api, answer = self._kind
        kind = "answer to" if answer else "request"
        assert self._hit.wait(timeout_s), f"no {kind} {Api(api).name} in {timeout_s:.0f} s"

    def release(self) -> None:
        """Let go what it holds, and do nothing to what comes from now on."""
        self._release(self)

    def meets(self, api: int | None, *, answer: bool) -> bool:
        """Return whether this message is one; it is counted then."""
        if self.hits == self._times or self._kind != (api, answer):
            return False
        self.hits += 1
        self._hit.set()
        return True
