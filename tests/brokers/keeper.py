"""Ends processes and removes folders when the process that named them is gone, however it ended.

A test run may be killed, and its brokers would live on. So it starts one keeper, which reads lines of JSON from its
standard input, such as ``{"pid": 1}``, ``{"folder": "…"}`` or ``{"forget": 1}``; when the input ends, whatever is
still named is ended and removed. Standard library only: it runs as a plain script.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["keep", "let_go"]

TERM_S_MAX = 5.0
"""How long a process may take to end by itself."""

_keeper: subprocess.Popen[str] | None = None


def keep(*, pid: int | None = None, folder: Path | None = None) -> None:
    """Name a process of ours, or a temporary folder, that must not outlive this process."""
    _tell("pid", pid)
    _tell("folder", None if folder is None else str(folder))


def let_go(what: int | Path) -> None:
    """Take back what was named: the process has ended, the folder is removed."""
    _tell("forget", what if isinstance(what, int) else str(what))


def _tell(word: str, what: int | str | None) -> None:
    if what is None:
        return
    global _keeper
    if _keeper is None or _keeper.poll() is not None:
        command = [sys.executable, "-I", __file__]
        # in a session of its own: Ctrl-C is for the tests, and they may still need their broker
        _keeper = subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, start_new_session=True
        )
    assert _keeper.stdin is not None
    _keeper.stdin.write(json.dumps({word: what}) + "\n")
    _keeper.stdin.flush()


def _main() -> None:
    pids: list[int] = []
    folders: list[str] = []
    for line in sys.stdin:
        for word, what in json.loads(line).items():
            if word == "pid":
                pids.append(what)
            elif word == "folder":
                folders.append(what)
            else:
                pids[:] = [pid for pid in pids if pid != what]
                folders[:] = [folder for folder in folders if folder != what]
    for kind in (signal.SIGCONT, signal.SIGTERM):
        for pid in pids:
            _signal(pid, kind)
    patience = time.monotonic() + TERM_S_MAX
    while any(_signal(pid, 0) for pid in pids) and time.monotonic() < patience:
        time.sleep(0.05)
    for pid in pids:
        _signal(pid, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _signal(pid: int, kind: int) -> bool:
    try:
        os.kill(pid, kind)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    _main()
