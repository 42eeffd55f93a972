"""Tables of a running app over HTTP, for programs that do not import the app.

::

    async with Client("http://127.0.0.1:6066") as client:
        totals = client.table("totals", value_type=float)
        print(await totals.get("ada"))
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, overload
from urllib.parse import quote

import httpx
import msgspec

from millstream.clock import duration_ms
from millstream.errors import ConfigurationError
from millstream.serialization import KeyLayout, codec_for, key_layout, murmur2_partition
from millstream.tables._query import (
    BadQueryError,
    Change,
    Changes,
    Entry,
    Page,
    Read,
    TableInfo,
    UnavailableError,
    UnknownTableError,
)
from millstream.tables._view import View
from millstream.windows import Window

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from types import TracebackType

    from millstream.clock import Duration

__all__ = ["Client"]

TIMEOUT_S = 15.0
"""Longer than a worker waits for the records that an answer has to reflect."""
SILENCE_S = 40.0
"""A stream of changes says every 15 s that it is there."""
CONNECT_TIMEOUT_S = 3.0


class Client:
    """A connection to one worker, which answers for all of them. Use it as an async context manager.

    Raises (any use of a view):
        UnavailableError: the worker does not answer, or nobody can answer now.
    """

    def __init__(self, url: str, *, http: httpx.AsyncClient | None = None) -> None:
        """
        Args:
            url: of any worker, with the prefix of the web part where it is mounted below one.
            http: a client to use, which is not closed; one is made where it is left out.
        """
        self.url = url.rstrip("/")
        self._own = http is None
        self._http = http or httpx.AsyncClient(
            timeout=httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        )

    def __repr__(self) -> str:
        return f"<Client {self.url}>"

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        if self._own:
            await self._http.aclose()

    @overload
    def table(self, name: str, *, stale: Duration | None = None) -> View[Any, Any]: ...
    @overload
    def table(
        self, name: str, *, key_type: Any = None, value_type: Any = None, stale: Duration | None = None
    ) -> View[Any, Any]: ...
    def table(
        self, name: str, *, key_type: Any = None, value_type: Any = None, stale: Duration | None = None
    ) -> View[Any, Any]:
        """A view of a table, as `Table.view` gives it.

        Args:
            key_type: what the app declares; without it keys are what JSON makes of them: text, numbers,
                lists for tuples.
            value_type: likewise; without it values are dicts, lists, text and numbers.
            stale: how old answers may be where the owner of a key cannot be sure to be current.
        """
        info = TableInfo(
            name=name,
            layout=_AnyKeys() if key_type is None else key_layout(key_type),
            codec=codec_for("json", Any if value_type is None else value_type),
            windows=_SOME_WINDOWS,
            place=lambda key: b"",
            partitioner=murmur2_partition,
        )
        stale_ms = None if stale is None else duration_ms(stale, what="stale")
        return View(info, _HttpQueries(self._http, self.url, info), stale_ms=stale_ms)

    async def tables(self) -> list[dict[str, Any]]:
        """The tables of the app: ``name key value windows partitions help``."""
        answer = await _get(self._http, f"{self.url}/tables", {})
        return msgspec.json.decode(answer, type=dict[str, list[dict[str, Any]]])["rows"]
