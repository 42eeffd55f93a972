"""The web pages of an app, and what it has mounted beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pages"]

F = TypeVar("F", bound="Callable[..., Any]")


class Pages(dict[str, "Callable[..., Any]"]):
    """What `App.page` was given, by path."""

    def declare(self, path: str, function: F) -> F:
        """Take a page.

        Raises:
            ConfigurationError: the path is none, or taken.
        """
        if not path.startswith("/"):
            raise ConfigurationError(f"page {path!r}: a path begins with a slash: {'/' + path!r}")
        if path in self:
            raise ConfigurationError(f"page {path!r} is declared twice")
        self[path] = function
        return function
