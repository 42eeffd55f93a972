"""The benchmark of recovery runs, and says what it measured. What it measures is no test: machines differ."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.brokers import Kafka


def measure(kafka: Kafka, output: Path, suite: str) -> list[dict[str, Any]]:
    """What a suite has measured, in small numbers: a table for people, and the same figures as JSON."""
    command = [sys.executable, "-m", "bench", "recovery", "--broker", kafka.url, "--only", suite]
    command += ["--rounds", "1", "--keys", "2400", "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(output.read_text())["measured"]
    assert all(one["name"] in done.stdout for one in found)
    assert all(0 <= one["p50"] <= one["p99"] for one in found)
    return found


def test_a_disk(kafka: Kafka, tmp_path: Path) -> None:
    """One worker, on an empty disk and on its own."""
    found = measure(kafka, tmp_path / "json", "empty-disk")
    assert [one["name"] for one in found] == [
        "empty disk",
        "empty disk, CPU",
        "read alone",
        "read alone, CPU",
        "restart",
        "restart after SIGKILL",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["killed", "vanished", "rolling"])
def test_workers(kafka: Kafka, tmp_path: Path, suite: str) -> None:
    """Three of them, of which one goes."""
    found = measure(kafka, tmp_path / "json", suite)
    assert found[0]["name"].startswith(suite)
    assert found[0]["count"] >= 4
