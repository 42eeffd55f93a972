"""Tables that forget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import millstream as ms

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = 3_600_000


def make() -> tuple[ms.App, Any, Any]:
    app = ms.App("ttl")
    seen = app.topic("seen", value=dict, key_from="who", timestamp="at")
    last = app.table("last", key=str, value=dict, ttl="1h")

    @app.agent(seen)
    async def note(stream: ms.Stream[dict[str, Any]]) -> None:
        async for value in stream:
            if value.get("look"):
                found.append(value["who"] in last)
            else:
                last[value["who"]] = value

    found: list[bool] = []
    app.found = found  # type: ignore[attr-defined]
    return app, seen, last


async def test_an_entry_is_gone_when_it_was_not_written_for_its_time_to_live(
    millstream_test: Callable[..., Any],
) -> None:
    """A read hides what has expired, and writing again begins anew."""
    app, seen, last = make()
    async with millstream_test(app) as t:
        await t.send(seen, {"who": "ada", "at": 0})
        await t.send(seen, {"who": "ada", "at": HOUR - 1, "look": True})
        await t.send(seen, {"who": "ada", "at": HOUR - 1})
        await t.send(seen, {"who": "ada", "at": 2 * HOUR - 2, "look": True})
        await t.send(seen, {"who": "ada", "at": 2 * HOUR, "look": True})
        assert app.found == [True, True, False]  # type: ignore[attr-defined]
        assert "ada" not in t.table(last)


async def test_entries_that_nobody_reads_are_swept(millstream_test: Callable[..., Any]) -> None:
    """What has expired leaves the store and the changelog, also after a crash."""
    app, seen, last = make()
    async with millstream_test(app) as t:
        await t.send_many(seen, [{"who": f"w{n}", "at": n} for n in range(3_000)])
        assert len(t.table(last)) == 3_000
        await t.crash(lose_state=True)
        assert len(t.table(last)) == 3_000
        await t.send_many(seen, [{"who": f"w{n}", "at": 3 * HOUR} for n in range(100)])
        await t.send_many(seen, [{"who": f"w{n}", "at": 3 * HOUR + 1} for n in range(100)])
        assert len(t.table(last)) == 100
        await t.crash(lose_state=True)
        assert len(t.table(last)) == 100
