"""Telling when the code changes: modification times, looked at now and then; no dependency, any file system."""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from millstream.cli._find import configured_reference
from millstream.errors import MillstreamError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["SourceWatch", "source_folders"]

INTERVAL_S = 0.3
_PRUNED = {"__pycache__", "node_modules", "site-packages"}


def source_folders(reference: str | None, directory: Path) -> list[Path]:
    """Where an app's code is: the working directory, and the package that ``-A`` names if it is elsewhere."""
    folders = [directory]
    with contextlib.suppress(MillstreamError):  # whoever loads the app says it
        reference = reference or configured_reference(directory)
    if reference and not reference.endswith(".py"):
        top = reference.partition(":")[0].partition(".")[0]
        spec = importlib.machinery.PathFinder.find_spec(top)
        places = (spec.submodule_search_locations or ()) if spec is not None else ()
        folders += [Path(place) for place in places if not Path(place).is_relative_to(directory)]
    return folders


class SourceWatch:
    """The Python files below some folders, without environments and hidden folders."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = list(folders)
        self._looked = time.monotonic()
        self._seen = dict(self._files())

    def changed(self) -> list[Path]:
        """Files that are new, changed or gone since the last answer; asks the disk every 0.3 s."""
        now = time.monotonic()
        if now - self._looked < INTERVAL_S:
            return []
        self._looked = now
        before, self._seen = self._seen, dict(self._files())
        names = before.keys() | self._seen.keys()
        return sorted(path for path in names if before.get(path) != self._seen.get(path))

    def _files(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        for folder in self._folders:
            for place, folders, files in os.walk(folder):
                folders[:] = [
                    name
                    for name in folders
                    if name not in _PRUNED
                    and not name.startswith(".")
                    and not os.path.exists(os.path.join(place, name, "pyvenv.cfg"))
                ]
                for name in files:
                    if name.endswith(".py") or name == "pyproject.toml":
                        path = Path(place, name)
                        with contextlib.suppress(OSError):  # gone meanwhile
                            found = path.stat()
                            yield path, (found.st_mtime_ns, found.st_size)
