"""What is due at one moment leaves in as many events, and commits, as it takes: nothing is lost, and nobody is blamed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import millstream as ms
from millstream.errors import AgentError
from millstream.streams import _due
from millstream.testing import TestApp
from millstream.worker import _subtopology
from tests.streams.running import Disturbance, disturb, feed, read
from tests.streams.test_due_errors import LATER, as_of, held, unmatched, windows

ROWS = 120
EPOCH_BYTES = 12_000
"""With a row's 1,000 bytes, all of them are above what one event may send."""


def grouped(app: ms.App, source: ms.Topic[str]) -> Any:
    """By the wall clock."""
    table = app.stream(source).group_by().reduce(lambda a, b: b, name="last", emit_every="1m")
    return table.changes()


def final(app: ms.App, source: ms.Topic[str]) -> Any:
    """Final windows."""
    groups = app.stream(source).group_by().tumbling("100ms")
    table = groups.reduce(lambda a, b: b, name="w", emit="final")
    return table.changes().map_keys(lambda windowed: windowed.key, type=str)


BUILDS = [held, grouped, windows, final, unmatched, as_of]


def program(build: Any, on_error: Any, later: bool = False) -> tuple[ms.App, Any, Any]:
    """Everything is held back, and large when it comes out."""
    app = ms.App("shop", partitions=1, epoch_bytes_max=EPOCH_BYTES, on_error=on_error)
    source, out = app.topic("source", value=str), app.topic("out", value=str)

    def enlarge(value: str) -> str:
        return value.ljust(1_000)

    async def enlarge_later(value: str) -> str:
        await asyncio.sleep(0)
        return enlarge(value)

    rows = build(app, source)
    rows.map_values(enlarge_later if later else enlarge, value=str).to(out)
    return app, source, out


def filled() -> list[tuple[str, str, int]]:
    """Rows that are due together."""
    return [(f"k{number:03}", f"v{number:03}", number % 50) for number in range(ROWS)]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("quiet", [0, 2_000])
@pytest.mark.parametrize("how", ["record", "time"])
@pytest.mark.parametrize("build", BUILDS)
async def test_more_than_an_event_may_send(
    build: Any, how: str, quiet: int, later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``skip`` no row is dropped; each comes out once, before the results of the next record."""
    monkeypatch.setattr(_subtopology, "QUIET_EVENTS", quiet)
    app, source, out = program(build, "skip", later)
    async with TestApp(app) as t:
        await feed(t, source, filled())
        if how == "record":
            await feed(t, source, [("y", "y", LATER), ("z", "z", 2 * LATER)])
        else:
            await t.advance(stream=LATER / 1_000)
        await t.advance(wall="2m")
        found = [record.value.strip() for record in read(t, out)]
        rows = [value for value in found if value not in "yz"]
        assert sorted(rows) == [value for _, value, _ in filled()]
        assert found[:ROWS] == rows
        assert t.worker.counters["events_skipped"] == 0


@pytest.mark.parametrize("how", ["crash", "lose", "rebalance"])
@pytest.mark.parametrize("build", BUILDS)
async def test_the_rest_of_what_is_due_outlives_the_worker(
    build: Any, how: Disturbance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was let out is not let out again, and the rest leaves without another record or moment."""
    monkeypatch.setattr(_due, "LET_OUT_MAX", 7)
    app, source, out = program(build, "stop")
    async with TestApp(app) as t:
        await feed(t, source, filled())
        if build is grouped:
            t.clock.move_to(t.clock.now() + 60_000)
        else:
            await feed(t, source, [("z", "z", LATER)], settle=False)
        while not read(t, out):
            await asyncio.sleep(0)
            await t.worker.committer.commit()
        assert len(read(t, out)) < ROWS // 2
        await disturb(t, how)
        await t.settle()
        found = [record.value.strip() for record in read(t, out)]
        rows = [value for value in found if value != "z"]
        assert sorted(rows) == [value for _, value, _ in filled()]


async def test_a_row_that_alone_is_too_large() -> None:
    """Its own output is above what an event may send: then it is the row that the error names."""
    app = ms.App("shop", partitions=1, epoch_bytes_max=EPOCH_BYTES)
    source, out = app.topic("source", value=str), app.topic("out", value=str)

    def many(value: str) -> list[str]:
        return ["x" * 1_000] * (100 if value == "v003" else 1)

    held(app, source).flat_map(many, value=str).to(out)
    with pytest.raises(AgentError, match=r"'rows' has held back of key 'k003'.*output of this"):
        async with TestApp(app) as t:
            await feed(t, source, [*filled()[:10], ("z", "z", LATER)])
