"""Processes of the tests: they are told, heard, paused and killed, and none outlives the run."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.brokers import Kafka, NotStartedError, Program
from tests.brokers.listeners import HOST, free_ports
from tests.brokers.process import Process

if TYPE_CHECKING:
    from pathlib import Path

DEADLINE_S = 30.0
_LISTENER = "import socket, time; s = socket.create_server(('127.0.0.1', {})); print('up', flush=True); time.sleep(600)"
_RUN = """
import sys, time
from pathlib import Path
from tests.brokers.keeper import keep
from tests.brokers.listeners import HOST, free_ports
from tests.brokers.process import Process
folder, program = sys.argv[1:]
keep(folder=Path(folder))
Process([sys.executable, "-c", program], log=Path(folder) / "log", ready="up").start()
print("running", flush=True)
for _ in range(6000):
    time.sleep(0.1)  # a signal that comes just before a sleep is noticed after it
"""


async def test_a_program_writes_what_it_is_told(kafka: Kafka, tmp_path: Path) -> None:
    """It runs beside the test, stops where it is and goes on, and can be killed."""
    topic = kafka.topic()
    with Program("tests.brokers.echo", kafka.bootstrap, topic, log=tmp_path / "log") as program:
        program.tell("one")
        assert await program.hear("written") == "one"
        program.pause()
        program.tell("two")
        program.resume()
        assert await program.hear("written") == "two"
        program.kill()
        with pytest.raises(AssertionError, match="ended before 'written'"):
            await program.hear("written")
    assert [record.value for record in kafka.read(topic)] == [b"one", b"two"]


def test_a_program_that_ends_says_why(tmp_path: Path) -> None:
    """What it printed last is in the error."""
    command = [sys.executable, "-c", "print('bad luck')"]
    with pytest.raises(NotStartedError, match=r"ended\. Its last lines:\nbad luck"):
        Process(command, log=tmp_path / "log", ready="good luck").start()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_run_that_is_ended(tmp_path: Path, how: signal.Signals) -> None:
    """Whatever ends a test run, its processes end and its folders go."""
    folder = tmp_path / "data"
    folder.mkdir()
    port = next(free_ports(1))
    command = [sys.executable, "-c", _RUN, str(folder), _LISTENER.format(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"running\n"
        socket.create_connection((HOST, port)).close()
        run.send_signal(how)
    patience = time.monotonic() + DEADLINE_S
    while folder.exists():
        assert time.monotonic() < patience
        time.sleep(0.02)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, port))
