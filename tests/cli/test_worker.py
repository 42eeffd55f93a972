"""``millstream worker``: what it says, how it ends, several of them, and following the code."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.terminal import APP, children_of, cpu_s, poll

if TYPE_CHECKING:
    from tests.cli.terminal import Terminal

GOOD = '{"account": "ada", "amount": 2.5}'
SLOW = """

import asyncio


@app.agent(app.topic("slow", value=float))
async def wait(stream: ms.Stream[float]) -> None:
    async for seconds in stream:
        print("begun", flush=True)
        await asyncio.sleep(seconds)


@app.agent(app.topic("stuck", value=float))
async def block(stream: ms.Stream[float]) -> None:
    async for seconds in stream:
        print("begun", flush=True)
        import time

        time.sleep(seconds)
"""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def _total(terminal: Terminal, expected: str) -> None:
    poll(
        lambda: terminal.run("table", "totals", "ada").stdout == f"{expected}\n",
        what=f"totals of ada is {expected}",
    )


def test_first_lines(terminal: Terminal, project: Path) -> None:
    """What runs, where, and how long it took; then, once, what it waits for."""
    worker = terminal.start("worker")
    worker.until("ready in")
    first, second = worker.output.splitlines()
    where = f"local://{project}/shop.db"
    assert first == f"shop: 1 agent, 1 table, 4 shards, exactly once, {where}"
    assert re.fullmatch(r"ready in \d+\.\d s    Ctrl-C stops; nothing is lost", second)
    found = worker.until(r"waiting for records in orders; to send one: millstream (.*)\n")
    assert found[1] == """send orders '{"account":"ada","amount":1.5}'"""
    assert terminal.run("send", "orders", GOOD).returncode == 0
    _total(terminal, "2.5")
    assert worker.output.count("waiting for") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop(terminal: Terminal, number: int) -> None:
    """A signal ends it within 2 s; all that was finished is committed, and the group is left."""
    worker = terminal.start("worker")
    worker.until("ready in")
    assert terminal.run("send", "orders", GOOD).returncode == 0
    _total(terminal, "2.5")
    code, took_s = worker.end(number)
    assert code == 0
    assert took_s < 2
    assert "stopping: what is finished is committed" in worker.output
    assert "no worker is running" in terminal.run("agents").stderr


@pytest.mark.parametrize("topic", ["slow", "stuck"])
def test_stop_in_the_middle_of_an_event(terminal: Terminal, project: Path, topic: str) -> None:
    """Also an event that takes for ever, waiting or computing, does not hold it longer than 2 s."""
    (project / "app.py").write_text(APP + SLOW)
    worker = terminal.start("worker")
    worker.until("ready in")
    assert terminal.run("send", topic, "60.0", "--key", "a").returncode == 0
    worker.until("begun")
    code, took_s = worker.end()
    assert code == 0
    assert took_s < 2.2
    result = terminal.run("agents")
    assert re.search(rf"\t{topic}\t\t1\t1\t", result.stdout), result.stdout


def test_second_signal(terminal: Terminal, project: Path) -> None:
    """It ends the process on the spot; the next worker finds everything in order."""
    (project / "app.py").write_text(APP + SLOW)
    worker = terminal.start("worker")
    worker.until("ready in")
    assert terminal.run("send", "orders", GOOD).returncode == 0
    _total(terminal, "2.5")
    assert terminal.run("send", "slow", "60.0", "--key", "a").returncode == 0
    worker.until("begun")
    worker.process.send_signal(signal.SIGINT)
    worker.until("stopping")
    code, took_s = worker.end()
    assert code == 130
    assert took_s < 0.5
    again = terminal.start("worker")
    again.until("ready in")
    assert terminal.run("send", "orders", GOOD).returncode == 0
    _total(terminal, "5.0")


def test_watch(terminal: Terminal) -> None:
    """A table is shown, and then each change as it is committed, whoever answers."""
    worker = terminal.start("worker")
    worker.until("ready in")
    assert terminal.run("send", "orders", GOOD).returncode == 0
    _total(terminal, "2.5")
    one = terminal.start("table", "totals", "ada", "--watch")
    whole = terminal.start("table", "totals", "--watch", "--json")
    one.until(r"(?m)^2\.5\n")
    whole.until(r'"value":2\.5')
    assert terminal.run("send", "orders", GOOD).returncode == 0
    one.until(r"(?m)^5\.0\n")
    whole.until(r'\{"key":"ada","value":5\.0\}')
    assert one.end()[0] == 130
    assert "Traceback" not in one.output


def test_kill(terminal: Terminal) -> None:
    """After kill -9 the next worker goes on where the last commit was."""
    for expected in ("2.5", "5.0", "7.5"):
        worker = terminal.start("worker")
        worker.until("ready in")
        assert terminal.run("send", "orders", GOOD).returncode == 0
        _total(terminal, expected)
        assert worker.end(signal.SIGKILL)[0] == -signal.SIGKILL


@pytest.mark.parametrize(
    ("app", "code", "message"),
    [
        (APP.replace("web=False", "web=False, brokr='x'"), 2, "setting 'brokr': there is no such"),
        (
            APP.replace("web=False", "broker='ftp://x'"),
            2,
            "setting 'broker': 'ftp://x' begins with",
        ),
        (APP + "\n\nx = y\n", 2, r"Error: app\.py:\d+: NameError: name 'y' is not defined"),
        (
            APP + '\n\n@app.task\nasync def fail() -> None:\n    raise RuntimeError("no")\n',
            1,
            r"^Error: task 'fail' raised RuntimeError: no at .*app\.py:\d+\.",
        ),
    ],
)
def test_errors(terminal: Terminal, project: Path, app: str, code: int, message: str) -> None:
    """One sentence, 2 for what has to be configured, 1 for what went wrong; no traceback."""
    (project / "app.py").write_text(app)
    result = terminal.run("worker")
    assert result.returncode == code, result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert "Traceback" not in result.stderr


def test_processes(terminal: Terminal) -> None:
    """N workers share the shards; Ctrl-C ends them all within 2 s."""
    workers = terminal.start("worker", "--processes", "2", "--without-web")
    workers.until(r"worker \d ready in", times=2)
    pids = [int(pid) for pid in re.findall(r"worker \d: process (\d+)", workers.output)]
    assert len(pids) == 2, workers.output
    assert workers.output.count("shop: 1 agent") == 1
    assert terminal.run("send", "orders", GOOD).returncode == 0
    _total(terminal, "2.5")
    code, took_s = workers.end()
    assert code == 0
    assert took_s < 2
    assert not any(_is_alive(pid) for pid in pids)


def test_a_process_that_dies_is_replaced(terminal: Terminal) -> None:
    """After kill -9 of one of them, the supervisor starts another one."""
    workers = terminal.start("worker", "--processes", "2", "--without-web")
    workers.until(r"worker \d ready in", times=2)
    victim = int(workers.until(r"worker 2: process (\d+)")[1])
    _kill(victim)
    workers.until(
        rf"worker 2 \(process {victim}\) was ended by SIGKILL: starting it again in 0\.5 s"
    )
    workers.until(r"worker 2 ready in", times=2)
    assert terminal.run("send", "orders", GOOD).returncode == 0
    _total(terminal, "2.5")
    assert workers.end(signal.SIGTERM)[0] == 0


@linux_only
def test_workers_do_not_outlive_their_supervisor(terminal: Terminal) -> None:
    """After kill -9 of the supervisor they end by themselves."""
    workers = terminal.start("worker", "--processes", "2", "--without-web")
    workers.until(r"worker \d ready in", times=2)
    pids = children_of(workers.process.pid)
    assert len(pids) == 2
    workers.process.kill()
    poll(lambda: not any(_is_alive(pid) for pid in pids), what="the workers have ended")


def test_processes_that_cannot_be_configured(terminal: Terminal, project: Path) -> None:
    """Such an error ends the supervisor: starting again would not help."""
    (project / "app.py").write_text(APP + "x = y\n")
    result = terminal.run("worker", "--processes", "2")
    assert result.returncode == 2
    assert result.stderr.count("NameError") == 1


def test_ports_of_processes(terminal: Terminal, project: Path) -> None:
    """An explicit port that is taken is an error; the others follow it."""
    (project / "app.py").write_text(APP.replace(", web=False", ""))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = terminal.run("worker", "--processes", "2", "--web-port", str(port))
        assert result.returncode == 2
        assert f"port {port} on 127.0.0.1 is in use by another process" in result.stderr


def test_reload(terminal: Terminal, project: Path) -> None:
    """The worker follows the code, also through a state of it that does not load."""
    worker = terminal.start("worker", "--reload")
    worker.until("ready in")
    assert terminal.run("send", "orders", GOOD).returncode == 0
    _total(terminal, "2.5")
    app = project / "app.py"
    app.write_text(APP.replace("+= order.amount", "+= order.amount * 100"))
    worker.until(r"app\.py changed: starting again")
    worker.until("ready in", times=2)
    assert terminal.run("send", "orders", GOOD).returncode == 0
    _total(terminal, "252.5")
    app.write_text(APP + "x = (\n")
    worker.until(r"Error: app\.py:\d+: SyntaxError: '\(' was never closed")
    worker.until(r"worker 1 \(process \d+\) has ended, see above; waiting for a change of the code")
    app.write_text(APP)
    worker.until("ready in", times=3)
    assert terminal.run("send", "orders", GOOD).returncode == 0
    _total(terminal, "255.0")
    code, took_s = worker.end()
    assert code == 0
    assert took_s < 2


def test_reload_sees_new_files(terminal: Terminal, project: Path) -> None:
    """Any Python file below the directory counts; those of environments do not."""
    worker = terminal.start("worker", "--reload")
    worker.until("ready in")
    environment = project / "env"
    environment.mkdir()
    (environment / "pyvenv.cfg").write_text("")
    (environment / "ignored.py").write_text("")
    (project / "agents.py").write_text("")
    found = worker.until(r"(.*) changed: starting again")
    assert found[1] == "agents.py"
    worker.until("ready in", times=2)


def test_start_is_quick(terminal: Terminal) -> None:
    """A worker is ready, and a send done, with well below a second of CPU time."""
    took_s = []
    for _ in range(3):
        before = _cpu_of_children_s()
        assert terminal.run("send", "orders", GOOD).returncode == 0
        took_s.append(_cpu_of_children_s() - before)
    assert 0.0 < min(took_s) < 1.0
    worker = terminal.start("worker")
    worker.until(r"ready in (\d+\.\d) s")
    assert 0.0 < cpu_s(worker.process.pid) < 1.0


def _cpu_of_children_s() -> float:
    """CPU time of those that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _is_alive(pid: int) -> bool:

    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def _kill(pid: int) -> None:

    os.kill(pid, signal.SIGKILL)
