"""A process that the tests start, kill, stop and start again, with its output in a file."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import TYPE_CHECKING

from tests.brokers.keeper import keep, let_go

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["NotStartedError", "Process"]

START_S_MAX = 60.0
END_S_MAX = 20.0
TAIL_LINES = 40
_POLL_S = 0.02


class NotStartedError(Exception):
    """The process ended, or did not say in time that it is ready; the message ends with its last lines."""


class Process:
    """One process; its calls block, so a test with an event loop makes the slow ones in a thread.

    Args:
        command: Program and arguments.
        log: The file that gets its output; a later start writes on.
        ready: What stands in its output once it is ready.
        stdin: Its input, as ``subprocess`` names it; none otherwise.
        cwd: Where, if not here.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        ready: str,
        stdin: int = subprocess.DEVNULL,
        cwd: Path | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        self._ready = ready
        self._stdin = stdin
        self._cwd = cwd
        self._popen: subprocess.Popen[bytes] | None = None
        self._from = 0

    @property
    def pid(self) -> int:
        """The process id; an error when it is not running."""
        return self._running().pid

    @property
    def alive(self) -> bool:
        """Whether it runs (a stopped one does)."""
        return self._popen is not None and self._popen.poll() is None

    def launch(self) -> None:
        """Start it, and leave the waiting to ``wait_until_ready``."""
        assert not self.alive, "it is running"
        with self.log.open("ab") as output:
            self._from = output.tell()
            self._popen = subprocess.Popen(
                self.command,
                stdin=self._stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._cwd,
                start_new_session=True,
            )
        keep(pid=self._popen.pid)

    def wait_until_ready(self) -> None:
        """Wait until it has said that it is ready.

        Raises:
            NotStartedError: it ended, or 60 s have passed; it is killed then.
        """
        patience = time.monotonic() + START_S_MAX
        while self._ready not in self._said():
            if not self.alive or time.monotonic() > patience:
                why = "did not get ready in time" if self.alive else "ended"
                self.kill()
                raise NotStartedError(
                    f"{' '.join(self.command[-2:])} {why}. Its last lines:\n{self.tail()}"
                )
            time.sleep(_POLL_S)

    def start(self) -> None:
        """Start it and wait until it is ready."""
        self.launch()
        self.wait_until_ready()

    def kill(self) -> None:
        """End it at once (SIGKILL); nothing happens when it does not run."""
        self._end(signal.SIGKILL)

    def end(self) -> None:
        """Ask it to end (SIGTERM) and wait; after 20 s it is killed."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Stop it where it is (SIGSTOP): its connections stay open, and nothing answers."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after ``pause``."""
        self._running().send_signal(signal.SIGCONT)

    def tail(self, lines: int = TAIL_LINES) -> str:
        """Return the last lines of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._popen is not None, "it was not started"
        assert self._popen.poll() is None, f"it has ended:\n{self.tail()}"
        return self._popen

    def _said(self) -> str:
        with self.log.open("rb") as output:
            output.seek(self._from)
            return output.read().decode(errors="replace")

    def _end(self, kind: signal.Signals) -> None:
        if self._popen is None:
            return
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGCONT)  # a stopped one does not see SIGTERM
            self._popen.send_signal(kind)
            try:
                self._popen.wait(END_S_MAX)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        let_go(self._popen.pid)
