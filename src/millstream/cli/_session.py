"""What one call of the command line knows: how the app was named, and the app once it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.app import App

__all__ = ["Session", "command", "session_of", "shared_options"]

F = TypeVar("F", bound="Callable[..., Any]")


@dataclass(slots=True)
class Session:
    """One call of the command line. The app is loaded when it is first asked for."""

    reference: str | None = None
    """What ``-A`` says."""
    given: App | None = None
    """The app, where it has started the command line itself."""
    debug: bool = False
    _found: App | None = None

    def app(self) -> App:
        """The user's app.

        Raises:
            ConfigurationError: there is none, there are several, or it does not load.
        """
        if self._found is None:
            from millstream.cli._find import checked, find_app

            self._found = (
                find_app(self.reference, Path.cwd())
                if self.given is None or self.reference is not None
                else checked(self.given)
            )
        return self._found


def session_of(ctx: click.Context) -> Session:
    """The session of a command at hand."""
    root = ctx.find_root()
    if not isinstance(root.obj, Session):
        root.obj = Session()
    return root.obj


def _named(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        session_of(ctx).reference = value


def _debugged(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        session_of(ctx).debug = True


def shared_options(*, hidden: bool) -> Callable[[F], F]:
    """``-A`` and ``--debug``, which stand before a command or after it."""

    def declare(function: F) -> F:
        function = click.option(
            "--debug",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            hidden=hidden,
            callback=_debugged,
            help="Show the traceback of an error.",
        )(function)
        return click.option(
            "-A",
            "--app",
            metavar="MODULE[:APP]",
            is_eager=True,
            expose_value=False,
            hidden=hidden,
            callback=_named,
            help="Where the app is, for example shop.main:app.",
        )(function)

    return declare


def command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Declare one of our commands: it takes the session first, and ``-A`` and ``--debug`` as well."""

    def declare(function: Callable[..., Any]) -> click.Command:
        def run(*args: Any, **kwargs: Any) -> Any:
            return function(session_of(click.get_current_context()), *args, **kwargs)

        run.__doc__ = function.__doc__
        run.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        return click.command(name)(shared_options(hidden=True)(run))

    return declare
