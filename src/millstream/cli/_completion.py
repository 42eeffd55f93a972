"""``millstream completion``: the lines that make Tab work in a shell."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from millstream.cli._session import Session, command
from millstream.errors import ConfigurationError

__all__ = ["completion"]


@command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), required=False)
def completion(session: Session, shell: str | None) -> None:
    """Print what makes the Tab key work: eval "$(millstream completion bash)"."""
    shell = shell or Path(os.environ.get("SHELL", "")).name
    found = get_completion_class(shell)
    if found is None:
        raise ConfigurationError(
            "the shell cannot be told from $SHELL: say which one, for example: millstream completion bash"
        )
    root = click.get_current_context().find_root().command
    click.echo(found(root, {}, "millstream", "_MILLSTREAM_COMPLETE").source())
