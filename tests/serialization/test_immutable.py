"""Which types may be shared."""

from __future__ import annotations

import dataclasses
import enum
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, NewType, Optional, TypedDict, TypeVar
from uuid import UUID

import msgspec
import pytest

from millstream.serialization import is_immutable_type

T = TypeVar("T")


class Color(enum.StrEnum):
    RED = "red"


class Frozen(msgspec.Struct, frozen=True):
    name: str
    at: datetime


class FrozenAround(msgspec.Struct, frozen=True):
    names: list[str]


class FrozenAnything(msgspec.Struct, frozen=True):
    value: Any


class Thawed(msgspec.Struct):
    name: str


class Node(msgspec.Struct, frozen=True):
    value: int
    child: Node | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    inner: tuple[Frozen, ...] = ()


@dataclasses.dataclass
class ThawedPoint:
    x: int


class Row(NamedTuple):
    a: int
    b: frozenset[str]


class MutableRow(NamedTuple):
    a: list[int]


class Words(str):
    """May have attributes: it has no slots."""


class Typed(TypedDict):
    a: int


UserId = NewType("UserId", str)

TYPES: list[tuple[Any, bool | None]] = [
    # type, and whether its values can be shared
    *((kind, True) for kind in (str, int, float, bool, None, type(None), bytes, complex)),
    *((kind, True) for kind in (datetime, date, time, timedelta, Decimal, UUID, Color)),
    *((kind, True) for kind in (Frozen, Point, Row, Node, UserId)),
    (Literal["a", 1], True),
    (Annotated[int, "metres"], True),
    (Optional[int], True),  # noqa: UP045 - the older spelling is another object
    (int | str | None, True),
    (tuple[int, str], True),
    (tuple[int, ...], True),
    (tuple[()], True),
    (frozenset[tuple[str, int]], True),
    (list, False),
    (list[int], False),
    (dict[str, int], False),
    (set[int], False),
    (bytearray, False),
    (Thawed, False),
    (ThawedPoint, False),
    (FrozenAround, False),
    (MutableRow, False),
    (Typed, False),
    (Words, False),
    (int | list[int], False),
    (tuple[int, list[int]], False),
    (tuple[Any, list[int]], False),
    (Any, None),
    (object, None),
    (T, None),
    (tuple, None),
    (frozenset, None),
    (int | Any, None),
    (FrozenAnything, None),
]


@pytest.mark.parametrize(("kind", "expected"), TYPES)
def test_is_immutable_type(kind: Any, expected: bool | None) -> None:
    """True where no value can change, None where the type does not tell."""
    assert is_immutable_type(kind) is expected
