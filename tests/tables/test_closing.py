"""``on_close``: once for each final window with data, in order, whatever happens in between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream.context import Scope, current
from millstream.errors import AgentError
from millstream.tables import MISSING
from millstream.tables._windowed_part import TIME_KEY, AlignedPart, KeyedPart, WindowedPart
from millstream.windows import AnyWindows, Hopping, Session, Sliding, Tumbling, Window
from millstream.worker._closing import Closing, close_due
from tests.tables.shards import Model
from tests.tables.test_windowed import KINDS, added, declared, listed, shard_of

Closed = tuple[str, Window, list[int]]


class Crash(Exception):
    """The process dies."""


class Closings:
    """A table with ``on_close``, and what its calls in committed events have said."""

    def __init__(self, windows: AnyWindows, *, mutable: bool, journaled: bool) -> None:
        self.mutable = mutable
        self.table = declared(windows, mutable=mutable)
        self.said: dict[Scope, Closed] = {}
        self.steps: list[str] = []
        """What to do in the middle of the next calls."""

        @self.table.on_close
        async def say(key: str, window: Window, value: Any) -> None:
            scope = current.get()
            assert scope.timestamp == window.end
            assert scope.record is None
            self.said[scope] = (key, window, listed(value))
            if self.steps:
                self.step(self.steps.pop())

        self.shard = shard_of(self.table, mutable=mutable, journaled=journaled)

    def step(self, step: str) -> None:
        if step in ("commit", "refuse"):
            cut = self.shard.cut()
            if cut is None:
                return
            if step == "commit":
                self.shard.commit(cut)
            else:
                self.shard.give_back(cut)
        elif step in ("crash", "rebuild"):
            raise Crash(step)

    @property
    def part(self) -> Any:
        return self.shard.parts["t"]

    def add(self, key: str, number: int, timestamp: int) -> None:
        event = self.shard.begin(timestamp)
        self.table[key] += added(number, mutable=self.mutable)
        self.shard.finish(event)

    async def close(self) -> int:
        if not self.part.closing_due:
            return 0
        return await close_due(self.shard, self.part, Closing(call=self.table.close))

    def committed(self) -> list[Closed]:
        return [self.said[e] for e in self.shard.committed_events if e in self.said]


@settings(max_examples=500, deadline=None)
@given(
    windows=st.sampled_from(KINDS),
    mutable=st.booleans(),
    journaled=st.booleans(),
    records=st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.integers(-12, 10),
            st.sampled_from(["", "", "", "commit", "crash", "rebuild", "refuse"]),
            st.lists(st.sampled_from(["", "commit", "crash", "rebuild", "refuse"]), max_size=2),
        ),
        max_size=30,
    ),
)
def test_each_window_closes_once(
    windows: AnyWindows,
    mutable: bool,
    journaled: bool,
    records: list[tuple[str, int, str, list[str]]],
) -> None:
    """Cuts, refusals and crashes between events and inside of calls: every window once, in order."""
    closings = Closings(windows, mutable=mutable, journaled=journaled)
    shard = closings.shard
    moments: list[tuple[str, int]] = []
    time = 0
    for key, ahead, _, _ in records:
        moments.append((key, max(0, time + ahead)))
        time = max(time, moments[-1][1])
    moments.append(("end", time + 1_000))
    outside = {at: step for at, (_, _, step, _) in enumerate(records) if step}
    inside = {at: list(steps) for at, (_, _, _, steps) in enumerate(records)}

    async def run() -> None:
        while True:
            try:
                await closings.close()
                if (at := shard.next_offset) == len(moments):
                    return
                key, timestamp = moments[at]
                closings.steps = inside.pop(at, [])
                closings.add(key, at, timestamp)
                await closings.close()
                closings.step(outside.pop(at, ""))
            except (AgentError, Crash) as exc:
                cause = exc.__cause__ if isinstance(exc, AgentError) else exc
                assert isinstance(cause, Crash), cause
                shard.start(rebuild=cause.args[0] == "rebuild")

    asyncio.run(run())
    shard.commit_all()
    model = Model(windows)
    for at, (key, timestamp) in enumerate(moments):
        model.feed(key, at, timestamp)
    assert closings.committed() == model.closed
    # nothing that was closed is kept for ever
    closings.steps = []
    closings.add("end", -1, time + 3_000)
    asyncio.run(_close(closings))
    shard.commit_all()
    closings.add("end", -1, time + 5_000)
    shard.commit_all()
    left = {k for k in shard.changelogs["t"] if k[:1] != b"\x00"}
    keys = {closings.part.decode_key(k) for k in left}
    assert all("end" in entry for entry in keys)


async def _close(closings: Closings) -> None:
    await closings.close()


@pytest.mark.parametrize(
    "windows", [Tumbling(10), Hopping(10, 5), Sliding(10), Session(5)], ids=str
)
async def test_the_part_tells_once(windows: AnyWindows) -> None:
    """`on_due` is called when time passes the first open window's end, and not again until it was closed."""
    closings = Closings(windows, mutable=False, journaled=False)
    told: list[int] = []
    closings.part.on_due = lambda: told.append(closings.part.stream_time)
    closings.add("k", 1, 3)
    first = closings.part.due_at
    closings.add("k", 2, first - 1)
    assert told in ([], [first])
    told.clear()
    closings.part.closing_due = False
    closings.part.due_at = first
    closings.add("k", 3, first + 200)
    closings.add("k", 4, first + 400)
    assert told == [first + 200]
    assert closings.part.closing_due
    assert await closings.close() >= 1
    assert not closings.part.closing_due
    closings.add("k", 5, first + 800)
    assert told == [first + 200, first + 800]


async def test_pending_windows_come_first_after_a_restart() -> None:
    """Windows that were final and not closed are known to be due as soon as the part has recovered."""
    for windows in KINDS:
        closings = Closings(windows, mutable=False, journaled=False)
        closings.add("k", 1, 3)
        closings.add("end", 2, 2_000)
        closings.shard.commit_all()
        for rebuild in (False, True):
            closings.shard.start(rebuild=rebuild)
            assert closings.part.closing_due
            assert closings.part.due()
        closings.shard.start()
        assert await closings.close() >= 1
        closings.shard.commit_all()
        closings.shard.start()
        assert not closings.part.closing_due


async def test_windows_without_data_do_not_close() -> None:
    """A window whose value was deleted, or never changed from its default, is not closed."""
    closings = Closings(Tumbling(10), mutable=True, journaled=False)
    event = closings.shard.begin(3)
    closings.table["gone"] += [1]
    del closings.table["gone"]
    list(closings.table["default"].event_windows())
    closings.table["kept"] += [1]
    closings.shard.finish(event)
    closings.add("end", 1, 10)
    await closings.close()
    assert [key for key, _, _ in closings.said.values()] == ["kept"]


async def test_a_closed_window_takes_no_more() -> None:
    """A final window's value is the one that `on_close` has seen."""
    closings = Closings(Tumbling(10, retention_ms=100), mutable=False, journaled=False)
    closings.add("k", 1, 3)
    closings.add("k", 2, 12)
    assert await closings.close() == 1
    closings.add("k", 3, 5)
    assert not closings.part.closing_due
    closings.shard.begin(12)
    assert closings.table["k"].at(5) == "1;"
    assert closings.table.late_records == 1


async def test_a_call_waits_for_the_event_that_made_it_due() -> None:
    """As long as that event may be undone, the call stays out of the epoch, and its cursor too."""
    closings = Closings(Tumbling(10), mutable=False, journaled=True)
    shard = closings.shard
    closings.add("k", 1, 3)
    ahead = shard.begin(50)
    closings.table["k"] += "2;"
    assert await closings.close() == 1
    shard.commit_all()
    assert closings.committed() == []
    assert shard.changelogs["t"][TIME_KEY] == (3).to_bytes(8, "big")
    assert b"\x00closed" not in shard.changelogs["t"]
    shard.finish(ahead)
    shard.commit_all()
    assert closings.committed() == [("k", Window(0, 10), [1])]
    assert b"\x00closed" in shard.changelogs["t"]


async def test_a_failed_call_is_not_committed() -> None:
    """The error names table, window and key; nothing of the event is committed, and it comes again."""
    closings = Closings(Tumbling(10), mutable=False, journaled=True)
    closings.add("k", 1, 3)
    closings.add("k", 2, 12)
    closings.steps = ["crash"]
    with pytest.raises(
        AgentError, match=r"on_close of table 't', window .*, key 'k', raised Crash"
    ):
        await closings.close()
    closings.shard.commit_all()
    assert closings.committed() == []
    closings.shard.start()
    assert await closings.close() == 1


@pytest.mark.parametrize("windows", [Tumbling(10), Session(5)], ids=str)
@pytest.mark.parametrize("committed", [False, True])
async def test_many_windows_close(windows: AnyWindows, committed: bool) -> None:
    """More windows than are listed at once; writes and cuts go on in between."""
    closings = Closings(windows, mutable=False, journaled=False)
    event = closings.shard.begin(3)
    for number in range(2_500):
        closings.table[f"k{number:04}"] += "1;"
    closings.shard.finish(event)
    if committed:
        closings.shard.commit_all()
    closings.add("end", 1, 100)
    pauses = 0

    async def pause() -> None:
        nonlocal pauses
        pauses += 1
        closings.shard.commit_all()

    part = closings.part
    closing = Closing(call=closings.table.close)
    assert await close_due(closings.shard, part, closing, pause=pause) == 2_500
    assert pauses == 3
    assert [key for key, _, _ in closings.said.values()] == [f"k{n:04}" for n in range(2_500)]


def test_a_window_that_is_gone_moves_no_cursor() -> None:
    """What was deleted after it was listed is passed over."""
    closings = Closings(Tumbling(10), mutable=False, journaled=False)
    closings.add("k", 1, 3)
    closings.add("end", 2, 12)
    part: WindowedPart = closings.part
    assert isinstance(part, AlignedPart)
    (due,) = part.due()
    scope = closings.shard.begin_callback("on_close", 10)
    part.delete(due.entry, scope)
    assert part.close(due, scope) is MISSING
    assert part.cursor() == b""
    assert part.due() == []


async def test_many_open_sessions_are_left_to_the_store() -> None:
    """A part keeps no list of open windows that are in the store's index already."""
    closings = Closings(Session(5), mutable=False, journaled=False)
    for number in range(40):
        closings.add(f"k{number}", number, 3)
        closings.shard.commit_all()
    part = closings.part
    assert isinstance(part, KeyedPart)
    assert len(part._heap) <= 9
    closings.add("end", 1, 100)
    assert await closings.close() == 40
    assert not part._heap or part._heap[0][1][0] == "end"


def test_all_functions_are_called() -> None:
    """``on_close`` may be given several functions."""
    closings = Closings(Tumbling(10), mutable=False, journaled=False)
    seen: list[str] = []

    @closings.table.on_close
    async def more(key: str, window: Window, value: Any) -> None:
        seen.append(key)

    closings.add("k", 1, 3)
    closings.add("k", 1, 13)
    asyncio.run(_close(closings))
    assert seen == ["k"]
    assert len(closings.said) == 1
