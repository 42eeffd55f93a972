"""What the pages of ``docs/`` show is true: their programs run, and print what they say."""

from __future__ import annotations

import ast
import inspect
import linecache
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from tests.docs.pages import DOCS, Block, Console, blocks_of, pages, write_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = "millstream_docs_page"


def _shown(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, from which modules can be imported as well."""
    path = tmp_path / "shop"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.syspath_prepend(str(path))
    before = set(sys.modules)
    yield path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and file.startswith(str(path)):
            del sys.modules[name]


@pytest.fixture
def console(directory: Path) -> Iterator[Console]:
    """A terminal in it."""
    opened = Console(directory)
    yield opened
    opened.close()


@pytest.mark.parametrize("page", pages(), ids=_shown)
async def test_the_code_of_a_page_runs(
    page: Path,
    directory: Path,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Every block does what it says, one after the other, in one module and one directory."""
    module = ModuleType(MODULE)
    monkeypatch.setitem(sys.modules, MODULE, module)
    for block in blocks_of(page):
        if not block.runs:
            continue
        if block.file is not None:
            write_file(block, directory)
        elif block.language == "console":
            console.run(block)
        else:
            await _run(block, vars(module), request)


async def _run(block: Block, namespace: dict[str, Any], request: pytest.FixtureRequest) -> None:
    linecache.checkcache(str(block.page))
    code = compile(
        "\n" * (block.line - 1) + block.text,
        str(block.page),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    before = set(namespace)
    waiting = eval(code, namespace)
    if code.co_flags & inspect.CO_COROUTINE:
        await waiting
    for name in [name for name in namespace if name not in before and name.startswith("test_")]:
        function = namespace[name]
        wanted = inspect.signature(function).parameters
        result = function(**{fixture: request.getfixturevalue(fixture) for fixture in wanted})
        if inspect.isawaitable(result):
            await result


def test_the_tutorial_runs_from_top_to_bottom() -> None:
    """Nothing in the tutorial is left out but the installation."""
    left_out = [b for b in blocks_of(DOCS / "tutorial.md") if not b.runs]
    assert [block.text for block in left_out if block.language != "text"] == [
        "$ pip install millstream pytest pytest-asyncio\n"
    ]


def test_every_command_is_in_the_reference() -> None:
    """The page of the command line names all commands that there are."""
    from millstream.cli._main import _OWN

    page = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    assert [name for name in _OWN if f"`millstream {name}" not in page] == []


def test_every_error_is_in_the_tree() -> None:
    """The page of the errors shows the tree that the module draws."""
    import millstream.errors

    drawn = (millstream.errors.__doc__ or "").partition("::\n")[2]
    assert [name for name in millstream.errors.__all__ if name not in drawn] == []


def test_every_option_is_in_the_reference() -> None:
    """So are their options, of which none is left to ``--help`` alone."""
    import click

    from millstream.cli._main import cli

    page = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    table = page.partition("All options:")[2].partition("\n## ")[0]

    def options_of(command: click.Command, context: click.Context) -> Iterator[str]:
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                yield from (*parameter.opts, *parameter.secondary_opts)
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from options_of(found, context)

    options = set(options_of(cli, click.Context(cli)))
    assert len(options) > 30
    assert [name for name in sorted(options) if not re.search(rf"`{name}[ `]", table)] == []


def test_every_address_and_number_is_in_the_reference() -> None:
    """The page on HTTP has the addresses and parameters that are described, and the metrics."""
    from millstream.web._openapi import openapi
    from millstream.worker import _report

    page = (DOCS / "reference" / "http.md").read_text(encoding="utf-8")
    paths = openapi("shop")["paths"]
    assert [path for path in paths if f"{path}`" not in page] == []
    asked = {p["name"] for path in paths.values() for p in path["get"].get("parameters", ())}
    assert [n for n in asked - {"name"} if not re.search(rf"[`{{]{n}[`}}=]", page)] == []
    source = inspect.getsource(_report)
    numbers = set(re.findall(r'"millstream_(\w+)"|_(?:gauge|counter)\(\s*"(\w+)"', source))
    names = {f"millstream_{a or b}" for a, b in numbers}
    names |= {f"millstream_{name}_total" for name in _report.COUNTERS}
    assert len(names) > 10
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
