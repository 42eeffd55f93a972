"""What type checkers infer in a user's program."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).parent / "typing_checks.py"
STREAM_CHECKS = Path(__file__).parent / "typing_checks_streams.py"
SOURCES = Path(__file__).parent.parent / "src"


def test_the_checks_are_a_program() -> None:
    """What the type checkers read declares an app that could run."""
    assert importlib.import_module("tests.typing_checks").app.id == "shop"


def test_mypy(tmp_path: Path) -> None:
    """mypy infers topics, tables, streams and results, and finds what is wrong."""
    config = tmp_path / "mypy.ini"
    config.write_text(
        f"[mypy]\nstrict = true\npython_version = 3.11\nmypy_path = {SOURCES}\n"
        f"cache_dir = {tmp_path / 'cache'}\nfollow_imports = silent\n"
        "[mypy-croniter.*,aiokafka.*,rocksdict.*]\nignore_missing_imports = true\n"
    )
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(config),
            str(CHECKS),
            str(STREAM_CHECKS),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_pyright(tmp_path: Path) -> None:
    """pyright infers the same."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed: pip install 'pyright[nodejs]'")
    for checks in (CHECKS, STREAM_CHECKS):
        shutil.copy(checks, tmp_path)
    config = {
        "include": [CHECKS.name, STREAM_CHECKS.name],
        "extraPaths": [str(SOURCES)],
        "enableTypeIgnoreComments": False,
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    ran = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        # nothing is asked of the network: neither for a newer version, nor for a node of its own
        env={
            **os.environ,
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
            "PYRIGHT_PYTHON_GLOBAL_NODE": "0",
        },
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
