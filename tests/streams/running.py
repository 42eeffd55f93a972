"""What the tests of streams share: records in batches, what came out with all that belongs to it, disturbances."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from millstream.records import TopicPartition
from millstream.transports.batch import iterate_records

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from millstream.agents import Topic
    from millstream.records import OutgoingRecord
    from millstream.testing import TestApp

__all__ = [
    "NOTHING",
    "Disturbance",
    "Record",
    "by_key",
    "disturb",
    "feed",
    "fold",
    "interrupt",
    "read",
]

Disturbance = Literal["", "crash", "lose", "rebalance"]
NOTHING: Disturbance = ""


class Record(NamedTuple):
    """A record as it is in a topic, decoded; of results of windows, key and bounds."""

    key: Any
    value: Any
    timestamp: int
    headers: dict[str, bytes] = {}  # noqa: RUF012
    partition: int = 0

    @property
    def windowed(self) -> Any:
        """Key, window start and window end."""
        bounds = (int(self.headers[f"ms-window-{side}"]) for side in ("start", "end"))
        return (self.key, *bounds)


async def feed(
    t: TestApp,
    topic: Topic[Any, Any],
    records: Iterable[tuple[Any, Any, int]],
    *,
    headers: Mapping[str, bytes | str] | None = None,
    settle: bool = True,
) -> None:
    """Append ``(key, value, timestamp)`` at once, and let the app process and commit them."""
    assert t._runtime is not None
    batches: dict[TopicPartition, list[OutgoingRecord]] = {}
    for key, value, timestamp in records:
        tp, record = topic.encode(value, key=key, timestamp=timestamp, headers=headers)
        batches.setdefault(tp, []).append(record)
    if batches:
        await t._runtime.transport.append(batches)
    if settle:
        await t.settle()


def read(t: TestApp, topic: Topic[Any, Any], *, raw_keys: bool = False) -> list[Record]:
    """What is in a topic, partition by partition."""
    assert t._runtime is not None
    found = []
    for partition in range(t._runtime.partitions[topic.name]):
        tp = TopicPartition(topic.name, partition)
        for data in t._log.batches(tp):
            for record in iterate_records(data, where=str(tp)):
                key: Any = record.key
                if key is not None and not raw_keys:
                    key = topic.key_codec.loads(key)
                value = None if record.value is None else topic.value_codec.loads(record.value)
                headers = dict(record.headers)
                found.append(Record(key, value, record.timestamp, headers, partition))
    return found


def by_key(records: Iterable[Record]) -> dict[Any, list[Any]]:
    """Values of each key, in order."""
    found: dict[Any, list[Any]] = {}
    for record in records:
        key = record.windowed if "ms-window-start" in record.headers else record.key
        found.setdefault(key, []).append(record.value)
    return found


def fold(records: Iterable[Record]) -> dict[Any, Any]:
    """The table that the records make."""
    found = {key: values[-1] for key, values in by_key(records).items()}
    return {key: value for key, value in found.items() if value is not None}


async def disturb(t: TestApp, how: Disturbance) -> None:
    """Have a worker die, with or without its disk, or lose its shards for a moment."""
    if how == "rebalance":
        await t.rebalance()
    elif how:
        await t.crash(lose_state=how == "lose")


async def interrupt(t: TestApp, turns: int, how: Disturbance) -> None:
    """Let the app go on for some turns of the event loop, commit what is finished, and then `disturb` it."""
    for _ in range(turns):
        await asyncio.sleep(0)
    await t.worker.committer.commit()
    await disturb(t, how)
    await t.settle()
