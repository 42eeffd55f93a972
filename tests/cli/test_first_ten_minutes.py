"""The block "The first ten minutes" of the README, in order, in a fresh directory.

It runs from the built wheel where ``MILLSTREAM_TEST_WHEEL`` names one, as ``scripts/test`` has it, else from the
source checkout.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.terminal import MILLSTREAM, Running, Terminal, children_of, poll
from tests.requirements import wheel

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTITION = 1
"""Where Kafka's partitioner puts the key ``ada``, of four."""


@pytest.fixture(scope="module")
def millstream(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command: of an environment with the wheel in it, or of the source checkout."""
    if not os.environ.get("MILLSTREAM_TEST_WHEEL"):
        return MILLSTREAM
    place = tmp_path_factory.mktemp("wheel") / "venv"
    venv.create(place, with_pip=False)
    scripts = place / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    install = ["install", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel())]
    subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "--python", str(python), *install], check=True
    )
    # what the wheel needs comes from this environment, without this environment's own Millstream
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    found = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    (Path(found) / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    ask = [str(python), "-c", "import millstream; print(millstream.__file__)"]
    used = subprocess.run(ask, check=True, capture_output=True, text=True, cwd=place).stdout
    assert str(place) in used, f"the wheel is not what is tested: {used}"
    return [str(scripts / ("millstream.exe" if os.name == "nt" else "millstream"))]


@pytest.fixture
def shell(tmp_path: Path, millstream: list[str]) -> Iterator[Terminal]:
    """A terminal in an empty directory."""
    shell = Terminal(tmp_path, millstream=millstream)
    yield shell
    shell.close()


def test_first_ten_minutes(shell: Terminal) -> None:
    """From an empty directory to an answer over HTTP that kill -9 does not change."""
    assert shell.run("new", "shop").returncode == 0
    shell.directory /= "shop"

    worker, url = _start(shell)
    path = shell.directory / "shop.db"
    first = worker.output.splitlines()[0]
    assert first == f"shop: 1 agent, 2 tables, 4 shards, exactly once, local://{path}"

    sent = shell.run("send", "orders", '{"account": "ada", "amount": 12.5}')
    assert (sent.stdout, sent.stderr) == (f"orders/{PARTITION}@0  key=ada\n", "")
    answer = {"key": "ada", "value": 12.5, "position": {f"orders/{PARTITION}": 1}}
    _ask_until(shell, url, answer)

    _kill(worker)
    worker, url = _start(shell)
    _ask_until(shell, url, answer)
    code, took_s = worker.end()
    assert code == 0
    assert took_s < 2


def test_the_tests_of_a_new_project(shell: Terminal, millstream: list[str]) -> None:
    """``pytest`` in the new project passes."""
    assert shell.run("new", "shop").returncode == 0
    python = str(Path(millstream[0]).with_name("python")) if len(millstream) == 1 else millstream[0]
    result = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=shell.directory / "shop",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "1 passed" in result.stdout, result.stdout + result.stderr


def _start(shell: Terminal) -> tuple[Running, str]:
    worker = shell.start("worker", "--reload")
    ready = worker.until(r"ready in \d+\.\d s {4}(\S+) {4}Ctrl-C stops; nothing is lost\n")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", ready[1])
    return worker, ready[1]


def _ask_until(shell: Terminal, url: str, answer: dict[str, Any]) -> None:
    """Both ways of asking give the answer; the agent may need a moment for it."""

    def printed() -> bool:
        result = shell.run("table", "totals", "ada")
        return (result.stdout, result.stderr) == ("12.5\n", "")

    poll(printed, what="millstream table prints 12.5, from a worker")
    poll(lambda: _get(f"{url}/tables/totals/keys/ada") == answer, what=f"GET answers {answer}")


def _get(url: str) -> Any:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return None


def _kill(worker: Running) -> None:
    """``kill -9`` of the worker, and of the process that watches the code for it."""
    for pid in [*children_of(worker.process.pid), worker.process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    worker.wait()
