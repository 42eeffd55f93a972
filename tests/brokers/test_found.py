"""How a broker is found, fetched and missed."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from tests.brokers import Cluster, Record
from tests.brokers.found import DockerCluster, address, docker, found
from tests.brokers.jars import CURRENT, Line, classpath
from tests.brokers.listeners import HOST, free_ports

ROOT = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="shell scripts stand for the programs")
RUN_S_MAX = 120.0
NEEDS_ONE = "tests/brokers/test_cluster.py::test_an_aborted_transaction_is_not_read"
NEEDS_NONE = "tests/test_clock.py"


def program(folder: Path, name: str, script: str) -> None:
    """A program of this name that is a shell script."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", None),
        ("kafka://broker:9092", "broker:9092"),
        ("kafka://one:9092,two:9092", "one:9092,two:9092"),
    ],
)
def test_the_variable(value: str, expected: str | None) -> None:
    """It names a broker, or several addresses of one."""
    assert address(value) == expected


@pytest.mark.parametrize("value", ["broker:9092", "kafka://broker", "local://file.db"])
def test_a_bad_variable(value: str) -> None:
    """The message says what to write."""
    with pytest.raises(ValueError, match="write kafka://host:port"):
        address(value)


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the variable."""
    url = f"kafka://{HOST}:{next(free_ports(1))}"
    monkeypatch.setenv("MILLSTREAM_TEST_BROKER", url)
    monkeypatch.setattr("tests.brokers.found.ANSWER_S_MAX", 0.3)
    with pytest.raises(ConnectionError, match=f"MILLSTREAM_TEST_BROKER={url}: nobody"), found():
        pass


def test_a_broker_that_has_a_name(monkeypatch: pytest.MonkeyPatch, own_kafka: Cluster) -> None:
    """It is taken before all others."""
    monkeypatch.setenv("MILLSTREAM_TEST_BROKER", own_kafka.url)
    with found() as named:
        assert named is not None
        topic = named.topic()
        named.write(topic, [Record(value=b"1")])
        assert [record.value for record in own_kafka.read(topic)] == [b"1"]


def test_docker_gets_the_settings() -> None:
    """A broker in a container is told by its environment; its ports are those of this machine."""
    cluster = DockerCluster("docker")
    cluster.stop()
    (broker,) = cluster.brokers
    variables = dict(pair.split("=", 1) for pair in _after("--env", broker.command))
    assert variables["KAFKA_PROCESS_ROLES"] == "broker,controller"
    for name in ("DIRECT", "PROXIED"):
        port = broker.ports[name]
        assert f"{name}://0.0.0.0:{port}" in variables["KAFKA_LISTENERS"]
        told = f"{name}://{HOST}:{broker.advertised[name]}"
        assert told in variables["KAFKA_ADVERTISED_LISTENERS"]
        assert f"{HOST}:{port}:{port}" in _after("--publish", broker.command)
    assert broker.command[-1] == f"apache/kafka:{CURRENT.version}"


def _after(word: str, command: list[str]) -> list[str]:
    return [value for before, value in pairwise(command) if before == word]


@POSIX
@pytest.mark.parametrize(
    ("script", "answers"),
    [
        ("exit 0", True),
        # the program without an engine
        ("exit 1", False),
    ],
)
def test_docker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, answers: bool
) -> None:
    """It is used only when its engine answers."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert docker() is None
    program(tmp_path, "docker", script)
    assert (docker() is not None) == answers


@POSIX
def test_maven_runs_once_and_for_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Test runs that fetch at the same time do not disturb each other, and later ones fetch nothing."""
    line = Line("1", ("group:artifact:1",))
    places(monkeypatch, tmp_path)
    fetch = (
        'for last; do :; done; jars=${last#-DoutputDirectory=}; mkdir "$jars"; touch "$jars/a.jar"'
    )
    program(tmp_path, "mvn", f'echo run >> "{tmp_path}/runs"; {fetch}')
    with ThreadPoolExecutor() as pool:
        paths = set(pool.map(classpath, [line] * 4))
    assert [path.name for path in line.folder.iterdir()] == ["a.jar"]
    assert list(line.folder.parent.iterdir()) == [line.folder]
    runs = (tmp_path / "runs").read_text()
    assert {classpath(line)} == paths == {str(line.folder / "*")}
    assert (tmp_path / "runs").read_text() == runs


@POSIX
def test_maven_that_cannot_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test is left out with what Maven said, and nothing half-fetched stays."""
    line = Line("1", ("group:artifact:1",))
    places(monkeypatch, tmp_path)
    program(tmp_path, "mvn", "echo '[ERROR] no network'; exit 1")
    with pytest.raises(pytest.skip.Exception, match=r"Maven could not fetch it.*no network"):
        classpath(line)
    assert list(line.folder.parent.iterdir()) == []


def places(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Programs and caches in a folder of the test's own; a Java that is new enough is there."""
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("tests.brokers.jars.cache_folder", lambda: folder / "cache")
    program(folder, "java", "echo 'openjdk version \"17.0.1\"' >&2")


def run_tests(folder: Path, test: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A test run on a machine that has the programs of a folder, and no others."""
    kept = {key: value for key, value in os.environ.items() if key in ("PYTHONPATH", "HOME")}
    command = [sys.executable, "-m", "pytest", "-q", test]
    return subprocess.run(
        command,
        env={**kept, "PATH": str(folder), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=RUN_S_MAX,
        check=False,
    )


@POSIX
def test_what_is_missing_stands_in_the_last_lines(tmp_path: Path) -> None:
    """With a Java that is too old the test is left out, and says so; where CI is set, it fails."""
    program(tmp_path, "java", "echo 'openjdk version \"11.0.1\"' >&2")
    left_out = run_tests(tmp_path, NEEDS_ONE)
    assert left_out.returncode == 0, left_out.stdout
    assert "1 test: cannot run here: a Kafka broker: set MILLSTREAM_TEST_BROKER" in left_out.stdout
    assert "too old" in left_out.stdout
    failed = run_tests(tmp_path, NEEDS_ONE, CI="true")
    assert failed.returncode == 1
    assert "with CI set nothing may be missing" in failed.stdout


@POSIX
def test_no_broker_starts_before_a_test_needs_one(tmp_path: Path) -> None:
    """A run of other tests does not even ask for Java or Docker."""
    for name in ("java", "mvn", "docker"):
        program(tmp_path, name, f'echo {name} >> "{tmp_path}/asked"; exit 1')
    run_tests(tmp_path, NEEDS_NONE)
    assert not (tmp_path / "asked").exists()
    run_tests(tmp_path, NEEDS_ONE)
    assert (tmp_path / "asked").read_text().split() == ["docker", "java"]
