"""A worker of the crash program on Kafka, as a process that is killed, stopped and woken."""

from __future__ import annotations

import signal
import time
import uuid
from typing import TYPE_CHECKING

from tests.crash.forked import Forked
from tests.crash.kafka_program import SESSION_S, main

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Worker"]

STOPPED_S = 1.5 * SESSION_S


class Worker:
    """A worker process, and what it wrote.

    Args:
        folder: where it keeps its state, in ``state``, and writes its log.
        arguments: the broker, and the prefix of its names.
        slot: its own, or that of a dead one.
        web: whether it answers over HTTP.
        point: of `millstream.hooks`, where it kills itself when it is there for the ``count``-th time.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str],
        slot: str,
        *,
        web: bool,
        point: str = "",
        count: int = 1,
    ) -> None:
        self.slot, self.point = slot, point
        self.stopped_until = 0.0
        self.ended = False
        self.mark = folder / f"mark-{uuid.uuid4().hex}"
        self.errors = folder / f"worker-{slot}.log"
        self.state_dir = folder / "state"
        more = [slot, "web" if web else "no-web"]
        if point:
            more += [point, str(count), str(self.mark)]
        self.child = Forked(
            main,
            *arguments,
            *more,
            errors=self.errors,
            environment={"MILLSTREAM_STATE_DIR": str(self.state_dir)},
        )

    def gone(self) -> bool:
        """Whether it has ended."""
        return self.child.poll() is not None

    def stop(self) -> None:
        """Stop it beyond its session."""
        self.stopped_until = time.monotonic() + STOPPED_S
        self.child.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self.stopped_until = 0.0
        self.tell(signal.SIGCONT)

    def tell(self, number: int) -> None:
        """Send a signal, if it lives."""
        self.child.send_signal(number)

    def end(self, number: int) -> None:
        """End it, and see that it did not end by itself before, in another way than by being killed.

        Raises:
            AssertionError: it did; with what it wrote.
        """
        self.ended = True
        self.tell(number)
        self.wake()
        code = self.child.wait(60)
        allowed = {0, -signal.SIGTERM} if number == signal.SIGTERM else set()
        if code not in {-signal.SIGKILL, *allowed}:
            said = self.errors.read_text(errors="replace")[-6_000:]
            raise AssertionError(f"worker {self.slot} ended with {code}:\n{said}")
