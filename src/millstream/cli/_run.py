"""Running what a command has to wait for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import click

__all__ = ["complete_names", "run"]

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; Ctrl-C cancels it."""
    return asyncio.run(work)


def complete_names(
    names: Callable[[Any], list[str]],
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Complete an argument with names that the app has; with nothing where it does not load."""

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
        from millstream.cli._session import session_of

        try:
            found = names(session_of(ctx).app())
        except Exception:  # pressing Tab is no time for errors
            return []
        return [name for name in found if name.startswith(incomplete)]

    return complete
