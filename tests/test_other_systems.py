"""macOS and Windows, as far as a machine without them can tell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="takes from Linux what others do not have")
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_without_what_linux_has(system: str, tmp_path: Path) -> None:
    """Every module loads, and a worker starts, counts, answers and ends with Ctrl-C, without fcntl, SIGKILL, /proc."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.other_systems", system],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ready in" in done.stdout
    assert done.stdout.endswith("ended\n")
