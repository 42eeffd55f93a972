"""Programs that run beside the tests against a broker, hear and speak, and may be killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.brokers.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Self

__all__ = ["Program", "Speaker", "say"]

DEADLINE_S = 30.0
_POLL_S = 0.02
_ROOT = Path(__file__).resolve().parents[2]


def say(**facts: object) -> None:
    """Tell whoever started this program something, in one line of JSON."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


class Speaker(Process):
    """A process that reads lines from its input, and says what happens in lines of JSON.

    What else it prints is in ``log``, and in the message of a failure.

    Args:
        command: Program and arguments.
        log: The file that gets its output.
        ready: The word that it says when it is ready.
    """

    def __init__(self, command: Sequence[str], *, log: Path, ready: str = "ready") -> None:
        super().__init__(command, log=log, ready=f'"{ready}":', stdin=subprocess.PIPE, cwd=_ROOT)
        self._heard = 0

    def tell(self, line: str) -> None:
        """Give it a line to read."""
        stdin = self._running().stdin
        assert stdin is not None
        stdin.write(f"{line}\n".encode())
        stdin.flush()

    async def hear(self, word: str, *, timeout_s: float = DEADLINE_S) -> Any:
        """Return the value of the next line that says ``word``; the lines before it are passed over.

        Raises:
            AssertionError: it ended, or the time has passed, without such a line.
        """
        patience = time.monotonic() + timeout_s
        while True:
            alive = self.alive
            for line in self._new_lines():
                facts = _facts(line)
                if word in facts:
                    return facts[word]
            assert alive, f"it ended before {word!r}:\n{self.tail()}"
            assert time.monotonic() < patience, f"it did not say {word!r}:\n{self.tail()}"
            await asyncio.sleep(_POLL_S)

    def _new_lines(self) -> Iterator[str]:
        with self.log.open("rb") as output:
            output.seek(self._heard)
            for line in output:
                if not line.endswith(b"\n"):
                    return
                self._heard += len(line)
                yield line.decode(errors="replace")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Program(Speaker):
    """A Python module of the tests' own that runs as a process, with ``python -m``; it speaks with ``say``.

    Args:
        module: Its name, such as ``tests.brokers.echo``.
        arguments: What it finds in ``sys.argv``.
        log: The file that gets its output.
        ready: The word that it says when it is ready.
    """

    def __init__(self, module: str, *arguments: str, log: Path, ready: str = "ready") -> None:
        super().__init__([sys.executable, "-m", module, *arguments], log=log, ready=ready)


def _facts(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    return {}
