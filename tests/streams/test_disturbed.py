"""State of time that the recorded cases do not have: the same results whatever becomes of the workers."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

import millstream as ms
from millstream.testing import TestApp
from tests.streams.running import by_key, disturb, feed, read

if TYPE_CHECKING:
    from tests.streams.running import Disturbance


class Alarm:
    """Sets timers by both clocks, takes some of them back, and counts in a table."""

    def __init__(self, seen: ms.Table[str, int]) -> None:
        self.seen = seen

    def process(self, key: str, value: int, context: Any) -> None:
        self.seen[key] = self.seen.get(key, 0) + 1
        context.set_timer(context.timestamp + 15)
        context.set_timer(after="3s", time="wall")
        if value % 3 == 0:
            context.cancel_timer(context.timestamp + 15)

    def on_timer(self, key: str, context: Any) -> None:
        context.forward(self.seen[key])


def program() -> tuple[ms.App, Any, Any, list[ms.Topic[str]]]:
    """Everything that keeps time and is in no recorded case."""
    app = ms.App("shop", partitions=2)
    a, b = app.topic("a", value=int), app.topic("b", value=int)
    outs: list[ms.Topic[str]] = []

    def to(name: str, flow: Any) -> None:
        out = app.topic(f"out-{name}", value=str)
        outs.append(out)
        stream = flow.changes() if hasattr(flow, "changes") else flow
        stream.map(lambda value: f"{value}", value=str).to(out)

    stream, groups = app.stream(a), app.stream(a).group_by()
    to("distinct", stream.distinct(within="10ms", grace="4ms", name="once"))
    to("distinct-by", stream.distinct(lambda value: f"{value % 4}", within="10ms", name="fours"))
    seen = app.table("seen", key=str, value=int, like=a)
    to("alarm", stream.process(Alarm(seen), name="alarm", wall_timers="1s", value=int))
    to("every", groups.count(name="every", emit_every="2s"))
    every = groups.tumbling("10ms", grace="5ms").sum(name="windows", emit_every="2s")
    to("every-window", every)
    to("top", groups.top_k(2, name="top"))
    to("top-final", groups.hopping("20ms", "10ms").top_k(2, name="top-final", emit="final"))
    limited = groups.session("8ms", grace="4ms").count(name="held", emit=ms.Suppress("20ms"))
    to("limited", limited)
    history = app.table("history", topic=b, versioned="50ms")
    pair = "{}/{}".format
    to("as-of", stream.join(history, pair, how="left", name="as-of"))
    few = history.filter(lambda number: number % 3).map_values(lambda number: -number, value=int)
    to("as-of-few", stream.join(few, pair, how="left", grace="6ms", name="as-of-few"))
    to("as-of-late", stream.join(history, pair, how="left", grace="6ms", name="as-of-late"))
    last = stream.to_table("last")
    to("foreign", last.join(history, pair, on=lambda value: "ABC"[value % 3], name="foreign"))
    return app, a, b, outs


LATEST = {"out-distinct-by", "out-foreign"}
"""Behind another topic the order of several keys' records is open."""


async def results(how: Disturbance) -> dict[str, Any]:
    """What comes out, key by key, with something happening after each record."""
    rng, now = random.Random(11), 0
    app, a, b, outs = program()
    async with TestApp(app, start=0) as t:
        for _ in range(40):
            now += rng.choice([0, 1, 3, 8, 30])
            late = max(0, now - rng.choice([0, 0, 0, 3, 9]))
            topic = rng.choice([a, a, a, b])
            await feed(t, topic, [(rng.choice("ABC"), rng.randrange(50), late)])
            await disturb(t, how)
            await t.advance(wall="500ms")
        await t.advance(wall="10s")
        found = {out.name: by_key(read(t, out)) for out in outs}
    return {
        name: {key: values[-1] for key, values in keys.items()} if name in LATEST else keys
        for name, keys in found.items()
    }


async def test_time_is_committed_state() -> None:
    """Crashes after each record, with the disk and without, and rebalances change no result."""
    wanted = await results("")
    assert all(wanted.values())
    disturbances: list[Disturbance] = ["crash", "lose", "rebalance"]
    for how in disturbances:
        found = await results(how)
        for name, keys in wanted.items():
            assert found[name] == keys, (how, name)


@pytest.mark.parametrize("partitions", [1, 3])
async def test_an_input_that_ends(partitions: int) -> None:
    """With ``idle_timeout`` every window comes out, of every kind, wherever its key is; a crash repeats none."""
    app = ms.App("shop", partitions=partitions)
    a = app.topic("a", value=int, idle_timeout="5s")
    groups = app.stream(a).group_by()
    tables = {
        "tumbling": groups.tumbling("1m", grace="10s").count(name="tumbling", emit="final"),
        "hopping": groups.hopping("1m", "30s").count(name="hopping", emit="final"),
        "sliding": groups.sliding("1m").count(name="sliding", emit=ms.Suppress()),
        "session": groups.session("1m").count(name="session", emit="final"),
        "every": groups.tumbling("1m").count(name="every", emit="every"),
    }
    outs = {name: app.topic(f"out-{name}", value=int) for name in tables}
    for name, table in tables.items():
        table.to(outs[name])
    async with TestApp(app) as t:
        rows = [
            ("a", 1, 0),
            ("b", 1, 1_000),
            ("a", 1, 59_000),
            ("a", 1, 600_000),
            ("b", 1, 601_000),
        ]
        await feed(t, a, rows)
        for _ in range(30):
            await t.advance(wall="5s")
        await t.crash(lose_state=True)
        await t.advance(wall="5m")
        found = {name: by_key(read(t, out)) for name, out in outs.items()}
    last = {key: values[-1:] for key, values in found["every"].items()}
    assert (
        found["tumbling"]
        == last
        == {
            ("a", 0, 60_000): [2],
            ("b", 0, 60_000): [1],
            ("a", 600_000, 660_000): [1],
            ("b", 600_000, 660_000): [1],
        }
    )
    assert {key: sum(v) for key, v in found["session"].items()} == {
        ("a", 0, 59_000): 2,
        ("b", 1_000, 1_000): 1,
        ("a", 600_000, 600_000): 1,
        ("b", 601_000, 601_000): 1,
    }
    assert sum(sum(values) for values in found["hopping"].values()) == 8
    assert sum(len(values) for values in found["sliding"].values()) == len(found["sliding"])
    assert ("a", 540_000, 600_000) in found["sliding"]
