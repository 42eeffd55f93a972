"""Tables that agents read and do not write: a topic or a stream is their truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, cast

from typing_extensions import TypeVar

from millstream import tables
from millstream.context import current
from millstream.errors import ConfigurationError
from millstream.streams._tables import Table, WindowedTable
from millstream.tables import MISSING, require_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["DerivedTable", "DerivedWindowedTable"]

K = TypeVar("K")
V = TypeVar("V")


class DerivedTable(Table[K, V]):
    """A table that agents read and do not write: a topic or a stream is its truth.

    Values that are read are the caller's own: a change in place is not kept.
    """

    def __getitem__(self, key: K) -> V:
        scope = current.get(None)
        if scope is None or not scope.open:
            scope = require_scope(f"table {self.name!r}")
        part = self._part(scope)
        value = part.look_up(key, scope)
        if value is MISSING:
            return self._missing(key, part)
        return cast("V", part.value_of(value))

    def get(self, key: K, default: Any = None, /) -> Any:
        """The value, or ``default`` where there is none; the table's own default is not used."""
        scope = require_scope(f"table {self.name!r}")
        part = self._part(scope)
        value = part.look_up(key, scope)
        return default if value is MISSING else part.value_of(value)

    def items(  # type: ignore[override]
        self,
        *,
        start: K | None = None,
        end: K | None = None,
        prefix: Any = None,
        reverse: bool = False,
    ) -> Iterator[tuple[K, V]]:
        """Entries of this shard in key order, with ``start <= key < end``, or below ``prefix``."""
        part = self._part(require_scope(f"table {self.name!r}"))
        found = super().items(start=start, end=end, prefix=prefix, reverse=reverse)
        return ((key, part.value_of(part.own(key, value))) for key, value in found)

    def __setitem__(self, key: K, value: V) -> None:
        if self.read_only:
            raise ConfigurationError(
                f"table {self.name!r} is read from a topic: send to that topic instead of writing"
            )
        raise _made_by_a_stream(self.name)

    def __delitem__(self, key: K) -> None:
        self[key] = cast("V", None)  # raises

    def _missing(self, key: K, part: tables.TablePart) -> V:
        """A default that is kept nowhere: agents do not write here."""
        if self._factory is not None:
            return cast("V", self._factory())
        if self._default is not tables.NO_DEFAULT:
            made = part.loads(part.dumps(self._default)) if part.mutable else self._default
            return cast("V", made)
        raise KeyError(key)


def _made_by_a_stream(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"table {name!r} is made by a stream: send to the stream's topics instead of writing"
    )


class DerivedWindows(tables.WindowView[K, V]):
    """The windows of one key, to be read."""

    __slots__ = ()

    def _change(self, operation: Callable[[Any, Any], Any], other: Any) -> NoReturn:
        raise _made_by_a_stream(self._table.name)

    def __iadd__(self, other: Any) -> NoReturn:
        raise _made_by_a_stream(self._table.name)

    def event_windows(self) -> NoReturn:
        """Raise: these are windows to change; `windows` reads."""
        raise _made_by_a_stream(self._table.name)


class DerivedWindowedTable(WindowedTable[K, V]):
    """A windowed table that agents read and do not write: a stream is its truth.

    Its event time is that of the stream's records: to read it brings none.
    """

    def __getitem__(self, key: K) -> DerivedWindows[K, V]:
        view: DerivedWindows[K, V] = object.__new__(DerivedWindows)
        view._table = self
        view._key = key
        return view

    def __setitem__(self, key: K, value: Any) -> NoReturn:
        raise _made_by_a_stream(self.name)

    def __delitem__(self, key: K) -> NoReturn:
        raise _made_by_a_stream(self.name)
