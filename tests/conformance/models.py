"""What is right, computed as naively as can be: windows as plain dicts, nothing forgotten that may matter.

These models know nothing of our code. Each takes a case's inputs and gives the outputs after each, as the cases
have them. Where Kafka Streams' recorded answer rests on one of its defects, ours is held against these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["DEFECTS", "MODELS", "defect_of", "group_of", "model_of"]

Input = tuple[str, str | None, str | None, int]
"""Topic, key, value, timestamp."""
Output = list[list[list[Any]]]
DAY_MS = 86_400_000
"""What ``long_retention`` is."""


class Row(NamedTuple):
    """A window's result."""

    key: str
    start: int
    end: int
    value: str | None
    timestamp: int

    def printed(self) -> list[Any]:
        """As the cases have it."""
        return [f"{self.key}@{self.start}/{self.end}", self.value, self.timestamp]


class Aligned:
    """Tumbling and hopping windows: from the last start before the record, as far back as windows reach."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.size: int = params["size"]
        self.grace: int = params["grace"]
        self.advance: int = params.get("advance", self.size)
        self.held: dict[tuple[str, int], tuple[str, int]] = {}

    def feed(self, key: str, added: str | None, time: int, stream_time: int) -> list[Row]:
        """Results of a record, in order of window start."""
        rows = []
        starts: list[int] = []
        start = time - time % self.advance
        while start >= 0 and time < start + self.size:
            starts.insert(0, start)
            start -= self.advance
        for start in starts:
            end = start + self.size
            if end > stream_time - self.grace:
                value, newest = self.held.get((key, start), ("", -1))
                self.held[key, start] = value + (added or "_;"), max(newest, time)
                rows.append(Row(key, start, end, *self.held[key, start]))
        return rows

    def final_at(self, row: Row) -> int:
        """The stream time from which on the window takes no record."""
        return row.end + self.grace


class Sliding:
    """Sliding windows as Kafka Streams makes them, each looked for among all that there ever were."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.width: int = params["difference"]
        self.grace: int = params["grace"]
        self.held: dict[str, dict[int, tuple[str, int]]] = {}

    def feed(self, key: str, added: str | None, time: int, stream_time: int) -> list[Row]:
        """Results of a record, in Kafka Streams' order."""
        close = stream_time - self.grace
        if added is None or time + self.width < close:
            return []
        held = self.held.setdefault(key, {})
        before = dict(held)
        rows: list[Row] = []

        def put(start: int, value: str, newest: int) -> None:
            held[start] = value, newest
            rows.append(Row(key, start, start + self.width, value, newest))

        def update(start: int, value: str, newest: int) -> None:
            if start + self.width >= close:
                put(start, value + added, max(newest, time))

        early = time < self.width
        left = 0 if early else time - self.width
        takers = [start for start in before if start <= time <= start + self.width]
        later = [start for start in sorted(takers, reverse=not early) if not (early and start == 0)]
        previous: int | None = None
        for start in later:
            if not early and start == left and before[start][1] >= time:
                update(start, *before[start])
                return rows  # a record of this moment has made what was missing
            update(start, *before[start])
        around = max((start for start in takers if early or start > left), default=None)
        if early:
            if 0 in before and before[0][1] < time:
                previous = before[0][1]
        else:
            ended = max((s for s in before if time - 2 * self.width <= s < left), default=None)
            if left in before:
                previous = before[left][1]
            elif ended is not None:
                previous = before[ended][1]

        def own_right() -> None:
            if around is not None and time + 1 not in before and before[around][1] > time:
                put(time + 1, *before[around])

        if early:
            own_right()
        if (
            previous is not None
            and previous + 1 not in before
            and time <= previous + 1 + self.width
        ):
            update(previous + 1, "", -1)
        if early:
            update(0, *before.get(0, ("", -1)))
        elif left not in before:
            shares = ended is not None and previous is not None and previous >= left
            update(left, before[ended][0] if shares and ended is not None else "", -1)
        if not early:
            own_right()
        return rows

    def final_at(self, row: Row) -> int:
        """The first stream time at which its end is out of grace."""
        return row.end + self.grace + 1


class Sessions:
    """Sessions as lists of their records' times."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.gap: int = params["gap"]
        self.grace: int = params["grace"]
        self.kept = DAY_MS if params.get("long_retention") else self.gap + self.grace
        self.held: list[tuple[str, list[int], str]] = []

    def feed(self, key: str, added: str | None, time: int, stream_time: int) -> list[Row]:
        """A tombstone for each session that is merged, then the one that they become."""
        close = stream_time - self.gap - self.grace
        # one that is out of grace takes no lone record, but joins others as long as it is kept
        self.held = [one for one in self.held if max(one[1]) >= stream_time - self.kept]
        near = sorted(
            (
                session
                for session in self.held
                if session[0] == key
                and min(session[1]) - self.gap <= time <= max(session[1]) + self.gap
            ),
            key=lambda session: min(session[1]),
        )
        times = [time, *(one for session in near for one in session[1])]
        if max(times) < close:
            return []
        rows = []
        for session in near:
            self.held.remove(session)
            if min(times) < max(times):
                rows.append(Row(key, min(session[1]), max(session[1]), None, max(session[1])))
        value = "".join(session[2] for session in near) + (added or "_;")
        self.held.append((key, times, value))
        return [*rows, Row(key, min(times), max(times), value, max(times))]

    def final_at(self, row: Row) -> int:
        """The first stream time at which no lone record can join it."""
        return row.end + self.gap + self.grace + 1


def windowed(make: Callable[[dict[str, Any]], Aligned | Sliding | Sessions]) -> Any:
    """The model of a windowed aggregate: updates, or each window once when it is final."""

    def run(inputs: Sequence[Input], params: dict[str, Any]) -> Output:
        windows = make(params)
        stream_time = -1
        waiting: dict[tuple[str, int, int], Row] = {}
        out: Output = []
        for _, key, value, time in inputs:
            rows: list[Row] = []
            if key is not None and not (value is None and isinstance(windows, Sliding)):
                stream_time = max(stream_time, time)
                rows = windows.feed(key, None if value is None else f"{value};", time, stream_time)
            if params.get("emit", "update") != "update":
                rows = finals(
                    waiting, rows, windows.final_at, stream_time, params.get("emit", "update")
                )
            out.append([row.printed() for row in rows])
        return out

    return run


def finals(
    waiting: dict[tuple[str, int, int], Row],
    updated: Iterable[Row],
    final_at: Callable[[Row], int],
    stream_time: int,
    emit: str,
) -> list[Row]:
    """What is final now, in order of window end.

    Windows that end together come by key, with emit-on-close by start first.
    """
    for row in updated:
        waiting.pop(row[:3], None)
        if row.value is not None:
            waiting[row[:3]] = row
    due = [row for row in waiting.values() if final_at(row) <= stream_time]
    for row in due:
        del waiting[row[:3]]
    if emit == "suppress":
        return sorted(due, key=lambda row: (row.end, row.key, row.start))
    return sorted(due, key=lambda row: (row.end, row.start, row.key))


def cogroup_tumbling(inputs: Sequence[Input], params: dict[str, Any]) -> Output:
    """Each input is late by its own time; a window keeps what all of them bring."""
    windows = Aligned(params)
    stream_time = {"a": -1, "b": -1}
    out: Output = []
    for topic, key, value, time in inputs:
        rows: list[Row] = []
        if key is not None:
            stream_time[topic] = max(stream_time[topic], time)
            shown = "null" if value is None else value
            added = f"{shown};" if topic == "a" else f"({shown})"
            rows = windows.feed(key, added, time, stream_time[topic])
        out.append([row.printed() for row in rows])
    return out


class JoinRow(NamedTuple):
    """A record of one side of a join."""

    left: bool
    key: str
    value: str
    time: int

    def alone(self) -> list[Any]:
        """What comes out where there is no partner."""
        text = f"{self.value},null" if self.left else f"null,{self.value}"
        return [self.key, text, self.time]

    def with_partner(self, other: JoinRow) -> list[Any]:
        """What comes out of two."""
        left, right = (self, other) if self.left else (other, self)
        return [self.key, f"{left.value},{right.value}", max(self.time, other.time)]


def stream_stream(inputs: Sequence[Input], params: dict[str, Any]) -> Output:
    """Two streams: every row that ever came is looked at, and a row without a partner comes out when it is due.

    A side's rows are found until its own time is beyond them by reach and grace, as in Kafka Streams.
    """
    before, after, grace = params["before"], params["after"], params["grace"]
    alone = {"inner": [], "left": [True], "outer": [True, False]}[params["kind"]]
    hold = {True: after + grace, False: before + grace}
    kept = {}
    for left, reach in ((True, after), (False, before)):
        ordered = reach + 1 if min(before, after) < 0 else 1  # what a stream without disorder needs
        kept[left] = max(before + after + grace, ordered)
    rows: list[JoinRow] = []
    waiting: list[JoinRow] = []
    stream_time, side_time = -1, {True: -1, False: -1}
    out: Output = []
    for topic, key, value, time in inputs:
        found: list[list[Any]] = []
        out.append(found)
        stream_time, left = max(stream_time, time), topic == "a"
        due = [row for row in waiting if row.time + hold[row.left] < stream_time]
        waiting = [row for row in waiting if row not in due]
        due.sort(key=lambda row: (row.time, row.left, row.key))
        found += [row.alone() for row in due]
        if value is None or (key is None and left not in alone):
            continue
        row = JoinRow(left, key or "", value, time)
        if key is None:
            found.append([None, *row.alone()[1:]])
            continue
        first, last = (time - before, time + after) if left else (time - after, time + before)
        last = max(0, last)  # Kafka Streams has it so at the beginning of time
        partners = [
            one
            for one in rows
            if one.left != left
            and one.key == key
            and first <= one.time <= last
            and one.time > side_time[not left] - kept[not left]
        ]
        partners.sort(key=lambda one: one.time)
        found += [row.with_partner(one) for one in partners]
        waiting = [one for one in waiting if one not in partners]
        if not partners and left in alone:
            if last < stream_time:
                found.append(row.alone())
            else:
                waiting.append(row)
        side_time[left] = max(side_time[left], time)
        if time > side_time[left] - kept[left]:
            rows.append(row)
    return out


def self_join(inputs: Sequence[Input], params: dict[str, Any]) -> Output:
    """A stream with itself: each record is a left one first, and then a right one, which finds itself as well."""
    before, after = params["before"], params["after"]
    ordered = max(before, after) + 1 if min(before, after) < 0 else 1
    kept = max(before + after + params["grace"], ordered)
    rows: list[JoinRow] = []
    stream_time = -1
    out: Output = []
    for _, key, value, time in inputs:
        found: list[list[Any]] = []
        out.append(found)
        if key is None or value is None:
            continue
        row = JoinRow(True, key, value, time)
        for left in (True, False):
            if not left:
                stream_time = max(stream_time, time)
                if time > stream_time - kept:
                    rows.append(row)
            reach = (before, after) if left else (after, before)
            last = max(0, time + reach[1])  # Kafka Streams has it so at the beginning of time
            near = [
                one
                for one in rows
                if one.key == key
                and time - reach[0] <= one.time <= last
                and one.time > stream_time - kept
            ]
            near.sort(key=lambda one: one.time)
            for one in near:
                pair = (row, one) if left else (one, row)
                found.append([key, ",".join(each.value for each in pair), max(time, one.time)])
    return out


MODELS: dict[str, Callable[[Sequence[Input], dict[str, Any]], Output]] = {
    "tumbling": windowed(Aligned),
    "hopping": windowed(Aligned),
    "sliding": windowed(Sliding),
    "session": windowed(Sessions),
    "cogroup_tumbling": cogroup_tumbling,
    "stream_stream": stream_stream,
    "self_join": self_join,
}

LOST = "emit-on-close is clipped by the expiry of the store: windows are lost"
TWICE = (
    "suppress can give a final result twice: it takes a {} for final 1 ms before the aggregate does"
)
A_SESSION = "a session that is still open by the grace rule has expired in the store"
# the same expiry, of what other operators keep
A_WINDOW = "a window that is still open by one input's time has expired in the store by another's"
A_ROW = "a row that is in reach of a join has expired in the store"
WAITS = (
    "rows without a partner that are due wait for a later record, or for a throttle of one second"
)

DEFECTS = {
    "tumbling close": LOST,
    "hopping close": LOST,
    "sliding close": LOST,
    "sliding suppress": TWICE.format("sliding window"),
    "session update": A_SESSION,
    "session close": f"{A_SESSION}, or {LOST}",
    "session suppress": TWICE.format("session"),
    "cogroup_tumbling": A_WINDOW,
    "self_join": A_ROW,
    "stream_stream inner": A_ROW,
    "stream_stream left": f"{WAITS}, or {A_ROW}",
    "stream_stream outer": f"{WAITS}, or {A_ROW}",
}
"""The defect of Kafka Streams' (semantics, section 7) on which some recorded answers rest, however long it keeps.

By group, without ``long_retention``: a store that keeps a day expires as well.
"""

KINDS = ("emit", "long_retention", "kind", "table", "versioned", "materialized", "buffer")
"""Parameters that make a group of their own."""


def group_of(case: dict[str, Any]) -> str:
    """Topology and the parameters that matter most, in words."""
    params = case["params"]
    words = [params[name] if isinstance(params[name], str) else name * params[name]
             for name in KINDS if name in params]  # fmt: skip
    return " ".join([case["topology"], *(word.partition(" ")[0] for word in words if word)])


def defect_of(group: str) -> str | None:
    """The defect on which a group's recorded answers may rest."""
    return DEFECTS.get(group.removesuffix(" long_retention"))


def model_of(case: dict[str, Any]) -> Output:
    """The right answer to a case."""
    return MODELS[case["topology"]]([tuple(one) for one in case["in"]], case["params"])
