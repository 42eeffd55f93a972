"""``millstream copy``: an app goes on elsewhere where it stood, whatever interrupts the copy."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from millstream.cli._copy_progress import COPY_GROUP, Progress, checksum
from millstream.cli._copy_records import Copy
from millstream.cli._groups_seat import take_seat
from millstream.clock import ManualClock
from millstream.errors import ConfigurationError, TransportError
from millstream.hooks import observe
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import OffsetAndMetadata, TopicSpec
from millstream.transports.batch import iterate_records
from millstream.transports.local import LocalTransport
from millstream.transports.memory import MemoryLog, MemoryTransport
from millstream.worker._metadata import decode_metadata, encode_metadata
from tests.cli.engine import process_everything
from tests.cli.terminal import APP, poll

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from millstream.transports.base import Transport
    from tests.cli.terminal import Terminal

GOOD = '{"account": "ada", "amount": 2.5}'
SRC, DST = "local://shop.db", "local://other.db"
T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)
TABLE = TopicPartition("table", 0)
WINDOWS = """

hourly = app.table("hourly", key=str, value=int, default=0).tumbling("1h", grace="5m")
by_amount = app.table("by-amount", key=float, value=int, default=0)


@app.agent(orders)
async def windows(stream: ms.Stream[Order]) -> None:
    async for order in stream:
        hourly[order.account] += 1


@app.agent(app.stream(orders).group_by("amount"))
async def group(stream: ms.Stream[Order, float]) -> None:
    async for amount, order in stream.items():
        by_amount[amount] += 1
"""


def test_an_app_goes_on_over_there(
    project: Path, call: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tables, windows, topics between agents, and what was not processed yet."""
    (project / "app.py").write_text(APP + WINDOWS)
    for _ in range(3):
        call("send", "orders", GOOD)
    process_everything(project)
    call("send", "orders", GOOD)  # to be processed over there
    result = call("copy", SRC, DST, "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    data = json.loads(result.stdout)
    assert (data["topics"]["orders"], data["groups"]) == (4, ["shop"])
    tables = ("totals", "hourly", "by-amount")
    before = [call("table", name, "--json").stdout for name in tables]
    monkeypatch.setenv("MILLSTREAM_BROKER", DST)
    assert [call("table", name, "--json").stdout for name in tables] == before
    assert json.loads(call("lag", "--json").stdout)["agents"][0]["lag"] == 1
    process_everything(project)
    assert call("table", "totals", "ada").stdout == "10.0\n"
    assert call("table", "by-amount", "2.5").stdout == "4\n"
    monkeypatch.setenv("MILLSTREAM_BROKER", SRC)
    process_everything(project)
    assert call("table", "totals", "ada").stdout == "10.0\n"


def test_what_is_said(project: Path, call: Callable[..., Result]) -> None:
    """What will be copied, and what was; a second time there is nothing to do."""
    call("send", "orders", GOOD)
    process_everything(project)
    result = call("copy", SRC, DST, "--yes")
    assert result.stdout.splitlines() == [
        f"from local://{project}/shop.db to local://{project}/other.db:",
        "  orders: 4 partitions, 1 record",
        "  shop-totals-changelog: 4 partitions, 2 records",
        "  positions of group shop",
        f"copied 3 records of 2 topics, and compared them; to go on there:"
        f" broker='local://{project}/other.db'",
    ]
    again = call("copy", SRC, DST, "--yes")
    assert again.exit_code == 2
    assert "orders has been copied to local://" in again.stderr


def test_some_topics(project: Path, call: Callable[..., Result]) -> None:
    """Those alone, and of groups only where they stand in them."""
    call("send", "orders", GOOD)
    process_everything(project)
    assert call("copy", SRC, DST, "--topic", "orders", "--yes").exit_code == 0

    async def look() -> list[str]:
        async with LocalTransport(project / "other.db") as log:
            return list(await log.topics())

    assert asyncio.run(look()) == ["orders"]


def test_while_workers_run(project: Path, call: Callable[..., Result], terminal: Terminal) -> None:
    """They are named; nothing is copied."""
    worker = terminal.start("worker")
    worker.until("ready in")
    result = call("copy", SRC, DST, "--yes")
    assert result.exit_code == 1
    assert "1 of app 'shop' is running: slot 0. Stop what runs (Ctrl-C), then copy again" in (
        result.stderr
    )
    assert worker.end()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([SRC, SRC], 2, "SRC and DST are the same log"),
        ([DST, SRC], 2, "does not exist yet"),
        ([SRC, "memory://"], 2, "lives inside one process"),
        ([SRC, "shop.db"], 2, "begins with none of"),
        ([SRC, DST, "--topic", "payments"], 2, "there is no topic 'payments' in local://"),
    ],
)
def test_refused(
    call: Callable[..., Result], arguments: list[str], code: int, message: str
) -> None:
    """What cannot be copied."""
    call("send", "orders", GOOD)
    result = call("copy", *arguments, "--yes")
    assert result.exit_code == code
    assert message in result.stderr
    assert call("copy", SRC, DST).exit_code == 2  # nobody to ask


def test_killed_again_and_again(
    project: Path, call: Callable[..., Result], terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the middle: no worker goes on from a half copy, and the next call goes on there."""

    async def feed() -> None:
        async with LocalTransport(project / "shop.db") as log:
            for n in range(30):
                value = b'{"account": "ada", "amount": %d}' % n
                await log.append({TopicPartition("orders", 1): [_rec(n, value=value, key="ada")]})

    assert call("send", "orders", GOOD).exit_code == 0
    asyncio.run(feed())
    process_everything(project)
    expected = call("table", "totals", "--json").stdout
    done = 0
    for _ in range(3):
        running = terminal.start("copy", SRC, DST, "--yes", command=SLOWLY)
        poll(lambda: _copied(project) > done, what="more of it is copied")  # noqa: B023
        assert running.end(signal.SIGKILL)[0] == -signal.SIGKILL
        assert _copied(project) > done
        done = _copied(project)
        worker = _worker_there(terminal)
        assert worker.returncode == 2, worker.stderr
        assert "millstream copy has begun to change" in worker.stderr
    final = terminal.run("copy", SRC, DST, "--yes")
    assert final.returncode == 0, final.stderr
    assert ", the rest" in final.stdout
    monkeypatch.setenv("MILLSTREAM_BROKER", DST)
    assert call("table", "totals", "--json").stdout == expected
    assert call("lag", "--max", "0").exit_code == 0


SLOWLY = [
    sys.executable,
    "-c",
    """
import asyncio
import millstream.cli._copy_records as copy
from millstream.cli import main
from millstream.cli._groups_seat import Seat

async def slowly(self, offsets, records, real=Seat.commit):
    result = await real(self, offsets, records)
    await asyncio.sleep(0.3)
    return result

copy.EPOCH_BYTES = 300
Seat.commit = slowly
main()
""",
]


def _worker_there(terminal: Terminal) -> Any:
    app = terminal.directory / "app.py"
    app.write_text(APP.replace("web=False", f"web=False, broker={DST!r}"))
    try:
        return terminal.run("worker")
    finally:
        app.write_text(APP)


def _copied(project: Path) -> int:
    """Records in the copy, as far as it is there."""

    async def look() -> int:
        async with LocalTransport(project / "other.db") as log:
            tps = [
                TopicPartition(name, number)
                for name, info in (await log.topics()).items()
                for number in range(info.partitions)
            ]
            return sum((await log.end_offsets(tps)).values()) if tps else 0

    return asyncio.run(look()) if (project / "other.db").exists() else 0


# between two logs in memory


def _rec(number: int, *, key: str | None = "k", value: bytes | None = None) -> OutgoingRecord:
    return OutgoingRecord(
        number,
        None if key is None else key.encode(),
        b"%d" % number if value is None else value,
        [("h", b"1")] if number % 2 else [],
    )


async def _source() -> MemoryTransport:
    """A log with gaps at the start and in between, null keys and values, and groups at several places."""
    log = MemoryTransport(clock=ManualClock(), log=MemoryLog(), name="memory://source")
    await log.create_topics(
        [
            TopicSpec(name="t", partitions=2, retention_ms=1 << 40),
            TopicSpec(name="table", partitions=1, compacted=True),
            TopicSpec(name="empty", partitions=3),
        ]
    )
    for first in range(0, 40, 4):
        await log.append({T0: [_rec(value) for value in range(first, first + 4)]})
    await log.append({T1: [_rec(1, key=None), OutgoingRecord(5, b"k", None, [])]})
    await log.purge({T0: 10})
    for value in range(12):
        await log.append({TABLE: [_rec(value, key=f"k{value % 3}")]})
    await log.maintain()  # of the table offsets 8 (k2), 9 (k0), 10 (k1), 11 (k2) are left
    positions = encode_metadata(77, {"slow": 12, "quick": 33, "done": 40})
    await log.set_committed("app", {T0: OffsetAndMetadata(*positions), T1: OffsetAndMetadata(1)})
    await log.set_committed("app", {TABLE: OffsetAndMetadata(9)})
    await log.set_committed("other", {T0: OffsetAndMetadata(3, "its own words")})
    return log


def _target() -> MemoryTransport:
    return MemoryTransport(clock=ManualClock(), log=MemoryLog(), name="memory://target")


async def _copy(source: Transport, target: Transport, *topics: str) -> Copy:
    copying = Copy(source, target, topics=topics, replication=1)
    await copying.look()
    async with take_seat(target, COPY_GROUP, command="copy") as seat:
        await copying.run(seat)
    return copying


async def _read(log: Transport, tp: TopicPartition, start: int | None = None) -> list[Any]:
    at = (await log.start_offsets([tp]))[tp] if start is None else start
    end = (await log.end_offsets([tp]))[tp]
    reader, found = log.reader(), []
    while at < end:
        for fetched in await reader.fetch({tp: at}, max_bytes=1 << 20, max_wait_s=1.0):
            found += [
                (r.timestamp, r.key, r.value, tuple(r.headers))
                for r in iterate_records(fetched.data, where=str(tp), position=at)
            ]
            at = fetched.next_offset
    await reader.close()
    return found


async def _check(source: Transport, target: Transport) -> None:
    """The copy holds the same, and whoever stood before a record stands before it again."""
    assert {
        name: (info.partitions, info.retention_ms, info.compacted)
        for name, info in (await target.topics()).items()
    } == {
        name: (info.partitions, info.retention_ms, info.compacted)
        for name, info in (await source.topics()).items()
    }
    for tp in (T0, T1, TABLE):
        assert await _read(target, tp) == await _read(source, tp)
    for group in ("app", "other"):
        before = await source.committed(group, [T0, T1, TABLE])
        after = await target.committed(group, [T0, T1, TABLE])
        assert before.keys() == after.keys()
        for tp, (offset, text) in before.items():
            start = (await source.start_offsets([tp]))[tp]
            assert await _read(target, tp, after[tp].offset) == await _read(
                source, tp, max(start, offset)
            )
            old, new = decode_metadata(text), decode_metadata(after[tp].metadata)
            assert (old.t, old.a.keys(), new.u) == (new.t, new.a.keys(), "")
            for name, at in old.a.items():
                assert await _read(target, tp, new.a[name]) == await _read(source, tp, at)
    assert (await target.committed("other", [T0]))[T0].metadata == "its own words"


async def test_everything_comes_along() -> None:
    """Settings, records as they were, and positions that mean the same, although offsets are others."""
    source, target = await _source(), _target()
    copying = await _copy(source, target)
    assert (await target.end_offsets([T0, TABLE])) == {T0: 30, TABLE: 4}
    assert copying.notes == []
    await _check(source, target)


@pytest.mark.parametrize("point", ["commit.writing", "commit.positioned"])
@pytest.mark.parametrize("which", range(8))
async def test_interrupted(monkeypatch: pytest.MonkeyPatch, point: str, which: int) -> None:
    """At any epoch: the next call goes on there, and nothing comes twice."""
    monkeypatch.setattr("millstream.cli._copy_records.EPOCH_BYTES", 200)
    source, target = await _source(), _target()
    seen = 0

    def fail(reached: str, _: dict[str, object]) -> None:
        nonlocal seen
        seen += reached == point
        if seen == which + 1:
            raise TransportError("pulled the plug")

    with observe(fail), pytest.raises(TransportError, match="plug"):
        await _copy(source, target)
    if which:
        mark = (await target.committed("app", [T0])).get(T0)
        assert mark is not None
        assert decode_metadata(mark.metadata).u == "copy"
    await _copy(source, target)
    await _check(source, target)


@pytest.mark.parametrize("which", range(1, 5))
async def test_interrupted_between_groups(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    """A group that was brought over, and may have worked since, is not moved again."""
    source, target = await _source(), _target()
    real, calls = MemoryTransport.set_committed, 0

    async def fail(self: MemoryTransport, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == which:
            raise TransportError("pulled the plug")
        await real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryTransport, "set_committed", fail)
        with pytest.raises(TransportError, match="plug"):
            await _copy(source, target)
    if which == 4:  # two marks, then "app" was there
        await target.set_committed("app", {T1: OffsetAndMetadata(2)})
    await _copy(source, target)
    if which == 4:
        assert (await target.committed("app", [T1]))[T1].offset == 2
    else:
        await _check(source, target)


async def test_records_that_come_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are copied as well."""
    source, target = await _source(), _target()
    real, late = Copy._records, [_rec(100)]

    async def records(self: Copy, seat: Any) -> None:
        await real(self, seat)
        if late:
            await source.append({T0: [late.pop()]})

    monkeypatch.setattr(Copy, "_records", records)
    await _copy(source, target)
    await _check(source, target)
    assert (await _read(target, T0))[-1][2] == b"100"


async def test_somebody_else_writes_over_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison finds it, and the groups stay away."""
    source, target = await _source(), _target()
    real = Copy._records

    async def records(self: Copy, seat: Any) -> None:
        await real(self, seat)
        await target.append({T1: [_rec(9)]})

    monkeypatch.setattr(Copy, "_records", records)
    with pytest.raises(TransportError, match="t/1 holds 3 records in memory://target, and 2 were"):
        await _copy(source, target)
    found = (await target.committed("app", [T0]))[T0]
    assert decode_metadata(found.metadata).u == "copy"


async def test_a_destination_that_cleans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What compaction or retention take over there is said, and is no error."""
    source, target = await _source(), _target()
    real = Copy._records

    async def records(self: Copy, seat: Any) -> None:
        await real(self, seat)
        await target.purge({T0: 7})

    monkeypatch.setattr(Copy, "_records", records)
    copying = await _copy(source, target)
    assert copying.notes == [
        "of 30 records of t/0, 23 are left: the destination has begun to clean the topic up, as its"
        " settings say"
    ]


@pytest.mark.parametrize(
    ("there", "message"),
    [
        (
            "partitions",
            "topic 't' has 2 partitions in the source, and 3 partitions in memory://targ",
        ),
        ("compacted", "and 1 partitions in memory://target"),
        ("records", "t/0 holds records in memory://target already, which are not of this copy"),
        ("group", "group 'app' stands in t of memory://target already"),
        ("another", "t in memory://target was copied from another log"),
        ("program", "group 'millstream-copy' of the destination is another program's"),
    ],
)
async def test_a_destination_with_something_else(there: str, message: str) -> None:
    """Nothing of it is touched."""
    source, target = await _source(), _target()
    if there == "partitions":
        await target.create_topics([TopicSpec(name="t", partitions=3)])
    elif there == "compacted":
        await target.create_topics([TopicSpec(name="table", partitions=1)])
    else:
        await target.create_topics([TopicSpec(name="t", partitions=2)])
    if there == "records":
        await target.append({T0: [_rec(1)]})
    elif there == "group":
        await target.set_committed("app", {T0: OffsetAndMetadata(1)})
    elif there == "another":
        progress = Progress(source="another", at=3)
        await target.set_committed(COPY_GROUP, {T0: progress.encode(T0)})
    elif there == "program":
        await target.set_committed(COPY_GROUP, {T0: OffsetAndMetadata(1, "words")})
    with pytest.raises(ConfigurationError, match=message):
        await _copy(source, target)
    assert set(await target.topics()) <= {"t", "table"}


async def test_a_group_that_was_being_reset() -> None:
    """Its tables do not go with its positions: that has to be finished first."""
    source, target = await _source(), _target()
    await source.set_committed("app", {T1: OffsetAndMetadata(0, '{"u":"reset"}')})
    with pytest.raises(ConfigurationError, match="millstream reset has begun"):
        await _copy(source, target)


def test_places_are_kept() -> None:
    """Each wanted offset becomes that of the first record at or after it."""
    progress = Progress(source="s", at=0)
    records = [_rec(n) for n in range(3)]
    progress = progress.took([4, 7, 8], records, next_offset=10, first=100, wanted=[0, 4, 5, 8, 9])
    assert progress.places == {"0": 100, "4": 100, "5": 101, "8": 102}
    progress = progress.took([11], [_rec(3)], next_offset=12, first=103, wanted=[5, 9, 12])
    assert progress.places == {"0": 100, "4": 100, "5": 101, "8": 102, "9": 103}
    assert (progress.at, progress.records) == (12, 4)
    assert progress.crc == checksum(checksum(0, records), [_rec(3)])
    assert Progress.decode(progress.encode(T0)) == progress


def test_more_places_than_fit() -> None:
    """An error that says what to do."""
    progress = Progress(source="s", at=0, places={str(n): n for n in range(10**6, 10**6 + 400)})
    with pytest.raises(ConfigurationError, match="stand at 400 places in t/0"):
        progress.encode(T0)


@pytest.mark.parametrize(
    "other",
    [
        OutgoingRecord(2, b"k", b"v", []),
        OutgoingRecord(1, b"kv", b"", []),
        OutgoingRecord(1, None, b"kv", []),
        OutgoingRecord(1, b"k", None, [("v", b"")]),
        OutgoingRecord(1, b"k", b"v", [("h", b"")]),
    ],
)
def test_checksum(other: OutgoingRecord) -> None:
    """Every part of a record counts, and where it ends."""
    assert checksum(0, [other]) != checksum(0, [OutgoingRecord(1, b"k", b"v", [])])
