"""Lines of the user's program: where it failed, and where it waits."""

from __future__ import annotations

import asyncio
import os
import traceback
from pathlib import Path
from typing import Any

__all__ = ["user_line", "waiting_line"]

_NOT_THE_USERS = (
    os.path.normcase(f"{Path(__file__).parents[1]}{os.sep}"),
    os.path.normcase(f"{Path(asyncio.__file__).parents[1]}{os.sep}"),
    "<",
)
"""Folders of Millstream and of the standard library."""


def user_line(error: BaseException) -> str | None:
    """``file:line`` of the innermost frame that is neither ours nor the standard library's."""
    found = None
    for frame in traceback.extract_tb(error.__traceback__):
        if _is_users(frame.filename):
            found = f"{frame.filename}:{frame.lineno}"
    if found is None and error.__cause__ is not None:
        return user_line(error.__cause__)
    return found


def waiting_line(running: Any) -> str | None:
    """``file:line`` of the innermost frame, of the same kind, of a coroutine or generator that waits for something.

    As far as one awaits the other: what runs in a task of its own is not seen.
    """
    found = None
    while running is not None:
        kind = next((kind for kind in ("cr", "ag", "gi") if hasattr(running, f"{kind}_frame")), "")
        frame = getattr(running, f"{kind}_frame", None)
        if frame is None:
            break
        if _is_users(frame.f_code.co_filename):
            found = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        running = getattr(running, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
    return found


def _is_users(filename: str) -> bool:
    path = os.path.normcase(filename)
    return not path.startswith(_NOT_THE_USERS) and "site-packages" not in path
