"""The addresses as an OpenAPI description, from which the page at ``/docs`` is drawn too."""

from __future__ import annotations

from typing import Any

from millstream.tables._query import LIMIT_MAX

__all__ = ["openapi"]

_PARAMETERS = {
    "limit": f"How many rows, 100 where left out, at most {LIMIT_MAX}.",
    "after": "What the last page had as next.",
    "prefix": "Keys that begin with this; for tuples their first elements, as a JSON array.",
    "start": "Keys from this one on.",
    "end": "Keys before this one.",
    "reverse": "1: from the last row to the first one.",
    "at": "In a windowed table: the latest-starting window that contains this time.",
    "from": "In a windowed table: windows that begin at this time or later.",
    "to": "In a windowed table: windows that begin before this time.",
    "at_least": "Records, orders/3@5123, that the answer has to reflect: it waits for them.",
    "stale": "What the answer may lack, 5s: then a copy of the table answers, where one is near.",
    "key": "Only the changes of this key.",
    "format": "json, mermaid, svg or text.",
}
_TEXT = {"type": "string"}
_NAME = {
    "name": "name",
    "in": "path",
    "required": True,
    "description": "The table.",
    "schema": _TEXT,
}
_KEY = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "The key, percent-encoded, as its type is written: text as it is, tuples as JSON.",
    "schema": _TEXT,
}
_SCHEMAS = {
    "limit": {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": 100},
    "reverse": {"type": "string", "enum": ["1", "true"]},
    "format": {"type": "string", "enum": ["json", "mermaid", "svg", "text"]},
}
"""Of parameters that are more than text."""
_ROW = {
    "type": "object",
    "properties": {
        "key": {},
        "value": {},
        "window": {
            "type": "object",
            "properties": {"start": {"type": "integer"}, "end": {"type": "integer"}},
        },
        "position": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
    "required": ["key", "value"],
}
_PAGE = {
    "type": "object",
    "properties": {
        "rows": {"type": "array", "items": {"$ref": "#/components/schemas/Row"}},
        "next": {"type": ["string", "null"]},
        "position": {"type": "object", "additionalProperties": {"type": "integer"}},
    },
    "required": ["rows", "next", "position"],
}
_PROBLEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}


def openapi(app: str) -> dict[str, Any]:
    """The description, version 3.1."""
    pages = ("limit", "after", "reverse", "at", "from", "to", "at_least", "stale")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": app,
            "version": "1",
            "description": "Committed data only. Any worker answers for any key. Times are ms since"
            " the epoch; where one is asked for, ISO 8601 with a zone does as well.",
        },
        "paths": {
            "/tables": _get("The tables: types of keys and values, windows, partitions.", "Rows"),
            "/tables/{name}": _get(
                "Entries of all shards, in key order; in a table with aligned windows by the windows'"
                " start, then by key. A page may have few rows and yet a next one.",
                "Page",
                _NAME,
                "prefix",
                "start",
                "end",
                *pages,
                example='{"rows": [{"key": "ada", "value": 12.5}], "next": null,'
                ' "position": {"orders/1": 1}}',
            ),
            "/tables/{name}/keys/{key}": _get(
                "The value of a key; 404 says whether the table or the key is missing. In a windowed"
                " table: with at= one window, else a page of them.",
                "Row",
                _NAME,
                _KEY,
                *pages,
                example='{"key": "ada", "value": 12.5, "position": {"orders/1": 1}}',
            ),
            "/tables/{name}/changes": _get(
                "Changes as they are committed, as server-sent events, or as messages of a WebSocket."
                " An event ready comes first; missed tells that some are lost, because they came"
                " faster than they were read or a worker went: read the table again.",
                None,
                _NAME,
                "key",
                media="text/event-stream",
                example="event: ready\ndata: {}\n\n"
                'data: {"key": "ada", "value": 12.5}\n\n'
                'data: {"key": "ada", "value": null, "deleted": true}',
            ),
            "/topics": _get("The topics: partitions and records.", "Rows"),
            "/agents": _get(
                "The agents. The lag counts records of the sources that are not committed as"
                " processed, over the whole group.",
                "Rows",
                example='{"rows": [{"name": "count", "sources": ["orders"], "concurrency": 1,'
                ' "lag": 0, "processed": 1}]}',
            ),
            "/workers": _get("The workers of the group, with their shards and commits.", "Rows"),
            "/topology": _get("What the app consists of.", None, "format"),
            "/health/live": _get("200 while the process answers.", None),
            "/health/ready": _get("200 once all shards of this worker are ready, else 503.", None),
            "/metrics": _get("Numbers of this worker, for Prometheus.", None, media="text/plain"),
        },
        "components": {
            "schemas": {
                "Row": _ROW,
                "Page": _PAGE,
                "Rows": {
                    "type": "object",
                    "properties": {"rows": {"type": "array", "items": {"type": "object"}}},
                },
                "Problem": _PROBLEM,
            }
        },
    }


def _get(
    description: str,
    schema: str | None,
    *parameters: str | dict[str, Any],
    media: str = "application/json",
    example: str | None = None,
) -> dict[str, Any]:
    content: dict[str, Any] = (
        {"schema": {"$ref": f"#/components/schemas/{schema}"}} if schema else {}
    )
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    operation: dict[str, Any] = {
        "description": description,
        "parameters": [
            parameter
            if isinstance(parameter, dict)
            else {
                "name": parameter,
                "in": "query",
                "description": _PARAMETERS[parameter],
                "schema": _SCHEMAS.get(parameter, _TEXT),
            }
            for parameter in parameters
        ],
        "responses": {
            "200": {"description": "The answer.", "content": {media: content}},
            "default": {
                "description": "What is wrong (RFC 9457).",
                "content": {"application/problem+json": problem},
            },
        },
    }
    if example is not None:
        operation["x-example"] = example
    return {"get": operation}
