"""``millstream worker``: one worker, several of them, or one that follows the code."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from millstream.cli._failure import complain
from millstream.cli._session import Session, command
from millstream.errors import AddressInUseError, MillstreamError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["worker"]

_LEVELS = ["debug", "info", "warning", "error", "critical"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCall:
    """What ``millstream worker`` was called with."""

    web_port: int | None
    web_host: str | None
    without_web: bool
    log_level: str
    processes: int
    reload: bool


@command("worker")
@click.option(
    "--web-port",
    type=click.IntRange(1, 65_535),
    help="Where tables and pages are served; 6066 or the next free port where left out.",
)
@click.option("--web-host", help="The address to listen on; 127.0.0.1 where left out.")
@click.option("--without-web", is_flag=True, help="Serve nothing over HTTP.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Run N workers, each a process.",
)
@click.option("--reload", is_flag=True, help="Start again when the code changes.")
@click.option(
    "-l",
    "--log-level",
    type=click.Choice(_LEVELS, case_sensitive=False),
    default="warning",
    help="What goes to the log on stderr (warning).",
)
@click.option(
    "--child", type=int, hidden=True, help="Number of a worker that a supervisor started."
)
def worker(
    session: Session,
    web_port: int | None,
    web_host: str | None,
    without_web: bool,
    processes: int,
    reload: bool,
    log_level: str,
    child: int | None,
) -> int:
    """Run the app: process records until Ctrl-C."""
    call = WorkerCall(
        web_port=web_port,
        web_host=web_host,
        without_web=without_web,
        log_level=log_level,
        processes=processes,
        reload=reload,
    )
    if child is None and (processes > 1 or reload):
        return _supervise(session, call)
    return _work(session, call, child)


def _work(session: Session, call: WorkerCall, child: int | None) -> int:
    import logging

    from millstream.cli._serve import serve

    logging.basicConfig(
        level=call.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    app = session.app()
    of_several = child if call.processes > 1 else None
    app.settings = dataclasses.replace(
        app.settings,
        slot=_numbered(app.settings.slot, of_several),
        instance_id=_numbered(app.settings.instance_id, of_several),
        web_port=call.web_port or app.settings.web_port,
        web_host=call.web_host or app.settings.web_host,
    )
    return serve(
        app,
        web=app.settings.web and not call.without_web,
        number=child,
        several=call.processes > 1,
    )


def _numbered(name: str, number: int | None) -> str:
    """One of several workers' own name."""
    return f"{name}-{number}" if name and number is not None else name


def _supervise(session: Session, call: WorkerCall) -> int:
    from millstream.cli._supervise import Supervisor, program
    from millstream.cli._watch import SourceWatch, source_folders

    shared = [] if session.reference is None else ["-A", session.reference]
    shared += ["--debug"] if session.debug else []
    shared += ["worker", "--log-level", call.log_level, "--processes", str(call.processes)]
    shared += ["--without-web"] if call.without_web else []
    shared += [] if call.web_host is None else ["--web-host", call.web_host]
    ports = _ports(session, call)
    commands = []
    for number in range(1, call.processes + 1):
        port = next(ports)
        web = [] if port is None else ["--web-port", str(port)]
        commands.append([*program(), *shared, *web, "--child", str(number)])
    watch = SourceWatch(source_folders(session.reference, Path.cwd())) if call.reload else None
    return Supervisor(commands, watch=watch).run()


def _ports(session: Session, call: WorkerCall) -> Iterator[int | None]:
    """A port for each worker, counted up from one that was asked for; None where it finds a free one by itself.

    Raises:
        AddressInUseError: a port that was asked for, or one after it, is taken.
    """
    if call.processes == 1 or call.without_web:
        while True:
            yield call.web_port
    port, host, web = call.web_port, call.web_host, True
    try:
        settings = session.app().settings
    except MillstreamError as exc:
        if not call.reload:
            raise
        complain(str(exc))  # the workers say so as well, and wait for a change of the code
    else:
        port, host, web = port or settings.web_port, host or settings.web_host, settings.web
    if port is None or not web:
        while True:
            yield None
    while True:
        if not is_free(host or "127.0.0.1", port):
            raise AddressInUseError(host or "127.0.0.1", port)
        yield port
        port += 1


def is_free(host: str, port: int) -> bool:
    """Whether nobody listens on a port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError):
            return False
    return True
