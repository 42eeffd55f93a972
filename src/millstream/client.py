"""Tables of a running app over HTTP, for programs that do not import the app.

::

    async with Client("http://127.0.0.1:6066") as client:
        totals = client.table("totals", value_type=float)
        print(await totals.get("ada"))
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import msgspec

from millstream.clock import duration_ms
from millstream.errors import BadQueryError, UnavailableError, UnknownTableError
from millstream.serialization import KeyLayout, codec_for, key_layout, partitioner
from millstream.tables._query import (
    Change,
    Changes,
    Entry,
    Page,
    Read,
    TableInfo,
)
from millstream.tables._view import View
from millstream.windows import Window

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping
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

    def table(
        self,
        name: str,
        *,
        key_type: Any = None,
        value_type: Any = None,
        stale: Duration | None = None,
    ) -> View[Any, Any]:
        """A view of a table, as `Table.view` gives it.

        Args:
            key_type: what the app declares; without it keys are what JSON makes of them: text, numbers,
                tuples for arrays.
            value_type: likewise; without it values are dicts, lists, text and numbers.
            stale: what answers may lack, for example ``"5s"``: then copies of the table answer as well.
        """
        info = TableInfo(
            name=name,
            layout=_AnyKeys() if key_type is None else key_layout(key_type),
            codec=codec_for("json", Any if value_type is None else value_type),
            place=lambda key: b"",
            partitioner=partitioner("murmur2"),
        )
        stale_ms = None if stale is None else duration_ms(stale, what="stale")
        return View(info, _HttpQueries(self._http, self.url, info), stale_ms=stale_ms)

    async def tables(self) -> list[dict[str, Any]]:
        """The tables of the app: ``name key value windows partitions help``."""
        answer = await _get(self._http, f"{self.url}/tables", {})
        return msgspec.json.decode(answer, type=dict[str, list[dict[str, Any]]])["rows"]


class _AnyKeys(KeyLayout[Any]):
    """Keys as JSON has them; the order of their bytes means nothing."""

    type_name = "JSON"

    def encode(self, key: Any) -> bytes:
        return json.dumps(key, ensure_ascii=False, separators=(",", ":")).encode()

    def read(self, data: bytes, at: int = 0) -> tuple[Any, int]:
        return _frozen(json.loads(data[at:])), len(data)

    def prefix(self, prefix: Any) -> tuple[bytes, bytes | None]:
        return b"", None

    def parse(self, text: str) -> Any:
        return text

    def format(self, key: Any) -> str:
        return key if isinstance(key, str) else self.encode(key).decode()

    def to_json(self, key: Any) -> Any:
        return key

    def from_json(self, value: Any) -> Any:
        return _frozen(value)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


class _Row(msgspec.Struct):
    key: Any
    value: msgspec.Raw = msgspec.Raw(b"null")
    window: dict[str, int] | None = None
    deleted: bool = False


class _Answer(msgspec.Struct):
    """One row, or a page of them."""

    key: Any = None
    value: msgspec.Raw = msgspec.Raw(b"null")
    window: dict[str, int] | None = None
    rows: list[_Row] | None = None
    next: str | None = None
    position: dict[str, int] = {}
    stale_ms: int | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_row = msgspec.json.Decoder(_Row).decode


class _HttpQueries:
    """A `Queries` for one table, which asks what `millstream.web` answers."""

    def __init__(self, http: httpx.AsyncClient, url: str, info: TableInfo) -> None:
        self._http = http
        self._info = info
        self._url = f"{url}/tables/{quote(info.name, safe='')}"

    @property
    def tables(self) -> Mapping[str, TableInfo]:
        return {self._info.name: self._info}

    async def read(self, read: Read) -> Page:
        url = self._url
        if read.key is not None:
            url += f"/keys/{self._written(read.key)}"
        try:
            body = await _get(self._http, url, self._parameters(read))
        except _NoSuchKeyError:
            return Page(entries=[], position={})
        answer = _decode_answer(body)
        rows = answer.rows
        if rows is None:
            rows = [_Row(answer.key, answer.value, answer.window)]
        return Page(
            entries=[Entry(self._key(row), _window(row), bytes(row.value)) for row in rows],
            position=answer.position,
            next=None if answer.next is None else answer.next.encode(),
            stale_ms=answer.stale_ms,
        )

    def _written(self, key: bytes) -> str:
        return quote(_text(self._info, key), safe="")

    def _key(self, row: _Row) -> bytes:
        layout = self._info.layout
        return layout.encode(layout.from_json(row.key))

    def _parameters(self, read: Read) -> dict[str, str]:
        layout = self._info.layout
        found: dict[str, Any] = {
            "limit": read.limit,
            "reverse": "1" if read.reverse else None,
            "after": None if read.after is None else read.after.decode(),
            "at": read.at,
            "from": read.from_,
            "to": read.to,
            "at_least": ",".join(f"{t}/{p}@{o}" for t, p, o in read.at_least) or None,
            "stale": None if read.stale_ms is None else f"{read.stale_ms}ms",
        }
        if read.prefix is not None:
            prefix = read.prefix
            found["prefix"] = prefix if isinstance(prefix, str) else _written_prefix(prefix)
        elif read.key is None:
            if read.start != b"\x01":
                found["start"] = layout.format(layout.decode(read.start))
            if read.end is not None:
                found["end"] = layout.format(layout.decode(read.end))
        return {name: str(value) for name, value in found.items() if value is not None}

    async def changes(self, table: str, key: bytes | None = None) -> AsyncIterator[Changes]:
        parameters = {} if key is None else {"key": _text(self._info, key)}
        begun = False
        failures = 0
        while True:
            try:
                async with contextlib.aclosing(self._events(parameters)) as events:
                    async for event, data in events:
                        failures = 0
                        if event == "ready":
                            yield Changes(changes=[], missed=begun)
                            begun = True
                        elif event == "missed":
                            yield Changes(changes=[], missed=True)
                        elif event == "message":
                            row = _decode_row(data)
                            value = None if row.deleted else bytes(row.value)
                            change = Change(self._key(row), _window(row), value)
                            yield Changes(changes=[change])
            except httpx.HTTPError as exc:
                failures += 1
                if not begun or failures > RECONNECTS_MAX:
                    raise _unreachable(self._url, exc) from exc
            await asyncio.sleep(RECONNECT_S)

    async def _events(self, parameters: dict[str, str]) -> AsyncGenerator[tuple[str, bytes], None]:
        timeout = httpx.Timeout(CONNECT_TIMEOUT_S, read=SILENCE_S)
        async with self._http.stream(
            "GET",
            f"{self._url}/changes",
            params=parameters,
            headers={"Accept": "text/event-stream"},
            timeout=timeout,
        ) as answer:
            if answer.status_code != 200:
                raise _error_of(answer.status_code, await answer.aread())
            waiting = b""
            async for chunk in answer.aiter_bytes():
                *whole, waiting = (waiting + chunk).split(b"\n\n")
                for text in whole:
                    lines = dict(line.partition(b": ")[::2] for line in text.split(b"\n"))
                    if b"data" in lines:
                        yield lines.get(b"event", b"message").decode(), lines[b"data"]


RECONNECT_S = 0.5
RECONNECTS_MAX = 60


def _text(info: TableInfo, key: bytes) -> str:
    return info.layout.format(info.layout.decode(key))


def _written_prefix(prefix: Any) -> str:
    if isinstance(prefix, bytes):
        return f"0x{prefix.hex()}"
    return msgspec.json.encode(prefix).decode()


def _window(row: _Row) -> Window | None:
    return None if row.window is None else Window(row.window["start"], row.window["end"])


class _NoSuchKeyError(Exception):
    """The table is there, and the key is not."""


async def _get(http: httpx.AsyncClient, url: str, parameters: Mapping[str, str]) -> bytes:
    try:
        answer = await http.get(url, params=parameters, headers={"Accept": "application/json"})
    except httpx.HTTPError as exc:
        raise _unreachable(url, exc) from exc
    if answer.status_code != 200:
        raise _error_of(answer.status_code, answer.content)
    return answer.content


def _unreachable(url: str, error: Exception) -> UnavailableError:
    return UnavailableError(f"{url} does not answer ({type(error).__name__}: {error}).")


def _error_of(status: int, body: bytes) -> Exception:
    """What a problem (RFC 9457) says, as the error that a view raises."""
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        problem = {}
    kind = str(problem.get("type", "")).removeprefix("urn:millstream:")
    detail = problem.get("detail") or f"The answer has status {status}."
    if kind == "no-such-key":
        return _NoSuchKeyError(detail)
    if kind == "no-such-table":
        error = UnknownTableError(problem.get("table", ""))
        error.args = (detail,)
        return error
    if status == 400:
        return BadQueryError(detail)
    return UnavailableError(detail)
