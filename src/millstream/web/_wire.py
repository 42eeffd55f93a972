"""How workers ask one another: MessagePack over HTTP, below ``/internal/v1``.

These addresses answer for this worker's own shards and nothing more, and so a question travels one step at
most, however wrong two workers are about who owns what.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from millstream.errors import (
    BadQueryError,
    NotHereError,
    QueryError,
    UnavailableError,
    UnknownTableError,
)
from millstream.tables._query import (
    Changes,
    Page,
    Read,
)
from millstream.web._streams import Closing, LiveResponse, beating

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from millstream.web._cluster import Local
    from millstream.web._facts import Facts

__all__ = [
    "BEAT_S",
    "PREFIX",
    "decode_page",
    "encode_read",
    "error_of",
    "internal_routes",
    "read_frames",
]

PREFIX = "/internal/v1"
BEAT_S = 2.0
"""After so much silence a stream of changes says that it is there."""
FRAME_BYTES_MAX = 64 << 20

_SIZE = struct.Struct(">I")
_NOTHING = Changes(changes=[])
_encode = msgspec.msgpack.Encoder().encode
_decode_read = msgspec.msgpack.Decoder(Read).decode
_decode_changes = msgspec.msgpack.Decoder(Changes).decode
decode_page = msgspec.msgpack.Decoder(Page).decode

_KINDS: dict[str, type[QueryError]] = {
    kind.__name__: kind
    for kind in (QueryError, BadQueryError, NotHereError, UnavailableError, UnknownTableError)
}


def encode_read(read: Read) -> bytes:
    """A question, for another worker."""
    return _encode(read)


def error_of(body: bytes) -> QueryError:
    """The error that another worker answered with."""
    try:
        found = msgspec.json.decode(body, type=dict[str, str])
    except msgspec.DecodeError:
        return UnavailableError("Another worker gave an answer that is none.")
    kind = _KINDS.get(found.get("error", ""), UnavailableError)
    if kind is UnknownTableError:
        return UnknownTableError(found.get("table", ""))
    return kind(found.get("detail", ""))


def _error(error: QueryError) -> Response:
    body = {"error": type(error).__name__, "detail": str(error)}
    if isinstance(error, UnknownTableError):
        body["table"] = error.table
    return JSONResponse(body, status_code=409)


def internal_routes(local: Local, facts: Facts, closing: Closing) -> list[BaseRoute]:
    """What other workers ask for."""

    async def read(request: Request) -> Response:
        try:
            asked = _decode_read(await request.body())
            page = await local.read(asked)
        except msgspec.DecodeError as exc:
            return _error(BadQueryError(f"The question cannot be read: {exc}."))
        except QueryError as exc:
            return _error(exc)
        return Response(_encode(page), media_type="application/msgpack")

    async def changes(request: Request) -> Response:
        table = request.path_params["table"]
        if table not in local.tables:
            return _error(UnknownTableError(table, local.tables))
        asked = request.query_params.get("key")
        key = None if asked is None else bytes.fromhex(asked)
        return LiveResponse(
            beating(_frames(local.changes(table, key)), _frame(_NOTHING), BEAT_S),
            closing=closing,
            media_type="application/octet-stream",
        )

    async def worker(request: Request) -> Response:
        return JSONResponse(facts.worker())

    return [
        Route(f"{PREFIX}/read", read, methods=["POST"]),
        Route(f"{PREFIX}/changes/{{table}}", changes),
        Route(f"{PREFIX}/worker", worker),
    ]


def _frame(changes: Changes) -> bytes:
    data = _encode(changes)
    return _SIZE.pack(len(data)) + data


async def _frames(changes: AsyncIterator[Changes]) -> AsyncIterator[bytes]:
    try:
        async for batch in changes:
            yield _frame(batch)
    finally:
        await changes.aclose()  # type: ignore[attr-defined]


async def read_frames(chunks: AsyncIterator[bytes]) -> AsyncIterator[Changes]:
    """The changes in a stream of bytes."""
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        while len(waiting) >= _SIZE.size:
            (size,) = _SIZE.unpack_from(waiting)
            if size > FRAME_BYTES_MAX:
                raise UnavailableError("Another worker sent what is no stream of changes.")
            if len(waiting) < _SIZE.size + size:
                break
            frame: Any = bytes(waiting[_SIZE.size : _SIZE.size + size])
            del waiting[: _SIZE.size + size]
            yield _decode_changes(frame)
