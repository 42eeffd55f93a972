"""A project in a fresh directory, and two ways to call the command line in it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from millstream.cli import cli
from tests.cli.terminal import APP, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a small app, and nothing of it in this process afterwards."""
    for name in [name for name in os.environ if name.startswith("MILLSTREAM_")]:
        monkeypatch.delenv(name)
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    forget(tmp_path)
    yield tmp_path
    for name in sys.modules.keys() - before.keys():
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    sys.modules.update({name: before[name] for name in ("app", "main") if name in before})


def forget(directory: Path) -> None:
    """Have the modules of a project loaded anew."""
    for name in ("app", "main", "shop", "other"):
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[module]


@pytest.fixture
def call(project: Path) -> Callable[..., Result]:
    """The command line in this process, each time with the project loaded anew."""

    def run(*arguments: str, **options: Any) -> Result:
        forget(project)
        return CliRunner().invoke(cli, list(arguments), prog_name="millstream", **options)

    return run


@pytest.fixture
def terminal(project: Path) -> Iterator[Terminal]:
    """The command line as processes of their own."""
    terminal = Terminal(project)
    yield terminal
    terminal.close()
