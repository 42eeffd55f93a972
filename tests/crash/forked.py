"""Worker processes that are forked from one that has imported what they need: imports are most of a start's CPU.

All of them hash strings alike. Workers that do not are those of ``tests/integration`` and ``tests/cli``, which start as
programs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["Forked"]

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "tests.crash.program",
        "tests.crash.kafka_program",
        # what workers import when they start
        "millstream.app._runtime",
        "millstream.state.rocks",
        "millstream.transports.kafka",
        "millstream.transports.local",
        "millstream.web",
    ]
)
_lock = threading.Lock()
"""`multiprocessing` asks after all processes whenever it starts one, and threads may not ask at one time."""
_POLL_S = 0.01


class Forked:
    """A process that runs a function of strings.

    Args:
        main: of a module that the process can import.
        arguments: of it.
        errors: the file to which its standard error is added; its output goes nowhere.
        environment: variables, beside those of the tests.
    """

    def __init__(
        self,
        main: Callable[..., None],
        *arguments: str,
        errors: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # a daemon: it does not outlive the tests
        self._process = _FORKS.Process(
            target=_run,
            args=(main, arguments, str(errors), {**os.environ, **(environment or {})}),
            daemon=True,
        )
        with _lock:
            self._process.start()

    def poll(self) -> int | None:
        """The exit code, below 0 the signal that has ended it; None while it lives."""
        with _lock:
            return self._process.exitcode

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; the exit code.

        Raises:
            TimeoutError: it still lives.
        """
        until = time.monotonic() + timeout_s
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                raise TimeoutError(f"process {self.pid} lives after {timeout_s:g} s")
            time.sleep(_POLL_S)
        return code

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        """Send a signal, if it lives."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                os.kill(self.pid, number)


def _run(
    main: Callable[..., None],
    arguments: tuple[str, ...],
    errors: str,
    environment: Mapping[str, str],
) -> None:
    os.environ.update(environment)
    for path, stream in ((os.devnull, 1), (errors, 2)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(opened, stream)
        os.close(opened)
    main(*arguments)
