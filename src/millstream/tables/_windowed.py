"""Windowed tables as programs use them: ``table[key] += 1`` changes every window of the event at hand."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from millstream.clock import Duration, duration_ms, timestamp_ms
from millstream.context import Scope, current
from millstream.errors import ConfigurationError
from millstream.tables._part import DELETED, MISSING, TablePart
from millstream.tables._table import NO_DEFAULT, part_of, require_scope
from millstream.tables._windowed_part import WindowedPart, windowed_part
from millstream.windows import AnyWindows, Session, Window

if TYPE_CHECKING:
    from millstream.clock import Clock
    from millstream.serialization.keys import KeyLayout
    from millstream.state.base import TableStore
    from millstream.tables._table import TableHome
    from millstream.tables._view import View
    from millstream.tables._windowed_part import AlignedPart, KeyedPart

__all__ = ["OnClose", "WindowView", "WindowedTable", "windowed"]

K = TypeVar("K")
V = TypeVar("V")
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

OnClose = Callable[[Any, Window, Any], Awaitable[Any]]
"""``async def closed(key, window, value)``."""

_new = object.__new__


class WindowView(Generic[K, V]):
    """The windows of one key, for the event at hand; what ``table[key]`` gives.

    Operators with assignment (``+=`` and its kind), `apply` and `event_windows` change every window of the
    event; the others read. What is read is the caller's own: changes to it are not kept.
    """

    __slots__ = ("_key", "_table")

    _key: K
    _table: WindowedTable[K, V]

    # changes --------------------------------------------------------------------------------------

    def __iadd__(self, other: Any) -> WindowView[K, V]:
        # The hot path, in one piece: a tumbling table of numbers costs little more than a plain one.
        table = self._table
        scope = current.get(None)
        if scope is None or not scope.open:
            scope = require_scope(f"table {table.name!r}")
        part = scope.part if scope.table is table else part_of(table, scope)
        flat = part.flat
        if flat == 0 or scope.journal is not None:
            part.update(self._key, operator.iadd, other, table.initial, scope)
            return self
        timestamp = scope.timestamp
        stream_time = part.stream_time
        if timestamp > stream_time:
            part.stream_time = stream_time = timestamp
            if timestamp >= part.due_at:
                part.became_due()
        dirty = part.dirty
        if flat == 1:
            start = timestamp - timestamp % part.size_ms
            if start + part.span_ms <= stream_time:
                part.late(start, start + part.span_ms, scope)
                return self
            entry = (start, self._key)
            value = dirty.get(entry, DELETED)
            if value is DELETED:
                value = part.first(entry, table.initial)
            dirty[entry] = value + other
            return self
        key = self._key
        advance = part.advance_ms
        start = (timestamp - part.size_ms) // advance * advance + advance
        if start < 0:
            start = 0
        while start + part.span_ms <= stream_time and start <= timestamp:
            part.late(start, start + part.span_ms, scope)
            start += advance
        while start <= timestamp:
            entry = (start, key)
            value = dirty.get(entry, DELETED)
            if value is DELETED:
                value = part.first(entry, table.initial)
            dirty[entry] = value + other
            start += advance
        return self

    def _change(self, operation: Callable[[Any, Any], Any], other: Any) -> WindowView[K, V]:
        table = self._table
        scope, part = table.enter()
        part.update(self._key, operation, other, table.initial, scope)
        return self

    def __isub__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.isub, other)

    def __imul__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.imul, other)

    def __imatmul__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.imatmul, other)

    def __itruediv__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.itruediv, other)

    def __ifloordiv__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.ifloordiv, other)

    def __imod__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.imod, other)

    def __ipow__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.ipow, other)

    def __ilshift__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.ilshift, other)

    def __irshift__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.irshift, other)

    def __iand__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.iand, other)

    def __ior__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.ior, other)

    def __ixor__(self, other: Any) -> WindowView[K, V]:
        return self._change(operator.ixor, other)

    def apply(self, function: Callable[[V], V]) -> None:
        """Replace the value of every window of the event by what ``function`` makes of it.

        Raises:
            TypeError: ``function`` gave None for a value that can change in place: it has changed it, most
                likely; `event_windows` is for that.
        """

        def operation(value: Any, _: Any) -> Any:
            result = function(value)
            if result is None and value is not None:
                raise TypeError(
                    f"table {self._table.name!r}: the function given to apply() returned None; it has"
                    f" to return the new value. To change values in place, write"
                    f" `for window, value in {self._shown}.event_windows():`"
                )
            return result

        self._change(operation, None)

    def event_windows(self) -> Iterator[tuple[Window, V]]:
        """Every window that takes the event, with its value, which may be changed in place.

        An aligned window's default is kept only if it is changed. Sessions are merged and sliding windows
        are made as for any other change, if values can change in place; else this only reads.
        """
        table = self._table
        scope, part = table.enter()
        return iter(list(part.event_windows(self._key, table.initial, scope)))

    # reads ----------------------------------------------------------------------------------------

    def current(self) -> V:
        """The value of the latest-starting window that holds the event, else the default.

        Raises:
            KeyError: there is neither.
        """
        scope, part = self._table.enter()
        return self._or_default(part.at(self._key, scope.timestamp, scope), part)

    def now(self) -> V:
        """The value of the latest-starting window that holds the wall clock's time, else the default.

        Raises:
            KeyError: there is neither.
        """
        scope, part = self._table.enter()
        return self._or_default(part.at(self._key, part.clock.now(), scope), part)

    def at(self, time: datetime | float) -> V:
        """The value of the latest-starting window that holds ``time``, else the default.

        Args:
            time: an aware datetime, or ms since the epoch.

        Raises:
            KeyError: there is neither.
        """
        scope, part = self._table.enter()
        return self._or_default(part.at(self._key, timestamp_ms(time), scope), part)

    def delta(self, by: Duration) -> V:
        """The value of the latest-starting window that holds the time ``by`` before the event.

        Raises:
            KeyError: there is neither that nor a default.
        """
        scope, part = self._table.enter()
        moment = scope.timestamp - duration_ms(by, what="delta")
        return self._or_default(part.at(self._key, moment, scope), part)

    def windows(
        self,
        *,
        start: datetime | float | None = None,
        end: datetime | float | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[Window, V]]:
        """The key's windows that have a value, in order of time, with ``start <= window.start < end``.

        Aligned windows are looked up one by one, over all of the retention unless ``start`` says less.

        Args:
            reverse: the latest first.
        """
        scope, part = self._table.enter()
        found = list(part.of_key(self._key, _bound(start), _bound(end), scope))
        return reversed(found) if reverse else iter(found)

    def _or_default(self, value: Any, part: WindowedPart) -> V:
        return cast("V", self._table.initial(self._key, part) if value is MISSING else value)

    # what a view is not ---------------------------------------------------------------------------

    @property
    def _shown(self) -> str:
        return f"{self._table.name}[{self._key!r}]"

    def __repr__(self) -> str:
        return f"<windows of {self._shown}>"

    def _is_no_value(self, *_: object) -> NoReturn:
        raise TypeError(
            f"{self._shown} stands for several windows, and is no value itself."
            f" Write {self._shown}.current() for the value of the event's window"
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("__"):
                raise AttributeError(name)
            raise AttributeError(
                f"{self._shown} stands for several windows, and has no {name!r}. Read"
                f" {self._shown}.current().{name}; to change values in place, write"
                f" `for window, value in {self._shown}.event_windows():`"
            )

        __hash__ = None
        __bool__ = __int__ = __float__ = __complex__ = __index__ = _is_no_value
        __len__ = __iter__ = __contains__ = __getitem__ = __setitem__ = __delitem__ = _is_no_value
        __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _is_no_value
        __neg__ = __pos__ = __abs__ = __invert__ = __round__ = __divmod__ = __rdivmod__ = (
            _is_no_value
        )
        __add__ = __sub__ = __mul__ = __matmul__ = __truediv__ = __floordiv__ = __mod__ = (
            _is_no_value
        )
        __radd__ = __rsub__ = __rmul__ = __rmatmul__ = __rtruediv__ = __rfloordiv__ = _is_no_value
        __rmod__ = __pow__ = __rpow__ = __lshift__ = __rlshift__ = __rshift__ = _is_no_value
        __rrshift__ = __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = _is_no_value


class WindowedTable(Generic[K, V]):
    """A table that keeps a value for each key and window. Everything here is about the shard at hand.

    Event time is the table's own: the highest that any use of the table by an event has brought. A window takes no
    more updates once event time has passed its end + grace; such updates are dropped and counted
    (`late_records`). It can be read until its retention is over.

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
        windows: AnyWindows,
        default: Any = NO_DEFAULT,
        merge: Callable[[Any, Any], Any] | None = None,
        value_type: Any = None,
        help: str = "",
        home: TableHome | None = None,
    ) -> None:
        """
        Args:
            default: value of a window that has none, or a function that makes it.
            merge: for sessions: makes one value of two that a record joins, the earlier one first.
            value_type: the declared type of values, from which ``merge`` may follow.

        Raises:
            ConfigurationError: ``merge`` is missing where it does not follow from the values' type, or given
                for windows that do not merge.
        """
        self.name = name
        self.layout = layout
        self.declared = windows
        self.help = help
        self.home = home
        self._factory: Callable[[], Any] | None = default if callable(default) else None
        self._default = NO_DEFAULT if callable(default) else default
        self.merge = merge
        self.closing: list[OnClose] = []
        """Functions to call for each final window, see `on_close`."""
        if isinstance(windows, Session):
            if merge is None:
                self.merge = self._natural_merge(value_type)
        elif merge is not None:
            raise ConfigurationError(
                f"table {name!r}: merge= is for sessions; {windows} never merge"
            )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.declared}>"

    def view(self, stale: Duration | None = None) -> View[K, V]:
        """The table as everything outside of events reads it: committed data, any shard, any worker.

        Args:
            stale: be content with a copy that is behind by no more than this.
        """
        if self.home is None:
            raise ConfigurationError(f"table {self.name!r} was not declared with app.table()")
        return cast("View[K, V]", self.home.view(self.name, stale))

    def _natural_merge(self, value_type: Any) -> Callable[[Any, Any], Any]:
        sample = self._default
        if self._factory is not None:
            sample = self._factory()
        kind = getattr(value_type, "__origin__", value_type)
        if sample is not NO_DEFAULT and sample is not None:
            kind = type(sample)
        if isinstance(kind, type) and issubclass(kind, _MERGEABLE):
            return merge_values
        raise ConfigurationError(
            f"table {self.name!r}: a record may join two sessions, and how values of type"
            f" {getattr(kind, '__name__', kind)} become one does not follow from the type."
            f" Say it with merge=lambda earlier, later: ..., of session() for a table, of aggregate() for a"
            f" stream"
        )

    # uses -----------------------------------------------------------------------------------------

    def enter(self) -> tuple[Scope, WindowedPart]:
        """The event at hand, and the shard's part of the table."""
        scope = require_scope(f"table {self.name!r}")
        return scope, part_of(self, scope)

    def initial(self, key: Any, part: TablePart) -> Any:
        """A value for a window that has none.

        Raises:
            KeyError: the table has no default.
        """
        if self._factory is not None:
            return self._factory()
        if self._default is NO_DEFAULT:
            raise KeyError(key)
        if part.mutable:
            return part.loads(part.dumps(self._default))
        return self._default

    def __getitem__(self, key: K) -> WindowView[K, V]:
        view: WindowView[K, V] = _new(WindowView)
        view._table = self
        view._key = key
        return view

    def __setitem__(self, key: K, value: WindowView[K, V]) -> None:
        """Take the view back that an operator with assignment has changed; nothing else."""
        if (
            value.__class__ is WindowView
            and value._table is self
            and (value._key is key or value._key == key)
        ):
            return
        shown = f"{self.name}[{key!r}]"
        raise TypeError(
            f"{shown} stands for several windows, so nothing can be assigned to it. Write {shown} += ...,"
            f" or {shown}.apply(lambda value: ...) to give each window of the event a new value"
        )

    def __delitem__(self, key: K) -> None:
        """Delete the windows of the event, as far as there are any and they still take records."""
        scope, part = self.enter()
        part.discard(key, scope)

    def __contains__(self, key: object) -> bool:
        """Whether there is a value in the latest-starting window of the event."""
        scope, part = self.enter()
        return part.at(key, scope.timestamp, scope) is not MISSING

    def __iter__(self) -> Iterator[tuple[K, Window]]:
        return self.keys()

    def __len__(self) -> int:
        """Windows of all keys in this shard; walks over all of them."""
        return sum(1 for _ in self.keys())

    def __bool__(self) -> bool:
        return any(True for _ in self.keys())

    def __reversed__(self) -> Iterator[tuple[K, Window]]:
        return self.keys(reverse=True)

    def keys(
        self,
        *,
        start: datetime | float | None = None,
        end: datetime | float | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[K, Window]]:
        """Keys and windows of this shard, with ``start <= window.start < end``; ordered as `items`."""
        scope, part = self.enter()
        found = part.of_shard(_bound(start), _bound(end), scope, reverse=reverse)
        return ((key, window) for key, window, _ in found)

    def items(
        self,
        *,
        start: datetime | float | None = None,
        end: datetime | float | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[tuple[K, Window], V]]:
        """``(key, window), value`` of this shard, with ``start <= window.start < end``.

        Aligned windows come in order of time, then key; sliding windows and sessions in order of key, then
        time. Changes to the values are not kept.

        Args:
            reverse: from the last one to the first one.
        """
        scope, part = self.enter()
        for key, window, entry in part.of_shard(_bound(start), _bound(end), scope, reverse=reverse):
            value = part.read(entry, scope)
            if value is not MISSING:
                yield (key, window), value

    def values(
        self,
        *,
        start: datetime | float | None = None,
        end: datetime | float | None = None,
        reverse: bool = False,
    ) -> Iterator[V]:
        """Values of this shard, as `items` has them."""
        return (value for _, value in self.items(start=start, end=end, reverse=reverse))

    @property
    def late_records(self) -> int:
        """Updates that this shard has dropped since it started, because their window took no more.

        Each record counts once for each window that refused it.
        """
        return self.enter()[1].late_records

    def on_close(self, function: F) -> F:
        """Call ``async def function(key, window, value)`` once for each window with data that is final.

        In order of window end, start (sessions differ in it), then key, each call as an event of its own, inside the epoch: what it writes
        and sends is committed together with the fact that the window was closed. Its event time is the
        window's end.
        """
        self.closing.append(function)
        return function

    # for the worker -------------------------------------------------------------------------------

    async def close(self, key: Any, window: Window, value: Any) -> None:
        """Call everything that `on_close` was given."""
        for function in self.closing:
            await function(key, window, value)

    def make_part(
        self,
        store: TableStore,
        check: Callable[[Any], None],
        *,
        dumps: Callable[[Any], bytes],
        loads: Callable[[bytes], Any],
        mutable: bool,
        clock: Clock,
        stamped: bool = False,
        type_name: str = "value",
        cache_size: int = 32_768,
    ) -> AlignedPart | KeyedPart:
        """The table in one shard."""
        return windowed_part(
            self.name,
            windows=self.declared,
            store=store,
            layout=self.layout,
            dumps=dumps,
            loads=loads,
            mutable=mutable,
            check=check,
            clock=clock,
            merge=self.merge,
            closes=bool(self.closing),
            stamped=stamped,
            type_name=type_name,
            cache_size=cache_size,
        )


def windowed(
    name: str,
    *,
    layout: KeyLayout[K],
    windows: AnyWindows,
    default: Any = None,
    merge: Callable[[V, V], V] | None = None,
    value_type: type[V] | Any = None,
    help: str = "",
    home: TableHome | None = None,
    table_class: type[WindowedTable[Any, Any]] | None = None,
) -> WindowedTable[K, V]:
    """A windowed table; see `WindowedTable`. A ``default`` of None is none.

    Raises:
        ConfigurationError: ``merge`` is missing, or has no use.
    """
    return (table_class or WindowedTable)(
        name,
        layout=layout,
        windows=windows,
        default=NO_DEFAULT if default is None else default,
        merge=merge,
        value_type=value_type,
        help=help,
        home=home,
    )


_NUMBERS = (int, float, complex, Decimal, Fraction, timedelta)
_SEQUENCES = (str, bytes, list, tuple)
_MERGEABLE = (*_NUMBERS, *_SEQUENCES, set, frozenset, dict)


def merge_values(earlier: Any, later: Any) -> Any:
    """One value of two sessions' values; ``earlier`` may be used up.

    Numbers are added, sets united, lists and strings put one after the other, dicts merged key by key with
    these rules (a Counter's counts are added).

    Raises:
        TypeError: values inside a dict are of other types.
    """
    if isinstance(earlier, Counter):
        earlier.update(later)
        return earlier
    if isinstance(earlier, dict):
        for key, value in later.items():
            earlier[key] = merge_values(earlier[key], value) if key in earlier else value
        return earlier
    if isinstance(earlier, (set, frozenset)):
        return earlier | later
    if isinstance(earlier, (*_NUMBERS, *_SEQUENCES)):
        return earlier + later
    raise TypeError(
        f"two sessions are joined, and values of type {type(earlier).__name__} do not merge by"
        f" themselves: say how with merge=lambda earlier, later: ..., of session() for a table, of"
        f" aggregate() for a stream"
    )


def _bound(time: datetime | float | None) -> int | None:
    return None if time is None else timestamp_ms(time)
