"""Which types have values that never change, so that they can be shared instead of copied."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import types
import typing
from datetime import date, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

__all__ = ["is_immutable_type"]

_SCALARS = (
    *(str, bytes, int, float, complex, bool, types.NoneType, Decimal, UUID, enum.Enum),
    *(date, time, timedelta, timezone, tzinfo),  # a datetime is a date
)


def is_immutable_type(kind: Any) -> bool | None:
    """Whether values of a declared type never change in place.

    Returns:
        True for str, numbers, None, bytes, dates and times, Decimal, UUID, enums, literals, and frozen
        Structs and dataclasses, named tuples, tuples, frozensets and unions made of such types alone. None where
        the type does not tell: Any, object, type variables. False for all others.
    """
    return _immutable(kind, frozenset())


def _immutable(kind: Any, within: frozenset[Any]) -> bool | None:
    if kind is None:
        return True
    if kind is Any or kind is object or isinstance(kind, (typing.TypeVar, str)):
        return None
    if isinstance(kind, typing.NewType):
        return _immutable(kind.__supertype__, within)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return True
    if origin is typing.Annotated:
        return _immutable(args[0], within)
    if origin in (tuple, frozenset, typing.Union, types.UnionType):
        return _all([argument for argument in args if argument is not Ellipsis], within)
    if kind in (tuple, frozenset):
        return None
    plain = origin or kind
    if not inspect.isclass(plain):
        return False
    if issubclass(plain, _SCALARS):
        # A subclass may add attributes of any kind, an enum's members are what they are.
        return plain in _SCALARS or plain.__module__ == "datetime" or issubclass(plain, enum.Enum)
    if kind in within:
        return True  # recursive: nothing but its other parts decides
    return _all_fields(kind, plain, within | {kind})


def _all_fields(kind: Any, plain: type, within: frozenset[Any]) -> bool | None:
    try:
        if issubclass(plain, msgspec.Struct):
            if not plain.__struct_config__.frozen:
                return False
            return _all([field.type for field in msgspec.structs.fields(kind)], within)
        if dataclasses.is_dataclass(plain):
            if not plain.__dataclass_params__.frozen:  # type: ignore[attr-defined]
                return False
            hints = typing.get_type_hints(plain)
            return _all([hints[field.name] for field in dataclasses.fields(plain)], within)
        if issubclass(plain, tuple) and hasattr(plain, "_fields"):
            hints = typing.get_type_hints(plain)
            return _all([hints.get(name, Any) for name in plain._fields], within)
    except NameError:
        return None  # annotations that cannot be looked up from here
    return False


def _all(kinds: list[Any], within: frozenset[Any]) -> bool | None:
    """False where one is, else None where one is, else True."""
    answers = [_immutable(kind, within) for kind in kinds]
    if False in answers:
        return False
    return None if None in answers else True
