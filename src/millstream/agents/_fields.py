"""Fields of values, by name."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["field_getter"]


def field_getter(field: str | Callable[[Any], Any], value_type: Any = Any) -> Callable[[Any], Any]:
    """A function that reads a field from an object or a mapping; a function is returned as it is.

    Raises:
        ConfigurationError: neither a name nor a function, or values are of a type that says its fields, and this is
            none of them.
    """
    if callable(field):
        return field
    if not isinstance(field, str):
        raise ConfigurationError(
            f"{field!r} is neither the name of a field nor a function of the value"
        )
    attribute = attrgetter(field)
    fields = _fields_of(value_type)
    if fields is not None:
        _check_field(field.partition(".")[0], value_type, fields)
        return attribute

    def get(value: Any) -> Any:
        if isinstance(value, dict):
            return value[field]
        return attribute(value)

    return get


def _fields_of(value_type: Any) -> tuple[str, ...] | None:
    """The fields of a Struct or a dataclass, or None for any other type."""
    fields = getattr(value_type, "__struct_fields__", None)
    if fields is None:
        fields = getattr(value_type, "__dataclass_fields__", None)
    return None if fields is None else tuple(fields)


def _check_field(name: str, value_type: Any, fields: tuple[str, ...]) -> None:
    if name in fields or hasattr(value_type, name):  # a property is as good as a field
        return
    if hasattr(value_type, "__getattr__") or hasattr(value_type, "__post_init__"):
        return  # what else it has is seen with the first value
    from difflib import get_close_matches

    close = get_close_matches(name, fields, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else f": it has {', '.join(fields)}"
    raise ConfigurationError(f"{value_type.__name__} has no field {name!r}{meant}")
