"""What ``on_change`` is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import millstream as ms
from millstream.testing import TestApp
from millstream.windows import Window

if TYPE_CHECKING:
    import pytest


async def test_committed_changes(caplog: pytest.LogCaptureFixture) -> None:
    """Each entry that an epoch has changed comes once, with its last value, windows with their bounds."""
    told: list[tuple[Any, Any]] = []

    def tell(key: Any, value: Any) -> None:
        told.append((key, value))
        if value == 3:
            raise ValueError("three")

    app = ms.App("changes", partitions=1)
    numbers = app.topic("numbers", key=str, value=int)
    last = app.table("last", key=str, value=int, on_change=tell)
    sums = app.table("sums", key=str, value=int, default=0, on_change=tell).tumbling("10s")

    @app.agent(numbers)
    async def keep(stream: ms.Stream[int]) -> None:
        async for value in stream:
            if value:
                last["a"] = value
                sums["a"] += value
            else:
                del last["a"]

    async with TestApp(app) as t:
        await t.send(numbers, 1, key="a", timestamp=5_000)
        assert told == [("a", 1), (("a", Window(0, 10_000)), 1)]
        told.clear()
        await t.send(numbers, 0, key="a", timestamp=6_000)
        assert told == [("a", None)]
        await t.send(numbers, 3, key="a", timestamp=7_000)
        assert t.table(last)["a"] == 3
    assert "on_change of table 'last', key 'a'" in caplog.text
