"""Groups of a stream's values, and what can be made of them: aggregates, windowed or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, overload

from typing_extensions import TypeVar

from millstream import windows as kinds
from millstream.streams._shapes import (
    aggregate_shape,
    count_shape,
    least_shape,
    mean_shape,
    reduce_shape,
    sum_shape,
    top_k_shape,
)
from millstream.streams._stream import DeclaredStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from millstream.clock import Duration
    from millstream.streams._shapes import Emit, Shape
    from millstream.streams._tables import Table, WindowedTable
    from millstream.windows import AnyWindows, CalendarUnit

__all__ = [
    "CogroupedStream",
    "GroupedStream",
    "WindowedCogroup",
    "WindowedStream",
]

V = TypeVar("V")
A = TypeVar("A")
W = TypeVar("W")
N = TypeVar("N", default=Any)
K = TypeVar("K", default=Any)


class GroupedStream(DeclaredStream[V, K]):
    """A stream whose records are in the shards of their keys. Records without a key are dropped.

    Windows are of event time. ``grace`` is how long after its end a window takes late records, 0 where left out; ``retention``
    is how long after its start (a session: after its end) it can be read, size and grace where left out. Both are
    durations: a timedelta, seconds, or text such as "1h". A wrong one is a `ConfigurationError`. The rules are those of
    Kafka Streams.

    ``upgrade`` turns a value that was kept in an older form, as plain JSON types, into a new one; with `top_k` each value
    of the list that cannot be read.
    """

    def _declare(
        self, shape: Shape, name: str | None, emit: Emit, emit_every: Duration | None
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
        return self._declare(count_shape(self), name, emit, emit_every)

    def sum(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, N]:
        """The sum of a field, of what a function gives, or of the values themselves."""
        return self._declare(sum_shape(self, of), name, emit, emit_every)

    def min(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, N]:
        """The least of a field, of what a function gives, or of the values themselves."""
        return self._declare(least_shape(self, of, "min"), name, emit, emit_every)

    def max(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, N]:
        """The greatest of a field, of what a function gives, or of the values themselves."""
        return self._declare(least_shape(self, of, "max"), name, emit, emit_every)

    def mean(
        self,
        of: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, float]:
        """The mean of a field, of what a function gives, or of the values themselves.

        Of Decimal and timedelta it is of their type.
        """
        return self._declare(mean_shape(self, of), name, emit, emit_every)

    def top_k(
        self,
        count: int,
        by: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, list[V]]:
        """The ``count`` values with the greatest field, greatest first; earlier ones first where they are equal."""
        return self._declare(top_k_shape(self, count, by, upgrade), name, emit, emit_every)

    def reduce(
        self,
        function: Callable[[V, V], V | Awaitable[V]],
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, V]:
        """What ``function(so far, value)`` makes of them, one after the other; the first one stands as it is."""
        return self._declare(reduce_shape(self, function, upgrade), name, emit, emit_every)

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
        upgrade: Callable[[Any], Any] | None = None,
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
        upgrade: Callable[[Any], Any] | None = None,
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
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, Any]:
        """What ``add(so far, value)`` makes of them, one after the other.

        Args:
            default: what a group begins with, each with a copy of its own, or a function that makes it.
            add: returns the new value, also where it has changed that in place; None deletes the group.
            value: the type of what is kept, where ``default`` does not tell.
            name: of the table and its changelog; from the sources where it is left out.
            emit: when results come out, see `Emit`.
            emit_every: at most so often by the wall clock, the latest value of each group.
            upgrade: turns a value that was kept in an older form, as plain JSON types, into a new one.
        """
        shape = aggregate_shape([self], [add], default, value, None, upgrade=upgrade)
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
        self, shape: Shape, name: str | None, emit: Emit, emit_every: Duration | None
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
        return self._declare(count_shape(self._stream), name, emit, emit_every)

    def sum(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, N]:
        """The sum of a field, of what a function gives, or of the values themselves."""
        return self._declare(sum_shape(self._stream, of), name, emit, emit_every)

    def min(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, N]:
        """The least of a field, of what a function gives, or of the values themselves."""
        return self._declare(least_shape(self._stream, of, "min"), name, emit, emit_every)

    def max(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, N]:
        """The greatest of a field, of what a function gives, or of the values themselves."""
        return self._declare(least_shape(self._stream, of, "max"), name, emit, emit_every)

    def mean(
        self,
        of: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> WindowedTable[K, float]:
        """The mean of a field, of what a function gives, or of the values themselves.

        Of Decimal and timedelta it is of their type.
        """
        return self._declare(mean_shape(self._stream, of), name, emit, emit_every)

    def top_k(
        self,
        count: int,
        by: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> WindowedTable[K, list[V]]:
        """The ``count`` values with the greatest field, greatest first; earlier ones first where they are equal."""
        return self._declare(top_k_shape(self._stream, count, by, upgrade), name, emit, emit_every)

    def reduce(
        self,
        function: Callable[[V, V], V | Awaitable[V]],
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> WindowedTable[K, V]:
        """What ``function(so far, value)`` makes of them, one after the other; the first one stands as it is."""
        return self._declare(reduce_shape(self._stream, function, upgrade), name, emit, emit_every)

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
        upgrade: Callable[[Any], Any] | None = None,
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
        upgrade: Callable[[Any], Any] | None = None,
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
        upgrade: Callable[[Any], Any] | None = None,
    ) -> WindowedTable[K, Any]:
        """What ``add(so far, value)`` makes of them, one after the other.

        Args:
            default: what a group begins with, each with a copy of its own, or a function that makes it.
            add: returns the new value, which may not be None.
            merge: of sessions, and only of these: makes one value of two that a record joins, the earlier one first;
                numbers are added, sets united, lists joined, where it is left out.
            value: the type of what is kept, where ``default`` does not tell.
            name: of the table and its changelog; from the sources where it is left out.
            emit: when results come out, see `Emit`.
            emit_every: at most so often by the wall clock, the latest value of each group.
            upgrade: turns a value that was kept in an older form, as plain JSON types, into a new one.
        """
        shape = aggregate_shape(
            [self._stream], [add], default, value, merge, windows=self._windows, upgrade=upgrade
        )
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
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, A]:
        """The table of what they make; arguments as for `GroupedStream.aggregate`."""
        shape = aggregate_shape(self._streams, self._adds, default, value, None, upgrade=upgrade)
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
        upgrade: Callable[[Any], Any] | None = None,
    ) -> WindowedTable[K, A]:
        """The table of what they make; arguments as for `WindowedStream.aggregate`."""
        shape = aggregate_shape(
            self._streams,
            self._adds,
            default,
            value,
            merge,
            windows=self._windows,
            upgrade=upgrade,
        )
        return shape.declare(name, emit, self._windows, emit_every)  # type: ignore[no-any-return]
