"""Asking a running worker over HTTP, without loading a client library for it."""

from __future__ import annotations

import http.client
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from millstream.worker import decode_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.transports.base import Transport

__all__ = ["Answer", "ask", "table_path", "worker_urls"]

TIMEOUT_S = 10.0


class Answer(msgspec.Struct, frozen=True):
    """What a worker said."""

    status: int
    body: Any

    @property
    def detail(self) -> str:
        """The sentence of an error (RFC 9457)."""
        found = self.body.get("detail") if isinstance(self.body, dict) else None
        return str(found) if found else f"the worker answered {self.status}"


async def worker_urls(transport: Transport, app: str) -> tuple[int, list[str]]:
    """How many workers an app has, and where those answer that have a web server."""
    members = (await transport.describe_group(app)).members
    urls = []
    for data in members.values():
        try:
            urls.append(decode_metadata(data).url)
        except msgspec.DecodeError:
            continue
    return len(members), [url for url in urls if url]


def ask(url: str, path: str, query: Mapping[str, Any]) -> Answer:
    """Ask a worker.

    Raises:
        OSError: there was no answer.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request(
            "GET",
            f"{parts.path.rstrip('/')}{path}{'?' if asked else ''}{asked}",
            headers={"Accept": "application/json"},
        )
        response = connection.getresponse()
        data = response.read()
    except http.client.HTTPException as exc:
        raise OSError(f"{url} gave no answer: {exc}") from exc
    finally:
        connection.close()
    try:
        return Answer(response.status, msgspec.json.decode(data))
    except msgspec.DecodeError:
        return Answer(response.status, None)


def table_path(table: str, key: str | None = None) -> str:
    """The address of a table, or of a key in it."""
    path = f"/tables/{quote(table, safe='')}"
    return path if key is None else f"{path}/keys/{quote(key, safe='')}"
