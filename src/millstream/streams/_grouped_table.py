"""Groups of a table's entries, and the tables that are made of them."""

from __future__ import annotations

from bisect import bisect_left
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from typing_extensions import TypeVar

from millstream.streams._grouped import check_emit, hand_on, mean_of, number_of, with_number
from millstream.streams._table_ops import TableAggregate, TableFold
from millstream.streams._types import default_type, make_default

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from millstream.streams._grouped import Emit
    from millstream.streams._home import StreamHome
    from millstream.streams._operator import Operator
    from millstream.streams._tables import Table

__all__ = ["GroupedTable"]

V = TypeVar("V")
K = TypeVar("K")
A = TypeVar("A")


class GroupedTable(Generic[V, K]):
    """Groups of a table's entries. What is made of them follows every change: the old value leaves, the new one comes."""

    def __init__(self, operator: Operator, members: Operator, home: StreamHome) -> None:
        self._operator = operator
        self._members = members
        self._home = home

    def _table(
        self,
        fold: TableFold,
        what: str,
        *,
        value: Any,
        name: str | None,
        emit: Emit,
        shown: Callable[[Any], Any] | None = None,
        value_shown: Any = None,
    ) -> Any:
        home, parent = self._home, self._operator
        stem = parent.name.removeprefix(f"{home.id}-").removesuffix("-repartition")
        name = name or f"{stem}-{what}"
        check_emit(name, emit, None)
        operator = TableAggregate(parent, fold, name=name, value_type=value)
        home.plan.add(operator)
        table = home.kept_table(
            operator.name,
            key=parent.key_type,
            value=value,
            like=parent.topics[0],
            operator=operator,
            shown=shown,
        )
        hand_on(home, operator, shown, emit=emit, value_type=value_shown)
        return table

    def count(self, *, name: str | None = None, emit: Emit = "update") -> Table[K, int]:
        """How many entries. A group that has lost its last one counts 0."""
        fold = TableFold(lambda: 0, lambda n, _: n + 1, lambda n, _: n - 1)
        return self._table(fold, "count", value=int, name=name, emit=emit)  # type: ignore[no-any-return]

    def sum(
        self,
        of: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
    ) -> Table[K, Any]:
        """The sum of a field, of what a function gives, or of the values themselves."""
        get, value = number_of(self._members.value_type, of)
        fold = TableFold(
            lambda: 0,
            with_number(get, lambda total, number: total + number),
            with_number(get, lambda total, number: total - number),
        )
        return self._table(fold, "sum", value=value, name=name, emit=emit)  # type: ignore[no-any-return]

    def min(
        self,
        of: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
    ) -> Table[K, Any]:
        """The least of a field, of what a function gives, or of the values themselves.

        The numbers of all members are kept, as the next one counts once the least one leaves.
        """
        return self._end("min", of, name=name, emit=emit)

    def max(
        self,
        of: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
    ) -> Table[K, Any]:
        """The greatest, as `min` is the least."""
        return self._end("max", of, name=name, emit=emit)

    def _end(
        self, what: Literal["min", "max"], of: Any, *, name: str | None, emit: Emit
    ) -> Table[K, Any]:
        get, value = number_of(self._members.value_type, of)
        fold = TableFold(list, with_number(get, _with_one), with_number(get, _without_one))
        shown = _least if what == "min" else _greatest
        kept = list[tuple[value, int]]  # type: ignore[valid-type]
        return self._table(  # type: ignore[no-any-return]
            fold, what, value=kept, name=name, emit=emit, shown=shown, value_shown=value
        )

    def mean(
        self,
        of: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
    ) -> Table[K, float]:
        """The mean of a field, of what a function gives, or of the values themselves."""
        get, _ = number_of(self._members.value_type, of)

        def subtract(so_far: tuple[float, int], number: float) -> tuple[float, int] | None:
            total, count = so_far[0] - number, so_far[1] - 1
            return (total, count) if count else None

        fold = TableFold(
            lambda: (0.0, 0),
            with_number(get, lambda so_far, number: (so_far[0] + number, so_far[1] + 1)),
            with_number(get, subtract),
        )
        value = tuple[float, int]
        return self._table(fold, "mean", value=value, name=name, emit=emit, shown=mean_of)  # type: ignore[no-any-return]

    def reduce(
        self,
        add: Callable[[V, V], V | Awaitable[V]],
        subtract: Callable[[V, V], V | Awaitable[V]],
        *,
        name: str | None = None,
        emit: Emit = "update",
    ) -> Table[K, V]:
        """What ``add(so far, value)`` makes of them, and ``subtract`` undoes; the first one stands as it is."""
        fold = TableFold(None, add, subtract)
        return self._table(fold, "reduce", value=self._members.value_type, name=name, emit=emit)  # type: ignore[no-any-return]

    @overload
    def aggregate(
        self,
        *,
        default: Callable[[], A],
        add: Callable[[A, V], object],
        subtract: Callable[[A, V], object],
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
    ) -> Table[K, A]: ...
    @overload
    def aggregate(
        self,
        *,
        default: A,
        add: Callable[[A, V], A | Awaitable[A]],
        subtract: Callable[[A, V], A | Awaitable[A]],
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
    ) -> Table[K, A]: ...
    def aggregate(
        self,
        *,
        default: Any,
        add: Callable[[Any, V], Any],
        subtract: Callable[[Any, V], Any],
        value: Any = None,
        name: str | None = None,
        emit: Emit = "update",
    ) -> Table[K, Any]:
        """What ``add(so far, value)`` makes of them, and ``subtract(so far, value)`` undoes.

        Args:
            default: what a group begins with, or a function that makes it.
            value: the type of what is kept, where ``default`` does not tell.
            name: of the table and its changelog; from the sources where it is left out.
        """
        fold = TableFold(make_default(default, "aggregate"), add, subtract)
        value = default_type(default) if value is None else value
        return self._table(fold, "aggregate", value=value, name=name, emit=emit)  # type: ignore[no-any-return]


# a group's numbers, ascending, and how many members have each ---------------------------------------


def _with_one(kept: list[tuple[Any, int]], number: Any) -> list[tuple[Any, int]]:
    at = bisect_left(kept, number, key=itemgetter(0))
    if at < len(kept) and kept[at][0] == number:
        kept[at] = (number, kept[at][1] + 1)
    else:
        kept.insert(at, (number, 1))
    return kept


def _without_one(kept: list[tuple[Any, int]], number: Any) -> list[tuple[Any, int]] | None:
    at = bisect_left(kept, number, key=itemgetter(0))
    if at < len(kept) and kept[at][0] == number:
        if kept[at][1] > 1:
            kept[at] = (number, kept[at][1] - 1)
        else:
            del kept[at]
    return kept or None


def _least(kept: list[tuple[Any, int]]) -> Any:
    return kept[0][0]


def _greatest(kept: list[tuple[Any, int]]) -> Any:
    return kept[-1][0]
