"""Which form of an answer a client wants, and how to link from where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

__all__ = ["base_of", "wants_html"]


def wants_html(request: HTTPConnection) -> bool:
    """Whether ``Accept`` names HTML, and prefers it to JSON; ``*/*`` alone means JSON."""
    weights: dict[str, float] = {}
    for item in request.headers.get("accept", "").split(","):
        kind, _, parameters = item.strip().partition(";")
        weight = 1.0
        for parameter in parameters.split(";"):
            name, _, value = parameter.strip().partition("=")
            if name == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        weights[kind.strip().lower()] = weight
    html = max(weights.get("text/html", 0.0), weights.get("application/xhtml+xml", 0.0))
    return html > 0 and html >= weights.get("application/json", 0.0)


def base_of(request: HTTPConnection) -> str:
    """The relative link from this address to the root of the web part, under any prefix.

    It is counted on the path as it was sent: a slash inside a key comes percent-encoded, and is none.
    """
    scope = request.scope
    raw = scope.get("raw_path") or quote(scope["path"]).encode()
    raw = raw.partition(b"?")[0]
    root = quote(scope.get("root_path", "")).encode()
    if root and raw.startswith(root):
        raw = raw[len(root) :]
    return "../" * max(0, raw.count(b"/") - 1) or "./"
