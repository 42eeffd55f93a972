"""A worker whose disk is full: it says so, nothing is written by half, and it goes on when there is room again."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sqlite3
import subprocess
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import millstream as ms
from millstream.errors import LogUnavailableError, StateError
from millstream.transports.local.file import LogFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE_S = 30.0
VALUE_BYTES = 100_000


class Order(msgspec.Struct):
    """``bytes`` is how much its event writes."""

    account: str
    bytes: int


def program(
    log: Path, *, go: asyncio.Event | None = None, **settings: Any
) -> tuple[ms.App, Any, Any]:
    """Totals, and a record out for each record in; waits for ``go`` before large ones."""
    app = ms.App(
        "shop",
        broker=f"local://{log}",
        partitions=1,
        web=False,
        session_timeout="2s",
        **settings,
    )
    orders = app.topic("orders", value=Order, key_from="account")
    out = app.topic("out", value=str, key=str)
    texts = app.table("texts", key=str, value=str)
    totals = app.table("totals", key=str, value=int, default=0)

    @app.agent(orders)
    async def count(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            if order.bytes > 10 and go is not None:
                await go.wait()
            totals["all"] += 1
            texts[order.account] = "x" * order.bytes
            await out.send(order.account, key=order.account)

    return app, orders, (texts, totals)


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        await asyncio.sleep(0.02)


def committed(log: Path) -> dict[str, int]:
    """Records of each topic, and how far the orders are read: one moment of the file, read from outside."""
    connection = sqlite3.connect(f"file:{log}?mode=ro", uri=True)
    try:
        found = dict(
            connection.execute(
                "SELECT topic, end_offset FROM partitions WHERE topic IN ('orders', 'out')"
            ).fetchall()
        )
        row = connection.execute(
            "SELECT next_offset FROM positions JOIN partitions ON partition_id = partitions.id"
            " WHERE topic = 'orders'"
        ).fetchone()
        return {**found, "read": 0 if row is None else row[0]}
    finally:
        connection.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting needs root on Linux")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


class Ballast:
    """A file that takes all the room there is."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "ballast"

    def fill(self, *, leave: int = 0) -> None:
        with self._path.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 16, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
            file.truncate(max(0, file.tell() - leave))

    def remove(self) -> None:
        self._path.unlink()


class FewPages:
    """The same for those who may not mount: SQLite takes no more pages."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._connections: list[sqlite3.Connection] = []
        connect = LogFile.connect

        def noted(file: LogFile, *, durable: bool) -> sqlite3.Connection:
            connection = connect(file, durable=durable)
            self._connections.append(connection)
            return connection

        patch.setattr(LogFile, "connect", noted)

    def fill(self, *, leave: int = 0) -> None:
        self._limit(None)

    def remove(self) -> None:
        self._limit(1 << 30)

    def _limit(self, pages: int | None) -> None:
        for connection in self._connections:
            with contextlib.suppress(sqlite3.ProgrammingError):  # it is closed
                used = connection.execute("PRAGMA page_count").fetchone()[0]
                connection.execute(f"PRAGMA max_page_count={pages or used + 4}")


@pytest.mark.parametrize("kind", ["disk", "pages"])
async def test_the_log(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    """A commit that finds no room waits, with a warning; no part of it is there; it happens when there is room."""
    directory = request.getfixturevalue("small_disk") if kind == "disk" else tmp_path
    room: Any = Ballast(directory) if kind == "disk" else FewPages(monkeypatch)
    log = directory / "shop.db"
    go = asyncio.Event()
    app, orders, (texts, totals) = program(log, go=go, state_dir=tmp_path / "state")
    large = [Order(f"large-{n}", VALUE_BYTES) for n in range(20)]
    async with app.running():
        await orders.send(Order("ada", 5))
        await until(lambda: committed(log)["read"] == 1, "the first order is committed")
        await orders.send_many(large)
        room.fill()
        with caplog.at_level(logging.WARNING, "millstream.worker"):
            go.set()
            await until(lambda: "a commit waits for the log" in caplog.text, "a commit waits")
        assert f"the disk of the log {log} is full; nothing was written" in caplog.text
        assert committed(log) == {"orders": 21, "out": 1, "read": 1}
        with pytest.raises(LogUnavailableError, match=r"disk of the log .* is full; nothing was"):
            await orders.send_many([Order("huge", 1)] * 50_000)
        room.remove()
        await until(lambda: committed(log)["read"] == 21, "everything is committed")
        assert committed(log) == {"orders": 21, "out": 21, "read": 21}
    app, orders, (texts, totals) = program(log, state_dir=tmp_path / "state")
    async with app.running():
        await orders.send(Order("bob", 7))
        await until(lambda: committed(log)["read"] == 22, "the next order is committed")
        assert await totals.view().get("all") == 22
        assert await texts.view().get("large-19") == "x" * VALUE_BYTES
        assert await texts.view().get("bob") == "x" * 7


async def test_a_log_that_is_full_at_the_start(small_disk: Path, tmp_path: Path) -> None:
    """A worker that cannot even begin says why, and begins when there is room."""
    log = small_disk / "shop.db"
    app, orders, _ = program(log, state_dir=tmp_path / "state")
    async with app.running(worker=False):
        await orders.send(Order("ada", 5))
    room = Ballast(small_disk)
    room.fill()
    app, _, _ = program(log, state_dir=tmp_path / "state")
    with pytest.raises(LogUnavailableError, match=rf"the log {log} .*nothing was written"):
        async with app.running():
            pass
    room.remove()
    app, _, (_, totals) = program(log, state_dir=tmp_path / "state")
    async with app.running():
        await until(lambda: committed(log)["read"] == 1, "the order is committed")
        assert await totals.view().get("all") == 1


async def test_the_state(small_disk: Path, tmp_path: Path) -> None:
    """The worker stops and says which disk is full; what it had committed is whole when it starts again."""
    log = tmp_path / "shop.db"
    go = asyncio.Event()
    options: dict[str, Any] = {
        "state_dir": small_disk,
        "state_write_buffer_bytes": 1 << 20,
    }
    app, orders, _ = program(log, go=go, **options)
    room = Ballast(small_disk)

    async def run() -> None:
        async with app.running():
            await orders.send(Order("ada", 5))
            await until(lambda: committed(log)["read"] == 1, "the first order is committed")
            await orders.send_many([Order(f"large-{n}", VALUE_BYTES) for n in range(60)])
            room.fill()
            go.set()
            runtime = app.runtime
            assert runtime is not None
            await until(runtime.failed, "the worker has stopped")

    with pytest.raises(
        StateError, match=r"state of shard 1-0: .*the disk is full\. Make room; nothing that was"
    ):
        await run()
    found = committed(log)
    assert found["orders"] == 61
    assert found["out"] == found["read"]
    room.remove()
    gc.collect()  # the error's traceback holds the database, and its lock
    app, _, (texts, totals) = program(log, **options)
    async with app.running():
        await until(lambda: committed(log)["read"] == 61, "everything is committed")
        assert committed(log)["out"] == 61
        assert await totals.view().get("all") == 61
        for number in (0, 30, 59):
            assert await texts.view().get(f"large-{number}") == "x" * VALUE_BYTES
