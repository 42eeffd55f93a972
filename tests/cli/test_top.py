"""``millstream top``: rates between two looks at the workers' metrics."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from millstream.cli._top_numbers import Numbers, parse_metrics, rates, total
from tests.cli.terminal import APP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from tests.cli.terminal import Running, Terminal

GOOD = '{"account": "ada", "amount": 2.5}'
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


def _lines(running: Running) -> list[dict[str, Any]]:
    return [json.loads(line) for line in running.output.splitlines() if line[:1] == "{"]


def test_live(project: Path, terminal: Terminal) -> None:
    """Records that are processed meanwhile show as a rate, and no lag is left."""
    (project / "app.py").write_text(APP.replace(", web=False", ""))
    workers = terminal.start("worker", "--processes", "2")
    workers.until(r"worker \d ready in", times=2)
    watching = terminal.start("top", "--interval", "200ms", "--json")
    watching.until(r'"generation"')
    for _ in range(3):
        assert terminal.run("send", "orders", GOOD).returncode == 0
    # the first rate may be that of a moment in which the last record is on its way
    watching.until(r'"total":\{"records_s":[1-9](?s:.*)"total":\{[^}]*"lag":0\b')
    assert watching.end()[0] == 130
    assert "Traceback" not in watching.output
    last = _lines(watching)[-1]
    assert sorted(row["slot"] for row in last["workers"]) == ["0", "1"]
    assert [row["shards_ready"] for row in last["workers"]] == [2, 2]
    assert (last["total"]["shards"], last["total"]["lag"]) == (4, 0)
    assert last["total"]["commit_p99_ms"] > 0
    assert all(row["error"] is None for row in last["workers"])


@posix_only
def test_on_a_terminal(project: Path, terminal: Terminal) -> None:
    """A person sees one table in place, with a line above it."""
    (project / "app.py").write_text(APP.replace(", web=False", ""))
    worker = terminal.start("worker")
    worker.until("ready in")
    code, shown = terminal.look("top", "--interval", "100ms", until="records/s", interrupt=True)
    assert code == 130
    assert f"shop  local://{project}/shop.db  generation 1, 1 worker" in shown.replace("\n", "")
    code, shown = terminal.look("top", "--once", "--interval", "100ms")
    assert code == 0
    assert shown.split()[:3] == ["worker", "address", "shards"]


def test_a_worker_without_http(call: Callable[..., Result], terminal: Terminal) -> None:
    """It is listed with its shards, and why there are no numbers."""
    worker = terminal.start("worker")
    worker.until("ready in")
    result = call("top", "--once", "--interval", "100ms", "--json")
    (row,) = json.loads(result.stdout)["workers"]
    assert (row["error"], row["shards"], row["records_s"]) == ("serves no HTTP", 4, None)
    assert result.exit_code == 0


def test_nobody_works(call: Callable[..., Result]) -> None:
    """That is exit code 1, for scripts."""
    call("send", "orders", GOOD)
    result = call("top", "--once", "--interval", "100ms")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "no worker is running\n"
    refused = call("top", "--interval", "5ms")
    assert refused.exit_code == 2
    assert "5ms is below 100ms" in refused.stderr
    assert call("top", "--interval", "often").exit_code == 2


METRICS = """\
# HELP millstream_ready 1 while the worker is ready.
# TYPE millstream_ready gauge
millstream_ready 1
millstream_shards{state="ready"} 3
millstream_shards{state="recovering"} 1
millstream_records_read_total{topic="orders"} 10
millstream_records_read_total{topic="with \\"quotes\\""} 5
millstream_records_sent_total 2
millstream_table_changes_total{table="totals"} 7
millstream_lag_records{agent="a"} 4
millstream_lag_records{agent="b"} 1
millstream_commits_total 3
millstream_commit_seconds{quantile="0.5"} 0.0021
millstream_commit_seconds{quantile="0.9"} 0.003
millstream_commit_seconds{quantile="0.99"} 0.01
millstream_commit_seconds_sum 0.5
millstream_commit_seconds_count 3
millstream_state_bytes 1e6
"""


def test_parse_metrics() -> None:
    """Labels are added up, but for states and quantiles."""
    assert parse_metrics(METRICS, at=1.0) == Numbers(
        at=1.0,
        read=15,
        changed=7,
        sent=2,
        commits=3,
        lag=5,
        state=1e6,
        shards=4,
        shards_ready=3,
        commit_p50=0.0021,
        commit_p99=0.01,
    )
    assert parse_metrics("", at=1.0) == Numbers(at=1.0)


def test_metrics_are_those_of_a_worker(project: Path, terminal: Terminal) -> None:
    """The names here are the names there."""
    from millstream.cli._ask import ask_text

    (project / "app.py").write_text(APP.replace(", web=False", ""))
    worker = terminal.start("worker")
    url = worker.until(r"ready in .* (http://\S+)")[1]
    text = ask_text(url, "/metrics")
    names = {line.split(maxsplit=1)[0].partition("{")[0] for line in METRICS.splitlines()} - {"#"}
    missing = {name for name in names if name not in text}
    # not there before anything was processed
    assert missing <= {"millstream_records_read_total", "millstream_table_changes_total"}


def test_rates() -> None:
    """By the second; none for a worker that was started anew."""
    before = Numbers(at=1.0, read=10, commits=2)
    row = rates(before, Numbers(at=3.0, read=30, commits=4, commit_p50=0.0021, lag=7))
    assert (row["records_s"], row["commits_s"], row["sent_s"]) == (10.0, 1.0, 0.0)
    assert (row["commit_p50_ms"], row["commit_p99_ms"], row["lag"]) == (2.1, None, 7)
    assert rates(before, Numbers(at=3.0, read=1, commits=1))["records_s"] is None
    assert rates(None, before)["records_s"] is None


def test_total() -> None:
    """Sums, but of times the longest; what nobody knows stays unknown."""
    rows = [
        {"records_s": 1.5, "commit_p99_ms": 2.0, "lag": 1, "sent_s": None},
        {"records_s": 2.0, "commit_p99_ms": 9.0, "lag": 2, "sent_s": None},
    ]
    assert total(rows) == {"records_s": 3.5, "commit_p99_ms": 9.0, "lag": 3, "sent_s": None}
    assert total([]) == {}
