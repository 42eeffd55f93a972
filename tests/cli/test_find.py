"""Finding the user's app, and the sentence where that does not work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from millstream.cli._find import find_app
from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

ONE = 'import millstream as ms\napp = ms.App("one", web=False)\n'
TWO = ONE + 'other = ms.App("two")\n'


def test_in_the_working_directory(project: Path) -> None:
    """app.py is found without being named."""
    assert find_app(None, project).id == "shop"


@pytest.mark.parametrize(
    ("files", "reference", "expected"),
    [
        ({"main.py": ONE}, None, "one"),
        ({"app/__init__.py": ONE}, None, "one"),
        ({"app.py": "", "main.py": ONE}, None, "one"),  # a module without an app is passed over
        ({"shop/web.py": ONE}, "shop.web", "one"),
        ({"shop/web.py": TWO}, "shop.web:other", "two"),
        ({"shop/web.py": ONE}, "shop/web.py", "one"),
        ({"shop.py": ONE + "again = app\n"}, "shop", "one"),  # one app under two names is one
        ({"shop.py": f"{ONE}class box:\n    inner = app\n"}, "shop:box.inner", "one"),
        (
            {"shop.py": TWO, "pyproject.toml": '[tool.millstream]\napp = "shop:other"\n'},
            None,
            "two",
        ),
    ],
)
def test_found(project: Path, files: dict[str, str], reference: str | None, expected: str) -> None:
    """-A comes first, then pyproject.toml, then the usual places."""
    (project / "app.py").unlink()
    _write(project, files)
    assert find_app(reference, project).id == expected


@pytest.mark.parametrize(
    ("files", "reference", "message"),
    [
        (
            {},
            None,
            r"no app in .*app\.py \(not there\), app/ \(not there\), main\.py \(not there\)",
        ),
        ({"app.py": "x = 1\n"}, None, r"app\.py \(has no ms\.App\), app/ \(not there\)"),
        ({"app.py": TWO}, None, r"'app' has several apps \(app, other\).*-A app:app"),
        ({}, "nowhere", r"no module 'nowhere' in .*, nor is one installed"),
        ({"shop.py": ONE}, "shop.more", "no module 'shop.more'"),
        ({"shop.py": ONE}, "shop:nothing", r"'shop' has no 'nothing': it has app"),
        ({"shop.py": ONE}, "shop:ms", r"shop:ms is a module, not an ms\.App"),
        ({"shop.py": "x = 1\n"}, "shop", r"'shop' has no ms\.App at its top level"),
        # what is wrong in the user's module, with file and line
        (
            {"app.py": "\nimport nothing_such\n"},
            None,
            r"^app\.py:2: ModuleNotFoundError: No module",
        ),
        ({"app.py": "x = 1\ny = z\n"}, None, r"^app\.py:2: NameError: name 'z' is not defined"),
        ({"app.py": "x = (\n"}, None, r"^app\.py:1: SyntaxError: '\(' was never closed"),
        (
            {"app.py": ONE + 'app.topic("a")\napp.topic("a")\n'},
            None,
            r"^app\.py:4: topic 'a' is decl",
        ),
        ({"app.py": ONE + "app.main()\n"}, None, r"^app\.py:3: app\.main\(\) is called while the"),
        (
            {
                "app.py": ONE.replace("False", 'False, autodiscover=["other"]'),
                "other.py": "a = b\n",
            },
            None,
            r"^other\.py:1: NameError",
        ),
        ({"pyproject.toml": "[tool.millstream\n"}, None, r"pyproject\.toml cannot be read"),
        ({"pyproject.toml": "[tool.millstream]\napp = 1\n"}, None, "app is not text"),
        (
            {"app.py": ONE + '@app.command("send")\ndef again() -> None: ...\n'},
            None,
            "the app has a command 'send', as Millstream has",
        ),
    ],
)
def test_not_found(
    project: Path, files: dict[str, str], reference: str | None, message: str
) -> None:
    """What was looked for, or which line does not work."""
    (project / "app.py").unlink()
    _write(project, files)
    with pytest.raises(ConfigurationError, match=message):
        _find_inside_a_command(reference, project)


def _find_inside_a_command(reference: str | None, project: Path) -> None:
    import click

    with click.Context(click.Command("any")):
        find_app(reference, project)


def _write(project: Path, files: dict[str, str]) -> None:
    for place, text in files.items():
        (project / place).parent.mkdir(exist_ok=True)
        (project / place).write_text(text)
