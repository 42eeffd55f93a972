"""Serving an ASGI application inside the event loop that is running: uvicorn, without its process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import uvicorn

from millstream.errors import AddressInUseError, InternalError, SettingError
from millstream.web._guard import HostGuard, is_loopback

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator, Iterable

    from starlette.types import ASGIApp

__all__ = ["DEFAULT_PORT", "Serving", "serve"]

DEFAULT_PORT = 6066
PORTS_TRIED = 100
"""From the default port upwards, before any free one is taken."""
BACKLOG = 256
STOP_TIMEOUT_S = 1
"""How long requests may take that are being answered when the server stops."""


@dataclass(frozen=True, slots=True)
class Serving:
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The address for a browser on this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


class _Server(uvicorn.Server):
    """Leaves signals to the process that it lives in, and tells when it has started."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.begun = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.begun.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@contextlib.asynccontextmanager
async def serve(
    app: ASGIApp,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    default_port: int = DEFAULT_PORT,
    hosts: Iterable[str] = (),
) -> AsyncIterator[Serving]:
    """Serve inside the block; the port is bound when it begins, and free when it ends.

    At the end, streams are closed and other requests have `STOP_TIMEOUT_S` to finish.

    Args:
        port: 0 takes any free one; None takes ``default_port`` or the next free one.
        hosts: names under which a server on the loopback interface may be asked, besides localhost.

    Raises:
        AddressInUseError: ``port`` was given and is taken.
        SettingError: the host is not an address of this machine.
    """
    bound = _bind(host, port, default_port)
    closing = getattr(getattr(app, "state", None), "closing", None)
    guarded: Any = HostGuard(app, hosts) if is_loopback(host) else app
    config = uvicorn.Config(
        guarded,
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="wsproto" if importlib.util.find_spec("wsproto") else "auto",
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]), name="web")
    task.add_done_callback(lambda _: server.begun.set())  # it may have failed
    try:
        await server.begun.wait()
        if task.done():
            task.result()
            raise InternalError("the web server ended before it had started")
        yield Serving(host, bound.getsockname()[1])
    finally:
        if closing is not None:
            closing.close()
        server.should_exit = True
        try:
            await asyncio.shield(task)
        finally:
            bound.close()


def _bind(host: str, port: int | None, default_port: int) -> socket.socket:
    if port is not None:
        tried = [port]
    else:
        tried = [*range(default_port, min(default_port + PORTS_TRIED, 65_536)), 0]
    for number in tried:
        try:
            return _listen(host, number)
        except PermissionError as exc:
            raise SettingError("web_port", f"port {number} needs more rights: {exc}") from exc
        except socket.gaierror as exc:
            raise SettingError("web_host", f"{host!r} is not an address: {exc}") from exc
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise SettingError("web_host", f"cannot listen on {host}: {exc}") from exc
    raise AddressInUseError(host, tried[0])


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows it would take a port that somebody listens on
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setblocking(False)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound
