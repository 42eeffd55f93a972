"""Topics: keys, partitions, times, headers, and what `send` promises."""

# ruff: noqa: PERF401  # a stream is no list, and an app ends with its block

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec
import pytest

import millstream as ms
from millstream.agents import field_getter
from millstream.errors import EncodeError, ProgramError, TopologyError
from millstream.records import Position
from millstream.serialization import partitioner
from millstream.testing import TestApp
from tests.kit import Order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

AT = 1_700_000_000_000


@dataclass
class Person:
    name: str
    born: datetime


class Click(TypedDict):
    user: str
    bot: bool


async def test_send_outside_of_events() -> None:
    """Outside of an event a record is sent at once, and its position comes back."""
    app = ms.App("shop", partitions=1)
    orders = app.topic("orders", value=Order, key_from="account")
    async with TestApp(app) as t:
        assert await orders.send(Order("ada", 1.0)) == Position("orders", 0, 0)
        position = await orders.send(Order("ada", 2.0))
        assert str(position) == "orders/0@1"
        assert t.records(orders) == [("ada", Order("ada", 1.0)), ("ada", Order("ada", 2.0))]


async def test_send_many() -> None:
    """Many values at once: all of them, or none when one of them cannot be encoded."""
    app = ms.App("shop")
    orders = app.topic("orders", value=Order, key_from="account")
    async with TestApp(app) as t:
        assert await orders.send_many(Order(str(i), 1.0) for i in range(10)) == 10
        with pytest.raises(EncodeError):
            await orders.send_many([Order("a", 1.0), Order("b", object())])  # type: ignore[arg-type]
        assert len(t.sent(orders)) == 10
        assert await orders.send_many([]) == 0


@pytest.mark.parametrize(
    ("kind", "key", "encoded"),
    [
        (str, "ada", b"ada"),  # text as UTF-8
        (str, "ü", "ü".encode()),
        (bytes, b"\x00\xff", b"\x00\xff"),  # bytes as they are
        (int, 7, b"7"),  # others as JSON text
        (tuple[str, int], ("a", 1), b'["a",1]'),
        (bool, True, b"true"),
    ],
)
async def test_keys(kind: Any, key: Any, encoded: bytes) -> None:
    """Keys are encoded by their type, placed by murmur2 as the Java client does, and read back."""
    app = ms.App("keys", partitions=7)
    topic = app.topic("t", key=kind, value=int)
    assert topic.key_codec.dumps(key) == encoded
    async with TestApp(app) as t:
        position = await t.send(topic, 1, key=key)
        assert position.partition == partitioner("murmur2")(encoded, 7)
        assert t.records(topic) == [(key, 1)]


async def test_records_without_a_key_go_round() -> None:
    """Records without a key are spread over all partitions."""
    app = ms.App("keys", partitions=3)
    topic = app.topic("t", value=int)
    async with TestApp(app) as t:
        found = [(await t.send(topic, i)).partition for i in range(6)]
    assert sorted(found) == [0, 0, 1, 1, 2, 2]


async def test_partition() -> None:
    """A partition may be named; one that the topic does not have is an error."""
    app = ms.App("p", partitions=3)
    topic = app.topic("t", value=int)
    async with TestApp(app) as t:
        assert (await t.send(topic, 1, key="k", partition=2)).partition == 2
        for wrong in (3, -1):
            with pytest.raises(ProgramError, match=rf"'t' has no partition {wrong}: it has 3"):
                await topic.send(1, partition=wrong)


@pytest.mark.parametrize(
    ("value_type", "key_from", "value", "key"),
    [
        (Order, "account", Order("ada", 1.0), "ada"),  # a Struct's field
        (Person, "name", Person("ada", datetime(1815, 12, 10, tzinfo=UTC)), "ada"),  # a dataclass's
        (Click, "user", {"user": "ada", "bot": False}, "ada"),  # a TypedDict's
        (dict, lambda d: d["a"]["b"], {"a": {"b": "c"}}, "c"),  # a function
        (Order, "account.__class__.__name__", Order("x", 1.0), "str"),  # a path
    ],
)
async def test_key_from(value_type: Any, key_from: Any, value: Any, key: str) -> None:
    """``key_from`` gives the key where none is given, and an explicit key comes before it."""
    app = ms.App("k", partitions=2)
    topic = app.topic("t", value=value_type, key_from=key_from)
    async with TestApp(app) as t:
        await t.send(topic, value)
        await t.send(topic, value, key="mine")
        assert sorted(found for found, _ in t.records(topic)) == sorted([key, "mine"])


async def test_key_from_a_missing_field() -> None:
    """A value without the field is an error that names topic, field and type."""
    app = ms.App("k")
    topic = app.topic("t", value=dict, key_from="user")
    async with TestApp(app):
        with pytest.raises(
            ProgramError, match=r"topic 't': key_from='user' cannot be read from a dict"
        ):
            await topic.send({"name": "ada"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (AT, AT),
        (float(AT), AT),
        (datetime.fromtimestamp(AT / 1000, UTC), AT),
        (0, 0),
    ],
)
async def test_timestamps(given: Any, expected: int) -> None:
    """A timestamp is ms since the epoch, or an aware datetime."""
    app = ms.App("t", partitions=1)
    topic = app.topic("t", value=int)
    seen: list[int] = []

    @app.agent(topic)
    async def note(stream: ms.Stream[int]) -> None:
        async for event in stream.events():
            seen.append(event.timestamp)

    async with TestApp(app) as t:
        await t.send(topic, 1, timestamp=given)
        await t.send(topic, 1)
        assert seen == [expected, t.clock.now()]


async def test_timestamp_inside_an_event() -> None:
    """What an event sends has the event's time, unless another one is given or derived."""
    app = ms.App("t", partitions=1)
    source = app.topic("source", value=int)
    plain, timed = (
        app.topic("plain", value=int),
        app.topic("timed", value=int, timestamp=lambda v: v),
    )
    seen: dict[str, int] = {}

    @app.agent(source)
    async def send(stream: ms.Stream[int]) -> None:
        async for _ in stream:
            await plain.send(1)
            await timed.send(2)

    @app.agent(plain, timed)
    async def note(stream: ms.Stream[int]) -> None:
        async for event in stream.events():
            seen[event.topic] = event.timestamp

    async with TestApp(app) as t:
        await t.send(source, 1, timestamp=AT)
    assert seen == {"plain": AT, "timed": 2}


async def test_headers() -> None:
    """Headers may be a mapping or pairs, text or bytes, and names may repeat."""
    app = ms.App("h", partitions=1)
    topic = app.topic("t", value=int)
    seen: list[Any] = []

    @app.agent(topic)
    async def note(stream: ms.Stream[int]) -> None:
        async for event in stream.events():
            seen.append(list(event.headers))

    async with TestApp(app) as t:
        await t.send(topic, 1, headers={"a": "x", "b": b"\x00"})
        await topic.send(1, headers=[("a", b"1"), ("a", b"2")])
        await t.send(topic, 1)
    assert seen == [[("a", b"x"), ("b", b"\x00")], [("a", b"1"), ("a", b"2")], []]


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_codecs(codec: str) -> None:
    """Values are written by the topic's codec, and come back as the declared type."""
    app = ms.App("c")
    topic = app.topic("t", value=Person, codec=codec, key_from="name")
    person = Person("ada", datetime(1815, 12, 10, tzinfo=UTC))
    async with TestApp(app) as t:
        await t.send(topic, person)
        assert t.sent(topic) == [person]


async def test_partitioner() -> None:
    """A topic may be placed as librdkafka does; an unknown partitioner is refused."""
    app = ms.App("p", partitions=100)
    crc, murmur = app.topic("a", partitioner="crc32"), app.topic("b")
    async with TestApp(app) as t:
        assert (await t.send(crc, 1, key="ada")).partition != (
            await t.send(murmur, 1, key="ada")
        ).partition
    with pytest.raises(ms.errors.SettingError, match="partitioner"):
        app.topic("c", partitioner="md5")


async def test_send_where_nothing_runs() -> None:
    """Sending without a running app says where it can be done."""
    topic = ms.App("idle").topic("t", value=int)
    with pytest.raises(
        ProgramError, match=r"app 'idle' is not running here: .*app\.running\(worker=False\)"
    ):
        await topic.send(1)


def test_declared_twice() -> None:
    """A topic is declared once."""
    app = ms.App("d")
    app.topic("t")
    with pytest.raises(TopologyError, match="'t' is declared twice: keep the first object"):
        app.topic("t")


@pytest.mark.parametrize("name", ["", "a b", "ü", "a/b", "x" * 201, "."])
def test_names(name: str) -> None:
    """A topic has a name that Kafka takes."""
    with pytest.raises(ms.errors.ConfigurationError, match="a name has letters, digits"):
        ms.App("n").topic(name)


def test_field_getter() -> None:
    """A field is read from objects and mappings alike."""

    class Row(msgspec.Struct):
        a: int

    assert field_getter("a")(Row(1)) == field_getter("a")({"a": 1}) == 1
    assert field_getter(len)([1]) == 1


async def test_topics_are_created_as_declared() -> None:
    """Missing topics are created with partitions, retention and clean-up policy."""
    app = ms.App("made")
    app.topic("plain", retention="1h")
    app.topic("compacted", compacted=True, partitions=9)
    async with TestApp(app) as t:
        assert t._runtime is not None
        found = await t._runtime.transport.topics()
    assert (found["plain"].partitions, found["plain"].compacted) == (4, False)
    assert (found["compacted"].partitions, found["compacted"].compacted) == (9, True)
    assert app.topology.topics["plain"].retention_ms == 3_600_000


async def test_generator_of_another_topic() -> None:
    """A sink derives keys of its own by ``key_from``."""
    app = ms.App("sink")
    numbers = app.topic("numbers", value=int)
    out = app.topic("out", value=Order, key_from="account")

    @app.agent(numbers, sink=out)
    async def orders(stream: ms.Stream[int]) -> AsyncIterator[Order]:
        async for number in stream:
            yield Order(f"account-{number}", number)

    async with TestApp(app) as t:
        await t.send(numbers, 7)
        assert t.records(out) == [("account-7", Order("account-7", 7.0))]
