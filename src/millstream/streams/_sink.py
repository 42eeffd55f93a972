"""How results become records of a topic."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Literal, Protocol

from millstream.errors import ProgramError
from millstream.streams._operator import Windowed

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.agents import Topic
    from millstream.context import Scope
    from millstream.records import Headers

__all__ = ["HEADER_WINDOW_END", "HEADER_WINDOW_START", "Send", "put_record", "put_windowed"]

HEADER_WINDOW_START = "ms-window-start"
HEADER_WINDOW_END = "ms-window-end"

_long = struct.Struct(">q")
_NONE: Headers = []


class Send(Protocol):
    """Puts one result into a topic, as part of the event at hand."""

    def __call__(
        self, scope: Scope, topic: Topic[Any, Any], key: Any, value: Any, timestamp: int
    ) -> None: ...


def put_record(scope: Scope, topic: Topic[Any, Any], key: Any, value: Any, timestamp: int) -> None:
    """Send a result with its key; the headers of the record that it comes from go along.

    Where the topic derives its keys (``key_from``), that decides the key. A windowed result's window
    goes into headers.
    """
    record = scope.record
    headers = _NONE if record is None else record.headers or _NONE
    if type(key) is Windowed:
        headers = [*headers, *window_headers(key)]
        key = key.key
    topic.put_result(scope, value, key, timestamp, headers)


def headers_of(scope: Scope) -> Headers:
    """Those of the record at hand, where there is one."""
    record = scope.record
    return [] if record is None or not record.headers else record.headers


def window_headers(key: Windowed) -> Headers:
    """The window as headers: its bounds in ms, as text."""
    return [
        (HEADER_WINDOW_START, str(key.window.start).encode()),
        (HEADER_WINDOW_END, str(key.window.end).encode()),
    ]


def put_windowed(
    value_of: Callable[[Any, Any, Any], Any] | None,
    windowed_key: Literal["kafka-streams"] | None,
    *,
    dump_key: Callable[[Any], bytes],
    session: bool,
) -> Send:
    """A `Send` for windowed results that a program wants in a form of its own.

    Args:
        value_of: makes the record's value from key, window and result.
        windowed_key: ``kafka-streams`` for the bytes of its windowed keys: the key, then the window's start
            as eight bytes; of sessions the end and then the start. As there, the key alone decides the partition.
        dump_key: gives the bytes of a group's key.
        session: whether the windows are sessions.
    """
    if windowed_key not in (None, "kafka-streams"):
        raise ProgramError(
            f"to(): windowed_key={windowed_key!r} is unknown; it may be 'kafka-streams'"
        )

    def send(scope: Scope, topic: Topic[Any, Any], key: Any, value: Any, timestamp: int) -> None:
        shown = value
        if value_of is not None and value is not None:
            shown = value_of(key.key, key.window, value)
        if windowed_key is None:
            put_record(scope, topic, key, shown, timestamp)
            return
        data = dump_key(key.key)
        end = _long.pack(key.window.end) if session else b""
        topic.put_encoded(
            scope,
            shown,
            key=data + end + _long.pack(key.window.start),
            timestamp=timestamp,
            headers=headers_of(scope),
            placed_by=data,
        )

    return send
