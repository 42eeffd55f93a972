"""Global tables: each worker holds all of them, whole before its first event, and follows their topics."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from millstream.records import TopicPartition
from millstream.tables import MISSING, POSITION_KEY, StorePosition, TablePart, encode_position
from millstream.transports.batch import iterate_records
from millstream.worker._recovery import RecoveryProgress, Replay, recover

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from millstream.clock import Clock
    from millstream.context import Scope
    from millstream.state.base import ShardStore, StateBackend, TableStore
    from millstream.transports.base import Transport

__all__ = ["EverywhereTables", "ReadOnlyPart"]

logger = logging.getLogger("millstream.worker")

FETCH_BYTES_MAX = 1 << 20


class Declared(Protocol):
    """What is needed of a table's declaration."""

    name: str
    topic: Any

    def make_part(self, store: TableStore, check: Callable[[Any], None]) -> TablePart: ...

    def state_key(self, key: bytes) -> bytes: ...


class ReadOnlyPart(TablePart):
    """Entries that only a topic changes. Its values are shared by those who `get` them, and leave them alone."""

    def get(self, key: Any, scope: Scope) -> Any:
        return self.load(key)

    def look_up(self, key: Any, scope: Scope) -> Any:
        value = self.load(key)
        return value if value is MISSING else self.own(key, value)

    def load(self, key: Any) -> Any:
        value = self.cached(key)
        if value is MISSING:
            data = self.store.get(self.encode_key(key))
            if data is None:
                return MISSING
            value = self.decode(key, data)
            self.cache[key] = value
            self.trim()
        return value

    def contains(self, key: Any, scope: Scope) -> bool:
        return self.load(key) is not MISSING


class EverywhereTables:
    """The global tables of a worker, in stores of their own: one for each partition of each topic."""

    def __init__(
        self,
        declared: Sequence[Declared],
        *,
        transport: Transport,
        state: StateBackend,
        clock: Clock,
        app: str,
        topic_ids: Mapping[str, str],
        partitions: Mapping[str, int],
    ) -> None:
        self._declared = {table.name: table for table in declared}
        self._transport = transport
        self._clock = clock
        self._app = app
        self._topic_ids = topic_ids
        self._partitions = partitions
        self._store: ShardStore = state.open("everywhere")
        self.parts: dict[str, TablePart] = {}
        self._positions: dict[TopicPartition, int] = {}
        self.changed: Callable[[str, Mapping[bytes, bytes | None]], None] = _nothing
        """Called with a table's name and its changes once the store has them."""

    def _make_parts(self) -> None:
        for table in self._declared.values():
            made = table.make_part(self._store.table(table.name), _anything)
            part = object.__new__(ReadOnlyPart)
            for slot in TablePart.__slots__:
                setattr(part, slot, getattr(made, slot))
            self.parts[table.name] = part

    def close(self) -> None:
        """Give the store back."""
        self._store.close()

    async def load(self) -> None:
        """Read every topic to its end."""
        for table in self._declared.values():
            topic = table.topic.name
            for number in range(self._partitions[topic]):
                tp = TopicPartition(topic, number)
                position = self._position_table(table.name, number)
                end = (await self._transport.end_offsets([tp]))[tp]
                await recover(
                    self._store,
                    [
                        Replay(
                            table=table.name,
                            tp=tp,
                            topic_id=self._topic_ids[topic],
                            end=end,
                            state_key=partial(self._state_key, table, tp),
                            position_key=position,
                            keep_on_rebuild=number > 0,
                        )
                    ],
                    transport=self._transport,
                    app=self._app,
                    clock=self._clock,
                    progress=RecoveryProgress(),
                    shard="everywhere",
                )
                self._positions[tp] = end
        self._make_parts()

    @staticmethod
    def _state_key(table: Declared, tp: TopicPartition, key: bytes) -> bytes | None:
        """The store's key; None for one that nobody could ask for, as it is not of the table's type."""
        try:
            return table.state_key(key)
        except (TypeError, ValueError) as exc:
            logger.error("global table %r leaves out key %r of %s: %s", table.name, key, tp, exc)
            return None

    @staticmethod
    def _position_table(name: str, number: int) -> bytes:
        return POSITION_KEY + b"/%d" % number

    async def follow(self) -> NoReturn:
        """Take what comes, for ever."""
        by_topic: dict[str, list[Declared]] = {}
        for table in self._declared.values():
            by_topic.setdefault(table.topic.name, []).append(table)
        reader = self._transport.reader()
        try:
            while True:
                for fetched in await reader.fetch(
                    self._positions, max_bytes=FETCH_BYTES_MAX, max_wait_s=0.5
                ):
                    tp = fetched.tp
                    if fetched.next_offset == self._positions[tp]:
                        continue  # it has more, for which there was no room
                    for table in by_topic[tp.topic]:
                        self._take(table, tp, fetched.data, fetched.next_offset)
                    self._positions[tp] = fetched.next_offset
        finally:
            await reader.close()

    def _take(self, table: Declared, tp: TopicPartition, data: bytes, next_offset: int) -> None:
        changes: dict[bytes, bytes | None] = {}
        for record in iterate_records(data, where=str(tp), position=self._positions[tp]):
            key = None if record.key is None else self._state_key(table, tp, record.key)
            if key is not None:
                changes[key] = record.value
        position = StorePosition(
            next_offset, self._topic_ids[tp.topic], self._clock.now(), self._app
        )
        changes[self._position_table(table.name, tp.partition)] = encode_position(position)
        self._store.write({table.name: changes})
        self.changed(table.name, changes)
        self.parts[table.name].forget_clean()


def _nothing(table: str, changes: Mapping[bytes, bytes | None]) -> None:
    return None


def _anything(key: Any) -> None:
    return None
