"""Kafka's Java clients and Kafka Streams beside a test: one process, which ``java/Peer.java`` describes."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.brokers import Record, Speaker
from tests.brokers.cluster import JVM, QUIET
from tests.brokers.jars import CLIENTS, classpath
from tests.requirements import java_compiler

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Peer", "WindowedRecord"]

COUNT_S_MAX = 90.0
_SOURCE = Path(__file__).parent / "java" / "Peer.java"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowedRecord:
    """A record whose key is windowed, as Kafka Streams reads it; times in ms."""

    key: str
    start: int
    end: int
    value: bytes | None
    partition: int


class Peer(Speaker):
    """The process. Its calls wait for the answer.

    Args:
        bootstrap: The brokers' addresses.
        log: The file that gets its output.
    """

    def __init__(self, bootstrap: str, *, log: Path) -> None:
        command = [java_compiler(), *JVM, QUIET, "-cp", classpath(CLIENTS), str(_SOURCE), bootstrap]
        super().__init__(command, log=log)

    async def write(
        self, topic: str, records: Sequence[Record], *, compression: str = "none"
    ) -> list[int]:
        """Write records with the producer's own partitioner, and return the partition of each."""
        listed = [
            {
                "key": _text(record.key),
                "value": _text(record.value),
                "timestamp": record.timestamp,
                "headers": [[name, _text(value)] for name, value in record.headers],
            }
            for record in records
        ]
        self._do("write", topic=topic, compression=compression, records=listed)
        found: list[int] = await self.hear("written")
        return found

    async def read(self, topic: str) -> list[Record]:
        """What is committed in a topic, in the order of partition and offset."""
        self._do("read", topic=topic, keys="bytes")
        found = [
            Record(
                key=_bytes(one["key"]),
                value=_bytes(one["value"]),
                headers=tuple((name, _bytes(value)) for name, value in one["headers"]),
                timestamp=one["timestamp"],
                partition=one["partition"],
                offset=one["offset"],
            )
            for one in await self.hear("read")
        ]
        return sorted(found, key=lambda record: (record.partition or 0, record.offset or 0))

    async def read_windows(self, topic: str, *, size_ms: int | None) -> list[WindowedRecord]:
        """The same of a topic with windowed keys; those of sessions where there is no size."""
        self._do("read", topic=topic, keys="windows" if size_ms else "sessions", size_ms=size_ms)
        return [
            WindowedRecord(
                key=one["key"],
                start=one["start"],
                end=one["end"],
                value=_bytes(one["value"]),
                partition=one["partition"],
            )
            for one in await self.hear("read")
        ]

    async def count(
        self, topic: str, *, application: str, counts: str, windows: str, size_ms: int, folder: Path
    ) -> None:
        """Run a Kafka Streams application over a topic: it counts by key, and by key and tumbling window."""
        self._do(
            "count",
            topic=topic,
            application=application,
            counts=counts,
            windows=windows,
            size_ms=size_ms,
            folder=str(folder),
        )
        await self.hear("counted", timeout_s=COUNT_S_MAX)

    def _do(self, what: str, **facts: Any) -> None:
        self.tell(json.dumps({"do": what, **facts}))


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
