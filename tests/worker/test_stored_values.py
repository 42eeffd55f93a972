"""Stored values of another type, and records of a table's topic that were let pass: what recovery makes of them."""

# ruff: noqa: PERF102, PERF401  # a stream is neither a dict nor a list

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import millstream as ms
from millstream.errors import ConfigurationError, DecodeError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.serialization import registry
from millstream.testing import TestApp
from millstream.transports.base import OffsetAndMetadata
from millstream.transports.batch import iterate_records
from millstream.worker import notes_topic
from tests.kit import append, continued

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 700
"""More than are decoded at once."""
ONE_VALUE = ("plain", "ttl", "versioned")
"""Kinds of tables that keep one value for each key."""


class Old(msgspec.Struct):
    name: str


class New(msgspec.Struct):
    name: str
    visits: int


def program(
    value: Any,
    *,
    kind: str = "plain",
    upgrade: Callable[[Any], Any] | None = None,
    write: Callable[[int], Any] = lambda number: number,
) -> tuple[ms.App, Any, Any]:
    """A table, an agent that fills it, and one that only touches it."""
    app = ms.App("profiles", partitions=1)
    go = app.topic("go", value=int)
    options: dict[str, Any] = {"ttl": {"ttl": "7d"}, "versioned": {"versioned": "7d"}}.get(kind, {})
    table: Any = app.table("profiles", key=str, value=value, upgrade=upgrade, **options)
    if kind == "windows":
        table = table.tumbling("1h", retention="70d")
    elif kind == "sliding":
        table = table.sliding("1h", retention="70d")
    elif kind == "session":
        table = table.session("1h", retention="70d", merge=lambda one, other: other)

    @app.agent(go)
    async def fill(stream: ms.Stream[int]) -> None:
        async for number in stream:
            key = f"key-{number:04}"
            if kind in ONE_VALUE:
                table[key] = write(number)
            else:
                table[key].apply(lambda before, number=number: write(number))

    return app, go, table


async def filled(kind: str = "plain", count: int = MANY) -> TestApp:
    """An old program has stored values; the last one differs from the others."""

    def write(number: int) -> Any:
        return {"name": f"n{number}", **({} if number == count - 1 else {"visits": number})}

    default: Any = dict if kind != "plain" else None
    app, go, table = program(dict[str, Any], kind=kind, write=write)
    if default is not None and kind not in ONE_VALUE:
        table._factory = default
    t = TestApp(app)
    async with t:
        await t.send_many(go, range(count))
    return t


def checked(t: TestApp) -> int:
    """How many stored values the worker has decoded before its first event."""
    return t.worker.options.progress.values_done


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("kind", ["plain", "ttl", "versioned", "windows", "sliding", "session"])
async def test_every_value_is_looked_at(kind: str, lost: bool) -> None:
    """After a change of the type, one old value among many is an error before the first event."""
    before = await filled(kind)
    if lost:
        before._state.destroy("1-0")
    app, _, _ = program(New, kind=kind)
    with pytest.raises(
        DecodeError,
        match=r"table 'profiles', key .*key-0699.*: the stored value is not New: .* `visits`",
    ):
        async with continued(app, before):
            pass
    app, _, _ = program(Old, kind=kind)  # which all of them are
    async with continued(app, before) as t:
        assert checked(t) == MANY


@pytest.mark.parametrize("lost", [False, True])
async def test_what_a_value_was_before(lost: bool) -> None:
    """In a table with history it is looked at as well, and converted."""

    def run(value: Any, upgrade: Any = None) -> tuple[ms.App, ms.Topic[int], Any, list[Any]]:
        app = ms.App("profiles", partitions=1)
        go = app.topic("go", value=int)
        table = app.table("profiles", key=str, value=value, versioned="1h", upgrade=upgrade)
        found: list[Any] = []

        @app.agent(go)
        async def fill(stream: ms.Stream[int]) -> None:
            async for number in stream:
                if value is not New:
                    table["k"] = {"name": "n", **({"visits": number} if number else {})}
                found.append(table.as_of("k", 5))

        return app, go, table, found

    app, go, _, _ = run(dict[str, Any])
    before = TestApp(app)
    async with before as t:
        await t.send(go, 0, timestamp=5)
        await t.send(go, 1, timestamp=10)
    if lost:
        before._state.destroy("1-0")
    app, _, _, _ = run(New)
    with pytest.raises(DecodeError, match=r"table 'profiles', key 'k': .* is not New: .*`visits`"):
        async with continued(app, before):
            pass
    app, go, _, found = run(New, lambda old: New(old["name"], 0))
    async with continued(app, before) as t:
        assert checked(t) == 2
        await t.send(go, 2, timestamp=20)
        await t.crash()
        assert checked(t) == 0
    assert found == [New("n", 0)]


async def test_once_is_enough() -> None:
    """A type that was checked is known, also when the local state is lost, until it changes again."""
    before = await filled()
    app, go, _ = program(Old, write=lambda number: Old(f"n{number}"))
    async with continued(app, before) as t:
        assert checked(t) == MANY
        await t.crash()
        assert checked(t) == 0
        await t.send(go, 1)
        await t.crash(lose_state=True)
        assert checked(t) == 0
        latest = t
    again, _, _ = program(Old)
    async with continued(again, latest) as t:
        assert checked(t) == 0


async def test_nothing_is_decoded_without_a_change() -> None:
    """The same type: nothing is looked at, from the first value on, also after a recovery by bytes."""
    app, go, table = program(int)
    async with TestApp(app) as t:
        await t.send_many(go, range(10))
        for lose_state in (False, True):
            await t.crash(lose_state=lose_state)
            assert checked(t) == 0
        assert len(t.table(table)) == 10


async def test_two_versions_take_turns() -> None:
    """What one version writes, the other one looks at when it comes again."""
    old, go, _ = program(Old, write=lambda number: Old(f"n{number}"))
    first = TestApp(old)
    async with first as t:
        await t.send_many(go, range(3))
    new, go, _ = program(Old | None, write=lambda number: None if number == 1 else Old("x"))
    second = continued(new, first)
    async with second as t:
        assert checked(t) == 3
        await t.send(go, 1)
    old, _, _ = program(Old)
    with pytest.raises(DecodeError, match="key 'key-0001': the stored value is not Old"):
        async with continued(old, second):
            pass


async def test_upgrade_that_is_taken_away() -> None:
    """Values that were only ever converted are met again when nothing converts them any more."""
    before = await filled(count=10)

    def upgrade(old: Any) -> New:
        return New(old["name"], 0)

    app, _, table = program(New, upgrade=upgrade)
    async with continued(app, before) as t:
        assert t.table(table)["key-0009"] == New("n9", 0)
        assert checked(t) == 10
        await t.crash()
        assert checked(t) == 0
    app, _, _ = program(New)
    with pytest.raises(DecodeError, match="key 'key-0009': the stored value is not New"):
        async with continued(app, before):
            pass


@pytest.mark.parametrize("codec", ["json", "msgpack", "lines"])
async def test_what_upgrade_is_given(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain types, whichever of the codecs for them it is; of another codec, the bytes."""
    monkeypatch.setitem(registry._factories, "lines", _lines)

    def run(value: Any, upgrade: Any = None) -> tuple[ms.App, ms.Topic[int], Any]:
        app = ms.App("profiles", partitions=1)
        go = app.topic("go", value=int)
        table = app.table("t", key=str, value=value, codec=codec, upgrade=upgrade)

        @app.agent(go)
        async def fill(stream: ms.Stream[int]) -> None:
            async for number in stream:
                table["k"] = value(f"n{number}", **({} if value is Old else {"visits": 0}))

        return app, go, table

    app, go, _ = run(Old)
    before = TestApp(app)
    async with before as t:
        await t.send(go, 1)
    given: list[Any] = []

    def upgrade(old: Any) -> New:
        given.append(old)
        return New("n1", 7)

    app, _, table = run(New, upgrade)
    async with continued(app, before) as t:
        assert t.table(table) == {"k": New("n1", 7)}
    assert given[0] == (b"n1" if codec == "lines" else {"name": "n1"})


def _lines(value_type: Any) -> Any:
    fields = value_type.__struct_fields__

    def loads(data: bytes) -> Any:
        texts = data.decode().split("\n")
        return msgspec.convert(dict(zip(fields, texts, strict=True)), value_type, strict=False)

    def dumps(value: Any) -> bytes:
        return "\n".join(str(getattr(value, field)) for field in fields).encode()

    return SimpleNamespace(name="lines", type_name=value_type.__name__, dumps=dumps, loads=loads)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda old: None, r"\(ValidationError: Expected `object`, got `null`\)"),
        (lambda old: old, r"\(ValidationError: .*`visits`\)"),
        (lambda old: old["visits"], r"\(KeyError: 'visits'\)"),
    ],
)
async def test_what_upgrade_returns(wrong: Any, said: str) -> None:
    """What is no value of the type is an error before the first event, and so is what it raises."""
    before = await filled(count=3)
    app, _, _ = program(New, upgrade=wrong)
    with pytest.raises(
        DecodeError, match=f"key 'key-0002': .* `visits`; and upgrade= did not convert it {said}"
    ):
        async with continued(app, before):
            pass


@pytest.mark.parametrize("wrong", ["name", New("n", 0)])
def test_upgrade_that_is_no_function(wrong: Any) -> None:
    """It is an error where it is declared; so is an async one."""

    async def later(old: Any) -> Any:
        return old

    with pytest.raises(ConfigurationError, match=r"table 'profiles': upgrade=.* is no function"):
        program(New, upgrade=wrong)
    with pytest.raises(ConfigurationError, match="table 'profiles': upgrade= may not be async"):
        program(New, upgrade=later)


async def test_the_mark_is_no_entry() -> None:
    """What the table keeps for itself is not among its entries, nor told to who follows its changes."""
    changes: list[tuple[Any, Any]] = []
    app = ms.App("marks", partitions=1)
    go = app.topic("go", value=int)
    table = app.table(
        "t", key=str, value=int, on_change=lambda key, value: changes.append((key, value))
    )
    seen: list[list[str]] = []

    @app.agent(go)
    async def fill(stream: ms.Stream[int]) -> None:
        async for number in stream:
            table["k"] = number
            seen.append(list(table))

    async with TestApp(app) as t:
        await t.send(go, 1)
        await t.send(go, 2)
        assert t.table(table) == {"k": 2}
    assert changes == [("k", 1), ("k", 2)]
    assert seen == [["k"], ["k"]]


# tables that are read from a topic ---------------------------------------------------------------


class Customer(msgspec.Struct):
    name: str


def reading(
    on_error: Any = "skip", value: Any = Customer, **options: Any
) -> tuple[ms.App, ms.Topic[Any, int], Any]:
    app = ms.App("crm", partitions=1, on_error=on_error)
    customers = app.topic("customers", key=int, value=value, **options)
    return app, customers, app.table("by-number", topic=customers)


ADA, BAD, BOB = b'{"name":"Ada"}', b"nonsense", b'{"name":"Bob"}'


@pytest.mark.parametrize("policy", ["skip", "dlq", ms.Retry(times=1, backoff=0.001, then="skip")])
@pytest.mark.parametrize("lost", [False, True])
async def test_a_value_that_was_let_pass(policy: Any, lost: bool) -> None:
    """It does not come back with a recovery, and what was there before it stays."""
    app, _, table = reading(policy)
    async with TestApp(app) as t:
        await append(t, "customers", ADA, key=b"1")
        await append(t, "customers", BAD, key=b"1")
        await append(t, "customers", BAD, key=b"2")
        await append(t, "customers", BOB, key=b"3")
        await t.advance("1s")
        for _ in range(3):
            assert t.table(table) == {1: Customer("Ada"), 3: Customer("Bob")}
            await t.crash(lose_state=lost)
        assert checked(t) == 0


async def test_keys_and_times_that_were_let_pass() -> None:
    """The same for a record whose key or time cannot be read."""
    app, _, table = reading(
        value=dict[str, Any], timestamp=lambda value: -1 if value["name"] == "Bob" else 5
    )
    async with TestApp(app) as t:
        await append(t, "customers", ADA, key=b"1")
        await append(t, "customers", BOB, key=b"2")
        await append(t, "customers", ADA, key=b"three")
        for _ in range(2):
            assert t.table(table) == {1: {"name": "Ada"}}
            await t.crash(lose_state=True)


async def test_a_record_that_is_read_again() -> None:
    """When positions go back, what was let pass gets another chance, and the notes of it go."""
    app, _, table = reading()
    first = TestApp(app)
    async with first as t:
        await append(t, "customers", ADA, key=b"1")
        await append(t, "customers", b"7", key=b"2")
        assert t.table(table) == {1: Customer("Ada")}
    tp = TopicPartition("customers", 0)
    first._log._groups["crm"].positions[tp] = OffsetAndMetadata(1)
    mended, _, table = reading(value=int | Customer)
    second = continued(mended, first)
    async with second as t:
        for _ in range(2):
            assert t.table(table) == {1: Customer("Ada"), 2: 7}
            await t.crash(lose_state=True)
        notes = _latest(t, TopicPartition(notes_topic("crm", 1), 0))
        assert not any(key.startswith(b"passed:") for key in notes)


def _latest(t: TestApp, tp: TopicPartition) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for data in t._log.batches(tp):
        for record in iterate_records(data, where=str(tp)):
            assert record.key is not None
            if record.value is None:
                found.pop(record.key, None)
            else:
                found[record.key] = record.value
    return found


@pytest.mark.parametrize("lost", [False, True])
async def test_a_topics_type_changes(lost: bool) -> None:
    """A value that was fine and is not any more is an error before the first event; one that was let pass is none."""
    app, _, _ = reading()
    first = TestApp(app)
    async with first as t:
        await append(t, "customers", BAD, key=b"9")
        await append(t, "customers", *[ADA] * MANY, key=b"1")
        await append(t, "customers", BOB, key=b"2")
    if lost:
        first._state.destroy("1-0")

    class Known(msgspec.Struct):
        name: str
        since: int = 0

    app, _, table = reading(value=Known)
    second = continued(app, first)
    async with second as t:
        assert checked(t) == 2
        assert t.table(table) == {1: Known("Ada"), 2: Known("Bob")}
        await t.crash(lose_state=True)
        assert checked(t) == 0
    app, _, _ = reading(value=New)
    with pytest.raises(DecodeError, match=r"table 'by-number', key 1: .* is not New: .* `visits`"):
        async with continued(app, second):
            pass


async def test_a_table_is_restored_to_its_readers_position() -> None:
    """Another agent of the same topic that is behind does not hold the table back."""
    app, customers, table = reading()
    go = asyncio.Event()
    met: list[Any] = []

    @app.agent(customers)
    async def slow(stream: ms.Stream[Customer, int]) -> None:
        async for key, _ in stream.items():
            await go.wait()
            met.append((key, table.get(key)))

    async with TestApp(app) as t:
        tp = TopicPartition("customers", 0)
        assert t._runtime is not None
        records = [OutgoingRecord(0, str(n).encode(), ADA, []) for n in range(5)]
        await t._runtime.transport.append({tp: records})
        for _ in range(300):
            await asyncio.sleep(0)
            await t.worker.committer.commit()
        shard = t.worker.shards[1, 0]
        assert shard.lanes["slow"].position(tp) == 0
        assert shard.lanes["table:by-number"].position(tp) == 5
        go.set()
        await t.crash(lose_state=True)
        assert t.table(table) == {n: Customer("Ada") for n in range(5)}
    assert met[-5:] == [(n, Customer("Ada")) for n in range(5)]


async def test_a_key_from_before_there_were_notes() -> None:
    """A key that nobody has let pass, and that cannot be read, is named with its record."""
    app, _, _ = reading()
    first = TestApp(app)
    async with first as t:
        await append(t, "customers", ADA, key=b"one")
    notes = TopicPartition(notes_topic("crm", 1), 0)
    first._log._topics[notes.topic].partitions[0].batches.clear()
    first._state.destroy("1-0")
    with pytest.raises(
        DecodeError, match=r"customers/0@0: the key is not that of table 'by-number'"
    ):
        async with continued(reading()[0], first):
            pass


@pytest.mark.parametrize("at_start", [True, False])
async def test_keys_of_a_global_table(at_start: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A key that cannot be read is left out of a global table, and said so: nobody could ask for it."""
    app = ms.App("crm", partitions=1)
    names = app.topic("names", key=int, value=str)
    table = app.global_table("by-number", topic=names)
    asked = app.topic("asked", value=int)
    met: list[Any] = []

    @app.agent(asked)
    async def ask(stream: ms.Stream[int]) -> None:
        async for number in stream:
            met.append(table.get(number))

    async with TestApp(app) as t:
        for key, value in ((b"1", b'"Ada"'), (b"two", b'"Bob"'), (b"3", b'"Cyd"')):
            await append(t, "names", value, key=key)
        if at_start:
            await t.crash(lose_state=True)
        await t.advance("1s")
        for number in (1, 2, 3):
            await t.send(asked, number)
    assert met == ["Ada", None, "Cyd"]
    assert "global table 'by-number' leaves out key b'two' of names/0" in caplog.text
