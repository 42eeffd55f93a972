"""Declaring joins of a stream: what they need is checked here, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from millstream.agents import Topic, field_getter
from millstream.clock import Duration, duration_ms, format_duration
from millstream.errors import ConfigurationError, TopologyError
from millstream.streams._join_streams import Reach, SelfJoin, StreamJoin
from millstream.streams._join_table import TableJoin, find_as_of, find_by_operator, find_in_part
from millstream.streams._sides import check_home, check_keys, check_topics
from millstream.streams._stream import DeclaredStream
from millstream.streams._tables import TableStream
from millstream.streams._types import result_type
from millstream.streams._windowed_changes import WindowedChanges
from millstream.tables import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millstream.streams._home import StreamHome
    from millstream.streams._operator import Operator

__all__ = ["Within", "declare_join"]

Within = Duration | tuple[Duration, Duration]
"""How far apart records may be: a duration, or the lower and the upper end of ``right - left``."""


def declare_join(
    left: DeclaredStream[Any, Any],
    other: Any,
    joiner: Callable[[Any, Any], Any],
    *,
    how: str,
    within: Within | None,
    grace: Duration | None,
    name: str | None,
    on: str | Callable[[Any], Any] | None,
    value: Any,
) -> DeclaredStream[Any, Any]:
    """See `DeclaredStream.join`."""
    if how not in ("inner", "left", "outer"):
        raise ConfigurationError(f"join: how={how!r} is none of inner, left, outer")
    made = result_type(joiner) if value is None else value
    if isinstance(other, DeclaredStream):
        if on is not None:
            raise TopologyError(
                "join: on= goes with a global table. Streams are joined by their keys: give them"
                " others with .key_by(...)"
            )
        return _join_streams(left, other, joiner, how, within, grace, name, made)
    if isinstance(other, Topic):
        raise TopologyError(
            f"join of {_stem(left)!r}: {other.name!r} is a topic. Join with its stream, app.stream(topic), or"
            f" with a table of it, app.table(name, topic=topic)"
        )
    if not isinstance(other, (Table, TableStream, WindowedChanges)):
        raise TopologyError(
            f"join of {_stem(left)!r}: {other!r} is neither a stream nor a table of this app"
        )
    if within is not None:
        raise TopologyError(
            f"join of {_stem(left)!r}: within= goes with a stream; a table has one value at a time"
        )
    if how == "outer":
        raise TopologyError(
            f"join of {_stem(left)!r} with a table: how='outer' needs two streams or two tables; changes of"
            f" the table make no results here. Use inner or left, or make a table of the stream:"
            f" .to_table(...)"
        )
    return _join_table(left, _target(other, left.home), joiner, how, grace, name, on, made)


# two streams --------------------------------------------------------------------------------------


def _join_streams(
    left: DeclaredStream[Any, Any],
    right: DeclaredStream[Any, Any],
    joiner: Callable[[Any, Any], Any],
    how: str,
    within: Within | None,
    grace: Duration | None,
    name: str | None,
    value_type: Any,
) -> DeclaredStream[Any, Any]:
    home = left.home
    what = f"join of {_stem(left)!r} and {_stem(right)!r}"
    check_home([left, right], what)
    reach = _reach(within, grace, what)
    for side in (left, right):
        if side.operator.windowed:
            raise TopologyError(
                f"{what}: the keys of {_stem(side)!r} are windows. Give it plain ones:"
                f" .map_keys(lambda windowed: windowed.key, type=...)"
            )
    left, right = _together(left, right, what)
    name = name or f"{_stem(left)}-{_stem(right)}-join"
    parents = left.operator, right.operator
    operator: StreamJoin | SelfJoin
    if parents[0] is parents[1] and how == "inner":
        operator = SelfJoin(parents[0], joiner, name=name, reach=reach, value_type=value_type)
    else:
        operator = StreamJoin(
            *parents, joiner, name=name, how=how, reach=reach, value_type=value_type
        )
    home.plan.add(operator)
    operator.declare(home)
    return DeclaredStream(operator, home)


def _reach(within: Within | None, grace: Duration | None, what: str) -> Reach:
    if within is None:
        raise TopologyError(
            f"{what}: within= is missing. Two streams are joined within a reach of event time, for example"
            f" within='10m', or within=('-1m', '10m') for right records from a minute before to ten"
            f" minutes after the left one"
        )
    if isinstance(within, tuple):
        if len(within) != 2:
            raise ConfigurationError(f"{what}: within={within!r} is not a pair of durations")
        lower, upper = (duration_ms(end, what=f"{what}: within") for end in within)
    else:
        upper = duration_ms(within, what=f"{what}: within")
        lower = -upper
    if lower > upper:
        raise ConfigurationError(
            f"{what}: within={within!r} is empty: its lower end, {format_duration(lower)}, is above its"
            f" upper one, {format_duration(upper)}"
        )
    grace_ms = 0 if grace is None else duration_ms(grace, what=f"{what}: grace")
    if grace_ms < 0:
        raise ConfigurationError(f"{what}: grace={grace!r} is below 0")
    return Reach(-lower, upper, grace_ms)


# a stream and a table -----------------------------------------------------------------------------


class _Target(NamedTuple):
    """A table to look into."""

    name: str
    tables: Sequence[str]
    find: Any
    key_type: Any
    topic: Topic[Any, Any] | None
    """One that it is co-partitioned with; None where that is not known yet."""
    everywhere: bool = False
    history_ms: int | None = None


def _target(other: Any, home: StreamHome) -> _Target:
    if isinstance(other, WindowedChanges):
        raise TopologyError(
            f"join with {other.name!r}: it is windowed, so a record has no one value in it. Join with the"
            f" stream of its results: .join({other.name}.changes().map_keys(...), ..., within=...)"
        )
    if isinstance(other, TableStream):
        return _made(other.operator, other.home, home)
    declared: Any = other._home()
    if declared.everywhere:
        _same_home(declared.app.streams, home, other.name)
        find = find_in_part(other.name)
        reads = (other.name,)
        return _Target(other.name, reads, find, declared.key_type, None, everywhere=True)
    if declared.operator is None and declared.topic is None:
        _same_home(declared.app.streams, home, other.name)
        history = declared.versioned_ms
        find = find_in_part(other.name) if history is None else find_as_of(other.name)
        reads = (other.name,)
        return _Target(other.name, reads, find, declared.key_type, None, history_ms=history)
    flow: TableStream[Any, Any] = declared.flow()
    return _made(flow.operator, flow.home, home)


def _made(operator: Operator, its: StreamHome, home: StreamHome) -> _Target:
    _same_home(its, home, operator.name)
    if operator.windowed:
        raise TopologyError(
            f"join with {operator.name!r}: its keys are windows, so a record has no one value in it"
        )
    operator.look_into()
    return _Target(
        operator.name,
        [store for one in operator.looked_into() for store in one.stores],
        find_by_operator(operator),
        operator.key_type,
        operator.topics[0],
        history_ms=operator.history_ms,
    )


def _same_home(its: StreamHome, home: StreamHome, table: str) -> None:
    if its is not home:
        raise TopologyError(f"join with table {table!r}: it belongs to another app")


def _join_table(
    left: DeclaredStream[Any, Any],
    target: _Target,
    joiner: Callable[[Any, Any], Any],
    how: str,
    grace: Duration | None,
    name: str | None,
    on: str | Callable[[Any], Any] | None,
    value_type: Any,
) -> DeclaredStream[Any, Any]:
    home = left.home
    what = f"join of {_stem(left)!r} and table {target.name!r}"
    grace_ms = None if grace is None else duration_ms(grace, what=f"{what}: grace")
    getter = None
    if target.everywhere:
        if on is not None:
            getter = field_getter(on, left.operator.value_type)
    else:
        if on is not None:
            raise TopologyError(
                f"{what}: on= goes with a global table, which every worker has whole. Of this one each shard"
                f" has its own keys: bring the records there with .key_by({on!r}) before the join"
            )
        left = _beside(left, target, what)
    if grace_ms is not None:
        _check_grace(grace_ms, target, left, what)
    operator = TableJoin(
        left.operator,
        target.find,
        joiner,
        name=name or f"{_stem(left)}-{target.name}-join",
        left=how == "left",
        value_type=value_type,
        tables=target.tables,
        everywhere=target.everywhere,
        on=getter,
        grace_ms=grace_ms,
    )
    home.plan.add(operator)
    operator.declare(home)
    return DeclaredStream(operator, home)


def _check_grace(grace_ms: int, target: _Target, left: DeclaredStream[Any, Any], what: str) -> None:
    if target.history_ms is None:
        raise TopologyError(
            f"{what}: grace= makes records wait, to find what the table had at their time, and this table"
            f" does not remember it: declare it with app.table(..., versioned='1d'). Of the steps behind that,"
            f" filter() and map_values() without a name know it too"
        )
    if not 0 <= grace_ms <= target.history_ms:
        raise ConfigurationError(
            f"{what}: grace is {format_duration(grace_ms)}, and has to be between 0 and what the table"
            f" remembers, versioned={format_duration(target.history_ms)!r}"
        )
    if left.operator.windowed:
        raise TopologyError(
            f"{what}: grace= needs plain keys, and those of {_stem(left)!r} are windows:"
            f" .map_keys(lambda windowed: windowed.key, type=...)"
        )


# co-partitioning ----------------------------------------------------------------------------------


def _stem(stream: DeclaredStream[Any, Any]) -> str:
    name = stream.operator.name.removeprefix(f"{stream.home.id}-")
    return name.removesuffix("-repartition")


def _together(
    left: DeclaredStream[Any, Any], right: DeclaredStream[Any, Any], what: str
) -> tuple[DeclaredStream[Any, Any], DeclaredStream[Any, Any]]:
    """Both sides in the shards of their keys, which are the same."""
    _check_keys(left, right.operator.key_type, _stem(right), what)
    if not right.operator.rekeyed:
        left = left._by_key(right.operator.topics[0])
    else:
        left = left.by_key()
        right = right._by_key(left.operator.topics[0])
    topics = [*left.operator.topics, *right.operator.topics]
    check_topics(topics, what)
    return left, right


def _beside(left: DeclaredStream[Any, Any], target: _Target, what: str) -> DeclaredStream[Any, Any]:
    """The stream in the shards of its keys, which are those of the table."""
    _check_keys(left, target.key_type, target.name, what)
    if target.topic is None:
        return left.by_key()
    left = left._by_key(target.topic)
    check_topics([*left.operator.topics, target.topic], what)
    return left


def _check_keys(left: DeclaredStream[Any, Any], key_type: Any, other: str, what: str) -> None:
    keys = [(_stem(left), left.operator.key_type), (other, key_type)]
    check_keys(keys, what, "Give one of them other keys, with .key_by(...)")
