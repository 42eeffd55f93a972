"""The way from an app to the command line, which is a layer above and loaded only when it is wanted."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from millstream.app._app import App

__all__ = ["run_command_line"]


def run_command_line(app: App, arguments: Sequence[str] | None = None) -> None:
    """Run the command line with ``app``; ends the process with its exit code."""
    importlib.import_module("millstream.cli").run_command_line(app, arguments)
