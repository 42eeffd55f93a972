"""Entries that the next records will ask for are read together where that is of use, and nothing else comes of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import millstream as ms
from millstream.agents import Source
from millstream.clock import ManualClock
from millstream.serialization import key_layout
from millstream.state.memory import MemoryBackend
from millstream.state.rocks import RocksTable
from millstream.tables import MISSING, TablePart
from millstream.tables._aligned_part import AlignedPart
from millstream.tables._part import AHEAD_MAX
from millstream.windows import Hopping
from millstream.worker._ahead import MISSES, PAUSE_BATCHES_MIN, PIECE_RECORDS, ReadAhead
from tests.tables.shards import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

TEXT = key_layout(str)
BATCH = 256
"""Records of a batch."""
KEYS = 4 * BATCH


class CountedStore:
    """A table's store with a value for each of the keys ``key-0`` and so on; counts how it is asked."""

    def __init__(self, *, keys: int = KEYS) -> None:
        self._store = MemoryBackend().open("0")
        self._table = self._store.table("t")
        rows = {TEXT.encode(f"key-{number}"): b"%d" % number for number in range(keys)}
        self._store.write({"t": rows})
        self.single = 0
        self.together: list[int] = []

    def get(self, key: bytes) -> bytes | None:
        self.single += 1
        return self._table.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.together.append(len(keys))
        return self._table.get_many(keys)


def make_part(store: Any, *, cache_size: int = 2 * PIECE_RECORDS) -> TablePart:
    return TablePart(
        "t",
        store=store,
        encode_key=TEXT.encode,
        decode_key=TEXT.decode,
        dumps=msgspec.json.encode,
        loads=msgspec.json.decode,
        mutable=False,
        check=lambda key: None,
        cache_size=cache_size,
    )


class Reader:
    """Goes through batches of records as an agent does that looks up something for each."""

    def __init__(
        self,
        store: CountedStore,
        *,
        decode_key: Callable[[bytes], Any] = bytes.decode,
        lookup: Callable[[str], str] = str,
        cache_size: int = 2 * PIECE_RECORDS,
    ) -> None:
        self.store = store
        self.part = make_part(store, cache_size=cache_size)
        self.ahead = ReadAhead({"t": self.part})
        self.source = Source("t", bytes, decode_key, None, "bytes")
        self.scope: Any = type("Plain", (), {"journal": None})()
        self.lookup = lookup
        self.asked = 0

    def batch(self, numbers: Sequence[int]) -> list[Any]:
        """What is found for a record of each key; counts how often the store was asked for one entry."""
        before = self.store.single
        records: Iterator[Any] = iter(
            [Record(at, at, f"key-{number}".encode()) for at, number in enumerate(numbers)]
        )
        found: list[Any] = []
        for record in self.ahead.batch(records, self.source):
            assert record.offset == len(found)
            assert record.key is not None
            found.append(self.part.get(self.lookup(record.key.decode()), self.scope))
        self.asked = self.store.single - before
        return found


def rounds(count: int) -> Iterator[list[int]]:
    """Batches that go over all keys, again and again: no cache of fewer has any of them."""
    for number in range(count):
        first = number * BATCH % KEYS
        yield list(range(first, first + BATCH))


def test_many_keys_are_read_together() -> None:
    """After one batch of single look-ups, nobody asks for a single one any more."""
    store = CountedStore()
    reader = Reader(store)
    asked = []
    for numbers in rounds(12):
        assert reader.batch(numbers) == numbers
        asked.append(reader.asked)
    assert asked == [BATCH] + 11 * [0]
    assert store.together == 11 * (BATCH // PIECE_RECORDS) * [PIECE_RECORDS]


def test_what_is_at_hand_is_not_read() -> None:
    """Where the cache has all, the store is left alone; and reading ahead ends where it has no work any more."""
    store = CountedStore()
    reader = Reader(store, cache_size=KEYS)
    for numbers in rounds(12):
        assert reader.batch(numbers) == numbers
    assert store.single + sum(store.together) == KEYS
    batches = len(store.together)
    for numbers in rounds(4):
        reader.batch(numbers)
    assert len(store.together) == batches


def test_other_keys_are_given_up() -> None:
    """An agent that looks up something else pays for one try, and for ever fewer."""
    store = CountedStore()
    reader = Reader(store, lookup=lambda key: f"key-{(int(key[4:]) + KEYS // 2) % KEYS}")
    tries = []
    for numbers in rounds(8 * PAUSE_BATCHES_MIN):
        before = len(store.together)
        reader.batch(numbers)
        tries.append(len(store.together) > before)
    assert tries[1]
    assert 2 <= sum(tries) <= 4


def test_new_keys() -> None:
    """What is not there is looked up when its turn comes, as the key may be no key of this shard."""
    store = CountedStore(keys=0)
    reader = Reader(store)
    for numbers in rounds(6):
        assert reader.batch(numbers) == BATCH * [MISSING]
    assert len(store.together) == BATCH // PIECE_RECORDS


def test_keys_that_cannot_be_decoded() -> None:
    """Records go on to the agent, whose policy meets them."""

    tried: list[bytes] = []

    def refuse(key: bytes) -> str:
        tried.append(key)
        raise ValueError("no key")

    store = CountedStore()
    reader = Reader(store, decode_key=refuse)
    for numbers in rounds(PAUSE_BATCHES_MIN):
        assert reader.batch(numbers) == numbers
    assert store.together == []
    assert len(tried) == BATCH // PIECE_RECORDS, "tried for one batch, and then given up"


def test_keys_of_another_type() -> None:
    """They are none of the table's; its own are found as ever."""
    store = CountedStore()
    reader = Reader(store, decode_key=len)
    for numbers in rounds(6):
        assert reader.batch(numbers) == numbers
    assert store.together == []


def test_many_windows_of_few_records() -> None:
    """No more entries than the event loop may wait for, however many windows a record is in."""
    store = CountedStore()
    part = AlignedPart(
        "t",
        windows=Hopping(3_600_000, 1_000),
        store=store,  # type: ignore[arg-type]
        encode_key=TEXT.encode,
        decode_key=TEXT.decode,
        dumps=msgspec.json.encode,
        loads=msgspec.json.decode,
        mutable=False,
        check=lambda key: None,
        clock=ManualClock(),
    )
    part.read_ahead([f"key-{number}" for number in range(PIECE_RECORDS)], PIECE_RECORDS * [10**7])
    assert store.together == [AHEAD_MAX]


def test_damaged_values_are_met_by_their_event() -> None:
    """Reading ahead says nothing of them: the record that needs one does."""
    store = CountedStore()
    store._store.write({"t": {TEXT.encode("key-300"): b"{"}})
    reader = Reader(store)
    reader.batch(list(range(BATCH)))
    with pytest.raises(Exception, match="key-300"):
        reader.batch(list(range(BATCH, 2 * BATCH)))


def test_few_records_are_no_reason() -> None:
    """A handful of look-ups is not worth a try."""
    store = CountedStore()
    reader = Reader(store)
    reader.batch(list(range(MISSES - 1)))
    reader.batch(list(range(MISSES, 2 * MISSES)))
    assert store.together == []


def test_a_record_without_key() -> None:
    """It comes in its turn."""
    reader = Reader(CountedStore())
    reader.batch(list(range(BATCH)))
    records: list[Any] = [Record(0, 0), Record(1, 1, b"key-999"), Record(2, 2)]
    assert list(reader.ahead.batch(iter(records), reader.source)) == records


class Order(msgspec.Struct):
    account: str


async def test_agents_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that begins with the state of many keys, and empty caches, asks for them together."""
    together: list[int] = []
    look_up = RocksTable.get_many

    def get_many(table: RocksTable, keys: Sequence[bytes]) -> list[bytes | None]:
        together.append(len(keys))
        return look_up(table, keys)

    monkeypatch.setattr(RocksTable, "get_many", get_many)
    for run in (1, 2):
        app = ms.App("shop", broker=f"local://{tmp_path / 'log.db'}", web=False, partitions=1)
        orders = app.topic("orders", value=Order, key_from="account")
        totals = app.table("totals", key=str, value=int, default=0)

        @app.agent(orders)
        async def count(stream: ms.Stream[Order]) -> None:
            async for order in stream:
                totals[order.account] += 1  # noqa: B023  # the run's own

        together.clear()
        async with app.running(worker=False):
            for first in range(0, KEYS, BATCH):
                await orders.send_many([Order(f"key-{n}") for n in range(first, first + BATCH)])
        async with app.running():
            async with asyncio.timeout(30):
                view = totals.view()
                while [n async for _, n in view.items()] != KEYS * [run]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    assert sum(together) >= KEYS / 2
