"""What MkDocs asks while it builds: the list of settings, made from the settings themselves."""

from __future__ import annotations

from typing import Any

from millstream.app._settings import IN_CODE_ONLY, setting_docs

__all__ = ["NOTES", "on_page_content", "on_page_markdown"]

MARK = "<!-- settings -->"
NOTES = {
    "broker": "Where none is given, `local://` and the app's id, `.db`.",
    "ssl": "See [Encryption and login](kafka.md#encryption-and-login).",
    "processing_guarantee": "See [At least once](../why/exactly-once.md#at-least-once).",
    "commit_interval": "See [Commits](sizing.md#commits).",
    "session_timeout": "Brokers usually take 6 s at least: a shorter one is made 6 s there.",
    "standby_replicas": "See [Standbys](workers.md#standbys).",
    "replication": "Give 3 on a cluster that is to survive the loss of a broker.",
    "on_error": "See [Handle errors](errors.md).",
    "inbox_bytes_max": "See [Memory](sizing.md#memory).",
    "web_host": "See [The HTTP port](security.md#the-http-port).",
    "compat": "See [Where Kafka Streams loses data](../why/lost-results.md).",
    "instance_id": "See [Restarts that move nothing](workers.md#restarts-that-move-nothing).",
    "slot": "See [Ports and state](workers.md#ports-and-state).",
}
"""What a setting's own line does not say, or where the rest stands."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the list where the page asks for it."""
    return markdown.replace(MARK, _settings()) if MARK in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Drop the colons that begin a literal block in a docstring, and mean nothing in Markdown."""
    return html.replace("<p>::</p>\n", "")


def _settings() -> str:
    entries = []
    for name, (doc, default) in setting_docs().items():
        note = f" {NOTES[name]}" if name in NOTES else ""
        variable = "" if name in IN_CODE_ONLY else f" `MILLSTREAM_{name.upper()}`"
        entries.append(f"`{name}`\n:   {doc}{note}\n    Default: {_shown(default)}.{variable}\n")
    return "\n".join(entries)


def _shown(default: Any) -> str:
    if default is None or default == "":
        return "none"
    if isinstance(default, int) and not isinstance(default, bool) and default >= 10_000:
        return f"{default:,}"
    return f"`{default!r}`" if isinstance(default, str) else f"`{default}`"
