"""Errors as answers: problem details of RFC 9457, or a page for those who look with a browser."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from millstream.errors import (
    BadQueryError,
    MillstreamError,
    NotHereError,
    QueryError,
    TransportError,
    UnavailableError,
    UnknownTableError,
)
from millstream.web._negotiation import wants_html

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.exceptions import HTTPException
    from starlette.requests import HTTPConnection

__all__ = ["Problem", "problem_of", "respond"]

KINDS = {
    "no-such-table": "No such table",
    "no-such-key": "No such key",
    "no-such-page": "Nothing here",
    "bad-question": "The question cannot be answered",
    "unavailable": "Nobody can answer right now",
    "wrong-host": "Not the name of this server",
}
"""What ``type`` ends in, after ``urn:millstream:``."""


class Problem(Exception):
    """An answer that is an error.

    Attributes:
        facts: further members of the problem, such as the name of the table.
    """

    def __init__(self, kind: str, status: int, detail: str, **facts: Any) -> None:
        super().__init__(detail)
        self.kind, self.status, self.detail, self.facts = kind, status, detail, facts

    @property
    def title(self) -> str:
        return KINDS.get(self.kind) or HTTPStatus(self.status).phrase

    def body(self) -> dict[str, Any]:
        """The problem as RFC 9457 has it."""
        known = self.kind in KINDS
        return {
            "type": f"urn:millstream:{self.kind}" if known else "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.facts,
        }

    @property
    def headers(self) -> Mapping[str, str]:
        retry = {"Retry-After": "1"} if self.status == 503 else {}
        return {"Cache-Control": "no-store", **retry}


def problem_of(error: Exception) -> Problem:
    """The problem that an error of a query is."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, UnknownTableError):
        return Problem("no-such-table", 404, str(error), table=error.table)
    if isinstance(error, (UnavailableError, NotHereError, TransportError)):
        return Problem("unavailable", 503, str(error))
    if isinstance(error, (BadQueryError, QueryError)):
        return Problem("bad-question", 400, str(error))
    if isinstance(error, MillstreamError):
        return Problem("", 500, str(error))
    return Problem("", 500, "The answer failed; the worker's log says how.")


def of_status(error: HTTPException) -> Problem:
    """The problem that a refusal of the router is."""
    phrase = HTTPStatus(error.status_code).phrase
    if error.status_code == 404 and error.detail in ("", phrase):
        return Problem(
            "no-such-page", 404, "There is nothing at this address; /docs lists what is."
        )
    return Problem("", error.status_code, error.detail or phrase)


def respond(request: HTTPConnection, problem: Problem) -> Response:
    """The problem as this client wants it."""
    if wants_html(request):
        from millstream.web._pages import problem_page

        return problem_page(request, problem)
    return Response(
        msgspec.json.encode(problem.body()),
        status_code=problem.status,
        media_type="application/problem+json",
        headers=dict(problem.headers),
    )
