"""What MkDocs asks while it builds: the table of settings, made from the settings themselves."""

from __future__ import annotations

from typing import Any

from millstream.app._settings import setting_docs

__all__ = ["NOT_YET", "on_page_markdown"]

MARK = "<!-- settings -->"
NOT_YET = {
    "processing_guarantee": "`at_least_once` is accepted; on `local://` every commit is exactly once anyway.",
    "standby_replicas": "Accepted; has no effect yet.",
    "compat": "Accepted; has no effect yet.",
}
"""What is not, or not all, built: said where the setting is described."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the table where the page asks for it."""
    return markdown.replace(MARK, _settings()) if MARK in markdown else markdown


def _settings() -> str:
    rows = ["| Setting | Default | Meaning | Variable |", "|---|---|---|---|"]
    for name, (doc, default) in setting_docs().items():
        note = f" {NOT_YET[name]}" if name in NOT_YET else ""
        rows.append(f"| `{name}` | {_shown(default)} | {doc}{note} | `MILLSTREAM_{name.upper()}` |")
    return "\n".join(rows)


def _shown(default: Any) -> str:
    if default is None or default == "":
        return "none"
    if isinstance(default, int) and not isinstance(default, bool) and default >= 1 << 20:
        return f"{default:,}"
    return f"`{default!r}`" if isinstance(default, str) else f"`{default}`"
