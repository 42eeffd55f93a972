"""The app: declarations under one id, discovery, hooks, and its life."""

# ruff: noqa: PERF401, PT012  # a stream is no list, and an app ends with its block

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

import millstream as ms
from millstream.errors import (
    AgentError,
    ConfigurationError,
    PartitionCountError,
    ProgramError,
    TopologyError,
)
from millstream.testing import TestApp
from tests.kit import Order, counting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.mark.parametrize("app_id", ["", "a b", "shop/1", "ü", "x" * 201, ".."])
def test_ids(app_id: str) -> None:
    """An id can be part of a topic's name."""
    with pytest.raises(ConfigurationError, match=r"app .* a name has letters, digits"):
        ms.App(app_id)


def test_nothing_is_opened_by_declaring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Declaring an app makes no file, socket or task."""
    monkeypatch.chdir(tmp_path)
    app, _, _ = counting()
    assert repr(app) == "<App 'shop'>"
    assert app.topology.agents.keys() == {"count"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("partitions", [0, -3])
def test_partitions_below_one(partitions: int) -> None:
    """A topic or table has at least one partition."""
    app = ms.App("none")
    with pytest.raises(PartitionCountError, match=f"topic 't': partitions={partitions}"):
        app.topic("t", partitions=partitions)
    with pytest.raises(PartitionCountError, match=f"table 't': partitions={partitions}"):
        app.table("t", partitions=partitions)


def test_things_of_another_app() -> None:
    """Topics of another app cannot be sources or give a table its partitions."""
    app, other = ms.App("mine"), ms.App("other")
    foreign = other.topic("foreign", value=int)
    app.topic("foreign", value=str)
    for declare in (
        lambda: app.agent(foreign, name="reader")(_reader),
        lambda: app.stream(foreign),
        lambda: app.table("t", topic=foreign),
        lambda: app.table("u", key=str, value=int, like=foreign),
        lambda: app.global_table("g", topic=foreign),
    ):
        with pytest.raises(TopologyError, match="'foreign' is a topic of another app"):
            declare()


async def _reader(stream: ms.Stream[int]) -> None:
    async for _ in stream:
        pass


def test_sources_that_are_none() -> None:
    """A source is a topic or a stream."""
    with pytest.raises(TopologyError, match="agent 'r': 'orders' is neither a topic nor a stream"):
        ms.App("x").agent("orders", name="r")(_reader)  # type: ignore[call-overload]


def test_autodiscover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``autodiscover`` imports modules and packages with everything in them, once, when it is needed."""
    package = tmp_path / "found_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text(
        "import found_app\n@found_app.app.task\nasync def deep(): ...\n"
    )
    (tmp_path / "found_app.py").write_text(
        "import millstream as ms\napp = ms.App('found', autodiscover=['found_package'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import found_app  # type: ignore[import-not-found]

    try:
        assert found_app.app.tasks == []
        found_app.app.discover()
        found_app.app.discover()
        assert [task.__name__ for task in found_app.app.tasks] == ["deep"]
    finally:
        for name in [name for name in sys.modules if name.startswith("found_")]:
            del sys.modules[name]


def test_autodiscover_of_nothing() -> None:
    """A module that does not exist is an error when it is looked for."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        ms.App("x", autodiscover=["no_such_module"]).discover()


async def test_on_shards() -> None:
    """Hooks are told of shards that come and go, as pairs of count and number."""
    app, _, _ = counting(partitions=2)
    seen: list[tuple[str, Any]] = []

    @app.on_shards()
    async def come(shards: Any) -> None:
        seen.append(("come", shards))

    def go(shards: Any) -> None:
        seen.append(("go", shards))

    app.on_shards(revoked=go)
    async with TestApp(app) as t:
        await t.rebalance()
    both = [(2, 0), (2, 1)]
    assert seen == [("come", both), ("go", both), ("come", both)]


async def test_on_state(caplog: pytest.LogCaptureFixture) -> None:
    """Hooks are told of each state of the worker, in order; what they raise is logged."""
    app, orders, _ = counting(partitions=2)
    seen: list[str] = []

    @app.on_state
    async def note(state: str) -> None:
        seen.append(state)

    @app.on_state
    def fail(state: str) -> None:
        if state == "running":
            raise ValueError("not now")

    async with TestApp(app) as t:
        assert seen == ["joining", "recovering", "running"]
        await t.rebalance()
        assert seen[3:] == ["recovering", "running"]
        seen.clear()
        await t.crash()  # which nobody is told of
        assert seen == ["joining", "recovering", "running"]
        t.worker.shards[2, 1].rewind()
        await t.settle()
        assert seen[3:] == ["recovering", "running"]
        seen.clear()
    assert seen == ["stopping", "stopped"]
    assert "on_state, which was told 'running'" in caplog.text
    seen.clear()
    with pytest.raises(AgentError):
        async with TestApp(app) as t:
            await t.send(orders, Order("ada", -1.0))
    assert (seen[-2:], set(seen[:-2])) == (["running", "failed"], {"joining", "recovering"})


async def test_on_state_without_shards() -> None:
    """A worker with nothing but tasks runs at once."""
    app = ms.App("tasks")
    seen: list[str] = []
    app.on_state(seen.append)
    async with TestApp(app):
        assert seen == ["joining", "running"]
    assert seen[2:] == ["stopping", "stopped"]


async def test_lifespan() -> None:
    """A lifespan opens resources before the first event, and closes them after the last one."""
    order: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: ms.App) -> AsyncIterator[None]:
        order.append("open")
        yield
        order.append("close")

    app = ms.App("life", lifespan=lifespan)
    topic = app.topic("t", value=str)

    @app.agent(topic)
    async def read(stream: ms.Stream[str]) -> None:
        async for value in stream:
            order.append(value)

    async with TestApp(app) as t:
        await t.send(topic, "event")
    assert order == ["open", "event", "close"]


@pytest.mark.parametrize("moment", ["open", "close"])
async def test_exception_in_a_lifespan(moment: str) -> None:
    """What a lifespan raises comes out as it is; what was committed before stays."""

    @contextlib.asynccontextmanager
    async def lifespan(app: ms.App) -> AsyncIterator[None]:
        if moment == "open":
            raise OSError("no database")
        yield
        raise OSError("no database")

    app, orders, totals = counting()
    app.lifespan = lifespan
    with pytest.raises(OSError, match="no database"):
        async with TestApp(app) as t:
            await t.send(orders, Order("ada", 1.0))
            assert t.table(totals) == {"ada": 1.0}
    assert app.runtime is None


async def test_running_twice() -> None:
    """An app runs once in a process at a time."""
    app, _, _ = counting(broker="memory://", state="memory")
    async with app.running(worker=False):
        with pytest.raises(ProgramError, match="app 'shop' is running already in this process"):
            async with app.running():
                raise AssertionError
    async with app.running(worker=False) as again:
        assert again is app


async def test_what_stops_the_worker_keeps_its_cause() -> None:
    """The error of a stopped worker is chained to what the program raised, with its traceback."""
    app, orders, _ = counting()
    with pytest.raises(ms.errors.AgentError) as raised:
        async with TestApp(app) as t:
            await t.send(orders, Order("ada", -1.0))
    assert isinstance(raised.value.__cause__, ValueError)
    assert raised.value.__cause__.__traceback__ is not None


async def test_two_agents_that_fail_at_once() -> None:
    """Two agents that stop at one record give one error, with the other one as a note."""
    app = ms.App("two")
    topic = app.topic("t", value=int)

    for name in ("left", "right"):

        @app.agent(topic, name=name)
        async def fail(stream: ms.Stream[int], name: str = name) -> None:
            async for _ in stream:
                raise ValueError(name)

    with pytest.raises(ms.errors.AgentError) as raised:
        async with TestApp(app) as t:
            await t.send(topic, 1)
    said = f"{raised.value} {getattr(raised.value, '__notes__', '')}"
    assert "left" in said or "right" in said


def test_names_of_agents_and_tables() -> None:
    """Agents and tables have names that can stand in a topic's."""
    app = ms.App("names")
    with pytest.raises(ConfigurationError, match="table 'a b'"):
        app.table("a b")
    with pytest.raises(ConfigurationError, match="agent 'a b'"):
        app.agent(name="a b")(_reader)


def test_pages() -> None:
    """A page's path begins with a slash, and is declared once."""
    app = ms.App("pages")

    async def page(request: Any) -> None:
        pass

    app.page("/a")(page)
    with pytest.raises(ConfigurationError, match="'/a' is declared twice"):
        app.page("/a")(page)
    with pytest.raises(ConfigurationError, match="'b': a path begins with a slash"):
        app.page("b")(page)


def test_commands() -> None:
    """``@app.command`` makes a click command of the function."""
    app = ms.App("commands")

    @app.command("greet")
    def hello() -> None:
        """Say hello."""

    assert [command.name for command in app.commands] == ["greet"]
    assert callable(hello)
