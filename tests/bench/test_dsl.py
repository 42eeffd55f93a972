"""The benchmark of streams runs, and says what it measured. What it measures is no test: machines differ."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def test_dsl(tmp_path: Path) -> None:
    """Every row, with what it should reach, for people and as JSON."""
    output = tmp_path / "dsl.json"
    sizes = ["--events", "2000", "--keys", "100", "--keys-max", "200"]
    sizes += ["--windows", "200", "--windows-max", "20", "--rounds", "1"]
    sizes += ["--rate", "500", "--seconds", "0.3", "--quiet", "0.1"]
    command = [sys.executable, "-m", "bench", "dsl", *sizes, "--json", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "events/s" in done.stdout
    rows = json.loads(output.read_text())["rows"]
    assert all(row["events"] > 0 and row["cpu_us"] > 0 for row in rows)
    names = [row["name"] for row in rows if row["group"] == "pairs"]
    assert names == [
        f"{program} {form}"
        for program in ("filter-map", "count", "tumbling", "stream-table")
        for form in ("agent", "dsl")
    ]
    assert {row["name"]: row["events_per_s_wanted"] for row in rows if row["group"] == "joins"} == {
        "stream-stream inner": 50_000,
        "stream-stream left": 50_000,
        "table-table": 80_000,
        "foreign-key": None,
    }
    alone = [row for row in rows if row["name"].startswith("store alone")]
    assert [row["ratio_allowed"] for row in alone] == [None, None]
    ours = [row for row in rows if row not in alone]
    assert {row["ratio_allowed"] for row in ours if row["ratio"] is not None} == {1.3, 1.5}
    flat = [row["name"] for row in ours if row["group"] in ("keys", "windows")]
    assert len(flat) == 2 * 2 * 4 + 2 * 5
    assert sum(name.endswith(" live") for name in flat) == 2 * 4
    missed = sum(row["missed"] for row in rows)
    assert f"{missed} of {len(rows)} rows missed" in done.stdout
