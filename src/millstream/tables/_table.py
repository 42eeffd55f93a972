"""Tables as programs use them: mappings over the shard of the event at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload

from millstream import windows
from millstream.context import Scope, current
from millstream.errors import ConfigurationError, InternalError, OutsideEventError
from millstream.tables._part import DELETED, MISSING, TablePart

if TYPE_CHECKING:
    from millstream.clock import Duration
    from millstream.serialization.keys import KeyLayout
    from millstream.tables._view import View
    from millstream.tables._windowed import WindowedTable
    from millstream.windows import AnyWindows, CalendarUnit

__all__ = ["SetTable", "Table", "TableHome", "require_scope"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")

NO_DEFAULT: Any = MISSING


def require_scope(what: str) -> Scope:
    """The event at hand.

    Raises:
        OutsideEventError: there is none; the message begins with ``what``.
    """
    scope = current.get(None)
    if scope is None:
        raise OutsideEventError(
            what,
            "Tables are used inside agents, and inside timers with scope='shard'. Elsewhere read with"
            " table.view(), and send to a topic whose agent writes.",
        )
    if not scope.open:
        raise OutsideEventError(
            what,
            "A task that an event has started may use tables and send only until that event is"
            " finished: await it in the agent.",
        )
    return scope


class TableHome(Protocol):
    """Where a table was declared: the app."""

    def windowed(
        self,
        table: Table[Any, Any],
        windows: AnyWindows,
        *,
        merge: Any = None,
        idle_timeout: Duration | None = None,
    ) -> Any: ...

    def view(self, name: str, stale: Duration | None) -> Any: ...


class Table(MutableMapping[K, V], Generic[K, V]):
    """A partitioned, changelogged map. Everything here is about the shard of the event at hand.

    A value that is changed in place is written back without being assigned. A default made by a factory is
    kept only if it was changed. Reads see every write of this shard, committed or not.

    Raises (any use):
        OutsideEventError: no event is in progress.
        WrongShardError: the key belongs to another shard.
        TypeError: the key is not of the declared type.
    """

    def __init__(
        self,
        name: str,
        *,
        layout: KeyLayout[Any],
        default: Any = NO_DEFAULT,
        read_only: bool = False,
        help: str = "",
        home: TableHome | None = None,
    ) -> None:
        self.name = name
        self.layout = layout
        self.help = help
        self.read_only = read_only
        self.home = home
        self._factory: Callable[[], Any] | None = default if callable(default) else None
        self._default = NO_DEFAULT if callable(default) else default

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def view(self, stale: Duration | None = None) -> View[K, V]:
        """The table as everything outside of events reads it: committed data, any shard, any worker.

        Args:
            stale: be content with a copy that is behind by no more than this.
        """
        return cast("View[K, V]", self._home().view(self.name, stale))

    def _home(self) -> TableHome:
        if self.home is None:
            raise ConfigurationError(f"table {self.name!r} was not declared with app.table()")
        return self.home

    def tumbling(
        self,
        size: Duration,
        *,
        grace: Duration = 0,
        retention: Duration | None = None,
        offset: Duration = 0,
        idle_timeout: Duration | None = None,
    ) -> WindowedTable[K, V]:
        """Make it a table of windows ``[start, start + size)`` side by side.

        Args:
            grace: how long after its end a window takes late records.
            retention: how long after its start a window can be read; size + grace where left out, so that it is
                gone once it is final. Give more to windows that are to be queried.
            offset: moves the starts, which are multiples of ``size``.
            idle_timeout: after so long without records, event time moves on by the time that has passed, and
                again after as long; so the last windows close. Where left out, as the topics say.
        """
        declared = windows.tumbling(size, grace=grace, retention=retention, offset=offset)
        return self._windowed(declared, idle_timeout)

    def hopping(
        self,
        size: Duration,
        advance: Duration,
        *,
        grace: Duration = 0,
        retention: Duration | None = None,
        offset: Duration = 0,
        idle_timeout: Duration | None = None,
    ) -> WindowedTable[K, V]:
        """Make it a table of windows of ``size``, one beginning every ``advance``."""
        declared = windows.hopping(size, advance, grace=grace, retention=retention, offset=offset)
        return self._windowed(declared, idle_timeout)

    def sliding(
        self,
        width: Duration,
        *,
        grace: Duration = 0,
        retention: Duration | None = None,
        idle_timeout: Duration | None = None,
    ) -> WindowedTable[K, V]:
        """Make it a table of windows that move with the records: both ends inclusive."""
        declared = windows.sliding(width, grace=grace, retention=retention)
        return self._windowed(declared, idle_timeout)

    def session(
        self,
        gap: Duration,
        *,
        grace: Duration = 0,
        retention: Duration | None = None,
        merge: Callable[[V, V], V] | None = None,
        idle_timeout: Duration | None = None,
    ) -> WindowedTable[K, V]:
        """Make it a table of sessions: records no further than ``gap`` apart belong together.

        Args:
            merge: what two sessions make together when a record joins them; numbers are added, sets united,
                lists joined, where it is left out.
        """
        declared = windows.session(gap, grace=grace, retention=retention)
        return self._windowed(declared, idle_timeout, merge)

    def calendar(
        self,
        unit: CalendarUnit,
        *,
        timezone: str,
        grace: Duration = 0,
        retention: Duration | None = None,
        idle_timeout: Duration | None = None,
    ) -> WindowedTable[K, V]:
        """Make it a table of hours, days, weeks, months, quarters or years in a time zone."""
        declared = windows.calendar(unit, timezone=timezone, grace=grace, retention=retention)
        return self._windowed(declared, idle_timeout)

    def _windowed(
        self,
        windows: AnyWindows,
        idle_timeout: Duration | None,
        merge: Callable[[V, V], V] | None = None,
    ) -> WindowedTable[K, V]:
        made = self._home().windowed(self, windows, merge=merge, idle_timeout=idle_timeout)
        return cast("WindowedTable[K, V]", made)

    def _part(self, scope: Scope) -> TablePart:
        part: TablePart = part_of(self, scope)
        return part

    def __getitem__(self, key: K) -> V:
        scope = current.get(None)
        if scope is None or not scope.open:
            scope = require_scope(f"table {self.name!r}")
        part = scope.part if scope.table is self else part_of(self, scope)
        if scope.journal is None:
            # not by KeyError: of many keys, most are not dirty, and an exception costs ten times as much
            value = part.dirty.get(key, MISSING)
            if value is MISSING:
                value = part.load(key)
            if value is MISSING or value is DELETED:
                return self._missing(key, part)
        else:
            value = part.get(key, scope)
            if value is MISSING:
                return self._missing(key, part)
        return value  # type: ignore[no-any-return]

    def _missing(self, key: K, part: TablePart) -> V:
        if self._factory is not None:
            value = self._factory()
            if part.mutable:
                part.keep_default(key, value)
            return cast("V", value)
        if self._default is not NO_DEFAULT:
            if part.mutable:
                value = part.loads(part.dumps(self._default))
                part.keep_default(key, value)
                return cast("V", value)
            return cast("V", self._default)
        raise KeyError(key)

    def __setitem__(self, key: K, value: V) -> None:
        scope = current.get(None)
        if scope is None or not scope.open:
            scope = require_scope(f"table {self.name!r}")
        part = scope.part if scope.table is self else part_of(self, scope)
        if self.read_only:
            raise ConfigurationError(
                f"table {self.name!r} is read from a topic: send to that topic instead of writing"
            )
        if scope.journal is None and key in part.dirty and not part.fresh:
            part.dirty[key] = value
        else:
            part.set(key, value, scope)

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        scope = require_scope(f"table {self.name!r}")
        if self.read_only:
            self[key] = cast("V", None)  # raises
        self._part(scope).delete(key, scope)

    def __contains__(self, key: object) -> bool:
        scope = require_scope(f"table {self.name!r}")
        return self._part(scope).contains(key, scope)

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V | D, /) -> V | D: ...
    def get(self, key: K, default: Any = None, /) -> Any:
        """The value, or ``default`` where there is none; the table's own default is not used."""
        scope = require_scope(f"table {self.name!r}")
        value = self._part(scope).get(key, scope)
        return default if value is MISSING else value

    def setdefault(self, key: K, default: V = None, /) -> V:  # type: ignore[assignment]
        """The value; where there is none, ``default`` becomes it."""
        value = self.get(key, NO_DEFAULT)
        if value is NO_DEFAULT:
            self[key] = value = default
        return cast("V", value)

    def pop(self, key: K, default: Any = NO_DEFAULT, /) -> Any:
        """Remove the key and return its value, or ``default`` where there is none."""
        value = self.get(key, NO_DEFAULT)
        if value is NO_DEFAULT:
            if default is NO_DEFAULT:
                raise KeyError(key)
            return default
        del self[key]
        return value

    def __iter__(self) -> Iterator[K]:
        return self._part(require_scope(f"table {self.name!r}")).keys(b"\x01", None)

    def __len__(self) -> int:
        """Keys in this shard; walks over all of them."""
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def clear(self) -> None:
        """Remove every key of this shard."""
        for key in list(self):
            del self[key]

    def __reversed__(self) -> Iterator[K]:
        return self.keys(reverse=True)

    def keys(  # type: ignore[override]
        self,
        *,
        start: K | None = None,
        end: K | None = None,
        prefix: Any = None,
        reverse: bool = False,
    ) -> Iterator[K]:
        """Keys of this shard in key order, with ``start <= key < end``, or below ``prefix``.

        Args:
            prefix: text, bytes, or the first elements of tuples.
            reverse: from the last one to the first one, which is as quick.

        Raises:
            TypeError: there is a prefix and a bound.
        """
        scope = require_scope(f"table {self.name!r}")
        return self._part(scope).keys(*self._bounds(start, end, prefix), reverse=reverse)

    def values(  # type: ignore[override]
        self,
        *,
        start: K | None = None,
        end: K | None = None,
        prefix: Any = None,
        reverse: bool = False,
    ) -> Iterator[V]:
        """Values of this shard in the order of their keys; bounds as for `keys`."""
        found = self.items(start=start, end=end, prefix=prefix, reverse=reverse)
        return (value for _, value in found)

    def items(  # type: ignore[override]
        self,
        *,
        start: K | None = None,
        end: K | None = None,
        prefix: Any = None,
        reverse: bool = False,
    ) -> Iterator[tuple[K, V]]:
        """Entries of this shard in key order; bounds as for `keys`."""
        scope = require_scope(f"table {self.name!r}")
        return self._part(scope).items(*self._bounds(start, end, prefix), scope, reverse=reverse)

    def _bounds(self, start: K | None, end: K | None, prefix: Any) -> tuple[bytes, bytes | None]:
        if prefix is not None:
            if start is not None or end is not None:
                raise TypeError(f"table {self.name!r}: give prefix, or start and end, not both")
            return self.layout.prefix(prefix)
        return (
            b"\x01" if start is None else self.layout.encode(start),
            None if end is None else self.layout.encode(end),
        )


class SetTable(Table[K, set[V]]):
    """A table of sets: ``t[key]`` is a set that may be changed in place; an empty one is deleted."""

    def __init__(
        self,
        name: str,
        *,
        layout: KeyLayout[Any],
        default: Any = set,
        read_only: bool = False,
        help: str = "",
        home: TableHome | None = None,
    ) -> None:
        super().__init__(
            name, layout=layout, default=default, read_only=read_only, help=help, home=home
        )

    def add(self, key: K, member: V) -> None:
        """Put ``member`` into the key's set."""
        self[key].add(member)

    def discard(self, key: K, member: V) -> None:
        """Take ``member`` out of the key's set, if it is there; the last one takes the key along."""
        members = self[key]
        members.discard(member)
        if not members and key in self:
            del self[key]


def part_of(table: Any, scope: Scope) -> Any:
    """The part of a table in the shard of the event at hand, which is then the scope's last one.

    Raises:
        ConfigurationError: the shard has none.
    """
    try:
        part = scope.parts[table.name]
    except KeyError:
        raise no_part(table.name, scope) from None
    scope.table, scope.part = table, part
    return part


def no_part(name: str, scope: Scope) -> Exception:
    """The error for a table that is no part of the shard of the event at hand."""
    shard = scope.shard
    count = getattr(shard, "count", None)
    owner = getattr(shard, "table_counts", {}).get(name)
    if count is None or owner is None:
        return InternalError(f"table {name!r} is not part of the running shard")
    return ConfigurationError(
        f"table {name!r} has {owner} partitions, and {scope.agent} reads topics with {count}: it cannot"
        f" use the table. Give both one count (partitions=), or group the stream by the table's key:"
        f" app.stream(...).group_by(...)"
    )
