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

__all__ = ["Answer", "ask", "ask_text", "table_path", "worker_urls"]

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
            continue  # a member that is no worker of ours
    return len(members), [url for url in urls if url]


def ask(url: str, path: str, query: Mapping[str, Any], *, timeout_s: float = TIMEOUT_S) -> Answer:
    """Ask a worker.

    Raises:
        OSError: there was no answer.
    """
    asked = urlencode({name: value for name, value in query.items() if value is not None})
    status, data = _get(url, path, asked, timeout_s)
    try:
        return Answer(status, msgspec.json.decode(data))
    except msgspec.DecodeError:
        return Answer(status, None)


def ask_text(url: str, path: str, *, timeout_s: float = TIMEOUT_S) -> str:
    """Ask a worker for text.

    Raises:
        OSError: there was no answer, or another one than 200.
    """
    status, data = _get(url, path, "", timeout_s)
    if status != 200:
        raise OSError(f"{url}{path} answered {status}")
    return data.decode("utf-8", "replace")


def _get(url: str, path: str, asked: str, timeout_s: float) -> tuple[int, bytes]:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request(
            "GET",
            f"{parts.path.rstrip('/')}{path}{'?' if asked else ''}{asked}",
            headers={"Accept": "application/json"},
        )
        response = connection.getresponse()
        return response.status, response.read()
    except http.client.HTTPException as exc:
        raise OSError(f"{url} gave no answer: {exc}") from exc
    finally:
        connection.close()


def table_path(table: str, key: str | None = None) -> str:
    """The address of a table, or of a key in it."""
    path = f"/tables/{quote(table, safe='')}"
    return path if key is None else f"{path}/keys/{quote(key, safe='')}"
