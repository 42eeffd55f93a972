"""Threads that own connections: all SQLite work of a transport happens in them, never on its event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from millstream.errors import InternalError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from millstream.transports.local.file import LogFile

__all__ = ["Threads"]

logger = logging.getLogger("millstream.transports.local")

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """A few threads with a connection each; with one thread, work is done in the order it was given.

    A caller that is cancelled leaves its work to be finished, or never begun, in the thread.
    """

    def __init__(self, file: LogFile, *, name: str, durable: bool, count: int = 1) -> None:
        self._file = file
        self._durable = durable
        self._own = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._closed = False
        self._executor = ThreadPoolExecutor(count, thread_name_prefix=f"millstream-log-{name}")

    async def run(
        self,
        work: Callable[Concatenate[sqlite3.Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Call ``work`` with a connection, in a thread.

        Raises:
            TransportError: SQLite's errors, translated.
        """
        if self._closed:
            raise InternalError(f"the log {self._file.path} was used after it was closed")

        def call() -> T:
            with self._file.translated():
                return work(self._connection(), *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def follow_up(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Call ``work`` later, for its effect alone; what it raises is logged, as nobody waits for it."""

        def call() -> None:
            try:
                with self._file.translated():
                    work(self._connection())
            except Exception as exc:
                logger.warning("the log's file was not looked after, which is tried again: %s", exc)

        if not self._closed:
            self._executor.submit(call)

    def close(self) -> None:
        """Finish what was begun; blocks."""
        self._closed = True
        self._executor.shutdown(wait=True)
        for connection in self._connections:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._file.connect(durable=self._durable)
            self._connections.append(connection)
        return connection
