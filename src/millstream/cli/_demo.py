"""``millstream demo``: something that moves, without a program of one's own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from millstream.cli._session import Session, command
from millstream.cli._worker import FIRST_PORT, is_free

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["demo"]

_PROGRAM = Path(__file__).with_name("_demo_shop.py")
_PORTS = 1_000


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

    port = web_port or next(
        port for port in range(FIRST_PORT, FIRST_PORT + _PORTS) if is_free("127.0.0.1", port)
    )
    with _folder() as folder:
        url = f"http://127.0.0.1:{port}"
        click.echo(
            f"The program   {folder / 'app.py'}\n"
            f"Look at       {url}/tables/accounts\n"
            f"              {url}/tables/sold-per-minute\n"
            f"Try           cd {folder}\n"
            "              millstream table accounts ada\n"
            "              millstream tail large-orders\n"
            f"              curl {url}/tables/accounts/keys/ada\n"
        )
        app = find_app("app", folder)
        app.settings = dataclasses.replace(
            app.settings, broker=f"local://{folder / 'demo.db'}", web_port=port
        )
        return serve(app, web=True, number=None, several=False)


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
