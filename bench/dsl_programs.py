"""What ``bench dsl`` runs: programs, and the records that they are fed."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

import millstream as ms  # noqa: TC001  # what agents are annotated with is read
from bench.program import START_MS, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "JOINS",
    "PAIRS",
    "SLOT_MS",
    "WINDOWS",
    "Program",
    "Row",
    "Wide",
    "many_keys",
    "many_windows",
]

SLOT_MS = 10_000
"""Windows are this long, and their records lie in the first second."""

Row = tuple[str, Event]
"""Topic and value; the value's ``ts`` becomes the record's timestamp, its ``key`` the key."""


class Wide(msgspec.Struct, gc=False):
    """What joins make."""

    id: int
    other: int | None
    amount: float


class Program(NamedTuple):
    """Something to run: it declares what it does with the topics of its feed."""

    topics: tuple[str, ...]
    declare: Callable[[ms.App, dict[str, Any]], Any]
    feed: Callable[[int, int], Iterator[Row]]
    waits: bool = False
    """Whether it goes through topics of its own, which have to be read to their ends as well."""


# records ------------------------------------------------------------------------------------------


def event(number: int, key: str, ts: int, amount: float = 1.0) -> Event:
    """About 119 bytes of JSON."""
    return Event(number, key, amount, START_MS + ts, "x" * 20)


def _random(topics: tuple[str, ...], count: int, keys: int) -> Iterator[Row]:
    """A record each millisecond, topics by turns, keys at random."""
    choose = random.Random(1)
    for number in range(count):
        amount = round(choose.random() * 100, 2)
        key = f"key-{choose.randrange(keys)}"
        yield topics[number % len(topics)], event(number, key, number, amount)


def one_topic(count: int, keys: int) -> Iterator[Row]:
    """Records of one topic."""
    return _random(("events",), count, keys)


def two_topics(count: int, keys: int) -> Iterator[Row]:
    """Records of two."""
    return _random(("events", "others"), count, keys)


def table_first(count: int, keys: int) -> Iterator[Row]:
    """A record for each key of a table, then those that look it up."""
    for number in range(keys):
        yield "others", event(number, f"key-{number}", 0)
    yield from one_topic(count, keys)


def foreign(count: int, keys: int) -> Iterator[Row]:
    """Rows with a foreign key in ``note``, ten to each row of the other side; that changes once in ten times."""
    choose = random.Random(1)
    others = max(1, keys // 10)
    for number in range(count):
        if number % 10 == 0:
            yield "others", event(number, f"other-{choose.randrange(others)}", number)
        else:
            row = event(number, f"key-{choose.randrange(keys)}", number)
            row.note = f"other-{choose.randrange(others)}"
            yield "events", row


# the same program twice -------------------------------------------------------------------------


def _enriched(left: Event, right: Event | None) -> Wide:
    return Wide(left.id, None if right is None else right.id, left.amount)


def _joined(left: Event | None, right: Event | None) -> Wide:
    return Wide(
        -1 if left is None else left.id,
        None if right is None else right.id,
        0.0 if left is None else left.amount,
    )


def _marked(value: Event) -> Event:
    value.big = True
    return value


def filter_map_agent(app: ms.App, topics: dict[str, Any]) -> None:
    """To another topic what passes, changed."""
    large = app.topic("large", value=Event, key_from="key")

    @app.agent(topics["events"])
    async def mark(stream: ms.Stream[Event]) -> None:
        async for value in stream:
            if value.amount >= 50:
                value.big = True
                await large.send(value)


def filter_map_dsl(app: ms.App, topics: dict[str, Any]) -> None:
    """The same."""
    large = app.topic("large", value=Event, key_from="key")
    app.stream(topics["events"]).filter(lambda value: value.amount >= 50).map(_marked).to(large)


def count_agent(app: ms.App, topics: dict[str, Any]) -> None:
    """A number for each key."""
    counts = app.table("counts", key=str, value=int, default=0)

    @app.agent(topics["events"])
    async def count(stream: ms.Stream[Event]) -> None:
        async for value in stream:
            counts[value.key] += 1


def count_dsl(app: ms.App, topics: dict[str, Any]) -> None:
    """The same."""
    app.stream(topics["events"]).group_by().count(name="counts")


def tumbling_agent(app: ms.App, topics: dict[str, Any]) -> None:
    """A number for each key and minute."""
    counts = app.table("counts", key=str, value=int, default=0).tumbling("1m")

    @app.agent(topics["events"])
    async def count(stream: ms.Stream[Event]) -> None:
        async for value in stream:
            counts[value.key] += 1


def tumbling_dsl(app: ms.App, topics: dict[str, Any]) -> None:
    """The same."""
    app.stream(topics["events"]).group_by().tumbling("1m").count(name="counts")


def lookup_agent(app: ms.App, topics: dict[str, Any]) -> None:
    """Each record with what a table has for its key."""
    table = app.table("customers", topic=topics["others"])
    wide = app.topic("wide", value=Wide, key=str)

    @app.agent(topics["events"])
    async def enrich(stream: ms.Stream[Event]) -> None:
        async for value in stream:
            other = table.get(value.key)
            if other is not None:
                await wide.send(_enriched(value, other), key=value.key)


def lookup_dsl(app: ms.App, topics: dict[str, Any]) -> None:
    """The same."""
    table = app.table("customers", topic=topics["others"])
    wide = app.topic("wide", value=Wide, key=str)
    app.stream(topics["events"]).join(table, _enriched, name="enrich").to(wide)


EVENTS, BOTH = ("events",), ("events", "others")

PAIRS = {
    "filter-map": (
        Program(EVENTS, filter_map_agent, one_topic),
        Program(EVENTS, filter_map_dsl, one_topic),
    ),
    "count": (
        Program(EVENTS, count_agent, one_topic),
        Program(EVENTS, count_dsl, one_topic),
    ),
    "tumbling": (
        Program(EVENTS, tumbling_agent, one_topic),
        Program(EVENTS, tumbling_dsl, one_topic),
    ),
    "stream-table": (
        Program(BOTH, lookup_agent, table_first),
        Program(BOTH, lookup_dsl, table_first),
    ),
}
"""Agent and DSL."""


# joins ------------------------------------------------------------------------------------------------


def stream_join(
    how: str = "inner", within_ms: int = 10_000, grace_ms: int = 0
) -> Callable[[ms.App, dict[str, Any]], None]:
    """Two streams, within a reach of time; results to a topic."""

    def declare(app: ms.App, topics: dict[str, Any]) -> None:
        wide = app.topic("wide", value=Wide, key=str)
        left: Any = app.stream(topics["events"])
        right = app.stream(topics["others"])
        left.join(
            right,
            _joined,
            how=how,
            within=within_ms / 1_000,
            grace=grace_ms / 1_000,
            name="join",
        ).to(wide)

    return declare


def table_join(app: ms.App, topics: dict[str, Any]) -> None:
    """Two topics as tables; results to a topic."""
    wide = app.topic("wide", value=Wide, key=str)
    left = app.table("left", topic=topics["events"])
    right = app.table("right", topic=topics["others"])
    left.join(right, _joined, value=Wide).to(wide)


def foreign_join(app: ms.App, topics: dict[str, Any]) -> None:
    """A table with a column that names rows of another."""
    left = app.table("left", topic=topics["events"])
    right = app.table("right", topic=topics["others"])
    left.join(right, _joined, on="note", name="joined", value=Wide)


JOINS = {
    "stream-stream inner": (Program(BOTH, stream_join("inner"), two_topics), 50_000),
    "stream-stream left": (Program(BOTH, stream_join("left"), two_topics), 50_000),
    "table-table": (Program(BOTH, table_join, two_topics), 80_000),
    "foreign-key": (Program(BOTH, foreign_join, foreign, waits=True), None),
}
"""Programs, and the least events a second of one core's time."""


# many windows ---------------------------------------------------------------------------------------


def _windowed(kind: str, open_windows: int) -> Callable[[ms.App, dict[str, Any]], None]:
    def declare(app: ms.App, topics: dict[str, Any]) -> None:
        grace = (open_windows - 1) * SLOT_MS / 1_000 + 3  # records of a slot come in any order
        if kind == "join":
            stream_join("inner", 1_000, int(grace * 1_000))(app, topics)
            return
        groups = app.stream(topics["events"]).group_by()
        if kind == "tumbling":
            windowed = groups.tumbling("10s", grace=grace)
        elif kind == "hopping":
            windowed = groups.hopping("30s", "10s", grace=grace)
        elif kind == "session":
            windowed = groups.session("2s", grace=grace)
        else:
            windowed = groups.sliding("1s", grace=grace)
        windowed.count(name="counts")

    return declare


def _slots(topics: tuple[str, ...], open_windows: int, count: int, total: int) -> Iterator[Row]:
    """Records at random over ``total`` windows, which are those of few keys, or one of each of many."""
    choose = random.Random(1)
    keys = max(1, total // open_windows)
    newest = event(0, "newest", open_windows * SLOT_MS)
    for topic in topics:
        yield topic, newest
    for number in range(count - len(topics)):
        slot, within = choose.randrange(open_windows), choose.randrange(1_000)
        key = f"key-{choose.randrange(keys)}"
        # the last slot begins where stream time is: all of its windows take records
        row = event(number, key, (slot + 1) * SLOT_MS + within)
        yield topics[number % len(topics)], row


WINDOWS = ("tumbling", "hopping", "session", "sliding", "join")


def many_windows(kind: str, open_windows: int) -> Program:
    """A program, fed with ``count`` records over ``keys`` windows in all."""
    topics = BOTH if kind == "join" else EVENTS
    return Program(
        topics,
        _windowed(kind, open_windows),
        lambda count, total: _slots(topics, open_windows, count, total),
    )


# many keys ------------------------------------------------------------------------------------------


def many_keys(kind: str, keys: int, *, after: int = 0) -> tuple[Program, Program]:
    """The same program twice: fed with a record or two for each of its keys; then with ``count`` for keys at random.

    Args:
        after: records of the second feed that came before, with other keys and earlier times.
    """
    topics = EVENTS if kind in ("count", "tumbling") else BOTH

    def first(count: int, _: int) -> Iterator[Row]:
        for number in range(keys * len(topics)):
            topic = topics[number % len(topics)]
            yield topic, event(number, f"key-{number // len(topics)}", number + 1)

    def then(count: int, _: int) -> Iterator[Row]:
        choose = random.Random(after + 1)
        for number in range(after, after + count):
            now = keys * len(topics) + number + 1
            topic = topics[number % len(topics)]
            yield topic, event(number, f"key-{choose.randrange(keys)}", now)

    def tumbling(app: ms.App, topics: dict[str, Any]) -> None:
        app.stream(topics["events"]).group_by().tumbling("30d").count(name="counts")

    declare = {
        "count": count_dsl,
        "tumbling": tumbling,
        "table-table": table_join,
        "stream-stream": stream_join("inner", within_ms=2 * keys),
    }[kind]
    return Program(topics, declare, first), Program(topics, declare, then)
