"""Aggregates of streams, windowed and not."""

from __future__ import annotations

from typing import Any

import pytest

import millstream as ms
from millstream.testing import TestApp


def texts(so_far: str, value: str) -> str:
    """Values one after the other."""
    return so_far + value


def cogrouped(windows: str) -> tuple[ms.App, ms.Topic[str], ms.Topic[str], ms.Topic[str]]:
    """Two topics that make one windowed text; the second one's values are capitals."""
    app = ms.App("shop", partitions=1)
    a, b = (app.topic(name, value=str, codec="str") for name in "ab")
    out = app.topic("out", value=str, codec="str")
    groups: Any = app.stream(a).group_by().cogroup(texts)
    groups = groups.cogroup(app.stream(b).group_by(), lambda so_far, value: so_far + value.upper())
    windowed = groups.session("5ms") if windows == "session" else groups.tumbling("10ms")
    windowed.aggregate(default="", name="t", merge=lambda x, y: x + y, emit="every").to(out)
    return app, a, b, out


@pytest.mark.parametrize("windows", ["tumbling", "session"])
@pytest.mark.parametrize("lose_state", [False, True, None])
async def test_a_slow_input_of_a_cogroup_finds_its_windows(
    windows: str, lose_state: bool | None
) -> None:
    """A window is kept while one input may still add to it, however far the others are ahead."""
    app, a, b, out = cogrouped(windows)
    async with TestApp(app) as t:
        await t.send(b, "x", key="K", timestamp=1)
        await t.send(a, "y", key="K", timestamp=2)
        for timestamp in (100, 200):
            await t.send(a, "z", key="K", timestamp=timestamp)
            if lose_state is not None:
                await t.crash(lose_state=lose_state)
        await t.send(b, "v", key="K", timestamp=3)
        assert t.sent(out)[-1] == "XyV"
        await t.send(b, "w", key="K", timestamp=1_000)  # now nobody may add to it any more
        await t.send(a, "w", key="K", timestamp=1_001)
        starts = {window.start for _, window in t.table(app.tables["t"].table)}
        assert min(starts) >= 100
