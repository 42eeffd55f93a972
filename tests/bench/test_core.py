"""The benchmark runs, and says what it measured. What it measures is no test: machines differ."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def test_core(tmp_path: Path) -> None:
    """A table for people, and the same figures as JSON."""
    output = tmp_path / "core.json"
    command = [sys.executable, "-m", "bench", "core", "--events", "20000", "--seconds", "0.5"]
    command += ["--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "events/s" in done.stdout
    found = json.loads(output.read_text())
    names = [one["name"] for one in found["measured"]]
    assert [name for name in names if name != "floor"] == [
        "filter-map",
        "count",
        "tumbling",
        "hopping",
        "recovery",
    ]
    assert all(one["events"] == 20_000 for one in found["measured"] if one["name"] != "recovery")
    assert found["latency_ms"]["p50"] > 0
