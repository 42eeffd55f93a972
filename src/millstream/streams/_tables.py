"""Tables as streams make and use them: their changes flow on into other tables and streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, cast, overload

from typing_extensions import TypeVar

from millstream import tables
from millstream.errors import ConfigurationError, TopologyError
from millstream.serialization import upgrading
from millstream.streams._codec import needs_a_name, upgrade_with
from millstream.streams._grouped_table import GroupedTable, group_table
from millstream.streams._operator import is_async
from millstream.streams._sides import check_home, check_sides
from millstream.streams._stateless import Values
from millstream.streams._stream import DeclaredStream
from millstream.streams._suppress import suppressed
from millstream.streams._table_ops import FilterTable, JoinTables, Keep, MapTable
from millstream.streams._types import result_type
from millstream.streams._windowed_changes import WindowedChanges, WindowedTableStream

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from typing_extensions import TypeForm

    from millstream.agents import Topic
    from millstream.clock import Duration
    from millstream.streams._home import StreamHome
    from millstream.streams._operator import Operator
    from millstream.streams._suppress import Suppress
    from millstream.windows import CalendarUnit

__all__ = ["Table", "TableChanges", "TableStream", "WindowedTable"]

K = TypeVar("K")
V = TypeVar("V")
W = TypeVar("W")
L = TypeVar("L")
A = TypeVar("A")
R = TypeVar("R")


class TableChanges(Generic[K, V]):
    """What can be made of the changes of a table: a `Table` and a `TableStream` are such."""

    if TYPE_CHECKING:

        def _flow(self) -> TableStream[K, V]: ...

    def changes(self) -> DeclaredStream[V, K]:
        """The new values as a stream of records; None where a key was deleted, for the stream's functions too.

        Functions of the table's own steps, like `filter` and `map_values`, get values alone.
        """
        flow = self._flow()
        values = Values(flow.operator, name=flow.operator.name)
        return DeclaredStream(flow.home.plan.add(values), flow.home)

    def to(self, topic: Topic[Any, Any]) -> None:
        """Send each new value to a topic under its key, a tombstone for a key that was deleted."""
        self.changes().to(topic)

    @overload
    def filter(self, keep: Callable[[V], Any], *, name: str) -> Table[K, V]: ...
    @overload
    def filter(self, keep: Callable[[V], Any], *, name: None = None) -> TableStream[K, V]: ...
    def filter(self, keep: Callable[[V], Any], *, name: str | None = None) -> Any:
        """The entries for whose values ``keep`` is true.

        Raises:
            ConfigurationError: ``keep`` is async, and there is no ``name``: a lookup could not wait for it.
        """
        flow = self._flow()
        flow.check_kept(keep, name, "filter()")
        return flow.then(FilterTable(flow.operator, keep, name=flow.operator.name), name)

    @overload
    def map_values(
        self,
        function: Callable[[V], Coroutine[Any, Any, W]],
        *,
        name: str,
        value: Any = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, W]: ...
    @overload
    def map_values(
        self,
        function: Callable[[V], W],
        *,
        name: str,
        value: Any = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, W]: ...
    @overload
    def map_values(
        self, function: Callable[[V], W], *, name: None = None, value: Any = None
    ) -> TableStream[K, W]: ...
    def map_values(
        self,
        function: Callable[[V], Any],
        *,
        name: str | None = None,
        value: Any = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Any:
        """The same entries, with what ``function`` makes of their values; none where it returns None.

        Args:
            value: the type of the new values, where the function has no annotation that tells.
            upgrade: with a name: turns a value that was kept in an older form, as plain JSON types, into a new one.

        Raises:
            ConfigurationError: ``function`` is async, and there is no ``name``: a lookup could not wait for it;
                or there is an ``upgrade`` without one.
        """
        flow = self._flow()
        flow.check_kept(function, name, "map_values()")
        made = result_type(function) if value is None else value
        operator = MapTable(flow.operator, function, name=flow.operator.name, value_type=made)
        return flow.then(operator, name, upgrade)

    @overload
    def group_by(
        self,
        key: Callable[[V], Coroutine[Any, Any, L]],
        *,
        name: str | None = None,
        type: Any = None,
    ) -> GroupedTable[V, L]: ...
    @overload
    def group_by(
        self, key: Callable[[V], L], *, name: str | None = None, type: Any = None
    ) -> GroupedTable[V, L]: ...
    @overload
    def group_by(
        self, key: str, *, name: str | None = None, type: TypeForm[L]
    ) -> GroupedTable[V, L]: ...
    @overload
    def group_by(self, key: str, *, name: str | None = None) -> GroupedTable[V, Any]: ...
    def group_by(
        self, key: str | Callable[[V], Any], *, name: str | None = None, type: Any = None
    ) -> GroupedTable[V, Any]:
        """Groups of entries, by a field or a function of their values.

        A change takes the old value out of its group, and puts the new one into its own.

        Args:
            name: what goes with a function; the topic through which the changes move is named after it.
            type: the groups' type, where neither the field nor the function's annotation tells.
        """
        flow = self._flow()
        return group_table(flow.home, flow.operator, key, name=name, key_type=type)

    @overload
    def join(
        self,
        other: TableChanges[Any, W],
        joiner: Callable[[V, W], Coroutine[Any, Any, R]],
        *,
        how: Literal["inner"] = "inner",
        on: str | Callable[[V], Any] | None = None,
        name: str,
        value: Any = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, R]: ...
    @overload
    def join(
        self,
        other: TableChanges[Any, W],
        joiner: Callable[[V, W], R],
        *,
        how: Literal["inner"] = "inner",
        on: str | Callable[[V], Any] | None = None,
        name: str,
        value: Any = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, R]: ...
    @overload
    def join(
        self,
        other: TableChanges[Any, W],
        joiner: Callable[[V, W], R],
        *,
        how: Literal["inner"] = "inner",
        on: str | Callable[[V], Any] | None = None,
        name: None = None,
        value: Any = None,
    ) -> TableStream[K, R]: ...
    @overload
    def join(
        self,
        other: TableChanges[Any, W],
        joiner: Callable[[V, W | None], Coroutine[Any, Any, R]],
        *,
        how: Literal["left"],
        on: str | Callable[[V], Any] | None = None,
        name: str,
        value: Any = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, R]: ...
    @overload
    def join(
        self,
        other: TableChanges[Any, W],
        joiner: Callable[[V, W | None], R],
        *,
        how: Literal["left"],
        on: str | Callable[[V], Any] | None = None,
        name: str,
        value: Any = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, R]: ...
    @overload
    def join(
        self,
        other: TableChanges[Any, W],
        joiner: Callable[[V, W | None], R],
        *,
        how: Literal["left"],
        on: str | Callable[[V], Any] | None = None,
        name: None = None,
        value: Any = None,
    ) -> TableStream[K, R]: ...
    @overload
    def join(
        self,
        other: TableChanges[Any, W],
        joiner: Callable[[V | None, W | None], Coroutine[Any, Any, R]],
        *,
        how: Literal["outer"],
        name: str,
        value: Any = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, R]: ...
    @overload
    def join(
        self,
        other: TableChanges[Any, W],
        joiner: Callable[[V | None, W | None], R],
        *,
        how: Literal["outer"],
        name: str,
        value: Any = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, R]: ...
    @overload
    def join(
        self,
        other: TableChanges[Any, W],
        joiner: Callable[[V | None, W | None], R],
        *,
        how: Literal["outer"],
        name: None = None,
        value: Any = None,
    ) -> TableStream[K, R]: ...
    def join(
        self,
        other: TableChanges[Any, W],
        joiner: Callable[[Any, Any], Any],
        *,
        how: Literal["inner", "left", "outer"] = "inner",
        on: str | Callable[[V], Any] | None = None,
        name: Any = None,
        value: Any = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Any:
        """This table and another: by key, or by a foreign key in this table's values.

        Args:
            joiner: makes a value of both sides' values; None stands for a side that is missing, with
                ``how="left"`` on the right, with ``how="outer"`` on either. Where it returns None there is no entry.
            on: a field or a function of this table's values: the key of the other table. Inner and left only.
            name: of the result's table, where it is to be queried; of what a foreign-key join keeps, or one of a
                table with what follows from it.
            value: the type of the results, where the joiner has no annotation that tells.
            upgrade: with a name: turns a result that was kept in an older form, as plain JSON types, into a new one.
        """
        from millstream.streams._foreign import join_foreign

        if how not in ("inner", "left", "outer"):
            raise ConfigurationError(f"join: how={how!r} is none of inner, left, outer")
        flow = self._flow()
        what = f"join of table {flow.operator.name!r}"
        other_flow = _other_side(other, what)
        right = other_flow.operator
        what += f" and table {right.name!r}"
        made = result_type(joiner) if value is None else value
        if on is not None:
            check_home([flow, other_flow], what)
            kept = join_foreign(
                flow.home,
                flow.operator,
                right,
                joiner,
                how=how,
                on=on,
                name=name,
                value_type=made,
                upgrade=upgrade,
            )
            return kept if name is not None else kept._flow()
        check_sides([flow, other_flow], what, _OTHER_KEYS)
        flow.check_kept(joiner, name, "join()")
        stem = name or f"{flow.operator.name}-{right.name}-join"
        operator = JoinTables(flow.operator, right, joiner, how, name=stem, value_type=made)
        kept = flow.then(operator, stem if operator.entwined else name, upgrade)
        return kept._flow() if operator.entwined and name is None else kept

    def suppress(self, suppress: Suppress, *, name: str | None = None) -> TableStream[K, V]:
        """The same changes, held back as `Suppress` says. Joins with it find what has come out last."""
        flow = self._flow()
        name = name or f"{flow.operator.name}-suppress"
        return TableStream(suppressed(flow.home, flow.operator, suppress, name), flow.home)


_UPGRADE_WHAT_IT_FILTERS = "Convert it with upgrade= of the table that is filtered, or reset both"
_OTHER_KEYS = (
    "Make a table with other keys of one of them: .changes().map_keys(..., type=...).to_table(...)"
)


def _other_side(other: Any, what: str) -> TableStream[Any, Any]:
    if isinstance(other, TableChanges):
        return other._flow()
    if isinstance(other, WindowedChanges):
        raise TopologyError(
            f"{what}: {other.name!r} is windowed, so a key has no one value in it. Join the stream of its"
            f" results with the table: {other.name}.changes().join(table, ...)"
        )
    if isinstance(other, DeclaredStream):
        raise TopologyError(
            f"{what}: {other!r} is no table. Join it with the table, stream.join(table, ...), or make a"
            f" table of it: .to_table(...)"
        )
    raise TopologyError(f"{what}: {other!r} is no table of this app")


class TableStream(TableChanges[K, V]):
    """The changes of a table, from which other tables and streams are made.

    It keeps nothing by itself, unless a step is given a ``name``: then that step's table can be queried.
    """

    def __init__(self, operator: Operator, home: StreamHome) -> None:
        self.operator = operator
        self.home = home

    def __repr__(self) -> str:
        return f"<changes of {self.operator.name!r}>"

    def _flow(self) -> TableStream[K, V]:
        return self

    def then(
        self,
        operator: Operator,
        name: str | None = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Any:
        """What an operator makes of the changes: a table, where it has a name.

        Raises:
            ConfigurationError: there is an ``upgrade`` that is no function, or no name to go with it.
        """
        if upgrade is not None:
            if name is None:
                raise ConfigurationError(
                    f"table {self.operator.name!r}: upgrade= of {operator.kind}() goes with name=: without a"
                    f" name the step keeps no values that could be of an older form"
                )
            operator.codec = upgrading(operator.values, upgrade, f"table {name!r}")
        self.home.plan.add(operator)
        filters = isinstance(operator, FilterTable)
        if name is None:
            if not filters:
                operator.mend = needs_a_name(operator.kind)
            return TableStream(operator, self.home)
        entwined = isinstance(operator, JoinTables) and operator.entwined
        kept = Keep(operator, name=name, compares=entwined)
        if filters:
            kept.mend = operator.mend
        self.home.plan.add(kept)
        return self.home.kept_table(
            name,
            key=kept.key_type,
            value=kept.value_type,
            codec=kept.values,
            like=kept.topics[0],
            operator=kept,
            mend=operator.mend or _UPGRADE_WHAT_IT_FILTERS
            if filters
            else upgrade_with(operator.kind),
        )

    def check_kept(self, function: Any, name: str | None, step: str) -> None:
        """Raise ConfigurationError for an async function whose results are not kept."""
        if is_async(function) and name is None:
            raise ConfigurationError(
                f"table {self.operator.name!r}: an async function of {step} needs a name: its results"
                f" have to be kept, because lookups cannot wait"
            )


class Table(tables.Table[K, V], TableChanges[K, V]):
    """A partitioned, changelogged map, whose changes streams can use as well.

    See `millstream.tables.Table` for its use inside of agents.
    """

    if TYPE_CHECKING:  # what it gives is one of ours as well

        def tumbling(
            self,
            size: Duration,
            *,
            grace: Duration = 0,
            retention: Duration | None = None,
            offset: Duration = 0,
            idle_timeout: Duration | None = None,
        ) -> WindowedTable[K, V]: ...

        def hopping(
            self,
            size: Duration,
            advance: Duration,
            *,
            grace: Duration = 0,
            retention: Duration | None = None,
            offset: Duration = 0,
            idle_timeout: Duration | None = None,
        ) -> WindowedTable[K, V]: ...

        def sliding(
            self,
            width: Duration,
            *,
            grace: Duration = 0,
            retention: Duration | None = None,
            idle_timeout: Duration | None = None,
        ) -> WindowedTable[K, V]: ...

        def session(
            self,
            gap: Duration,
            *,
            grace: Duration = 0,
            retention: Duration | None = None,
            merge: Callable[[V, V], V] | None = None,
            idle_timeout: Duration | None = None,
        ) -> WindowedTable[K, V]: ...

        def calendar(
            self,
            unit: CalendarUnit,
            *,
            timezone: str,
            grace: Duration = 0,
            retention: Duration | None = None,
            idle_timeout: Duration | None = None,
        ) -> WindowedTable[K, V]: ...

    def _flow(self) -> TableStream[K, V]:
        flow: Any = self._home()
        return cast("TableStream[K, V]", flow.flow())


class WindowedTable(tables.WindowedTable[K, V], WindowedChanges[K, V]):
    """A table that keeps a value for each key and window, whose changes streams can use as well.

    See `millstream.tables.WindowedTable` for its use inside of agents.
    """

    def _flow(self) -> WindowedTableStream[K, V]:
        if self.home is None:
            raise ConfigurationError(f"table {self.name!r} was not declared with app.table()")
        home: Any = self.home
        flow = home.flow()
        return WindowedTableStream(flow.operator, flow.home, self)
