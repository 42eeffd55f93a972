"""Groups of a table's entries, and the tables that are made of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from typing_extensions import TypeVar

from millstream.agents import field_getter
from millstream.errors import TopologyError
from millstream.serialization import upgrading
from millstream.streams._codec import (
    PairCodec,
    annotate,
    each_upgraded,
    has_no_upgrade,
    upgrade_with,
    value_codec,
)
from millstream.streams._operator import WAITS
from millstream.streams._shapes import (
    check_count,
    check_emit,
    divided,
    hand_on,
    mean_of,
    number_of,
    sum_of,
    with_number,
)
from millstream.streams._sides import check_sides, names_of
from millstream.streams._table_ops import GroupTable, TableAggregate, TableFold
from millstream.streams._types import (
    field_type,
    first_value,
    result_type,
    typed_by,
    without_none,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from millstream.clock import Duration
    from millstream.streams._home import StreamHome
    from millstream.streams._operator import Operator
    from millstream.streams._shapes import Emit
    from millstream.streams._tables import Table

__all__ = ["CogroupedTable", "GroupedTable", "group_table"]

V = TypeVar("V")
K = TypeVar("K")
A = TypeVar("A")
W = TypeVar("W")
N = TypeVar("N", default=Any)


class GroupedTable(Generic[V, K]):
    """Groups of a table's entries. What is made of them follows every change: the old value leaves, the new one comes.

    ``upgrade`` is that of `GroupedStream`.
    """

    def __init__(self, operator: Operator, members: Operator, home: StreamHome) -> None:
        self.operator = operator
        self._members = members
        self.home = home

    def _table(self, fold: TableFold, what: str, **given: Any) -> Any:
        return _declare([self], [fold], what, **given)

    def count(
        self,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, int]:
        """How many entries. A group that has lost its last one counts 0."""
        fold = TableFold(lambda: 0, lambda n, _: n + 1, lambda n, _: n - 1)
        return self._table(fold, "count", value=int, name=name, emit=emit, emit_every=emit_every)  # type: ignore[no-any-return]

    def sum(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, N]:
        """The sum of a field, of what a function gives, or of the values themselves."""
        get, value, zero = sum_of(self._members.value_type, of)
        fold = TableFold(
            lambda: zero,
            with_number(get, lambda total, number: total + number),
            with_number(get, lambda total, number: total - number),
        )
        return self._table(fold, "sum", value=value, name=name, emit=emit, emit_every=emit_every)  # type: ignore[no-any-return]

    def min(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, N]:
        """The least of a field, of what a function gives, or of the values themselves.

        The numbers of all members are kept, as the next one counts once the least one leaves.
        """
        return self._end("min", of, name=name, emit=emit, emit_every=emit_every)

    def max(
        self,
        of: str | Callable[[V], N | Awaitable[N]] | None = None,
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
    ) -> Table[K, N]:
        """The greatest, as `min` is the least."""
        return self._end("max", of, name=name, emit=emit, emit_every=emit_every)

    def _end(self, what: Literal["min", "max"], of: Any, **given: Any) -> Table[K, Any]:
        get, value = number_of(self._members.value_type, of)
        fold = TableFold(list, with_number(get, _with_one), with_number(get, _without_one))
        shown = _least if what == "min" else _greatest
        kept = list[tuple[value, int]]  # type: ignore[valid-type]
        return self._table(  # type: ignore[no-any-return]
            fold, what, value=kept, shown=shown, value_shown=value, **given
        )

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
        get, kind, zero = mean_of(self._members.value_type, of)

        def subtract(so_far: tuple[Any, int], number: Any) -> tuple[Any, int] | None:
            total, count = so_far[0] - number, so_far[1] - 1
            return (total, count) if count else None

        fold = TableFold(
            lambda: (zero, 0),
            with_number(get, lambda so_far, number: (so_far[0] + number, so_far[1] + 1)),
            with_number(get, subtract),
        )
        return self._table(  # type: ignore[no-any-return]
            fold,
            "mean",
            value=tuple[kind, int],  # type: ignore[valid-type]
            name=name,
            emit=emit,
            emit_every=emit_every,
            shown=divided,
            value_shown=kind,
        )

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
        """The ``count`` values with the greatest field, greatest first; those that came earlier first where they are equal.

        All members are kept, as the next one counts once one of the greatest leaves.
        """
        check_count(count)
        get, number = number_of(self._members.value_type, by)

        def ranked(value: V) -> Any:
            number = get(value)
            return ranked_later(number, value) if number.__class__ in WAITS else (number, value)

        async def ranked_later(number: Any, value: V) -> tuple[Any, V]:
            return await number, value

        def greatest(kept: list[tuple[Any, V]]) -> list[V]:
            return [value for _, value in kept[: -count - 1 : -1]]

        fold = TableFold(
            list, with_number(ranked, _with_member), with_number(ranked, _without_member)
        )
        value = self._members.value_type
        return self._table(  # type: ignore[no-any-return]
            fold,
            f"top-{count}",
            value=list[tuple[number, value]],  # type: ignore[valid-type]
            name=name,
            emit=emit,
            emit_every=emit_every,
            shown=greatest,
            upgrade=each_upgraded(upgrade, value, ranked=True),
            upgrade_shown=each_upgraded(upgrade, value),
            mend=upgrade_with("top_k"),
            value_shown=list[value],  # type: ignore[valid-type]
        )

    def reduce(
        self,
        add: Callable[[V, V], V | Awaitable[V]],
        subtract: Callable[[V, V], V | Awaitable[V]],
        *,
        name: str | None = None,
        emit: Emit = "update",
        emit_every: Duration | None = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, V]:
        """What ``add(so far, value)`` makes of them, and ``subtract`` undoes; the first one stands as it is."""
        fold = TableFold(None, add, subtract)
        return self._table(  # type: ignore[no-any-return]
            fold,
            "reduce",
            value=self._members.value_type,
            name=name,
            emit=emit,
            emit_every=emit_every,
            upgrade=upgrade,
            mend=upgrade_with("reduce"),
        )

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
        emit_every: Duration | None = None,
        upgrade: Callable[[Any], Any] | None = None,
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
        emit_every: Duration | None = None,
        upgrade: Callable[[Any], Any] | None = None,
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
        emit_every: Duration | None = None,
        upgrade: Callable[[Any], Any] | None = None,
    ) -> Table[K, Any]:
        """What ``add(so far, value)`` makes of them, and ``subtract(so far, value)`` undoes.

        Args:
            default: what a group begins with, each with a copy of its own, or a function that makes it.
            value: the type of what is kept, where ``default`` does not tell.
            name: of the table and its changelog; from the sources where it is left out.
            emit: when results come out, see `Emit`.
            emit_every: at most so often by the wall clock, the latest value of each group.
            upgrade: turns a value that was kept in an older form, as plain JSON types, into a new one.
        """
        remedy = typed_by(value)
        initial, value = first_value(default, value)
        return self._table(  # type: ignore[no-any-return]
            TableFold(initial, add, subtract),
            "aggregate",
            value=value,
            name=name,
            emit=emit,
            emit_every=emit_every,
            remedy=remedy,
            upgrade=upgrade,
            mend=upgrade_with("aggregate"),
        )

    def cogroup(
        self, add: Callable[[A, V], A | Awaitable[A]], subtract: Callable[[A, V], A | Awaitable[A]]
    ) -> CogroupedTable[A, K]:
        """The first of several tables' groups that make one value together; see `CogroupedTable`."""
        return CogroupedTable([self], [(add, subtract)])


class CogroupedTable(Generic[A, K]):
    """Groups of several tables' entries by one key, which make one value: each table adds and subtracts in its own way."""

    def __init__(
        self,
        groups: Sequence[GroupedTable[Any, K]],
        functions: Sequence[tuple[Callable[[A, Any], Any], Callable[[A, Any], Any]]],
    ) -> None:
        self._groups = groups
        self._functions = functions

    def cogroup(
        self,
        groups: GroupedTable[W, K],
        add: Callable[[A, W], A | Awaitable[A]],
        subtract: Callable[[A, W], A | Awaitable[A]],
    ) -> CogroupedTable[A, K]:
        """One more table's groups, and how their members are added and subtracted."""
        return CogroupedTable([*self._groups, groups], [*self._functions, (add, subtract)])

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
        """The table of what they make; arguments as for `GroupedTable.aggregate`."""
        remedy = typed_by(value)
        initial, value = first_value(default, value)
        return _declare(  # type: ignore[no-any-return]
            self._groups,
            [TableFold(initial, add, subtract) for add, subtract in self._functions],
            "aggregate",
            value=value,
            name=name,
            emit=emit,
            emit_every=emit_every,
            remedy=remedy,
            upgrade=upgrade,
            mend=upgrade_with("aggregate"),
        )


def group_table(
    home: StreamHome,
    operator: Operator,
    key: str | Callable[[Any], Any],
    *,
    name: str | None,
    key_type: Any,
) -> GroupedTable[Any, Any]:
    """Groups of the entries of a table, windowed or not, of which an operator hands on the changes.

    Args:
        name: see `TableChanges.group_by`.
        key_type: None where the field or the function's annotation tells.

    Raises:
        TopologyError: a function without a name.
    """
    if name is None:
        if callable(key):
            raise TopologyError(
                f"group_by over table {operator.name!r} has a function: give it a name, for example"
                f" group_by(..., name={operator.name + '-regrouped'!r}). The topic behind it is named"
                f" after it, and has to keep its name"
            )
        name = f"{operator.name}-by-{key}"
    if key_type is None and isinstance(key, str):
        key_type = field_type(operator.value_type, key)
    elif key_type is None:
        key_type = without_none(result_type(key))
    getter = field_getter(key, operator.value_type)
    shared = operator, key, name
    source = home.plan.grouped.get(shared) if isinstance(key, Hashable) else None
    if source is None or source.key_type != key_type:
        topic = home.repartition_topic(
            name,
            key=key_type,
            value=Any,
            codec=PairCodec(operator.values),
            of=[operator],
            like=operator.topics,
        )
        home.plan.add(GroupTable(operator, getter, topic, name=f"{name}-repartition"))
        source = home.plan.source([topic], operator.concurrency)
        if isinstance(key, Hashable):
            home.plan.grouped[shared] = source
    return GroupedTable(source, operator, home)


def _declare(
    groups: Sequence[GroupedTable[Any, Any]],
    folds: Sequence[TableFold],
    what: str,
    *,
    value: Any,
    name: str | None,
    emit: Emit,
    emit_every: Duration | None,
    shown: Callable[[Any], Any] | None = None,
    value_shown: Any = None,
    remedy: Callable[[Any], str] = annotate,
    upgrade: Callable[[Any], Any] | None = None,
    upgrade_shown: Callable[[Any], Any] | None = None,
    mend: str | None = None,
) -> Any:
    """Declare operator and table; returns the table.

    Args:
        value: the type of what is kept.
        shown: makes what programs see of it, of the type ``value_shown``.
        upgrade: turns stored values of an older form into new ones; ``upgrade_shown`` those that programs see.
        mend: says what to do about stored values that do not decode; None where it converts none.
    """
    home, parents = groups[0].home, [group.operator for group in groups]
    what_they_are = f"groups of {names_of(groups)}"
    check_sides(groups, what_they_are, "Group one of the tables by something else")
    stem = parents[0].name.removeprefix(f"{home.id}-").removesuffix("-repartition")
    name = name or f"{stem}-{what}"
    check_emit(name, emit, None)
    operator = TableAggregate(parents, folds, name=name, value_type=value)
    if upgrade is not None:
        operator.codec = upgrading(value_codec(value), upgrade, f"table {name!r}")
    operator.mend = has_no_upgrade(what) if mend is None else None
    home.plan.add(operator)
    table = home.kept_table(
        name,
        key=operator.key_type,
        value=value,
        like=parents[0].topics[0],
        operator=operator,
        shown=shown,
        remedy=remedy,
        upgrade=upgrade,
        mend=mend or operator.mend,
    )
    hand_on(
        home,
        operator,
        shown,
        emit=emit,
        emit_every=emit_every,
        value_type=value_shown,
        upgrade=upgrade_shown,
    )
    return table


# a group's members by a number of theirs, ascending: those that came earlier last among equals ------


def _with_member(kept: list[tuple[Any, Any]], member: tuple[Any, Any]) -> list[tuple[Any, Any]]:
    kept.insert(bisect_left(kept, member[0], key=itemgetter(0)), member)
    return kept


def _without_member(
    kept: list[tuple[Any, Any]], member: tuple[Any, Any]
) -> list[tuple[Any, Any]] | None:
    number, value = member
    end = bisect_right(kept, number, key=itemgetter(0))
    for at in range(bisect_left(kept, number, key=itemgetter(0)), end):
        if kept[at][1] == value:
            del kept[at]
            break
    return kept or None


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
