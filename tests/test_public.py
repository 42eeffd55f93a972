"""What is public, and what an import brings along."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

import millstream
from tests.requirements import wheel

HEAVY = [
    "aiokafka",
    "starlette",
    "uvicorn",
    "httpx",
    "click",
    "rich",
    "rocksdict",
    "sqlite3",
    "sqlglot",
]
MODULES_MAX = 300
"""How many modules ``import millstream`` may load, those of the interpreter included."""

INSTALLED_BYTES_MAX = 50_000_000
"""How much ``pip install millstream`` may bring, with the byte code that it makes."""

OURS = Path(millstream.__file__).parent

SHARED_BY_NEIGHBOURS = {"millstream.transports.local.groups": {"generation_of"}}


def public_modules() -> list[str]:
    """Modules without an underscore anywhere in their name."""
    found = [
        info.name
        for info in pkgutil.walk_packages(millstream.__path__, "millstream.")
        if not any(part.startswith("_") for part in info.name.split("."))
    ]
    return ["millstream", *found]


@pytest.mark.parametrize("name", public_modules())
def test_all(name: str) -> None:
    """``__all__`` is sorted, exists, and names all that is public there, and nothing else."""
    module = importlib.import_module(name)
    assert hasattr(module, "__all__"), f"{name} declares no __all__"
    declared = list(module.__all__)
    assert len(declared) == len(set(declared))
    assert [entry for entry in declared if not hasattr(module, entry)] == []
    if hasattr(module, "__path__"):
        return  # a package only re-exports, and may leave things to its modules
    own = {
        entry
        for entry, value in vars(module).items()
        if not entry.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and getattr(value, "__module__", None) == name
    }
    assert own - set(declared) - SHARED_BY_NEIGHBOURS.get(name, set()) == set()


@pytest.mark.parametrize("name", public_modules())
def test_docstrings(name: str) -> None:
    """Every public module, class and function says what it is for."""
    module = importlib.import_module(name)
    assert module.__doc__ or not vars(module).get("__all__"), f"{name} has no docstring"
    for entry in getattr(module, "__all__", ()):
        value = getattr(module, entry)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, f"{name}.{entry} has no docstring"


def test_errors_are_reachable() -> None:
    """Users write ``ms.errors.AgentError`` without a further import."""
    assert isinstance(millstream.errors, ModuleType)


def test_import_is_light() -> None:
    """``import millstream`` loads no broker client, web server, command line, store or SQL parser."""
    code = "import json, sys, millstream; print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = json.loads(ran.stdout)
    heavy = [name for name in HEAVY if name in loaded]
    assert heavy == []
    assert len(loaded) <= MODULES_MAX, f"{len(loaded)} modules"


def test_plug_in_is_light() -> None:
    """The pytest plug-in imports nothing of Millstream before a test asks for it."""
    code = "import json, sys, pytest_millstream; print(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    assert [name for name in json.loads(ran.stdout) if name.split(".")[0] == "millstream"] == []


def test_version() -> None:
    """The version is that of the distribution."""
    from importlib.metadata import version

    assert millstream.__version__ == version("millstream")


def test_the_wheel_is_whole() -> None:
    """It has each file of the package, the templates, scripts and ``py.typed`` among them, and nothing else."""
    with zipfile.ZipFile(wheel()) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        [entry_points] = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        declared = archive.read(entry_points).decode()
    files = [path for path in OURS.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    ours = {f"millstream/{path.relative_to(OURS).as_posix()}" for path in files}
    assert {"millstream/py.typed", "millstream/web/static/live.js"} <= ours
    assert names == {*ours, "pytest_millstream.py"}
    assert "millstream = millstream.cli:main" in declared
    assert "millstream = pytest_millstream" in declared


def test_what_an_install_brings() -> None:
    """Millstream and all that it needs without extras; byte code is about as large as its source."""
    sizes = {"millstream": 2 * sum(p.stat().st_size for p in OURS.rglob("*.py"))}
    waiting = list(distribution("millstream").requires or [])
    while waiting:
        requirement = Requirement(waiting.pop())
        marker = requirement.marker
        if marker is not None and not marker.evaluate({"extra": ""}):
            continue
        if requirement.name.lower() in sizes:
            continue
        found = distribution(requirement.name)
        files = [Path(str(found.locate_file(file))) for file in found.files or []]
        sizes[requirement.name.lower()] = sum(
            path.stat().st_size * (2 if path.suffix == ".py" else 1)
            for path in files
            if path.suffix != ".pyc" and path.exists()
        )
        waiting += found.requires or []
    assert len(sizes) > 10
    assert sum(sizes.values()) < INSTALLED_BYTES_MAX, sizes
