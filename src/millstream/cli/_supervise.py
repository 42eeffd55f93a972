"""The parent of several workers, or of one that follows the code: starts them, keeps them, ends them.

Each worker's stdin is a pipe from here. Closing it asks the worker to finish, on any system, and it closes by
itself when this process dies: no worker outlives its supervisor by more than a moment. Workers are in a session
of their own, so that Ctrl-C reaches them once, by way of the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream.cli._failure import CONFIGURATION, INTERRUPTED, note
from millstream.cli._serve import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from millstream.cli._watch import SourceWatch

__all__ = ["Supervisor", "program"]

POLL_S = 0.05
STOP_S_MAX = 1.9
"""After this a worker that has not ended is killed."""
PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Before a worker that died is started again, the first time, the second time, …"""
STEADY_S = 60.0
"""A worker that ran so long begins with the first pause again."""


def program() -> list[str]:
    """How this process was started, without the arguments that are ours."""
    own = len(sys.argv) - 1
    words = sys.orig_argv[: len(sys.orig_argv) - own] if own else list(sys.orig_argv)
    return [sys.executable, *words[1:]]


@dataclass(slots=True)
class _Child:
    number: int
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    due: float | None = None
    """When to start it (again); None while it runs, or waits for a change of the code."""


class Supervisor:
    """Runs one process for each command until it is told to stop."""

    def __init__(self, commands: Sequence[Sequence[str]], *, watch: SourceWatch | None) -> None:
        self._children = [
            _Child(number, list(command), due=0.0) for number, command in enumerate(commands, 1)
        ]
        self._watch = watch
        self._stopping = threading.Event()

    def run(self) -> int:
        """Return when the workers have ended: 0, or the code of one that failed as it ended, or cannot begin."""
        code: int | None = None
        ended = 0
        with self._signals():
            try:
                while code is None and not self._stopping.wait(POLL_S):
                    code = self._turn()
                if code is None:
                    note("stopping: what is finished is committed; Ctrl-C again exits at once")
            finally:
                ended = self._end(self._children)
        return code or ended

    def _turn(self) -> int | None:
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                code = self._ended(child)
                if code is not None:
                    return code
            if child.process is None and child.due is not None and time.monotonic() >= child.due:
                self._start(child)
        if self._watch is not None and (changed := self._watch.changed()):
            self._restart(changed)
        return None

    # children -------------------------------------------------------------------------------------

    def _start(self, child: _Child) -> None:
        own: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            own = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        child.process = subprocess.Popen(child.command, stdin=subprocess.PIPE, **own)
        child.started, child.due = time.monotonic(), None
        if len(self._children) > 1:
            port = (
                child.command[child.command.index("--web-port") + 1]
                if "--web-port" in child.command
                else None
            )
            at = f", port {port}" if port else ""
            print(f"worker {child.number}: process {child.process.pid}{at}", flush=True)

    def _ended(self, child: _Child) -> int | None:
        """Decide what becomes of a worker that is gone; a code ends the others as well."""
        assert child.process is not None
        code, pid = child.process.returncode, child.process.pid
        self._close(child)
        child.process = None
        who = f"worker {child.number} (process {pid})"
        if self._watch is not None and code > 0:
            note(f"{who} has ended, see above; waiting for a change of the code")
            return None
        if code == CONFIGURATION:
            return code
        if time.monotonic() - child.started >= STEADY_S:
            child.failures = 0
        pause_s = PAUSES_S[min(child.failures, len(PAUSES_S) - 1)]
        child.failures += 1
        child.due = time.monotonic() + pause_s
        note(f"{who} {_cause(code)}: starting it again in {pause_s:g} s")
        return None

    def _restart(self, changed: list[Path]) -> None:
        names = [
            str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
            for path in changed
        ]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        note(f"{', '.join(names[:3])}{more} changed: starting again")
        self._end(self._children)
        for child in self._children:
            child.process, child.due, child.failures = None, 0.0, 0

    @staticmethod
    def _close(child: _Child) -> None:
        if child.process is not None and child.process.stdin is not None:
            with contextlib.suppress(OSError):
                child.process.stdin.close()

    def _end(self, children: Sequence[_Child]) -> int:
        """Have workers finish, and kill those that do not; 0, or the highest code of one that failed."""
        running = [child for child in children if child.process is not None]
        for child in running:
            self._close(child)
        deadline = time.monotonic() + STOP_S_MAX
        for child in running:
            assert child.process is not None
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        return max([0, *(c.process.returncode for c in running if c.process is not None)])

    # signals --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self._on_signal) for sig in SIGNALS}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def _on_signal(self, number: int, _: object) -> None:
        if self._stopping.is_set():
            for child in self._children:
                if child.process is not None and child.process.returncode is None:
                    child.process.kill()
            os._exit(INTERRUPTED if number == signal.SIGINT else 128 + number)
        self._stopping.set()


def _cause(code: int) -> str:
    if code >= 0:
        return f"has ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
