"""Watching other workers' processes, by their sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from millstream.worker._watch import PeerWatch, neighbours

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEADLINE_S = 20.0


class Peer:
    """A process with a port."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.connected = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, always on the same port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connected += 1
        with contextlib.suppress(OSError):
            await reader.read()

    def hang_up(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def die(self) -> None:
        """End, as a killed process does."""
        if self._server is not None:
            self._server.close()
            self.hang_up()
            await asyncio.sleep(0)
            self._server = None


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """A process that listens."""
    found = Peer()
    await found.start()
    yield found
    await found.die()


class Watching:
    """A watch, and whom it suspects."""

    def __init__(self) -> None:
        self.suspected: list[str] = []
        self.watch = PeerWatch(self._suspect)

    async def _suspect(self, member_id: str) -> bool:
        self.suspected.append(member_id)
        return True


@pytest.fixture
async def watching() -> AsyncIterator[Watching]:
    """A watch that runs."""
    found = Watching()
    running = asyncio.create_task(found.watch.run())
    yield found
    assert not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def until(condition: object) -> None:
    """Wait for it."""
    patience = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < patience, "it never came true"
        await asyncio.sleep(0.01)


async def test_a_process_that_is_gone(peer: Peer, watching: Watching) -> None:
    """Its connection ends and its port refuses: the group is told who it was."""
    watching.watch.follow({"m": peer.url})
    await until(lambda: peer.connected)
    await peer.die()
    await until(lambda: watching.suspected)
    assert watching.suspected == ["m"]


async def test_a_connection_that_ends(peer: Peer, watching: Watching) -> None:
    """A port that goes on answering is a process that lives."""
    watching.watch.follow({"m": peer.url})
    for number in range(1, 4):
        await until(lambda number=number: peer.connected == number)
        peer.hang_up()
    await until(lambda: peer.connected == 4)
    assert watching.suspected == []


async def test_a_process_that_was_never_reached(peer: Peer, watching: Watching) -> None:
    """Whoever does not get through to a worker at all has nothing to say of it."""
    await peer.die()
    other = Peer()
    await other.start()
    watching.watch.follow({"m": peer.url, "n": other.url})
    await until(lambda: other.connected)
    await other.die()
    await until(lambda: watching.suspected)
    assert watching.suspected == ["n"]


async def test_who_is_not_followed_any_more(peer: Peer, watching: Watching) -> None:
    """A worker that has left the group is gone rightly."""
    other = Peer()
    await other.start()
    watching.watch.follow({"m": peer.url, "n": other.url})
    await until(lambda: peer.connected and other.connected)
    watching.watch.follow({"n": other.url})
    await peer.die()
    await other.die()
    await until(lambda: watching.suspected)
    assert watching.suspected == ["n"]


@pytest.mark.parametrize(
    ("member_id", "names", "watched"),
    [
        ("a", "a", ""),
        ("a", "ab", "b"),
        ("c", "abcdefg", "gab"),
        ("a", "abcdefg", "efg"),
        ("g", "abcdefg", "def"),
        ("b", "abc", "ca"),
    ],
)
def test_whom_a_worker_watches(member_id: str, names: str, watched: str) -> None:
    """The three before it, in a circle."""
    urls = {name: f"http://{name}" for name in names}
    assert neighbours(member_id, urls) == {name: urls[name] for name in watched}


def test_workers_without_an_address() -> None:
    """They are left out, and the one before them is watched instead."""
    urls = {"a": "http://a", "b": "", "c": "", "d": "http://d", "e": "http://e", "f": ""}
    assert list(neighbours("f", urls)) == ["a", "d", "e"]
