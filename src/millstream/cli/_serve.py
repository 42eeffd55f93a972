"""One worker, from the first line that it prints to a graceful end.

The first Ctrl-C (or SIGTERM) asks the worker to finish: events in progress end, what is finished is
committed, the group is left. The second one ends the process on the spot, as ``kill -9`` would, which harms
nothing. So does a timer, where finishing takes longer than a user waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from millstream.cli._failure import INTERRUPTED, note
from millstream.cli._progress import Bar
from millstream.worker import tune_garbage_collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from millstream.agents import Topic
    from millstream.app import App
    from millstream.worker import Worker

__all__ = ["SIGNALS", "serve"]

STOP_S_MAX = 1.8
"""Finishing takes no longer; with what comes before and after, a worker ends within 2 s."""
CHECKING = "reading what is stored, as its type has changed"
IDLE_S = 2.0
"""A worker that has done nothing for so long says what it waits for."""
SIGNALS: list[signal.Signals] = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)
]
"""What asks for the end; the last one is Ctrl-Break on Windows."""
_STARTED = time.monotonic()


def serve(
    app: App,
    *,
    web: bool,
    number: int | None = None,
    several: bool = False,
    welcome: Callable[[str], str] | None = None,
) -> int:
    """Run a worker until it is told to stop.

    Args:
        number: which one it is of those that a supervisor has started; None where it is alone.
        several: whether there are others beside it.
        welcome: gives what is said once it is ready, from the address of its pages.
    """
    tune_garbage_collector()
    serving = _Serving(app, number=number, several=several, welcome=welcome)
    with asyncio.Runner() as runner:
        return runner.run(serving.run(web=web))


class _Serving:
    """A running worker, and what it says on the terminal."""

    def __init__(
        self,
        app: App,
        *,
        number: int | None,
        several: bool,
        welcome: Callable[[str], str] | None,
    ) -> None:
        self._app = app
        self._number = number
        self._several = several
        self._welcome = welcome
        self._stop = asyncio.Event()
        self._asked = False
        """Whether somebody has asked for the end; set at once, from any thread."""
        self._up = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[Any] | None = None

    async def run(self, *, web: bool) -> int:
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        with self._signals():
            try:
                async with self._app.running(worker=True, web=web):
                    self._up = True
                    await self._inside()
            except asyncio.CancelledError:
                if not self._stop.is_set():
                    raise
        return 0

    async def _inside(self) -> None:
        runtime = self._app.runtime
        assert runtime is not None
        worker = runtime.worker
        assert worker is not None
        if self._number in (None, 1):
            click.echo(self._headline())
        if worker.plan.counts:
            await self._until_ready(worker)
        if not self._stop.is_set():
            self._say_ready(runtime.web_url)
            if self._welcome is not None:
                click.echo(self._welcome(runtime.web_url))
            await self._hint(worker)
        await self._stop.wait()
        if self._number is None:
            note("stopping: what is finished is committed; Ctrl-C again exits at once")

    # what is said ---------------------------------------------------------------------------------

    def _headline(self) -> str:
        runtime = self._app.runtime
        assert runtime is not None
        topology = runtime.topology
        agents = sum(not agent.internal for agent in topology.agents.values())
        facts = [
            _counted(agents, "agent"),
            _counted(len(topology.tables), "table"),
            _counted(sum(topology.shard_counts()), "shard"),
            self._app.settings.processing_guarantee.replace("_", " "),
            runtime.transport.url,
        ]
        return f"{click.style(self._app.id, bold=True)}: {', '.join(facts)}"

    def _say_ready(self, url: str) -> None:
        who = f"worker {self._number} ready" if self._several else "ready"
        parts = [f"{who} in {_age_s():.1f} s", *([url] if url else [])]
        if not self._several:
            parts.append("Ctrl-C stops; nothing is lost")
        click.echo("    ".join(parts))

    async def _until_ready(self, worker: Worker) -> None:
        progress = worker.options.progress
        ready = asyncio.ensure_future(worker.ready.wait())
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            with Bar("bringing tables up to date") as bar, Bar(CHECKING, "values") as checking:
                while not (ready.done() or stopped.done()):
                    await asyncio.wait(
                        (ready, stopped), timeout=0.1, return_when=asyncio.FIRST_COMPLETED
                    )
                    if progress.records_total:
                        bar.update(progress.records_done, progress.records_total)
                    if progress.values_total:
                        checking.update(progress.values_done, progress.values_total)
                shown, rate, took_s = bar.shown, bar.rate, bar.elapsed_s
        finally:
            ready.cancel()
            stopped.cancel()
        if shown and not self._stop.is_set():
            count = progress.records_done
            note(f"tables are up to date: {count:,} records in {took_s:.1f} s, {rate:,.0f}/s")

    async def _hint(self, worker: Worker) -> None:
        """Tell an idle user how to feed the worker, once."""
        sources = self._own_sources()
        patterns = [g.pattern for g in self._app.topics.groups if g.pattern is not None]
        if self._number not in (None, 1) or not (sources or patterns):
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), IDLE_S)
        if self._stop.is_set() or worker.committer.epochs or worker.in_progress():
            return
        if not sources:
            note(f"waiting for records in topics that match {' or '.join(patterns)}")
            return
        names = [topic.name for topic in sources]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        note(
            f"waiting for records in {listed}; to send one:"
            f" millstream send {names[0]} '{_example(sources[0])}'"
        )

    def _own_sources(self) -> list[Topic[Any]]:
        made = {
            sink
            for agent in self._app.topology.agents.values()
            for sink in (agent.sinks if not agent.internal else ())
        }
        read = self._app.topology.sources
        found = [topic for name, topic in self._app.topics.items() if name in read]
        outer = [topic for topic in found if not topic.internal]
        return [topic for topic in outer if topic.name not in made] or outer

    # stopping -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if self._number is not None:
            threading.Thread(target=self._follow_supervisor, daemon=True).start()
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
        if self._asked:
            os._exit(INTERRUPTED if number == signal.SIGINT else 128 + number)
        self._request_stop()

    def _follow_supervisor(self) -> None:
        """Stop when the supervisor closes our stdin, also by dying."""
        with contextlib.suppress(OSError):
            while os.read(0, 1):
                pass
        self._request_stop()

    def _request_stop(self) -> None:
        self._asked = True
        timer = threading.Timer(STOP_S_MAX, _give_up)
        timer.daemon = True
        timer.start()
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._stop.set()
        if not self._up and self._main is not None:
            self._main.cancel()


def _give_up() -> None:
    with contextlib.suppress(OSError, ValueError):
        os.write(2, b"stopped in the middle of an event: what was not committed is done again\n")
    os._exit(0)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _age_s() -> float:
    """How long ago this process was started; since this module was loaded where nobody tells."""
    try:
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return max(0.0, uptime - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _STARTED


def _example(topic: Topic[Any]) -> str:
    """A value that the topic takes, as far as its type tells."""
    import msgspec

    if topic.value_codec.name not in ("json", "msgpack"):
        return "1" if topic.value_codec.name not in ("str", "raw") else "hello"
    try:
        info = msgspec.inspect.type_info(topic.value_type)
        return msgspec.json.encode(_sample(info)).decode().replace("'", "")
    except Exception:  # a type that only its codec knows
        return "{}"


def _sample(info: Any) -> Any:
    import msgspec

    kinds = msgspec.inspect
    fields = getattr(info, "fields", None)
    if fields is not None:
        return {f.encode_name: _sample(f.type) for f in fields if f.required}
    if isinstance(info, kinds.StrType):
        return "ada"
    if isinstance(info, kinds.BoolType):
        return True
    if isinstance(info, (kinds.IntType, kinds.FloatType)):
        return 1 if isinstance(info, kinds.IntType) else 1.5
    if isinstance(info, kinds.DateTimeType):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if isinstance(info, kinds.LiteralType):
        return info.values[0]
    if isinstance(info, kinds.EnumType):
        return next(iter(info.cls)).value
    if isinstance(info, kinds.UnionType):
        return _sample(info.types[0])
    if isinstance(info, (kinds.ListType, kinds.SetType, kinds.FrozenSetType, kinds.TupleType)):
        return []
    return {}
