"""Stores that are kept young: positions that are confirmed, and what is in memory brought to disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from millstream.errors import StateError
from millstream.state.rocks import RocksBackend, peek
from millstream.tables import POSITION_KEY, decode_position
from millstream.testing import TestApp
from millstream.worker._upkeep import StoreUpkeep
from tests.kit import Order, counting

if TYPE_CHECKING:
    from pathlib import Path

HOUR_MS = 3_600_000


def written(t: TestApp, table: str) -> int:
    """When the only shard's table was at its end, as its store has it."""
    (shard,) = t.worker.shards.values()
    found = decode_position(shard.store.table(table).get(POSITION_KEY))
    assert found is not None
    return found.written


async def test_positions_are_confirmed() -> None:
    """Those of tables that only this worker writes, while the group confirms the worker itself."""
    app, orders, _ = counting(partitions=1)
    rates = app.topic("rates", key=str, value=float)
    app.table("rate", topic=rates)
    async with TestApp(app) as t:
        await t.send(orders, Order("ada", 1.0))
        await t.send(rates, 1.5, key="EUR")
        began = t.clock.now()
        t.clock.advance("20h")
        membership: Any = t.worker.membership
        current, membership.current = membership.current, lambda: False
        await t.worker._upkeep.once()
        assert written(t, "totals") <= began, "another one may have written meanwhile"
        membership.current = current
        await t.worker._upkeep.once()
        assert written(t, "totals") == t.clock.now()
        assert written(t, "rate") <= began, "there may be more of the topic than was processed"


async def test_stores_are_flushed(tmp_path: Path) -> None:
    """What was in memory is on the disk, and a store that fails is no reason to stop."""
    app, orders, _ = counting(partitions=1)
    async with TestApp(app) as t:
        (shard,) = t.worker.shards.values()
        backend = RocksBackend(tmp_path)
        rocks = backend.open("one")
        rocks.write({"totals": {b"ada": b"1"}})
        kept, shard.store = shard.store, rocks
        assert peek(backend.path("one"), b"ada") == {}
        upkeep = StoreUpkeep(t.worker, flushes=True)
        await upkeep.once()
        assert peek(backend.path("one"), b"ada") == {"totals": b"1"}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(rocks), "flush", fail)
            await upkeep.once()
        shard.store = kept
        rocks.close()
        await t.send(orders, Order("ada", 1.0))


def fail(self: Any) -> None:
    raise StateError("the disk is full")


def test_its_interval_is_below_what_tombstones_allow() -> None:
    """Or a worker that was idle would find its own state too old after a kill."""
    from millstream.tables._position import STALE_MARGIN_MS, TOMBSTONES_KEPT_MS
    from millstream.worker._copy import POSITION_MS
    from millstream.worker._upkeep import INTERVAL_S

    assert max(INTERVAL_S * 1_000, POSITION_MS) < (TOMBSTONES_KEPT_MS - STALE_MARGIN_MS) / 10
