"""What a doctor looks at on this machine: Python, libraries, limits, disks, local state."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.app._broker import local_path
from millstream.app._slot import state_folder
from millstream.cli._doctor_findings import Finding, error, fine, warning
from millstream.cli._reset_state import holder, slots_of, stores_of
from millstream.errors import StateError
from millstream.tables._position import POSITION_KEY, StorePosition, decode_position

if TYPE_CHECKING:
    from collections.abc import Iterator

    from millstream.app import App

__all__ = [
    "folder_findings",
    "library_findings",
    "limit_findings",
    "local_log_findings",
    "state_positions",
]

GIB = 1 << 30
FREE_LOW, FREE_LEAST = GIB, 100 << 20
"""Free disk space, in bytes, below which there is a warning, and an error."""
OPEN_FILES_LOW = 1_024
REMOTE = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "gluster", "fuse.sshfs", "lustre", "vboxsf")
"""File systems of other machines: SQLite's locks and shared memory do not work there."""
_YEAR_2024_MS = 1_704_067_200_000
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?([^;]*)(;.*)?")
_FLOOR = re.compile(r">=\s*([0-9.]+)")


def library_findings() -> Iterator[Finding]:
    """Python, and the libraries that Millstream needs."""
    yield fine("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        needed = metadata.requires("millstream") or []
    except metadata.PackageNotFoundError:
        yield warning(
            "libraries",
            "Millstream is not installed as a package, so nobody says which libraries it needs",
            "pip install millstream, or pip install -e . in a checkout",
        )
        return
    wrong, seen = [], []
    for line in needed:
        found = _REQUIREMENT.match(line)
        if found is None or not _applies(found[3] or ""):
            continue
        name, bound = found[1], _FLOOR.search(found[2])
        floor = None if bound is None else bound[1]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        if floor and _numbers(version) < _numbers(floor):
            wrong.append(f"{name} is {version}, and has to be {floor} or later")
        else:
            seen.append(f"{name} {version}")
    if wrong:
        yield error("libraries", "; ".join(wrong), "pip install --upgrade millstream")
    else:
        yield fine("libraries", ", ".join(seen))


def _applies(marker: str) -> bool:
    """Whether a requirement is for this machine: extras are not asked for."""
    if "extra" in marker:
        return False
    found = re.search(r"sys_platform\s*==\s*['\"](\w+)['\"]", marker)
    return found is None or found[1] == sys.platform


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def limit_findings() -> Iterator[Finding]:
    """Limits of this process, and its clock."""
    try:
        import resource
    except ImportError:  # Windows
        pass
    else:
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_LOW:
            yield warning(
                "limits",
                f"{soft} open files are allowed, and each shard with state takes some",
                "ulimit -n 8192 before the worker starts (LimitNOFILE= in a systemd unit)",
            )
        else:
            yield fine("limits", f"{soft if soft > 0 else 'any number of'} open files are allowed")
    now = time.time_ns() // 1_000_000
    if now < _YEAR_2024_MS:
        yield error(
            "clock",
            f"this machine thinks that it is {time.strftime('%Y-%m-%d', time.gmtime(now / 1_000))}",
            "set its clock, and keep it right with NTP",
        )


def folder_findings(app: App) -> Iterator[Finding]:
    """The folder of the local state: whether it can be written, and what it holds."""
    if app.settings.state == "memory":
        yield warning(
            "state",
            "tables are kept in memory: each start replays all of their changelogs",
            'leave state="memory" out',
        )
        return
    root = state_folder(app.settings)
    folder = root / app.id
    place = _nearest(folder)
    problem = _unwritable(place)
    if problem:
        yield error(
            "state",
            f"state cannot be kept in {folder}: {problem}",
            "give this user the folder, or set state_dir (MILLSTREAM_STATE_DIR) to another one",
        )
        return
    yield from _disk("state", place)
    try:
        slots = slots_of(folder)
    except StateError as exc:
        yield error("state", str(exc), "give this user the folder, or set another state_dir")
        return
    for slot in slots:
        pid = holder(slot)
        used = f"in use by process {pid}" if pid else "not in use"
        shards = len(stores_of(slot))
        yield fine("state", f"{slot}: {_size(slot)}, {shards} shards, {used}")
    others = [path for path in slots_of(root) if path != folder and slots_of(path)]
    if others:
        listed = ", ".join(f"{path.name} ({_size(path)})" for path in others)
        yield fine("state", f"{root} holds state of other apps: {listed}")


def state_positions(app: App) -> tuple[list[tuple[Path, str, StorePosition]], list[Finding]]:
    """How far the tables of each store that is not in use are, and stores that cannot be read."""
    from millstream.state.rocks import peek

    found: list[tuple[Path, str, StorePosition]] = []
    damaged: list[Finding] = []
    folder = state_folder(app.settings) / app.id
    try:
        slots = slots_of(folder)
    except StateError:
        return [], []  # which is said elsewhere
    for slot in slots:
        if holder(slot):
            continue
        for store in stores_of(slot):
            try:
                for table, data in peek(store, POSITION_KEY).items():
                    position = decode_position(data)
                    if position is not None:
                        found.append((store, table, position))
            except StateError as exc:
                damaged.append(
                    error(
                        "state",
                        str(exc),
                        f"delete {store} while no worker runs: it is rebuilt from the log",
                    )
                )
    return found, damaged


def local_log_findings(broker: str) -> Iterator[Finding]:
    """The file of an embedded log, from outside."""
    path = local_path(broker)
    place = path if path.exists() else _nearest(path.parent)
    kind = file_system(place)
    if kind.startswith(REMOTE):
        yield error(
            "log",
            f"{path} is on {kind}, a file system of another machine: SQLite's locks do not hold there, and"
            f" the log would be damaged",
            "put it on a local disk, or use Kafka for several machines",
        )
    problem = _unwritable(path.parent if path.parent.exists() else place)
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        problem = "the file may not be read and written by this user"
    if problem:
        yield error(
            "log",
            f"{path}: {problem}",
            "give this user the file and its folder: -wal and -shm files come beside it",
        )
        return
    yield from _disk("log", place if place.is_dir() else place.parent)


def file_system(path: Path) -> str:
    """The kind of file system that a path is on; empty where nobody tells."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    mounts = [line.split() for line in lines]
    under = [
        (len(mount[1]), mount[2])
        for mount in mounts
        if len(mount) > 2 and path.resolve().is_relative_to(mount[1].replace("\\040", " "))
    ]
    return max(under, default=(0, ""))[1]


def _nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _unwritable(folder: Path) -> str:
    """Why a folder cannot be written; empty where it can."""
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".millstream-doctor-"):
            return ""
    except OSError as exc:
        return f"{folder} cannot be written ({exc.strerror or exc})"


def _disk(area: str, folder: Path) -> Iterator[Finding]:
    usage = shutil.disk_usage(folder)
    text = f"{_bytes(usage.free)} of {_bytes(usage.total)} are free on the disk of {folder}"
    mend = "make room: a full disk stops the workers; nothing that was committed is lost"
    if usage.free < FREE_LEAST:
        yield error(area, text, mend)
    elif usage.free < FREE_LOW:
        yield warning(area, text, mend)
    else:
        yield fine(area, text)


def _size(folder: Path) -> str:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:  # compacted away meanwhile
                continue
    return _bytes(total)


def _bytes(count: int) -> str:
    for size, unit in ((1 << 40, "TiB"), (GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
