"""What is made of a windowed table's changes: entries whose keys are a key and a window.

The steps keep nothing: what they hand on is made anew from the table, which has the windows and their retention. So a
window that expires leaves without a word, as it does from the table.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from typing_extensions import TypeVar

from millstream.errors import ConfigurationError, TopologyError
from millstream.streams._aggregate import WindowedAggregate
from millstream.streams._codec import has_no_upgrade
from millstream.streams._grouped_table import GroupedTable, group_table
from millstream.streams._operator import is_async
from millstream.streams._sides import check_home, check_keys, check_topics
from millstream.streams._sink import put_record, put_windowed
from millstream.streams._stateless import ToTopic, Values
from millstream.streams._stream import DeclaredStream
from millstream.streams._suppress import SuppressChanges, suppressed
from millstream.streams._table_ops import FilterTable, JoinTables, MapTable
from millstream.streams._types import result_type
from millstream.windows import Session, form_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from typing_extensions import TypeForm

    from millstream import tables
    from millstream.agents import Topic
    from millstream.streams._home import StreamHome
    from millstream.streams._operator import Operator, Windowed
    from millstream.streams._suppress import Suppress
    from millstream.windows import Window

__all__ = ["WindowedChanges", "WindowedTableStream"]

K = TypeVar("K")
V = TypeVar("V")
W = TypeVar("W")
L = TypeVar("L")
R = TypeVar("R")


class WindowedChanges(Generic[K, V]):
    """What can be made of the changes of a windowed table: a `WindowedTable` and a `WindowedTableStream` are such.

    Functions take the value alone, and may be async.
    """

    if TYPE_CHECKING:
        name: str

        def _flow(self) -> WindowedTableStream[K, V]: ...

    def changes(self) -> DeclaredStream[V, Windowed[K]]:
        """The results as a stream; its keys are `Windowed`: the key, and the window.

        The value is None where a window is gone: a session that was merged with another, or what `filter` lets
        through no longer. The stream's functions get it as well; those of the table's own steps, like `filter`
        and `map_values`, get values alone. A topic takes the key alone, and the window in headers: what comes out of one (``to``,
        ``through``, ``repartition``) has plain keys.
        """
        flow = self._flow()
        values = Values(flow.operator, name=flow.operator.name)
        return DeclaredStream(flow.home.plan.add(values), flow.home)

    def to(
        self,
        topic: Topic[Any, Any],
        *,
        value: Callable[[K, Window, V], Any] | None = None,
        windowed_key: Any = None,
    ) -> None:
        """Send each result to a topic: the group's key, and the window in headers; a tombstone for one that is gone.

        Args:
            value: makes the record's value from key, window and result.
            windowed_key: ``kafka-streams`` for the bytes that Kafka Streams gives windowed keys.
        """
        flow = self._flow()
        flow.home.check_own(topic, f"table {flow.name!r}")
        send = put_record
        if value is not None or windowed_key is not None:
            home: Any = flow.table.home
            session = isinstance(flow.table.declared, Session)
            send = put_windowed(value, windowed_key, dump_key=home.place, session=session)
        values = flow.home.plan.add(Values(flow.operator, name=flow.name))
        flow.home.plan.add(ToTopic(values, topic, send, name=f"{flow.name}-to-{topic.name}"))

    def filter(self, keep: Callable[[V], Any], *, name: None = None) -> WindowedTableStream[K, V]:
        """The windows for whose values ``keep`` is true; one that passes no longer is gone: None in `changes`."""
        flow = self._flow()
        flow.check_unnamed(name, "filter()")
        return flow.then(FilterTable(flow.operator, keep, name=flow.name))

    @overload
    def map_values(
        self,
        function: Callable[[V], Coroutine[Any, Any, W]],
        *,
        name: None = None,
        value: Any = None,
    ) -> WindowedTableStream[K, W]: ...
    @overload
    def map_values(
        self, function: Callable[[V], W], *, name: None = None, value: Any = None
    ) -> WindowedTableStream[K, W]: ...
    def map_values(
        self, function: Callable[[V], Any], *, name: None = None, value: Any = None
    ) -> Any:
        """The same windows, with what ``function`` makes of their values; none where it returns None.

        Args:
            value: the type of the new values, where the function has no annotation that tells.
        """
        flow = self._flow()
        flow.check_unnamed(name, "map_values()")
        made = result_type(function) if value is None else value
        return flow.then(MapTable(flow.operator, function, name=flow.name, value_type=made))

    def suppress(self, suppress: Suppress, *, name: str | None = None) -> WindowedTableStream[K, V]:
        """The same changes, held back as `Suppress` says: without a limit, until the window is final.

        Args:
            name: of what is held back.

        Raises:
            ConfigurationError: there is no limit, and each window comes out once already, is a join's, or is
                held back by time before.
        """
        flow = self._flow()
        name = name or f"{flow.name}-suppress"
        if suppress.limit is None:
            _check_not_final(flow.operator, name)
        held = suppressed(flow.home, flow.operator, suppress, name, flow.table.declared)
        return WindowedTableStream(held, flow.home, flow.table)

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
        """Groups of windows of all keys, by a field or a function of their values; the groups' keys are plain.

        A change takes the old value out of its group, and puts the new one into its own. A window that expires stays
        in its group.

        Args:
            name: what goes with a function; the topic through which the changes move is named after it.
            type: the groups' type, where neither the field nor the function's annotation tells.
        """
        flow = self._flow()
        return group_table(flow.home, flow.operator, key, name=name, key_type=type)

    @overload
    def join(
        self,
        other: WindowedChanges[Any, W],
        joiner: Callable[[V, W], Coroutine[Any, Any, R]],
        *,
        how: Literal["inner"] = "inner",
        name: None = None,
        value: Any = None,
    ) -> WindowedTableStream[K, R]: ...
    @overload
    def join(
        self,
        other: WindowedChanges[Any, W],
        joiner: Callable[[V, W], R],
        *,
        how: Literal["inner"] = "inner",
        name: None = None,
        value: Any = None,
    ) -> WindowedTableStream[K, R]: ...
    @overload
    def join(
        self,
        other: WindowedChanges[Any, W],
        joiner: Callable[[V, W | None], Coroutine[Any, Any, R]],
        *,
        how: Literal["left"],
        name: None = None,
        value: Any = None,
    ) -> WindowedTableStream[K, R]: ...
    @overload
    def join(
        self,
        other: WindowedChanges[Any, W],
        joiner: Callable[[V, W | None], R],
        *,
        how: Literal["left"],
        name: None = None,
        value: Any = None,
    ) -> WindowedTableStream[K, R]: ...
    @overload
    def join(
        self,
        other: WindowedChanges[Any, W],
        joiner: Callable[[V | None, W | None], Coroutine[Any, Any, R]],
        *,
        how: Literal["outer"],
        name: None = None,
        value: Any = None,
    ) -> WindowedTableStream[K, R]: ...
    @overload
    def join(
        self,
        other: WindowedChanges[Any, W],
        joiner: Callable[[V | None, W | None], R],
        *,
        how: Literal["outer"],
        name: None = None,
        value: Any = None,
    ) -> WindowedTableStream[K, R]: ...
    def join(
        self,
        other: WindowedChanges[Any, W],
        joiner: Callable[[Any, Any], Any],
        *,
        how: Literal["inner", "left", "outer"] = "inner",
        name: None = None,
        value: Any = None,
    ) -> Any:
        """This table and another with the same windows, by key and window.

        Each side has a time of its own, and finds the other's windows until their retention is over there.

        Args:
            joiner: makes a value of both sides' values; None stands for a side that is missing, with
                ``how="left"`` on the right, with ``how="outer"`` on either. Where it returns None there is no result.
            value: the type of the results, where the joiner has no annotation that tells.

        Raises:
            TopologyError: the windows differ in more than grace and retention, equal keys do not meet, or one
                side follows from the other, or both from one table: `map_values` makes one value of both there.
            ConfigurationError: a function before the join is async, as lookups cannot wait; or results are
                final, and the windows are kept no longer than that.
        """
        if how not in ("inner", "left", "outer"):
            raise ConfigurationError(f"join: how={how!r} is none of inner, left, outer")
        flow = self._flow()
        flow.check_unnamed(name, "join()")
        right = _other_side(other, flow)
        what = f"join of tables {flow.name!r} and {right.name!r}"
        sides = flow, right
        check_home(sides, what)
        check_keys(((side.name, side.operator.key_type) for side in sides), what, _OTHER_KEYS)
        check_topics([topic for side in sides for topic in side.operator.topics], what)
        windows = [form_of(side.table.declared) for side in sides]
        if windows[0] != windows[1]:
            raise TopologyError(
                f"{what}: their windows are {windows[0]} and {windows[1]}, so none would ever be equal. Give"
                f" them the same ones; grace and retention may differ"
            )
        for side in sides:
            _check_lookups(side.operator, what)
        _check_retention(sides, what)
        operator = JoinTables(
            flow.operator,
            right.operator,
            joiner,
            how,
            name=f"{flow.name}-{right.name}-join",
            value_type=result_type(joiner) if value is None else value,
        )
        if operator.entwined:
            raise TopologyError(
                f"{what}: one follows from the other, or both do from one table, whose change would come by one"
                f" side and then by the other, with results of a new and an old value. Make both in one step of"
                f" that table: .map_values(lambda value: ...)"
            )
        return flow.then(operator)


class WindowedTableStream(WindowedChanges[K, V]):
    """The changes of a windowed table, from which tables and streams are made; it keeps nothing by itself."""

    def __init__(
        self, operator: Operator, home: StreamHome, table: tables.WindowedTable[K, Any]
    ) -> None:
        self.name = operator.name
        """What comes out of it is named after this."""
        self.operator = operator
        self.home = home
        self.table = table
        """Whose windows and keys they are."""

    def __repr__(self) -> str:
        return f"<changes of {self.name!r}>"

    def _flow(self) -> WindowedTableStream[K, V]:
        return self

    def then(self, operator: Operator) -> WindowedTableStream[K, Any]:
        """What an operator makes of the changes."""
        if not isinstance(operator, FilterTable):
            operator.mend = has_no_upgrade(operator.kind)
        return WindowedTableStream(self.home.plan.add(operator), self.home, self.table)

    def check_unnamed(self, name: object, step: str) -> None:
        """Raise ConfigurationError for a name: nothing is kept."""
        if name is not None:
            raise ConfigurationError(
                f"table {self.table.name!r} is windowed, and {step} keeps nothing: leave name={name!r} out."
                f" To query the results, query {self.table.name!r}, and make them of its values"
            )


_OTHER_KEYS = "Group one of the streams behind them by something else"


def _other_side(other: Any, flow: WindowedTableStream[Any, Any]) -> WindowedTableStream[Any, Any]:
    if isinstance(other, WindowedChanges):
        return other._flow()
    table = flow.table.name
    raise TopologyError(
        f"join of table {flow.name!r}: it is windowed, and {other!r} is no windowed table, so the keys would"
        f" never be equal. A table of the group's keys is looked up by {table}.changes().join(table, ...); of a"
        f" stream take windows as well, .group_by().tumbling(...) and what follows"
    )


def _before(operator: Operator) -> Iterator[Operator]:
    """An operator and those before it, as far back as the windowed aggregates."""
    yield operator
    if not isinstance(operator, WindowedAggregate):
        for parent in operator.parents:
            yield from _before(parent)


def _finals(operator: Operator) -> Iterator[Operator]:
    """Of these the ones that each window comes out of once, when it is final."""
    for one in _before(operator):
        if (isinstance(one, WindowedAggregate) and one.final) or (
            isinstance(one, SuppressChanges) and one.windows is not None
        ):
            yield one


def _check_not_final(operator: Operator, name: str) -> None:
    """Refuse to wait for windows to be final behind what has waited, or holds changes back longer than that, and where
    there are two opinions of it."""
    what = f"{name}: Suppress() without a limit holds results until their windows are final"
    if any(isinstance(one, JoinTables) for one in _before(operator)):
        raise ConfigurationError(
            f"{what}, and each of the tables that are joined has a time of its own. Let both have final"
            f" results, emit='final', and join those; or give a limit"
        )
    for one in _finals(operator):
        raise ConfigurationError(f"{what}, and those of {one.name!r} are: leave suppress() out")
    for one in _before(operator):
        if isinstance(one, SuppressChanges):
            raise ConfigurationError(
                f"{what}, and what {one.name!r} holds back by time may come after that. Leave that out, whether"
                f" it is suppress(), emit=ms.Suppress(...) or emit_every=; or give a limit"
            )


def _check_retention(sides: Sequence[WindowedTableStream[Any, Any]], what: str) -> None:
    """Refuse final results of windows that are not kept any longer: the other side would not find them."""
    if not any(any(_finals(side.operator)) for side in sides):
        return
    for side in sides:
        windows = side.table.declared
        if windows.retention_ms == replace(windows, retention_ms=0).retention_ms:
            raise ConfigurationError(
                f"{what}: results are final when the windows of {side.table.name!r} expire, and then they are"
                f" not found any more. Give both windows a longer retention, for example retention='1d'"
            )


def _check_lookups(operator: Operator, what: str) -> None:
    """Refuse an async function where a lookup would have to wait for it."""
    for one in _before(operator):
        if isinstance(one, (FilterTable, MapTable, JoinTables)):
            function = one.joiner if isinstance(one, JoinTables) else one.function
            if is_async(function):
                raise ConfigurationError(
                    f"{what}: the function of {one.kind}() before it is async, and a lookup cannot wait for it."
                    f" Put that step behind the join"
                )
