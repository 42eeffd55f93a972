"""Codecs: values to bytes and back, and the errors that say what is wrong."""

from __future__ import annotations

import dataclasses
import enum
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal, TypedDict
from uuid import UUID

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.errors import ConfigurationError
from millstream.serialization import (
    Codec,
    codec_for,
    codec_names,
    key_codec_for,
    key_layout,
    register_codec,
)
from millstream.serialization._plain import FunctionCodec


class Address(msgspec.Struct):
    city: str


class Order(msgspec.Struct):
    account: str
    amount: float
    at: datetime | None = None
    to: Address | None = None


@dataclasses.dataclass
class Plain:
    name: str
    tags: list[str]


@pydantic.dataclasses.dataclass
class PydanticPlain:
    name: str


class Typed(TypedDict):
    name: str


class Model(pydantic.BaseModel):
    name: str
    at: datetime


class Tree(msgspec.Struct):
    children: list[Tree]


class Custom:
    pass


class Color(enum.Enum):
    RED = "red"


class FrozenKey(msgspec.Struct, frozen=True):
    region: str
    number: int


NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

VALUES: list[tuple[str, Any, Any]] = [
    # codec, declared type, value
    ("json", Order, Order("ada", 1.5, NOON, Address("Oulu"))),
    ("json", Plain, Plain("x", ["y"])),
    ("json", Typed, {"name": "x"}),
    ("json", Tree, Tree([Tree([])])),
    ("json", Model, Model(name="x", at=NOON)),
    ("json", PydanticPlain, PydanticPlain("x")),
    ("json", list[Model], [Model(name="x", at=NOON)]),
    ("json", Model | None, None),
    ("json", dict[int, set[str]], {1: {"b", "a"}}),
    ("json", int | str, "x"),
    ("json", Literal["a", "b"], "b"),
    ("json", Any, {"a": [1, None, "x"]}),
    ("json", object, [1]),
    ("json", dict, {"a": 1}),
    ("json", float, 0.1),
    ("json", int, 10**30),
    ("json", bytes, b"\xff"),
    ("json", UUID, UUID(int=5)),
    ("msgpack", Order, Order("ada", 1.5, NOON)),
    ("msgpack", Plain, Plain("x", ["y"])),
    ("msgpack", Model, Model(name="x", at=NOON)),
    ("msgpack", Any, {1: b"\xff"}),
    ("raw", bytes, b"\x00\xff"),
    ("raw", Any, b""),
    ("str", str, "päivää"),
    ("short", int, -2),
    ("integer", int, 2**31 - 1),
    ("long", int, -(2**63)),
    ("float", float, 0.5),
    ("double", float, 0.1),
    ("double", float, 3),
]


@pytest.mark.parametrize(("name", "value_type", "value"), VALUES)
def test_values_come_back(name: str, value_type: Any, value: Any) -> None:
    """What was written is read as the declared type."""
    codec: Codec[Any] = codec_for(name, value_type)
    assert codec.name == name
    assert codec.loads(codec.dumps(value)) == value


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Order, "Order"),
        (list[Order], "list[Order]"),
        (dict[str, list[Order]], "dict[str, list[Order]]"),
        (Order | None, "Order | None"),
    ],
)
def test_names_of_types(kind: Any, name: str) -> None:
    """As one would say them, without modules."""
    assert codec_for("json", kind).type_name == name


BYTES: list[tuple[str, Any, Any, bytes]] = [
    # codec, declared type, value, bytes as other clients write them
    ("json", dict, {"b": 1, "a": 2}, b'{"b":1,"a":2}'),
    ("str", str, "é", b"\xc3\xa9"),
    ("short", int, 1, b"\x00\x01"),
    ("integer", int, -1, b"\xff\xff\xff\xff"),
    ("long", int, 1, b"\x00\x00\x00\x00\x00\x00\x00\x01"),
    ("float", float, 1.0, b"\x3f\x80\x00\x00"),
    ("double", float, 1.0, b"\x3f\xf0\x00\x00\x00\x00\x00\x00"),
    ("raw", bytes, bytearray(b"x"), b"x"),
    ("raw", bytes, memoryview(b"x"), b"x"),
]


@pytest.mark.parametrize(("name", "value_type", "value", "data"), BYTES)
def test_bytes_are_those_of_other_clients(
    name: str, value_type: Any, value: Any, data: bytes
) -> None:
    """Kafka's own serializers, and JSON without spaces."""
    assert codec_for(name, value_type).dumps(value) == data


UNREADABLE: list[tuple[str, Any, bytes, str]] = [
    # codec, declared type, bytes, what the message says
    ("json", Order, b'{"account": 1, "amount": 2}', r"Expected `str`, got `int` - at `\$.account`"),
    ("json", Order, b'{"account": "a"}', "missing required field `amount`"),
    ("json", Order, b'{"account":"a","amount":1,"to":{"city":5}}', r"at `\$.to.city`"),
    ("json", Order, b"{", "truncated"),
    ("json", Order, b"", "truncated"),
    ("json", Order, b"\xff", "malformed"),
    ("json", Model, b'{"name": 5, "at": "2024-05-01T12:00:00Z"}', "name"),
    ("msgpack", Order, b"\x81\xa7account\x01", r"at `\$.account`"),
    ("msgpack", Model, b"\x80", "Field required"),
    ("str", str, b"\xff", "can't decode"),
    ("integer", int, b"\x00", "expected the 4 bytes of integer, got 1"),
    ("double", float, b"", "expected the 8 bytes of double, got 0"),
]


@pytest.mark.parametrize(("name", "value_type", "data", "message"), UNREADABLE)
def test_unreadable_bytes(name: str, value_type: Any, data: bytes, message: str) -> None:
    """A ValueError names the path of the field."""
    with pytest.raises(ValueError, match=message):
        codec_for(name, value_type).loads(data)


UNWRITABLE: list[tuple[str, Any, Any, str]] = [
    # codec, declared type, value, what the message says
    ("json", Any, Custom(), "type Custom is unsupported"),
    ("msgpack", Any, Custom(), "type Custom is unsupported"),
    ("msgpack", Any, 2**70, "can't serialize ints"),
    ("raw", bytes, "x", "expected bytes, got str"),
    ("raw", bytes, 5, "expected bytes, got int"),
    ("str", str, b"x", "expected str, got bytes"),
    ("str", str, "\ud800", "surrogates"),
    ("integer", int, True, "expected int, got bool"),
    ("integer", int, 1.5, "expected int, got float"),
    ("integer", int, 2**31, "does not fit the 4 bytes of integer"),
    ("double", float, "x", "expected float, got str"),
    ("double", float, 10**400, "does not fit the 8 bytes of double"),
]


@pytest.mark.parametrize(("name", "value_type", "value", "message"), UNWRITABLE)
def test_unwritable_values(name: str, value_type: Any, value: Any, message: str) -> None:
    """A TypeError or a ValueError says why."""
    with pytest.raises((TypeError, ValueError), match=message):
        codec_for(name, value_type).dumps(value)


UNSERVED: list[tuple[str, Any, str]] = [
    # codec, declared type, what the message says
    ("json", Custom, "cannot serve the type Custom"),
    ("json", dict[str, list[Custom]], "does not know Custom.*register_codec"),
    ("json", Order | Plain, "cannot serve the type .*more than one"),
    ("msgpack", Custom, "codec 'msgpack' cannot serve"),
    ("raw", str, "codec 'raw' is for bytes, not for str"),
    ("str", Order, "codec 'str' is for str, not for Order"),
    ("long", list[int], r"codec 'long' is for int, not for list\[int\]"),
    ("pickle", Any, "runs whatever code the record's writer put there"),
    ("avrol", Any, "no codec 'avrol': use one of double, float, .*register_codec"),
]


@pytest.mark.parametrize(("name", "value_type", "message"), UNSERVED)
def test_unserved_types(name: str, value_type: Any, message: str) -> None:
    """Found out when the topic is declared."""
    with pytest.raises(ConfigurationError, match=message):
        codec_for(name, value_type)


def test_register_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """A codec of the user's own is chosen by its name like the others."""
    monkeypatch.setattr("millstream.serialization.registry._factories", {})

    def factory(value_type: Any) -> Codec[Any]:
        return FunctionCodec(
            "hex", repr(value_type), lambda v: v.hex().encode(), lambda d: bytes.fromhex(d.decode())
        )

    register_codec("hex", factory)
    assert codec_names() == ["hex"]
    assert codec_for("hex", bytes).dumps(b"\xff") == b"ff"


def test_pydantic_is_not_loaded_without_need() -> None:
    """Nor is any client library."""
    code = """
import sys
from millstream.serialization import codec_for
codec_for("json", dict[str, int])
sys.exit(bool({"pydantic", "aiokafka", "rocksdict"} & set(sys.modules)))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


KEYS: list[tuple[Any, str | None, Any, bytes]] = [
    # type, codec, key, bytes
    (str, None, "ada", b"ada"),
    (bytes, None, b"\xff", b"\xff"),
    (int, None, 42, b"42"),
    (int, None, 10**30, b"1" + b"0" * 30),
    (float, None, -0.0, b"0.0"),
    (float, None, 1, b"1.0"),
    (bool, None, True, b"true"),
    (UUID, None, UUID(int=5), b'"00000000-0000-0000-0000-000000000005"'),
    (datetime, None, NOON, b'"2024-05-01T12:00:00Z"'),
    (
        datetime,
        None,
        NOON.astimezone(timezone(timedelta(hours=2))),
        b'"2024-05-01T12:00:00Z"',
    ),
    (Color, None, Color.RED, b'"red"'),
    (tuple[str, int], None, ("é", 1), '["é",1]'.encode()),
    (tuple[str, float], None, ("a", -0.0), b'["a",0.0]'),
    (FrozenKey, None, FrozenKey("eu", 1), b'{"region":"eu","number":1}'),
    (frozenset[str], None, frozenset("edcba"), b'["a","b","c","d","e"]'),
    (Any, None, {"b": 1, "a": 2}, b'{"a":2,"b":1}'),
    (str, "json", "ada", b'"ada"'),
    (int, "long", 1, b"\x00\x00\x00\x00\x00\x00\x00\x01"),
    (str, "str", "ada", b"ada"),
]


@pytest.mark.parametrize(("key_type", "name", "key", "data"), KEYS)
def test_keys_on_topics(key_type: Any, name: str | None, key: Any, data: bytes) -> None:
    """str as UTF-8, bytes as they are, others as compact JSON; equal keys have equal bytes."""
    codec = key_codec_for(key_type, name)
    assert codec.dumps(key) == data
    assert codec.loads(data) == key


WRONG_KEYS: list[tuple[Any, Any, str]] = [
    # type, key, what the message says
    (str, 1, "expected str, got int"),
    (int, True, "type int, got bool"),
    (int, "1", "type int, got str"),
    (float, float("nan"), "equals no float"),
    (tuple[str, int], ("a", "b"), "type int, got str"),
]


@pytest.mark.parametrize(("key_type", "key", "message"), WRONG_KEYS)
def test_wrong_keys_are_not_sent(key_type: Any, key: Any, message: str) -> None:
    """They would be in a partition where nobody looks for them."""
    with pytest.raises((TypeError, ValueError), match=message):
        key_codec_for(key_type).dumps(key)


def test_unserved_key_types() -> None:
    """Found out when the topic is declared."""
    with pytest.raises(ConfigurationError, match="Custom"):
        key_codec_for(Custom)
    with pytest.raises(ConfigurationError, match="no codec"):
        key_codec_for(str, "nope")


@given(st.tuples(st.text(), st.integers()))
def test_keys_on_topics_are_json(key: tuple[str, int]) -> None:
    """Any JSON reader understands them, and the layout's JSON form is the same."""
    data = key_codec_for(tuple[str, int]).dumps(key)
    assert json.loads(data) == list(key) == key_layout(tuple[str, int]).to_json(key)
