"""Processes of one machine: whether one is gone or stopped, and which one holds the log's write lock.

A pid says something only beside the moment at which its process started, and only to processes that
number pids alike. So a `Process` carries a *place*: machine, boot and pid namespace. Everything here answers
"not known" (False, None) where it cannot be certain, and then leases decide.

The lock's holder is read from ``/proc/locks``. Asking with fcntl would mean opening the ``-shm`` file, and
closing that again drops every lock that this process has on it (POSIX). Byte 120 is SQLite's WAL_WRITE_LOCK.
"""

from __future__ import annotations

import os
import platform
import signal
import sys
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Process",
    "boottime",
    "is_gone",
    "is_stopped",
    "kill_if_stopped",
    "this_process",
    "write_lock_holder",
]

_WRITE_LOCK_BYTE = 120


class Process(NamedTuple):
    """A process that may be on this machine; ``started`` is empty where it cannot be learnt."""

    place: str
    pid: int
    started: str


def boottime() -> float:
    """Seconds since the machine started, time asleep included where the system can tell."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def this_process() -> Process:
    """The process that calls."""
    pid = os.getpid()
    return Process(_place(), pid, _stat(pid)[1])


def is_gone(process: Process) -> bool:
    """Whether that process has certainly ended."""
    if process.place != _place():
        return False
    state, started = _stat(process.pid)
    if state:
        return state in "ZX" or (bool(process.started) and started != process.started)
    if sys.platform == "win32":
        return False  # os.kill(pid, 0) would end it
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def is_stopped(process: Process) -> bool:
    """Whether that process is certainly stopped (SIGSTOP, Ctrl-Z)."""
    if process.place != _place() or not process.started:
        return False
    return _stat(process.pid) == ("T", process.started)


def kill_if_stopped(process: Process) -> bool:
    """End that process if it is stopped; True if it was. Never hits another one with the same pid."""
    if sys.platform != "linux" or process.pid == os.getpid():
        return False
    try:
        handle = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if not is_stopped(process):
            return False
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def write_lock_holder(database: Path) -> int | None:
    """The pid that holds the write lock of a database in WAL mode, if that can be learnt."""
    try:
        inode = str(os.stat(f"{database}-shm").st_ino)
        with open("/proc/locks", encoding="ascii") as locks:
            for line in locks:
                # 1: POSIX  ADVISORY  WRITE 7332 fe:00:9977884 120 120
                found = line.split()
                if (
                    len(found) == 8
                    and found[3] == "WRITE"
                    and found[5].rpartition(":")[2] == inode
                    and int(found[6]) <= _WRITE_LOCK_BYTE
                    and (found[7] == "EOF" or int(found[7]) >= _WRITE_LOCK_BYTE)
                ):
                    return int(found[4])
    except (OSError, ValueError):
        pass
    return None


@cache
def _place() -> str:
    """Where pids mean the same thing as here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{sys.platform} {platform.node()}"


def _stat(pid: int) -> tuple[str, str]:
    """State letter and start time of a process; empty where there is none, or no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", ""
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]
