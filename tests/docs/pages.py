"""The pages of ``docs/`` as programs: which blocks they have, and what runs them.

What a page's blocks do, in the order in which they stand there:

=============================  ======================================================================
block                          what happens
=============================  ======================================================================
```` ```python ````            Runs in one module for the whole page, in an empty directory; ``await`` may stand
                               at the top level. Functions ``test_*`` run at once, with pytest's fixtures.
```` ```LANGUAGE title="F" ``  The text becomes the file F of that directory.
```` ``… title="F (more)" ``   The text is added to the end of F.
```` ```console ````           What follows ``$`` runs in that directory, and has to print what stands below; ``…``
                               stands for anything on a line, and for any lines where it is a line.
anything else                  Is for reading.
=============================  ======================================================================

Commands that begin with ``python -m examples.`` run where the project is.

``<!-- not run: reason -->`` on the line before leaves a block out. In a console ``millstream worker`` runs beside
what follows, on a free port that takes the place of 6066; it ends with the page, or by the command in `KILL`.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DOCS", "KILL", "Block", "Console", "blocks_of", "pages", "write_file"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
KILL = 'kill -9 $(pgrep -f "millstream worker")'
"""Ends the worker that the page has started, and no other: the test does it by the process's number."""

_FENCE = re.compile(r"(?P<indent> *)(?P<ticks>`{3,}) *(?P<info>.*)")
_TITLE = re.compile(r'title="(?P<name>[^"]+?)(?P<more> \(more\))?"')
_LEFT_OUT = re.compile(r" *<!-- not run: .+ -->")
_POSITIONS = re.compile(r'(?<="position":\{).*?\}')
_PORT = 6066
_WAIT_S = 30.0
_RETRIED = ("millstream table", "millstream tail", "curl")
"""Commands that only read: what they print may take a moment to become true."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page; ``line`` is the number of its first line of text, from 1."""

    page: Path
    line: int
    language: str
    text: str
    file: str | None = None
    adds: bool = False
    runs: bool = True

    @property
    def where(self) -> str:
        """For people."""
        return f"{self.page.name}:{self.line}"


def pages() -> list[Path]:
    """The pages with something to run."""
    return [page for page in sorted(DOCS.rglob("*.md")) if any(b.runs for b in blocks_of(page))]


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return list(_read(page))


def _read(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").split("\n")
    at = 0
    while at < len(lines):
        opened = _FENCE.fullmatch(lines[at])
        if opened is None:
            at += 1
            continue
        first = at + 1
        indent, ticks = opened["indent"], opened["ticks"]
        last = next(n for n in range(first, len(lines)) if lines[n].strip() == ticks)
        text = "".join(f"{line.removeprefix(indent)}\n" for line in lines[first:last])
        title = _TITLE.search(opened["info"])
        language = opened["info"].partition(" ")[0]
        marked = at > 0 and _LEFT_OUT.fullmatch(lines[at - 1]) is not None
        yield Block(
            page,
            first + 1,
            language,
            text,
            file=title["name"] if title else None,
            adds=bool(title and title["more"]),
            runs=not marked and (language in ("python", "console") or title is not None),
        )
        at = last + 1


def write_file(block: Block, directory: Path) -> None:
    """Put a block with a title into its file."""
    assert block.file is not None
    path = directory / block.file
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8") + "\n\n" if block.adds else ""
    path.write_text(before + block.text, encoding="utf-8")
    # a module that is written twice within a second must not be found in the cache
    shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)


class Console:
    """A terminal in a directory, and the worker that runs in another one.

    Args:
        directory: Where.
        broker: What the app runs on instead of the embedded log, which pages show. There the ends of transactions
            take offsets too, so positions are not compared.
    """

    def __init__(self, directory: Path, *, broker: str | None = None) -> None:
        self._directory = directory
        self._port = _free_port()
        self._broker = broker
        self._workers: list[subprocess.Popen[bytes]] = []
        scripts = Path(sys.executable).parent
        kept = {name: text for name, text in os.environ.items() if "MILLSTREAM" not in name}
        self._environ = {
            **kept,
            "PATH": f"{scripts}{os.pathsep}{os.environ.get('PATH', '')}",
            "MILLSTREAM_WEB_PORT": str(self._port),
            "NO_COLOR": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        if broker is not None:
            self._environ["MILLSTREAM_BROKER"] = broker

    def close(self) -> None:
        """End the workers that still run."""
        for worker in self._workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)
                try:
                    worker.wait(10)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()

    def run(self, block: Block) -> None:
        """Run the commands of a block, and compare.

        Raises:
            AssertionError: a command printed something else.
        """
        for command, expected in _commands(block):
            if command.partition(" ")[0] == "curl" and shutil.which("curl") is None:
                continue
            wanted = self._here(expected)
            if command.startswith("python -m examples."):
                self._compare(f"cd {DOCS.parent} && {command}", wanted, block)
            elif command == KILL:
                self._kill()
            elif command.startswith("millstream worker"):
                self._start(command, wanted, block)
            else:
                self._compare(self._here(command), wanted, block)

    def _here(self, text: str) -> str:
        here = text.replace(f":{_PORT}", f":{self._port}")
        if self._broker is None:
            return here
        return _POSITIONS.sub("…}", here.replace("local://…/shop.db", self._broker))

    def _compare(self, command: str, wanted: str, block: Block) -> None:
        deadline = time.monotonic() + (_WAIT_S if command.startswith(_RETRIED) else 0)
        while True:
            done = subprocess.run(
                command,
                shell=True,
                cwd=self._directory,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
            )
            printed = done.stdout.decode()
            if _matches(printed, wanted):
                return
            if time.monotonic() >= deadline:
                _differs(block, command, printed, wanted)
            time.sleep(0.2)

    def _start(self, command: str, wanted: str, block: Block) -> None:
        path = self._directory.parent / f"worker-{len(self._workers)}.log"
        with path.open("wb") as log:
            # no shell in between: the process is the worker
            worker = subprocess.Popen(
                command.split(),
                cwd=self._directory,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._workers.append(worker)
        deadline = time.monotonic() + _WAIT_S
        while not _matches(printed := path.read_text(encoding="utf-8"), wanted):
            if worker.poll() is not None or time.monotonic() >= deadline:
                _differs(block, command, printed, wanted)
            time.sleep(0.05)

    def _kill(self) -> None:
        worker = self._workers[-1]
        assert worker.poll() is None, "there is no worker to kill"
        worker.kill()
        worker.wait()


def _commands(block: Block) -> Iterator[tuple[str, str]]:
    """Each command with what it should print."""
    command: str | None = None
    printed: list[str] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command, "\n".join(printed)
            command, printed = line[2:], []
        elif command is not None and command.endswith("\\") and not printed:
            command = f"{command[:-1].rstrip()} {line.strip()}"
        else:
            printed.append(line)
    if command is not None:
        yield command, "\n".join(printed)


def _matches(printed: str, wanted: str) -> bool:
    if not wanted.strip():
        return True
    pattern = ""
    for line in wanted.strip().splitlines():
        if line.strip() == "…":
            pattern += r"(?:[^\n]*\n)*?"
        else:
            pattern += r"[^\n]*".join(re.escape(part) for part in line.rstrip().split("…")) + "\n"
    found = "".join(f"{line.rstrip()}\n" for line in printed.strip().splitlines())
    return re.fullmatch(pattern, found) is not None


def _differs(block: Block, command: str, printed: str, wanted: str) -> None:
    raise AssertionError(
        f"{block.where}: $ {command}\nprinted:\n{printed}\nand the page says:\n{wanted}"
    )


def _free_port() -> int:
    """A port that is free, and the next one too, for a second worker: below those that outgoing connections take."""
    for _ in range(100):
        port = random.randrange(20_000, 32_000, 2)
        with socket.socket() as one, socket.socket() as two, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            two.bind(("127.0.0.1", port + 1))
            return port
    raise AssertionError("no two ports are free")
