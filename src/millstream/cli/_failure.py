"""Errors as people read them: one sentence on stderr, and an exit code that means something.

| code | meaning |
|---|---|
| 0 | done |
| 1 | it did not work: the log, a record, a key that is not there, a bug |
| 2 | the call, the settings or the app have to be changed first |
| 130 | Ctrl-C |
"""

from __future__ import annotations

import os
import sys
import traceback

import click

from millstream.errors import ConfigurationError, MillstreamError

__all__ = ["CONFIGURATION", "FAILED", "INTERRUPTED", "complain", "note", "report"]

FAILED = 1
CONFIGURATION = 2
INTERRUPTED = 130


def complain(sentence: str) -> None:
    """Say on stderr what went wrong."""
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {sentence}", err=True)


def note(sentence: str) -> None:
    """Say on stderr what is good to know; stdout is for what was asked for."""
    click.echo(sentence, err=True)


def report(error: BaseException, *, debug: bool = False) -> int:
    """Tell the user about an error, and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # whoever read our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if debug:
        traceback.print_exception(error)
    if isinstance(error, BaseExceptionGroup):
        return max(report(one) for one in error.exceptions)
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    if isinstance(error, MillstreamError):
        complain(str(error))
        return CONFIGURATION if isinstance(error, ConfigurationError) else FAILED
    where = _line_of(error)
    at = f" ({where})" if where else ""
    hint = "" if debug else " Run it again with --debug for the traceback."
    complain(f"unexpected {type(error).__name__}: {error}{at}.{hint}")
    return FAILED


def _line_of(error: BaseException) -> str | None:
    from millstream.cli._find import user_line

    return user_line(error)
