"""Asking before something is done that cannot be undone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["confirm", "yes_option"]


def yes_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--yes``."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(function)


def confirm(question: str, *, yes: bool) -> None:
    """Ask; return if the answer is yes.

    Raises:
        UsageError: there is nobody to ask, and ``--yes`` was not given.
        Abort: the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} There is nobody to ask here: say --yes.")
    if not click.confirm(question, default=False, err=True):
        click.echo("nothing was changed", err=True)
        raise click.Abort
