"""The benchmark of recovery runs, and says what it measured. What it measures is no test: machines differ."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.brokers import Kafka


def test_recovery(kafka: Kafka, tmp_path: Path) -> None:
    """A table for people, and the same figures as JSON."""
    output = tmp_path / "recovery.json"
    command = [sys.executable, "-m", "bench", "recovery", "--broker", kafka.url]
    command += ["--only", "killed", "--only", "empty-disk"]
    command += ["--rounds", "1", "--keys", "2400", "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    names = [one["name"] for one in found["measured"]]
    assert names == [
        "killed",
        "empty disk",
        "empty disk, CPU",
        "restart",
        "restart after SIGKILL",
    ]
    assert all(one["name"] in done.stdout for one in found["measured"])
    assert [one["count"] for one in found["measured"]] == [4, 1, 1, 1, 1]
    assert all(0 < one["p50"] <= one["p99"] for one in found["measured"])
