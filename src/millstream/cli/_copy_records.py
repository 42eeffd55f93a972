"""Records and positions from one log to another; see `_copy_progress` for how it survives interruptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream.cli._copy_progress import COPY_GROUP, Progress, checksum
from millstream.cli._groups import refuse_running
from millstream.cli._progress import Bar
from millstream.errors import ConfigurationError, TransportError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import OffsetAndMetadata, TopicSpec
from millstream.transports.batch import iterate_records
from millstream.worker._metadata import decode_metadata, unfinished

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from millstream.cli._groups_seat import Seat
    from millstream.transports.base import TopicInfo, Transport

__all__ = ["Copy"]

EPOCH_BYTES = 4 << 20
ROUNDS_MAX = 10
"""How often a copy looks for records that were sent while it ran."""

Positions = dict[TopicPartition, OffsetAndMetadata]


class Copy:
    """A copy of some topics, and of what groups have committed in them."""

    def __init__(
        self, source: Transport, target: Transport, *, topics: Collection[str], replication: int
    ) -> None:
        self._source = source
        self._target = target
        self._only = set(topics)
        self._replication = replication
        self.infos: Mapping[str, TopicInfo] = {}
        self.tps: list[TopicPartition] = []
        self.groups: dict[str, Positions] = {}
        """Of each group of the source, where it stands."""
        self.finished: set[str] = set()
        """Groups that an interrupted copy has brought over already."""
        self.progress: dict[TopicPartition, Progress] = {}
        self.starts: dict[TopicPartition, int] = {}
        self.ends: dict[TopicPartition, int] = {}
        self.notes: list[str] = []

    # before ---------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Learn what there is on both sides; nothing is changed.

        Raises:
            ConfigurationError: the destination has something else already.
            TransportError: workers run.
        """
        every = await self._source.topics()
        for name in sorted(self._only - every.keys()):
            raise ConfigurationError(f"there is no topic {name!r} in {self._source.url}")
        self.infos = {
            name: info
            for name, info in every.items()
            if (name in self._only if self._only else not name.startswith("__"))
        }
        self.tps = [
            TopicPartition(n, p) for n, i in self.infos.items() for p in range(i.partitions)
        ]
        await self._look_at_groups()
        await self._look_at_target()
        self.starts = await self._source.start_offsets(self.tps) if self.tps else {}
        self.ends = await self._source.end_offsets(self.tps) if self.tps else {}

    async def _look_at_groups(self) -> None:
        names = [name for name in await self._source.groups() if name != COPY_GROUP]
        for name in names:
            await refuse_running(self._source, name, "copy again")
            positions = await self._source.committed(name, self.tps) if self.tps else {}
            for found in positions.values():
                decode_metadata(found.metadata).check_finished(name)
            if positions:
                self.groups[name] = positions
                await refuse_running(self._target, name, "copy again")

    async def _look_at_target(self) -> None:
        existing = await self._target.topics()
        for name, info in self.infos.items():
            other = existing.get(name)
            if other is not None and (other.partitions, other.compacted) != (
                info.partitions,
                info.compacted,
            ):
                raise ConfigurationError(
                    f"topic {name!r} has {_described(info)} in the source, and {_described(other)} in"
                    f" {self._target.url}. Delete it there, or make it anew with the same settings"
                )
        there = [tp for tp in self.tps if tp.topic in existing]
        if not there:
            return
        found = await self._target.committed(COPY_GROUP, there)
        self.progress = {tp: Progress.decode(at) for tp, at in found.items()}
        starts = await self._target.start_offsets(there)
        ends = await self._target.end_offsets(there)
        for tp in there:
            progress = self.progress.get(tp)
            if progress is None and ends[tp] > starts[tp]:
                raise ConfigurationError(
                    f"{tp} holds records in {self._target.url} already, which are not of this copy."
                    f" Copy to a log without them, or delete the topic there"
                )
            if progress is not None and progress.source != self.infos[tp.topic].topic_id:
                raise ConfigurationError(
                    f"{tp.topic} in {self._target.url} was copied from another log, or before it was made"
                    f" anew in this one. Delete it there, and copy again"
                )
            if progress is not None and progress.done:
                raise ConfigurationError(
                    f"{tp.topic} has been copied to {self._target.url}, to the end: to copy it again,"
                    f" delete it there first"
                )
        for group in self.groups:
            await self._look_at_target_group(group, there)

    async def _look_at_target_group(self, group: str, there: list[TopicPartition]) -> None:
        positions = await self._target.committed(group, there)
        clean = [tp for tp, at in positions.items() if not decode_metadata(at.metadata).u]
        if clean and not self.progress:
            raise ConfigurationError(
                f"group {group!r} stands in {clean[0].topic} of {self._target.url} already. Copy to a log"
                f" without it, or delete the topic there"
            )
        if clean:
            self.finished.add(group)

    # copying --------------------------------------------------------------------------------------

    async def run(self, seat: Seat) -> None:
        """Copy what is not copied yet, compare, and bring the groups over.

        Raises:
            TransportError: a log fails, workers were started, or the comparison does not hold. The same
                copy may be started again, and goes on.
        """
        await self._prepare(seat)
        for _ in range(ROUNDS_MAX):
            await self._records(seat)
            for group in self.groups:
                await refuse_running(self._source, group, "copy again")
            before, self.ends = self.ends, await self._source.end_offsets(self.tps)
            if before == self.ends:
                break
        else:
            raise TransportError(
                f"records keep coming in {self._source.url}: stop whoever sends them, and copy again"
            )
        await self._compare()
        await self._bring_groups()
        for progress in self.progress.values():
            progress.done = True
        await seat.commit({tp: one.encode(tp) for tp, one in self.progress.items()}, {})

    async def _prepare(self, seat: Seat) -> None:
        await self._target.create_topics(
            [
                TopicSpec(
                    name=info.name,
                    partitions=info.partitions,
                    replication=self._replication,
                    retention_ms=info.retention_ms,
                    compacted=info.compacted,
                )
                for info in self.infos.values()
            ]
        )
        for tp in self.tps:
            if tp not in self.progress:
                source = self.infos[tp.topic].topic_id
                self.progress[tp] = Progress(source=source, at=self.starts[tp])
        await seat.commit({tp: one.encode(tp) for tp, one in self.progress.items()}, {})
        mark = OffsetAndMetadata(0, unfinished("copy"))
        for group, positions in self.groups.items():
            if group not in self.finished:
                await self._target.set_committed(group, dict.fromkeys(positions, mark))

    async def _records(self, seat: Seat) -> None:
        wanted = self._wanted()
        next_offsets = await self._target.end_offsets(self.tps)
        positions = {tp: one.at for tp, one in self.progress.items() if one.at < self.ends[tp]}
        total = sum(self.ends[tp] - at for tp, at in positions.items())
        done = 0
        reader = self._source.reader()
        try:
            with Bar(f"copying to {self._target.url}") as bar:
                while positions:
                    fetched = await reader.fetch(positions, max_bytes=EPOCH_BYTES, max_wait_s=1.0)
                    records: dict[TopicPartition, list[OutgoingRecord]] = {}
                    after: dict[TopicPartition, Progress] = {}
                    for some in fetched:
                        tp, at = some.tp, positions[some.tp]
                        offsets, listed = _records_of(some.data, tp, at, self.ends[tp])
                        until = min(some.next_offset, self.ends[tp])
                        if until == at:
                            continue  # it has more, for which there was no room
                        after[tp] = self.progress[tp].took(
                            offsets,
                            listed,
                            next_offset=until,
                            first=next_offsets[tp],
                            wanted=wanted[tp],
                        )
                        if listed:
                            records[tp] = listed
                        done += until - at
                    if after:
                        marks = {tp: one.encode(tp) for tp, one in after.items()}
                        next_offsets |= (await seat.commit(marks, records)).next_offsets
                    self.progress |= after
                    for tp, one in after.items():
                        positions[tp] = one.at
                        if one.at >= self.ends[tp]:
                            del positions[tp]
                    bar.update(done, total)
        finally:
            await reader.close()

    def _wanted(self) -> dict[TopicPartition, set[int]]:
        """Offsets of the source at which groups, and agents that are ahead of them, stand."""
        wanted: dict[TopicPartition, set[int]] = {tp: set() for tp in self.tps}
        for positions in self.groups.values():
            for tp, (offset, text) in positions.items():
                wanted[tp] |= {offset, *decode_metadata(text).a.values()}
        return wanted

    # after ----------------------------------------------------------------------------------------

    async def _compare(self) -> None:
        """See that the copy holds what was copied, all of it, in order.

        Raises:
            TransportError: it does not.
        """
        starts = await self._target.start_offsets(self.tps)
        ends = await self._target.end_offsets(self.tps)
        counts, crcs = dict.fromkeys(self.tps, 0), dict.fromkeys(self.tps, 0)
        total, done = sum(ends[tp] - starts[tp] for tp in self.tps), 0
        with Bar("comparing") as bar:
            async for tp, listed, read in _stretches(self._target, starts, ends):
                counts[tp] += len(listed)
                crcs[tp] = checksum(crcs[tp], listed)
                done += read
                bar.update(done, total)
        for tp, progress in self.progress.items():
            info = self.infos[tp.topic]
            if (counts[tp], crcs[tp]) == (progress.records, progress.crc):
                continue
            if counts[tp] < progress.records and (info.compacted or info.retention_ms is not None):
                self.notes.append(
                    f"of {progress.records:,} records of {tp}, {counts[tp]:,} are left: the destination"
                    f" has begun to clean the topic up, as its settings say"
                )
                continue
            raise TransportError(
                f"{tp} holds {counts[tp]:,} records in {self._target.url}, and {progress.records:,} were"
                f" copied, with another checksum: somebody else writes there. Delete the topics there, and"
                f" copy again"
            )

    async def _bring_groups(self) -> None:
        ends = await self._target.end_offsets(self.tps)
        for group, positions in self.groups.items():
            if group in self.finished:
                continue
            moved = {tp: self._translated(tp, at, ends[tp]) for tp, at in positions.items()}
            await self._target.set_committed(group, moved)

    def _translated(
        self, tp: TopicPartition, found: OffsetAndMetadata, end: int
    ) -> OffsetAndMetadata:
        places = self.progress[tp].places
        at = places.get(str(found.offset), end)
        metadata = decode_metadata(found.metadata)
        if not metadata.a:
            return OffsetAndMetadata(at, found.metadata)
        return OffsetAndMetadata(
            at, metadata.moved({n: places.get(str(p), end) for n, p in metadata.a.items()})
        )


async def _stretches(
    transport: Transport,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
) -> AsyncIterator[tuple[TopicPartition, list[OutgoingRecord], int]]:
    """Records as they come, and how far that went."""
    positions = {tp: at for tp, at in starts.items() if at < ends[tp]}
    reader = transport.reader()
    try:
        while positions:
            for some in await reader.fetch(positions, max_bytes=EPOCH_BYTES, max_wait_s=1.0):
                tp, at = some.tp, positions[some.tp]
                until = min(some.next_offset, ends[tp])
                yield tp, _records_of(some.data, tp, at, ends[tp])[1], until - at
                positions[tp] = until
                if until >= ends[tp]:
                    del positions[tp]
    finally:
        await reader.close()


def _records_of(
    data: bytes, tp: TopicPartition, position: int, end: int
) -> tuple[list[int], list[OutgoingRecord]]:
    """Offsets, and records as they can be appended elsewhere."""
    offsets: list[int] = []
    records: list[OutgoingRecord] = []
    for record in iterate_records(data, where=str(tp), position=position):
        if record.offset >= end:
            break
        offsets.append(record.offset)
        records.append(
            OutgoingRecord(record.timestamp, record.key, record.value, list(record.headers or ()))
        )
    return offsets, records


def _described(info: TopicInfo) -> str:
    return f"{info.partitions} partitions{' and is compacted' if info.compacted else ''}"
