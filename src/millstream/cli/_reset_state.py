"""The local state of an app on this machine: a folder for each slot, and in it one for each shard."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.app._slot import take_slot
from millstream.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

__all__ = ["hold_slots", "holder", "remove_store", "slots_of", "stores_of"]


def slots_of(folder: Path) -> list[Path]:
    """The slots of an app, sorted; none where it has no state.

    Raises:
        StateError: the folder cannot be read.
    """
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StateError(f"state in {folder} cannot be read: {exc}") from exc


def stores_of(slot: Path, counts: Collection[int] | None = None) -> list[Path]:
    """The stores of a slot's shards, of these partition counts alone where they are given.

    Tables that are whole on each worker have a store of their own, which is not among them.
    """
    found = []
    for path in sorted(slot.iterdir()):
        count, _, number = path.name.partition("-")
        if count.isdigit() and number.isdigit() and (counts is None or int(count) in counts):
            found.append(path)
    return found


@contextlib.contextmanager
def hold_slots(slots: Sequence[Path]) -> Iterator[None]:
    """Keep other processes of this machine away from these slots.

    Raises:
        StateError: one of them is in use, or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        for slot in slots:
            try:
                stack.enter_context(take_slot(slot.parent, slot.name))
            except OSError as exc:
                raise StateError(f"the state in {slot} cannot be written: {exc}") from exc
            except StateError as exc:
                raise StateError(
                    f"the state in {slot} is in use by process {holder(slot) or 'unknown'}: stop it, and"
                    f" try again"
                ) from exc
        yield


def holder(slot: Path) -> int | None:
    """The process that holds a slot; None where none does.

    Asks without trying the lock, as a worker that starts at that moment would go to another slot.
    """
    lock = slot / "lock"
    try:
        pid = int(lock.read_text())
        inode = str(lock.stat().st_ino)
    except (OSError, ValueError):
        return None
    try:
        locks = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return pid if _runs(pid) else None
    # 1: FLOCK  ADVISORY  WRITE 7332 fe:00:9977884 0 EOF
    fields = [line.split() for line in locks]
    held = any(f[1] == "FLOCK" and f[5].rpartition(":")[2] == inode for f in fields if len(f) > 5)
    return pid if held else None


def _runs(pid: int) -> bool:
    if os.name == "nt":
        return True  # os.kill would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def remove_store(store: Path) -> None:
    """Delete a shard's store.

    Raises:
        StateError: it cannot be deleted.
    """
    try:
        shutil.rmtree(store)
    except OSError as exc:
        raise StateError(f"the state in {store} cannot be deleted: {exc}") from exc
