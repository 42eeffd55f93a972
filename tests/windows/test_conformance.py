"""Windows against Kafka Streams: the micro cases, and its recorded answers.

What drives the declarations here is the most naive aggregator there is: a dict of windows per key, the
aggregator ``v;``. Where Kafka Streams' answer rests on one of its defects (semantics, section 7), the
difference is named, pinned to its bounds, and our answer is held against a model that folds every record
which the grace rule accepts.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from millstream.windows import Hopping, Session, Sliding, Tumbling, Window

Windows = Tumbling | Hopping | Sliding | Session
Record = tuple[str | None, str | None, int]
"""Key, value, timestamp."""

CASES = Path(__file__).parents[1] / "conformance" / "kafka-streams.jsonl"
DAY_MS = 86_400_000
END_MS = 100_000  # after every recorded case


class Result(NamedTuple):
    """One result, as the cases print it once `printed`."""

    key: str
    window: Window
    value: str | None
    timestamp: int

    def printed(self) -> list[Any]:
        return [f"{self.key}@{self.window.start}/{self.window.end}", self.value, self.timestamp]


class Aggregation:
    """Folds records into windows held in a dict, and forgets those that have expired."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.stream_time = -1
        self._held: dict[str, dict[Window, tuple[str, int]]] = {}

    def feed(self, record: Record) -> list[Result]:
        """Results of one record, in order."""
        key, value, timestamp = record
        if key is None or (value is None and isinstance(self.windows, Sliding)):
            return []
        self.stream_time = max(self.stream_time, timestamp)
        held = self._held.setdefault(key, {})
        for window in [window for window in held if self._expired(window)]:
            del held[window]
        added = f"{'_' if value is None else value};"
        match self.windows:
            case Session():
                return self._feed_session(key, held, added, timestamp)
            case Sliding():
                return self._feed_sliding(key, held, added, timestamp)
            case _:
                return self._feed_aligned(key, held, added, timestamp)

    def _expired(self, window: Window) -> bool:
        kept_from = window.end if isinstance(self.windows, Session) else window.start
        return self.stream_time >= self.windows.expires_at(kept_from)

    def _feed_aligned(
        self, key: str, held: dict[Window, tuple[str, int]], added: str, timestamp: int
    ) -> list[Result]:
        assert isinstance(self.windows, Tumbling | Hopping)
        results = []
        for start in self.windows.starts(timestamp):
            window = self.windows.window(start)
            if self.windows.accepts(window, self.stream_time):
                value, newest = held.get(window, ("", -1))
                held[window] = (value + added, max(newest, timestamp))
                results.append(Result(key, window, *held[window]))
        return results

    def _feed_sliding(
        self, key: str, held: dict[Window, tuple[str, int]], added: str, timestamp: int
    ) -> list[Result]:
        assert isinstance(self.windows, Sliding)
        lowest, highest = self.windows.reach(timestamp)
        existing = sorted(
            (window.start, newest)
            for window, (_, newest) in held.items()
            if lowest <= window.start <= highest
        )
        before = {window.start: value for window, (value, _) in held.items()}
        results = []
        for change in self.windows.touch(existing, timestamp, self.stream_time):
            base = "" if change.base is None else before[change.base]
            held[change.window] = (base + added if change.adds else base, change.timestamp)
            results.append(Result(key, change.window, *held[change.window]))
        return results

    def _feed_session(
        self, key: str, held: dict[Window, tuple[str, int]], added: str, timestamp: int
    ) -> list[Result]:
        assert isinstance(self.windows, Session)
        lowest_end, highest_start = self.windows.reach(timestamp)
        existing = sorted(w for w in held if w.end >= lowest_end and w.start <= highest_start)
        change = self.windows.touch(existing, timestamp, self.stream_time)
        if change is None:
            return []
        merged = "".join(held.pop(window)[0] for window in change.merged)
        held[change.window] = (merged + added, change.window.end)
        tombstones = [Result(key, window, None, window.end) for window in change.replaced]
        return [*tombstones, Result(key, change.window, *held[change.window])]


class Finals:
    """Holds results back until their windows are closed.

    Kafka Streams orders windows that end together by key with ``suppress``, and by start, then key,
    with ``close``: it matters for sessions alone.
    """

    def __init__(self, windows: Windows, *, order: str) -> None:
        self.windows, self.order = windows, order
        self._waiting: dict[tuple[Window, str], Result] = {}

    def update(self, result: Result) -> None:
        self._waiting.pop((result.window, result.key), None)
        if result.value is not None:
            self._waiting[result.window, result.key] = result

    def due(self, stream_time: int, *, early: int = 0) -> list[Result]:
        """Results whose windows are final ``early`` ms after this stream time, in order."""
        due = [
            result
            for result in self._waiting.values()
            if stream_time + early >= self.windows.final_at(result.window)
        ]
        for result in due:
            del self._waiting[result.window, result.key]
        return sorted(due, key=self._rank)

    def _rank(self, result: Result) -> tuple[int, int, str, int]:
        (start, end), key = result.window, result.key
        return (end, 0, key, start) if self.order == "suppress" else (end, start, key, 0)


def updates(windows: Windows, records: list[Record]) -> list[list[Result]]:
    aggregation = Aggregation(windows)
    return [aggregation.feed(record) for record in records]


def finals(windows: Windows, records: list[Record], *, order: str) -> list[list[Result]]:
    """Each window once, when it is closed: what Millstream does."""
    aggregation, waiting = Aggregation(windows), Finals(windows, order=order)
    out = []
    for record in records:
        for result in aggregation.feed(record):
            waiting.update(result)
        out.append(waiting.due(aggregation.stream_time))
    return out


def suppressed(windows: Windows, records: list[Record]) -> list[list[Result]]:
    """What Kafka Streams' suppress does.

    It looks for due results after each result that it gets, and takes a window whose end is inclusive for
    closed 1 ms before the aggregate does: a record of that ms makes a second "final" result.
    """
    aggregation, waiting = Aggregation(windows), Finals(windows, order="suppress")
    early = 1 if isinstance(windows, Sliding | Session) else 0
    newest = -1
    out: list[list[Result]] = []
    for record in records:
        out.append([])
        for result in aggregation.feed(record):
            newest = max(newest, result.timestamp)
            waiting.update(result)
            out[-1] += waiting.due(newest, early=early)
    return out


def printed(results: list[list[Result]]) -> list[list[list[Any]]]:
    return [[result.printed() for result in of_one] for of_one in results]


# -- the micro cases --------------------------------------------------------------------------------


def counts(windows: Windows, timestamps: list[int]) -> list[list[str]]:
    """Results for one key, as ``start..end=count@timestamp``."""
    rows = []
    for results in updates(windows, [("A", "1", timestamp) for timestamp in timestamps]):
        row = []
        for result in results:
            count = "null" if result.value is None else str(result.value.count(";"))
            row.append(f"{result.window.start}..{result.window.end}={count}@{result.timestamp}")
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        pytest.param(
            Tumbling(10, grace_ms=5),
            [
                (0, ["0..10=1@0"]),
                (14, ["10..20=1@14"]),
                (9, ["0..10=2@9"]),  # late: 10 > 14 - 5
                (15, ["10..20=2@15"]),
                (8, []),  # too late: 10 is not above 15 - 5
            ],
            id="1-tumbling",
        ),
        pytest.param(
            Hopping(10, 5),
            [
                (7, ["0..10=1@7", "5..15=1@7"]),
                (12, ["5..15=2@12", "10..20=1@12"]),
                (9, ["5..15=3@12"]),  # [0, 10) is closed, and the timestamp stays the highest
            ],
            id="2-hopping",
        ),
        pytest.param(
            Session(5, grace_ms=20),
            [
                (0, ["0..0=1@0"]),
                (5, ["0..0=null@0", "0..5=2@5"]),  # exactly the gap apart
                (11, ["11..11=1@11"]),  # 1 ms more than the gap
                (6, ["0..5=null@5", "11..11=null@11", "0..11=4@11"]),  # joins the two
            ],
            id="3-session",
        ),
        pytest.param(
            Sliding(10, grace_ms=50),
            [
                (20, ["10..20=1@20"]),
                (25, ["21..31=1@25", "15..25=2@25"]),  # right window of 20, left window of 25
                (31, ["21..31=2@31", "26..36=1@31"]),  # the left window exists already
                (26, ["26..36=2@31", "21..31=3@31", "16..26=3@26", "27..37=1@31"]),
            ],
            id="4-sliding",
        ),
        pytest.param(
            Sliding(10),
            [
                (3, ["0..10=1@3"]),  # records before the width share [0, width]
                (7, ["4..14=1@7", "0..10=2@7"]),
                (5, ["4..14=2@7", "6..16=1@7", "0..10=3@7"]),
            ],
            id="5-sliding-early",
        ),
        pytest.param(
            Session(5),
            [
                (3, ["3..3=1@3"]),
                (3, ["3..3=2@3"]),  # a session of one moment is replaced without a tombstone
                (5, ["3..3=null@3", "3..5=3@5"]),
                (4, ["3..5=null@5", "3..5=4@5"]),  # any other with one, though its bounds stay
            ],
            id="session-tombstones",
        ),
        pytest.param(
            Session(5, grace_ms=1, retention_ms=100),
            [
                (0, ["0..0=1@0"]),
                (12, ["12..12=1@12"]),
                (5, []),  # late: it would make 0..5, which ends before 12 - 1 - 5
                (6, ["6..6=1@6"]),  # just in time
                (18, ["18..18=1@18"]),
                (8, ["6..6=null@6", "12..12=null@12", "6..12=3@12"]),  # late alone, but a bridge
            ],
            id="session-late",
        ),
        pytest.param(
            Sliding(10, grace_ms=50),
            [
                (20, ["10..20=1@20"]),
                (25, ["21..31=1@25", "15..25=2@25"]),
                # 25 is width + 1 before 36: its right window is the left window of 36, and comes twice
                (36, ["26..36=1@36", "26..36=1@36"]),
            ],
            id="sliding-twice",
        ),
    ],
)
def test_micro_case(windows: Windows, expected: list[tuple[int, list[str]]]) -> None:
    """One key counted gives the results that Kafka Streams gave, record for record."""
    assert counts(windows, [timestamp for timestamp, _ in expected]) == [row for _, row in expected]


# -- the recorded cases -----------------------------------------------------------------------------


class Case(NamedTuple):
    """One recorded case."""

    name: str
    windows: Windows
    emit: str
    records: list[Record]
    out: list[list[list[Any]]]


def declared(topology: str, params: dict[str, Any]) -> Windows:
    grace_ms = params["grace"]
    retention_ms = DAY_MS if params["long_retention"] else 0
    if topology == "tumbling":
        return Tumbling(params["size"], grace_ms=grace_ms, retention_ms=retention_ms)
    if topology == "hopping":
        return Hopping(
            params["size"], params["advance"], grace_ms=grace_ms, retention_ms=retention_ms
        )
    if topology == "sliding":
        return Sliding(params["difference"], grace_ms=grace_ms, retention_ms=retention_ms)
    return Session(params["gap"], grace_ms=grace_ms, retention_ms=retention_ms)


def recorded(topology: str, emit: str, *, long_retention: bool) -> list[Case]:
    with CASES.open(encoding="utf-8") as lines:
        read = [json.loads(line) for line in lines]
    return [
        Case(
            f"{topology}-{case['seed']}",
            declared(topology, case["params"]),
            emit,
            [(key, value, timestamp) for _, key, value, timestamp in case["in"]],
            case["out"],
        )
        for case in read
        if case["topology"] == topology
        and case["params"]["emit"] == emit
        and case["params"]["long_retention"] is long_retention
    ]


def answered(case: Case) -> list[list[list[Any]]]:
    """What Millstream answers."""
    if case.emit == "update":
        return printed(updates(case.windows, case.records))
    return printed(finals(case.windows, case.records, order=case.emit))


LOST = "emit-on-close is clipped by store expiry: windows are lost"
GONE = "a session that is open by the grace rule has expired in the store"
TWICE = "suppress takes a window for closed 1 ms before the aggregate does"


@pytest.mark.parametrize(
    ("topology", "emit", "long_retention", "equal", "of", "defect"),
    [
        ("tumbling", "update", False, 21, 21, None),
        ("tumbling", "update", True, 21, 21, None),
        ("tumbling", "close", False, 2, 21, LOST),
        ("tumbling", "close", True, 21, 21, None),
        ("tumbling", "suppress", False, 21, 21, None),
        ("tumbling", "suppress", True, 21, 21, None),
        ("hopping", "update", False, 42, 42, None),
        ("hopping", "update", True, 42, 42, None),
        ("hopping", "close", False, 0, 42, LOST),
        ("hopping", "close", True, 42, 42, None),
        ("hopping", "suppress", False, 42, 42, None),
        ("hopping", "suppress", True, 42, 42, None),
        ("sliding", "update", False, 21, 21, None),
        ("sliding", "update", True, 21, 21, None),
        ("sliding", "close", False, 5, 21, LOST),
        ("sliding", "close", True, 21, 21, None),
        ("sliding", "suppress", False, 3, 21, TWICE),
        ("sliding", "suppress", True, 3, 21, TWICE),
        ("session", "update", False, 17, 21, GONE),
        ("session", "update", True, 21, 21, None),
        ("session", "close", False, 18, 21, GONE),
        ("session", "close", True, 21, 21, None),
        ("session", "suppress", False, 7, 21, TWICE),
        ("session", "suppress", True, 4, 21, TWICE),
    ],
)
def test_answers_of_kafka_streams(
    topology: str, emit: str, long_retention: bool, equal: int, of: int, defect: str | None
) -> None:
    """Every recorded answer is ours too, but for those that rest on a named defect."""
    cases = recorded(topology, emit, long_retention=long_retention)
    differing = [case.name for case in cases if answered(case) != case.out]
    assert (len(cases) - len(differing), len(cases)) == (equal, of), (defect, differing)
    assert (defect is None) == (not differing)


@pytest.mark.parametrize("topology", ["tumbling", "hopping", "sliding", "session"])
@pytest.mark.parametrize("long_retention", [False, True])
def test_suppress_can_be_reproduced(topology: str, long_retention: bool) -> None:
    """Suppress is `final_at`, 1 ms early where ends are inclusive, asked after each result."""
    for case in recorded(topology, "suppress", long_retention=long_retention):
        assert printed(suppressed(case.windows, case.records)) == case.out, case.name


# -- what differs, against a model that folds every record which the grace rule accepts --------------


def accepted(records: list[Record]) -> list[tuple[str, str, int, int]]:
    """Key, added text, timestamp and stream time of each record that counts."""
    rows = []
    stream_time = -1
    for key, value, timestamp in records:
        if key is not None:
            stream_time = max(stream_time, timestamp)
            rows.append((key, f"{'_' if value is None else value};", timestamp, stream_time))
    return rows


def folded_aligned(windows: Tumbling | Hopping, records: list[Record]) -> dict[str, list[Any]]:
    """All windows, by trying every start up to the record's time."""
    out: dict[str, list[Any]] = {}
    for key, added, timestamp, stream_time in accepted(records):
        for start in range(0, timestamp + 1, windows.advance_ms):
            end = start + windows.size_ms
            if timestamp < end and end > stream_time - windows.grace_ms:
                row = out.setdefault(f"{key}@{start}/{end}", ["", -1])
                row[:] = [row[0] + added, max(row[1], timestamp)]
    return out


def folded_sliding(windows: Sliding, records: list[Record]) -> dict[str, list[Any]]:
    """The last update of each window when nothing expires, which the recorded updates prove right.

    Not a fold of all accepted records: as in Kafka Streams, a record that is late for its own left window,
    with no other window there to take it, leaves no trace for those made later.
    """
    kept = Sliding(windows.width_ms, grace_ms=windows.grace_ms, retention_ms=DAY_MS)
    return by_window(printed(updates(kept, records)))


def folded_sessions(windows: Session, records: list[Record]) -> list[list[list[Any]]]:
    """Updates of sessions kept as lists of their timestamps, until no lone record can join them."""
    sessions: list[tuple[str, list[int], str]] = []
    out: list[list[list[Any]]] = [[] for _ in records]
    rows = iter(accepted(records))
    for results, (key_read, _, _) in zip(out, records, strict=True):
        if key_read is None:
            continue
        key, added, timestamp, stream_time = next(rows)
        close = stream_time - windows.gap_ms - windows.grace_ms
        sessions = [session for session in sessions if max(session[1]) >= close]
        near = sorted(
            (min(times), session)
            for session in sessions
            for of, times, _ in [session]
            if of == key and min(times) - windows.gap_ms <= timestamp <= max(times) + windows.gap_ms
        )
        times = [timestamp, *(one for _, session in near for one in session[1])]
        if max(times) < close:
            continue
        for _, session in near:
            sessions.remove(session)
            if min(times) < max(times):
                name = f"{key}@{min(session[1])}/{max(session[1])}"
                results.append([name, None, max(session[1])])
        value = "".join(session[2] for _, session in near) + added
        sessions.append((key, times, value))
        results.append([f"{key}@{min(times)}/{max(times)}", value, max(times)])
    return out


def by_window(out: list[list[list[Any]]]) -> dict[str, list[Any]]:
    """The last result of each window."""
    return {name: [value, timestamp] for of_one in out for name, value, timestamp in of_one}


def once(out: list[list[list[Any]]]) -> bool:
    """Whether no window came out twice."""
    return set(Counter(name for of_one in out for name, _, _ in of_one).values()) <= {1}


def complete(case: Case) -> list[Record]:
    """The case's records, and one at the end of time that closes every window of the others."""
    return [*case.records, ("end", "end", END_MS)]


@pytest.mark.parametrize("topology", ["tumbling", "hopping", "sliding"])
@pytest.mark.parametrize("emit", ["close", "suppress"])
@pytest.mark.parametrize("long_retention", [False, True])
def test_finals_are_the_fold(topology: str, emit: str, long_retention: bool) -> None:
    """Each window with data comes out exactly once, with every record that was in time for it."""
    for case in recorded(topology, emit, long_retention=long_retention):
        records = complete(case)
        ours = printed(finals(case.windows, records, order=emit))
        match case.windows:
            case Tumbling() | Hopping():
                model = folded_aligned(case.windows, records)
            case Sliding():
                model = folded_sliding(case.windows, records)
            case _:
                raise AssertionError(case.windows)
        model = {name: row for name, row in model.items() if not name.startswith("end@")}
        assert once(ours), case.name
        seen = {name: row for name, row in by_window(ours).items() if not name.startswith("end@")}
        assert seen == model, case.name


@pytest.mark.parametrize("topology", ["tumbling", "hopping", "sliding"])
def test_lost_windows(topology: str) -> None:
    """Where emit-on-close of Kafka Streams differs, windows are missing, and nothing else."""
    for case in recorded(topology, "close", long_retention=False):
        for ours, theirs in zip(answered(case), case.out, strict=True):
            assert [row for row in ours if row in theirs] == theirs, case.name


@pytest.mark.parametrize("topology", ["sliding", "session"])
@pytest.mark.parametrize("long_retention", [False, True])
def test_early_finals(topology: str, long_retention: bool) -> None:
    """Where suppress differs, it lets a window go at the one moment that is still accepted."""
    for case in recorded(topology, "suppress", long_retention=long_retention):
        ours, theirs = answered(case), by_window(case.out)
        assert once(ours), case.name
        for name, row in by_window(ours).items():
            assert theirs.pop(name) == row, case.name
        for name in theirs:
            start, end = map(int, name.partition("@")[2].split("/"))
            early = case.windows.final_at(Window(start, end)) - 1
            assert early in {t for _, _, t in case.records}, (case.name, name)


@pytest.mark.parametrize("emit", ["update", "close"])
def test_sessions_are_the_fold(emit: str) -> None:
    """Sessions are those of the grace rule, whatever a store of Kafka Streams has forgotten."""
    for case in recorded("session", emit, long_retention=False):
        assert isinstance(case.windows, Session)
        model = folded_sessions(case.windows, case.records)
        assert printed(updates(case.windows, case.records)) == model, case.name
