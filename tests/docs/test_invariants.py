"""The page of promises names tests, and all of them exist."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import DOCS

if TYPE_CHECKING:
    from pathlib import Path

PAGE = DOCS / "why" / "invariants.md"
ROOT = DOCS.parent
NUMBERS = range(1, 26)


def promises() -> dict[int, dict[Path, list[str]]]:
    """What is named for each promise: functions, by file."""
    found: dict[int, dict[Path, list[str]]] = {}
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        number = int(section.split(".", 1)[0])
        listed = found.setdefault(number, {})
        for item in re.findall(r"^- (.*(?:\n  .*)*)", section, flags=re.MULTILINE):
            path, *names = re.findall(r"`([^`]+)`", item)
            listed[ROOT / path] = names
    return found


def test_each_has_its_place() -> None:
    """Once, in order, with tests."""
    found = promises()
    assert list(found) == list(NUMBERS)
    assert all(found.values())


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_named_exists(number: int) -> None:
    """Tests, schedules and mutations are functions of the file that is told."""
    for path, names in promises()[number].items():
        tree = ast.parse(path.read_text())
        functions = {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert names
        assert set(names) <= functions, path


def test_comments_mean_one_of_them() -> None:
    """Wherever the source says "invariant 13"."""
    for folder in ("src", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            for number in re.findall(r"\binvariant (\d+)", path.read_text()):
                assert int(number) in NUMBERS, path
