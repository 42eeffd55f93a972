"""What a doctor finds: facts, with what to do about those that are wrong, and without secrets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterable

    from millstream.app import Settings

__all__ = ["Finding", "Level", "error", "fine", "scrub", "secrets_of", "warning"]

Level = Literal["ok", "warning", "error"]

_SECRET = re.compile(r"password|passwd|secret|token|credential|private|sasl_(?!mech)|_key$", re.I)
_USER_INFO = re.compile(r"(?<=://)([^/@\s]+)@")
HIDDEN = "•••"
SHORT = 3
"""Shorter texts are not replaced in sentences, where they would be parts of words."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fact. ``mend`` says what to do; it is there whenever something is wrong."""

    area: str
    level: Level
    text: str
    mend: str = ""


def fine(area: str, text: str) -> Finding:
    """Nothing is wrong."""
    return Finding(area, "ok", text)


def warning(area: str, text: str, mend: str) -> Finding:
    """It works, and may not for long, or not as one thinks."""
    return Finding(area, "warning", text, mend)


def error(area: str, text: str, mend: str) -> Finding:
    """It does not work, or loses something."""
    return Finding(area, "error", text, mend)


def secrets_of(settings: Settings | None) -> set[str]:
    """Values that must not be shown: of settings and variables with telling names, and in URLs."""
    named = [(name, value) for name, value in os.environ.items() if name.startswith("MILLSTREAM_")]
    if settings is not None:
        slots = getattr(type(settings), "__dataclass_fields__", {})
        named += [(name, str(getattr(settings, name))) for name in slots]
    found = {value for name, value in named if _SECRET.search(name) and value not in ("", "None")}
    for _, value in named:
        for match in _USER_INFO.finditer(value):
            password = match[1].partition(":")[2] or match[1]
            found |= {password, unquote(password)}
    return found


def scrub(text: str, secrets: Iterable[str]) -> str:
    """The text without secrets."""
    text = _USER_INFO.sub(f"{HIDDEN}@", text)
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) > SHORT:
            text = text.replace(secret, HIDDEN)
        elif secret:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", HIDDEN, text)
    return text
