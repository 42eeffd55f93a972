"""Tables over HTTP: what was asked, as a question; and the answer, as JSON."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from millstream.clock import duration_ms, format_timestamp, timestamp_ms
from millstream.errors import BadQueryError, ConfigurationError, UnknownTableError
from millstream.records import Position
from millstream.tables._query import (
    LIMIT_MAX,
    Read,
)
from millstream.web._problems import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from millstream.tables._query import Change, Entry, Page, Queries, TableInfo

__all__ = [
    "change_json",
    "describe",
    "json_response",
    "key_read",
    "missing_key",
    "page_json",
    "parse_key",
    "plain",
    "row_json",
    "table_of",
    "table_read",
    "texts",
]

LIMIT = 100
_WINDOWED = {"at", "from", "to"}
_COMMON = {"at_least", "stale", "limit", "after", "reverse"}

_encode = msgspec.json.Encoder(enc_hook=lambda value: _plain(value)).encode


def json_response(content: Any, status: int = 200) -> Response:
    """JSON that is not to be kept."""
    return Response(
        _encode(content),
        status_code=status,
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def plain(content: Any) -> Any:
    """What a client makes of the JSON."""
    return msgspec.json.decode(_encode(content))


def _plain(value: Any) -> Any:
    """What JSON can hold, of a value that msgspec does not know."""
    dump = getattr(value, "model_dump", None)  # pydantic
    return dump(mode="json") if dump is not None else repr(value)


def table_of(queries: Queries, name: str) -> TableInfo:
    """The table.

    Raises:
        UnknownTableError: there is none of that name.
    """
    try:
        return queries.tables[name]
    except KeyError:
        raise UnknownTableError(name, queries.tables) from None


def describe(info: TableInfo) -> dict[str, Any]:
    """A table as data."""
    return {
        "name": info.name,
        "key": info.layout.type_name,
        "value": info.codec.type_name,
        "windows": None if info.windows is None else str(info.windows),
        "timezone": None if info.windows is None else getattr(info.windows, "timezone", "UTC"),
        "partitions": None if info.everywhere else info.partitions,
        "global": info.everywhere,
        "source": info.source,
        "help": info.help,
    }


# questions ---------------------------------------------------------------------------------------


def parse_key(info: TableInfo, text: str) -> bytes:
    """A key as a URL has it, in the table's layout."""
    try:
        return info.layout.encode(info.layout.parse(text))
    except (ValueError, TypeError) as exc:
        raise BadQueryError(f"Table {info.name!r}: {exc}.") from exc


def table_read(info: TableInfo, found: Mapping[str, str]) -> Read:
    """The question for a page of a table."""
    _check(found, {*_COMMON, "prefix", "start", "end", *_windows(info)})
    if "prefix" in found and ("start" in found or "end" in found):
        raise BadQueryError("prefix= and start= or end= exclude each other.")
    start, end = b"\x01", None
    if found.get("prefix"):
        start, end = _prefix(info, found["prefix"])
    if "start" in found:
        start = parse_key(info, found["start"])
    if "end" in found:
        end = parse_key(info, found["end"])
    return _read(info, found, start=start, end=end)


def key_read(info: TableInfo, found: Mapping[str, str], text: str) -> Read:
    """The question for one key."""
    _check(found, {*_COMMON, *_windows(info)})
    return _read(info, found, key=parse_key(info, text))


def _windows(info: TableInfo) -> set[str]:
    return set() if info.windows is None else _WINDOWED


def _check(found: Mapping[str, str], allowed: set[str]) -> None:
    for name in found:
        if name not in allowed:
            hint = " This table has no windows." if name in _WINDOWED else ""
            raise BadQueryError(
                f"{name}= means nothing here; there is {', '.join(sorted(allowed))}.{hint}"
            )


def _read(info: TableInfo, found: Mapping[str, str], **bounds: Any) -> Read:
    after = None
    if found.get("after"):
        try:
            text = found["after"]
            after = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        except (binascii.Error, ValueError):
            after = b""
        if not after or info.parse_state_key(after) is None:
            raise BadQueryError("after= takes what the last page had as next.")
    return Read(
        table=info.name,
        limit=_limit(found.get("limit", "")),
        after=after,
        reverse=found.get("reverse", "") in ("1", "true"),
        from_=_moment(found, "from"),
        to=_moment(found, "to"),
        at=_moment(found, "at"),
        at_least=tuple(
            (at.topic, at.partition, at.offset)
            for at in map(_position, filter(None, found.get("at_least", "").split(",")))
        ),
        stale_ms=_stale(found.get("stale", "")),
        **bounds,
    )


def _prefix(info: TableInfo, text: str) -> tuple[bytes, bytes | None]:
    """Bounds of the keys that begin with a text, or with the elements of a JSON array."""
    prefix: Any = text
    if text[:1] in "[{":
        try:
            prefix = msgspec.json.decode(text)
        except msgspec.DecodeError:
            prefix = text
    tries: list[Callable[[], Any]] = [
        lambda: tuple(prefix) if isinstance(prefix, list) else prefix,
        lambda: info.layout.parse(text),
        lambda: text.encode(),
    ]
    problem: Exception | None = None
    for attempt in tries:
        try:
            return info.layout.prefix(attempt())
        except (ValueError, TypeError) as exc:
            problem = problem or exc
    raise BadQueryError(f"prefix={text}: {problem}.") from problem


def _limit(text: str) -> int:
    if not text:
        return LIMIT
    if not text.isdecimal() or not 1 <= int(text) <= LIMIT_MAX:
        raise BadQueryError(f"limit={text}: write a number from 1 to {LIMIT_MAX}.")
    return int(text)


def _moment(found: Mapping[str, str], name: str) -> int | None:
    text = found.get(name)
    if not text:
        return None
    try:
        if text.lstrip("-").isdecimal():
            return int(text)
        # a plus sign that was not percent-encoded arrives as a space
        return timestamp_ms(datetime.fromisoformat(text.replace(" ", "+")))
    except (ValueError, ConfigurationError):
        raise BadQueryError(
            f"{name}={text}: write ms since the epoch, or ISO 8601 with a zone,"
            f" 2024-05-01T12:00:00Z."
        ) from None


def _position(text: str) -> Position:
    try:
        return Position.parse(text)
    except ConfigurationError as exc:
        raise BadQueryError(f"at_least: {exc}.") from exc


def _stale(text: str) -> int | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        return max(0, round(seconds * 1_000)) if abs(seconds) < 1e12 else None
    try:
        return duration_ms(text, what="stale")
    except ConfigurationError as exc:
        raise BadQueryError(f"{exc}.") from exc


# answers -----------------------------------------------------------------------------------------


def _value(info: TableInfo, value: bytes) -> Any:
    if info.codec.name == "json" and info.loads is None:
        return msgspec.Raw(value)
    loaded = info.load(value)
    if info.codec.name == "json":
        return msgspec.Raw(info.codec.dumps(loaded))
    return loaded


def row_json(info: TableInfo, entry: Entry) -> dict[str, Any]:
    """An entry as the API shows it."""
    row = {
        "key": info.layout.to_json(info.layout.decode(entry.key)),
        "value": _value(info, entry.value),
    }
    if entry.window is not None:
        row["window"] = {"start": entry.window.start, "end": entry.window.end}
    return row


def page_json(info: TableInfo, page: Page) -> dict[str, Any]:
    """A page as the API shows it."""
    after = page.next
    return {
        "rows": [row_json(info, entry) for entry in page.entries],
        "next": None if after is None else base64.urlsafe_b64encode(after).decode().rstrip("="),
        "position": page.position,
        **({} if page.stale_ms is None else {"stale_ms": page.stale_ms}),
    }


def change_json(info: TableInfo, change: Change) -> dict[str, Any]:
    """A change as the API shows it; ``deleted`` where the entry is gone."""
    if change.value is None:
        row: dict[str, Any] = {
            "key": info.layout.to_json(info.layout.decode(change.key)),
            "value": None,
            "deleted": True,
        }
        if change.window is not None:
            row["window"] = {"start": change.window.start, "end": change.window.end}
        return row
    from millstream.tables._query import Entry

    return row_json(info, Entry(change.key, change.window, change.value))


def missing_key(info: TableInfo, text: str, at: int | None = None) -> Problem:
    """The table is there, and the key is not, or not in the window that was asked for."""
    what = f"key {text!r}" if at is None else f"window of key {text!r} at {format_timestamp(at)}"
    return Problem(
        "no-such-key",
        404,
        f"Table {info.name!r} has no {what}.",
        table=info.name,
        key=text,
    )


async def texts(
    queries: Queries, info: TableInfo, key: bytes | None, *, events: bool
) -> AsyncIterator[bytes]:
    """A table's changes as server-sent events, or as JSON messages.

    An event ``ready`` comes first: from then on no change is lost. ``missed`` tells that some were.
    """

    def text(event: str, data: Any) -> bytes:
        body = _encode(data)
        if not events:
            return body if event == "change" else _encode({"event": event})
        name = b"" if event == "change" else b"event: " + event.encode() + b"\n"
        # one line of JSON is one line of the event
        return name + b"data: " + body.replace(b"\r", b"").replace(b"\n", b" ") + b"\n\n"

    stream = queries.changes(info.name, key)
    try:
        first = True
        async for batch in stream:
            if first:
                yield text("ready", {})
            if batch.missed:
                yield text("missed", {})
            if batch.changes:
                shown = (text("change", change_json(info, change)) for change in batch.changes)
                if events:
                    yield b"".join(shown)
                else:
                    for message in shown:
                        yield message
            first = False
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
