"""Types of values that functions of a program make, as far as their annotations say."""

from __future__ import annotations

import inspect
from typing import Any, get_args, get_type_hints

from millstream.errors import ConfigurationError

__all__ = ["default_type", "field_type", "make_default", "result_type", "without_none"]


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
    """The type of values that begin as ``default``, which may be what makes them."""
    if isinstance(default, type):
        return default
    if callable(default):
        return result_type(default)
    return type(default)


def make_default(default: Any, what: str) -> Any:
    """A function that makes the first value of a group.

    Raises:
        ConfigurationError: ``default`` is one object that all groups would share and change.
    """
    if callable(default):
        if inspect.iscoroutinefunction(default):
            raise ConfigurationError(f"{what}: default= may not be async")
        return default
    if isinstance(default, (list, dict, set, bytearray)):
        raise ConfigurationError(
            f"{what}: default={default!r} would be one object for all groups; give what makes a new"
            f" one, for example default={type(default).__name__}"
        )
    return lambda: default


def field_type(value_type: Any, field: Any) -> Any:
    """The declared type of a field, or Any."""
    if not isinstance(field, str) or value_type is Any:
        return Any
    try:
        return without_none(get_type_hints(value_type).get(field, Any))
    except (NameError, TypeError, AttributeError):
        return Any
