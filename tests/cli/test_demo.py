"""``millstream demo``: it sells, shows it, and leaves nothing behind."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.cli.terminal import MILLSTREAM, poll

if TYPE_CHECKING:
    from tests.cli.terminal import Terminal


def test_demo(terminal: Terminal) -> None:
    """It needs no program of one's own; what it says to try works; Ctrl-C ends it within 2 s."""
    demo = terminal.start("demo")
    demo.until("ready in")
    pages = demo.until(r"Look at +(\S+)/tables")[1]
    folder = Path(demo.until(r"Try +cd (\S+)")[1])

    def rows(table: str) -> list[dict[str, Any]]:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{pages}/tables/{table}", timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["rows"]
            return found

    poll(lambda: rows("accounts") and rows("sold-per-minute"), what="something is sold")
    asked = subprocess.run(
        [*MILLSTREAM, "table", "accounts", str(rows("accounts")[0]["key"])],
        cwd=folder,
        capture_output=True,
        check=True,
    )
    assert json.loads(asked.stdout)["orders"] > 0
    code, took_s = demo.end()
    assert code == 0
    assert took_s < 2
    assert not folder.exists()
