"""Windowed tables against the naive fold, through cuts, refusals, failures, crashes; and how they are used."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from millstream.clock import ManualClock
from millstream.context import Scope, current
from millstream.errors import ConfigurationError, OutsideEventError
from millstream.serialization.keys import key_layout
from millstream.tables._windowed import WindowedTable, merge_values, windowed
from millstream.tables._windowed_part import TIME_KEY, KeyedPart
from millstream.windows import (
    AnyWindows,
    Calendar,
    Hopping,
    Session,
    Sliding,
    Tumbling,
    Window,
)
from tests.tables.shards import Cut, Model, Shard, contents

LAYOUT = key_layout(str)
KINDS: list[AnyWindows] = [
    Tumbling(10, grace_ms=5),
    Tumbling(10, grace_ms=5, offset_ms=3, retention_ms=40),
    Hopping(10, 3, grace_ms=4),
    Hopping(9, 3, grace_ms=4, retention_ms=30),
    Sliding(8, grace_ms=6),
    Sliding(8, grace_ms=6, retention_ms=50),
    Session(5, grace_ms=7),
    Session(5, grace_ms=7, retention_ms=40),
]


def declared(
    windows: AnyWindows, *, mutable: bool = False, default: Any = None, **options: Any
) -> WindowedTable[str, Any]:
    if default is None:
        default = list if mutable else ""
    return windowed("t", layout=LAYOUT, windows=windows, default=default, **options)


def shard_of(
    table: WindowedTable[str, Any],
    *,
    mutable: bool = False,
    journaled: bool = False,
    cache_size: int = 4,
    clock: ManualClock | None = None,
) -> Shard:
    return Shard(
        {
            "t": lambda store, check: table.make_part(
                store,
                check,
                dumps=msgspec.json.encode,
                loads=msgspec.json.decode,
                mutable=mutable,
                clock=clock or ManualClock(),
                cache_size=cache_size,
            )
        },
        journaled=journaled,
    )


def added(number: int, *, mutable: bool) -> Any:
    return [number] if mutable else f"{number};"


def listed(value: Any) -> list[int]:
    """A value of a test table as the numbers that were added."""
    return value if isinstance(value, list) else [int(n) for n in value.split(";")[:-1]]


def listed_all(found: dict[Any, Any]) -> dict[Any, list[int]]:
    return {entry: listed(value) for entry, value in found.items()}


# -- against the model ------------------------------------------------------------------------------


class WindowedMachine(RuleBasedStateMachine):
    """Events that overlap, and every way in which an epoch can end; the model folds a log of updates."""

    table: WindowedTable[str, Any]

    @initialize(
        windows=st.sampled_from(KINDS), mutable=st.booleans(), journaled=st.sampled_from([0, 1, 1])
    )
    def start(self, windows: AnyWindows, mutable: bool, journaled: int) -> None:
        self.windows, self.mutable = windows, mutable
        self.table = declared(windows, mutable=mutable)
        self.shard = shard_of(self.table, mutable=mutable, journaled=bool(journaled))
        self.log: list[tuple[Scope, str, int]] = []
        self.open: list[Scope] = []
        self.pending: Cut | None = None
        self.number = 0
        self.time = 0

    def fold(self, events: set[Scope] | None = None) -> Model:
        model = Model(self.windows)
        for event, key, number in self.log:
            if events is None or event in events:
                model.feed(key, number, event.timestamp)
        return model

    @precondition(lambda self: len(self.open) < (3 if self.shard.journaled else 1))
    @rule(ahead=st.integers(-15, 10), jump=st.sampled_from([0, 0, 0, 0, 60]))
    def begin(self, ahead: int, jump: int) -> None:
        timestamp = max(0, self.time + ahead + jump)
        self.time = max(self.time, timestamp)
        self.open.append(self.shard.begin(timestamp))

    def enter(self, which: int) -> Scope:
        event = self.open[which % len(self.open)]
        current.set(event)
        return event

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2), key=st.sampled_from("ab"), style=st.sampled_from("+wa"))
    def update(self, which: int, key: str, style: str) -> None:
        event = self.enter(which)
        self.number += 1
        more = added(self.number, mutable=self.mutable)
        if style == "w" and self.mutable:
            for _, value in self.table[key].event_windows():
                value.extend(more)
        elif style == "a":
            self.table[key].apply(lambda value: value + more)
        else:
            self.table[key] += more
        self.log.append((event, key, self.number))

    @rule(keys=st.lists(st.sampled_from("abc")), time=st.integers(0, 100))
    def read_ahead(self, keys: list[str], time: int) -> None:
        """At any moment, for whatever keys and times: nothing but clean entries comes of it."""
        self.shard.parts["t"].read_ahead(keys, [time] * len(keys))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2))
    def read(self, which: int) -> None:
        event = self.enter(which)
        self.log.append((event, "", 0))
        model = self.fold()
        expected = model.contents()
        assert listed_all(dict(self.table.items())) == expected
        for key in "ab":
            of_key = {w: value for (k, w), value in expected.items() if k == key}
            assert listed_all(dict(self.table[key].windows())) == of_key
            inclusive = isinstance(self.windows, Sliding | Session)
            holding = [
                (w.start, value)
                for w, value in of_key.items()
                if w.start <= event.timestamp < w.end + inclusive
            ]
            if holding and not (isinstance(self.windows, Hopping)):
                assert listed(self.table[key].current()) == max(holding)[1]
            if holding:
                assert isinstance(self.windows, Hopping) or key in self.table
        part = self.shard.parts["t"]
        assert part.stream_time == model.stream_time

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2))
    def finish(self, which: int) -> None:
        self.shard.finish(self.open.pop(which % len(self.open)))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2))
    def fail(self, which: int) -> None:
        event = self.open[which % len(self.open)]
        if self.shard.undo(event):
            self.log = [entry for entry in self.log if entry[0] is not event]
            self.open.remove(event)
            self.shard.finish(event)
        else:
            self.crash(rebuild=False)

    @precondition(lambda self: self.pending is None)
    @rule()
    def cut(self) -> None:
        self.pending = self.shard.cut()

    @precondition(lambda self: self.pending is not None)
    @rule()
    def land(self) -> None:
        assert self.pending is not None
        self.shard.commit(self.pending)
        self.pending = None
        self.check_committed()

    def check_committed(self) -> None:
        model = self.fold(set(self.shard.committed_events))
        changelog = self.shard.changelogs["t"]
        found = contents(self.shard.parts["t"], changelog)
        readable = {e: listed(value) for e, value in found.items() if not model.expired(e[1])}
        assert readable == model.contents()
        assert self.shard.stored("t") == changelog
        time = changelog.get(TIME_KEY)
        assert (-1 if time is None else int.from_bytes(time, "big")) == model.stream_time

    @precondition(lambda self: self.pending is not None)
    @rule(encoded=st.booleans())
    def refuse(self, encoded: bool) -> None:
        assert self.pending is not None
        self.shard.give_back(self.pending, encoded=encoded)
        self.pending = None

    @rule(rebuild=st.booleans())
    def crash(self, rebuild: bool) -> None:
        self.shard.start(rebuild=rebuild)
        committed = set(self.shard.committed_events)
        self.log = [entry for entry in self.log if entry[0] in committed]
        self.open, self.pending = [], None

    def teardown(self) -> None:
        if not hasattr(self, "shard"):
            return
        for event in self.open:
            self.shard.finish(event)
        if self.pending is not None:
            self.shard.commit(self.pending)
        self.shard.commit_all()
        self.check_committed()


TestWindowedTable = WindowedMachine.TestCase
TestWindowedTable.settings = settings(max_examples=400, stateful_step_count=50, deadline=None)


@settings(max_examples=300, deadline=None)
@given(
    windows=st.sampled_from(KINDS),
    mutable=st.booleans(),
    journaled=st.booleans(),
    records=st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.integers(-15, 8),
            st.sampled_from(["", "", "", "commit", "crash", "rebuild", "refuse", "jump"]),
        ),
        max_size=40,
    ),
)
def test_restarts_change_nothing(
    windows: AnyWindows, mutable: bool, journaled: bool, records: list[tuple[str, int, str]]
) -> None:
    """However often a shard starts again, its tables are those of one that never stopped."""
    table = declared(windows, mutable=mutable)
    shard = shard_of(table, mutable=mutable, journaled=journaled)
    model = Model(windows)
    moments: list[tuple[str, int]] = []
    time = 0
    for key, ahead, _ in records:
        moments.append((key, max(0, time + ahead)))
        time = max(time, moments[-1][1])
    steps = {at: step for at, (_, _, step) in enumerate(records)}
    while (at := shard.next_offset) < len(moments):
        key, timestamp = moments[at]
        event = shard.begin(timestamp)
        table[key] += added(at, mutable=mutable)
        shard.finish(event)
        step = steps.pop(at, "")
        if step == "commit":
            shard.commit_all()
        elif step == "refuse":
            cut = shard.cut()
            assert cut is not None
            shard.give_back(cut)
        elif step in ("crash", "rebuild"):
            shard.start(rebuild=step == "rebuild")
    for at, (key, timestamp) in enumerate(moments):
        model.feed(key, at, timestamp)
    shard.commit_all()
    part = shard.parts["t"]
    found = contents(part, shard.changelogs["t"])
    assert {e: listed(v) for e, v in found.items() if not model.expired(e[1])} == model.contents()


CASES = Path(__file__).parents[1] / "conformance" / "kafka-streams.jsonl"


def kafka_windows(case: dict[str, Any]) -> AnyWindows:
    params = case["params"]
    grace_ms = params["grace"]
    retention_ms = 86_400_000
    if case["topology"] == "tumbling":
        return Tumbling(params["size"], grace_ms=grace_ms, retention_ms=retention_ms)
    if case["topology"] == "hopping":
        return Hopping(
            params["size"], params["advance"], grace_ms=grace_ms, retention_ms=retention_ms
        )
    if case["topology"] == "sliding":
        return Sliding(params["difference"], grace_ms=grace_ms, retention_ms=retention_ms)
    return Session(params["gap"], grace_ms=grace_ms, retention_ms=retention_ms)


@pytest.mark.parametrize("topology", ["tumbling", "hopping", "sliding", "session"])
@pytest.mark.parametrize("every", [0, 5])
def test_kafka_streams(topology: str, every: int) -> None:
    """The table holds what Kafka Streams' last result for each window says, also with restarts."""
    count = 0
    for line in CASES.read_text(encoding="utf-8").splitlines():
        case = json.loads(line)
        if case["topology"] != topology or case["params"]["emit"] != "update":
            continue
        if not case["params"]["long_retention"]:
            continue
        count += 1
        expected: dict[str, str] = {}
        for name, value, _ in (row for rows in case["out"] for row in rows):
            expected.pop(name, None)
            if value is not None:
                expected[name] = value
        table = declared(kafka_windows(case))
        shard = shard_of(table)
        for number, (_, key, value, timestamp) in enumerate(case["in"]):
            event = shard.begin(timestamp)
            if key is not None and not (value is None and topology == "sliding"):
                table[key] += f"{'_' if value is None else value};"
            shard.finish(event)
            if every and number % every == 0:
                shard.commit_all()
                shard.start(rebuild=number % 2 == 0)
        shard.commit_all()
        found = contents(shard.parts["t"], shard.changelogs["t"])
        shown = {f"{key}@{w.start}/{w.end}": value for (key, w), value in found.items()}
        assert shown == expected, case["seed"]
    assert count >= 21


# -- expiry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("windows", KINDS, ids=str)
@pytest.mark.parametrize("mutable", [False, True])
def test_expired_windows_leave_the_changelog(windows: AnyWindows, mutable: bool) -> None:
    """Once retention is over, tombstones follow: for what was committed, and for what never was."""
    table = declared(windows, mutable=mutable)
    shard = shard_of(table, mutable=mutable)
    for timestamp in range(0, 30, 3):
        event = shard.begin(timestamp)
        table["a"] += added(timestamp, mutable=mutable)
        table["b"] += added(timestamp, mutable=mutable)
        shard.finish(event)
        if timestamp == 15:
            shard.commit_all()
    event = shard.begin(1_000)
    table["z"] += added(1_000, mutable=mutable)
    shard.finish(event)
    shard.commit_all()
    found = contents(shard.parts["t"], shard.changelogs["t"])
    assert {key for key, _ in found} == {"z"}
    assert shard.stored("t") == shard.changelogs["t"]
    assert all(not k.startswith(b"\x04") or b"z" in k for k in shard._store.table("t").keys())  # type: ignore[union-attr]  # noqa: SIM118


@pytest.mark.parametrize("windows", [Tumbling(10), Session(5)], ids=str)
def test_expiry_comes_in_slices(windows: AnyWindows) -> None:
    """No cut takes more than a thousand expired entries of the store; the next ones go on by themselves."""
    table = declared(windows, default=0)
    shard = shard_of(table)
    event = shard.begin(5)
    for number in range(2_500):
        table[f"key{number}"] += 1
    shard.finish(event)
    shard.commit_all()
    event = shard.begin(1_000)
    table["z"] += 1
    shard.finish(event)
    left = []
    shard.commit_all()
    while shard.parts["t"].is_dirty():
        left.append(len(shard.changelogs["t"]))
        if len(left) == 2:
            shard.start()  # a new start begins at the oldest entry
            shard.commit_all()
            shard.begin(1_000)
            table["z"] += 1
            shard.finish(shard.events[-1])
        shard.commit_all()
    assert left[0] > 1_400
    assert len(contents(shard.parts["t"], shard.changelogs["t"])) == 1


def test_expired_windows_are_not_read() -> None:
    """What has expired is gone at once, whatever the store still holds."""
    table = declared(Tumbling(10), default=0)
    shard = shard_of(table)
    shard.begin(5)
    table["a"] += 1
    assert table["a"].at(5) == 1
    shard.begin(20)
    assert table["a"].at(5) == 0
    assert list(table.items()) == []
    assert list(table["a"].windows()) == []


# -- late records -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("windows", "late", "refused"),
    [
        (Tumbling(10), 5, 1),
        (Hopping(10, 5), 15, 1),  # [10, 20) is final at 20, [15, 25) is not
        (Hopping(10, 5), 6, 2),
        (Sliding(10), 5, 1),
        (Session(5), 5, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("mutable", [False, True])
@pytest.mark.parametrize("journaled", [False, True])
def test_late_records(
    windows: AnyWindows, late: int, refused: int, mutable: bool, journaled: bool
) -> None:
    """Updates for windows that are final are dropped, and counted once for each record and window."""
    table = declared(windows, mutable=mutable)
    shard = shard_of(table, mutable=mutable, journaled=journaled)
    told: list[int] = []
    shard.parts["t"].on_late = told.append
    shard.begin(20)
    table["a"] += added(1, mutable=mutable)
    before = listed_all(dict(table.items()))
    shard.begin(late)
    for _ in range(2):
        table["b"] += added(2, mutable=mutable)
        table["b"].apply(lambda value: value)
    assert table.late_records == refused
    assert told == [late] * refused
    after = listed_all(dict(table.items()))
    assert {entry: value for entry, value in after.items() if entry[0] == "a"} == before
    shard.begin(late)
    table["b"] += added(3, mutable=mutable)
    assert table.late_records == 2 * refused


def test_a_late_drop_is_tied_to_the_event_that_made_it_late() -> None:
    """The record is not committed as dropped while the event that brought the time may still fail."""
    table = declared(Tumbling(10), default=0)
    shard = shard_of(table, journaled=True)
    ahead = shard.begin(50)
    table["a"] += 1
    late = shard.begin(5)
    table["b"] += 1
    assert late.depends == {ahead}
    assert not shard.undo(ahead)


def test_a_failed_events_time_is_forgotten() -> None:
    """A record from the future whose event fails does not make all others late."""
    table = declared(Tumbling(10), default=0)
    shard = shard_of(table, journaled=True)
    event = shard.begin(5)
    table["a"] += 1
    shard.finish(event)
    poison = shard.begin(1_000_000)
    table["a"] += 1
    assert shard.undo(poison)
    shard.finish(poison)
    event = shard.begin(6)
    table["a"] += 1
    assert table["a"].current() == 2
    shard.finish(event)
    shard.commit_all()
    assert shard.changelogs["t"][TIME_KEY] == (6).to_bytes(8, "big")


@pytest.mark.parametrize("windows", [Sliding(10, grace_ms=20), Session(5, grace_ms=20)], ids=str)
def test_an_undone_event_leaves_a_keys_windows_as_they_were(windows: AnyWindows) -> None:
    """Sessions that a failed event has merged, and windows that it has deleted, take records again."""
    for undone in ("update", "delete"):
        table = declared(windows)
        shard = shard_of(table, journaled=True)
        model = Model(windows)
        event = shard.begin(10)
        table["k"] += added(1, mutable=False)
        model.feed("k", 1, 10)
        shard.finish(event)
        shard.commit_all()
        failed = shard.begin(10 if undone == "delete" else 13)
        if undone == "delete":
            del table["k"]
        else:
            table["k"] += added(2, mutable=False)
        assert shard.undo(failed)
        shard.finish(failed)
        event = shard.begin(14)
        table["k"] += added(3, mutable=False)
        model.feed("k", 3, 14)
        assert listed_all(dict(table.items())) == model.contents()


@pytest.mark.parametrize("windows", [Sliding(10), Session(5)], ids=str)
def test_a_keys_windows_are_tied(windows: AnyWindows) -> None:
    """Who finds a key without windows depends on whoever has deleted them."""
    table = declared(windows)
    shard = shard_of(table, journaled=True)
    event = shard.begin(10)
    table["k"] += added(1, mutable=False)
    shard.finish(event)
    shard.commit_all()
    deletes = shard.begin(10)
    del table["k"]
    later = shard.begin(12)
    table["k"] += added(2, mutable=False)
    assert deletes in later.depends


def test_time_goes_with_its_event() -> None:
    """Stream time that an unfinished event has brought is not committed."""
    table = declared(Tumbling(10), default=0)
    shard = shard_of(table, journaled=True)
    first = shard.begin(5)
    table["a"] += 1
    second = shard.begin(70)
    table["a"] += 1
    shard.finish(first)
    shard.commit_all()
    assert shard.changelogs["t"][TIME_KEY] == (5).to_bytes(8, "big")
    shard.finish(second)
    shard.commit_all()
    assert shard.changelogs["t"][TIME_KEY] == (70).to_bytes(8, "big")


# -- how it is used ---------------------------------------------------------------------------------


def test_operators() -> None:
    """Every operator with assignment changes every window of the event."""
    table = declared(Hopping(10, 5), default=7)
    shard = shard_of(table)
    shard.begin(7)
    table["k"] += 3
    table["k"] *= 10
    table["k"] -= 1
    table["k"] //= 2
    table["k"] %= 47
    table["k"] **= 2
    table["k"] <<= 3
    table["k"] >>= 1
    table["k"] |= 3
    table["k"] ^= 1
    table["k"] &= 62
    expected = 7 + 3
    expected = ((((expected * 10 - 1) // 2 % 47) ** 2 << 3 >> 1) | 3) ^ 1
    expected &= 62
    assert dict(table["k"].windows()) == {Window(0, 10): expected, Window(5, 15): expected}
    table["k"] /= 2
    assert table["k"].current() == expected / 2


def test_reading_windows() -> None:
    """A key's windows by time: the event's, the wall clock's, and any other."""
    clock = ManualClock(25)
    table = declared(Tumbling(10, retention_ms=100), default=0)
    shard = shard_of(table, clock=clock)
    for timestamp in (5, 15, 15, 25, 25, 25, 37):
        shard.begin(timestamp)
        table["k"] += 1
    shard.begin(36)
    view = table["k"]
    assert view.current() == 1
    assert view.now() == 3
    assert view.at(19) == 2
    assert view.at(datetime.fromtimestamp(0.005, UTC)) == 1
    assert view.delta("10ms") == 3
    assert view.delta("1h") == 0
    assert [value for _, value in view.windows(start=10, end=30)] == [2, 3]
    assert [w.start for w, _ in view.windows()] == [0, 10, 20, 30]
    assert "k" in table
    assert "other" not in table
    assert list(table.items(start=20)) == [(("k", Window(20, 30)), 3), (("k", Window(30, 40)), 1)]
    assert list(table.keys(end=10)) == list(table)[:1] == [("k", Window(0, 10))]
    assert list(table.values()) == [1, 2, 3, 1]
    assert list(table.values(end=30, reverse=True)) == [3, 2, 1]
    assert list(reversed(table)) == list(table)[::-1]
    assert list(table.items(reverse=True)) == list(table.items())[::-1]
    assert [value for _, value in view.windows(end=30, reverse=True)] == [3, 2, 1]
    assert len(table) == 4
    assert table


@pytest.mark.parametrize("windows", [Sliding(10), Session(5)], ids=str)
def test_reading_windows_of_keys(windows: AnyWindows) -> None:
    """The latest-starting window that holds the event, or another time."""
    table = declared(windows, default=0)
    shard = shard_of(table)
    shard.begin(20)
    table["k"] += 1
    shard.begin(22)
    assert table["k"].at(20) == 1
    table["k"] += 1
    assert table["k"].current() == (2 if isinstance(windows, Session) else 1)
    assert table["k"].at(20) == 2
    assert table["other"].at(20) == 0
    table["j"] += 1
    assert [key for key, _ in table] == sorted(key for key, _ in table)
    assert list(reversed(table)) == list(table)[::-1]
    assert list(table["k"].windows(start=100)) == []


def test_calendar_windows() -> None:
    """Days of a time zone."""
    table = declared(Calendar("day", "Europe/Berlin"), default=0)
    shard = shard_of(table)
    noon = datetime(2024, 3, 31, 12, tzinfo=UTC)
    shard.begin(int(noon.timestamp()) * 1_000)
    table["k"] += 1
    ((window, value),) = table["k"].windows()
    assert value == 1
    assert window.end - window.start == 23 * 3_600_000


@pytest.mark.parametrize(
    "windows", [Tumbling(10), Hopping(10, 5), Sliding(10), Session(5)], ids=str
)
def test_values_changed_in_place(windows: AnyWindows) -> None:
    """`event_windows` keeps what is changed in place; other reads give copies."""
    table = declared(windows, default=dict)
    shard = shard_of(table, mutable=True)
    event = shard.begin(20)
    for _, value in table["k"].event_windows():
        value["n"] = 1
    table["k"].current()["n"] = 2
    next(table.values())["n"] = 2
    shard.finish(event)
    shard.commit_all()
    found = contents(shard.parts["t"], shard.changelogs["t"])
    assert set(map(str, found.values())) == {"{'n': 1}"}
    event = shard.begin(21)
    for _, value in table["k"].event_windows():
        value["n"] = value.get("n", 0) + 1
    shard.finish(event)
    shard.commit_all()
    shard.begin(21)
    assert table["k"].at(20) == {"n": 2}


def test_an_unchanged_default_is_not_kept() -> None:
    """A default that was handed out and not changed leaves no trace."""
    table = declared(Tumbling(10), mutable=True)
    shard = shard_of(table, mutable=True)
    event = shard.begin(5)
    assert [value for _, value in table["k"].event_windows()] == [[]]
    assert table["k"].current() == []
    assert "k" not in table
    assert list(table.items()) == []
    shard.finish(event)
    shard.commit_all()
    assert set(shard.changelogs["t"]) == {TIME_KEY}


@pytest.mark.parametrize("windows", KINDS, ids=str)
@pytest.mark.parametrize("committed", [False, True])
def test_deleting(windows: AnyWindows, committed: bool) -> None:
    """``del`` takes the event's windows away, and later updates begin anew."""
    table = declared(windows, default=0)
    shard = shard_of(table)
    event = shard.begin(20)
    table["k"] += 1
    table["j"] += 1
    if committed:
        shard.finish(event)
        shard.commit_all()
        event = shard.begin(20)
    del table["k"]
    del table["missing"]
    assert "k" not in table
    assert {key for key, _ in table} == {"j"}
    table["k"] += 5
    assert table["k"].current() == 5
    shard.finish(event)
    shard.commit_all()
    found = contents(shard.parts["t"], shard.changelogs["t"])
    assert {value for (key, _), value in found.items() if key == "k"} == {5}


def test_sessions_that_grow_leave_no_tombstones_behind() -> None:
    """What a session was called in the middle of an epoch does not reach the changelog."""
    for journaled in (False, True):
        table = declared(Session(5), default=0)
        shard = shard_of(table, journaled=journaled)
        for timestamp in range(100):
            event = shard.begin(timestamp)
            table["k"] += 1
            shard.finish(event)
        shard.commit_all()
        assert shard.records_written == 2  # the session, and stream time


def test_lists_of_windows_may_go() -> None:
    """A part that has seen more keys than it keeps in memory finds their windows in the store."""
    table = declared(Session(5, grace_ms=100), default=0)
    shard = shard_of(table, cache_size=3)
    for timestamp in range(0, 60, 3):
        event = shard.begin(timestamp)
        for number in range(10):
            table[f"k{number}"] += 1
            if number == 5:
                continue
        shard.finish(event)
        shard.commit_all()
        part = shard.parts["t"]
        assert isinstance(part, KeyedPart)
        assert len(part._known) <= 10
    shard.begin(60)
    assert list(table.values()) == [20] * 10


def test_keys_are_checked() -> None:
    """A key is checked on its first use; the check sees the program's key."""
    for windows in KINDS:
        table = declared(windows, default=0)
        shard = shard_of(table)
        shard.begin(1)
        table["k"] += 1
        assert set(shard.checked) == {"k"}


@pytest.mark.parametrize(
    "misuse",
    [
        lambda view: view == 1,
        lambda view: view != 1,
        lambda view: view > 1,
        lambda view: bool(view),
        lambda view: float(view),
        lambda view: int(view),
        lambda view: view + 1,
        lambda view: 1 + view,
        lambda view: -view,
        lambda view: len(view),
        lambda view: list(view),
        lambda view: view["x"],
        lambda view: 1 in view,
        lambda view: f"{view:.2f}",
        lambda view: hash(view),
        lambda view: sum([view]),
    ],
)
def test_a_view_is_no_value(misuse: Any) -> None:
    """Using the view where a value is meant is an error that names ``current()``."""
    table = declared(Tumbling(10), default=0)
    shard_of(table).begin(1)
    with pytest.raises(TypeError):
        misuse(table["k"])
    with pytest.raises(TypeError, match=r"t\['k'\]\.current\(\)"):
        assert table["k"] > 1  # type: ignore[operator]


def test_a_views_attributes() -> None:
    """A method of the value is an error that says how to change in place."""
    table = declared(Tumbling(10), mutable=True)
    shard_of(table, mutable=True).begin(1)
    with pytest.raises(AttributeError, match=r"event_windows\(\)"):
        table["k"].append(1)  # type: ignore[attr-defined]


def test_assigning_is_an_error() -> None:
    """Nothing but the view that was changed is taken back."""
    table = declared(Tumbling(10), default=0)
    other = declared(Tumbling(10), default=0)
    shard_of(table).begin(1)
    for value in (5, table["j"], other["k"]):
        with pytest.raises(TypeError, match=r"t\['k'\]\.apply"):
            table["k"] = value  # type: ignore[assignment]
    with pytest.raises(TypeError, match="returned None"):
        table["k"].apply(lambda value: None)


def test_outside_of_events() -> None:
    """Any use needs an event."""
    table = declared(Tumbling(10), default=0)
    shard = shard_of(table)
    shard.finish(shard.begin(1))
    with pytest.raises(OutsideEventError):
        table["k"] += 1
    with pytest.raises(OutsideEventError):
        table["k"].current()
    with pytest.raises(OutsideEventError):
        list(table.items())


def test_without_a_default() -> None:
    """A window without value and default is a `KeyError`, for updates and reads."""
    table: WindowedTable[str, int] = windowed("t", layout=LAYOUT, windows=Tumbling(10))
    shard_of(table).begin(1)
    with pytest.raises(KeyError):
        table["k"] += 1
    with pytest.raises(KeyError):
        table["k"].current()


@pytest.mark.parametrize(
    ("default", "updates", "expected"),
    [
        (0, [1, 2, 4], 7),
        (Decimal, [Decimal(1), Decimal(2), Decimal(4)], Decimal(7)),
        ("", ["a", "b", "c"], "abc"),
        (list, [[1], [2], [3]], [1, 2, 3]),
    ],
)
def test_sessions_merge(default: Any, updates: list[Any], expected: Any) -> None:
    """Two sessions that a record joins become one, the earlier one's value first."""
    table = declared(Session(5, grace_ms=50), default=default)
    mutable = default is list
    shard = shard_of(table, mutable=mutable)
    for timestamp, more in zip((0, 8, 4), [updates[0], updates[1], updates[2]], strict=True):
        shard.begin(timestamp)
        table["k"] += more
    ((window, value),) = table["k"].windows()
    assert window == Window(0, 8)
    assert value == expected


@pytest.mark.parametrize(
    ("earlier", "later", "expected"),
    [
        ({1}, {2}, {1, 2}),
        (frozenset({1}), frozenset({2}), frozenset({1, 2})),
        (Counter(a=1), Counter(a=2, b=1), Counter(a=3, b=1)),
        ({"a": 1, "b": [1]}, {"b": [2], "c": 3}, {"a": 1, "b": [1, 2], "c": 3}),
        ((1,), (2,), (1, 2)),
        (b"a", b"b", b"ab"),
    ],
)
def test_natural_merges(earlier: Any, later: Any, expected: Any) -> None:
    """Values of the usual types become one without being told how."""
    assert merge_values(earlier, later) == expected


def test_merges_are_declared() -> None:
    """Where it does not follow from the type, a session table asks for ``merge=`` when it is declared."""

    class Stats(msgspec.Struct):
        n: int = 0

    with pytest.raises(ConfigurationError, match="merge=lambda"):
        windowed("t", layout=LAYOUT, windows=Session(5), default=Stats)
    with pytest.raises(ConfigurationError, match="merge=lambda"):
        windowed("t", layout=LAYOUT, windows=Session(5))
    with pytest.raises(ConfigurationError, match="never merge"):
        windowed("t", layout=LAYOUT, windows=Tumbling(5), default=0, merge=max)
    windowed("t", layout=LAYOUT, windows=Session(5), value_type=dict[str, int])
    with pytest.raises(TypeError, match="merge=lambda"):
        merge_values({"a": Stats()}, {"a": Stats()})
    table = declared(Session(5, grace_ms=50), default=0, merge=max)
    shard = shard_of(table)
    for timestamp, more in ((0, 5), (8, 7), (4, 1)):
        shard.begin(timestamp)
        table["k"] += more
    assert table["k"].current() == 8
