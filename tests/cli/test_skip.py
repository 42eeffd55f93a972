"""``millstream skip``: past the one record that stops an agent, and past nothing else."""

from __future__ import annotations

import asyncio
import json
import shutil
from typing import TYPE_CHECKING

import pytest

from millstream.cli._log import AgentPositions, open_log
from millstream.cli._skip import past
from millstream.errors import ProgramError
from millstream.records import OutgoingRecord, Position, TopicPartition
from millstream.transports.base import OffsetAndMetadata
from millstream.worker._metadata import decode_metadata, encode_metadata
from tests.cli.conftest import forget
from tests.cli.engine import process_everything
from tests.cli.terminal import APP, poll

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from tests.cli.terminal import Terminal

BAD = '{"account": "ada", "amount": -1}'
GOOD = '{"account": "ada", "amount": 2.5}'
TP = TopicPartition("orders", 1)
OTHER = """

@app.agent(orders)
async def other(stream: ms.Stream[Order]) -> None:
    async for order in stream: ...
"""


def _committed(project: Path) -> OffsetAndMetadata | None:
    from millstream.cli._find import find_app

    async def look() -> OffsetAndMetadata | None:
        async with open_log(find_app(None, project)) as transport:
            return (await transport.committed("shop", [TP])).get(TP)

    forget(project)
    return asyncio.run(look())


def _commit(project: Path, stream_time: int, **positions: int) -> None:
    from millstream.cli._find import find_app

    async def commit() -> None:
        async with open_log(find_app(None, project)) as transport:
            found = OffsetAndMetadata(*encode_metadata(stream_time, positions))
            await transport.set_committed("shop", {TP: found})

    forget(project)
    asyncio.run(commit())


def test_the_record_that_stops_a_worker(
    project: Path, call: Callable[..., Result], terminal: Terminal
) -> None:
    """It is skipped where nothing was committed before, and the worker goes on behind it."""
    call("send", "orders", BAD)
    call("send", "orders", GOOD)
    stopped = terminal.run("worker")
    assert stopped.returncode == 1
    assert stopped.stderr.startswith("Error: agent 'count' raised ValueError: negative on record")
    assert "millstream skip orders/1@0" in stopped.stderr
    result = call("skip", "orders/1@0")
    assert result.output == "skipped orders/1@0 for count, which goes on with orders/1@1\n"
    process_everything(project)
    assert call("table", "totals", "ada").stdout == "2.5\n"


@pytest.mark.parametrize(
    ("positions", "record", "moved"),
    [
        ({"count": 2, "other": 2}, 2, {"count": 3, "other": 3}),  # both have it before them
        ({"count": 2, "other": 4}, 2, {"count": 3, "other": 4}),  # one is past it
        (
            {"count": 3, "other": 1},
            3,
            {"count": 4, "other": 1},
        ),  # one has records before it to read
    ],
)
def test_agents_move_by_themselves(
    project: Path,
    call: Callable[..., Result],
    positions: dict[str, int],
    record: int,
    moved: dict[str, int],
) -> None:
    """Only agents whose next record it is; the others and stream time stay."""
    (project / "app.py").write_text(APP + OTHER)
    for _ in range(5):
        call("send", "orders", GOOD)
    _commit(project, 1_234, **positions)
    assert call("skip", f"orders/1@{record}").exit_code == 0
    found = _committed(project)
    assert found is not None
    assert found.offset == min(moved.values())
    metadata = decode_metadata(found.metadata)
    assert metadata.t == 1_234
    assert {name: metadata.a.get(name, found.offset) for name in moved} == moved


def test_a_pipeline_of_several_topics(project: Path, call: Callable[..., Result]) -> None:
    """Its position in the one topic moves, and is kept under the name of the topic."""
    lines = """
others = app.topic("others", value=Order)
app.stream(orders).merge(app.stream(others)).foreach(print)
"""
    (project / "app.py").write_text(APP + lines)
    for _ in range(5):
        call("send", "orders", GOOD)
    _commit(project, 7, **{"count": 1, "stream:orders": 3})
    assert "skipped orders/1@3 for stream:orders+others," in call("skip", "orders/1@3").output
    found = _committed(project)
    assert found is not None
    assert decode_metadata(found.metadata).a == {"stream:orders": 4}


def test_a_record_that_is_not_the_next_one(project: Path, call: Callable[..., Result]) -> None:
    """It is refused, with where the agents are; nothing changes."""
    for _ in range(3):
        call("send", "orders", GOOD)
    _commit(project, 7, count=1)
    before = _committed(project)
    for record in ("orders/1@0", "orders/1@2"):
        result = call("skip", record)
        assert result.exit_code == 1
        assert f"{record} is the next record of no agent: count at orders/1@1" in result.stderr
    assert _committed(project) == before


@pytest.mark.parametrize(
    ("record", "code", "message"),
    [
        ("orders/1@3", 1, "there is no such record; orders/1 ends at 1"),
        ("orders/9@0", 2, "topic 'orders' has 4 partitions"),
        ("other/1@0", 2, "no agent of app 'shop' reads 'other': it reads orders"),
        ("orders/1", 2, "is not a record"),
    ],
)
def test_refused(call: Callable[..., Result], record: str, code: int, message: str) -> None:
    """What is no record of this app."""
    call("send", "orders", GOOD)
    result = call("skip", record)
    assert result.exit_code == code
    assert message in result.stderr


def test_gaps() -> None:
    """Compaction leaves gaps: what counts is the first record at or after a position."""
    positions = AgentPositions(committed={}, starts={TP: 0}, ends={TP: 9}, at={("count", TP): 2})
    assert past(Position(*TP, 5), positions, {"count": 5}) == {"count": 6}
    with pytest.raises(ProgramError, match="count at orders/1@5"):
        past(Position(*TP, 2), positions, {"count": 5})


def test_while_a_worker_runs(call: Callable[..., Result], terminal: Terminal) -> None:
    """Workers have to be stopped first."""
    worker = terminal.start("worker")
    worker.until("ready in")
    call("send", "orders", GOOD)
    result = call("skip", "orders/1@0")
    assert result.exit_code == 1
    assert "workers of app 'shop' are running: stop them first" in result.stderr

    def lag() -> int:
        return int(json.loads(call("agents", "--json").stdout)[0]["lag"])

    poll(lambda: lag() == 0, what="the record is processed")
    assert worker.end()[0] == 0


READS = """
import millstream as ms

app = ms.App("shop", web=False, partitions=1)
names = app.topic("names", key=str, value=str)
by_key = app.table("by-key", topic=names)
"""


def _append(project: Path, tp: TopicPartition, *records: tuple[bytes, bytes]) -> None:
    """Put bytes into a topic, as another program might."""
    from millstream.cli._find import find_app

    async def append() -> None:
        async with open_log(find_app(None, project)) as transport:
            listed = [OutgoingRecord(0, key, value, []) for key, value in records]
            await transport.append({tp: listed})

    forget(project)
    asyncio.run(append())


def test_a_record_of_a_tables_topic(
    project: Path, call: Callable[..., Result], terminal: Terminal
) -> None:
    """What was skipped is no entry of the table, also when it is built anew from the topic."""
    (project / "app.py").write_text(READS)
    assert call("send", "names", '"Ada"', "--key", "a").exit_code == 0
    _append(project, TopicPartition("names", 0), (b"a", b"7"), (b"b", b'"Bob"'))
    stopped = terminal.run("worker")
    assert stopped.returncode == 1
    assert (
        "agent 'table:by-key' raised DecodeError: names/0@1: the value is not str" in stopped.stderr
    )
    result = call("skip", "names/0@1")
    assert result.output == "skipped names/0@1 for table:by-key, which goes on with names/0@2\n"
    for _ in range(2):
        process_everything(project)
        assert call("table", "by-key", "a").stdout == "Ada\n"
        assert call("table", "by-key", "b").stdout == "Bob\n"
        worker = terminal.start("worker", "--log-level", "info")
        worker.until("ready in")
        assert worker.end()[0] == 0
        shutil.rmtree(project / ".millstream")
