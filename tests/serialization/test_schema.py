"""The text that tells whether stored values have to be looked at again."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest

from millstream.serialization import codec_for, upgrading, value_schema


def text(value_type: Any, codec: str = "json", upgrade: Any = None) -> str:
    found = codec_for(codec, value_type)
    return value_schema(
        found if upgrade is None else upgrading(found, upgrade, "table 't'"), value_type
    )


class Red(enum.Enum):
    A = "a"


class RedAndBlue(enum.Enum):
    A = "a"
    B = "b"


class Tree(msgspec.Struct):
    """Has itself inside."""

    name: str
    below: list[Tree] = []


class OtherTree(msgspec.Struct):
    """The same by another name."""

    name: str
    below: list[OtherTree] = []


class Wood(msgspec.Struct):
    """Not the same."""

    name: str
    below: list[Tree] = []
    above: Tree | None = None


@dataclass
class Data:
    a: int


class Typed(TypedDict):
    a: int


class Named(NamedTuple):
    a: int


class Model(pydantic.BaseModel):
    a: int


class OtherModel(pydantic.BaseModel):
    a: int
    b: datetime


class PlainOptional(msgspec.Struct):
    a: int
    b: int = 1


class OtherDefault(msgspec.Struct):
    """A default is made, not read."""

    a: int
    b: int = 2


class NoDefault(msgspec.Struct):
    a: int
    b: int


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    a: int
    b: int = 1


class Tagged(msgspec.Struct, tag="t"):
    a: int
    b: int = 1


class AsArray(msgspec.Struct, array_like=True):
    a: int
    b: int = 1


class Renamed(msgspec.Struct, rename="upper"):
    a: int
    b: int = 1


DIFFERENT: list[Any] = [
    int,
    float,
    str,
    bool,
    bytes,
    datetime,
    Any,
    object,
    list,
    dict,
    list[int],
    list[str],
    set[int],
    tuple[int, str],
    tuple[int, ...],
    dict[str, int],
    dict[int, int],
    int | None,
    Annotated[int, msgspec.Meta(ge=0)],
    Annotated[int, msgspec.Meta(ge=1)],
    Annotated[str, msgspec.Meta(pattern="a")],
    Literal["a"],
    Literal["a", "b"],
    Red,
    RedAndBlue,
    Tree,
    Wood,
    Data,
    Typed,
    Named,
    Model,
    OtherModel,
    PlainOptional,
    NoDefault,
    Strict,
    Tagged,
    AsArray,
    Renamed,
]


def test_all_different() -> None:
    """Types that read other bytes, or read them otherwise, have other texts."""
    texts = {text(kind): kind for kind in DIFFERENT}
    assert len(texts) == len(DIFFERENT)
    assert all(len(found) == 32 for found in texts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PlainOptional, OtherDefault),  # other name, other default
        (Tree, OtherTree),
        (int, Annotated[int, "documented"]),
        (Literal["a", "b"], Literal["b", "a"]),
    ],
)
def test_the_same(one: Any, other: Any) -> None:
    """What reads the same has the same text."""
    assert text(one) == text(other)


def test_codecs_and_upgrades() -> None:
    """Another codec, or a conversion that comes or goes, makes another text."""

    def upgrade(old: Any) -> Any:
        return old

    texts = {
        text(int),
        text(int, "msgpack"),
        text(int, "long"),
        text(int, "integer"),
        text(bytes, "raw"),
        text(int, upgrade=upgrade),
    }
    assert len(texts) == 6
    assert text(int, upgrade=upgrade) == text(int, upgrade=upgrade)


def test_it_stays_the_same() -> None:
    """It is stored, so it must not change by itself: from one version of Millstream to the next, checks are dear."""
    assert text(int) == "766e7c44ccc5f6777af91cb019aea52c"
