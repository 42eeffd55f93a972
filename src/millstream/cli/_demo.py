"""``millstream demo``: something that moves, without a program of one's own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from millstream.cli._session import Session, command

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["demo"]

_PROGRAM = Path(__file__).with_name("_demo_shop.py")


@command("demo")
@click.option(
    "--web-port",
    type=click.IntRange(1, 65_535),
    help="Where its pages are; 6066 or the next free port where left out.",
)
def demo(session: Session, web_port: int | None) -> int:
    """Run a shop that sells by itself, to look at; Ctrl-C ends it, and nothing of it is left."""
    from millstream.cli._find import find_app
    from millstream.cli._serve import serve

    with _folder() as folder:
        app = find_app("app", folder)
        app.settings = dataclasses.replace(
            app.settings, broker=f"local://{folder / 'demo.db'}", web_port=web_port
        )
        return serve(app, web=True, welcome=functools.partial(_welcome, folder))


def _welcome(folder: Path, url: str) -> str:
    return (
        f"\nThe program   {folder / 'app.py'}\n"
        f"Look at       {url}/tables/accounts\n"
        f"              {url}/tables/sold-per-minute\n"
        f"Try           cd {folder}\n"
        "              millstream table accounts ada\n"
        "              millstream tail large-orders\n"
        f"              curl {url}/tables/accounts/keys/ada\n"
    )


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder with the program in it, the working directory as long as the block runs."""
    before = Path.cwd()
    folder = Path(tempfile.mkdtemp(prefix="millstream-demo-")).resolve()
    try:
        shutil.copyfile(_PROGRAM, folder / "app.py")
        os.chdir(folder)
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)
