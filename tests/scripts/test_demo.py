"""``scripts/demo``, as it is typed: in the environment that is there already."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scripts._setup import ROOT, prepare
from tests.cli.terminal import Terminal, children_of, cpu_s, poll
from tests.requirements import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

START_S_MAX = 3.0
"""A start of what is installed; in seconds of CPU time, which other work on the machine does not change."""
ONCE_S_MAX = 900.0
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
DEMO = [sys.executable, str(ROOT / "scripts" / "demo")]


@pytest.fixture
def root() -> Iterator[Terminal]:
    """A terminal in the checkout, whose environment is as ``pyproject.toml`` wants it."""
    if Path(sys.prefix) != ROOT / ".venv":
        missing("the environment in .venv: run scripts/test")
    prepare()
    terminal = Terminal(ROOT)
    yield terminal
    terminal.close()


def test_a_second_run(root: Terminal) -> None:
    """It is there at once, what it says to try works, and Ctrl-C ends all of it within two seconds."""
    demo = root.start(command=DEMO)
    demo.until("Ctrl-C +ends it all")
    if sys.platform == "linux":
        assert cpu_s(demo.process.pid) < START_S_MAX
    pages = demo.until(r"Look at +(\S+)/board")[1]
    broker = demo.until(r"Try +export MILLSTREAM_BROKER=(\S+)")[1]
    tries = re.findall(r"^ {14}((?:\.venv|curl).+)$", demo.output, re.MULTILINE)
    assert [shlex.split(one)[0] for one in tries] == [".venv/bin/millstream"] * 2 + ["curl"]
    with urllib.request.urlopen(pages) as page:
        assert page.status == 200
    environment = {**os.environ, "MILLSTREAM_BROKER": broker}

    def answers(command: str) -> bool:
        asked = subprocess.run(
            shlex.split(command), cwd=ROOT, env=environment, capture_output=True, check=False
        )
        return asked.returncode == 0 and b"departed" in asked.stdout

    poll(lambda: answers(tries[0]), what=f"an answer to {tries[0]!r}")
    running = children_of(demo.process.pid)
    code, took_s = demo.end()
    assert code == 0
    assert took_s < 2
    assert all(not Path(f"/proc/{pid}").exists() for pid in running)


@pytest.mark.slow
def test_the_whole_year(root: Terminal) -> None:
    """``--once`` ends with the totals that are known of the data, and the rate."""
    demo = root.start("--once", command=DEMO)
    assert demo.process.wait(ONCE_S_MAX) == 0
    demo.until(r"\n1,000,898 events in [\d.]+ s: [\d,]+ events/s\n")
    rows = re.findall(r"^(\w\w)\t(\{.+\})$", demo.output, re.MULTILINE)
    carriers = {carrier: json.loads(totals) for carrier, totals in rows}
    assert len(carriers) == 16
    united = {"departed": 57_979, "cancelled": 686, "landed": 57_782, "arrival_delay_sum": 205_589}
    assert carriers["UA"] == united
    names = ("departed", "cancelled", "landed")
    sums = [sum(totals[name] for totals in carriers.values()) for name in names]
    assert sums == [328_521, 8_255, 327_346]
