"""What is shown again and again: in place where a person looks, else one block after the other."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click
import msgspec

from millstream.cli._output import drawn, print_rows, to_terminal
from millstream.clock import duration_ms
from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from rich.live import Live

__all__ = ["Part", "Screen", "interval_option"]

INTERVAL = "2s"

Part = tuple["Sequence[str]", "Sequence[Sequence[Any]]"]
"""Columns and rows."""


def interval_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--interval``, which gives seconds."""
    return click.option(
        "--interval",
        "interval_s",
        default=INTERVAL,
        show_default=True,
        metavar="DURATION",
        callback=_seconds,
        help="How often to look.",
    )(function)


def _seconds(_: click.Context, __: click.Parameter, value: str) -> float:
    try:
        found = duration_ms(value, what="--interval") / 1_000
    except ConfigurationError as exc:
        raise click.BadParameter(str(exc)) from exc
    if found < 0.1:
        raise click.BadParameter(f"{value} is below 100ms.")
    return found


class Screen:
    """Shows tables that replace the ones before; a context manager.

    Args:
        again: whether more than one answer is to be shown.
        whole: whether to take the whole terminal meanwhile.
    """

    def __init__(self, *, as_json: bool, again: bool, whole: bool = False) -> None:
        self._as_json = as_json
        self._again = again
        self._whole = whole
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        if self._again and to_terminal() and not self._as_json:
            from rich.console import Console
            from rich.live import Live

            console = Console()
            if not console.is_dumb_terminal:  # which cannot draw in place
                self._live = Live(console=console, auto_refresh=False, screen=self._whole)
                self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, data: Any, parts: Sequence[Part], *, title: str = "") -> None:
        """Show an answer: ``data`` as JSON, one line each time, or its ``parts`` as tables."""
        if self._as_json:
            text = msgspec.json.encode(data, enc_hook=str)
            if to_terminal() and not self._again:
                text = msgspec.json.format(text, indent=2)
            click.echo(text.decode())
        elif self._live is not None:
            from rich.console import Group

            tables: list[Any] = [title] if title else []
            for columns, rows in parts:
                tables += [drawn(columns, rows), ""]
            self._live.update(Group(*tables[:-1]), refresh=True)
        else:
            for number, (columns, rows) in enumerate(parts):
                if number and to_terminal():
                    click.echo()
                print_rows(columns, rows)
        sys.stdout.flush()
