"""The processes of the Procfile, started as they stand there."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.browser.webdriver import browsing

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 90.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _rows(url: str) -> list[Any]:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            rows: list[Any] = json.load(answer)["rows"]
            return rows
    except OSError as exc:
        if isinstance(exc, urllib.error.HTTPError):
            exc.close()
        return []


async def _look_at_the_board(url: str) -> None:
    async with browsing() as browser:
        await browser.open(url)
        await browser.until("#carriers", "UA")
        await browser.until("#airports", "EWR")
        await browser.until_true("return document.getElementById('air').textContent !== '0'")
        assert await browser.errors() == []


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_the_processes_work_together(tmp_path: Path) -> None:
    """The worker counts what the feed sends, its page shows it; both end when they are told to."""
    port = _free_port()
    environment = {
        **os.environ,
        "MILLSTREAM_BROKER": f"local://{tmp_path / 'flights.db'}",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    lines = (ROOT / "Procfile").read_text().splitlines()
    commands = dict(line.split(": ", 1) for line in lines if line.strip())
    assert set(commands) == {"worker", "feed"}
    commands["worker"] = commands["worker"].replace("6066", str(port))
    running = [
        subprocess.Popen(shlex.split(command), cwd=ROOT, env=environment)
        for command in commands.values()
    ]
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not (rows := _rows(f"http://127.0.0.1:{port}/tables/carriers")):
            assert time.monotonic() < deadline, "no carrier was counted"
            assert all(process.poll() is None for process in running)
            time.sleep(0.2)
        assert {"departed", "cancelled", "landed", "arrival_delay_sum"} <= set(rows[0]["value"])
        asyncio.run(_look_at_the_board(f"http://127.0.0.1:{port}/board"))
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        codes = [process.wait(timeout=10) for process in running]
    assert codes == [0, 0]
