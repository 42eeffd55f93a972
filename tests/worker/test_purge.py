"""What was processed between two stages leaves the log, and nothing else does."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from millstream.clock import ManualClock
from millstream.errors import LogUnavailableError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import TopicSpec
from millstream.transports.memory import MemoryTransport
from millstream.worker._purge import Purge

if TYPE_CHECKING:
    import pytest

BETWEEN, SOURCE = TopicPartition("app-x-repartition", 0), TopicPartition("source", 0)


async def test_processed_records_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Up to the committed position; a log that does not answer is asked again the next time."""
    async with MemoryTransport(clock=ManualClock()) as log:
        names = [BETWEEN.topic, SOURCE.topic]
        await log.create_topics([TopicSpec(name=name, partitions=1) for name in names])
        records = [OutgoingRecord(1, b"k", b"v", [])] * 5
        await log.append({BETWEEN: records, SOURCE: records})
        purge = Purge(log, [BETWEEN.topic])
        await purge.run({BETWEEN: 2, SOURCE: 4})
        assert await log.start_offsets([BETWEEN, SOURCE]) == {BETWEEN: 2, SOURCE: 0}

        asked = []

        async def down(before: object) -> None:
            asked.append(before)
            raise LogUnavailableError("nobody answers")

        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
            patch.setattr(log, "purge", down)
            await purge.run({BETWEEN: 2, SOURCE: 5})
            assert asked == []  # nothing new
            await purge.run({BETWEEN: 3, SOURCE: 5})
            await purge.run({BETWEEN: 4, SOURCE: 5})
        assert len(asked) == 2
        assert len(caplog.records) == 1
        await purge.run({BETWEEN: 4, SOURCE: 5})
        assert await log.start_offsets([BETWEEN, SOURCE]) == {BETWEEN: 4, SOURCE: 0}
