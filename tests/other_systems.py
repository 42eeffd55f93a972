"""Runs Millstream in a Python that looks like that of another system: ``python -m tests.other_systems win32|darwin``.

Taken away, or put in the place of ours, is what that system does not have: modules, functions, signals, /proc. The
standard library and the packages that we use are loaded before, as their builds for that system would work there.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import importlib
import io
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import httpx
import pytest

# what looks at the system while it is loaded
for _module in (
    *(
        "aiokafka",
        "aiokafka.record.default_records",
        "asyncio",
        "click.testing",
        "concurrent.futures",
        "cramjam",
    ),
    *(
        "croniter",
        "ctypes",
        "httpx",
        "kio",
        "msgspec",
        "multiprocessing",
        "platform",
        "pydantic",
        "rich.console",
    ),
    *(
        "rich.live",
        "rich.progress",
        "rich.table",
        "rocksdict",
        "shutil",
        "sqlite3",
        "ssl",
        "starlette.applications",
    ),
    *("starlette.staticfiles", "starlette.websockets", "subprocess", "tempfile", "uuid", "uvicorn"),
    *(
        "uvicorn.lifespan.on",
        "uvicorn.loops.asyncio",
        "uvicorn.protocols.http.h11_impl",
        "uvicorn.logging",
    ),
    *(
        "uvicorn.protocols.websockets.wsproto_impl",
        "wsproto",
        "zoneinfo",
        "webbrowser",
        "logging.config",
        "pytest",
    ),
):
    importlib.import_module(_module)

WITHOUT = {
    "win32": {
        "modules": ["fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"],
        "os": [
            *(
                "chown",
                "fchmod",
                "fork",
                "geteuid",
                "getloadavg",
                "getpgid",
                "getuid",
                "killpg",
                "mkfifo",
                "nice",
            ),
            *(
                "pidfd_open",
                "sched_getaffinity",
                "setsid",
                "statvfs",
                "sync",
                "sysconf",
                "uname",
                "wait3",
                "waitid",
            ),
        ],
        "signal": [
            *(
                "SIGALRM",
                "SIGCHLD",
                "SIGCONT",
                "SIGHUP",
                "SIGKILL",
                "SIGPIPE",
                "SIGQUIT",
                "SIGSTOP",
                "SIGTSTP",
            ),
            *(
                "SIGUSR1",
                "SIGUSR2",
                "SIGWINCH",
                "alarm",
                "pidfd_send_signal",
                "pthread_kill",
                "setitimer",
            ),
        ],
        "time": ["clock_gettime", "clock_gettime_ns", "CLOCK_BOOTTIME", "CLOCK_MONOTONIC", "tzset"],
    },
    "darwin": {
        "modules": [],
        "os": [
            "pidfd_open",
            "sched_getaffinity",
            "posix_fadvise",
            "sched_setaffinity",
            "eventfd",
            "memfd_create",
        ],
        "signal": ["pidfd_send_signal", "SIGPWR", "SIGSTKFLT"],
        "time": ["CLOCK_BOOTTIME"],
    },
}


def disguise(system: str) -> None:
    """Make this process look like one of ``system``, for what is loaded from now on."""
    without = WITHOUT[system]
    asyncio.new_event_loop().close()  # which loop there is by default is decided with the first one
    for name in without["modules"]:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in (
        (os, without["os"]),
        (signal, without["signal"]),
        (time, without["time"]),
    ):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    if hasattr(os, "process_cpu_count"):  # since Python 3.13; here it asks for the affinity
        os.process_cpu_count = os.cpu_count
    _hide_proc()
    if system == "win32":
        sys.modules["msvcrt"] = _msvcrt()

        def unsupported(*_: Any) -> None:
            raise NotImplementedError

        for loop in (asyncio.BaseEventLoop, asyncio.SelectorEventLoop):
            setattr(loop, "add_signal_handler", unsupported)  # noqa: B010 - it has other types
    sys.platform = system


def _msvcrt() -> types.ModuleType:
    """Locks of files, as far as one process sees them."""
    module = types.ModuleType("msvcrt")
    locked: set[tuple[int, int]] = set()

    def locking(fd: int, mode: int, size: int) -> None:
        found = os.fstat(fd)
        place = found.st_dev, found.st_ino
        if place in locked:
            raise OSError(36, "Resource deadlock avoided")
        locked.add(place)

    module.__dict__.update(locking=locking, LK_NBLCK=2, LK_UNLCK=0)
    return module


def _hide_proc() -> None:
    def hiding(function: Any) -> Any:
        def call(path: Any, *rest: Any, **more: Any) -> Any:
            if not isinstance(path, int) and os.fspath(path).startswith(("/proc", "/sys/")):
                raise FileNotFoundError(2, "no such file", str(path))
            return function(path, *rest, **more)

        return call

    builtins.open = io.open = hiding(io.open)
    os.readlink = hiding(os.readlink)
    os.stat = hiding(os.stat)


def import_all() -> int:
    """Import every module; how many there are."""
    import millstream

    names = [m.name for m in pkgutil.walk_packages(millstream.__path__, "millstream.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return len(names)


def run_worker() -> None:
    """``millstream worker`` in the working directory, asked with Ctrl-C for its end when it has counted."""
    from millstream.cli import cli
    from tests.cli.terminal import APP

    Path("app.py").write_text(APP.replace(", web=False", ""))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    counted: list[str] = []

    def send_and_ask() -> None:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(trust_env=False, timeout=30) as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if http.get(f"{url}/health/ready").status_code == 200:
                        break
                time.sleep(0.05)
            order = '{"account": "ada", "amount": 2.5}'
            command = [sys.executable, "-m", "millstream", "send", "orders", order]
            sent = subprocess.run(command, check=True, capture_output=True, text=True)
            record = sent.stdout.split()[0]
            counted.append(http.get(f"{url}/tables/totals/keys/ada?at_least={record}").text)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=send_and_ask, daemon=True).start()
    with pytest.raises(SystemExit) as ended:
        cli.main(["worker", "--web-port", port], prog_name="millstream")
    assert not ended.value.code
    assert '"value":2.5' in counted[0], counted


if __name__ == "__main__":
    disguise(sys.argv[1])
    print(f"{import_all()} modules")  # noqa: T201
    run_worker()
    print("ended")  # noqa: T201
