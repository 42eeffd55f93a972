"""``millstream groups``: who works, where, and how it is; and the names of other groups."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest

from millstream.cli._groups import members_of, shown_shards
from millstream.records import TopicPartition
from millstream.transports.base import GroupDescription, OffsetAndMetadata
from millstream.transports.local import LocalTransport
from tests.cli.terminal import APP, poll

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from tests.cli.terminal import Terminal

GOOD = '{"account": "ada", "amount": 2.5}'


def _commit(project: Path, group: str) -> None:
    async def commit() -> None:
        async with LocalTransport(project / "shop.db") as log:
            await log.set_committed(group, {TopicPartition("orders", 0): OffsetAndMetadata(0)})

    asyncio.run(commit())


def test_nobody_works(project: Path, call: Callable[..., Result]) -> None:
    """The app's group is listed without workers; others by name, and with --all in full."""
    call("send", "orders", GOOD)
    _commit(project, "billing")
    result = call("groups")
    assert result.stdout == "shop\t0\t\t\t\tno worker\t\t\n"
    assert result.stderr == "also in this log: billing; --all shows them\n"
    result = call("groups", "--all", "--json")
    assert json.loads(result.stdout) == [
        {"group": "shop", "generation": 0, "members": []},
        {"group": "billing", "generation": 0, "members": []},
    ]
    assert result.stderr == ""


def test_workers(project: Path, call: Callable[..., Result], terminal: Terminal) -> None:
    """Each one with slot, address, shards, and its own word on how it is."""
    (project / "app.py").write_text(APP.replace(", web=False", ""))
    workers = terminal.start("worker", "--processes", "2")
    workers.until(r"worker \d ready in", times=2)

    def state() -> dict[str, Any]:
        (row,) = json.loads(call("groups", "--json").stdout)
        found: dict[str, Any] = row
        return found

    def shared() -> bool:
        # two shards move to the second worker once its copies are warm
        members = state()["members"]
        return [len(m["shards"]) for m in members] == [2, 2] and all(
            m["state"] == "ready" for m in members
        )

    poll(shared, what="both workers are ready with two shards each")
    row = state()
    members = row["members"]
    assert row["generation"] >= 2
    assert sorted(member["slot"] for member in members) == ["0", "1"]
    assert sorted(shard for member in members for shard in member["shards"]) == [
        [4, number] for number in range(4)
    ]
    urls = set(re.findall(r"http://\S+", workers.output))
    assert {member["url"] for member in members} == urls
    assert {member["state"] for member in members} == {"ready"}
    lines = [line.split("\t") for line in call("groups").stdout.splitlines()]
    assert [(line[0], line[5]) for line in lines] == [("shop", "ready")] * 2
    assert sorted(line[4] for line in lines) == ["0-1 of 4", "2-3 of 4"]
    assert workers.end()[0] == 0
    assert json.loads(call("groups", "--json").stdout)[0]["members"] == []


def test_a_worker_that_does_not_answer(
    project: Path,
    call: Callable[..., Result],
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is said, and nobody waits for it for long."""
    monkeypatch.setattr("millstream.cli._groups.ANSWER_S", 0.2)
    (project / "app.py").write_text(APP.replace(", web=False", ""))
    worker = terminal.start("worker")
    worker.until("ready in")
    worker.process.send_signal(signal.SIGSTOP)
    try:
        (row,) = json.loads(call("groups", "--json").stdout)
    finally:
        worker.process.send_signal(signal.SIGCONT)
    assert row["members"][0]["state"].startswith("does not answer (")


def test_a_worker_without_http(call: Callable[..., Result], terminal: Terminal) -> None:
    """Its shards are known from the group all the same."""
    worker = terminal.start("worker")
    worker.until("ready in")
    assert call("groups").stdout.split("\t")[2:6] == ["0", "", "0-3 of 4", "serves no HTTP"]


def test_members_that_are_no_workers() -> None:
    """Of another program nothing is known but its name."""
    described = GroupDescription(
        group="g", generation=1, members={"m-1": b"\x00\x01"}, assigned={"m-1": b"\x00"}
    )
    (member,) = members_of(described)
    assert (member.about, member.shards, str(member)) == (None, [], "m-1")


@pytest.mark.parametrize(
    ("shards", "text"),
    [
        ([], ""),
        ([(4, 0)], "0 of 4"),
        ([(4, 3), (4, 0), (4, 1)], "0-1, 3 of 4"),
        ([(12, 11), (1, 0)], "0 of 1; 11 of 12"),
    ],
)
def test_shown_shards(shards: list[tuple[int, int]], text: str) -> None:
    """Ranges, by partition count."""
    assert shown_shards(shards) == text
