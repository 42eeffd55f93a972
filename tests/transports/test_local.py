"""The embedded log passes the suite, and says clearly what is wrong with a file."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from millstream.clock import ManualClock, SystemClock
from millstream.errors import (
    ConfigurationError,
    InternalError,
    LogDamagedError,
    LogUnavailableError,
    MillstreamError,
    UnknownMemberError,
)
from millstream.transports.base import TopicSpec
from millstream.transports.local import LocalTransport, changes, groups, membership, upkeep
from millstream.transports.local import file as log_file
from millstream.transports.local.file import LogFile
from millstream.transports.local.threads import Threads
from tests.transports.conformance import *  # noqa: F403
from tests.transports.conformance import (
    A0,
    A1,
    assign,
    assigned,
    epoch,
    eventually,
    fetch_now,
    join,
    maintain,
    read,
    rec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from millstream.transports.base import Fetched


class ShiftedClock(SystemClock):
    """The machine's clock, so many ms ahead."""

    def __init__(self) -> None:
        self.shift = 0

    def now(self) -> int:
        return super().now() + self.shift


class LocalLab:
    """A log in a file, for the suite."""

    dense = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._clock = ShiftedClock()

    def open_transport(self) -> LocalTransport:
        return LocalTransport(self._path, clock=self._clock)

    async def evict(self, group: str, member_id: str) -> None:
        file = LogFile(self._path)
        connection = file.connect(durable=False)
        with file.writing(connection):
            groups.remove_member(connection, group, member_id)
            groups.rebalance(connection, group, assign)
        connection.close()

    def advance(self, milliseconds: int) -> None:
        self._clock.shift += milliseconds


async def test_the_fence_is_inside_the_transaction(
    lab: LocalLab, transport: LocalTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member that is removed just before the epoch's transaction begins is fenced by it (invariant 25)."""
    assignment = await assigned(await join(transport))
    writing, armed = LogFile.writing, True

    @contextmanager
    def late(self: LogFile, connection: sqlite3.Connection) -> Iterator[float]:
        nonlocal armed
        if armed:
            armed = False
            asyncio.run(lab.evict("g", assignment.member_id))
        with writing(self, connection) as waited:
            yield waited

    monkeypatch.setattr(LogFile, "writing", late)
    with pytest.raises(UnknownMemberError):
        await transport.commit(epoch(assignment, {A0: 1}, {A1: [rec("x")]}))
    assert await transport.end_offsets([A1]) == {A1: 0}


@pytest.fixture
def lab(tmp_path: Path) -> LocalLab:
    """A log that does not exist yet."""
    return LocalLab(tmp_path / "log.db")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log that does not exist yet."""
    return tmp_path / "log.db"


async def written(path: Path, batches: int = 3) -> None:
    """A log with batches of one record each."""
    async with LocalTransport(path) as transport:
        await transport.create_topics([TopicSpec(name="a", partitions=2)])
        for number in range(batches):
            await transport.append({A0: [rec(str(number), "v" * 500)]})


def edit(path: Path, *statements: str) -> None:
    """Change a file that nobody has open."""
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


# opening


async def test_the_url_is_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is told in full, and names with special characters are only names."""
    monkeypatch.chdir(tmp_path)
    async with LocalTransport("a %20 b?#.db") as transport:
        assert transport.url == f"local://{tmp_path / 'a %20 b?#.db'}"
        assert "a %20 b?#.db" in os.listdir(tmp_path)


async def test_everything_is_there_after_closing(path: Path) -> None:
    """A closed log is one file, without a -wal beside it."""
    await written(path)
    assert os.listdir(path.parent) == ["log.db"]
    async with LocalTransport(path) as transport:
        assert len(await read(transport, A0)) == 3


async def test_a_closed_log_cannot_be_used(path: Path) -> None:
    """Using it before it is open or after it was closed is a bug of ours, and says so."""
    transport = LocalTransport(path)
    with pytest.raises(InternalError, match="not open"):
        await transport.topics()
    async with transport:
        await transport.topics()
    with pytest.raises(InternalError, match="not open"):
        await transport.append({})


def test_an_empty_file_is_a_new_log(path: Path) -> None:
    """A file of no bytes becomes a log."""
    path.touch()
    asyncio.run(written(path))


def other_database(path: Path) -> None:
    """A database of another program."""
    edit(path, "CREATE TABLE t (x)")


def newer_log(path: Path) -> None:
    """A log that a later version has written."""
    asyncio.run(written(path))
    edit(path, "PRAGMA user_version=7")


def no_directory(path: Path) -> None:
    """Nothing to put the file into."""
    path.parent.rmdir()


UNFIT = [
    # what is at the path, the error, words of its sentence
    (no_directory, ConfigurationError, "no directory"),
    (lambda path: path.mkdir(), ConfigurationError, "that is a directory"),
    (lambda path: path.write_text("hello " * 200), LogDamagedError, "damaged"),
    (other_database, ConfigurationError, "another program"),
    (newer_log, ConfigurationError, "newer Millstream \\(schema 7"),
]


@pytest.mark.parametrize(("prepare", "error", "words"), UNFIT)
def test_what_cannot_be_a_log(
    path: Path, prepare: Callable[[Path], object], error: type[MillstreamError], words: str
) -> None:
    """The error names the path and what is there, and nothing at the path is changed."""
    prepare(path)
    before = path.read_bytes() if path.is_file() else None

    async def use() -> None:
        async with LocalTransport(path):
            pass

    with pytest.raises(error, match=words) as caught:
        asyncio.run(use())
    assert str(path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory for which permissions hold, even in tests that run as root."""
    if sys.platform == "win32":
        pytest.skip("permissions")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        asyncio.run(written(directory / "log.db"))
        root = os.geteuid() == 0
        os.chmod(directory / "log.db", 0o444)
        os.chmod(directory, 0o555)
        if root:
            os.seteuid(65_534)
        try:
            yield directory
        finally:
            if root:
                os.seteuid(0)
            os.chmod(directory, 0o755)


@pytest.mark.parametrize("name", ["log.db", "new.db"])
async def test_a_log_that_may_not_be_written(unprivileged: Path, name: str) -> None:
    """A read-only file, and a directory that takes no new one, are told at once."""
    with pytest.raises(LogUnavailableError, match=r"read-only|cannot be opened"):
        async with LocalTransport(unprivileged / name):
            pass


# damage


async def test_a_wrong_checksum_is_named(path: Path) -> None:
    """Partition and offset are in the error, and the other batches can still be read."""
    await written(path)
    edit(
        path,
        "UPDATE batches SET data = CAST(substr(data, 1, length(data) - 1) || x'ff' AS BLOB)"
        " WHERE base_offset = 1",
    )
    async with LocalTransport(path) as transport:
        with pytest.raises(LogDamagedError, match="a/0: the batch at offset 1"):
            await fetch_now(transport, {A0: 1})
        assert [offset for offset, _, _ in await read(transport, A0, 2)] == [2]


@pytest.mark.parametrize(
    "data", ["x''", "zeroblob(200)", "substr(data, 1, 100)", "'text'", "data || data"]
)
async def test_a_batch_that_is_none_is_named(path: Path, data: str) -> None:
    """Whatever is in its place, the reader gets an error and not an empty answer."""
    await written(path)
    edit(path, f"UPDATE batches SET data = {data} WHERE base_offset = 1")
    async with LocalTransport(path) as transport:
        with pytest.raises(LogDamagedError, match="a/0: the batch at offset 1"):
            await fetch_now(transport, {A0: 1})


def test_a_damaged_file_is_named(path: Path) -> None:
    """Pages that were overwritten are an error with the path, and with what to do."""
    asyncio.run(written(path, 200))
    whole = path.read_bytes()
    path.write_bytes(whole[:4_096] + b"\xa5" * (len(whole) - 4_096))

    async def use() -> None:
        async with LocalTransport(path) as transport:
            await transport.topics()

    with pytest.raises(LogDamagedError, match=r"log\.db is damaged.*recover"):
        asyncio.run(use())


# durable, full, and locked


@pytest.mark.parametrize(("durable", "synchronous"), [(True, 2), (False, 1)])
async def test_what_a_commit_waits_for(path: Path, durable: bool, synchronous: int) -> None:
    """Epochs sync the -wal file with each commit (FULL), heartbeats and upkeep do not (NORMAL)."""
    await written(path)
    connection = LogFile(path).connect(durable=durable)
    assert connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


async def test_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of what does not fit is written, and what fits still goes in."""
    await written(path)
    connect = LogFile.connect

    def small(file: LogFile, *, durable: bool) -> sqlite3.Connection:
        connection = connect(file, durable=durable)
        connection.execute("PRAGMA max_page_count=40")
        return connection

    monkeypatch.setattr(LogFile, "connect", small)
    async with LocalTransport(path) as transport:
        for _ in range(3):
            with pytest.raises(LogUnavailableError, match=r"disk of .*log\.db is full"):
                await transport.append({A1: [rec("s")], A0: [rec("x", "v" * 200_000)]})
        assert await transport.end_offsets([A0, A1]) == {A0: 3, A1: 0}
        assert await transport.append({A0: [rec("small")]}) == {A0: 3}


async def test_a_log_that_another_process_has_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer waits so long and no longer; readers do not wait, and afterwards all is well."""
    await written(path)
    async with LocalTransport(path) as transport:
        for name in ("LOCK_WAIT_S", "LOCK_GRACE_S", "LEASE_S"):
            monkeypatch.setattr(log_file, name, 0.1)
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogUnavailableError, match=r"is locked by .*process"):
            await transport.append({A0: [rec("x")]})
        assert len(await read(transport, A0)) == 3
        holder.execute("ROLLBACK")
        holder.close()
        assert await transport.append({A0: [rec("x")]}) == {A0: 3}


async def test_a_note_that_could_not_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes with the next renewal of the lease, so that whoever joins then finds it."""
    write, tried = groups.set_metadata, 0

    def locked_once(*what: Any) -> bool:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise LogUnavailableError("another process has it")
        return write(*what)

    monkeypatch.setattr(groups, "set_metadata", locked_once)
    monkeypatch.setattr(membership, "RENEWALS", 100)

    async def written_again() -> bool:
        return tried == 2

    async with LocalTransport(path) as transport:
        await transport.create_topics([TopicSpec(name="a", partitions=1)])
        first = await join(transport, b"first")
        await assigned(first)
        first.note(b"noted")
        await eventually(written_again)
        await join(transport, b"second")
        both = await assigned(first, lambda a: len(a.members) == 2)
    assert sorted(both.members.values()) == [b"noted", b"second"]


async def test_a_watcher_that_cannot_open_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so and tries again, and then wakes those who wait for what another process writes."""
    await written(path)
    connect, refused = LogFile.connect, 0

    def out_of_reach(file: LogFile, *, durable: bool) -> sqlite3.Connection:
        nonlocal refused
        if threading.current_thread().name == "millstream-log-watcher" and not refused:
            refused += 1
            raise LogUnavailableError("it cannot be opened")
        return connect(file, durable=durable)

    monkeypatch.setattr(LogFile, "connect", out_of_reach)
    monkeypatch.setattr(changes, "AGAIN_S", 0.0)
    async with LocalTransport(path) as transport, LocalTransport(path) as other:
        waiting = asyncio.ensure_future(fetch_for(transport, 30.0))

        async def watched() -> bool:
            return transport._opened().watcher._watching > 0

        await eventually(watched)
        await other.append({A0: [rec("x")]})
        began = asyncio.get_running_loop().time()
        assert await waiting
        assert asyncio.get_running_loop().time() - began < 15
    assert "is seen late for now: it cannot be opened" in caplog.text


async def fetch_for(transport: LocalTransport, seconds: float) -> list[Fetched]:
    """What comes behind the first three records, within that time."""
    reader = transport.reader()
    return await reader.fetch({A0: 3}, max_bytes=1 << 20, max_wait_s=seconds)


async def test_a_checkpoint_that_fails(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for it, so the program's log tells."""

    def full(connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    await written(path)
    threads = Threads(LogFile(path), name="writer", durable=True)
    threads.follow_up(full)
    threads.close()
    assert "was not looked after, which is tried again" in caplog.text
    assert "disk I/O error" in caplog.text


# space


def size(path: Path, suffix: str = "") -> int:
    """The bytes of the file, or of one beside it."""
    return os.path.getsize(f"{path}{suffix}")


async def test_the_wal_does_not_grow_without_bound(path: Path) -> None:
    """Checkpoints keep it at a few MB, whatever is written."""
    async with LocalTransport(path) as transport:
        await transport.create_topics([TopicSpec(name="a", partitions=1)])
        largest = 0
        for _ in range(150):
            await transport.append({A0: [rec("k", "v" * 200_000)]})
            largest = max(largest, size(path, "-wal"))
        assert largest < 12 << 20


async def test_space_is_used_again(path: Path) -> None:
    """What was purged makes room for what comes."""
    async with LocalTransport(path) as transport:
        await transport.create_topics([TopicSpec(name="a", partitions=1)])
        sizes = []
        for _ in range(4):
            for _ in range(20):
                await transport.append({A0: [rec("k", "v" * 100_000)]})
            await transport.purge(await transport.end_offsets([A0]))
            await maintain(transport)
            sizes.append(size(path) + size(path, "-wal"))
        assert sizes[3] < sizes[1] * 1.6


async def test_a_deleted_topic_leaves_nothing(path: Path) -> None:
    """After upkeep neither partitions nor batches of it are in the file."""
    await written(path)
    async with LocalTransport(path) as transport:
        await transport.delete_topics(["a"])
        await maintain(transport)
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM batches").fetchone() == (0,)
    assert database.execute("SELECT count(*) FROM partitions").fetchone() == (0,)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


async def test_one_process_at_a_time_keeps_the_log(path: Path) -> None:
    """While one has the duty the other does nothing, and closing gives it up."""
    async with LocalTransport(path) as second:
        async with LocalTransport(path) as first:
            await first.create_topics([TopicSpec(name="a", partitions=2)])
            await first.append({A0: [rec("x")]})
            await first.maintain()
            await second.purge({A0: 1})
            await second.maintain()
            assert rows(path) == 1
        await second.maintain()
        assert rows(path) == 0


def rows(path: Path) -> int:
    """How many batches the file has, below the starts or above."""
    database = sqlite3.connect(path)
    (count,) = database.execute("SELECT count(*) FROM batches").fetchone()
    database.close()
    return int(count)


async def test_small_batches_are_merged(path: Path) -> None:
    """Compaction makes few rows of many, even if no key was written twice."""
    async with LocalTransport(path) as transport:
        await transport.create_topics([TopicSpec(name="a", partitions=1, compacted=True)])
        for number in range(100):
            await transport.append({A0: [rec(str(number))]})
        await maintain(transport)
        assert rows(path) <= 3
        assert [key for _, key, _ in await read(transport, A0)] == [str(n) for n in range(100)]


async def test_a_tombstone_goes_although_little_else_has_changed(path: Path) -> None:
    """A day after it was appended, a pass begins for its sake."""
    clock = ManualClock(0)
    async with LocalTransport(path, clock=clock) as transport:
        await transport.create_topics([TopicSpec(name="a", partitions=1, compacted=True)])
        await transport.append({A0: [rec(str(number), "x" * 100) for number in range(100)]})
        await transport.append({A0: [rec("7", None)]})
        await transport.append({A0: [rec("100", "x")]})
        await maintain(transport)
        assert [key for _, key, value in await read(transport, A0) if value is None] == ["7"]
        clock.advance(25 * 3_600)
        await transport.append({A0: [rec("101", "x")]})
        await maintain(transport)
        assert "7" not in [key for _, key, _ in await read(transport, A0)]


@pytest.mark.parametrize("seed", range(6))
async def test_a_compaction_that_is_interrupted(
    path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In small pieces, with restarts, purges and appends between any two, no last record is lost."""
    for name, value in {"KEYS_MAX": 5, "PIECE_ROWS": 3, "PIECES_MAX": 1}.items():
        monkeypatch.setattr(upkeep, name, value)
    chance = random.Random(seed)
    last: dict[str | None, tuple[int, str | None, str | None]] = {}
    transport = await LocalTransport(path).__aenter__()
    await transport.create_topics([TopicSpec(name="a", partitions=1, compacted=True)])
    for number in range(300):
        keys = [f"k{chance.randrange(12)}" for _ in range(chance.randrange(1, 4))]
        offset = (await transport.append({A0: [rec(key, str(number)) for key in keys]}))[A0]
        last |= {key: (offset + at, key, str(number)) for at, key in enumerate(keys)}
        await transport.maintain()
        if chance.random() < 0.05:
            await transport.__aexit__()
            transport = await LocalTransport(path).__aenter__()
        if chance.random() < 0.02:
            start = chance.randrange((await transport.start_offsets([A0]))[A0], offset)
            await transport.purge({A0: start})
            last = {key: row for key, row in last.items() if row[0] >= start}
        if chance.random() < 0.2:
            assert {row[1]: row for row in await read(transport, A0)} == last
    for _ in range(300):
        await transport.maintain()
    found = await read(transport, A0)
    assert {row[1]: row for row in found} == last
    assert len(found) < len(last) + 12
    await transport.__aexit__()
    database = sqlite3.connect(path)
    (told, true) = database.execute(
        "SELECT bytes, (SELECT sum(size) FROM batches) FROM partitions"
    ).fetchone()
    assert told == true
    database.close()


# what is loaded


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("millstream.transports", "aiokafka"), ("millstream.transports", "sqlite3")],
)
def test_what_importing_loads(module: str, heavy: str) -> None:
    """The contract alone loads neither Kafka's client nor SQLite."""
    check = f"import sys, {module}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_created_by_another_process_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks at a new file while another process makes it a log does not take it for something else."""
    from millstream.transports.local import file as module

    path = tmp_path / "log.db"
    look = module._one
    other = threading.Thread(target=module.LogFile(path).prepare)

    def look_slowly(connection: sqlite3.Connection, statement: str, *parameters: object) -> object:
        found = look(connection, statement, *parameters)
        if threading.current_thread() is not other and other.ident is None:
            other.start()
            other.join(timeout=0.5)  # where it may, it creates the log between two looks
        return found

    monkeypatch.setattr(module, "_one", look_slowly)
    module.LogFile(path).prepare()
    other.join(timeout=10)
    assert not other.is_alive()
