"""Forgetting what was regrouped and is done with: nobody reads the records between two stages again.

The topics of regrouping have no retention, or a worker that is down for long would lose records. So whoever has
committed the positions in them has the log forget what lies before. That is late rather than often, and what
cannot be forgotten now can be later: positions only grow.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from millstream.errors import ConfigurationError, TransportError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from millstream.records import TopicPartition
    from millstream.transports.base import Transport

__all__ = ["PURGE_INTERVAL_S", "Purge"]

logger = logging.getLogger("millstream.worker")

PURGE_INTERVAL_S = 30.0


class Purge:
    """Has a log forget the records before committed positions, in some topics.

    Args:
        topics: whose records only this app reads.
    """

    def __init__(self, transport: Transport, topics: Collection[str]) -> None:
        self._transport = transport
        self._topics = frozenset(topics)
        self._forgotten: dict[TopicPartition, int] = {}
        self._refused = False

    async def run(self, committed: Mapping[TopicPartition, int]) -> None:
        """Forget what is before these positions, where that is more than the last time."""
        before = {
            tp: offset
            for tp, offset in committed.items()
            if tp.topic in self._topics and offset > self._forgotten.get(tp, 0)
        }
        if not before:
            return
        try:
            await self._transport.purge(before)
        except (TransportError, ConfigurationError) as exc:
            log = logger.info if self._refused else logger.warning
            log("what was regrouped and processed stays in the log, for now: %s", exc)
            self._refused = True
        else:
            self._forgotten.update(before)
            self._refused = False
