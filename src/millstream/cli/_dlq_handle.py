"""Doing something with dead letters: each of them once, whatever interrupts it and whoever else is at it."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from millstream.cli._dlq_letters import Letter, Mark, handled_topic, read_letters, read_marks
from millstream.cli._groups_seat import Seat, take_seat
from millstream.records import OutgoingRecord, Position, TopicPartition
from millstream.transports.base import OffsetAndMetadata, TopicSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from millstream.transports.base import TopicInfo, Transport

__all__ = ["Outcome", "handle"]

CHUNK_LETTERS = 1_000
CHUNK_BYTES = 4 << 20
"""Letters that are handled in one epoch."""


@dataclass(slots=True)
class Outcome:
    """What was done with the letters of a topic."""

    done: list[tuple[Position, Position | None]] = field(default_factory=list)
    """Letters, and where their records are now, if they were sent again."""
    before: list[Letter] = field(default_factory=list)
    """Chosen letters that were handled earlier, and were left alone."""
    refused: list[tuple[Letter, str]] = field(default_factory=list)
    """Chosen letters that cannot be sent again, and why."""


async def handle(
    transport: Transport,
    topic: str,
    choose: Callable[[Letter], bool],
    *,
    action: str,
    now: int,
    replication: int = 1,
) -> Outcome:
    """Send letters back to where they came from (``retried``), or have them forgotten (``dropped``).

    In one epoch with the records goes a mark for each letter, so that a letter is handled once. Dropped letters are
    also removed from the log, as far as no letter before them waits.

    Raises:
        TransportError: another command is at the letters of this topic, or the log fails; what was
            handled before that stays handled.
    """
    memory = TopicSpec(
        name=handled_topic(topic), partitions=1, replication=replication, compacted=True
    )
    await transport.create_topics([memory])
    async with take_seat(transport, memory.name, command=f"millstream dlq ({topic})") as seat:
        work = _Work(transport, seat, topic, action, now)
        await work.run(choose, await transport.topics())
        if action == "dropped":
            await work.forget()
        return work.outcome


class _Work:
    """One pass over the letters of a topic."""

    def __init__(self, transport: Transport, seat: Seat, topic: str, action: str, now: int) -> None:
        self.outcome = Outcome()
        self._transport = transport
        self._seat = seat
        self._topic = topic
        self._marks_tp = TopicPartition(handled_topic(topic), 0)
        self._action = action
        self._now = now
        self._chunk: list[Letter] = []
        self._chunk_bytes = 0
        self._waiting: dict[TopicPartition, int] = {}
        """The first letter of each partition that still waits."""
        self._passed: dict[TopicPartition, int] = {}
        """How far the pass has come."""
        self._digests: dict[TopicPartition, list[tuple[int, str]]] = {}

    async def run(self, choose: Callable[[Letter], bool], infos: Mapping[str, TopicInfo]) -> None:
        marks = await read_marks(self._transport, self._topic)
        async for letter in read_letters(self._transport, self._topic, marks):
            tp, offset = letter.place.tp, letter.place.offset
            chosen = choose(letter)
            why = self._impossible(letter, infos) if chosen and letter.mark is None else None
            if chosen and letter.mark is not None:
                self.outcome.before.append(letter)
            elif why is not None:
                self.outcome.refused.append((letter, why))
            if letter.mark is None and (not chosen or why is not None):
                self._waiting.setdefault(tp, offset)
            elif letter.mark is None:
                marks[letter.digest] = Mark(self._action, self._now, str(letter.place))
                self._chunk.append(letter)
                self._chunk_bytes += len(letter.record.key or b"") + len(letter.record.value or b"")
            self._passed[tp] = offset + 1
            self._digests.setdefault(tp, []).append((offset, letter.digest))
            if len(self._chunk) >= CHUNK_LETTERS or self._chunk_bytes >= CHUNK_BYTES:
                await self._commit()
        await self._commit()

    def _impossible(self, letter: Letter, infos: Mapping[str, TopicInfo]) -> str | None:
        """Why a letter cannot be sent again."""
        if self._action != "retried":
            return None
        source = letter.source
        if source is None:
            return "it has no headers that tell where it came from"
        info = infos.get(source.topic)
        if info is None:
            return f"topic {source.topic!r} does not exist any more"
        if source.partition >= info.partitions:
            return (
                f"topic {source.topic!r} has {info.partitions} partitions, and it is of {source.tp}"
            )
        return None

    async def _commit(self) -> None:
        if not self._chunk:
            return
        records: dict[TopicPartition, list[OutgoingRecord]] = {self._marks_tp: []}
        sent: list[tuple[Letter, TopicPartition | None, int]] = []
        for letter in self._chunk:
            source = letter.source.tp if letter.source and self._action == "retried" else None
            if source is not None:
                listed = records.setdefault(source, [])
                sent.append((letter, source, len(listed)))
                listed.append(letter.record)
            else:
                sent.append((letter, None, 0))
            mark = Mark(self._action, self._now, str(letter.place))
            records[self._marks_tp].append(
                OutgoingRecord(self._now, letter.digest.encode(), msgspec.json.encode(mark), [])
            )
        token = uuid.uuid4().hex
        offsets = {
            tp: OffsetAndMetadata(self._waiting.get(tp, self._passed[tp]), token)
            for tp in {letter.place.tp for letter in self._chunk}
        }
        result = await self._seat.commit(offsets, records)
        for letter, tp, at in sent:
            where = None
            if tp is not None:
                where = Position(*tp, result.next_offsets[tp] - len(records[tp]) + at)
            self.outcome.done.append((letter.place, where))
        self._chunk, self._chunk_bytes = [], 0

    async def forget(self) -> None:
        """Remove letters up to the first that waits, and then the memory of them."""
        before = {tp: self._waiting.get(tp, end) for tp, end in self._passed.items()}
        gone = {
            digest
            for tp, listed in self._digests.items()
            for offset, digest in listed
            if offset < before[tp]
        }
        left = {
            digest
            for tp, listed in self._digests.items()
            for offset, digest in listed
            if offset >= before[tp]
        }
        if gone:
            await self._transport.purge(before)
            tombstones = [
                OutgoingRecord(self._now, digest.encode(), None, [])
                for digest in sorted(gone - left)
            ]
            if tombstones:
                await self._transport.append({self._marks_tp: tombstones})
