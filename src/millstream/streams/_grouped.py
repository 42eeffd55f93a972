"""Groups of a stream's values, and what can be made of them: aggregates, windowed or not."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, overload

from typing_extensions import TypeVar

from millstream import windows as kinds
from millstream.agents import field_getter
from millstream.errors import ConfigurationError
from millstream.streams._aggregate import Aggregate, Fold, WindowedAggregate
from millstream.streams._operator import is_async
from millstream.streams._stream import DeclaredStream, field_type
from millstream.streams._suppress import Suppress, emitted_every, suppressed
from millstream.streams._table_ops import MapTable
from millstream.streams._types import default_type, make_default, result_type
from millstream.tables import TimedPart

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from millstream.clock import Duration
    from millstream.streams._home import StreamHome
    from millstream.streams._operator import Operator
    from millstream.streams._tables import Table, WindowedTable
    from millstream.windows import AnyWindows, CalendarUnit

__all__ = [
    "CogroupedStream",
    "Emit",
    "GroupedStream",
    "WindowedCogroup",
    "WindowedStream",
    "check_count",
    "check_emit",
    "hand_on",
    "mean_of",
    "number_of",
    "with_number",
]

V = TypeVar("V")
A = TypeVar("A")
W = TypeVar("W")
N = TypeVar("N", default=Any)
K = TypeVar("K", default=Any)

Emit: TypeAlias = "Literal['update', 'every', 'final'] | Suppress"
"""When results come out: with each update, all of them even where a commit could leave some out (``every``), once
for each window when it is final, or as `Suppress` says."""


class _Shape:
    """What an aggregate is to be, before it is declared: one fold for each stream that goes in."""

    def __init__(
        self,
        streams: Sequence[DeclaredStream[Any, Any]],
        folds: Sequence[Fold],
        what: str,
        *,
        value: Any,
        shown: Callable[[Any], Any] | None = None,
        merge: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        self.streams = streams
        self.folds = folds
        self.what = what
        self.value = value
        self.shown = shown
        self.merge = merge

    @property
    def home(self) -> StreamHome:
        return self.streams[0].home

    def declare(
        self, name: str | None, emit: Emit, windows: AnyWindows | None, emit_every: Duration | None
    ) -> Any:
        """Declare operator and table; returns the table."""
        home = self.home
        parents = [stream.by_key().operator for stream in self.streams]
        key_type = parents[0].key_type
        stem = parents[0].name.removeprefix(f"{home.id}-").removesuffix("-repartition")
        name = name or f"{stem}-{self.what}"
        final = emit == "final"
        check_emit(name, emit, windows)
        operator: Operator
        if windows is None:
            operator = Aggregate(parents, self.folds, name=name, value_type=self.value)
        else:
            operator = WindowedAggregate(
                parents,
                self.folds,
                name=name,
                value_type=self.value,
                windows=windows,
                clock=lambda: home.clock,
                final=final,
                merge=self.merge if isinstance(windows, kinds.Session) else None,
            )
        operator.key_type = key_type
        home.plan.add(operator)
        table = home.kept_table(
            name,
            key=key_type,
            value=self.value,
            like=parents[0].topics[0],
            operator=operator,
            windows=windows,
            merge=self.merge if isinstance(windows, kinds.Session) else None,
            shown=self.shown,
            clocks=operator.stores[1:],
        )
        if isinstance(operator, WindowedAggregate) and final:
            home.final_hook(name, operator.close)
        for time in operator.stores[1:]:
            home.kept_table(
                time,
                key=str,
                value=bytes,
                codec="raw",
                like=parents[0].topics[0],
                make_part=make_time_part,
                stamped=False,
                checked=False,
                help="Event time.",
            )
        hand_on(home, operator, self.shown, emit=emit, windows=windows, emit_every=emit_every)
        return table


def check_emit(name: str, emit: Emit, windows: AnyWindows | None) -> None:
    """See that a table can put its results out like that.

    Raises:
        ConfigurationError: it cannot.
    """
    if emit == "final" and windows is None:
        raise ConfigurationError(
            f"{name}: emit='final' goes with windows: without them no value is ever final"
        )
    if not (isinstance(emit, Suppress) or emit in ("update", "every", "final")):
        raise ConfigurationError(
            f"{name}: emit={emit!r} is none of update, every, final, or an ms.Suppress(...)"
        )


def hand_on(
    home: StreamHome,
    operator: Operator,
    shown: Callable[[Any], Any] | None,
    *,
    emit: Emit,
    windows: AnyWindows | None = None,
    emit_every: Duration | None = None,
    value_type: Any = None,
) -> None:
    """Declare what becomes of the changes of an aggregate's table.

    Args:
        shown: makes what programs see of what is kept.
        value_type: of that; read from ``shown`` where it is left out.
    """
    name, flow = operator.name, operator
    if shown is not None:
        value_type = result_type(shown) if value_type is None else value_type
        flow = home.plan.add(MapTable(flow, shown, name=name, value_type=value_type))
    if isinstance(emit, Suppress):
        flow = suppressed(home, flow, emit, f"{name}-suppress", windows)
    if emit_every is not None:
        flow = emitted_every(home, flow, emit_every, f"{name}-emit")
    home.hand_on(name, flow)


def make_time_part(name: str, **arguments: Any) -> TimedPart:
    """A table that keeps nothing but event time."""
    return TimedPart(name, **arguments)


def _count(stream: DeclaredStream[Any, Any]) -> _Shape:
    fold = Fold(lambda: 0, lambda count, _: count + 1)
    return _Shape([stream], [fold], "count", value=int, merge=lambda a, b: a + b)


def number_of(
    value_type: Any, of: str | Callable[[Any], Any] | None
) -> tuple[Callable[[Any], Any], Any]:
    """What reads a number from a value, and the number's type."""
    if of is None:
        return lambda value: value, value_type
    found = field_type(value_type, of) if isinstance(of, str) else result_type(of)
    return field_getter(of, value_type), found


def with_number(
    get: Callable[[Any], Any], add: Callable[[Any, Any], Any]
) -> Callable[[Any, Any], Any]:
    """A fold over what is read from each value; async where the reading is."""
    if not is_async(get):
        return lambda so_far, value: add(so_far, get(value))

    async def later(so_far: Any, value: Any) -> Any:
        return add(so_far, await get(value))

    return later


def _sum(stream: DeclaredStream[Any, Any], of: Any) -> _Shape:
    get, value_type = number_of(stream.operator.value_type, of)
    fold = Fold(lambda: 0, with_number(get, lambda total, number: total + number))
    return _Shape([stream], [fold], "sum", value=value_type, merge=lambda a, b: a + b)


def _least(stream: DeclaredStream[Any, Any], of: Any, what: str) -> _Shape:
    get, value_type = number_of(stream.operator.value_type, of)
    choose: Callable[..., Any] = min if what == "min" else max

    def add(found: Any, one: Any) -> Any:
        return one if found is None else choose(found, one)

    return _Shape(
        [stream], [Fold(lambda: None, with_number(get, add))], what, value=value_type, merge=choose
    )


def _mean(stream: DeclaredStream[Any, Any], of: Any) -> _Shape:
    get, _ = number_of(stream.operator.value_type, of)
    add = with_number(get, lambda so_far, number: (so_far[0] + number, so_far[1] + 1))
    fold = Fold(lambda: (0.0, 0), add)
    return _Shape(
        [stream],
        [fold],
        "mean",
        value=tuple[float, int],
        shown=mean_of,
        merge=lambda a, b: (a[0] + b[0], a[1] + b[1]),
    )


def mean_of(so_far: tuple[float, int]) -> float:
    """The mean, from a sum and a count."""
    return so_far[0] / so_far[1]


def check_count(count: int) -> None:
    """See that so many of a group's values can be the greatest.

    Raises:
        ConfigurationError: they cannot.
    """
    if count < 1:
        raise ConfigurationError(f"top_k: {count} is not above 0")


def _top_k(stream: DeclaredStream[Any, Any], count: int, by: Any) -> _Shape:
    check_count(count)
    get, _ = number_of(stream.operator.value_type, by)

    def best(values: list[Any], numbers: list[Any]) -> list[Any]:
        order = heapq.nlargest(count, range(len(values)), key=numbers.__getitem__)
        return [values[at] for at in order]

    def among(*lists: list[Any]) -> list[Any]:
        values = [value for some in lists for value in some]
        return best(values, [get(value) for value in values])

    async def among_later(*lists: list[Any]) -> list[Any]:
        values = [value for some in lists for value in some]
        return best(values, [await get(value) for value in values])

    async def add_later(top: list[Any], value: Any) -> list[Any]:
        return await among_later(top, [value])

    waits = is_async(get)
    fold = Fold(list, add_later if waits else lambda top, value: among(top, [value]))
    value_type = list[stream.operator.value_type]  # type: ignore[name-defined]
    return _Shape(
        [stream], [fold], f"top-{count}", value=value_type, merge=among_later if waits else among
    )


def _reduce(stream: DeclaredStream[Any, Any], function: Any) -> _Shape:
    fold = Fold(None, function)
    return _Shape([stream], [fold], "reduce", value=stream.operator.value_type, merge=function)


def _aggregate(
    streams: Sequence[DeclaredStream[Any, Any]],
    adds: Sequence[Callable[[Any, Any], Any]],
    default: Any,
    value: Any,
    merge: Any,
    *,
    windows: AnyWindows | None = None,
) -> _Shape:
    initial = make_default(default, "aggregate")
    value = default_type(default) if value is None else value
    # as in Kafka Streams: without windows, and with sliding ones, a record without a value is dropped
    skips = windows is None or isinstance(windows, kinds.Sliding)
    folds = [Fold(initial, add, skips_null=skips) for add in adds]
    return _Shape(streams, folds, "aggregate", value=value, merge=merge)


class GroupedStream(DeclaredStream[V, K]):
    """A stream whose records are in the shards of their keys. Records without a key are dropped.

    Windows are of event time. ``grace`` is how long after its end a window takes late records, 0 where left out; ``retention``
    is how long after its start (a session: after its end) it can be read, size and grace where left out. Both are
    durations: a timedelta, seconds, or text such as "1h". A wrong one is a `ConfigurationError`. The rules are those of
    Kafka Streams.
    """

    def _declare(
        self, shape: _Shape, name: str | None, emit: Emit, emit_every: Duration | None
    ) -> Table[K, Any]:
        return shape.declare(name, emit, None, emit_every)  # type: ignore[no-any-return]

    def count(
        self,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, int]:
        """How many records."""
        return self._declare(_count(self), name, emit, emit_every)

    def sum(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, N]:
        """The sum of a field, of what a function gives, or of the values themselves."""
        return self._declare(_sum(self, of), name, emit, emit_every)

    def min(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, N]:
        """The least of a field, of what a function gives, or of the values themselves."""
        return self._declare(_least(self, of, "min"), name, emit, emit_every)

    def max(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, N]:
        """The greatest of a field, of what a function gives, or of the values themselves."""
        return self._declare(_least(self, of, "max"), name, emit, emit_every)

    def mean(
        self,
        of: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, float]:
        """The mean of a field, of what a function gives, or of the values themselves."""
        return self._declare(_mean(self, of), name, emit, emit_every)

    def top_k(
        self,
        count: int,
        by: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, list[V]]:
        """The ``count`` values with the greatest field, greatest first; earlier ones first where they are equal."""
        return self._declare(_top_k(self, count, by), name, emit, emit_every)

    def reduce(
        self,
        function: Callable[[V, V], V | Awaitable[V]],
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, V]:
        """What ``function(so far, value)`` makes of them, one after the other; the first one stands as it is."""
        return self._declare(_reduce(self, function), name, emit, emit_every)

    @overload
    def aggregate(
        self,
        *,
        default: Callable[[], A],
        add: Callable[[A, V], object],
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, A]: ...
    @overload
    def aggregate(
        self,
        *,
        default: A,
        add: Callable[[A, V], A | Awaitable[A]],
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, A]: ...
    def aggregate(
        self,
        *,
        default: Any,
        add: Callable[[Any, V], Any],
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, Any]:
        """What ``add(so far, value)`` makes of them, one after the other.

        Args:
            default: what a group begins with, or a function that makes it.
            add: returns the new value; None deletes the group.
            value: the type of what is kept, where ``default`` does not tell.
            name: of the table and its changelog; from the sources where it is left out.
            emit: when results come out, see `Emit`.
            emit_every: at most so often by the wall clock, the latest value of each group.
        """
        shape = _aggregate([self], [add], default, value, None, windows=None)
        return self._declare(shape, name, emit, emit_every)

    def cogroup(self, add: Callable[[A, V], A | Awaitable[A]]) -> CogroupedStream[A, K]:
        """The first of several groups that make one value together; see `CogroupedStream`."""
        return CogroupedStream([self], [add])

    def _windowed(self, windows: AnyWindows) -> WindowedStream[V, K]:
        return WindowedStream(self, windows)

    def tumbling(
        self,
        size: Duration,
        *,
        grace: Duration = 0,
        retention: Duration | None = None,
        offset: Duration = 0,
    ) -> WindowedStream[V, K]:
        """In windows ``[start, start + size)`` side by side."""
        return self._windowed(kinds.tumbling(size, grace=grace, retention=retention, offset=offset))

    def hopping(
        self,
        size: Duration,
        advance: Duration,
        *,
        grace: Duration = 0,
        retention: Duration | None = None,
        offset: Duration = 0,
    ) -> WindowedStream[V, K]:
        """In windows of ``size``, one beginning every ``advance``."""
        return self._windowed(
            kinds.hopping(size, advance, grace=grace, retention=retention, offset=offset)
        )

    def sliding(
        self, width: Duration, *, grace: Duration = 0, retention: Duration | None = None
    ) -> WindowedStream[V, K]:
        """In windows that move with the records: both ends inclusive."""
        return self._windowed(kinds.sliding(width, grace=grace, retention=retention))

    def session(
        self, gap: Duration, *, grace: Duration = 0, retention: Duration | None = None
    ) -> WindowedStream[V, K]:
        """In sessions: records no further than ``gap`` apart belong together."""
        return self._windowed(kinds.session(gap, grace=grace, retention=retention))

    def calendar(
        self,
        unit: CalendarUnit,
        *,
        timezone: str,
        grace: Duration = 0,
        retention: Duration | None = None,
    ) -> WindowedStream[V, K]:
        """In hours, days, weeks, months, quarters or years of a time zone."""
        return self._windowed(
            kinds.calendar(unit, timezone=timezone, grace=grace, retention=retention)
        )


class WindowedStream(Generic[V, K]):
    """Groups in windows of event time; each aggregate here is a windowed table."""

    def __init__(self, stream: DeclaredStream[V, K], windows: AnyWindows) -> None:
        self._stream = stream
        self._windows = windows

    def _declare(
        self, shape: _Shape, name: str | None, emit: Emit, emit_every: Duration | None
    ) -> WindowedTable[K, Any]:
        return shape.declare(name, emit, self._windows, emit_every)  # type: ignore[no-any-return]

    def count(
        self,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, int]:
        """How many records."""
        return self._declare(_count(self._stream), name, emit, emit_every)

    def sum(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, N]:
        """The sum of a field, of what a function gives, or of the values themselves."""
        return self._declare(_sum(self._stream, of), name, emit, emit_every)

    def min(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, N]:
        """The least of a field, of what a function gives, or of the values themselves."""
        return self._declare(_least(self._stream, of, "min"), name, emit, emit_every)

    def max(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, N]:
        """The greatest of a field, of what a function gives, or of the values themselves."""
        return self._declare(_least(self._stream, of, "max"), name, emit, emit_every)

    def mean(
        self,
        of: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, float]:
        """The mean of a field, of what a function gives, or of the values themselves."""
        return self._declare(_mean(self._stream, of), name, emit, emit_every)

    def top_k(
        self,
        count: int,
        by: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, list[V]]:
        """The ``count`` values with the greatest field, greatest first; earlier ones first where they are equal."""
        return self._declare(_top_k(self._stream, count, by), name, emit, emit_every)

    def reduce(
        self,
        function: Callable[[V, V], V | Awaitable[V]],
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, V]:
        """What ``function(so far, value)`` makes of them, one after the other; the first one stands as it is."""
        return self._declare(_reduce(self._stream, function), name, emit, emit_every)

    @overload
    def aggregate(
        self,
        *,
        default: Callable[[], A],
        add: Callable[[A, V], object],
        merge: Callable[[A, A], A | Awaitable[A]] | None = None,
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, A]: ...
    @overload
    def aggregate(
        self,
        *,
        default: A,
        add: Callable[[A, V], A | Awaitable[A]],
        merge: Callable[[A, A], A | Awaitable[A]] | None = None,
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, A]: ...
    def aggregate(
        self,
        *,
        default: Any,
        add: Callable[[Any, V], Any],
        merge: Callable[[Any, Any], Any] | None = None,
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, Any]:
        """What ``add(so far, value)`` makes of them, one after the other.

        Args:
            default: what a group begins with, or a function that makes it.
            add: returns the new value; None deletes the group.
            merge: of sessions: makes one value of two that a record joins, the earlier one first.
            value: the type of what is kept, where ``default`` does not tell.
            name: of the table and its changelog; from the sources where it is left out.
            emit: when results come out, see `Emit`.
            emit_every: at most so often by the wall clock, the latest value of each group.
        """
        shape = _aggregate([self._stream], [add], default, value, merge, windows=self._windows)
        return self._declare(shape, name, emit, emit_every)


class CogroupedStream(Generic[A, K]):
    """Groups of several streams by one key, which make one value: each stream adds in its own way.

    Windows are those of `GroupedStream`.
    """

    def __init__(
        self,
        streams: Sequence[GroupedStream[Any, K]],
        adds: Sequence[Callable[[A, Any], A | Awaitable[A]]],
    ) -> None:
        self._streams = list(streams)
        self._adds = list(adds)

    def cogroup(
        self, stream: GroupedStream[W, K], add: Callable[[A, W], A | Awaitable[A]]
    ) -> CogroupedStream[A, K]:
        """One more stream, and how its values are added."""
        return CogroupedStream([*self._streams, stream], [*self._adds, add])

    def aggregate(
        self,
        *,
        default: A | Callable[[], A],
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, A]:
        """The table of what they make; arguments as for `GroupedStream.aggregate`."""
        shape = _aggregate(self._streams, self._adds, default, value, None)
        return shape.declare(name, emit, None, emit_every)  # type: ignore[no-any-return]

    def _windowed(self, windows: AnyWindows) -> WindowedCogroup[A, K]:
        return WindowedCogroup(self._streams, self._adds, windows)

    def tumbling(
        self,
        size: Duration,
        *,
        grace: Duration = 0,
        retention: Duration | None = None,
        offset: Duration = 0,
    ) -> WindowedCogroup[A, K]:
        """In windows ``[start, start + size)`` side by side."""
        return self._windowed(kinds.tumbling(size, grace=grace, retention=retention, offset=offset))

    def hopping(
        self,
        size: Duration,
        advance: Duration,
        *,
        grace: Duration = 0,
        retention: Duration | None = None,
        offset: Duration = 0,
    ) -> WindowedCogroup[A, K]:
        """In windows of ``size``, one beginning every ``advance``."""
        return self._windowed(
            kinds.hopping(size, advance, grace=grace, retention=retention, offset=offset)
        )

    def sliding(
        self, width: Duration, *, grace: Duration = 0, retention: Duration | None = None
    ) -> WindowedCogroup[A, K]:
        """In windows that move with the records: both ends inclusive."""
        return self._windowed(kinds.sliding(width, grace=grace, retention=retention))

    def session(
        self, gap: Duration, *, grace: Duration = 0, retention: Duration | None = None
    ) -> WindowedCogroup[A, K]:
        """In sessions: records no further than ``gap`` apart belong together."""
        return self._windowed(kinds.session(gap, grace=grace, retention=retention))

    def calendar(
        self,
        unit: CalendarUnit,
        *,
        timezone: str,
        grace: Duration = 0,
        retention: Duration | None = None,
    ) -> WindowedCogroup[A, K]:
        """In hours, days, weeks, months, quarters or years of a time zone."""
        return self._windowed(
            kinds.calendar(unit, timezone=timezone, grace=grace, retention=retention)
        )


class WindowedCogroup(Generic[A, K]):
    """A `CogroupedStream` in windows of event time."""

    def __init__(
        self,
        streams: Sequence[GroupedStream[Any, K]],
        adds: Sequence[Callable[[A, Any], A | Awaitable[A]]],
        windows: AnyWindows,
    ) -> None:
        self._streams = streams
        self._adds = adds
        self._windows = windows

    def aggregate(
        self,
        *,
        default: A | Callable[[], A],
        merge: Callable[[A, A], A | Awaitable[A]] | None = None,
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, A]:
        """The table of what they make; arguments as for `WindowedStream.aggregate`."""
        shape = _aggregate(self._streams, self._adds, default, value, merge, windows=self._windows)
        return shape.declare(name, emit, self._windows, emit_every)  # type: ignore[no-any-return]
