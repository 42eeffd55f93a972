"""Codecs that write nothing but what they read again."""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from math import isnan
from typing import Annotated, Any, Literal, NewType

import msgspec
import pytest

from millstream.serialization import codec_for, strict_codec, type_of


@dataclass
class Point:
    """A value."""

    x: int = 0


class Color(enum.Enum):
    """One of two."""

    RED = "red"
    BLUE = "blue"


class Word(enum.StrEnum):
    """A text of a class of its own."""

    A = "a"


Positive = Annotated[int, msgspec.Meta(gt=0)]
Cents = NewType("Cents", int)

GOOD: list[tuple[Any, list[Any]]] = [
    (int, [0, -5, 2**70]),
    (float, [1.5, 2]),
    (str, ["", "ü"]),
    (bool, [True]),
    (int | None, [3]),
    (float | str, [1.5, "x"]),
    (Decimal, [Decimal("0.1")]),
    (Point, [Point(3)]),
    (Color, [Color.RED]),
    (Positive, [1]),
    (Cents, [5]),
    (Literal["a", "b"], ["a"]),
    (list[Point], [[], [Point(1)]]),
    (dict[int, int], [{1: 2}]),
    (tuple[float, int], [(0.0, 1)]),
    (tuple[Any, int], [("a", 1)]),
    (tuple[float, Any], [(1, "a")]),
    (tuple, [(), (1, "a", None)]),
    (dict, [{}, {"a": [1, {"b": 2.5}]}, OrderedDict(a=1), Counter("aab"), {"a": Counter("a")}]),
    (set, [{1, "a"}]),
    (dict[str, Any], [{"a": True}]),
    (Any, [None, 1, 1.5, True, "x", [1, "a"], {"a": {"b": []}}]),
]
BAD: list[tuple[Any, list[Any]]] = [
    (int, [1.5, 1.0, "1", True, Decimal(1), [1]]),
    (float, ["1", float("nan"), float("inf"), Decimal(1), True]),
    (str, [1, Point()]),
    (bool, [1]),
    (int | None, [1.5]),
    (Point, [{"y": 1, "x": "a"}, [1]]),
    (Color, ["green"]),
    (Positive, [0]),
    (Literal["a", "b"], ["c"]),
    (list[Point], [Point()]),
    (list[Any], [[Point()], [(1, 2)], [{1: 2}], [float("nan")]]),
    (tuple[Any, int], [(Point(), 1), (datetime(2024, 1, 1, tzinfo=UTC), 1)]),
    (dict, [{1: 2}, {"a": {1: 2}}, {"s": Word.A}, {Word.A: 1}, {"a": float("nan")}]),
    (list, [[{1}], (1,)]),
    (set, [{(1, 2)}]),
    (Any, [OrderedDict(a=1), {"s": [Word.A]}]),
    (Any, [(1, 2), {1: 2}, {1}, Point(), Decimal(1), datetime(2024, 1, 1, tzinfo=UTC), object()]),
]


def given(rows: list[tuple[Any, list[Any]]]) -> pytest.MarkDecorator:
    """Each type with each of its values."""
    pairs = [(kind, value) for kind, values in rows for value in values]
    return pytest.mark.parametrize(
        ("kind", "value"), pairs, ids=[f"{kind}-{value!r}"[:50] for kind, value in pairs]
    )


@given(GOOD)
def test_what_is_of_the_type_is_written(kind: Any, value: Any) -> None:
    """It comes back as it was, in the bytes of the codec."""
    codec = codec_for("json", kind)
    strict = strict_codec(codec, kind, type_of)
    assert strict.dumps(value) == codec.dumps(value)
    assert strict.loads(strict.dumps(value)) == value


@given(BAD)
def test_what_would_not_come_back_is_refused(kind: Any, value: Any) -> None:
    """The error shows the value, and ends with what to do about it."""
    strict = strict_codec(codec_for("json", kind), kind, lambda value: f"declare {type_of(value)}")
    with pytest.raises(TypeError, match=r"would (not )?come back.*: declare \w+"):
        strict.dumps(value)


@pytest.mark.parametrize("kind", [Any, dict])
def test_nan_is_nan(kind: Any) -> None:
    """MessagePack has a form for it: it comes back, although it equals nothing."""
    strict = strict_codec(codec_for("msgpack", kind), kind, type_of)
    loaded = strict.loads(strict.dumps({"mean": [float("nan")]}))
    assert isnan(loaded["mean"][0])


def test_types_of_values() -> None:
    """As a program would declare them; of containers, the first of what is inside tells."""
    found = [type_of(value) for value in (1, [], [Point()], {1: [1.5]}, (1, "a"), {"a"})]
    assert found == [
        "int",
        "list",
        "list[Point]",
        "dict[int, list[float]]",
        "tuple[int, str]",
        "set[str]",
    ]
