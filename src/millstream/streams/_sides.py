"""What the sides of a join, a merge or a cogroup have in common, or are refused for: equal keys in one shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from millstream.errors import ConfigurationError, TopologyError
from millstream.serialization import any_partition, key_layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from millstream.agents import Topic
    from millstream.streams._home import StreamHome
    from millstream.streams._operator import Operator

__all__ = [
    "check_foreign_key",
    "check_home",
    "check_keyed",
    "check_keys",
    "check_plain",
    "check_sides",
    "check_topics",
    "names_of",
]

_PLAIN_KEYS = ".map_keys(lambda windowed: windowed.key, type=...)"
_OF_A_TABLE = "; of a table its .changes(), and then .to_table(...)"


class Side(Protocol):
    """A stream or a table's changes."""

    operator: Operator
    home: StreamHome


def names_of(sides: Sequence[Side]) -> str:
    """What they are called, for an error."""
    return " and ".join(repr(side.operator.name) for side in sides)


def check_home(sides: Sequence[Side], what: str) -> None:
    """Refuse sides of several apps."""
    if any(side.home is not sides[0].home for side in sides):
        raise TopologyError(
            f"{what}: they belong to different apps. What another app has comes by way of a topic:"
            f" describe it with app.topic(...) here as well"
        )


def check_sides(sides: Sequence[Side], what: str, mend: str) -> None:
    """Refuse sides whose equal keys would not meet, all of them where their keys are.

    Args:
        mend: what to do about keys of different types.
    """
    check_home(sides, what)
    for side in sides:
        check_plain(side.operator, what)
    check_keys([(side.operator.name, side.operator.key_type) for side in sides], what, mend)
    check_topics([topic for side in sides for topic in side.operator.topics], what)


def check_plain(operator: Operator, what: str) -> None:
    """Refuse keys that are windows."""
    if operator.windowed:
        raise TopologyError(
            f"{what}: the keys of {operator.name!r} are windows. Give it plain ones: {_PLAIN_KEYS}"
        )


def check_keys(sides: Iterable[tuple[str, Any]], what: str, mend: str) -> None:
    """Refuse key types of which none would ever be equal; those that are not known pass.

    Args:
        sides: names, and the types of their keys.
    """
    known = [(name, key_layout(kind).type_name) for name, kind in sides if kind is not Any]
    for name, kind in known[1:]:
        if kind != known[0][1]:
            raise TopologyError(
                f"{what}: keys of {known[0][0]!r} are of type {known[0][1]}, those of {name!r} of type"
                f" {kind}, so none would ever be equal. {mend}"
            )


def check_keyed(operator: Operator) -> None:
    """Refuse records whose equal keys are not in one shard: of several topics that do not go together."""
    what = f"stream {operator.name!r} by its keys"
    check_keys(_keys_of(operator), what, "Give it keys of one type, with .key_by(...)")
    if not operator.rekeyed:
        check_topics(operator.topics, what)


def _keys_of(operator: Operator) -> list[tuple[str, Any]]:
    """Where an operator's keys come from, and their types."""
    found: list[tuple[str, Any]] = []
    before, seen = [operator], {operator}
    for one in before:
        if one.makes_keys:
            found.append((one.name, one.key_type))
        elif one.parents:
            more = [parent for parent in one.parents if parent not in seen]
            before += more
            seen.update(more)
        else:
            found += [(topic.name, topic.key_type) for topic in one.topics]
    return found


def check_foreign_key(found: Any, right: Operator, what: str) -> None:
    """Refuse a foreign key that is no key of the right table; types that are no keys' are not known."""
    if Any in (found, right.key_type):
        return
    try:
        name = key_layout(found).type_name
    except ConfigurationError:
        return
    wanted = key_layout(right.key_type).type_name
    if name != wanted and not _is_kind_of(found, right.key_type):
        raise TopologyError(
            f"{what}: on= gives keys of type {name}, and those of {right.name!r} are of type {wanted}, so"
            f" none would ever be found. Let on= be a function that gives keys of type {wanted}"
        )


def _is_kind_of(found: Any, wanted: Any) -> bool:
    return isinstance(found, type) and isinstance(wanted, type) and issubclass(found, wanted)


def check_topics(topics: Sequence[Topic[Any, Any]], what: str) -> None:
    """Refuse sides whose equal keys would be in different shards."""
    first = topics[0]
    for topic in topics[1:]:
        counts = {first.partitions, topic.partitions}
        if None not in counts and len(counts) > 1:
            raise TopologyError(
                f"{what}: {first.name!r} has {first.partitions} partitions and {topic.name!r} has"
                f" {topic.partitions}, so equal keys would be in different shards. Bring one of"
                f" them to the other's count with .repartition(partitions=n) first{_OF_A_TABLE}"
            )
        if any_partition in (topic.partitioner, first.partitioner):
            loose = topic if topic.partitioner is any_partition else first
            raise TopologyError(
                f"{what}: records of {loose.name!r} may be in any partition (partitioner='any'), so equal"
                f" keys would be in different shards. Regroup the stream first: .key_by(...)"
            )
        if topic.partitioner is not first.partitioner:
            raise TopologyError(
                f"{what}: {first.name!r} and {topic.name!r} choose partitions in different ways"
                f" (partitioner=), so equal keys would be in different shards. Send one of them through"
                f" a topic that is partitioned like the other: .through(app.topic(...)){_OF_A_TABLE}"
            )
        codecs = {first.key_codec.name, topic.key_codec.name} - {"key"}
        if len(codecs) > 1:
            raise TopologyError(
                f"{what}: {first.name!r} and {topic.name!r} write keys in different ways"
                f" ({' and '.join(sorted(codecs))}), so equal keys would be in different shards. Send one"
                f" of them through a topic that has the other's key_codec: .through(app.topic(...))"
                f"{_OF_A_TABLE}"
            )
