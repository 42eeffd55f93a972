"""The benchmarks on a broker run."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.brokers import Kafka


def test_kafka(kafka: Kafka, tmp_path: Path) -> None:
    """A table for people, and the same figures as JSON: events a second and CPU, against the bare client."""
    output = tmp_path / "kafka.json"
    command = [sys.executable, "-m", "bench", "kafka", "--broker", kafka.url, "--events", "4000"]
    command += ["--only", "count", "--only", "hopping", "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "of bare" in done.stdout
    found = json.loads(output.read_text())["measured"]
    assert [(one["name"], one["events"]) for one in found] == [("count", 4_000), ("hopping", 4_000)]
    assert all(one["share"] > 0 and one["cpu_ratio"] > 0 for one in found)


def test_latency(kafka: Kafka, tmp_path: Path) -> None:
    """With and without a worker in between; nothing is lost on the way."""
    output = tmp_path / "latency.json"
    command = [sys.executable, "-m", "bench", "latency", "--broker", kafka.url]
    command += ["--rate", "200", "--seconds", "1", "--warm", "0.2", "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "p99 ms" in done.stdout
    bare, ours = json.loads(output.read_text())["measured"]
    assert (bare["what"], ours["what"]) == ("bare", "millstream")
    assert bare["records"] == ours["records"] == 200
    assert 0 < ours["p50"] <= ours["p99"] <= ours["longest"]
