"""A worker's slot: a place on disk that no other process uses, and the same one after a restart."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, TYPE_CHECKING

from millstream.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["take_slot"]

SLOTS_MAX = 1_000


@contextlib.contextmanager
def take_slot(root: Path, wanted: str = "") -> Iterator[Path]:
    """Lock a directory below ``root``: the one that is wanted, else the first free one of 0, 1, 2, …

    The lock goes with the process, however it ends.

    Raises:
        StateError: the directory cannot be made, or the wanted one is held by another process.
    """
    names = [wanted] if wanted else [str(number) for number in range(SLOTS_MAX)]
    try:
        root.mkdir(parents=True, exist_ok=True)
        ignore = root.parent / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n")
    except OSError as exc:
        raise StateError(f"state cannot be kept in {root}: {exc}. Set state_dir=") from exc
    for name in names:
        path = root / name
        path.mkdir(exist_ok=True)
        file = (path / "lock").open("a+")
        if _lock(file):
            try:
                file.truncate(0)
                file.write(f"{os.getpid()}\n")
                file.flush()
                yield path
            finally:
                file.close()
            return
        file.close()
    raise StateError(
        f"slot {names[0]!r} in {root} is held by another worker: two workers share a slot. Give each"
        f" its own (slot=), or leave the setting out"
    )


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> bool:
        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _lock(file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
