"""Streams as programs declare them: the records of some topics, and what is done with them.

A declared stream is a value: every step makes a new one. Nothing runs before the app does.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from typing_extensions import TypeVar

from millstream.agents import Topic, field_getter
from millstream.clock import duration_ms
from millstream.errors import ConfigurationError, TopologyError
from millstream.serialization import upgrading
from millstream.streams._codec import upgrade_with
from millstream.streams._distinct import distinct
from millstream.streams._process import process
from millstream.streams._sides import check_home, check_keyed, check_plain, names_of
from millstream.streams._sink import put_record
from millstream.streams._stateless import (
    Branch,
    Filter,
    FlatMap,
    Map,
    Merge,
    Peek,
    Rekey,
    Split,
    ToTopic,
)
from millstream.streams._table_ops import Upsert
from millstream.streams._types import field_type, result_type, without_none

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        Awaitable,
        Callable,
        Coroutine,
        Iterable,
    )

    from typing_extensions import TypeForm

    from millstream import tables
    from millstream.clock import Duration
    from millstream.streams._grouped import GroupedStream
    from millstream.streams._home import StreamHome
    from millstream.streams._join import Within
    from millstream.streams._operator import Operator, Windowed
    from millstream.streams._process import Processor
    from millstream.streams._tables import Table, TableStream

__all__ = ["DeclaredStream"]

V = TypeVar("V")
W = TypeVar("W")
U = TypeVar("U")
K = TypeVar("K", default=Any)
L = TypeVar("L")


class DeclaredStream(Generic[V, K]):
    """The records of some topics, with what is done to them on their way.

    Functions may be async: a shard waits for one before it takes the next record, unless the stream was declared
    with a ``concurrency``; of one key nothing overtakes in either case. What a function raises, the app's ``on_error`` decides about.
    """

    def __init__(self, operator: Operator, home: StreamHome) -> None:
        self.operator = operator
        self.home = home

    def __repr__(self) -> str:
        return f"<stream {self.operator.name!r}>"

    def _then(self, operator: Operator) -> DeclaredStream[Any, Any]:
        return DeclaredStream(self.home.plan.add(operator), self.home)

    def _named(self, what: str) -> str:
        return f"{self.operator.name}-{what}"

    # one record after the other -------------------------------------------------------------------

    def filter(self, keep: Callable[[V], Any]) -> DeclaredStream[V, K]:
        """The values for which ``keep`` is true."""
        return self._then(Filter(self.operator, keep, name=self.operator.name))

    @overload
    def map(
        self, function: Callable[[V], Coroutine[Any, Any, W]], *, value: Any = None
    ) -> DeclaredStream[W, K]: ...
    @overload
    def map(self, function: Callable[[V], W], *, value: Any = None) -> DeclaredStream[W, K]: ...
    def map(self, function: Callable[[V], Any], *, value: Any = None) -> DeclaredStream[Any, K]:
        """What ``function`` makes of each value; the key stays.

        Args:
            value: the type of the new values, where the function has no annotation that tells. It is needed
                where they go through a topic and are more than JSON has.
        """
        made = result_type(function) if value is None else value
        return self._then(Map(self.operator, function, name=self.operator.name, value_type=made))

    map_values = map

    def flat_map(
        self,
        function: Callable[[V], Iterable[W] | AsyncIterable[W] | Awaitable[Iterable[W]]],
        *,
        value: Any = None,
    ) -> DeclaredStream[W, K]:
        """All that ``function`` makes of each value: none, one or many; the key stays."""
        made = result_type(function, inside=True) if value is None else value
        return self._then(
            FlatMap(self.operator, function, name=self.operator.name, value_type=made)
        )

    @overload
    def key_by(
        self, key: Callable[[V], Coroutine[Any, Any, L]], *, type: Any = None
    ) -> DeclaredStream[V, L]: ...
    @overload
    def key_by(self, key: Callable[[V], L], *, type: Any = None) -> DeclaredStream[V, L]: ...
    @overload
    def key_by(self, key: str, *, type: TypeForm[L]) -> DeclaredStream[V, L]: ...
    @overload
    def key_by(self, key: str) -> DeclaredStream[V, Any]: ...
    def key_by(self, key: str | Callable[[V], Any], *, type: Any = None) -> DeclaredStream[V, Any]:
        """The same values with another key: a field, or what a function makes of the value.

        The records move to the shard of their new key when something needs them there: see `group_by`. They do so
        also for a key that their topic has for its ``key_from``: whoever writes it may have given another one.
        """
        made = field_type(self.operator.value_type, key) if type is None else type
        name = f"{self.operator.name}-by-{key}" if isinstance(key, str) else self._named("keyed")
        return DeclaredStream(self._rekeyed(key, name, made), self.home)

    def _has_key(self, key: str | Callable[[V], Any], key_type: Any) -> bool:
        """Whether the records have that key as it is."""
        operator = self.operator
        return operator.key_from == key and key_type in (None, operator.key_type)

    def _rekeyed(self, key: str | Callable[[V], Any], name: str, key_type: Any) -> Operator:
        """The operator that gives the records another key; one for all who want the same one for it."""
        shared = self.operator, key, name
        known = self.home.plan.rekeyed.get(shared) if isinstance(key, Hashable) else None
        if known is not None and known.key_type == key_type:
            return known
        getter = field_getter(key, self.operator.value_type)
        operator = Rekey(self.operator, getter, name=name, key_from=key, key_type=key_type)
        if isinstance(key, Hashable):
            self.home.plan.rekeyed[shared] = operator
        return self.home.plan.add(operator)

    @overload
    def map_keys(
        self, function: Callable[[K], Coroutine[Any, Any, L]], *, type: Any = None
    ) -> DeclaredStream[V, L]: ...
    @overload
    def map_keys(self, function: Callable[[K], L], *, type: Any = None) -> DeclaredStream[V, L]: ...
    def map_keys(self, function: Callable[[K], Any], *, type: Any = None) -> DeclaredStream[V, Any]:
        """The same values with the key that ``function`` makes of their key."""
        made = without_none(result_type(function)) if type is None else type
        return self._then(
            Rekey(self.operator, function, name=self._named("rekeyed"), of_key=True, key_type=made)
        )

    def peek(self, function: Callable[[V], Any]) -> DeclaredStream[V, K]:
        """Call ``function`` with each value; the stream goes on as it was."""
        return self._then(Peek(self.operator, function, name=self.operator.name))

    def foreach(self, function: Callable[[V], Any]) -> None:
        """Call ``function`` with each value: the end of the stream."""
        self.peek(function)

    def merge(self, *others: DeclaredStream[W, K]) -> DeclaredStream[V | W, K]:
        """The records of this stream and of others, as they come.

        Raises:
            TopologyError: one of them is no stream of this app.
        """
        for other in others:
            if not isinstance(other, DeclaredStream):
                raise TopologyError(
                    f"merge: {other!r} is not a stream; a table's changes are one: table.changes()"
                )
        check_home([self, *others], f"merge of {names_of([self, *others])}")
        operators = [self.operator, *(other.operator for other in others)]
        name = "-".join(dict.fromkeys(operator.name for operator in operators))
        return self._then(Merge(*operators, name=name))

    def split(
        self, branches: Mapping[str, Callable[[V], Any]], *, default: str | None = None
    ) -> dict[str, DeclaredStream[V, K]]:
        """Streams by name: each record goes to the first branch whose function is true for it.

        Args:
            default: name of a branch for the records that no other one takes; they are dropped without.
        """
        if not isinstance(branches, Mapping):
            raise TopologyError(
                f"split: {branches!r} does not name the branches: give a function for each by its name, for"
                f" example split({{'large': lambda order: order.amount > 100}}, default='rest')"
            )
        if default in branches:
            raise TopologyError(f"split: default={default!r} is one of the branches already")
        operator = Split(self.operator, tuple(branches.values()), name=self._named("split"))
        self.home.plan.add(operator)
        names = [*branches, *([] if default is None else [default])]
        return {
            name: self._then(Branch(operator, number, name=self._named(name)))
            for number, name in enumerate(names)
        }

    # topics ---------------------------------------------------------------------------------------

    def to(self, topic: Topic[Any, Any] | Callable[[V], Topic[Any, Any]]) -> None:
        """Send each record to a topic, or to the one that a function of the value chooses.

        Its key is the stream's, unless the topic derives its keys (``key_from``); timestamp and headers stay.
        """
        if isinstance(topic, Topic):
            self.home.check_own(topic, f"stream {self.operator.name!r}")
        elif not callable(topic):
            raise TopologyError(
                f"to(): {topic!r} is neither a topic nor a function that chooses one"
            )
        name = f"{self.operator.name}-to-{topic.name if isinstance(topic, Topic) else 'chosen'}"
        self.home.plan.add(ToTopic(self.operator, topic, put_record, name=name))

    def through(self, topic: Topic[W, L]) -> DeclaredStream[W, L]:
        """The same records by way of ``topic``, with its key, partitions and codec."""
        self.to(topic)
        source = self.home.plan.source([topic], self.operator.concurrency)
        return DeclaredStream(source, self.home)

    @overload
    def repartition(
        self: DeclaredStream[V, Windowed[L]],
        *,
        name: str | None = None,
        partitions: int | None = None,
    ) -> DeclaredStream[V, L]: ...
    @overload
    def repartition(
        self, *, name: str | None = None, partitions: int | None = None
    ) -> DeclaredStream[V, K]: ...
    def repartition(self, *, name: str | None = None, partitions: int | None = None) -> Any:
        """The same records by way of a topic of their own, so that each shard has all of its keys.

        Windowed results have their group's plain key after it, and the window in headers.

        Args:
            name: of the topic, ``{app}-{name}-repartition``; from the stream where it is left out. All who give the
                same one share it.
            partitions: how many the topic has; where left out, as many as the topics that the app reads if these
                agree, and else as the setting says.

        Raises:
            TopologyError: the topic is there with other partitions.
        """
        return self._moved(name or self.operator.name, partitions)

    def _moved(
        self, name: str, partitions: int | None = None, beside: Topic[Any, Any] | None = None
    ) -> DeclaredStream[V, K]:
        """By way of the topic that the operator's records move through; made once for all who need it."""
        operator = self.operator
        found = self.home.plan.moved.get((operator, name))
        if found is not None and partitions not in (None, found.topics[0].partitions):
            before = found.topics[0].partitions
            raise TopologyError(
                f"repartition(partitions={partitions}): {operator.name!r} moves through {found.name!r} already,"
                f" and there partitions= was {'left out' if before is None else before}. Give the other one a"
                f" name, for example .repartition(partitions={partitions}, name={name + '-2'!r})"
            )
        if found is None:
            topic = self.home.repartition_topic(
                name,
                key=operator.key_type,
                value=operator.value_type,
                codec=operator.values,
                of=[operator],
                like=operator.topics if beside is None else (beside,),
                partitions=partitions,
                beside=beside,
            )
            sink = ToTopic(operator, topic, put_record, name=f"{name}-repartition", grouped=True)
            self.home.plan.add(sink)
            source = self.home.plan.source([topic], operator.concurrency)
            source.key_from = operator.key_from
            found = self.home.plan.moved[operator, name] = source
        return DeclaredStream(found, self.home)

    def by_key(self) -> DeclaredStream[V, K]:
        """The same records where all of a key are in one shard: moved only if the key may have changed."""
        return self._by_key()

    def _by_key(
        self, beside: Topic[Any, Any] | None = None, name: str | None = None
    ) -> DeclaredStream[V, K]:
        """`by_key`, to the shards of a topic, or by way of one of that name."""
        check_keyed(self.operator)
        if not self.operator.rekeyed:
            return self
        return self._moved(name or self.operator.name, beside=beside)

    # joins ----------------------------------------------------------------------------------------

    @overload
    def join(
        self,
        other: DeclaredStream[U, Any] | tables.Table[Any, U] | TableStream[Any, U],
        joiner: Callable[[V, U], Awaitable[W]],
        *,
        how: Literal["inner"] = "inner",
        within: Within | None = None,
        grace: Duration | None = None,
        name: str | None = None,
        on: str | Callable[[V], Any] | None = None,
        value: Any = None,
    ) -> DeclaredStream[W, K]: ...
    @overload
    def join(
        self,
        other: DeclaredStream[U, Any] | tables.Table[Any, U] | TableStream[Any, U],
        joiner: Callable[[V, U], W],
        *,
        how: Literal["inner"] = "inner",
        within: Within | None = None,
        grace: Duration | None = None,
        name: str | None = None,
        on: str | Callable[[V], Any] | None = None,
        value: Any = None,
    ) -> DeclaredStream[W, K]: ...
    @overload
    def join(
        self,
        other: DeclaredStream[U, Any] | tables.Table[Any, U] | TableStream[Any, U],
        joiner: Callable[[V, U | None], Awaitable[W]],
        *,
        how: Literal["left"],
        within: Within | None = None,
        grace: Duration | None = None,
        name: str | None = None,
        on: str | Callable[[V], Any] | None = None,
        value: Any = None,
    ) -> DeclaredStream[W, K]: ...
    @overload
    def join(
        self,
        other: DeclaredStream[U, Any] | tables.Table[Any, U] | TableStream[Any, U],
        joiner: Callable[[V, U | None], W],
        *,
        how: Literal["left"],
        within: Within | None = None,
        grace: Duration | None = None,
        name: str | None = None,
        on: str | Callable[[V], Any] | None = None,
        value: Any = None,
    ) -> DeclaredStream[W, K]: ...
    @overload
    def join(
        self,
        other: DeclaredStream[U, Any],
        joiner: Callable[[V | None, U | None], Awaitable[W]],
        *,
        how: Literal["outer"],
        within: Within,
        grace: Duration | None = None,
        name: str | None = None,
        value: Any = None,
    ) -> DeclaredStream[W, K]: ...
    @overload
    def join(
        self,
        other: DeclaredStream[U, Any],
        joiner: Callable[[V | None, U | None], W],
        *,
        how: Literal["outer"],
        within: Within,
        grace: Duration | None = None,
        name: str | None = None,
        value: Any = None,
    ) -> DeclaredStream[W, K]: ...
    def join(
        self,
        other: Any,
        joiner: Callable[[Any, Any], Any],
        *,
        how: str = "inner",
        within: Within | None = None,
        grace: Duration | None = None,
        name: str | None = None,
        on: str | Callable[[V], Any] | None = None,
        value: Any = None,
    ) -> DeclaredStream[Any, K]:
        """This stream, the left side, with another one or with a table, by key.

        With a stream, every pair of records with one key makes a result whose times are within reach of one
        another. With a table, each record of the stream makes one, of what the table has for its key: now,
        or, if the table is versioned, at the record's time; changes of the table make none. A table that an
        agent writes has what the agent has written so far: agents and streams do not wait for one another.

        Records without a value are dropped, and without a key as well where they could only come out with a
        partner. A result's timestamp is the higher one of its sides.

        Args:
            joiner: makes the result of a left and a right value. It is given None for the right one where
                a left record has no partner (``left``, ``outer``), and for the left one of a right record
                without a partner (``outer``). It may be async.
            how: ``inner``: pairs alone. ``left``: also left records without a partner, once event time is
                beyond what they reach and the grace. ``outer``, of streams: the same for both sides.
            within: of streams: how far a right record may be from the left one. ``"10m"`` is ten minutes
                before to ten minutes after; ``(lower, upper)`` takes right records from ``left + lower`` to
                ``left + upper``, both included: ``("-1m", "10m")`` is from a minute before to ten minutes
                after, and ``("2m", "10m")`` only from two minutes after.
            grace: of streams: how long late records are waited for, by event time; 0 where left out. Of a
                versioned table: records wait until event time is beyond theirs by this, and then look it up.
            name: of what the join keeps; from both sides where left out. It has to stay the same.
            on: of a global table: a field, or a function, of the stream's values that gives the key to look up.
            value: the type of the results, where the joiner has no annotation that tells.

        Raises:
            TopologyError: the sides cannot be joined so; the message says what to do.
        """
        from millstream.streams._join import declare_join

        return declare_join(
            self,
            other,
            joiner,
            how=how,
            within=within,
            grace=grace,
            name=name,
            on=on,
            value=value,
        )

    def to_table(self, name: str, *, upgrade: Callable[[Any], Any] | None = None) -> Table[K, V]:
        """The stream as a table: each record is the new value of its key, and one without a value deletes it.

        Args:
            name: of the table and its changelog.
            upgrade: turns a value that was kept in an older form, as plain JSON types, into a new one.
        """
        moved = self.by_key().operator
        check_plain(moved, f"to_table({name!r})")
        operator = Upsert(moved, name=name)
        if upgrade is not None:
            operator.codec = upgrading(moved.values, upgrade, f"table {name!r}")
        self.home.plan.add(operator)
        kept: Table[K, V] = self.home.kept_table(
            name,
            key=moved.key_type,
            value=moved.value_type,
            codec=operator.values,
            like=moved.topics[0],
            operator=operator,
            mend=upgrade_with("to_table"),
        )
        return kept

    @overload
    def distinct(
        self,
        key: None = None,
        *,
        within: Duration,
        grace: Duration | None = None,
        name: str | None = None,
    ) -> DeclaredStream[V, K]: ...
    @overload
    def distinct(
        self,
        key: Callable[[V], Coroutine[Any, Any, L]],
        *,
        within: Duration,
        grace: Duration | None = None,
        name: str | None = None,
    ) -> DeclaredStream[V, L]: ...
    @overload
    def distinct(
        self,
        key: Callable[[V], L],
        *,
        within: Duration,
        grace: Duration | None = None,
        name: str | None = None,
    ) -> DeclaredStream[V, L]: ...
    @overload
    def distinct(
        self,
        key: str,
        *,
        within: Duration,
        grace: Duration | None = None,
        name: str | None = None,
    ) -> DeclaredStream[V, Any]: ...
    def distinct(
        self,
        key: str | Callable[[V], Any] | None = None,
        *,
        within: Duration,
        grace: Duration | None = None,
        name: str | None = None,
    ) -> DeclaredStream[V, Any]:
        """The first record of those with one key within a time; the others are dropped.

        Args:
            key: a field, or a function of the value, with a ``name``: the records move to the shards of it,
                and it is their key from then on. The records' own key where it is left out.
            within: a record passes if none of its key has passed less than that before or after it, by event
                time.
            grace: how long after that a late record is still looked at, rather than dropped; ``within``
                unless given.
            name: of what is remembered; from the source where it is left out.
        """
        within_ms = duration_ms(within, what="distinct(within=)")
        grace_ms = within_ms if grace is None else duration_ms(grace, what="distinct(grace=)")
        if within_ms < 1 or grace_ms < 0:
            raise ConfigurationError(
                f"distinct(within={within!r}, grace={grace!r}): the first has to be above 0, and the second may"
                f" not be below 0"
            )
        moved = self.by_key() if key is None else self.group_by(key, name=name)
        check_plain(moved.operator, "distinct()")
        stem = moved.operator.name.removeprefix(f"{self.home.id}-").removesuffix("-repartition")
        operator = distinct(
            self.home, moved.operator, within_ms, grace_ms, f"{name or stem}-distinct"
        )
        return DeclaredStream(operator, self.home)

    @overload
    def process(
        self,
        processor: Processor,
        *,
        name: str,
        wall_timers: Duration | None = None,
        key: TypeForm[L],
        value: TypeForm[W],
    ) -> DeclaredStream[W, L]: ...
    @overload
    def process(
        self,
        processor: Processor,
        *,
        name: str,
        wall_timers: Duration | None = None,
        key: None = None,
        value: TypeForm[W],
    ) -> DeclaredStream[W, K]: ...
    @overload
    def process(
        self,
        processor: Processor,
        *,
        name: str,
        wall_timers: Duration | None = None,
        key: TypeForm[L],
        value: None = None,
    ) -> DeclaredStream[Any, L]: ...
    @overload
    def process(
        self,
        processor: Processor,
        *,
        name: str,
        wall_timers: Duration | None = None,
        key: None = None,
        value: None = None,
    ) -> DeclaredStream[Any, K]: ...
    def process(
        self,
        processor: Processor,
        *,
        name: str,
        wall_timers: Duration | None = None,
        key: Any = None,
        value: Any = None,
    ) -> DeclaredStream[Any, Any]:
        """What an object of the program makes of the records, with tables and timers of its own.

        Args:
            processor: has ``process(key, value, context)`` and, for timers, ``on_timer(key, context)``; either
                may be async. It may use the app's tables. One object serves all shards, so what it
                keeps in itself is lost and mixed: state belongs into tables.
            name: of its timers' table.
            wall_timers: how often timers of the wall clock are looked at, where it sets any.
            key: the type of the keys that it forwards under, where these are others than the records'. What
                it forwards then moves to the shards of its keys when something needs it there, as after `key_by`.
            value: the type of what it forwards.
        """
        # what the processor itself looks up by key is its own affair, but for its timers
        moved = self._moved(self.operator.name).operator if self.operator.rekeyed else self.operator
        if hasattr(processor, "on_timer"):
            check_keyed(self.operator)
            check_plain(moved, f"process({name!r}) has timers, which are kept by key")
        made = Any if value is None else value
        operator = process(
            self.home,
            moved,
            processor,
            name=name,
            wall_timers=wall_timers,
            key_type=key,
            value_type=made,
        )
        return DeclaredStream(operator, self.home)

    # groups ---------------------------------------------------------------------------------------

    @overload
    def group_by(self, key: None = None, *, name: str | None = None) -> GroupedStream[V, K]: ...
    @overload
    def group_by(
        self,
        key: Callable[[V], Coroutine[Any, Any, L]],
        *,
        name: str | None = None,
        type: Any = None,
    ) -> GroupedStream[V, L]: ...
    @overload
    def group_by(
        self, key: Callable[[V], L], *, name: str | None = None, type: Any = None
    ) -> GroupedStream[V, L]: ...
    @overload
    def group_by(
        self, key: str, *, name: str | None = None, type: TypeForm[L]
    ) -> GroupedStream[V, L]: ...
    @overload
    def group_by(self, key: str, *, name: str | None = None) -> GroupedStream[V, Any]: ...
    def group_by(
        self,
        key: str | Callable[[V], Any] | None = None,
        *,
        name: str | None = None,
        type: Any = None,
    ) -> GroupedStream[V, Any]:
        """Groups of values with one key, to be counted, aggregated, or read by an agent.

        Args:
            key: a field, or a function of the value; left out: the records' own key.
            name: of the topic through which the records move to their shards, where they have to. It goes with
                a function, because the topic has to keep its name. Nothing moves that need not.
            type: the keys' type, where neither the field nor the function's annotation tells.
        """
        from millstream.streams._grouped import GroupedStream

        if key is None and name is None:
            return GroupedStream(self.operator, self.home)
        if key is None or self._has_key(key, type):
            return GroupedStream(self._by_key(name=name).operator, self.home)
        operator = self.operator
        stem = name
        if stem is None:
            shown = operator.name.removeprefix(f"{self.home.id}-")
            if callable(key):
                raise TopologyError(
                    f"group_by over {shown} has a function: give it a name, for example"
                    f" group_by(..., name={shown + '-regrouped'!r}). The topic behind it is named"
                    f" after it, and has to keep its name"
                )
            stem = f"{shown}-by-{key}"
        made = type
        if made is None and isinstance(key, str):
            made = field_type(operator.value_type, key)
        elif made is None:
            made = without_none(result_type(key))
        rekeyed = DeclaredStream[V, Any](self._rekeyed(key, stem, made), self.home)
        return GroupedStream(rekeyed._moved(stem).operator, self.home)
