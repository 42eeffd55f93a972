"""Windowed tables in a running app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import millstream as ms
from millstream.windows import Window

if TYPE_CHECKING:
    from collections.abc import Callable


def make() -> tuple[ms.App, Any, Any, Any]:
    app = ms.App("hours")
    seen = app.topic("seen", value=dict, key_from="who", timestamp="at")
    closed = app.topic("closed", value=list, key_from=lambda row: row[0])
    counts = app.table("counts", key=str, value=int, default=0).tumbling(
        "10s", grace="5s", retention="1m"
    )

    @app.agent(seen)
    async def count(stream: ms.Stream[dict[str, Any]]) -> None:
        async for value in stream:
            counts[value["who"]] += 1

    @counts.on_close
    async def close(key: str, window: Window, value: int) -> None:
        await closed.send([key, window.start, window.end, value])

    return app, seen, closed, counts


async def test_each_window_is_closed_once(millstream_test: Callable[..., Any]) -> None:
    """Final windows come out once, in order, also after crashes; late records are dropped."""
    app, seen, closed, counts = make()
    async with millstream_test(app) as t:
        await t.send_many(seen, [{"who": "ada", "at": at} for at in (0, 9_999, 14_000, 9_000)])
        assert t.sent(closed) == []
        await t.send(seen, {"who": "ada", "at": 15_000})
        assert t.sent(closed) == [["ada", 0, 10_000, 3]]
        await t.crash(lose_state=True)
        await t.send(seen, {"who": "ada", "at": 8_000})
        await t.crash()
        assert t.sent(closed) == [["ada", 0, 10_000, 3]]
        assert t.table(counts)["ada", Window(0, 10_000)] == 3
        await t.advance(stream="1h")
        assert t.sent(closed) == [["ada", 0, 10_000, 3], ["ada", 10_000, 20_000, 2]]
        for at in (5_000_000, 5_100_000, 5_100_001):
            await t.send(seen, {"who": "ada", "at": at})
        assert list(t.table(counts)) == [
            ("ada", Window(5_000_000, 5_010_000)),
            ("ada", Window(5_100_000, 5_110_000)),
        ]
