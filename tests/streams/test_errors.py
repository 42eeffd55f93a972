"""Functions that raise in the middle of a chain: with ``skip``, ``dlq`` and before a retry, no trace of the record."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import millstream as ms
from millstream.errors import AgentError, EncodeError
from millstream.testing import TestApp
from millstream.worker import _subtopology
from tests.kit import continued
from tests.streams.running import Disturbance, Record, feed, interrupt, read

BAD = "bad"
END = 10_000_000

Change = tuple[str, str, int]
"""Key, value, timestamp; what begins with ``bad`` raises."""


class Program:
    """One pipeline with a table of each kind, at whose end some records raise."""

    def __init__(self, on_error: Any, *, later: bool = False, times: int = 1_000_000) -> None:
        self.app = app = ms.App("shop", partitions=1, on_error=on_error)
        self.source = app.topic("source", value=str, codec="str")
        self.out = app.topic("out", value=str, codec="str")
        self.failed: Counter[str] = Counter()
        stream = app.stream(self.source)
        groups = stream.group_by()
        count = groups.count(name="count")
        last = stream.to_table("last")
        # when its answers come, against other records, is open: only what they lead to is compared
        last.join(count, self.shown, on=lambda value: value[-1], how="left", name="owned")
        tables: list[Any] = [
            count,
            groups.tumbling("10ms", grace="5ms").count(name="tumbling", emit="final"),
            groups.session("10ms").count(name="session", emit="every"),
            groups.sliding("10ms").count(name="sliding", emit=ms.Suppress()),
            count.suppress(ms.Suppress("20ms"), name="held"),
            groups.aggregate(default=list[str], add=self.listed, name="list"),
            last.group_by(lambda value: value[:1], name="first").count(name="by-first"),
            last.join(count, self.shown, how="outer", name="joined"),
        ]
        for table in tables:
            shown = table.changes().map(lambda value: f"{value}", value=str)
            shown.to(self.out)
        stream.key_by(lambda value: value[-1], type=str).repartition(name="moved").to(self.out)

        def fail(value: str) -> None:
            if value.startswith(BAD):
                self.failed[value] += 1
                if self.failed[value] <= times:
                    raise ValueError(value)

        async def fail_later(value: str) -> None:
            await asyncio.sleep(0)
            fail(value)

        stream.foreach(fail_later if later else fail)

    @staticmethod
    def shown(left: Any, right: Any) -> str:
        return f"{left}/{right}"

    @staticmethod
    def listed(so_far: list[str], value: str) -> list[str]:
        so_far.append(value)
        return so_far


async def outcome(
    program: Program,
    batches: list[tuple[list[Change], int, Disturbance]],
    test: TestApp | None = None,
) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """All tables, and what came out, when everything is over."""
    async with test or TestApp(program.app) as t:
        for changes, turns, how in batches:
            await feed(t, program.source, changes, settle=False)
            await interrupt(t, turns, how)
        await feed(t, program.source, [("end", "end", END)])
        tables = {name: t.table(d.table).items() for name, d in program.app.tables.items()}
        times = {
            name: part.stream_time
            for name, part in t.worker.shards[1, 0].own_parts.items()
            if hasattr(part, "stream_time")
        }
        # the order of what comes through other topics is open
        records = sorted((comparable(record) for record in read(t, program.out)), key=str)
    return {"times": times, **tables}, records


def comparable(record: Record) -> tuple[Any, ...]:
    """What matters of a record."""
    return record.key, record.value, record.timestamp, sorted(record.headers.items())


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[list[Change], int, Disturbance]]:
    """Records, some of which raise; some at a time, with what happens in between."""
    now, found = 0, []
    for number in range(draw(st.integers(1, 5))):
        changes = []
        for place in range(draw(st.integers(1, 6))):
            now += draw(st.sampled_from([0, 1, 3, 12]))
            late = draw(st.sampled_from([0, 0, 2, 8]))
            word = draw(st.sampled_from(["x", "y", BAD]))
            owner = draw(st.sampled_from("AB"))
            key = draw(st.sampled_from("AB"))
            changes.append((key, f"{word}{number}{place}{owner}", max(0, now - late)))
        how: Disturbance = draw(st.sampled_from(["", "", "", "crash", "lose", "rebalance"]))
        found.append((changes, draw(st.integers(0, 30)), how))
    return found


@pytest.mark.parametrize("later", [False, True])
@settings(max_examples=20, deadline=None)
@given(batches(), st.sampled_from([1, 2_000]), st.sampled_from(["skip", "dlq"]))
def test_a_record_that_fails_leaves_no_trace(
    later: bool, listed: list[tuple[list[Change], int, Disturbance]], quiet: int, on_error: Any
) -> None:
    """Tables, event time and outputs are those of the other records alone, in shards with journals and without."""
    good: list[tuple[list[Change], int, Disturbance]] = [
        ([change for change in changes if not change[1].startswith(BAD)], 0, "")
        for changes, _, _ in listed
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_subtopology, "QUIET_EVENTS", quiet)
        found = asyncio.run(outcome(Program(on_error, later=later), listed))
        wanted = asyncio.run(outcome(Program(on_error, later=later), good))
    assert found == wanted


async def test_a_retry_begins_anew() -> None:
    """What the first attempts have done is undone; the one that works counts once."""
    listed: Any = [
        ([("A", "x1A", 0), ("A", "bad2A", 5), ("B", "x3B", 30), ("A", "bad4B", 31)], 0, "")
    ]
    on_error = ms.Retry(times=3, backoff=0, then="stop")
    tried = Program(on_error, times=2)
    found = await outcome(tried, listed)
    assert tried.failed == {"bad2A": 3, "bad4B": 3}
    assert found == await outcome(Program(on_error, times=0), listed)


async def test_stop_names_the_record() -> None:
    """The worker ends with an error that names record, key and line; what came before is committed."""
    program = Program("stop")
    test = TestApp(program.app)
    named = r"source/0@1.*key b?'?A'?.*test_errors\.py:\d+"
    with pytest.raises(AgentError, match=named) as caught:
        await outcome(program, [([("A", "x", 0)], 0, ""), ([("A", BAD, 1)], 0, "")], test)
    assert isinstance(caught.value.__cause__, ValueError)
    good = Program("stop", times=0)
    async with continued(good.app, test) as t:
        assert t.table(good.app.tables["count"].table) == {"A": 2}


async def test_a_failure_behind_a_topic() -> None:
    """Behind a repartition topic the record is another one: it is skipped there, and the first stage stands."""
    app = ms.App("shop", partitions=2, on_error="skip")
    source = app.topic("source", value=int)

    def checked(so_far: int, value: int) -> int:
        if value < 0:
            raise ValueError(value)
        return so_far + value

    stream = app.stream(source)
    seen = stream.group_by().count(name="seen")
    sums = stream.group_by(lambda value: f"{value % 2}", name="parity").aggregate(
        default=0, add=checked, name="sums"
    )
    async with TestApp(app) as t:
        await feed(t, source, [("a", 1, 0), ("b", -1, 1), ("a", 2, 2), ("a", 3, 3)])
        assert t.table(seen) == {"a": 3, "b": 1}
        assert t.table(sums) == {"1": 4, "0": 2}


class Point:
    """Not for JSON."""


async def test_values_of_unknown_type() -> None:
    """Through an internal topic goes what JSON gives back as it was; anything else is an error that says what to do."""
    app = ms.App("shop", partitions=1)
    source = app.topic("source", value=str)
    made: dict[str, Any] = {"dict": {"a": [1, 2]}, "tuple": (1, 2), "object": Point()}
    moved = app.stream(source).map(made.__getitem__).key_by(lambda value: "k", type=str)
    last = moved.repartition(name="moved").to_table("last")
    async with TestApp(app) as t:
        await feed(t, source, [("k", "dict", 0)])
        assert t.table(last) == {"k": {"a": [1, 2]}}
    for name in ("tuple", "object"):
        with pytest.raises(AgentError, match="annotate what the function returns") as caught:
            async with TestApp(app) as t:
                await feed(t, source, [("k", name, 0)])
        assert isinstance(caught.value.__cause__, EncodeError)


async def test_keyless_records_are_counted() -> None:
    """What is grouped, or read as a table, has no place for records without a key; streams have."""
    app = ms.App("shop", partitions=1)
    source, out = app.topic("source", value=str, codec="str"), app.topic("out", value=str)
    stream = app.stream(source)
    count = stream.group_by().count(name="count")
    last = app.table("last", topic=source)
    last.filter(bool, name="all")
    stream.to(out)
    async with TestApp(app) as t:
        await feed(t, source, [(None, "x", 0), ("a", "y", 1), ("a", None, 2)])
        assert t.table(count) == {"a": 1}
        assert [record[:2] for record in read(t, out)] == [(None, "x"), ("a", "y"), ("a", None)]
        (shard,) = t.worker.shards.values()
        assert shard.counters["null_keys_dropped"] == 2
        assert shard.counters["null_values_dropped"] == 1


class Payment(msgspec.Struct):
    """Some have no reference."""

    id: int
    ref: str | None = None


@pytest.mark.parametrize("lost", [False, True, None])
async def test_keyless_records_move_to_joins_that_take_them(lost: bool | None) -> None:
    """They come out unmatched behind another key too, whatever else reads the topic between; others drop and count them."""
    app = ms.App("shop", partitions=2)
    payments = app.topic("payments", value=Payment, key_from="id", key=int)
    refs = app.topic("refs", value=str)
    names = app.table("names", topic=refs)
    out: dict[str, list[Any]] = {}

    def note(name: str) -> Any:
        return lambda left, right=None: out.setdefault(name, []).append((left.id, right))

    by_ref = app.stream(payments).key_by("ref", type=str)
    right = app.stream(refs)
    by_ref.join(names, note("inner")).foreach(lambda _: None)
    by_ref.join(names, note("table"), how="left").foreach(lambda _: None)
    streams = by_ref.join(right, note("left"), how="left", within="1s", name="left")
    streams.foreach(lambda _: None)
    moved = by_ref.by_key()
    moved.filter(lambda _: True).foreach(note("beside"))
    filtered = moved.filter(lambda _: True)
    filtered.join(names, note("filtered"), how="left").foreach(lambda _: None)
    filtered.foreach(note("filtered-beside"))
    counts = by_ref.group_by().count(name="counts")

    @app.agent(app.stream(payments).group_by("ref", type=str))
    async def regrouped(stream: ms.Stream[Payment]) -> None:
        async for payment in stream:
            note("agent")(payment)

    other = app.stream(payments).key_by(lambda payment: payment.ref, type=str)
    other.join(names, note("no-left"), name="no-left").foreach(lambda _: None)
    async with TestApp(app) as t:
        await feed(t, refs, [("a", "Ada", 0)])
        rows: list[Any] = [(1, Payment(1, "a"), 1), (2, Payment(2), 2), (3, Payment(3, "c"), 3)]
        await feed(t, payments, rows)
        if lost is not None:
            await t.crash(lose_state=lost)
        await feed(t, payments, [(4, Payment(4), 4), (2, Payment(2, "a"), 5_000)])
        topics = [name for name in app.topology.topics if name.endswith("-repartition")]
        moves = {name: [r.value.id for r in read(t, app.topics[name])] for name in topics}
        dropped = sum(s.counters["null_keys_dropped"] for s in t.worker.shards.values())
        assert t.table(counts) == {"a": 2, "c": 1}
    found = {name: sorted(rows, key=str) for name, rows in out.items()}
    keyed: list[Any] = [(1, None), (2, None), (3, None)]
    matched: list[Any] = [(1, "Ada"), (2, "Ada")]
    left = sorted([*matched, (2, None), (3, None), (4, None)], key=str)
    assert found["table"] == found["filtered"] == left
    assert {(2, None), (4, None)} < set(found["left"])
    assert found["inner"] == found["no-left"] == matched
    assert found["beside"] == found["filtered-beside"] == found["agent"] == keyed
    assert {name: sorted(ids) for name, ids in moves.items()} == {
        "shop-payments-by-ref-repartition": [1, 2, 2, 3, 4],
        "shop-payments-keyed-repartition": [1, 2, 3],
    }
    assert dropped > 0


async def test_keyless_records_of_both_sides() -> None:
    """An outer join takes them from either side."""
    app = ms.App("shop", partitions=1)
    topics = [app.topic(name, value=Payment, key_from="id", key=int) for name in ("one", "two")]
    one, two = (app.stream(topic).key_by("ref", type=str) for topic in topics)
    out = app.topic("out", value=list[int | None])

    def pair(left: Payment | None, right: Payment | None) -> list[int | None]:
        return [one.id if one else None for one in (left, right)]

    one.join(two, pair, how="outer", within="1s", name="pairs").to(out)
    async with TestApp(app) as t:
        for number, topic in enumerate(topics, start=1):
            await feed(t, topic, [(number, Payment(number), 1), (9, Payment(9, "a"), 1)])
        assert [record.value for record in read(t, out)] == [[1, None], [None, 2], [9, 9]]
