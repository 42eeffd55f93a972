"""Dead letters, and what has become of them.

A dead letter is the record that could not be processed, with headers that say why. What was done with it is
remembered in a compacted topic beside, ``<topic>-handled``, under a digest of the whole letter: by content, as offsets
change when a log is copied. Two letters that are equal in everything are one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from millstream.app._dead_letters import ERROR_HEADERS
from millstream.records import Headers, OutgoingRecord, Position, TopicPartition
from millstream.transports.batch import iterate_records

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from millstream.app import App
    from millstream.transports.base import Transport

__all__ = ["Letter", "Mark", "dead_letter_topics", "handled_topic", "read_letters", "read_marks"]

FETCH_BYTES_MAX = 4 << 20


class Mark(msgspec.Struct, frozen=True):
    """What was done with a letter: ``retried`` or ``dropped``, when (ms), and where the letter was then."""

    action: str
    at: int
    letter: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A record in a dead-letter topic. ``facts`` are its error headers by their short names."""

    place: Position
    record: OutgoingRecord
    """As it was before it failed, with its own headers alone."""
    facts: Mapping[str, str]
    digest: str
    mark: Mark | None

    @property
    def source(self) -> Position | None:
        """The record that could not be processed; None for what is no dead letter."""
        partition, offset = self.facts.get("partition", ""), self.facts.get("offset", "")
        if "topic" not in self.facts or not (partition.isdigit() and offset.isdigit()):
            return None
        return Position(self.facts["topic"], int(partition), int(offset))

    @property
    def error(self) -> str:
        """The error in one line: its kind without the module, and its message."""
        kind = self.facts.get("exception", "").rpartition(".")[2]
        lines = self.facts.get("message", "").splitlines()
        return f"{kind}: {lines[0]}" if lines else kind

    @property
    def state(self) -> str:
        """``waiting``, ``retried`` or ``dropped``."""
        return "waiting" if self.mark is None else self.mark.action


def dead_letter_topics(app: App) -> list[str]:
    """Where the app's dead letters go: the default, and whatever topics and agents name."""
    policies = [app.settings.on_error]
    policies += [agent.policy for agent in app.agents.values() if agent.policy is not None]
    policies += [topic.policy for topic in app.topics.values() if topic.policy is not None]
    named = {policy.topic for policy in policies if policy.action == "dlq" and policy.topic}
    return sorted({f"{app.id}-dlq", *named})


def handled_topic(topic: str) -> str:
    """The topic that remembers what was done with the letters of another one."""
    return f"{topic}-handled"


async def read_marks(transport: Transport, topic: str) -> dict[str, Mark]:
    """What was done with letters, by their digests."""
    marks: dict[str, Mark] = {}
    async for _, record in _records(transport, handled_topic(topic)):
        if record.key is None:
            continue
        if record.value is None:
            marks.pop(record.key.decode(), None)
            continue
        try:
            marks[record.key.decode()] = msgspec.json.decode(record.value, type=Mark)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # of another program
    return marks


async def read_letters(
    transport: Transport, topic: str, marks: Mapping[str, Mark]
) -> AsyncIterator[Letter]:
    """The letters of a topic, those of one partition in their order; nothing where it does not exist.

    Args:
        marks: looked at when a letter comes, so that the caller may add to it meanwhile.
    """
    async for tp, record in _records(transport, topic):
        headers: Headers = list(record.headers or ())
        facts = {
            name.removeprefix(ERROR_HEADERS): data.decode("utf-8", "replace")
            for name, data in headers
            if name.startswith(ERROR_HEADERS) and data is not None
        }
        own = [pair for pair in headers if not pair[0].startswith(ERROR_HEADERS)]
        digest = _digest(record.timestamp, record.key, record.value, headers)
        yield Letter(
            place=Position(tp.topic, tp.partition, int(record.offset)),
            record=OutgoingRecord(int(record.timestamp), record.key, record.value, own),
            facts=facts,
            digest=digest,
            mark=marks.get(digest),
        )


def _digest(timestamp: int, key: bytes | None, value: bytes | None, headers: Headers) -> str:
    found = hashlib.sha256()
    parts = [str(timestamp).encode(), key, value]
    parts += [part for name, data in headers for part in (name.encode(), data)]
    for part in parts:
        found.update(b"-" if part is None else b"%d:" % len(part) + part)
    return found.hexdigest()[:32]


async def _records(transport: Transport, topic: str) -> AsyncIterator[tuple[TopicPartition, Any]]:
    """The records that a topic holds at this moment."""
    info = (await transport.topics()).get(topic)
    if info is None:
        return
    tps = [TopicPartition(topic, number) for number in range(info.partitions)]
    ends = await transport.end_offsets(tps)
    starts = await transport.start_offsets(tps)
    positions = {tp: starts[tp] for tp in tps if starts[tp] < ends[tp]}
    reader = transport.reader()
    try:
        while positions:
            for fetched in await reader.fetch(positions, max_bytes=FETCH_BYTES_MAX, max_wait_s=1.0):
                tp = fetched.tp
                for record in iterate_records(fetched.data, where=str(tp), position=positions[tp]):
                    if record.offset < ends[tp]:
                        yield tp, record
                positions[tp] = fetched.next_offset
                if fetched.next_offset >= ends[tp]:
                    del positions[tp]
    finally:
        await reader.close()
