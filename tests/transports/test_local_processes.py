"""Several processes at one log: takeover, fencing, and crashes inside a commit."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from millstream.transports.base import OffsetAndMetadata, TopicSpec
from millstream.transports.local import LocalTransport, processes
from millstream.transports.local.file import LogFile
from millstream.transports.local.groups import lease_is_over
from millstream.transports.local.processes import is_gone, is_stopped, kill_if_stopped, this_process
from tests.transports.conformance import A0, A1, A2, DEADLINE_S, assigned, epoch, eventually, rec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from millstream.transports.base import Assignment, Membership

SCRIPT = Path(__file__).with_name("local_process.py")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who is stopped")
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals")
POINTS = ["commit.writing", "commit.appended", "commit.positioned"]


class Other:
    """A worker in another process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def hear(self, word: str) -> Any:
        """The value of the next line that says ``word``."""
        assert self.process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            while line := await self.process.stdout.readline():
                facts = json.loads(line)
                if word in facts:
                    return facts[word]
        raise AssertionError(f"the process ended without saying {word!r}")

    def tell(self, line: str) -> None:
        """Give it something to do."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    def signal(self, which: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(which)

    async def end(self) -> int:
        """How it ended."""
        async with asyncio.timeout(DEADLINE_S):
            return await self.process.wait()


@asynccontextmanager
async def other(
    path: Path, session_s: float, point: str = "", action: str = ""
) -> AsyncIterator[Other]:
    """Another process that has joined the group."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SCRIPT),
        str(path),
        str(session_s),
        point,
        action,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    started = Other(process)
    try:
        await started.hear("assigned")
        yield started
    finally:
        if process.returncode is None:
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log that does not exist yet."""
    return tmp_path / "log.db"


@pytest.fixture
async def transport(path: Path) -> AsyncIterator[LocalTransport]:
    """The log, as this process sees it."""
    async with LocalTransport(path) as opened:
        await opened.create_topics([TopicSpec(name="a", partitions=3)])
        yield opened


async def member(transport: LocalTransport, session_s: float) -> Membership:
    """A member in this process."""
    return await transport.join(
        "g",
        metadata=b"here",
        assign=lambda members: dict.fromkeys(members, b""),
        session_timeout_s=session_s,
    )


def members(count: int) -> Any:
    """A condition for `assigned`."""

    def holds(assignment: Assignment) -> bool:
        return len(assignment.members) == count

    return holds


async def empty(transport: LocalTransport) -> bool:
    """Whether nothing of any epoch is there."""
    ends = await transport.end_offsets([A1, A2])
    return ends == {A1: 0, A2: 0} and not await transport.committed("g", [A0])


@LINUX
async def test_a_killed_process_is_replaced_at_once(path: Path, transport: LocalTransport) -> None:
    """Its process is gone: nobody waits for a lease of half a minute."""
    async with other(path, 30) as worker:
        mine = await member(transport, 30)
        await assigned(mine, members(2))
        began = time.monotonic()
        worker.signal(signal.SIGKILL)
        await assigned(mine, members(1))
        assert time.monotonic() - began < 10


@POSIX
async def test_a_killed_process_elsewhere_is_replaced_after_its_lease(
    path: Path, transport: LocalTransport
) -> None:
    """Where pids do not mean the same, only the lease tells that it is gone."""
    async with other(path, 1) as worker:
        mine = await member(transport, 1)
        await assigned(mine, members(2))
        database = sqlite3.connect(path)
        database.execute(
            "UPDATE processes SET place = 'elsewhere' WHERE pid = ?", (worker.process.pid,)
        )
        database.commit()
        database.close()
        began = time.monotonic()
        worker.signal(signal.SIGKILL)
        await worker.end()
        await assigned(mine, members(1))
        assert 0.5 < time.monotonic() - began < 5


@POSIX
async def test_a_woken_zombie_is_fenced(path: Path, transport: LocalTransport) -> None:
    """What a process cut before it slept longer than its lease is never written, though it rejoins."""
    async with other(path, 1) as worker:
        mine = await member(transport, 1)
        both = await assigned(mine, members(2))

        async def is_up_to_date() -> bool:
            worker.tell("hold")
            return bool(await worker.hear("held") == both.generation)

        await eventually(is_up_to_date)
        worker.signal(signal.SIGSTOP)
        now = await assigned(mine, members(1))
        await transport.commit(epoch(now, {A0: 5}, {A1: [rec("mine")]}))
        worker.tell("late 9")
        worker.signal(signal.SIGCONT)
        assert await worker.hear("refused") == "UnknownMemberError"
        await assigned(mine, members(2))
        worker.tell("late 9")
        assert await worker.hear("refused") == "UnknownMemberError"
        assert await transport.committed("g", [A0]) == {A0: OffsetAndMetadata(5)}
        assert await transport.end_offsets([A1, A2]) == {A1: 1, A2: 0}


@LINUX
@pytest.mark.parametrize("point", POINTS)
async def test_a_process_stopped_inside_its_transaction_is_ended(
    path: Path, transport: LocalTransport, point: str
) -> None:
    """It would hold the lock for ever; after a lease it is killed, and its epoch is undone."""
    async with other(path, 1, point, "SIGSTOP") as worker:
        mine = await member(transport, 1)
        await assigned(mine, members(2))
        await worker.hear("generation")
        worker.tell("commit 9")
        await worker.hear("reached")
        await transport.append({A0: [rec("waited")]})
        assert await worker.end() == -signal.SIGKILL
        now = await assigned(mine, members(1))
        assert await empty(transport)
        await transport.commit(epoch(now, {A0: 1}, {A1: [rec("mine")]}))


@LINUX
async def test_a_stopped_bystander_is_not_ended(path: Path, transport: LocalTransport) -> None:
    """Who is stopped but holds no lock loses its membership, and nothing else."""
    async with other(path, 1) as worker:
        mine = await member(transport, 1)
        await assigned(mine, members(2))
        worker.signal(signal.SIGSTOP)
        await assigned(mine, members(1))
        await transport.append({A0: [rec("k")]})
        worker.signal(signal.SIGCONT)
        await assigned(mine, members(2))
        assert worker.process.returncode is None


@POSIX
@pytest.mark.parametrize("point", POINTS)
async def test_a_crash_inside_a_commit_leaves_nothing(path: Path, point: str) -> None:
    """Whoever opens the file afterwards finds neither records nor positions of the epoch."""
    async with other(path, 30, point, "SIGKILL") as worker:
        worker.tell("commit 9")
        await worker.hear("reached")
        assert await worker.end() == -signal.SIGKILL
    async with LocalTransport(path) as transport:
        assert await empty(transport)
        now = await assigned(await member(transport, 5))
        await transport.commit(epoch(now, {A0: 1}, {A1: [rec("mine")]}))


@POSIX
async def test_a_crash_after_a_commit_loses_nothing(path: Path) -> None:
    """What commit returned for is there."""
    async with other(path, 30) as worker:
        worker.tell("commit 9")
        assert await worker.hear("committed") == 9
        worker.signal(signal.SIGKILL)
        await worker.end()
    async with LocalTransport(path) as transport:
        assert await transport.end_offsets([A1, A2]) == {A1: 1, A2: 1}
        assert await transport.committed("g", [A0]) == {A0: OffsetAndMetadata(9)}


@POSIX
async def test_positions_of_a_dead_group_may_be_set(path: Path, transport: LocalTransport) -> None:
    """Rows of members that are gone do not count as live."""
    async with other(path, 1) as worker:
        worker.signal(signal.SIGKILL)
        await worker.end()

        async def nobody() -> bool:
            return not (await transport.describe_group("g")).members

        await eventually(nobody)
        await transport.set_committed("g", {A0: OffsetAndMetadata(3)})
        assert await transport.committed("g", [A0]) == {A0: OffsetAndMetadata(3)}


async def test_sending_from_another_process(path: Path, transport: LocalTransport) -> None:
    """A waiting fetch hears of it long before its time is up."""
    async with other(path, 5) as worker:
        for number in range(5):
            fetch = asyncio.ensure_future(
                transport.reader().fetch({A0: number}, max_bytes=1 << 20, max_wait_s=DEADLINE_S)
            )
            worker.tell("append")
            await worker.hear("appended")
            async with asyncio.timeout(DEADLINE_S / 2):
                assert [fetched.next_offset for fetched in await fetch] == [number + 1]


async def test_processes_that_create_one_file_at_once(path: Path) -> None:
    """All of them open it, and all of them are in the group."""
    async with other(path, 10), other(path, 10), LocalTransport(path) as transport:
        third = asyncio.ensure_future(member(transport, 10))
        async with other(path, 10):
            await assigned(await third, members(4))


def test_many_that_make_one_file_a_log(tmp_path: Path) -> None:
    """SQLite refuses the change to WAL mode at once where another one is at it: it is tried again."""
    makers = 4
    for number in range(20):
        start = threading.Barrier(makers)

        def make(path: Path, start: threading.Barrier = start) -> None:
            start.wait(DEADLINE_S)
            LogFile(path).prepare()

        with ThreadPoolExecutor(makers) as pool:
            list(pool.map(make, [tmp_path / f"{number}.db"] * makers))


async def test_a_loop_that_does_not_turn_loses_its_place(path: Path) -> None:
    """Heartbeats stop without `alive`, the others take over, and it joins again when it turns."""
    async with (
        LocalTransport(path, max_poll_interval_s=0.2) as stuck,
        LocalTransport(path) as healthy,
    ):
        mine = await member(stuck, 0.5)
        theirs = await member(healthy, 5)
        old = await assigned(mine, members(2))
        await assigned(theirs, members(1))
        assert not mine.current()
        again = await assigned(mine, members(2))
        assert again.member_id != old.member_id


async def test_an_assign_function_that_fails_later(path: Path) -> None:
    """An error in a rebalance that another member caused reaches whoever waits for it."""

    def fail(metadata: Any) -> dict[str, bytes]:
        if b"bad" in metadata.values():
            raise ZeroDivisionError
        return {}

    async with LocalTransport(path) as transport:
        mine = await transport.join("g", metadata=b"good", assign=fail, session_timeout_s=5)
        await mine.next_assignment()
        with pytest.raises(ZeroDivisionError):
            await mine.update(b"bad")
        assert mine.current()


LEASES = [
    # lease until, its length, now, is it over
    (100.0, 5.0, 96.0, False),
    (100.0, 5.0, 100.0, False),
    (100.0, 5.0, 100.1, True),
    (100.0, 5.0, 95.0, False),
    (100.0, 5.0, 20.0, True),  # given before a reboot
]


@pytest.mark.parametrize(("until", "length", "now", "over"), LEASES)
def test_when_a_lease_is_over(until: float, length: float, now: float, over: bool) -> None:
    """It ends at its time, and with the boot that it was given in."""
    assert lease_is_over(until, length, now) is over


def test_how_long_a_lease_is_spared() -> None:
    """What kept the looker from looking is added to the lease, and is no sign of a reboot."""
    assert not lease_is_over(100, 5, 103, grace_s=4)
    assert not lease_is_over(100, 5, 96, grace_s=60)
    assert lease_is_over(100, 5, 105, grace_s=4)


@LINUX
def test_when_a_process_is_gone() -> None:
    """Only what is certain counts: the same machine, boot and pid namespace."""
    me = this_process()
    free = next(pid for pid in range(2, 1 << 22) if not Path(f"/proc/{pid}").exists())
    assert not is_gone(me)
    assert is_gone(me._replace(started="1"))  # the pid was used again
    assert is_gone(me._replace(pid=free))
    assert not is_gone(me._replace(pid=free, place="elsewhere"))
    assert not is_gone(me._replace(started=""))  # not known when it started


@LINUX
def test_only_who_is_stopped_is_ended() -> None:
    """Whoever holds the lock for long and works goes on; so does another process that has the pid by now."""
    with subprocess.Popen(["sleep", "60"]) as sleeper:
        try:
            process = this_process()._replace(
                pid=sleeper.pid, started=processes._stat(sleeper.pid)[1]
            )
            assert not kill_if_stopped(process)
            sleeper.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, sleeper.pid, os.WSTOPPED | os.WNOWAIT)
            assert not kill_if_stopped(process._replace(started="1"))
            assert sleeper.poll() is None
            assert kill_if_stopped(process)
            assert sleeper.wait() == -signal.SIGKILL
        finally:
            sleeper.kill()


def test_without_proc_only_what_is_certain_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On other systems a live process is live, and nobody is stopped or holds a lock for certain."""
    monkeypatch.setattr(processes, "_stat", lambda pid: ("", ""))
    me = this_process()
    assert me.started == ""
    assert not is_gone(me)
    assert not is_stopped(me)
    assert processes.write_lock_holder(tmp_path / "none.db") is None


@LINUX
def test_the_holder_of_the_lock_is_known(path: Path) -> None:
    """SQLite's write lock on a file in WAL mode names its process."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE t (x)")
    assert processes.write_lock_holder(path) is None
    database.execute("BEGIN IMMEDIATE")
    assert processes.write_lock_holder(path) == os.getpid()
    database.execute("ROLLBACK")
    database.close()
