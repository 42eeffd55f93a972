"""News of the log: who waits for data is woken, whichever process wrote it."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from millstream.errors import LogUnavailableError, TransportError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from millstream.clock import Clock
    from millstream.transports.local.file import LogFile

__all__ = ["Bell", "Watcher"]

logger = logging.getLogger("millstream.transports.local")

POLL_MIN_S = 0.001
POLL_MAX_S = 0.020
POLL_GROWTH = 1.1
"""How the pause between two questions grows: from the least to the most in about 0.2 s of silence."""
AGAIN_S = 5.0
"""Between two attempts at a file that cannot be asked."""


class Bell:
    """Wakes everybody who waits on one event loop.

    Read ``rings`` before looking for data and hand it to `wait`: then no ring is missed in between.
    """

    def __init__(self) -> None:
        self.rings = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wake those who wait."""
        self.rings += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, seen: int, clock: Clock, timeout_s: float) -> None:
        """Wait for a ring after ``seen``, at most that long."""
        waits = [
            asyncio.ensure_future(self.wait_for_ring(seen)),
            asyncio.ensure_future(clock.sleep(timeout_s)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def wait_for_ring(self, seen: int) -> None:
        """Wait for a ring after ``seen``, however long it takes."""
        while self.rings == seen:
            rung = asyncio.get_running_loop().create_future()
            self._waiting.add(rung)
            try:
                await rung
            finally:
                self._waiting.discard(rung)


class Watcher:
    """Rings the bell when another connection has changed the file.

    A thread asks SQLite for ``data_version``, which reads a counter in shared memory, while somebody waits:
    every ms at first, then less often, and every `POLL_MAX_S` in a log where nothing happens.
    """

    def __init__(self, file: LogFile, bell: Bell) -> None:
        self._file = file
        self._bell = bell
        self._loop = asyncio.get_running_loop()
        self._watching = 0
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="millstream-log-watcher", daemon=True
        )
        self._thread.start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the file inside the block."""
        self._watching += 1
        self._wanted.set()
        try:
            yield
        finally:
            self._watching -= 1
            if not self._watching:
                self._wanted.clear()

    def close(self) -> None:
        """End the thread; blocks."""
        self._closed.set()
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                connection = self._file.connect(durable=False)
                try:
                    self._watch(connection)
                finally:
                    connection.close()
            except LogUnavailableError as exc:
                logger.warning("what other processes write is seen late for now: %s", exc)
                self._closed.wait(AGAIN_S)
            except TransportError:
                return  # whoever reads the log meets it as well, and raises it

    def _watch(self, connection: sqlite3.Connection) -> None:
        known = None
        while not self._closed.is_set():
            self._wanted.wait()
            pause = POLL_MIN_S
            while self._wanted.is_set() and not self._closed.is_set():
                with self._file.translated():
                    (version,) = connection.execute("PRAGMA data_version").fetchone()
                if version != known:
                    known, pause = version, POLL_MIN_S
                    try:
                        self._loop.call_soon_threadsafe(self._bell.ring)
                    except RuntimeError:  # the loop has gone before us
                        self._closed.set()
                self._closed.wait(pause)
                pause = min(pause * POLL_GROWTH, POLL_MAX_S)
