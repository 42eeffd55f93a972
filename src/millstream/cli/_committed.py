"""A table as its log tells it: what is committed, without a worker to ask.

The last value of each state key in the changelog is the table. Only keys are decoded, and only those values that
are shown.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from millstream.cli._log import agent_positions, resolved_topology
from millstream.cli._progress import Bar
from millstream.records import TopicPartition
from millstream.tables._ttl import TIME_BYTES
from millstream.transports.batch import iterate_records
from millstream.worker._metadata import decode_metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from millstream.app import App
    from millstream.app._declaration import DeclaredTable
    from millstream.tables._query import TableInfo
    from millstream.transports.base import Transport

__all__ = ["CommittedTable"]

FETCH_BYTES_MAX = 4 << 20


class CommittedTable:
    """One table of an app, read from its log."""

    def __init__(
        self, app: App, declared: DeclaredTable[Any, Any], transport: Transport, info: TableInfo
    ) -> None:
        self.info = info
        self._app = app
        self._declared = declared
        self._transport = transport
        self._topic = declared.changelog or (declared.topic.name if declared.topic else "")

    @classmethod
    async def open(
        cls, app: App, declared: DeclaredTable[Any, Any], transport: Transport
    ) -> CommittedTable:
        """Find out how the table is laid out in the log."""
        topology = resolved_topology(app, await transport.topics())
        count = topology.tables[declared.name].partitions or 1
        info = declared.info(count, app.topics.read(topology, count))
        if info.source is not None:
            info = replace(info, stamped=False)  # its topic has values as they were sent
        return cls(app, declared, transport, info)

    async def rows(
        self, *, key: bytes | None, bounds: tuple[bytes, bytes | None]
    ) -> list[dict[str, Any]]:
        """Entries in the order of the table; of one key, or with ``bounds[0] <= key < bounds[1]``."""
        found: dict[bytes, tuple[TopicPartition, bytes]] = {}
        ends = await self.ends(key)
        starts = await self._transport.start_offsets(list(ends)) if ends else {}
        wanted = self._wanted(key, bounds)
        exact = key if self.info.windows is None else None
        total = sum(end - starts[tp] for tp, end in ends.items())
        with Bar(f"reading {self._topic}") as bar:
            done = 0
            async for tp, records, read in self._read(starts, ends):
                for state_key, value in records:
                    if exact is not None and state_key != exact:
                        continue
                    if value is None:
                        found.pop(state_key, None)
                    else:
                        found[state_key] = tp, value
                done += read
                bar.update(done, total)
        times = await self._stream_times(list(ends))
        return [
            row
            for state_key, (tp, value) in sorted(found.items())
            if wanted(state_key)
            and not self._is_over(value, times.get(tp.partition, -1))
            and (row := self._row(state_key, value)) is not None
        ]

    async def changes(
        self,
        positions: Mapping[TopicPartition, int],
        *,
        key: bytes | None,
        bounds: tuple[bytes, bytes | None],
    ) -> AsyncIterator[dict[str, Any]]:
        """Entries as they are committed, for ever; ``deleted`` where one is gone.

        Args:
            positions: where to begin, from `ends`.
        """
        wanted = self._wanted(key, bounds)
        async for _, records, _ in self._read(positions, None):
            for state_key, value in records:
                row = self._row(state_key, value) if wanted(state_key) else None
                if row is not None:
                    yield row

    def parse(self, text: str) -> bytes:
        """A key as people write it; raises ValueError."""
        return self.info.layout.encode(self.info.layout.parse(text))

    async def ends(self, key: bytes | None) -> dict[TopicPartition, int]:
        """How far the table goes in its topic; nothing where the topic does not exist yet."""
        info = (await self._transport.topics()).get(self._topic)
        if info is None:
            return {}
        numbers = range(info.partitions)
        if key is not None and not self.info.everywhere and info.partitions == self.info.partitions:
            numbers = range(self.info.shard_of(key), self.info.shard_of(key) + 1)
        tps = [TopicPartition(self._topic, number) for number in numbers]
        ends = await self._transport.end_offsets(tps)
        if self.info.source is None or self.info.everywhere:
            return ends
        found = await agent_positions(self._app, self._transport, tps)
        return {tp: min(end, found.at[self._declared.reader_name, tp]) for tp, end in ends.items()}

    def _wanted(
        self, key: bytes | None, bounds: tuple[bytes, bytes | None]
    ) -> Callable[[bytes], bool]:
        first, last = bounds
        parse = self.info.parse_state_key

        def wanted(state_key: bytes) -> bool:
            parsed = parse(state_key)
            if parsed is None:
                return False
            if key is not None:
                return parsed[0] == key
            return parsed[0] >= first and (last is None or parsed[0] < last)

        return wanted

    async def _read(
        self,
        starts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int] | None,
    ) -> AsyncIterator[tuple[TopicPartition, list[tuple[bytes, bytes | None]], int]]:
        """State keys and values as they come, and how far that went; for ever where ``ends`` is None."""
        positions = {tp: at for tp, at in starts.items() if ends is None or at < ends[tp]}
        reader = self._transport.reader()
        try:
            while positions:
                for fetched in await reader.fetch(
                    positions, max_bytes=FETCH_BYTES_MAX, max_wait_s=60.0 if ends is None else 1.0
                ):
                    tp, at = fetched.tp, positions[fetched.tp]
                    end = None if ends is None else ends[tp]
                    records = [
                        entry
                        for record in iterate_records(fetched.data, where=str(tp), position=at)
                        if record.key is not None and (end is None or record.offset < end)
                        if (entry := self._entry(record.key, record.value)) is not None
                    ]
                    done = fetched.next_offset if end is None else min(fetched.next_offset, end)
                    yield tp, records, done - at
                    positions[tp] = done
                    if done == end:
                        del positions[tp]
        finally:
            await reader.close()

    def _entry(self, key: bytes, value: bytes | None) -> tuple[bytes, bytes | None] | None:
        """A record as an entry; None for one of the table's topic that cannot be read, and so is none."""
        if self.info.source is None:
            return key, value
        try:
            if value is not None:
                self.info.load(value)
            return self._declared.state_key(key), value
        except Exception:  # a worker has met it, and its policy has let it pass
            return None

    async def _stream_times(self, tps: list[TopicPartition]) -> dict[int, int]:
        """Stream time of the table's shards as far as it matters: where entries expire by it."""
        if self._declared.ttl_ms is None:
            return {}
        topics = await self._transport.topics()
        inputs = [
            TopicPartition(name, tp.partition)
            for name in resolved_topology(self._app, topics).sources
            if name in topics and topics[name].partitions == self.info.partitions
            for tp in tps
        ]
        times: dict[int, int] = {}
        for tp, found in (await self._transport.committed(self._app.id, inputs)).items():
            time = decode_metadata(found.metadata).t
            times[tp.partition] = max(times.get(tp.partition, -1), time)
        return times

    def _is_over(self, value: bytes, stream_time: int) -> bool:
        ttl_ms = self._declared.ttl_ms
        return ttl_ms is not None and (
            int.from_bytes(value[:TIME_BYTES], "big") + ttl_ms <= stream_time
        )

    def _row(self, state_key: bytes, value: bytes | None) -> dict[str, Any] | None:
        """An entry as the HTTP API shows it; None for what is not the table's."""
        parsed = self.info.parse_state_key(state_key)
        if parsed is None:
            return None
        key, window = parsed
        row: dict[str, Any] = {"key": self.info.layout.to_json(self.info.layout.decode(key))}
        row["value"] = None if value is None else self._value(value)
        if window is not None:
            row["window"] = {"start": window.start, "end": window.end}
        if value is None:
            row["deleted"] = True
        return row

    def _value(self, stored: bytes) -> Any:
        data = self.info.state_value(stored)
        if self.info.codec.name == "json" and self.info.loads is None:
            return msgspec.Raw(data)
        return msgspec.Raw(msgspec.json.encode(self.info.load(data), enc_hook=str))
