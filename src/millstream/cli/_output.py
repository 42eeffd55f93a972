"""Answers on stdout: tables for people, plain lines when piped, JSON for programs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.table import Table

__all__ = [
    "drawn",
    "json_option",
    "one_line",
    "print_json",
    "print_rows",
    "shown_bytes",
    "shown_header",
    "to_terminal",
]


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(
        function
    )


def to_terminal() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """One JSON document; indented where a person looks."""
    text = msgspec.json.encode(value, enc_hook=str)
    if to_terminal():
        text = msgspec.json.format(text, indent=2)
    click.echo(text.decode())


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Rows under their columns; when piped, without a heading and separated by tabs."""
    if not to_terminal():
        for row in rows:
            click.echo("\t".join(one_line(cell) for cell in row))
        return
    from rich.console import Console

    Console().print(drawn(columns, rows))


def drawn(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Rows under their columns, as a person sees them."""
    from rich.table import Table
    from rich.text import Text

    listed = [list(row) for row in rows]
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 3, 0, 0))
    for number, column in enumerate(columns):
        numeric = bool(listed) and all(
            isinstance(row[number], (int, float)) or row[number] is None for row in listed
        )
        table.add_column(
            column,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=numeric or not number,  # names stay whole, to be copied
        )
    for row in listed:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table


def one_line(cell: Any) -> str:
    """A value on one line: text as it is, nothing for None, all others as JSON."""
    if cell is None:
        return ""
    text = cell if isinstance(cell, str) else msgspec.json.encode(cell, enc_hook=str).decode()
    return text.replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")


def shown_bytes(data: bytes) -> str:
    """Bytes as text, with what is no text escaped."""
    return data.decode("utf-8", "backslashreplace")


def shown_header(value: bytes | None) -> str:
    """A header's value as text; in Kafka it may be null."""
    return "null" if value is None else shown_bytes(value)
