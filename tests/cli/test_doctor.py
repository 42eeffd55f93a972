"""``millstream doctor``: what is wrong is found, with what to do; secrets are not shown."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest

from millstream.app._settings import Settings
from millstream.cli import _doctor_machine
from millstream.cli._doctor_findings import HIDDEN, scrub, secrets_of
from millstream.cli._doctor_machine import file_system
from millstream.cli._reset_state import holder
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import OffsetAndMetadata, TopicSpec
from millstream.transports.local import LocalTransport
from tests.cli.engine import process_everything
from tests.cli.terminal import APP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from click.testing import Result

    from tests.cli.terminal import Terminal

GOOD = '{"account": "ada", "amount": 2.5}'
TP = TopicPartition("orders", 1)


def _findings(result: Result) -> list[dict[str, str]]:
    return list(json.loads(result.stdout))


def _wrong(result: Result, level: str = "error") -> list[dict[str, str]]:
    return [finding for finding in _findings(result) if finding["level"] == level]


def _change(project: Path, work: Callable[[LocalTransport], Awaitable[Any]]) -> None:
    async def change() -> None:
        async with LocalTransport(project / "shop.db") as log:
            await work(log)

    asyncio.run(change())


def test_nothing_is_wrong(project: Path, call: Callable[..., Result]) -> None:
    """Before the first worker, and after it: exit code 0, and every area was looked at."""
    result = call("doctor", "--json")
    assert (result.exit_code, _wrong(result)) == (0, [])
    assert "there is none yet" in result.stdout
    assert not (project / "shop.db").exists()
    assert not (project / ".millstream").exists()
    call("send", "orders", GOOD)
    process_everything(project)
    result = call("doctor", "--json")
    assert (result.exit_code, _wrong(result), _wrong(result, "warning")) == (0, [], [])
    areas = {finding["area"] for finding in _findings(result)}
    assert areas == {
        "python",
        "libraries",
        "limits",
        "app",
        "settings",
        "state",
        "log",
        "positions",
        "workers",
    }
    plain = call("doctor").stdout.splitlines()
    assert plain[0].split("\t")[:2] == ["ok", "python"]
    assert all(len(line.split("\t")) == 4 for line in plain)


def test_whatever_is_wrong_can_be_mended(project: Path, call: Callable[..., Result]) -> None:
    """No finding without a way out."""
    (project / "app.py").write_text(APP.replace("shop", "x", 1) + "\nnonsense\n")
    result = call("doctor", "--json")
    assert result.exit_code == 1
    (finding,) = _wrong(result)
    assert finding["area"] == "app"
    assert "NameError: name 'nonsense' is not defined" in finding["text"]
    assert finding["mend"]
    assert {f["area"] for f in _findings(result)} >= {"python", "libraries"}


def test_workers(project: Path, call: Callable[..., Result], terminal: Terminal) -> None:
    """They are asked how they are; one that runs another program is an error."""
    (project / "app.py").write_text(APP.replace(", web=False", ""))
    worker = terminal.start("worker")
    url = worker.until(r"ready in .* (http://\S+)")[1]
    result = call("doctor", "--json")
    assert (result.exit_code, _wrong(result)) == (0, [])
    assert f"slot 0 at {url}: ready" in [f["text"] for f in _findings(result)]
    assert any(
        f["text"].endswith(f"in use by process {worker.process.pid}") for f in _findings(result)
    )
    (project / "app.py").write_text(APP.replace("async def count", "async def tally"))
    result = call("doctor", "--json")
    assert result.exit_code == 1
    (finding,) = _wrong(result)
    assert f"slot 0 at {url} runs another program: it has [count reads orders" in finding["text"]
    assert "stop the old workers" in finding["mend"]


def _reset_mark(log: LocalTransport) -> Awaitable[Any]:
    return log.set_committed("shop", {TP: OffsetAndMetadata(0, '{"u":"reset"}')})


def _beyond(log: LocalTransport) -> Awaitable[Any]:
    return log.set_committed("shop", {TP: OffsetAndMetadata(9)})


async def _purged(log: LocalTransport) -> None:
    await log.set_committed("shop", {TP: OffsetAndMetadata(0)})
    await log.purge({TP: 1})


def _future(log: LocalTransport) -> Awaitable[Any]:
    ahead = time.time_ns() // 1_000_000 + 3_600_000
    return log.append({TP: [OutgoingRecord(ahead, b"ada", GOOD.encode(), [])]})


async def _not_compacted(log: LocalTransport) -> None:
    await log.delete_topics(["shop-totals-changelog"])
    await log.create_topics([TopicSpec(name="shop-totals-changelog", partitions=4)])


async def _count(log: LocalTransport) -> None:
    await log.delete_topics(["shop-totals-changelog"])
    await log.create_topics([TopicSpec(name="shop-totals-changelog", partitions=3, compacted=True)])


def _orphan(log: LocalTransport) -> Awaitable[Any]:
    return log.create_topics([TopicSpec(name="shop-old-changelog", partitions=1, compacted=True)])


def _letter(log: LocalTransport) -> Awaitable[Any]:
    async def write() -> None:
        await log.create_topics([TopicSpec(name="shop-dlq", partitions=1)])
        record = OutgoingRecord(1, b"k", b"v", [("__streams.errors.topic", b"orders")])
        await log.append({TopicPartition("shop-dlq", 0): [record]})

    return write()


@pytest.mark.parametrize(
    ("change", "level", "area", "text", "mend"),
    [
        (_reset_mark, "error", "positions", "millstream reset was interrupted", "run the same"),
        (_beyond, "error", "positions", "ends at 1, and the agents are at 9", "millstream reset"),
        (
            _purged,
            "warning",
            "positions",
            "retention took 1 offsets",
            "raise the topic's retention",
        ),
        (_future, "warning", "clock", "orders/1@1 has a time more than 5 min ahead", "the clocks"),
        (_not_compacted, "error", "topics", "'totals', is not compacted", "cleanup.policy=compact"),
        (_count, "error", "topics", "shop-totals-changelog' has 3", "see the message"),
        (_orphan, "warning", "topics", "goes with shop-old-changelog", "delete them if"),
        (_letter, "warning", "dead letters", "1 dead letter waits in shop-dlq", "dlq list"),
    ],
)
def test_the_log(
    project: Path,
    call: Callable[..., Result],
    change: Callable[[LocalTransport], Awaitable[Any]],
    level: str,
    area: str,
    text: str,
    mend: str,
) -> None:
    """Positions, times, topics and letters; a warning leaves the exit code at 0."""
    call("send", "orders", GOOD)
    _change(project, change)
    result = call("doctor", "--json")
    (finding,) = [f for f in _findings(result) if f["level"] != "ok"]
    assert (finding["level"], finding["area"]) == (level, area)
    assert text in finding["text"]
    assert mend in finding["mend"]
    assert result.exit_code == (1 if level == "error" else 0)


@pytest.mark.parametrize(
    ("program", "level", "text"),
    [
        (
            APP.replace("web=False", "state='memory'"),
            "warning",
            "tables are kept in memory: each start replays",
        ),
        (
            APP.replace("web=False", "web_host='0.0.0.0'"),
            "warning",
            "whoever reaches the port can read all tables",
        ),
        (
            APP.replace('key_from="account"', 'key_from="account", retention="1d", compacted=True'),
            "warning",
            "orders is declared with another retention than it has",
        ),
        (
            APP.replace('key_from="account"', 'key_from="account", partitions=7'),
            "error",
            "topic 'orders' has 4 partitions, and the program declares 7",
        ),
        (
            APP.replace("web=False", "broker='memory://'"),
            "error",
            "lives inside one process",
        ),
        (
            APP.replace("web=False", "broker='local://none/shop.db', state_dir='.'"),
            "ok",
            "there is none yet",
        ),
    ],
)
def test_the_program(
    project: Path, call: Callable[..., Result], program: str, level: str, text: str
) -> None:
    """Settings and declarations that do not go with the log, or not with one another."""
    call("send", "orders", GOOD)
    (project / "app.py").write_text(program)
    found = [f for f in _findings(call("doctor", "--json")) if text in f["text"]]
    assert [f["level"] for f in found] == [level]


def test_a_port_that_is_taken(project: Path, call: Callable[..., Result]) -> None:
    """By another program, as no worker runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (project / "app.py").write_text(APP.replace("web=False", f"web_port={port}"))
        (finding,) = _wrong(call("doctor", "--json"))
    assert finding["text"] == f"port {port} on 127.0.0.1 is in use, and no worker of this app runs"


def test_an_address_that_is_none(
    project: Path, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said of the address, and not of the port."""

    def unknown(*_: Any) -> Any:
        raise socket.gaierror("Name or service not known")

    (project / "app.py").write_text(APP.replace("web=False", "web_host='nowhere', web_port=1"))
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    (finding,) = _wrong(call("doctor", "--json"))
    assert finding["text"].startswith("web_host=nowhere is no address: Name or service not known")


def test_state_of_another_log(project: Path, call: Callable[..., Result]) -> None:
    """It would be rebuilt: that is said, and how many records that takes."""
    call("send", "orders", GOOD)
    process_everything(project)
    (project / "shop.db").unlink()
    call("send", "orders", GOOD)
    (finding,) = _wrong(call("doctor", "--json"), "warning")
    assert finding["area"] == "state"
    assert "it is of another log or app, or of a topic that was made anew" in finding["text"]


def test_state_that_is_damaged(project: Path, call: Callable[..., Result]) -> None:
    """The store is named, and what to do with it."""
    call("send", "orders", GOOD)
    process_everything(project)
    store = project / ".millstream" / "shop" / "0" / "4-1"
    next(store.glob("MANIFEST-*")).write_bytes(b"nonsense")
    (finding,) = _wrong(call("doctor", "--json"))
    assert finding["area"] == "state"
    assert finding["mend"] == f"delete {store} while no worker runs: it is rebuilt from the log"


def test_a_folder_that_cannot_be_written(
    project: Path, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log and state both need it."""
    call("send", "orders", GOOD)

    def refuse(**_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    wrong = _wrong(call("doctor", "--json"))
    assert {finding["area"] for finding in wrong} == {"state", "log"}
    assert all(f"{project} cannot be written (Permission denied)" in f["text"] for f in wrong)


@pytest.mark.parametrize(
    ("free", "level"), [(50 << 20, "error"), (500 << 20, "warning"), (2 << 30, "ok")]
)
def test_disks(
    project: Path,
    call: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    level: str,
) -> None:
    """Little room is a warning, none an error."""

    class Usage:
        total = 10 << 30

    monkeypatch.setattr(Usage, "free", free, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    found = [f for f in _findings(call("doctor", "--json")) if "are free on the disk" in f["text"]]
    assert [(f["area"], f["level"]) for f in found] == [("state", level), ("log", level)]


def test_a_file_system_of_another_machine(
    project: Path, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's locks do not hold there."""
    monkeypatch.setattr(_doctor_machine, "file_system", lambda _: "nfs4")
    (finding,) = _wrong(call("doctor", "--json"))
    assert "shop.db is on nfs4, a file system of another machine" in finding["text"]
    assert "put it on a local disk" in finding["mend"]


def test_file_system(tmp_path: Path) -> None:
    """Where the system tells, there is one for every path."""
    known = os.path.exists("/proc/self/mounts")
    assert bool(file_system(tmp_path)) == known


def test_libraries(call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are missing or too old are named; extras are not asked for."""
    needed = ["click>=99.1", "nowhere>=1", "rich>=13", 'kio>=1; extra == "kafka"']
    needed += ["tzdata; sys_platform == 'plan9'"]
    monkeypatch.setattr(metadata, "requires", lambda _: needed)
    (finding,) = _wrong(call("doctor", "--json"))
    assert "click is " in finding["text"]
    assert "and has to be 99.1 or later; nowhere is missing" in finding["text"]
    assert finding["mend"] == "pip install --upgrade millstream"


def test_holder(tmp_path: Path) -> None:
    """Who holds a slot is learnt without trying its lock; a process that has gone does not."""
    from millstream.app._slot import take_slot

    with take_slot(tmp_path / "shop", "0") as slot:
        assert holder(slot) == os.getpid()
    assert holder(slot) is None or not os.path.exists("/proc/locks")
    assert holder(tmp_path) is None


# secrets


def test_secrets_are_not_shown(
    project: Path, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those in a URL nor those in variables, wherever a message would show them."""
    monkeypatch.setenv("MILLSTREAM_TEST_PASSWORD", "hunter2x")
    programs = [
        APP.replace("web=False", "broker='kafka://ada:pa%2Fss@127.0.0.1:1'"),
        APP + "\nraise RuntimeError('hunter2x is no password')\n",
    ]
    for program in programs:
        (project / "app.py").write_text(program)
        for arguments in (["doctor"], ["doctor", "--json"]):
            result = call(*arguments)
            assert result.exit_code == 1
            for secret in ("hunter2x", "pa/ss", "pa%2Fss"):
                assert secret not in result.output
            assert HIDDEN in result.output


def test_scrub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short secrets only where they are words; users' names stay out of URLs as well."""
    monkeypatch.setenv("MILLSTREAM_SSL_KEY_PASSWORD", "abc")
    secrets = secrets_of(Settings(broker="kafka://ada:secret-word@host:9092"))
    assert secrets == {"abc", "secret-word"}
    text = "kafka://ada:secret-word@host:9092 secret-word abc abcd"
    assert scrub(text, secrets) == f"kafka://{HIDDEN}@host:9092 {HIDDEN} {HIDDEN} abcd"
