"""What a group of a stream's values is made into: folds, and how they become operators and tables."""

from __future__ import annotations

import datetime as dt
import enum
import heapq
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, get_origin

from millstream import windows as kinds
from millstream.agents import field_getter
from millstream.errors import ConfigurationError
from millstream.serialization import type_name, upgrading
from millstream.streams._aggregate import Aggregate, Fold, WindowedAggregate
from millstream.streams._codec import (
    annotate,
    each_upgraded,
    has_no_upgrade,
    upgrade_with,
    value_codec,
)
from millstream.streams._operator import WAITS
from millstream.streams._sides import check_home, check_sides, names_of
from millstream.streams._suppress import Suppress, emitted_every, suppressed
from millstream.streams._table_ops import MapTable, awaited
from millstream.streams._types import field_type, first_value, result_type, typed_by
from millstream.tables import TimedPart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millstream.clock import Duration
    from millstream.streams._home import StreamHome
    from millstream.streams._operator import Operator
    from millstream.streams._stream import DeclaredStream
    from millstream.windows import AnyWindows

__all__ = [
    "Emit",
    "Shape",
    "aggregate_shape",
    "check_count",
    "check_emit",
    "count_shape",
    "divided",
    "hand_on",
    "least_shape",
    "mean_of",
    "mean_shape",
    "number_of",
    "reduce_shape",
    "sum_of",
    "sum_shape",
    "top_k_shape",
    "with_number",
]

Emit: TypeAlias = "Literal['update', 'every', 'final'] | Suppress"
"""When results come out: with each update, all of them even where a commit could leave some out (``every``), once
for each window when it is final, or as `Suppress` says."""


_NO_NUMBERS = (str, bytes, bytearray, dt.date, dt.time, list, tuple, dict, set, frozenset)
"""Classes whose values do not add up to one."""


class Shape:
    """What an aggregate is to be, before it is declared: one fold for each stream that goes in."""

    def __init__(
        self,
        streams: Sequence[DeclaredStream[Any, Any]],
        folds: Sequence[Fold],
        what: str,
        *,
        value: Any,
        shown: Callable[[Any], Any] | None = None,
        value_shown: Any = None,
        merge: Callable[[Any, Any], Any] | None = None,
        remedy: Callable[[Any], str] = annotate,
        upgrade: Callable[[Any], Any] | None = None,
        mend: str | None = None,
    ) -> None:
        """
        Args:
            what: makes the name of one that is given none.
            shown: makes what programs see of what is kept, of the type ``value_shown``.
            upgrade: turns stored values of an older form into new ones.
            mend: says what to do about stored values that do not decode; None where it converts none.
        """
        self.streams = streams
        self.folds = folds
        self.what = what
        self.value = value
        self.shown = shown
        self.value_shown = value_shown
        self.merge = merge
        self.remedy = remedy
        self.upgrade = upgrade
        self.mend = mend

    @property
    def home(self) -> StreamHome:
        return self.streams[0].home

    def declare(
        self, name: str | None, emit: Emit, windows: AnyWindows | None, emit_every: Duration | None
    ) -> Any:
        """Declare operator and table; returns the table."""
        home = self.home
        check_home(self.streams, f"groups of {names_of(self.streams)}")
        moved = [stream.by_key() for stream in self.streams]
        parents = [stream.operator for stream in moved]
        what = f"groups of {names_of(moved)}"
        check_sides(moved, what, "Give one of them other keys, with .group_by(...)")
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
        operator.mend = has_no_upgrade(self.what) if self.mend is None else None
        if self.upgrade is not None:
            operator.codec = upgrading(value_codec(self.value), self.upgrade, f"table {name!r}")
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
            remedy=self.remedy,
            upgrade=self.upgrade,
            mend=self.mend or operator.mend,
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
        hand_on(
            home,
            operator,
            self.shown,
            emit=emit,
            windows=windows,
            emit_every=emit_every,
            value_type=self.value_shown,
        )
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
    upgrade: Callable[[Any], Any] | None = None,
) -> None:
    """Declare what becomes of the changes of an aggregate's table.

    Args:
        shown: makes what programs see of what is kept.
        value_type: of that; read from ``shown`` where it is left out.
        upgrade: turns values of an older form of that type into new ones.
    """
    name, flow = operator.name, operator
    if shown is not None:
        value_type = result_type(shown) if value_type is None else value_type
        flow = home.plan.add(MapTable(flow, shown, name=name, value_type=value_type))
        if upgrade is not None:
            flow.codec = upgrading(value_codec(value_type), upgrade, f"table {name!r}")
    if isinstance(emit, Suppress):
        flow = suppressed(home, flow, emit, f"{name}-suppress", windows)
    if emit_every is not None:
        flow = emitted_every(home, flow, emit_every, f"{name}-emit")
    home.hand_on(name, flow)


def make_time_part(name: str, **arguments: Any) -> TimedPart:
    """A table that keeps nothing but event time."""
    return TimedPart(name, **arguments)


def count_shape(stream: DeclaredStream[Any, Any]) -> Shape:
    fold = Fold(lambda: 0, lambda count, _: count + 1)
    return Shape([stream], [fold], "count", value=int, merge=lambda a, b: a + b)


def number_of(
    value_type: Any, of: str | Callable[[Any], Any] | None
) -> tuple[Callable[[Any], Any], Any]:
    """What reads a number from a value, and the number's type."""
    if of is None:
        return lambda value: value, value_type
    found = field_type(value_type, of) if isinstance(of, str) else result_type(of)
    return field_getter(of, value_type), found


def sum_of(
    value_type: Any, of: str | Callable[[Any], Any] | None
) -> tuple[Callable[[Any], Any], Any, Any]:
    """What reads a number from a value, the type of the sum of such numbers, and what it begins with.

    Raises:
        ConfigurationError: they are of a type that has no sum.
    """
    get, found = number_of(value_type, of)
    kind = _sum_type(found)
    _check_adds("sum", of, kind)
    return get, kind, dt.timedelta() if _is_kind(kind, dt.timedelta) else 0


def mean_of(
    value_type: Any, of: str | Callable[[Any], Any] | None
) -> tuple[Callable[[Any], Any], Any, Any]:
    """What reads a number from a value, the type of the mean of such numbers, and what their sum begins with.

    Raises:
        ConfigurationError: they are of a type that has no mean.
    """
    get, found = number_of(value_type, of)
    kind = _sum_type(found)
    _check_adds("mean", of, kind)
    mean = next((one for one in (Decimal, dt.timedelta) if _is_kind(kind, one)), float)
    return get, mean, mean()


def _is_kind(found: Any, kind: type) -> bool:
    return isinstance(found, type) and issubclass(found, kind)


def _check_adds(step: str, of: Any, found: Any) -> None:
    """Refuse what Python does not add to a number."""
    if any(_is_kind(get_origin(found) or found, kind) for kind in _NO_NUMBERS):
        raise ConfigurationError(
            f"{step}({'' if of is None else repr(of)}): values of type {type_name(found)} have no {step}."
            f" Give a field, or a function with an annotation, of int, float, Decimal or timedelta"
        )


def _sum_type(found: Any) -> Any:
    """The type of sums of such numbers: plain ones, where the declared ones are a few of them only."""
    if get_origin(found) is Literal:
        kinds = {_sum_type(type(one)) for one in get_args(found)}
        return kinds.pop() if len(kinds) == 1 else Any
    if isinstance(found, type) and issubclass(found, (bool, enum.Enum)):
        return next((kind for kind in (int, float) if issubclass(found, kind)), found)
    return found


def with_number(
    get: Callable[[Any], Any], add: Callable[[Any, Any], Any]
) -> Callable[[Any, Any], Any]:
    """A fold over what is read from each value; one to await where the reading is."""

    def take(so_far: Any, value: Any) -> Any:
        number = get(value)
        return later(so_far, number) if number.__class__ in WAITS else add(so_far, number)

    async def later(so_far: Any, number: Any) -> Any:
        return add(so_far, await number)

    return take


def sum_shape(stream: DeclaredStream[Any, Any], of: Any) -> Shape:
    get, value_type, zero = sum_of(stream.operator.value_type, of)
    fold = Fold(lambda: zero, with_number(get, lambda total, number: total + number))
    return Shape([stream], [fold], "sum", value=value_type, merge=lambda a, b: a + b)


def least_shape(stream: DeclaredStream[Any, Any], of: Any, what: str) -> Shape:
    get, value_type = number_of(stream.operator.value_type, of)
    choose: Callable[..., Any] = min if what == "min" else max

    def add(found: Any, one: Any) -> Any:
        return one if found is None else choose(found, one)

    return Shape(
        [stream], [Fold(lambda: None, with_number(get, add))], what, value=value_type, merge=choose
    )


def mean_shape(stream: DeclaredStream[Any, Any], of: Any) -> Shape:
    get, kind, zero = mean_of(stream.operator.value_type, of)
    add = with_number(get, lambda so_far, number: (so_far[0] + number, so_far[1] + 1))
    fold = Fold(lambda: (zero, 0), add)
    return Shape(
        [stream],
        [fold],
        "mean",
        value=tuple[kind, int],  # type: ignore[valid-type]
        shown=divided,
        value_shown=kind,
        merge=lambda a, b: (a[0] + b[0], a[1] + b[1]),
    )


def divided(so_far: tuple[Any, int]) -> Any:
    """The mean, from a sum and a count."""
    return so_far[0] / so_far[1]


def check_count(count: int) -> None:
    """See that so many of a group's values can be the greatest.

    Raises:
        ConfigurationError: they cannot.
    """
    if type(count) is not int:
        raise ConfigurationError(
            f"top_k({count!r}): the first argument is how many, for example top_k(3, by='amount')"
        )
    if count < 1:
        raise ConfigurationError(f"top_k: {count} is not above 0")


def top_k_shape(stream: DeclaredStream[Any, Any], count: int, by: Any, upgrade: Any) -> Shape:
    check_count(count)
    get, _ = number_of(stream.operator.value_type, by)

    def best(values: list[Any], numbers: list[Any]) -> list[Any]:
        order = heapq.nlargest(count, range(len(values)), key=numbers.__getitem__)
        return [values[at] for at in order]

    def among(*lists: list[Any]) -> Any:
        values, numbers = [value for some in lists for value in some], []
        for value in values:
            number = get(value)
            if number.__class__ in WAITS:
                return among_later(values, numbers, number)
            numbers.append(number)
        return best(values, numbers)

    async def among_later(values: list[Any], numbers: list[Any], waits: Any) -> list[Any]:
        numbers.append(await waits)
        numbers += [await awaited(get(value)) for value in values[len(numbers) :]]
        return best(values, numbers)

    stream.operator.check_values()
    fold = Fold(list, lambda top, value: among(top, [value]))
    value_type = stream.operator.value_type
    return Shape(
        [stream],
        [fold],
        f"top-{count}",
        value=list[value_type],  # type: ignore[valid-type]
        merge=among,
        upgrade=each_upgraded(upgrade, value_type),
        mend=upgrade_with("top_k"),
    )


def reduce_shape(stream: DeclaredStream[Any, Any], function: Any, upgrade: Any) -> Shape:
    stream.operator.check_values()
    return Shape(
        [stream],
        [Fold(None, function)],
        "reduce",
        value=stream.operator.value_type,
        merge=function,
        upgrade=upgrade,
        mend=upgrade_with("reduce"),
    )


def aggregate_shape(
    streams: Sequence[DeclaredStream[Any, Any]],
    adds: Sequence[Callable[[Any, Any], Any]],
    default: Any,
    value: Any,
    merge: Any,
    *,
    windows: AnyWindows | None = None,
    upgrade: Any = None,
) -> Shape:
    if merge is not None and not isinstance(windows, kinds.Session):
        raise ConfigurationError(f"aggregate: merge= is for sessions; {windows} never merge")
    remedy = typed_by(value)
    initial, value = first_value(default, value)
    # as in Kafka Streams: without windows, and with sliding ones, a record without a value is dropped
    skips = windows is None or isinstance(windows, kinds.Sliding)
    folds = [Fold(initial, add, skips_null=skips) for add in adds]
    return Shape(
        streams,
        folds,
        "aggregate",
        value=value,
        merge=merge,
        remedy=remedy,
        upgrade=upgrade,
        mend=upgrade_with("aggregate"),
    )
