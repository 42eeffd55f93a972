"""A table's value that cannot be committed: the event that wrote it is found, and its policy applies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import millstream as ms
from millstream.errors import AgentError, EncodeError, MillstreamError, RecordTooLargeError
from millstream.records import TopicPartition
from millstream.testing import TestApp
from millstream.worker import _search, _subtopology
from millstream.worker._search import BlameSearch, table_value_error
from tests.kit import continued

if TYPE_CHECKING:
    from collections.abc import Callable

TP = TopicPartition("notes", 0)
Make = tuple[ms.App, Any, Any, Any]


class Note(msgspec.Struct):
    """``bad`` is how often writing it down fails."""

    key: str
    text: str
    bad: int = 0


def unfit(kind: str) -> Any:
    return object() if kind == "type" else "x" * 2_000


def program(kind: str = "type", *, take: int = 0, **settings: Any) -> Make:
    """Keeps the last text of each key, and lists of all texts, which are changed in place."""
    app = ms.App("notes", partitions=1, record_bytes_max=1_000, **settings)
    notes = app.topic("notes", value=Note, key_from="key")
    sent = app.topic("sent", value=str, partitions=1)
    last = app.table("last", key=str, value=str)
    listed = app.table("listed", key=str, value=list[Any], default=list)
    tries: dict[str, int] = {}

    def write(note: Note) -> None:
        tries[note.text] = tries.get(note.text, 0) + 1
        wrong = note.bad >= tries[note.text]
        last[note.key] = note.text
        if wrong and kind != "in place":
            last[note.key] = unfit(kind)
        listed[note.key].append(object() if wrong and kind == "in place" else note.text)

    @app.agent(notes)
    async def keep(stream: ms.Stream[Note]) -> None:
        if take:
            async for batch in stream.take(take, within="1s"):
                for note in batch:
                    write(note)
                    await sent.send(note.text)
            return
        async for note in stream:
            write(note)
            await sent.send(note.text)

    return app, notes, sent, (last, listed)


BAD = 1_000_000
NOTES = [Note("a", "1"), Note("b", "2"), Note("a", "3", bad=BAD), Note("b", "4"), Note("c", "5")]
KEPT = {"a": "1", "b": "4", "c": "5"}


@pytest.mark.parametrize("journaled", [True, False])
@pytest.mark.parametrize("kind", ["type", "size", "in place"])
async def test_skip(kind: str, journaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``skip`` exactly the event that wrote the value is left out, with its sends and other writes."""
    if not journaled:
        monkeypatch.setattr(_subtopology, "QUIET_EVENTS", 3)
    app, notes, sent, (last, listed) = program(kind, on_error="skip")
    async with TestApp(app) as t:
        if not journaled:
            await t.send_many(notes, [Note("quiet", "0")] * 5)
            assert not t.worker.shards[1, 0].journaled
        before = len(t.sent(sent))
        await t.send_many(notes, NOTES)
        assert {k: v for k, v in t.table(last).items() if k != "quiet"} == KEPT
        assert t.table(listed)["a"] == ["1"]
        assert t.sent(sent)[before:] == ["1", "2", "4", "5"]
        assert sum(s.counters["events_skipped"] for s in t.worker.shards.values()) == 1
        await t.crash(lose_state=True)
        assert {k: v for k, v in t.table(last).items() if k != "quiet"} == KEPT


async def test_dead_letter() -> None:
    """With ``dlq`` the record of that event is set aside, in the epoch of the others."""
    app, notes, sent, (last, _) = program(on_error="dlq")
    dead = app.topic("notes-dlq", value=Note, partitions=1)
    async with TestApp(app) as t:
        await t.send_many(notes, NOTES)
        assert t.table(last) == KEPT
        assert t.sent(sent) == ["1", "2", "4", "5"]
        assert t.sent(dead) == [NOTES[2]]


async def test_retry() -> None:
    """A value that can be written the next time counts once."""
    app, notes, _, (last, listed) = program(on_error=ms.Retry(times=2, backoff="1s"))
    async with TestApp(app) as t:
        # once in the first run, once while it is looked for
        await t.send_many(notes, [Note("a", "1"), Note("a", "2", bad=2), Note("a", "3")])
        await t.advance("5s")
        assert t.table(last) == {"a": "3"}
        assert t.table(listed) == {"a": ["1", "2", "3"]}


@pytest.mark.parametrize("kind", ["type", "size", "in place"])
async def test_stop(kind: str) -> None:
    """With ``stop`` the error names table, key and record, and what came before is committed."""
    app, notes, _, _ = program(kind)
    t = TestApp(app)
    with pytest.raises(
        AgentError,
        match=r"agent 'keep' raised .*Error: table '(last|listed)', key 'a': .* notes/0@2 \(key a\)",
    ) as raised:
        async with t:
            await t.send_many(notes, NOTES)
    assert raised.value.record == "notes/0@2"
    assert "millstream skip notes/0@2" in str(raised.value)
    again, _, _, (last, _) = program(kind, on_error="skip")
    async with continued(again, t) as t:
        assert t.table(last) == KEPT


async def test_batches() -> None:
    """A batch whose values cannot be committed is an event like others."""
    app, notes, sent, (last, _) = program(take=2, on_error="skip")
    async with TestApp(app) as t:
        await t.send_many(notes, [*NOTES, Note("d", "6")])
        assert t.table(last) == {"a": "1", "b": "2", "c": "5", "d": "6"}
        assert t.sent(sent) == ["1", "2", "5", "6"]


async def test_a_function_that_ends_in_its_event() -> None:
    """An agent function that returns in the middle of its stream is looked at as well."""
    app = ms.App("once", partitions=1, on_error="skip")
    numbers = app.topic("numbers", value=int)
    kept = app.table("kept", key=str, value=int)

    @app.agent(numbers)
    async def one_at_a_time(stream: ms.Stream[int]) -> None:
        async for number in stream:
            kept[str(number)] = number if number != 2 else object()  # type: ignore[assignment]
            return

    async with TestApp(app) as t:
        for number in (1, 2, 3):
            await numbers.send(number, key="k")
        await t.settle()
        assert t.table(kept) == {"1": 1, "3": 3}


async def test_nobody_can_swallow_it() -> None:
    """An agent that catches everything is told nothing: its function starts again."""
    app = ms.App("deaf", partitions=1, on_error="skip")
    numbers = app.topic("numbers", value=int)
    kept = app.table("kept", key=str, value=int)
    caught: list[Exception] = []

    @app.agent(numbers)
    async def deaf(stream: ms.Stream[int]) -> None:
        while True:
            try:
                async for number in stream:
                    kept[str(number)] = number if number != 2 else object()  # type: ignore[assignment]
            except Exception as exc:
                caught.append(exc)

    async with TestApp(app) as t:
        await t.send_many(numbers, [1, 2, 3])
        assert t.table(kept) == {"1": 1, "3": 3}
    assert caught == []


async def test_other_shards_commit() -> None:
    """The shard of the value starts over; what others have in the same epoch is committed at once."""
    app = ms.App("many", partitions=4, on_error="skip")
    notes = app.topic("notes", value=Note, key_from="key")
    last = app.table("last", key=str, value=str)
    runs: dict[str, int] = {}

    @app.agent(notes)
    async def keep(stream: ms.Stream[Note]) -> None:
        async for note in stream:
            runs[note.text] = runs.get(note.text, 0) + 1
            last[note.key] = note.text if not note.bad else object()  # type: ignore[assignment]

    async with TestApp(app) as t:
        good = [Note(f"key-{n}", str(n)) for n in range(20)]
        await t.send_many(notes, [*good, Note("key-3", "bad", bad=1)])
        assert t.table(last) == {note.key: note.text for note in good}
        shard = notes.place(b"key-3")
        again = {note.text for note in good if notes.place(note.key.encode()) == shard}
        assert {text for text, count in runs.items() if count == 1} == {
            note.text for note in good
        } - again


@pytest.mark.parametrize("who", ["holder", "reader"])
async def test_the_one_to_blame_is_in_progress(who: str) -> None:
    """With events side by side, one that meets another's value is not blamed for it."""
    app = ms.App("beside", partitions=1, on_error="skip")
    notes = app.topic("notes", value=Note)
    lists = app.table("lists", key=str, value=list[Any], default=list)
    release = asyncio.Event()

    @app.agent(notes, concurrency=2, ordered_by="text")
    async def keep(stream: ms.Stream[Note]) -> None:
        async for note in stream:
            lists[note.key].append(object() if note.bad else note.text)
            if (note.text == "hold") == (who == "holder"):
                await release.wait()

    async with TestApp(app) as t:
        await notes.send(Note("a", "hold", bad=1), key="k")
        await notes.send(Note("a", "reads"), key="k")
        for _ in range(100):
            await asyncio.sleep(0)
        release.set()
        await t.settle()
        assert t.table(lists) == {"a": ["reads"]}


async def test_a_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard goes back to keeping no journals when nothing more is found."""
    for module in (_search, _subtopology):
        monkeypatch.setattr(module, "QUIET_EVENTS", 10)
    app, notes, _, (last, _) = program(on_error="skip")
    async with TestApp(app) as t:
        shard = t.worker.shards[1, 0]
        await t.send_many(notes, NOTES)
        assert shard.journaled
        await t.send_many(notes, [Note("q", str(n)) for n in range(20)])
        await t.send_many(notes, [Note("q", str(n)) for n in range(20, 40)])
        assert not shard.failures.is_searching
        assert t.table(last)["q"] == "39"


async def test_a_value_that_nobody_wrote_in_an_event() -> None:
    """A value that is spoilt between events has no event to blame: the worker stops and names table and key."""
    app = ms.App("late", partitions=1, on_error="skip")
    notes = app.topic("notes", value=Note)
    lists = app.table("lists", key=str, value=list[Any], default=list)
    held: list[list[Any]] = []

    @app.agent(notes)
    async def keep(stream: ms.Stream[Note]) -> None:
        async for note in stream:
            if held:
                held[-1].append(object())
            held.append(lists[note.text])
            held[-1].append(note.text)

    with pytest.raises(MillstreamError, match=r"table 'lists', key '1': a value of type list"):
        async with TestApp(app) as t:
            await t.send_many(notes, [Note("a", "1"), Note("a", "2")])


def test_what_a_search_waits_for() -> None:
    """Each row: found, events since, callbacks, position; whether it is over."""
    rows: list[tuple[bool, int, bool, int, bool]] = [
        (False, 0, False, 4, False),  # the events that it is about are not through
        (
            False,
            0,
            False,
            5,
            True,
        ),  # they are, and it was none of them: it does not happen any more
        (False, 9, True, 9, False),  # it may have been a timer, which comes at its time
        (True, 2, True, 9, False),  # there may be more
        (True, 3, True, 9, True),
        (True, 3, False, 4, False),
    ]
    for found, since, callbacks, position, over in rows:
        search = BlameSearch({("keep", TP): 5}, callbacks=callbacks, quiet_events=3)
        if found:
            search.found()
        for _ in range(since):
            search.check(_NoScope())  # type: ignore[arg-type]
        assert search.is_over({("keep", TP): position}) == over


class _NoScope:
    journal = None


def test_errors_of_table_values() -> None:
    """They are recognized wherever they are in a chain, and those of topics are not meant."""

    def encode_error(table: str | None) -> EncodeError:
        return EncodeError("here", value=1, reason="no", table=table)

    def chained(error: Exception, make: Callable[[], Exception]) -> Exception:
        try:
            raise error
        except Exception as exc:
            try:
                raise make() from exc
            except Exception as outer:
                return outer

    of_table = encode_error("t")
    large = RecordTooLargeError("here", size=2, limit=1, setting="s", table="t")
    assert table_value_error(of_table) is of_table
    assert table_value_error(large) is large
    assert table_value_error(chained(of_table, lambda: ValueError("x"))) is of_table
    assert table_value_error(encode_error(None)) is None
    assert table_value_error(ValueError("x")) is None
