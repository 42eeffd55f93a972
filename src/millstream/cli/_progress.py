"""A bar on stderr for what takes long, with a rate; nothing for what does not."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress, TaskID

__all__ = ["Bar"]

QUIET_S = 0.5
"""Work that is done in this time shows no bar."""
LINE_INTERVAL_S = 5.0
"""Between two lines, where stderr is no terminal."""


class Bar:
    """Shows how far work has come; a context manager."""

    def __init__(self, title: str, unit: str = "records") -> None:
        self.title = title
        self.unit = unit
        self._began = time.monotonic()
        self._done = 0
        self._said = self._began
        self._rich: tuple[Progress, TaskID] | None = None
        self.shown = False
        """Whether there was anything to see."""

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich is not None:
            self._rich[0].stop()

    @property
    def rate(self) -> float:
        """Units a second, so far."""
        return self._done / max(time.monotonic() - self._began, 1e-6)

    @property
    def elapsed_s(self) -> float:
        """How long it has taken, so far."""
        return time.monotonic() - self._began

    def update(self, done: int, total: int | None) -> None:
        """Tell how much is done; ``total`` is None where nobody knows."""
        now = time.monotonic()
        self._done = done
        if now - self._began < QUIET_S:
            return
        if sys.stderr.isatty():
            self._draw(done, total)
        elif now - self._said >= LINE_INTERVAL_S:
            self._said = now
            of = "" if total is None else f" of {total:,}"
            click.echo(f"{self.title}: {done:,}{of} {self.unit}, {self.rate:,.0f}/s", err=True)
            self.shown = True

    def _draw(self, done: int, total: int | None) -> None:
        if self._rich is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[count]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            progress.start()
            self._rich = progress, progress.add_task(self.title, total=total, count="")
            self.shown = True
        progress, task = self._rich
        of = "" if total is None else f" of {total:,}"
        count = f"{done:,}{of} {self.unit}, {self.rate:,.0f}/s"
        progress.update(task, completed=done, total=total, count=count)
