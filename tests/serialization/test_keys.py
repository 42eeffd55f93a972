"""The layout of keys: the bytes themselves, their order, and what people write for them."""

from __future__ import annotations

import dataclasses
import enum
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Annotated, Any, Literal, NamedTuple, NewType
from uuid import UUID

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from millstream.errors import ConfigurationError
from millstream.serialization import key_layout


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = -1
    HIGH = 10


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"


class Bits(enum.Flag):
    A = 1


class Pair(NamedTuple):
    name: str
    number: int


@dataclasses.dataclass(frozen=True, order=True)
class Place:
    country: str
    code: int


class Item(msgspec.Struct, frozen=True, order=True):
    shop: Place
    sku: bytes


class Thawed(msgspec.Struct):
    shop: str


@dataclasses.dataclass
class ThawedPlace:
    country: str


UserId = NewType("UserId", str)

HALF_PAST = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
UUID_1 = UUID("00000000-0000-0000-0000-0000000000ff")

BYTES: list[tuple[Any, Any, str]] = [
    # type, key, its bytes: these never change
    (str, "ada", "61646101"),
    (str, "", "01"),
    (str, "é", "c3a901"),
    (str, "\x00\x01\x02\x03", "02020203020403" + "01"),
    (bytes, b"\x00\xff", "0202ff01"),
    (int, 0, "808000000000000000"),
    (int, -1, "807fffffffffffffff"),
    (int, 1, "808000000000000001"),
    (int, 2**63 - 1, "80ffffffffffffffff"),
    (int, -(2**63), "800000000000000000"),
    (int, 2**63, "81000000088000000000000000"),
    (int, 2**64, "8100000009010000000000000000"),
    (int, -(2**63) - 1, "7ffffffff77ffffffffffffffe"),
    (float, 0.0, "808000000000000000"),
    (float, -0.0, "808000000000000000"),
    (float, 1, "80bff0000000000000"),
    (float, -1.0, "80400fffffffffffff"),
    (float, float("-inf"), "80000fffffffffffff"),
    (bool, False, "01"),
    (bool, True, "02"),
    (UUID, UUID_1, "80000000000000000000000000000000ff"),
    (datetime, datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC), "808000000000000001"),
    (datetime, datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), "808000000000000000"),
    (Color, Color.RED, "72656401"),
    (Level, Level.LOW, "807fffffffffffffff"),
    (tuple[str, int], ("ada", 0), "61646101" + "808000000000000000"),
    (tuple[str, tuple[bool, str]], ("a", (True, "b")), "6101" + "02" + "6201"),
    (Pair, Pair("a", 0), "6101" + "808000000000000000"),
    (Place, Place("fi", 0), "666901" + "808000000000000000"),
    (Item, Item(Place("", 0), b"x"), "01" + "808000000000000000" + "7801"),
    (UserId, "u", "7501"),
    (Annotated[str, ["unhashable"]], "u", "7501"),
    (Literal["a", "b"], "a", "6101"),
]


@pytest.mark.parametrize(("key_type", "key", "expected"), BYTES)
def test_the_bytes_are_the_documented_ones(key_type: Any, key: Any, expected: str) -> None:
    """Each layout byte by byte, and back."""
    layout = key_layout(key_type)
    assert layout.encode(key).hex() == expected
    assert layout.decode(bytes.fromhex(expected)) == key


TEXTS: list[tuple[Any, Any, str, Any]] = [
    # type, key, as people write it, as JSON has it
    (str, "a/b c", "a/b c", "a/b c"),
    (str, "", "", ""),
    (int, -12, "-12", -12),
    (int, 10**30, "1000000000000000000000000000000", 10**30),
    (float, 0.1, "0.1", 0.1),
    (float, float("inf"), "inf", "inf"),
    (bool, True, "true", True),
    (bool, False, "false", False),
    (bytes, b"plain", "plain", "plain"),
    (bytes, b"\x00\xff", "0x00ff", "0x00ff"),
    (bytes, b"0x00", "0x30783030", "0x30783030"),  # text that would read as hex
    (UUID, UUID_1, str(UUID_1), str(UUID_1)),
    (datetime, HALF_PAST, "2024-05-01T12:30:00Z", "2024-05-01T12:30:00Z"),
    (Color, Color.BLUE, "blue", "blue"),
    (Level, Level.HIGH, "10", 10),
    (tuple[str, int], ("ada", 3), '["ada",3]', ["ada", 3]),
    (tuple[bytes, tuple[Color, bool]], (b"\xff", (Color.RED, True)), '["0xff",["red",true]]', None),
    (tuple[float, str], (float("-inf"), "é"), '["-inf","é"]', ["-inf", "é"]),
    (Place, Place("fi", 1), '{"country":"fi","code":1}', {"country": "fi", "code": 1}),
    (Pair, Pair("x", 1), '{"name":"x","number":1}', {"name": "x", "number": 1}),
]


@pytest.mark.parametrize(("key_type", "key", "text", "value"), TEXTS)
def test_keys_as_text(key_type: Any, key: Any, text: str, value: Any) -> None:
    """Text and JSON forms are each other's inverse with the key."""
    layout = key_layout(key_type)
    assert layout.format(key) == text
    assert layout.parse(text) == key
    assert type(layout.parse(text)) is type(key)
    if value is not None:
        assert layout.to_json(key) == value
        assert layout.from_json(value) == key


READ_AS: list[tuple[Any, str, Any]] = [
    # type, text of another form, the key that is meant
    (datetime, "2024-05-01T14:30:00+02:00", HALF_PAST),
    (float, "3", 3.0),
    (UUID, UUID_1.hex, UUID_1),
    (Place, '["fi", 1]', Place("fi", 1)),
    (Item, '[["fi", 1], "x"]', Item(Place("fi", 1), b"x")),
    (tuple[float, int], "[1, 2]", (1.0, 2)),
]


@pytest.mark.parametrize(("key_type", "text", "key"), READ_AS)
def test_other_ways_to_write_a_key(key_type: Any, text: str, key: Any) -> None:
    """What people may write as well."""
    assert key_layout(key_type).parse(text) == key


UNREADABLE: list[tuple[Any, str, str]] = [
    # type, text, what the message says
    (int, "x", "int: write digits"),
    (float, "nan", "float: write a decimal number"),
    (bool, "True", "bool: write true or false"),
    (UUID, "12", "UUID"),
    (datetime, "2024-05-01T12:30:00", "with a zone"),
    (datetime, "noon", "with a zone"),
    (bytes, "0xz", "hex digits"),
    (Color, "green", "red, blue"),
    (tuple[str, int], "ada", "JSON array"),
    (tuple[str, int], '["ada"]', r"\[str, int\]"),
    (tuple[str, int], '["ada", "3"]', "int"),
    (tuple[str, int], '["ada", true]', "int"),
    (tuple[str, int], '["ada", 3.0]', "int"),
    (tuple[str, bool], '["ada", 1]', "bool"),
    (tuple[str, float], '["ada", true]', "float"),
    (tuple[str, float], '["ada", NaN]', "float"),
    (tuple[str, UUID], '["ada", 1]', "UUID"),
    (tuple[str, bytes], '["ada", 1]', "bytes"),
    (tuple[str, datetime], '["ada", 1]', "datetime"),
    (tuple[str, Level], '["ada", true]', "-1, 10"),
    (tuple[str, str], '["ada", 1]', "str"),
    (Place, '{"country": "fi"}', "country, code"),
    (Place, "[1]", "country, code"),
    (Place, "fi", "country, code"),
]


@pytest.mark.parametrize(("key_type", "text", "message"), UNREADABLE)
def test_text_that_is_no_key(key_type: Any, text: str, message: str) -> None:
    """The message says what to write."""
    with pytest.raises(ValueError, match=message):
        key_layout(key_type).parse(text)


WRONG: list[tuple[Any, Any, str]] = [
    # type, key of another type, what the message says
    (str, 1, "type str, got int"),
    (str, b"x", "type str, got bytes"),
    (str, None, "type str, got NoneType"),
    (int, True, "type int, got bool"),
    (int, "1", "type int, got str"),
    (int, 1.0, "type int, got float"),
    (float, True, "type float, got bool"),
    (float, "1", "type float, got str"),
    (bool, 1, "type bool, got int"),
    (bytes, "x", "type bytes, got str"),
    (UUID, str(UUID_1), "type UUID, got str"),
    (datetime, 0, "type datetime, got int"),
    (Color, "red", "type Color, got str"),
    (Level, -1, "type Level, got int"),
    (tuple[str, int], ["ada", 1], r"type tuple\[str, int\], got list"),
    (tuple[str, int], ("ada",), r"type tuple\[str, int\], got tuple of 1"),
    (tuple[str, int], ("ada", True), "type int, got bool"),
    (Place, ("fi", 1), "type Place, got tuple"),
    (Place, Place("fi", "x"), "type int, got str"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("key_type", "key", "message"), WRONG)
def test_keys_of_another_type(key_type: Any, key: Any, message: str) -> None:
    """Expected and given type are named, and bool is not int."""
    with pytest.raises(TypeError, match=message):
        key_layout(key_type).encode(key)


NO_PLACE: list[tuple[Any, Any, str]] = [
    # type, key that cannot be put in order, what the message says
    (float, float("nan"), "equals no float"),
    (float, 2**53 + 1, "equals no float"),
    (float, 10**400, "equals no float"),
    (datetime, datetime(2024, 5, 1), "no time zone"),
    (str, "\ud800", "surrogates"),
]


@pytest.mark.parametrize(("key_type", "key", "message"), NO_PLACE)
def test_keys_without_a_place(key_type: Any, key: Any, message: str) -> None:
    """Refused rather than stored where nobody finds it."""
    with pytest.raises(ValueError, match=message):
        key_layout(key_type).encode(key)


UNSUPPORTED: list[tuple[Any, str]] = [
    # type, what the message says
    (list[str], r"list\[str\]"),
    (dict, "dict"),
    (tuple, "tuple"),
    (tuple[str, ...], "tuple"),
    (tuple[()], "tuple"),
    (tuple[str, list[int]], r"list\[int\]"),
    (Any, "Any"),
    (object, "object"),
    (str | None, "str | None"),
    (str | int, "str | int"),
    (Mixed, "Mixed"),
    (Bits, "Bits"),
    (Thawed, r"Thawed \(it is not frozen"),
    (ThawedPlace, r"ThawedPlace \(it is not frozen"),
    (["x"], "x"),
]


@pytest.mark.parametrize(("key_type", "message"), UNSUPPORTED)
def test_types_that_cannot_be_keys(key_type: Any, message: str) -> None:
    """The message names the type, and those that can."""
    with pytest.raises(ConfigurationError, match=f"{message}.*it may be str, int"):
        key_layout(key_type)


DAMAGED: list[tuple[Any, str]] = [
    # type, bytes that are no key of it
    (str, "6161"),
    (str, ""),
    (str, "020901"),
    (str, "ff01"),
    (str, "610161"),  # something after the key
    (int, ""),
    (int, "80"),
    (int, "008000000000000000"),
    (int, "8100"),
    (int, "8100000009ff"),
    (float, "80"),
    (bool, "03"),
    (bool, ""),
    (UUID, "80ff"),
    (datetime, "80ffffffffffffffff"),
    (Color, "6101"),
    (tuple[str, int], "6101"),
]


@pytest.mark.parametrize(("key_type", "data"), DAMAGED)
def test_bytes_that_are_no_key(key_type: Any, data: str) -> None:
    """Never another key, never another error."""
    with pytest.raises(ValueError):  # noqa: PT011 - any message will do
        key_layout(key_type).decode(bytes.fromhex(data))


PREFIXES: list[tuple[Any, Any, list[Any], list[Any]]] = [
    # type, prefix, keys that have it, keys that do not
    (str, "ab", ["ab", "abc", "ab\x00", "ab\U0010ffff"], ["a", "ac", "aa\U0010ffff", ""]),
    (str, "", ["", "a", "\x00", "\U0010ffff"], []),
    (str, "\x00", ["\x00", "\x00a"], ["\x01", "", "a"]),
    (bytes, b"\xff", [b"\xff", b"\xff\xff\x00"], [b"\xfe", b""]),
    (bytes, b"a\xff", [b"a\xff", b"a\xff\xff"], [b"a\xfe", b"b", b"a"]),
    (tuple[str, int], "ada", [("ada", -1), ("ada", 10**30)], [("adam", 0), ("ad", 0)]),
    (tuple[str, int], ("ada", 1), [("ada", 1)], [("ada", 2), ("ada", 0)]),
    (tuple[str, int], (), [("", -1), ("z", 10**30)], []),
    (Place, "fi", [Place("fi", 1)], [Place("fr", 1), Place("f", 1)]),
    (Place, Place("fi", 1), [Place("fi", 1)], [Place("fi", 2)]),
]


@pytest.mark.parametrize(("key_type", "prefix", "inside", "outside"), PREFIXES)
def test_prefixes(key_type: Any, prefix: Any, inside: list[Any], outside: list[Any]) -> None:
    """The bounds hold exactly the keys with that beginning, whatever suffix follows them."""
    layout = key_layout(key_type)
    start, end = layout.prefix(prefix)
    assert start[:1] > b"\x00"
    for key in inside:
        for suffix in (b"", b"\x00" * 8, b"\xff" * 8):
            data = layout.encode(key) + suffix
            assert start <= data
            assert end is None or data < end
    for key in outside:
        for suffix in (b"", b"\x00" * 8, b"\xff" * 8):
            data = layout.encode(key) + suffix
            assert data < start or (end is not None and data >= end)


@pytest.mark.parametrize(
    ("key_type", "prefix"),
    [(int, 1), (UUID, UUID_1), (str, 1), (bytes, "x"), (tuple[str, int], ("a", 1, 2)), (Place, 1)],
)
def test_types_without_prefixes(key_type: Any, prefix: Any) -> None:
    """A prefix where there is none, or of another type, is a TypeError."""
    with pytest.raises(TypeError):
        key_layout(key_type).prefix(prefix)


NEAR = st.integers(-(2**64) - 3, 2**64 + 3) | st.integers(-3, 3) | st.integers()
EDGES = st.sampled_from([b + d for b in (2**63, 2**64, -(2**63), -(2**64)) for d in (-1, 0, 1)])
TEXT = st.text(st.sampled_from("\x00\x01\x02\x03a\xff\uffff\U0010ffff")) | st.text()
MOMENTS = st.datetimes(
    datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.timezones(), allow_imaginary=False
)
PLACES = st.builds(Place, TEXT, NEAR)
KEYS: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, TEXT),
    (bytes, st.binary() | st.lists(st.sampled_from([b"\0", b"\1", b"\2", b"\xff"])).map(b"".join)),
    (int, NEAR | EDGES),
    (float, st.floats(allow_nan=False)),
    (bool, st.booleans()),
    (UUID, st.uuids()),
    (datetime, MOMENTS),
    (Level, st.sampled_from(Level)),
    (tuple[str, int], st.tuples(TEXT, NEAR)),
    (tuple[bytes, str, float], st.tuples(st.binary(), TEXT, st.floats(allow_nan=False))),
    (tuple[tuple[str, str], bool], st.tuples(st.tuples(TEXT, TEXT), st.booleans())),
    (Place, PLACES),
    (Item, st.builds(Item, PLACES, st.binary())),
]
CASES = [pytest.param(*case, id=str(case[0])) for case in KEYS]


@pytest.mark.parametrize(("key_type", "keys"), CASES)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_byte_order_is_python_order(key_type: Any, keys: Any, data: st.DataObject) -> None:
    """For any two keys; and no encoding is the beginning of another one."""
    layout = key_layout(key_type)
    one, two = data.draw(keys), data.draw(keys)
    if isinstance(one, datetime):
        assume(one.utcoffset() == one.replace(fold=1 - one.fold).utcoffset())
        assume(two.utcoffset() == two.replace(fold=1 - two.fold).utcoffset())
    low, high = layout.encode(one), layout.encode(two)
    assert (low < high) == (one < two)
    assert (low == high) == (one == two)
    assert low == high or not high.startswith(low)
    assert low[0] != 0


@pytest.mark.parametrize(("key_type", "keys"), CASES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_round_trips(key_type: Any, keys: Any, data: st.DataObject) -> None:
    """Bytes (with any suffix), text and JSON give the key back."""
    layout = key_layout(key_type)
    key, suffix = data.draw(keys), data.draw(st.binary(max_size=12))
    if isinstance(key, datetime):
        key = key.astimezone(UTC)
    encoded = layout.encode(key)
    assert layout.decode(encoded) == key
    assert layout.read(b"before" + encoded + suffix, 6) == (key, 6 + len(encoded))
    assert layout.parse(layout.format(key)) == key
    assert layout.from_json(json.loads(json.dumps(layout.to_json(key)))) == key


@given(data=st.binary(max_size=20))
def test_any_bytes_are_a_key_or_a_value_error(data: bytes) -> None:
    """Nothing else is raised, whatever the bytes."""
    for key_type, _ in KEYS:
        layout: Any = key_layout(key_type)
        try:
            key = layout.decode(data)
        except ValueError:
            continue
        assert layout.encode(key) is not None
