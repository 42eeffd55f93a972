"""The supervisor of several workers: pauses, signals, exit codes, slots."""

from __future__ import annotations

import json
import re
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from millstream.cli import _supervise
from millstream.cli._ask import ask
from millstream.cli._supervise import Supervisor
from millstream.cli._worker import _numbered
from tests.cli.terminal import APP, children_of, poll

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from tests.cli.terminal import Terminal

STUCK = """

import asyncio


@app.agent(app.topic("slow", value=float))
async def wait(stream: ms.Stream[float]) -> None:
    async for seconds in stream:
        print("begun", flush=True)
        await asyncio.sleep(seconds)
"""
FAILS_AT_THE_END = """
import contextlib


@contextlib.asynccontextmanager
async def lifespan(app):
    yield
    raise RuntimeError("could not close")

"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def _pauses(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"starting it again in (\S+) s", text)]


@pytest.mark.parametrize(
    ("steady_s", "expected"),
    [
        (60.0, [0.02, 0.05, 0.1, 0.1, 0.1]),  # longer each time, up to the last
        (0.0, [0.02] * 5),  # one that has run long enough begins with the first again
    ],
)
def test_pauses(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steady_s: float,
    expected: list[float],
) -> None:
    """A worker that dies again and again is started again later and later."""
    monkeypatch.setattr(_supervise, "PAUSES_S", (0.02, 0.05, 0.1))
    monkeypatch.setattr(_supervise, "STEADY_S", steady_s)
    supervisor = Supervisor([[sys.executable, "-S", "-c", "raise SystemExit(3)"]], watch=None)
    running = threading.Thread(target=supervisor.run)
    running.start()
    said = ""

    def enough() -> bool:
        nonlocal said
        said += capsys.readouterr().err
        return len(_pauses(said)) >= 5

    try:
        poll(enough, what="it was started again five times")
    finally:
        supervisor._stopping.set()
        running.join(10)
    assert _pauses(said)[:5] == expected
    assert "has ended with code 3: starting it again" in said


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 2], 2),  # what cannot be configured ends all of them
        ([2, 2], 2),
    ],
)
def test_a_call_that_cannot_work(codes: list[int], code: int) -> None:
    """It is not started again; its code is the supervisor's."""
    commands = [
        [sys.executable, "-S", "-c", f"import sys; sys.stdin.read() if {c} == 0 else sys.exit({c})"]
        for c in codes
    ]
    assert Supervisor(commands, watch=None).run() == code


def test_failing_while_it_ends(terminal: Terminal, project: Path) -> None:
    """What goes wrong at the end is told by the exit code, as a single worker's would."""
    (project / "app.py").write_text(
        FAILS_AT_THE_END + APP.replace("web=False", "web=False, lifespan=lifespan")
    )
    for options in ([], ["--processes", "2"]):
        workers = terminal.start("worker", *options)
        workers.until(r"ready in", times=len(options) or 1)
        code, _ = workers.end(signal.SIGTERM)
        assert code == 1
        assert "could not close" in workers.output


@linux_only
def test_second_signal(terminal: Terminal, project: Path) -> None:
    """It ends all of them on the spot, and says by which signal."""
    (project / "app.py").write_text(APP + STUCK)
    workers = terminal.start("worker", "--processes", "2")
    workers.until(r"worker \d ready in", times=2)
    pids = children_of(workers.process.pid)
    assert terminal.run("send", "slow", "60.0", "--key", "a").returncode == 0
    workers.until("begun")
    workers.process.send_signal(signal.SIGTERM)
    workers.until("stopping")
    code, took_s = workers.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert took_s < 1
    poll(lambda: not any(_runs(pid) for pid in pids), what="the workers have ended")


def test_slots(terminal: Terminal, project: Path, call: Callable[..., Result]) -> None:
    """Each worker has a slot of its own; a name that was given is numbered."""
    (project / "app.py").write_text(APP.replace("web=False", "web=False, slot='east'"))
    workers = terminal.start("worker", "--processes", "2")
    workers.until(r"worker \d ready in", times=2)
    (group,) = json.loads(call("groups", "--json").stdout)
    assert sorted(member["slot"] for member in group["members"]) == ["east-1", "east-2"]
    assert sorted(path.name for path in (project / ".millstream" / "shop").iterdir()) == [
        "east-1",
        "east-2",
    ]
    assert workers.end()[0] == 0
    alone = terminal.start("worker")
    alone.until("ready in")
    (group,) = json.loads(call("groups", "--json").stdout)
    assert [member["slot"] for member in group["members"]] == ["east"]


def test_standbys(terminal: Terminal, project: Path, call: Callable[..., Result]) -> None:
    """Two workers on one file keep copies of each other's shards, which answer those who are content with them."""
    (project / "app.py").write_text(APP.replace("web=False", "standby_replicas=1"))
    workers = terminal.start("worker", "--processes", "2")
    workers.until(r"worker \d ready in", times=2)
    sent = terminal.run("send", "orders", '{"account": "ada", "amount": 2.5}')
    assert sent.returncode == 0, sent.stderr

    def members() -> list[dict[str, Any]]:
        (group,) = json.loads(call("groups", "--json").stdout)
        return list(group["members"])

    poll(
        lambda: all(len(m["shards"]) == len(m["copies"]) == 2 for m in members()),
        what="two shards and two copies for each",
    )

    def answers() -> list[dict[str, Any]]:
        where = "/tables/totals/keys/ada"
        return [dict(ask(m["url"], where, {"stale": "30s"}).body or {}) for m in members()]

    poll(
        lambda: (
            [a.get("value") for a in answers()] == [2.5, 2.5]
            and [("stale_ms" in a) for a in answers()].count(True) == 1
        ),
        what="an answer of the owner and one of the copy",
    )
    assert workers.end()[0] == 0


def test_places() -> None:
    """A place in the group is numbered likewise, because two workers cannot have the same one."""
    assert _numbered("east", 2) == "east-2"
    assert _numbered("east", None) == "east"
    assert _numbered("", 2) == ""


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
