"""``millstream new``: a project that works."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from millstream.cli._find import find_app
from tests.cli.conftest import forget

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result


def test_new(project: Path, call: Callable[..., Result]) -> None:
    """The app is called as its directory; files are named, and what to type next."""
    result = call("new", "corner shop")
    assert result.exit_code == 0
    directory = project / "corner shop"
    for name in ("app.py", "tests/test_app.py", "pyproject.toml", "README.md", ".gitignore"):
        assert (directory / name).exists()
        assert name in result.output
    assert "next:  cd corner shop && millstream worker --reload" in result.output
    forget(project)
    app = find_app("app:app", directory)
    assert app.id == "corner-shop"
    assert list(app.agents) == ["count"]
    assert list(app.tables) == ["totals", "orders-per-hour"]
    assert str(app.tables["orders-per-hour"].windows) == "tumbling(1h, grace=5m, retention=7d)"


def test_new_into_an_empty_directory(
    project: Path, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``millstream new .`` is as good."""
    (project / "here").mkdir()
    monkeypatch.chdir(project / "here")
    assert "next:  millstream worker" in call("new", ".").output
    assert 'App("here")' in (project / "here" / "app.py").read_text()


@pytest.mark.parametrize("name", [".", "app.py"])
def test_nothing_is_overwritten(project: Path, call: Callable[..., Result], name: str) -> None:
    """A directory with something in it, or a file, is refused."""
    before = (project / "app.py").read_text()
    result = call("new", name)
    assert result.exit_code == 2
    assert "is there already and not empty: nothing was written" in result.stderr
    assert (project / "app.py").read_text() == before
    assert [path.name for path in project.iterdir()] == ["app.py"]
