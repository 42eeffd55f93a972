"""A worker's slot: a place on disk that no other process uses, and the same one after a restart."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING

from millstream.app._broker import local_path
from millstream.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from millstream.app._settings import Settings

__all__ = ["Slot", "state_folder", "take_slot"]

SLOTS_MAX = 1_000


def state_folder(settings: Settings) -> Path:
    """Where the local state of apps with these settings is: below it a folder for each app, and one for each slot."""
    if settings.state_dir is not None:
        return settings.state_dir.absolute()
    if settings.broker.startswith("local://"):
        return local_path(settings.broker).parent / ".millstream"
    return Path.cwd() / ".millstream"


class Slot:
    """The slot of one worker: its directory, and the names under which the log knows who works there.

    Args:
        app: its id.
        settings: where the app's slots are, and which one is wanted.
    """

    def __init__(self, app: str, settings: Settings) -> None:
        self.name = ""
        """Empty until it is taken."""
        self._app = app
        self._settings = settings
        self._wanted = settings.slot

    @functools.cached_property
    def _root(self) -> Path:
        # not before somebody takes a slot: who keeps state and log in memory needs no place on disk
        return state_folder(self._settings) / self._app

    @contextlib.contextmanager
    def taken(self) -> Iterator[Path]:
        """Have the slot's directory inside the block; see `take_slot`."""
        with take_slot(self._root, self._wanted) as path:
            self.name = path.name
            yield path

    def id_file(self) -> Path | None:
        """Where the member id is that the last worker in this slot had, whose process is gone."""
        return self._root / self.name / "member-id" if self.name else None

    def transactional_id(self) -> str:
        """The name of this worker's epochs: the same one after a restart in the same slot."""
        found = self.former_id()
        if not found:
            found = f"{self._app}-{uuid.uuid4().hex}"
            if self.name:
                self._transactional_id_file().write_text(found + "\n")
        return found

    def former_id(self) -> str:
        """What it is, or was when a worker in this slot had one; empty where there never was any.

        A slot that was found is one of this disk, and so its name is not enough.
        """
        if self._wanted:
            return f"{self._app}-{self._wanted}"
        if self.name:
            with contextlib.suppress(FileNotFoundError):
                return self._transactional_id_file().read_text().strip()
        return ""

    def _transactional_id_file(self) -> Path:
        return self._root / self.name / "transactional-id"


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
