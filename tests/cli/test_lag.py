"""``millstream lag``: records and time that the agents are behind, by partition and in all."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from millstream.cli._lag import first_timestamps, shown_age
from millstream.clock import ManualClock
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import OffsetAndMetadata, TopicSpec
from millstream.transports.local import LocalTransport
from millstream.transports.memory import MemoryTransport
from millstream.worker._metadata import encode_metadata
from tests.cli.engine import process_everything
from tests.cli.terminal import APP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from tests.cli.terminal import Terminal

GOOD = '{"account": "ada", "amount": 2.5}'
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")
TP = TopicPartition("orders", 1)
OTHER = """

@app.agent(orders)
async def other(stream: ms.Stream[Order]) -> None:
    async for order in stream: ...
"""


def _append(project: Path, *timestamps: int) -> None:
    async def append() -> None:
        async with LocalTransport(project / "shop.db") as log:
            await log.append(
                {TP: [OutgoingRecord(at, b"ada", GOOD.encode(), []) for at in timestamps]}
            )

    asyncio.run(append())


def _commit(project: Path, **positions: int) -> None:
    async def commit() -> None:
        async with LocalTransport(project / "shop.db") as log:
            found = OffsetAndMetadata(*encode_metadata(7, positions))
            await log.set_committed("shop", {TP: found})

    asyncio.run(commit())


def _row(result: Result, agent: str) -> dict[str, Any]:
    rows = json.loads(result.stdout)["partitions"]
    return next(row for row in rows if row["agent"] == agent and row["partition"] == 1)


def test_agents_are_behind_by_themselves(project: Path, call: Callable[..., Result]) -> None:
    """Each has its own position in a partition, and its own oldest record."""
    (project / "app.py").write_text(APP + OTHER)
    call("send", "orders", GOOD)
    now = time.time_ns() // 1_000_000
    _append(project, now - 7_200_000, now - 60_000, now - 1_000)
    _commit(project, count=1, other=3)
    result = call("lag", "--json")
    count, other = _row(result, "count"), _row(result, "other")
    assert (count["committed"], count["end"], count["lag"]) == (1, 4, 3)
    assert count["oldest"] == now - 7_200_000
    assert 7_200_000 <= count["oldest_age_ms"] < 7_300_000
    assert (other["committed"], other["lag"], other["oldest"]) == (3, 1, now - 1_000)
    totals = {row["agent"]: row for row in json.loads(result.stdout)["agents"]}
    assert (totals["count"]["lag"], totals["other"]["lag"]) == (3, 1)
    lines = call("lag").stdout.splitlines()
    assert "count\torders/1\t1\t4\t3\t2 h" in lines
    assert "count\tall\t\t\t3\t2 h" in lines


def test_what_was_never_committed(call: Callable[..., Result]) -> None:
    """All that the log holds is before the agent; nothing is committed."""
    call("send", "orders", GOOD)
    result = call("lag", "--json")
    row = _row(result, "count")
    assert (row["committed"], row["end"], row["lag"]) == (None, 1, 1)
    assert "no worker is running: lag is by the positions that were committed last" in result.stderr


def test_a_bound(project: Path, call: Callable[..., Result]) -> None:
    """--max is for alerts: the exit code tells."""
    call("send", "orders", GOOD)
    assert call("lag", "--max", "0").exit_code == 1
    assert call("lag", "--max", "1").exit_code == 0
    process_everything(project)
    assert call("lag", "--max", "0").exit_code == 0
    assert call("lag", "--max", "0", "--watch").exit_code == 2


def test_watch(terminal: Terminal) -> None:
    """It goes on, one JSON line or one block each time, until Ctrl-C."""
    assert terminal.run("send", "orders", GOOD).returncode == 0
    watching = terminal.start("lag", "--watch", "--interval", "100ms", "--json")
    watching.until(r'"agent":"count","partitions":4,"lag":1')
    assert terminal.run("send", "orders", GOOD).returncode == 0
    watching.until(r'"agent":"count","partitions":4,"lag":2')
    assert watching.end()[0] == 130
    assert "Traceback" not in watching.output
    for line in watching.output.splitlines()[:2]:
        assert len(json.loads(line)["partitions"]) == 4


@posix_only
def test_on_a_terminal(terminal: Terminal) -> None:
    """A person sees headings; while it is watched, in place."""
    assert terminal.run("send", "orders", GOOD).returncode == 0
    code, shown = terminal.look("lag")
    assert code == 0
    heading, *rows = shown.splitlines()
    assert heading.split() == ["agent", "partition", "committed", "end", "lag", "oldest"]
    assert [row.split()[:4] for row in rows[:2]] == [
        ["count", "orders/0", "0", "0"],
        ["count", "orders/1", "1", "1"],
    ]
    code, shown = terminal.look(
        "lag", "--watch", "--interval", "100ms", until="orders/3", interrupt=True
    )
    assert code == 130
    assert "Traceback" not in shown


def test_offsets_without_records(
    call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker's own markers at the end of a partition are nothing that an agent has before it."""

    async def nothing(*_: object) -> dict[object, int]:
        return {}

    call("send", "orders", GOOD)
    monkeypatch.setattr("millstream.cli._lag.first_timestamps", nothing)
    row = _row(call("lag", "--json"), "count")
    assert (row["committed"], row["end"], row["lag"], row["oldest"]) == (None, 1, 0, None)


async def test_first_timestamps() -> None:
    """Of several places in one partition, past gaps, in batches of any size."""
    clock = ManualClock()
    log = MemoryTransport(clock=clock)
    await log.create_topics([TopicSpec(name="t", partitions=2, compacted=True)])
    one, two = TopicPartition("t", 0), TopicPartition("t", 1)
    for at in range(5):
        await log.append({one: [OutgoingRecord(100 + at, b"k", b"v", [])]})
    await log.append({two: [OutgoingRecord(7, b"k", b"v", []), OutgoingRecord(8, b"l", b"v", [])]})
    await log.maintain()  # of partition 0 offsets 3 and 4 are left
    ends = await log.end_offsets([one, two])
    places = [(one, 0), (one, 4), (one, 5), (two, 1)]
    assert await first_timestamps(log, places[:2] + places[3:], ends) == {
        (one, 0): 103,
        (one, 4): 104,
        (two, 1): 8,
    }


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, None),
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1 s"),
        (59_999, "59 s"),
        (60_000, "1 min"),
        (7_200_000, "2 h"),
        (86_400_000 * 3, "3 d"),
    ],
)
def test_shown_age(milliseconds: int | None, text: str | None) -> None:
    """One unit, rounded down."""
    assert shown_age(milliseconds) == text
