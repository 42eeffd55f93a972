"""What holds of every program, whatever comes in and whatever happens to its workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import millstream as ms
from millstream.records import TopicPartition
from millstream.tables import POSITION_KEY
from millstream.testing import TestApp
from millstream.transports.batch import iterate_records
from tests.conformance.models import model_of
from tests.conformance.programs import build
from tests.conformance.run import outputs
from tests.kit import second_worker
from tests.streams.running import by_key, disturb, feed, fold, interrupt, read

if TYPE_CHECKING:
    import random

    from millstream.records import OutgoingRecord

END = 10_000_000
"""Event time after everything else."""

TODAY = 1_700_000_000_003
TWO_DAYS = 172_800_000

Change = tuple[str, int, int]
"""Key, value, timestamp."""

# -- windows are what their definition says ------------------------------------------------------


@st.composite
def windowed_cases(draw: st.DrawFn) -> dict[str, Any]:
    """A case in the form of the recorded ones, of parameters that these do not have."""
    topology = draw(
        st.sampled_from(["tumbling", "hopping", "sliding", "session", "cogroup_tumbling"])
    )
    size = draw(st.sampled_from([1, 5, 7, 10, 12]))
    params: dict[str, Any] = {
        "size": size,
        "difference": size - 1,
        "gap": size,
        "grace": draw(st.sampled_from([0, 0, 3, 5, 20])),
    }
    if topology == "hopping":
        params["advance"] = draw(st.integers(1, size))
    if topology != "cogroup_tumbling":
        params["emit"] = draw(st.sampled_from(["update", "close", "suppress"]))
        params["long_retention"] = draw(st.booleans())
    now = dict.fromkeys("ab", draw(st.sampled_from([0, 0, TODAY])))
    inputs = []
    for number in range(draw(st.integers(1, 30))):
        topic = draw(st.sampled_from("ab" if topology == "cogroup_tumbling" else "a"))
        now[topic] += draw(st.sampled_from([0, 0, 1, 1, 2, 4, 9, 11, 30, 200, TWO_DAYS]))
        time = now[topic] - draw(st.sampled_from([0, 0, 0, 1, 3, 6, 10, 15, 25]))
        key = draw(st.sampled_from(["A", "A", "A", "B", "B", None]))
        value = draw(st.sampled_from([None, *["v"] * 9]))
        inputs.append([topic, key, value and f"v{number}", max(0, time)])
    return {"topology": topology, "params": params, "in": inputs}


@settings(max_examples=120, deadline=None)
@given(windowed_cases(), st.randoms(use_true_random=False))
def test_windows_are_those_of_the_naive_model(case: dict[str, Any], rng: random.Random) -> None:
    """In batches of any size, and with anything between them, the same results in the same order."""

    async def run() -> list[list[Any]]:
        program, at = build(case, None), 0
        found: list[list[Any]] = []
        async with TestApp(program.app, start=0) as t:
            left = list(case["in"])
            while left:
                # which of two inputs is read first is for the engine to say
                size = 1 if case["topology"] == "cogroup_tumbling" else rng.choice([1, 2, 3, 7, 30])
                some, left = left[:size], left[size:]
                records = [(key, value, time) for _, key, value, time in some]
                await feed(t, program.inputs[some[0][0]], records, settle=False)
                how: Any = rng.choice(["", "", "", "crash", "lose", "rebalance"])
                await interrupt(t, rng.randint(0, 20), how)
                assert t._runtime is not None
                rows, at = await outputs(t._runtime.transport, program, at)
                found += rows
        return found

    assert asyncio.run(run()) == [row for rows in model_of(case) for row in rows]


# -- order within grace does not matter ----------------------------------------------------------


def windows_of(groups: Any, kind: str, grace: int) -> Any:
    """Windows of any kind, all of about 10 ms."""
    late = grace / 1_000
    match kind:
        case "tumbling":
            return groups.tumbling("10ms", grace=late)
        case "hopping":
            return groups.hopping("10ms", "4ms", grace=late)
        case "sliding":
            return groups.sliding("10ms", grace=late)
        case "session":
            return groups.session("10ms", grace=late)
        case _:
            return groups.calendar("hour", timezone="Europe/Berlin", grace=late)


each_kind = pytest.mark.parametrize("kind", ["tumbling", "hopping", "sliding", "session", "hour"])
records = st.lists(
    st.tuples(st.sampled_from("ABC"), st.integers(1, 9), st.integers(0, 120)),
    min_size=1,
    max_size=25,
)


def results(listed: list[Change], kind: str, grace: int, emit: Any) -> dict[Any, list[Any]]:
    """Sums of each window, as they come out, when everything is over."""

    async def run() -> dict[Any, list[Any]]:
        app = ms.App("shop", partitions=1)
        source, out = app.topic("source", value=int), app.topic("out", value=int)
        windows_of(app.stream(source).group_by(), kind, grace).sum(name="t", emit=emit).to(out)
        async with TestApp(app) as t:
            await feed(t, source, listed)
            await feed(t, source, [("end", 0, END)])
            found = by_key(read(t, out))
        return {window: values for window, values in found.items() if window[0] != "end"}

    return asyncio.run(run())


@each_kind
@settings(max_examples=25, deadline=None)
@given(records, st.integers(0, 30), st.randoms(use_true_random=False))
def test_order_within_grace_does_not_matter(
    kind: str, listed: list[Change], grace: int, rng: random.Random
) -> None:
    """Records that are late by no more than the grace give the finals of those in order, once each."""
    in_order = sorted(listed, key=lambda change: change[2])
    shuffled = sorted(listed, key=lambda change: change[2] + rng.randint(0, grace))
    found = results(shuffled, kind, grace, "final")
    assert found == results(in_order, kind, grace, "final")
    assert all(len(values) == 1 for values in found.values())


@each_kind
@settings(max_examples=25, deadline=None)
@given(records, st.integers(0, 30))
def test_a_final_is_the_last_update(kind: str, listed: list[Change], grace: int) -> None:
    """Each window's final result is the last one of its updates, however late records were."""
    updates = results(listed, kind, grace, "every")
    finals = results(listed, kind, grace, "final")
    last = {window: values[-1:] for window, values in updates.items() if values[-1] is not None}
    assert finals == last


# -- a table is the fold of its changelog --------------------------------------------------------


def everything(partitions: int) -> tuple[ms.App, ms.Topic[int], dict[str, Any]]:
    """A program with a table of each kind."""
    app = ms.App("shop", partitions=partitions)
    source = app.topic("source", value=int)
    groups = app.stream(source).group_by()
    sums = groups.sum(name="sums")
    tables = {
        "sums": sums,
        "last": app.stream(source).to_table("last"),
        "odd": sums.filter(lambda value: value % 2, name="odd"),
        "top": groups.top_k(2, name="top"),
        "tumbling": groups.tumbling("10ms").sum(name="tumbling", emit="final"),
        "session": groups.session("10ms").sum(name="session", emit="every"),
        "sliding": groups.sliding("10ms").mean(name="sliding", emit=ms.Suppress("20ms")),
        "by-sum": sums.group_by(lambda value: f"{value % 3}", name="thirds").count(name="by-sum"),
    }
    return app, source, tables


@settings(max_examples=40, deadline=None)
@given(records, st.sampled_from([1, 3]), st.randoms(use_true_random=False))
def test_a_table_is_its_changelog(
    listed: list[Change], partitions: int, rng: random.Random
) -> None:
    """Whoever folds a table's changelog has what its store has, down to the byte, at any commit."""

    async def run() -> None:
        app, source, _ = everything(partitions)
        async with TestApp(app) as t:
            left = list(listed)
            while left:
                size = rng.randint(1, 6)
                await feed(t, source, left[:size], settle=False)
                left = left[size:]
                how: Any = rng.choice(["", "", "crash", "lose", "rebalance"])
                await interrupt(t, rng.randint(0, 20), how)
                for shard in t.worker.shards.values():
                    for name, part in shard.own_parts.items():
                        tp = TopicPartition(f"shop-{name}-changelog", shard.number)
                        stored = dict(part.store.items())
                        stored.pop(POSITION_KEY, None)
                        stored = {k: v for k, v in stored.items() if k[0] != LOCAL_INDEX}
                        assert stored == changelog(t, tp), name

    asyncio.run(run())


LOCAL_INDEX = 4
"""First byte of keys that follow from others."""


def changelog(t: TestApp, tp: TopicPartition) -> dict[bytes, bytes]:
    """The table that a changelog's partition makes."""
    found: dict[bytes, bytes] = {}
    for data in t._log.batches(tp):
        for record in iterate_records(data, where=str(tp)):
            assert record.key is not None
            if record.value is None:
                found.pop(record.key, None)
            else:
                found[record.key] = record.value
    return found


# -- shards and workers --------------------------------------------------------------------------


Row = tuple[str, str, int, int]
"""Topic, key, value, timestamp."""


def one_topic(partitions: int) -> tuple[ms.App, dict[str, ms.Topic[int]], dict[str, Any]]:
    """A table of each kind, over one topic."""
    app, source, tables = everything(partitions)
    return app, {"a": source}, tables


def several_topics(partitions: int) -> tuple[ms.App, dict[str, ms.Topic[int]], dict[str, Any]]:
    """Joins of streams and of a table, and windows by something else than the key."""
    app = ms.App("shop", partitions=partitions)
    topics = {name: app.topic(name, value=int) for name in "abc"}
    a, b = app.stream(topics["a"]), app.stream(topics["b"])
    pair = "{},{}".format
    flows: dict[str, Any] = {}
    kinds: list[Any] = ["inner", "left", "outer"]
    for how in kinds:
        flows[how] = a.join(b, pair, how=how, within="10ms", grace="5ms", name=how, value=str)
    table = app.table("c-table", topic=topics["c"])
    flows["table"] = a.join(table, pair, how="left", name="table", value=str)
    history = app.table("history", topic=topics["c"], versioned="50ms")
    flows["as-of"] = b.join(history, pair, how="left", name="as-of", value=str)
    # shards send at their own pace: what one is ahead of another is within the grace
    thirds = a.merge(b).group_by(lambda value: f"{value % 3}", name="thirds")
    flows["windows"] = thirds.tumbling("10ms", grace="200ms").sum(name="windows", emit="final")
    return app, topics, flows


def spread(
    program: Any, listed: list[Row], partitions: int, workers: int
) -> dict[str, dict[Any, Any]]:
    """What each flow sends, key by key, on so many partitions and workers."""

    async def run() -> dict[str, dict[Any, Any]]:
        def made() -> tuple[ms.App, dict[str, ms.Topic[int]], dict[str, ms.Topic[Any]]]:
            app, topics, flows = program(partitions)
            out = {name: app.topic(f"{name}-out", value=Any) for name in flows}
            for name, flow in flows.items():
                flow.to(out[name])
            return app, topics, out

        app, topics, out = made()
        # event time is each shard's own: it has to end in the same place everywhere
        ends = [("a", f"end-{number}", number, END) for number in range(40)]
        half = len(listed) // 2
        async with TestApp(app) as t:
            await feed_together(t, topics, listed[:half])
            await t.settle()
            if workers == 1:
                for rows in (listed[half:], ends):
                    await feed_together(t, topics, rows)
                    await t.settle()
            else:
                async with second_worker(made()[0], t) as beside:
                    await together(t, beside)
                    for rows in (listed[half:], ends):
                        await feed_together(t, topics, rows)
                        await together(t, beside)
                await disturb(t, "")
            await t.settle()
            found = {name: read(t, topic) for name, topic in out.items()}
        # of what has moved to another shard, the order of two keys' changes is open
        return {
            name: fold(records) if name == "by-sum" else by_key(records)
            for name, records in found.items()
        }

    return asyncio.run(run())


async def feed_together(t: TestApp, topics: dict[str, ms.Topic[int]], rows: list[Row]) -> None:
    """Append the rows of all topics at once, so that no topic is read to its end before another has begun."""
    assert t._runtime is not None
    batches: dict[TopicPartition, list[OutgoingRecord]] = {}
    for topic, key, value, time in rows:
        tp, record = topics[topic].encode(value, key=key, timestamp=time)
        batches.setdefault(tp, []).append(record)
    await t._runtime.transport.append(batches)


async def together(t: TestApp, beside: Any) -> None:
    """Let both workers come to the end of their inputs, and commit."""
    for _ in range(60):
        for _ in range(10):
            await asyncio.sleep(0)
        for worker in (t.worker, beside.worker):
            if worker.ready.is_set():
                await worker.committer.commit()


each_spread = pytest.mark.parametrize(("partitions", "workers"), [(4, 1), (4, 2)])


@settings(max_examples=15, deadline=None)
@given(records)
@each_spread
def test_how_the_work_is_spread_does_not_matter(
    partitions: int, workers: int, listed: list[Change]
) -> None:
    """Each key's results are the same on one partition and on four, on one worker and on two."""
    rows = [("a", *change) for change in sorted(listed, key=lambda change: change[2])]
    wanted, found = (spread(one_topic, rows, *how) for how in ((1, 1), (partitions, workers)))
    assert found == wanted


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("aabbc"),
            st.sampled_from("ABC"),
            st.integers(1, 9),
            st.integers(0, 120),
        ),
        min_size=2,
        max_size=40,
        unique_by=lambda row: row[3],
    )
)
@each_spread
def test_how_joins_are_spread_does_not_matter(
    partitions: int, workers: int, listed: list[Row]
) -> None:
    """The same of joins, and of windows behind another topic: no two records are of the same moment."""
    rows = sorted(listed, key=lambda row: row[3])
    wanted, found = (spread(several_topics, rows, *how) for how in ((1, 1), (partitions, workers)))
    assert found == wanted
