"""The command line: ``millstream``, ``python -m millstream``, and `App.main`."""

from millstream.cli._main import cli, main, run_command_line

__all__ = ["cli", "main", "run_command_line"]
