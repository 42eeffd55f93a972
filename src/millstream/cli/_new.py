"""``millstream new``: a project to begin with."""

from __future__ import annotations

import re
from pathlib import Path

import click

from millstream.cli._project import FILES
from millstream.cli._session import Session, command
from millstream.errors import ConfigurationError

__all__ = ["new"]


@command("new")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def new(session: Session, directory: Path) -> None:
    """Make a project in DIR: an app, its test, and what belongs around them."""
    name = project_name(directory)
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ConfigurationError(
                f"{directory} is there already and not empty: nothing was written"
            )
        for place, text in FILES.items():
            path = directory / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("{{name}}", name), encoding="utf-8")
    except OSError as exc:
        raise ConfigurationError(f"{directory} cannot be written: {exc.strerror or exc}") from exc
    click.echo(f"{directory}: {', '.join(FILES)}")
    enter = "" if directory.resolve() == Path.cwd() else f"cd {directory} && "
    click.echo(f"next:  {enter}millstream worker --reload")


def project_name(directory: Path) -> str:
    """The app's id, from the name of its directory.

    Raises:
        ConfigurationError: the name has nothing that an id could have.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", directory.resolve().name).strip("-._")
    if not name:
        raise ConfigurationError(f"{directory} has no name to call the app by")
    return name
