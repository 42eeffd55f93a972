"""The command line as a user has it: processes in a directory, and what they print."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["APP", "MILLSTREAM", "Running", "Terminal", "children_of", "cpu_s", "poll"]

MILLSTREAM = [sys.executable, "-m", "millstream"]
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
DEADLINE_S = 60.0
"""For what takes well below a second on a machine at rest, and much longer on one with other work."""

APP = '''\
import msgspec

import millstream as ms

app = ms.App("shop", web=False)


class Order(msgspec.Struct):
    account: str
    amount: float


orders = app.topic("orders", value=Order, key_from="account")
totals = app.table("totals", key=str, value=float, default=0.0)


@app.agent(orders)
async def count(stream: ms.Stream[Order]) -> None:
    """Totals per account."""
    async for order in stream:
        if order.amount < 0:
            raise ValueError("negative")
        totals[order.account] += order.amount
'''


def poll(condition: Callable[[], object], *, what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it did not in time.
    """
    until = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"after {deadline_s:g} s still not: {what}")
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Processes that a process has started, on Linux."""
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def cpu_s(pid: int) -> float:
    """CPU time of a process, of those that it runs, and of those that it has seen end; on Linux.

    Other work on the machine makes a process slow, and changes this little.
    """
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
    own = sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_s(child) for child in children_of(pid))


class Running:
    """A command that runs, with what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (process.stdout, process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: subprocess._FILE) -> None:
        for line in stream:  # type: ignore[union-attr]
            self._lines.append(str(line))

    @property
    def output(self) -> str:
        """All that it has printed, on both streams."""
        return "".join(self._lines)

    def until(self, pattern: str, *, times: int = 1) -> re.Match[str]:
        """Wait for it to print something; the last match."""

        def found() -> bool:
            if len(re.findall(pattern, self.output)) >= times:
                return True
            if self.process.poll() is not None:
                for reader in self._readers:
                    reader.join(1)
                assert len(re.findall(pattern, self.output)) >= times, (
                    f"ended with {self.process.returncode}, without {pattern!r}:\n{self.output}"
                )
            return False

        try:
            poll(found, what=f"printed {pattern!r}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}\n{self.output}") from None
        return list(re.finditer(pattern, self.output))[-1]

    def end(self, number: int = signal.SIGINT) -> tuple[int, float]:
        """Send a signal and wait: exit code, and seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        took_s = time.monotonic() - began
        for reader in self._readers:
            reader.join(1)
        return code, took_s

    def wait(self) -> int:
        """Wait for its end by itself; the exit code."""
        code = self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(1)
        return code


class Terminal:
    """A directory in which commands run; what still runs at the end is killed."""

    def __init__(
        self,
        directory: Path,
        *,
        millstream: list[str] = MILLSTREAM,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self._millstream = millstream
        kept = {name: v for name, v in os.environ.items() if not name.startswith("MILLSTREAM_")}
        self._environment = {**kept, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._started: list[Running] = []

    def start(self, *arguments: str, command: list[str] | None = None) -> Running:
        """Start ``millstream`` with these arguments, in a session of its own."""
        process = subprocess.Popen(
            [*(command or self._millstream), *arguments],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
        )
        running = Running(process)
        self._started.append(running)
        return running

    def run(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``millstream`` with these arguments to its end."""
        return subprocess.run(
            [*self._millstream, *arguments],
            cwd=self.directory,
            env=self._environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=DEADLINE_S,
            check=False,
        )

    def look(
        self, *arguments: str, typed: str = "", until: str = "", interrupt: bool = False
    ) -> tuple[int, str]:
        """Run ``millstream`` as a person sees it, on a terminal of 120 columns.

        Args:
            typed: what the person types as soon as ``until`` is to be read.
            interrupt: press Ctrl-C then.

        Returns:
            The exit code, and all that was shown, without colours and movements.
        """
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            [*self._millstream, *arguments],
            cwd=self.directory,
            env={**self._environment, "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + DEADLINE_S
        acted = not (typed or interrupt)
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(OSError):  # the other end is closed
                    if select.select([ours], [], [], 0.05)[0]:
                        shown += (data := os.read(ours, 65_536))
                        if data:
                            continue
                if not acted and re.search(until, shown.decode(errors="replace")):
                    acted = True
                    os.write(ours, typed.encode())
                    if interrupt:
                        process.send_signal(signal.SIGINT)
                if process.poll() is not None:
                    break
            else:
                raise AssertionError(f"after {DEADLINE_S:g} s still runs, and shows:\n{shown!r}")
        finally:
            process.kill()
            process.wait(DEADLINE_S)
            os.close(ours)
        text = _ESCAPES.sub("", shown.decode(errors="replace"))
        return process.returncode, text.replace("\r\n", "\n")

    def close(self) -> None:
        """Kill what was started here and still runs, with the processes that it started."""
        for running in self._started:
            process = running.process
            for pid in [*children_of(process.pid), process.pid]:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            process.wait(DEADLINE_S)
            for reader in running._readers:
                reader.join(5)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
