"""A program that keeps its state in another form than the one before it: an error before the first event."""

from __future__ import annotations

from typing import Any

import pytest

import millstream as ms
from millstream.errors import TopologyError
from millstream.streams import VersionedPart
from millstream.testing import TestApp
from tests.kit import continued
from tests.streams.running import feed


def tumbling(size: str, grace: str = "0s") -> Any:
    """Windows of a stream."""
    return lambda app, a: app.stream(a).group_by().tumbling(size, grace=grace).count(name="t")


def session(gap: str) -> Any:
    """Sessions."""
    return lambda app, a: app.stream(a).group_by().session(gap).count(name="t")


def plain(app: ms.App, a: ms.Topic[int]) -> Any:
    """No windows."""
    return app.stream(a).group_by().count(name="t")


def of_agents(app: ms.App, a: ms.Topic[int]) -> Any:
    """A table that agents write."""
    return app.table("t", key=str, value=int, like=a)


def join(within: str, how: str = "left") -> Any:
    """A join, which keeps rows by stretches of its reach."""

    def build(app: ms.App, a: ms.Topic[int]) -> None:
        stream, other = app.stream(a), app.stream(app.topic("b", value=int))
        pairs: Any = stream.join(other, max, how=how, within=within, name="t")  # type: ignore[call-overload]
        pairs.foreach(str)

    return build


def history(length: str) -> Any:
    """A table with history."""
    return lambda app, a: app.table("t", topic=a, versioned=length)


CASES: list[tuple[Any, Any, str]] = [
    (tumbling("1m"), tumbling("5m"), r"tumbling\(1m\), .* keeps .* tumbling\(5m\)"),
    (tumbling("1m"), session("1m"), r"tumbling\(1m\), .* keeps .* session\(1m\)"),
    (tumbling("1m"), plain, r"tumbling\(1m\), .* values with the time of each"),
    (plain, tumbling("1m"), r"values with the time of each, .* keeps .* tumbling\(1m\)"),
    (plain, session("1m"), r"values with the time of each, .* keeps .* session\(1m\)"),
    (session("1m"), session("2m"), r"session\(1m\), .* session\(2m\)"),
    (plain, of_agents, "values with the time of each, .* keeps values, by keys"),
    (join("1m"), join("2m"), "in stretches of 240002 ms, .* in stretches of 480002 ms"),
    (history("1d"), history("8d"), "their history in stretches"),
]


def program(build: Any) -> tuple[ms.App, ms.Topic[int]]:
    """A table, or what else keeps something under the name ``t``."""
    app = ms.App("shop", partitions=1)
    a = app.topic("a", value=int)
    build(app, a)
    return app, a


async def filled(build: Any) -> TestApp:
    """Some state of the first program."""
    app, a = program(build)
    t = TestApp(app)
    async with t:
        await feed(t, a, [("A", 1, 0), ("B", 2, 1), ("A", 3, 2)])
    return t


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(("before", "after", "named"), CASES)
async def test_another_form_is_an_error(before: Any, after: Any, named: str, lost: bool) -> None:
    """It says what was kept and what would be, and how to go on; with the old form it goes on."""
    test = await filled(before)
    if lost:
        test._state.destroy("1-0")
    changed, _ = program(after)

    async def run() -> None:
        async with continued(changed, test):
            pass

    with pytest.raises(
        TopologyError, match=f"has state of another form: .*{named}.*millstream reset"
    ):
        await run()
    again, _ = program(before)
    async with continued(again, test):
        pass


async def test_what_may_change() -> None:
    """Grace and retention may; so may anything of a table that holds nothing."""
    test = await filled(tumbling("1m"))
    later, a = program(tumbling("1m", grace="10m"))
    async with continued(later, test) as t:
        await feed(t, a, [("A", 1, 3)])
        assert [value for _, value in t.table(later.tables["t"].table).items()] == [3, 1]
    app, _ = program(tumbling("1m"))
    empty = TestApp(app)
    async with empty:
        pass
    other, _ = program(tumbling("5m"))
    async with continued(other, empty):
        pass


async def test_a_history_that_was_kept_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its versions lay otherwise: what is there is refused, and not misread."""
    build = history("1d")
    with monkeypatch.context() as before:
        before.setattr(
            VersionedPart, "kept_as", "values and their history in stretches of 84375 ms"
        )
        test = await filled(build)
    app, _ = program(build)

    async def run() -> None:
        async with continued(app, test):
            pass

    with pytest.raises(
        TopologyError, match=r"another form: .*84375 ms, by keys .* and parts of these"
    ):
        await run()
