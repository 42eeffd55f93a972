"""Async functions: in each operator that takes a function, with the results of the same function that does not wait."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

import millstream as ms
from millstream.errors import AgentError
from millstream.testing import TestApp
from tests.streams.running import by_key, feed, read

if TYPE_CHECKING:
    from collections.abc import Callable

END = 10_000_000

Wrap = "Callable[[Callable[..., Any]], Callable[..., Any]]"


def at_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as it is."""
    return function


def later(function: Callable[..., Any]) -> Callable[..., Any]:
    """An async function with its results."""

    async def waits(*arguments: Any) -> Any:
        for _ in range(hash(str(arguments)) % 4):
            await asyncio.sleep(0)
        return function(*arguments)

    return waits


def hidden(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of which nobody sees that it returns something to await."""
    waits = later(function)
    return lambda *arguments: waits(*arguments)


def now_and_then(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns something to await for some arguments only."""
    waits = later(function)
    return lambda *arguments: (waits if hash(str(arguments)) % 3 else function)(*arguments)


def joined(left: Any, right: Any) -> str:
    """A joiner that shows both sides."""
    return f"{left}/{right}"


def listed(so_far: str, value: Any) -> str:
    """An aggregator that shows the order."""
    return f"{so_far}{value};"


class Doubled:
    """A processor that forwards twice, the second time by a timer."""

    def __init__(self, wrap: Any) -> None:
        self.process = wrap(self._process)
        self.on_timer = wrap(self._on_timer)

    def _process(self, key: Any, value: Any, context: Any) -> None:
        context.forward(value)
        context.set_timer(after="5ms")

    def _on_timer(self, key: Any, context: Any) -> None:
        context.forward(-1)


def program(wrap: Any, concurrency: int) -> tuple[ms.App, Any, Any, list[ms.Topic[str]]]:
    """A program with every operator that takes a function; some are lambdas that call an async one."""
    app = ms.App("shop", partitions=1)
    a, b = app.topic("a", value=int), app.topic("b", value=int)
    stream, other = app.stream(a, concurrency=concurrency), app.stream(b, concurrency=concurrency)
    # grace, because others' records move event time while one waits
    grace, overlapping = "1h", concurrency > 1
    outs: list[ms.Topic[str]] = []

    def to(name: str, flow: Any) -> None:
        out = app.topic(f"out-{name}", value=str)
        outs.append(out)
        if hasattr(flow, "changes"):
            flow = flow.changes()
        flow.map(lambda value: f"{value}", value=str).to(out)

    double, odd = wrap(lambda value: value * 2), wrap(lambda value: value % 2)
    merge = wrap(lambda x, y: f"{x}{y}")
    to("filter", stream.filter(lambda value: odd(value)))
    to("map", stream.map(double, value=int))
    to("lambda", stream.map(lambda value: double(value), value=int))
    to("flat", stream.flat_map(wrap(lambda value: [value, -value]), value=int))
    to("peek", stream.peek(double))
    to("rekeyed", stream.map_keys(wrap(lambda key: key * 2), type=str))
    to("split", stream.split({"odd": odd, "low": wrap(lambda value: value < 50)})["low"])
    chosen = [app.topic(name, value=int) for name in ("even", "odd")]
    outs.extend(chosen)  # type: ignore[arg-type]
    stream.to(wrap(lambda value: chosen[value % 2]))
    groups = stream.group_by()
    fold: dict[str, Any] = {"default": "", "add": wrap(listed)}
    to("list", groups.aggregate(name="list", **fold))
    to("sum", groups.sum(double, name="sum"))
    to("mean", groups.tumbling("20ms", grace=grace).mean(double, name="mean"))
    to("max", groups.max(double, name="max"))
    to("top", groups.top_k(2, wrap(lambda value: value % 7), name="top"))
    to("reduce", groups.reduce(wrap(lambda x, y: x + y), name="reduce"))
    cogroup = groups.cogroup(wrap(listed)).cogroup(other.group_by(), wrap(listed))
    to("cogroup", cogroup.aggregate(default="", name="cogroup"))
    to(
        "cogroup-win",
        cogroup.tumbling("10ms", grace=grace).aggregate(default="", name="cogroup-win"),
    )
    to("tumbling", groups.tumbling("10ms", grace=grace).aggregate(name="tumbling", **fold))
    to("final", groups.tumbling("10ms", grace=grace).aggregate(name="final", emit="final", **fold))
    to("sliding", groups.sliding("10ms", grace=grace).aggregate(name="sliding", **fold))
    to("session", groups.session("10ms", grace=grace).aggregate(name="s", merge=merge, **fold))
    to("final-s", groups.session("9ms", grace=grace).top_k(2, double, name="final-s", emit="final"))
    last, right = stream.to_table("last"), other.to_table("right")
    to("table-filter", last.filter(odd, name="odds"))
    doubled = last.map_values(double, name="doubled", value=int)
    to("table-join", doubled.join(right, wrap(joined), how="outer", name="both"))
    by_digit = last.group_by(wrap(lambda value: f"{value % 3}"), name="by-digit", type=str)
    plus, minus = wrap(lambda x, y: x + y), wrap(lambda x, y: x - y)
    to("table-sum", by_digit.aggregate(default=0, add=plus, subtract=minus))
    to("table-mean", by_digit.mean(double))
    to("table-max", by_digit.max(double))
    to("table-top", by_digit.top_k(2, double))
    by_owner = last.join(right, wrap(joined), on=wrap(lambda v: "AB"[v % 2]), how="left", name="fk")
    to("foreign", by_owner)
    everywhere = app.global_table("everywhere", topic=app.topic("all", value=int))
    found = stream.join(everywhere, wrap(joined), on=wrap(lambda value: "A"), how="left")
    to("global", found)
    to("stream-join", stream.join(other, wrap(joined), within="5ms", grace=grace, name="pairs"))
    to("stream-table", stream.join(right, wrap(joined), how="left", name="looked"))
    if not overlapping:
        to("processed", stream.process(Doubled(wrap), name="processed", value=int))
        outer = stream.join(other, wrap(joined), how="outer", within="5ms", grace="3ms")
        to("outer-join", outer)
        hops = groups.hopping("10ms", "5ms").aggregate(name="hopping", emit=ms.Suppress(), **fold)
        to("hopping", hops)
        reduced = groups.hopping("10ms", "5ms").reduce(wrap(lambda x, y: x + y), name="reduced")
        to("reduced", reduced)
    return app, a, b, outs


UNORDERED = {
    f"out-{name}" for name in ["table-sum", "table-mean", "table-max", "table-top", "foreign"]
}
"""Behind another topic the order of several keys' changes is open; the last values are compared."""


async def results(wrap: Any, concurrency: int, crashes: bool = False) -> dict[str, Any]:
    """By topic and key, what came out."""
    rng, now = random.Random(7), 0
    app, a, b, outs = program(wrap, concurrency)
    async with TestApp(app) as t:
        for _ in range(12):
            rows: list[Any] = []
            for _ in range(6):
                now += rng.choice([0, 1, 3, 8])
                rows.append(
                    (rng.choice("ABC"), rng.randrange(100), max(0, now - rng.choice([0, 0, 4])))
                )
            await feed(t, rng.choice([a, a, b]), rows)
            if crashes:
                await t.crash(lose_state=True)
        await feed(t, a, [("A", 1, END)])
        await feed(t, b, [("A", 1, END)])
        found = {out.name: by_key(read(t, out)) for out in outs}
    return {
        name: {key: values[-1] for key, values in keys.items()} if name in UNORDERED else keys
        for name, keys in found.items()
    }


@pytest.mark.parametrize("wrap", [later, hidden, now_and_then])
@pytest.mark.parametrize(("concurrency", "crashes"), [(1, False), (1, True), (8, False)])
async def test_async_functions_anywhere(wrap: Any, concurrency: int, crashes: bool) -> None:
    """The results are those of functions that do not wait, key by key and in order, also with a crash in between."""
    found = await results(wrap, concurrency, crashes)
    wanted = await results(at_once, 1)
    assert all(wanted.values())
    for name, keys in found.items():
        assert wanted[name] == keys, name


async def test_async_generators() -> None:
    """A flat_map may be an async generator."""
    app = ms.App("shop", partitions=1)
    a, out = app.topic("a", value=int), app.topic("out", value=int)

    async def twice(value: int) -> Any:
        yield value
        await asyncio.sleep(0)
        yield value

    app.stream(a).flat_map(twice, value=int).to(out)
    async with TestApp(app) as t:
        await feed(t, a, [("A", 1, 0), ("B", 2, 0)])
        assert t.sent(out) == [1, 1, 2, 2]


async def test_a_lookup_cannot_wait() -> None:
    """Where a lookup meets a function that turns out to be async, the error says what to do."""
    app = ms.App("shop", partitions=1)
    a, b = app.topic("a", value=int), app.topic("b", value=int)
    double = later(lambda value: value * 2)
    doubled = app.table("left", topic=a).map_values(lambda value: double(value), value=int)
    doubled.join(app.table("right", topic=b), joined, name="both")

    async def run() -> None:
        async with TestApp(app) as t:
            await feed(t, a, [("A", 1, 0)])
            await feed(t, b, [("A", 1, 0)])

    with pytest.raises(AgentError, match=r"map_values\(\.\.\., name=\.\.\.\)"):
        await run()
