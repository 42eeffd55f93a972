"""Types of values that functions of a program make, as far as their annotations say."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from millstream.errors import ConfigurationError
from millstream.serialization import is_immutable_type, type_of
from millstream.streams._codec import value_codec
from millstream.tables import WAITS

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["field_type", "first_value", "result_type", "typed_by", "without_none"]

_PLAIN = (type(None), bool, int, float, str, list, dict)
"""Classes that JSON gives back where no type is declared."""


def result_type(function: Any, otherwise: Any = Any, *, inside: bool = False) -> Any:
    """What a function returns, by its annotation; ``otherwise`` where it has none.

    Args:
        inside: the type of the items of what it returns.
    """
    if isinstance(function, type):
        return function
    try:
        found = get_type_hints(function).get("return", otherwise)
    except (NameError, TypeError, AttributeError):
        return otherwise
    if inside:
        arguments = get_args(found)
        return arguments[0] if arguments else otherwise
    return found


def without_none(found: Any) -> Any:
    """A type that may be None as it is where it is not: a key that is None drops its record."""
    inner = [one for one in get_args(found) if one is not type(None)]
    if type(None) in get_args(found) and len(inner) == 1:
        return inner[0]
    return found


def default_type(default: Any) -> Any:
    """The type of values that begin as ``default``, which may be what makes them; Any where None says nothing.

    A function without annotations declares nothing: what it makes is the type only where it would not come back
    without one.
    """
    if isinstance(default, type):
        return default
    if callable(default):
        found = result_type(default)
        if found is not Any:
            return found
        try:
            default = default()
        except Exception:  # it may need an event, and then its first value comes too late to tell
            return Any
        if default.__class__ in WAITS:
            if hasattr(default, "close"):
                default.close()
            raise ConfigurationError("aggregate: default= may not be async")
        return Any if default.__class__ in _PLAIN else type(default)
    return Any if default is None else type(default)


def first_value(default: Any, value_type: Any) -> tuple[Callable[[], Any], Any]:
    """A function that makes the first value of a group, and the type of values.

    Each group has an object of its own: a ``default`` that may change in place is copied.

    Args:
        value_type: None where the program does not say it.

    Raises:
        ConfigurationError: the function is async, or ``default`` cannot be copied.
    """
    if inspect.iscoroutinefunction(default):
        raise ConfigurationError("aggregate: default= may not be async")
    value_type = default_type(default) if value_type is None else value_type
    if callable(default):
        return default, value_type
    if is_immutable_type(type(default)):
        return lambda: default, value_type
    codec = value_codec(value_type)
    try:
        data = codec.dumps(default)
    except Exception as exc:
        raise ConfigurationError(
            f"aggregate: each group gets a copy of default={default!r}, which cannot be copied: {exc}"
        ) from exc
    return lambda: codec.loads(data), value_type


def typed_by(value_type: Any) -> Callable[[Any], str]:
    """What to do about a value of an aggregate that is not of its type.

    Args:
        value_type: None where the program does not say it.
    """

    def remedy(value: Any) -> str:
        if value is None:
            return "None deletes a group, and a window has to have a value: return one"
        given = f"give aggregate(..., value={type_of(value)})"
        if value_type is not None or type(value) not in (int, float, str):
            return given
        return f"{given}, or a default of that type: default={type(value)()!r}"

    return remedy


def field_type(value_type: Any, field: Any) -> Any:
    """The declared type of a field, or Any."""
    if not isinstance(field, str) or value_type is Any:
        return Any
    try:
        return without_none(get_type_hints(value_type).get(field, Any))
    except (NameError, TypeError, AttributeError):
        return Any
