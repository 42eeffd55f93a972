"""The command ``millstream``: its own commands, each loaded when it is called, and the app's."""

from __future__ import annotations

import asyncio
import copy
import functools
import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import millstream
from millstream.cli._failure import report
from millstream.cli._session import Session, session_of, shared_options
from millstream.errors import ConfigurationError, MillstreamError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from millstream.app import App

__all__ = ["cli", "main", "run_command_line"]

_OWN = {
    "new": "_new:new",
    "worker": "_worker:worker",
    "send": "_send:send",
    "tail": "_tail:tail",
    "table": "_table:table",
    "topics": "_lists:topics",
    "tables": "_lists:tables",
    "agents": "_lists:agents",
    "topology": "_topology:topology",
    "groups": "_groups:groups",
    "lag": "_lag:lag",
    "top": "_top:top",
    "skip": "_skip:skip",
    "dlq": "_dlq:dlq",
    "reset": "_reset:reset",
    "copy": "_copy:copy",
    "doctor": "_doctor:doctor",
    "demo": "_demo:demo",
    "completion": "_completion:completion",
}
"""Commands in the order of ``--help``, and where they are."""


class CommandLine(click.Group):
    """Our commands, then those that the app has added with ``@app.command()``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands; the app's only as far as there is an app that loads."""
        return [*_OWN, *sorted(_commands_of_app(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name in _OWN:
            module, _, attribute = _OWN[cmd_name].partition(":")
            found = importlib.import_module(f"millstream.cli.{module}")
            command: click.Command = getattr(found, attribute)
            return command
        return _commands_of_app(ctx, asked=cmd_name).get(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called; a mistyped one is answered with the closest that there is."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(_no_such_command(args[0], self.list_commands(ctx)), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Our commands, and the app's below."""
        for title, names in (
            ("Commands", list(_OWN)),
            ("Commands of this app", sorted(_commands_of_app(ctx))),
        ):
            rows = []
            for name in names:
                command = self.get_command(ctx, name)
                if command is not None and not command.hidden:
                    rows.append((name, command.get_short_help_str(90)))
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run; in standalone mode every error becomes a sentence and an exit code."""
        extra.setdefault("obj", Session())
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        session: Session = extra["obj"]
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(
                    errors="replace"
                )  # a console that lacks a sign still gets the rest
        try:
            result = super().main(args, prog_name, complete_var, False, **extra)
            code = result if type(result) is int else 0
            sys.stdout.flush()
        except BaseException as exc:
            code = report(exc, debug=session.debug)
        sys.exit(code)


def _commands_of_app(ctx: click.Context, *, asked: str | None = None) -> dict[str, click.Command]:
    """The app's commands by name.

    Args:
        asked: the one that was called, for the error where there is no app or it does not load; None has none of its
            commands then.
    """
    try:
        app = session_of(ctx).app()
    except MillstreamError as exc:
        if asked is None:
            return {}
        raise click.UsageError(
            f"{_no_such_command(asked, _OWN)} The app could not be asked for its own: {exc}", ctx
        ) from exc
    return {command.name or "": _runnable(command, app) for command in app.commands}


def _no_such_command(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    return f"No such command {name!r}.{meant}"


def _runnable(command: click.Command, app: App) -> click.Command:
    """An async function runs inside the app, so that it can send and ask."""
    function = command.callback
    if not inspect.iscoroutinefunction(function):
        return command

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        async def inside() -> Any:
            async with app.running(worker=False):
                return await function(*args, **kwargs)

        return asyncio.run(inside())

    wrapped = copy.copy(command)
    wrapped.callback = run
    return wrapped


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(millstream.__version__, message="millstream %(version)s")
@shared_options(hidden=False)
def cli() -> None:
    """Stream processing in Python: run an app, feed it, and look at what it knows.

    The app is the one that -A names, else the one that pyproject.toml names ([tool.millstream] app =
    "module:app"), else the one in app.py, app/ or main.py of the working directory.
    """


def main() -> None:
    """The command ``millstream``."""
    cli.main(prog_name="millstream")


_calls = 0


def run_command_line(app: App, arguments: Sequence[str] | None = None) -> None:
    """Run the command line for an app that is there already; `App.main` comes here.

    Raises:
        ConfigurationError: another command line is being run: the module has called it on import.
    """
    global _calls
    if _calls or click.get_current_context(silent=True) is not None:
        raise ConfigurationError(
            "app.main() is called while the module is imported: write it below"
            ' if __name__ == "__main__":'
        )
    _calls += 1
    try:
        _name_main_module()
        cli.main(
            args=None if arguments is None else list(arguments),
            prog_name=Path(sys.argv[0]).name or None,
            obj=Session(given=app),
        )
    finally:
        _calls -= 1


def _name_main_module() -> None:
    """Let ``from app import app`` in other modules find this ``app.py`` and not a second copy of it."""
    module = sys.modules.get("__main__")
    path = getattr(module, "__file__", None)
    if module is not None and path and getattr(module, "__spec__", None) is None:
        sys.modules.setdefault(Path(path).stem, module)
