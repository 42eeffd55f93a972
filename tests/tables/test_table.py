"""Tables as programs use them: mappings over the shard of the event at hand."""

# ruff: noqa: PERF401  # a stream is no list, and an app ends with its block

from __future__ import annotations

import random
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

import millstream as ms
from millstream import hooks
from millstream.errors import (
    AgentError,
    ConfigurationError,
    OutsideEventError,
    TopologyError,
    WrongShardError,
)
from millstream.records import OutgoingRecord, TopicPartition
from millstream.testing import TestApp
from millstream.transports.memory import MemoryTransport
from tests.kit import Order, append

if TYPE_CHECKING:
    from collections.abc import Callable


class Events:
    """Runs functions as events of one shard: what each of them gives, or raises."""

    def __init__(self, **settings: Any) -> None:
        self.app = ms.App("tables", partitions=1, **settings)
        self.topic = self.app.topic("go", value=int)
        self._work: list[Callable[[], Any]] = []
        self._results: list[Any] = []

        @self.app.agent(self.topic)
        async def work(stream: ms.Stream[int]) -> None:
            async for number in stream:
                try:
                    self._results.append(self._work[number]())
                except Exception as exc:
                    self._results.append(exc)

    async def run(self, t: TestApp, *functions: Callable[[], Any]) -> Any:
        """Each function in an event of its own; the last one's result."""
        first = len(self._work)
        self._work += functions
        await t.send_many(self.topic, range(first, len(self._work)))
        result = self._results[-1]
        if isinstance(result, Exception):
            raise result
        return result


OPERATIONS = [
    "set", "set", "set", "delete", "get", "contains", "pop", "setdefault", "default", "len", "keys",
    "items", "reverse", "values", "range", "clear", "update", "popitem", "bool",
]  # fmt: skip


def operate(map_: MutableMapping[str, int], name: str, key: str, value: int) -> Any:
    """One operation, the same on a table and on a dict."""
    ordered = sorted(map_.items())
    match name:
        case "set":
            map_[key] = value
        case "delete":
            try:
                del map_[key]
            except KeyError:
                return "missing"
        case "get":
            return map_.get(key), map_.get(key, -1)
        case "contains":
            return key in map_
        case "pop":
            return map_.pop(key, None)
        case "setdefault":
            return map_.setdefault(key, value)
        case "default":
            try:
                map_[key] += 1
            except KeyError:
                map_[key] = 1
            return map_[key]
        case "len":
            return len(map_)
        case "keys":
            return sorted(map_) if isinstance(map_, dict) else list(map_)
        case "items":
            return ordered if isinstance(map_, dict) else list(map_.items())
        case "reverse":
            if isinstance(map_, dict):
                return ordered[::-1]
            return list(map_.items(reverse=True))  # type: ignore[call-arg]
        case "values":
            return [v for _, v in ordered] if isinstance(map_, dict) else list(map_.values())
        case "range":
            if isinstance(map_, dict):
                return [pair for pair in ordered if "b" <= pair[0] < key]
            return list(map_.items(start="b", end=key))  # type: ignore[call-arg]
        case "clear":
            if value == 0:
                map_.clear()
        case "update":
            map_.update({key: value, "z": value})
        case "popitem":
            if isinstance(map_, dict):
                return (ordered and (ordered[0][0], map_.pop(ordered[0][0]))) or None
            return map_.popitem() if map_ else None
        case "bool":
            return bool(map_)
    return None


@pytest.mark.parametrize("seed", range(8))
async def test_as_a_mapping(seed: int) -> None:
    """A table does what a dict does, across commits, crashes and rebalances, in key order."""
    chance = random.Random(seed)
    events = Events()
    table = events.app.table("t", key=str, value=int, default=0)
    model: dict[str, int] = {}
    async with TestApp(events.app) as t:
        for _ in range(25):
            steps = [
                (chance.choice(OPERATIONS), chance.choice("abcdef"), chance.randrange(5))
                for _ in range(chance.randrange(1, 12))
            ]
            expected = [operate(model, *step) for step in steps]
            found: list[Any] = []

            def event(steps: list[Any] = steps, found: list[Any] = found) -> None:
                for step in steps:
                    found.append(operate(table, *step))

            await events.run(t, event)
            assert found == [[] if e == [] else e for e in expected], steps
            assert t.table(table) == model
            if chance.random() < 0.15:
                await t.crash(lose_state=chance.random() < 0.5)
            elif chance.random() < 0.1:
                await t.rebalance()


async def test_is_a_mutable_mapping() -> None:
    """A table is a MutableMapping, and compares by identity."""
    app = ms.App("m")
    table = app.table("t")
    assert isinstance(table, MutableMapping)
    assert table == table
    assert table != {}
    assert repr(table) == "<Table 't'>"
    assert {table: 1}[table] == 1


async def test_missing_keys() -> None:
    """Without a default a missing key is a KeyError; ``get`` and ``in`` never use the default."""
    events = Events()
    bare = events.app.table("bare", key=str, value=int)
    counted = events.app.table("counted", key=str, value=int, default=5)
    async with TestApp(events.app) as t:
        for wrong in (lambda: bare["x"], lambda: bare.__delitem__("x"), lambda: bare.pop("x")):
            with pytest.raises(KeyError, match="x"):
                await events.run(t, wrong)
        with pytest.raises(KeyError):
            await events.run(t, lambda: counted.__delitem__("x"))
        assert await events.run(t, lambda: (counted["x"], counted.get("x"), "x" in counted)) == (
            5,
            None,
            False,
        )
        assert t.table(counted) == {}


async def test_values_changed_in_place() -> None:
    """A value that is changed in place is kept without being assigned; an unchanged one costs no write."""
    events = Events()
    lists = events.app.table("lists", key=str, value=list[int], default=list)
    nested = events.app.table("nested", key=str, value=dict[str, list[int]])
    async with TestApp(events.app) as t:
        await events.run(t, lambda: lists["a"].append(1), lambda: lists["a"].append(2))
        await events.run(t, lambda: nested.update(x={"y": [1]}), lambda: nested["x"]["y"].append(2))
        assert t.table(lists) == {"a": [1, 2]}
        assert t.table(nested) == {"x": {"y": [1, 2]}}
        assert await events.run(t, lambda: len(lists["b"])) == 0
        assert "b" not in t.table(lists)
        await t.crash(lose_state=True)
        assert t.table(lists) == {"a": [1, 2]}


async def test_structs_changed_in_place() -> None:
    """Fields of a Struct may be set."""
    events = Events()
    orders = events.app.table("orders", key=str, value=Order)
    async with TestApp(events.app) as t:
        await events.run(t, lambda: orders.update(a=Order("a", 1.0)))
        await events.run(t, lambda: setattr(orders["a"], "amount", 7.0))
        assert t.table(orders) == {"a": Order("a", 7.0)}


async def test_a_default_object_is_not_shared() -> None:
    """A default that is a mutable value is copied for each key."""
    events = Events()
    lists = events.app.table("lists", key=str, value=list[int], default=[0])
    async with TestApp(events.app) as t:
        await events.run(t, lambda: lists["a"].append(1), lambda: lists["b"].append(2))
        assert t.table(lists) == {"a": [0, 1], "b": [0, 2]}


@pytest.mark.parametrize(
    ("kind", "value", "advice"),
    [
        (int, 1.5, "value=float"),
        (dict, {1: 2}, r"value=dict\[int, int\]"),
        (Any, (1,), "value=tuple"),
    ],
)
async def test_values_are_of_the_declared_type(kind: Any, value: Any, advice: str) -> None:
    """What the table could not read again is an error of the event that writes it."""
    events = Events()
    table = events.app.table("t", key=str, value=kind)
    with pytest.raises(AgentError, match=rf"table 't', key 'a'.*come back.*{advice}"):
        async with TestApp(events.app) as t:
            await events.run(t, lambda: table.update(a=value))


KEYS: list[tuple[Any, list[Any]]] = [
    (str, ["", "a", "a\x00", "aa", "b", "ü"]),
    (int, [-(2**70), -5, -1, 0, 1, 255, 256, 2**70]),
    (float, [float("-inf"), -1.5, 0.0, 1e-9, 2.0, float("inf")]),
    (bool, [False, True]),
    (bytes, [b"", b"\x00", b"a", b"\xff"]),
    (UUID, [UUID(int=0), UUID(int=5), UUID(int=2**100)]),
    (datetime, [datetime(1969, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)]),
    (tuple[str, int], [("a", -1), ("a", 0), ("a", 10), ("b", -9)]),
]


@pytest.mark.parametrize(("kind", "keys"), KEYS, ids=lambda value: str(value)[:20])
async def test_key_types(kind: Any, keys: list[Any]) -> None:
    """Keys of every type come back as they were, in their own order, before and after a restart."""
    events = Events()
    table = events.app.table("t", key=kind, value=int)

    def fill() -> None:
        for key in reversed(keys):
            table[key] = 1

    async with TestApp(events.app) as t:
        await events.run(t, fill)
        assert await events.run(t, lambda: list(table)) == keys
        await t.crash(lose_state=True)
        assert await events.run(t, lambda: list(table)) == keys
        if len(keys) > 2:
            found = await events.run(
                t, lambda: [k for k, _ in table.items(start=keys[1], end=keys[-1])]
            )
            assert found == keys[1:-1]
        assert await events.run(t, lambda: [k for k, _ in table.items(reverse=True)]) == keys[::-1]


async def test_prefixes() -> None:
    """A prefix is the beginning of a text, or the first elements of a tuple."""
    events = Events()
    words = events.app.table("words", key=str, value=int)
    pairs = events.app.table("pairs", key=tuple[str, int], value=int)

    def fill() -> None:
        for word in ("a", "ab", "abc", "b", "ac"):
            words[word] = 1
        for number, pair in enumerate((("a", 1), ("a", 2), ("ab", 1), ("b", 1))):
            pairs[pair] = number

    def filled() -> Any:
        fill()
        return prefixes()

    def prefixes() -> Any:
        return (
            [k for k, _ in words.items(prefix="ab")],
            list(words.keys(prefix="a")),
            [k for k, _ in pairs.items(prefix=("a",))],
            [k for k, _ in words.items(prefix="a", reverse=True)],
            [k for k, _ in words.items(prefix="zz")],
            list(words.keys(start="ab", end="b", reverse=True)),
            list(pairs.values(prefix=("a",), reverse=True)),
            list(reversed(pairs)),
        )

    expected: Any = (
        ["ab", "abc"],
        ["a", "ab", "abc", "ac"],
        [("a", 1), ("a", 2)],
        ["ac", "abc", "ab", "a"],
        [],
        ["ac", "abc", "ab"],
        [1, 0],
        [("b", 1), ("ab", 1), ("a", 2), ("a", 1)],
    )

    def contradiction() -> Any:
        return words.keys(start="a", prefix="a")

    async with TestApp(events.app) as t:
        assert await events.run(t, filled) == expected  # uncommitted
        assert await events.run(t, prefixes) == expected  # committed
        with pytest.raises(TypeError, match="give prefix, or start and end, not both"):
            await events.run(t, contradiction)


async def test_changing_while_iterating() -> None:
    """Entries may be changed and deleted while they are iterated over."""
    events = Events()
    table = events.app.table("t", key=int, value=int)

    def shrink() -> list[int]:
        seen = []
        for key, value in table.items():
            seen.append(key)
            if key % 2:
                del table[key]
            else:
                table[key] = value + 1
        return seen

    async with TestApp(events.app) as t:
        await events.run(t, lambda: table.update(dict.fromkeys(range(6), 0)))
        assert await events.run(t, shrink) == [0, 1, 2, 3, 4, 5]
        assert t.table(table) == {0: 1, 2: 1, 4: 1}


async def test_set_table() -> None:
    """A set table holds sets that are changed in place, and drops those that become empty."""
    events = Events()
    tags = events.app.set_table("tags", key=str, value=int)
    async with TestApp(events.app) as t:
        await events.run(t, lambda: tags.add("a", 1), lambda: tags["a"].update({2, 3}))
        assert t.table(tags) == {"a": {1, 2, 3}}
        await events.run(t, lambda: tags.discard("a", 9), lambda: tags.discard("a", 1))
        assert t.table(tags) == {"a": {2, 3}}
        await t.crash(lose_state=True)
        await events.run(t, lambda: tags.discard("a", 2), lambda: tags.discard("a", 3))
        assert t.table(tags) == {}
        await events.run(t, lambda: tags.discard("nobody", 1))
        assert t.table(tags) == {}


async def test_table_from_a_topic() -> None:
    """A table may be read from a topic: upserts, tombstones, and null keys passed over."""
    events = Events()
    people = events.app.topic("people", value=str)
    table = events.app.table("people-table", topic=people)
    async with TestApp(events.app) as t:
        await t.send(people, "Ada", key="a")
        await t.send(people, "Bob", key="b")
        await t.send(people, None, key="b")
        await append(t, "people", b'"nobody"', key=None)
        assert await events.run(t, lambda: dict(table.items())) == {"a": "Ada"}
        await t.crash(lose_state=True)
        assert await events.run(t, lambda: dict(table.items())) == {"a": "Ada"}
        with pytest.raises(ConfigurationError, match="is read from a topic: send to that topic"):
            await events.run(t, lambda: table.update(a="x"))
        with pytest.raises(ConfigurationError, match="is read from a topic"):
            await events.run(t, lambda: table.__delitem__("a"))


async def test_table_from_a_topic_is_restored_to_the_committed_offset() -> None:
    """After a crash such a table holds what it had read, and not the future."""
    app = ms.App("past", partitions=1)
    rates, orders = app.topic("rates", value=float), app.topic("orders", value=str)
    table = app.table("rate", topic=rates)
    seen: list[Any] = []

    @app.agent(orders)
    async def join(stream: ms.Stream[str]) -> None:
        async for _ in stream:
            seen.append(table.get("eur"))

    async with TestApp(app) as t:
        await t.send(rates, 1.0, key="eur")
        await t.send(orders, "x")
        t.worker.abandon()
        await t._stop()
        transport = MemoryTransport(clock=t.clock, log=t._log)
        async with transport:
            record = OutgoingRecord(t.clock.now() + 5, b"eur", b"9.0", [])
            await transport.append({TopicPartition("rates", 0): [record]})
        for shard in t._state.shards():
            t._state.destroy(shard)
        restored: list[Any] = []

        def finished(point: str, facts: dict[str, object]) -> None:
            if point == "recovery.finished":
                store = t.worker.shards[1, 0].store.table("rate")
                restored.extend(value for _, value in store.items(b"\x01"))

        with hooks.observe(finished):
            await t._start()
        assert restored == [b"1.0"]
        assert t.table(table) == {"eur": 9.0}  # read as an event, once the worker ran again
        await t.send(orders, "y")
    assert seen == [1.0, 9.0]


async def test_global_table() -> None:
    """A global table is whole on every shard before the first event, and follows its topic."""
    app = ms.App("world", partitions=4)
    orders = app.topic("orders", value=Order, key_from="account")
    rates = app.global_table("rates", key=str, value=float)
    source = app.topics["world-rates-global"]
    seen: dict[str, float | None] = {}

    @app.agent(orders)
    async def join(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            seen[order.account] = rates.get("eur")

    async with TestApp(app) as t:
        await t.send(source, 1.5, key="eur")
        for name in "abcdefgh":
            await t.send(orders, Order(name, 1.0))
        assert set(seen.values()) == {1.5}
        await t.crash(lose_state=True)
        await t.send(orders, Order("later", 1.0))
        assert seen["later"] == 1.5


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_values_of_a_global_table_are_the_readers_own(concurrency: int) -> None:
    """Whoever asks for it first, in whatever way: an agent, a join, or one that only looks whether it is there."""
    app = ms.App("prices", partitions=1)
    prices = app.global_table("prices", key=str, value=dict[str, int])
    asked, joined = app.topic("asked", value=str, key_from=str), app.topic("joined", value=dict)
    seen: list[Any] = []

    @app.agent(asked, concurrency=concurrency)
    async def ask(stream: ms.Stream[str]) -> None:
        async for key in stream:
            assert key in prices
            prices[key]["amount"] += 1
            seen.append(prices.get(key))

    app.stream(asked).join(prices, lambda _, price: price).to(joined)
    async with TestApp(app) as t:
        for key in ("a", "b"):
            await t.send(app.topics["prices-prices-global"], {"amount": 1}, key=key)
        await t.settle()
        for key in ("a", "a", "b", "a"):
            await t.send(asked, key)
        assert seen == t.sent(joined) == 4 * [{"amount": 1}]


async def test_global_table_is_read_only() -> None:
    """An agent changes a global table only by sending to its topic."""
    events = Events()
    topic = events.app.topic("rates", value=float, compacted=True)
    rates = events.app.global_table("rates-table", topic=topic)
    async with TestApp(events.app) as t:
        with pytest.raises(ConfigurationError, match="send to that topic"):
            await events.run(t, lambda: rates.update(eur=1.0))
        await t.send(topic, 2.0, key="eur")
        assert await events.run(t, lambda: rates["eur"]) == 2.0


async def test_wrong_shard() -> None:
    """A key of another shard is an error that names both shards and the way out."""
    app = ms.App("wrong", partitions=8)
    orders = app.topic("orders", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)
    errors: list[WrongShardError] = []

    @app.agent(orders)
    async def count(stream: ms.Stream[Order]) -> None:
        async for _ in stream:
            for name in "abcdefgh":
                try:
                    totals[name] += 1
                except WrongShardError as exc:
                    errors.append(exc)

    async with TestApp(app) as t:
        await t.send(orders, Order("a", 1.0))
        assert "a" in t.table(totals)
    assert errors
    for error in errors:
        assert error.owner != error.shard
        assert (error.table, error.count) == ("totals", 8)
        assert "Group the stream by that key first" in str(error)


async def test_two_tables_and_a_commit() -> None:
    """Two tables of one event are committed together."""
    events = Events(on_error="skip")
    left = events.app.table("left", key=str, value=int, default=0)
    right = events.app.table("right", key=str, value=int, default=0)

    def both() -> None:
        left["x"] += 1
        right["x"] += 1

    async with TestApp(events.app) as t:
        await events.run(t, *[both] * 10)
        await t.crash()
        assert t.table(left) == t.table(right) == {"x": 10}


async def test_tables_of_another_count() -> None:
    """A table with another partition count than the agent's topics names both counts."""
    app = ms.App("counts")
    orders = app.topic("orders", value=Order, key_from="account", partitions=4)
    table = app.table("t", key=str, value=int, default=0, partitions=3)

    @app.agent(orders)
    async def count(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            table[order.account] += 1

    with pytest.raises(
        AgentError, match="table 't' has 3 partitions, and count reads topics with 4"
    ):
        async with TestApp(app) as t:
            await t.send(orders, Order("ada", 1.0))


async def test_windows_are_declared_once() -> None:
    """A table can be windowed once, and not when it is read from a topic."""
    app = ms.App("w")
    topic = app.topic("t", value=int)
    table = app.table("a", key=str, value=int, default=0)
    table.tumbling("1h")
    with pytest.raises(TopologyError, match="windowed already"):
        table.tumbling("1h")
    with pytest.raises(TopologyError, match="read from a topic"):
        app.table("b", topic=topic).hopping("1h", "5m")
    with pytest.raises(TopologyError, match="leave ttl out"):
        app.table("c", key=str, value=int, ttl="1h").session("5m")


@pytest.mark.parametrize(
    "use",
    [
        lambda t: t["a"],
        lambda t: t.get("a"),
        lambda t: t.update(a=1),
        lambda t: t.pop("a"),
        lambda t: "a" in t,
        lambda t: len(t),
        lambda t: list(t),
        lambda t: list(t.items()),
        lambda t: list(t.keys()),
        lambda t: list(t.values()),
        lambda t: t.clear(),
        lambda t: bool(t),
        lambda t: t.setdefault("a", 1),
        lambda t: t.__delitem__("a"),
    ],
)
def test_outside_of_events(use: Callable[[Any], Any]) -> None:
    """Any use outside of an event raises, and says what to use there."""
    table = ms.App("o").table("totals", key=str, value=int, default=0)
    with pytest.raises(OutsideEventError, match=r"table 'totals': .*table\.view\(\)"):
        use(table)
