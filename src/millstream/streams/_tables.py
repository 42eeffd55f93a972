"""Tables as streams make and use them: their changes flow on into other tables and streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, cast

from typing_extensions import TypeVar

from millstream import tables
from millstream.context import current
from millstream.errors import ConfigurationError
from millstream.streams._sink import put_record, put_windowed
from millstream.streams._stateless import ToTopic, Values
from millstream.streams._stream import DeclaredStream
from millstream.tables import MISSING, require_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from millstream.agents import Topic
    from millstream.streams._home import StreamHome
    from millstream.streams._operator import Operator
    from millstream.windows import Window

__all__ = ["DerivedTable", "Table", "TableStream", "WindowedTable"]

K = TypeVar("K")
V = TypeVar("V")
W = TypeVar("W")


class TableStream(Generic[K, V]):
    """The changes of a table, from which other tables and streams are made. It keeps nothing by itself."""

    def __init__(self, operator: Operator, home: StreamHome) -> None:
        self.operator = operator
        self.home = home

    def __repr__(self) -> str:
        return f"<changes of {self.operator.name!r}>"

    def changes(self) -> DeclaredStream[V, K]:
        """The new values as a stream of records; None where a key was deleted."""
        values = Values(self.operator, name=self.operator.name)
        return DeclaredStream(self.home.plan.add(values), self.home)

    def to(self, topic: Topic[Any, Any]) -> None:
        """Send each new value to a topic under its key, a tombstone for a key that was deleted."""
        self.changes().to(topic)


class Table(tables.Table[K, V]):
    """A partitioned, changelogged map, whose changes streams can use as well.

    See `millstream.tables.Table` for its use inside of agents.
    """

    def _flow(self) -> TableStream[K, V]:
        flow: Any = self._home()
        return cast("TableStream[K, V]", flow.flow())

    def changes(self) -> DeclaredStream[V, K]:
        """The new values as a stream of records; None where a key was deleted."""
        return self._flow().changes()

    def to(self, topic: Topic[Any, Any]) -> None:
        """Send each new value to a topic under its key, a tombstone for a key that was deleted."""
        self._flow().to(topic)


class DerivedTable(Table[K, V]):
    """A table that agents read and do not write: a topic or a stream is its truth."""

    def __getitem__(self, key: K) -> V:
        scope = current.get(None)
        if scope is None or not scope.open:
            scope = require_scope(f"table {self.name!r}")
        part = self._part(scope)
        value = part.get(key, scope)
        if value is MISSING:
            return self._missing(key, part)
        return cast("V", part.value_of(value))

    def get(self, key: K, default: Any = None, /) -> Any:
        """The value, or ``default`` where there is none; the table's own default is not used."""
        scope = require_scope(f"table {self.name!r}")
        part = self._part(scope)
        value = part.get(key, scope)
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
        return ((key, part.value_of(value)) for key, value in found)

    def __setitem__(self, key: K, value: V) -> None:
        raise ConfigurationError(
            f"table {self.name!r} is read from a topic, or made by a stream: send to that topic instead of"
            f" writing"
        )

    def __delitem__(self, key: K) -> None:
        raise ConfigurationError(
            f"table {self.name!r} is read from a topic, or made by a stream: send to that topic instead of"
            f" deleting"
        )

    def _missing(self, key: K, part: tables.TablePart) -> V:
        """A default that is kept nowhere: agents do not write here."""
        if self._factory is not None:
            return cast("V", self._factory())
        if self._default is not tables.NO_DEFAULT:
            return cast("V", self._default)
        raise KeyError(key)


class WindowedTable(tables.WindowedTable[K, V]):
    """A table that keeps a value for each key and window, whose results streams can use as well.

    See `millstream.tables.WindowedTable` for its use inside of agents.
    """

    def _flow(self) -> TableStream[Any, V]:
        if self.home is None:
            raise ConfigurationError(f"table {self.name!r} was not declared with app.table()")
        flow: Any = self.home
        return cast("TableStream[Any, V]", flow.flow())

    def changes(self) -> DeclaredStream[V, Any]:
        """The results as a stream; its keys are `Windowed`: the key, and the window."""
        return self._flow().changes()

    def to(
        self,
        topic: Topic[Any, Any],
        *,
        value: Callable[[K, Window, V], Any] | None = None,
        windowed_key: Any = None,
    ) -> None:
        """Send each result to a topic: the group's key, and the window in headers.

        Args:
            value: makes the record's value from key, window and result.
            windowed_key: ``kafka-streams`` for the bytes that Kafka Streams gives windowed keys.
        """
        from millstream.windows import Session

        flow = self._flow()
        send = put_record
        if value is not None or windowed_key is not None:
            session = isinstance(self.declared, Session)
            send = put_windowed(value, windowed_key, session=session)
        values = Values(flow.operator, name=flow.operator.name)
        flow.home.plan.add(values)
        flow.home.check_own(topic, f"table {self.name!r}")
        name = f"{self.name}-to-{topic.name}"
        flow.home.plan.add(ToTopic(values, topic, send, name=name))
