"""Operators between tables: what they take and hand on are changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.errors import ProgramError
from millstream.streams._operator import (
    UNCHANGED,
    WAITS,
    Context,
    Done,
    Group,
    Kept,
    Operator,
    check_function,
)
from millstream.tables import DELETED, MISSING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millstream.agents import Topic

__all__ = [
    "FilterTable",
    "GroupTable",
    "JoinTables",
    "Keep",
    "MapTable",
    "TableAggregate",
    "TableFold",
    "Upsert",
    "awaited",
    "both",
]


class _Looked(Operator):
    """An operator that keeps nothing, so that looking a key up calls its function.

    Where that returns None there is no entry.
    """

    changes = True

    def _forward_news(self, forward: Callable[..., Done]) -> Callable[..., Done]:
        """What hands on changes; of those that are known to be none the time alone, where that matters."""
        if not self.old_wanted:
            return forward
        time_wanted = self.time_wanted

        def forward_news(key: Any, new: Any, old: Any, timestamp: int) -> Done:
            if new is not None or old is not None:
                return forward(key, new, old, timestamp)
            return forward(key, None, UNCHANGED, timestamp) if time_wanted else None

        return forward_news

    def _now(self, made: Any) -> Any:
        """What the function has returned.

        Raises:
            ProgramError: that is still to come.
        """
        if made.__class__ not in WAITS:
            return made
        if hasattr(made, "close"):
            made.close()
        mend = f"Give the step a name, {self.kind}(..., name=...): then its results are kept"
        if self.windowed:
            mend = "Put the step behind the join"
        raise ProgramError(
            f"{self.kind} of table {self.name!r}: its function is async, and a lookup cannot wait for it."
            f" {mend}"
        )


class FilterTable(_Looked):
    """The entries for whose values a function is true."""

    kind = "filter"
    passes_time = True

    def __init__(self, parent: Operator, keep: Callable[[Any], Any], *, name: str) -> None:
        super().__init__(parent, name=name)
        check_function(keep, self.kind, parent)
        self.function = keep
        self.history_ms = parent.history_ms

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        keep, old_wanted = self.function, self.old_wanted
        forward = self._forward_news(forward)

        def take(key: Any, new: Any, old: Any, timestamp: int) -> Done:
            passes = None if new is None else keep(new)
            passed = keep(old) if old_wanted and old is not None else None
            if passes.__class__ in WAITS or passed.__class__ in WAITS:
                return later(key, new, old, timestamp, passes, passed)
            return forward(key, new if passes else None, old if passed else None, timestamp)

        async def later(
            key: Any, new: Any, old: Any, timestamp: int, passes: Any, passed: Any
        ) -> None:
            passes, passed = await both(passes, passed)
            done = forward(key, new if passes else None, old if passed else None, timestamp)
            if done is not None:
                await done

        return [take]

    def getter(self, context: Context) -> Callable[[Any], tuple[Any, int] | None]:
        get, keep = self.parents[0].getter(context), self.function

        def found(key: Any) -> tuple[Any, int] | None:
            pair = get(key)
            return pair if pair is not None and self._now(keep(pair[0])) else None

        return found

    def getter_as_of(self, context: Context) -> Callable[[Any, int], Any]:
        get, keep = self.parents[0].getter_as_of(context), self.function

        def found(key: Any, moment: int) -> Any:
            value = get(key, moment)
            return value if value is not None and self._now(keep(value)) else None

        return found


class MapTable(_Looked):
    """The same entries, their values replaced by what a function makes of them."""

    kind = "map_values"
    passes_time = True

    def __init__(
        self, parent: Operator, function: Callable[[Any], Any], *, name: str, value_type: Any
    ) -> None:
        super().__init__(parent, name=name)
        check_function(function, self.kind, parent)
        self.function = function
        self.value_type = value_type
        self.codec = None
        self.history_ms = parent.history_ms

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        function, old_wanted = self.function, self.old_wanted
        forward = self._forward_news(forward)

        def take(key: Any, new: Any, old: Any, timestamp: int) -> Done:
            made = None if new is None else function(new)
            before = function(old) if old_wanted and old is not None else None
            if made.__class__ in WAITS or before.__class__ in WAITS:
                return later(key, made, before, timestamp)
            return forward(key, made, before, timestamp)

        async def later(key: Any, made: Any, before: Any, timestamp: int) -> None:
            made, before = await both(made, before)
            done = forward(key, made, before, timestamp)
            if done is not None:
                await done

        return [take]

    def getter(self, context: Context) -> Callable[[Any], tuple[Any, int] | None]:
        get, function = self.parents[0].getter(context), self.function

        def found(key: Any) -> tuple[Any, int] | None:
            pair = get(key)
            made = None if pair is None else self._now(function(pair[0]))
            return None if pair is None or made is None else (made, pair[1])

        return found

    def getter_as_of(self, context: Context) -> Callable[[Any, int], Any]:
        get, function = self.parents[0].getter_as_of(context), self.function

        def found(key: Any, moment: int) -> Any:
            value = get(key, moment)
            return None if value is None else self._now(function(value))

        return found


class Keep(Kept):
    """Keeps a table's changes in a table of their own, so that they can be queried."""

    kind = "table"
    passes_time = True

    def __init__(self, parent: Operator, *, name: str, compares: bool = False) -> None:
        """
        Args:
            compares: the changes come without old values: those are what the table has.
        """
        super().__init__(parent, name=name)
        self.compares = compares

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        part, time_wanted = context.parts[self.name], self.time_wanted

        def compare(key: Any, new: Any, _: Any, timestamp: int) -> Done:
            before = part.replace(key, new, timestamp, context.scope)
            if new is before is None and not time_wanted:
                return None
            return forward(key, new, None if before is None else before[1], timestamp)

        def take(key: Any, new: Any, old: Any, timestamp: int) -> Done:
            part.set(key, DELETED if new is None else (timestamp, new), context.scope)
            return forward(key, new, old, timestamp)

        return [compare if self.compares else take]


class Upsert(Kept):
    """A stream as a table: each record is the new value of its key. Records without a key are dropped."""

    kind = "to_table"

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        part = context.parts[self.name]
        counters = context.counters

        def take(key: Any, value: Any, timestamp: int) -> Done:
            if key is None:
                counters["null_keys_dropped"] += 1
                return None
            before = part.replace(key, value, timestamp, context.scope)
            return forward(key, value, None if before is None else before[1], timestamp)

        return [take]


class GroupTable(Operator):
    """Sends a table's changes to the shards of their groups: the old value's group first, then the new one's.

    One record where both are of one group, so that it never shows without either.
    """

    kind = "group_by"
    uses_old = True

    def __init__(
        self,
        parent: Operator,
        group: Callable[[Any], Any],
        topic: Topic[Any, Any],
        *,
        name: str,
    ) -> None:
        super().__init__(parent, name=name)
        self.group = group
        self.topic = topic
        self.sinks.append(topic.name)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        group, topic = self.group, self.topic

        def take(key: Any, new: Any, old: Any, timestamp: int) -> Done:
            of_new = None if new is None else group(new)
            of_old = None if old is None else group(old)
            if of_new.__class__ in WAITS or of_old.__class__ in WAITS:
                return later(of_new, of_old, new, old, timestamp)
            send(of_new, of_old, new, old, timestamp)
            return None

        async def later(of_new: Any, of_old: Any, new: Any, old: Any, timestamp: int) -> None:
            send(*await both(of_new, of_old), new, old, timestamp)

        def send(of_new: Any, of_old: Any, new: Any, old: Any, timestamp: int) -> None:
            scope = context.scope
            if of_old is not None and of_old == of_new:
                topic.put(scope, (new, old), key=of_new, timestamp=timestamp)
                return
            if of_old is not None:
                topic.put(scope, (None, old), key=of_old, timestamp=timestamp)
            if of_new is not None:
                topic.put(scope, (new, None), key=of_new, timestamp=timestamp)

        return [take]


class TableFold:
    """How a group's value follows its members: ``subtract`` the old one, then ``add`` the new one."""

    __slots__ = ("add", "initial", "subtract")

    def __init__(
        self,
        initial: Callable[[], Any] | None,
        add: Callable[[Any, Any], Any],
        subtract: Callable[[Any, Any], Any],
    ) -> None:
        """
        Args:
            initial: None where a group's first member is its first value.
        """
        self.initial = initial
        self.add = add
        self.subtract = subtract


class TableAggregate(Group):
    """One value for each group of tables' entries, from records ``(new, old)`` of `GroupTable`.

    Each parent has a `TableFold` of its own, over the same value: several make a ``cogroup``.
    """

    def __init__(
        self, parents: Sequence[Operator], folds: Sequence[TableFold], *, name: str, value_type: Any
    ) -> None:
        super().__init__(*parents, name=name, value_type=value_type)
        self.folds = tuple(folds)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        return [self._bind(fold, context, forward) for fold in self.folds]

    def _bind(
        self, fold: TableFold, context: Context, forward: Callable[..., Done]
    ) -> Callable[..., Done]:
        part = context.parts[self.name]
        initial, add, subtract = fold.initial, fold.add, fold.subtract
        copies = part.mutable and self.old_wanted

        def begin(key: Any, timestamp: int) -> tuple[Any, Any, int]:
            stored = part.get(key, context.scope)
            if stored is MISSING:
                return None, None, timestamp
            newest, value = stored
            before = part.copy(key, value) if copies else value
            return value, before, max(newest, timestamp)

        def end(key: Any, value: Any, before: Any, timestamp: int) -> Done:
            part.set(key, DELETED if value is None else (timestamp, value), context.scope)
            return forward(key, value, before, timestamp)

        def added(value: Any, new: Any) -> Any:
            if value is None:
                return new if initial is None else self.begin(part, initial, add, new)
            return add(value, new)

        def take(key: Any, pair: tuple[Any, Any], timestamp: int) -> Done:
            new, old = pair
            value, before, timestamp = begin(key, timestamp)
            if old is not None and value is not None:
                value = subtract(value, old)
            if value.__class__ in WAITS:
                return later(key, value, new, before, timestamp)
            if new is not None:
                value = added(value, new)
                if value.__class__ in WAITS:
                    return later(key, value, None, before, timestamp)
            return end(key, value, before, timestamp)

        async def later(key: Any, value: Any, new: Any, before: Any, timestamp: int) -> None:
            value = await value
            if new is not None:
                value = await awaited(added(value, new))
            done = end(key, value, before, timestamp)
            if done is not None:
                await done

        return take


async def awaited(made: Any) -> Any:
    """What a function has returned, once it is there."""
    return await made if made.__class__ in WAITS else made


async def both(one: Any, other: Any) -> tuple[Any, Any]:
    """What two functions have returned, once it is there; the second is given up where the first one fails."""
    try:
        one = await awaited(one)
    except BaseException:
        if hasattr(other, "close") and other.__class__ in WAITS:
            other.close()
        raise
    return one, await awaited(other)


class JoinTables(_Looked):
    """Two tables by key: a change of either side makes a result of both.

    Where both follow from one table, its change comes by one side after the other, and the first time a lookup in
    the other side finds what has not come from there. So what the result was is not known here: the results have to
    be kept, by a `Keep` that compares.
    """

    kind = "join"
    uses_deleted = True  # a tombstone goes out only where a result may have been there

    def __init__(
        self,
        left: Operator,
        right: Operator,
        joiner: Callable[[Any, Any], Any],
        how: str,
        *,
        name: str,
        value_type: Any,
    ) -> None:
        super().__init__(left, right, name=name)
        for side in self.parents:
            side.look_into()
        self.entwined = _follows(left, right) or _follows(right, left)
        """Whether a change may come by both sides: then all results are handed on, without old ones."""
        self.joiner = joiner
        self.how = how
        self.value_type = value_type
        self.codec = None

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        left, right = self.parents
        if not self.entwined:
            forward = self._forward_news(forward)
        return [
            self._side(context, forward, right.getter(context), left=True),
            self._side(context, forward, left.getter(context), left=False),
        ]

    def _side(
        self,
        context: Context,
        forward: Callable[..., Done],
        other: Callable[[Any], tuple[Any, int] | None],
        *,
        left: bool,
    ) -> Callable[..., Done]:
        joiner, entwined = self.joiner, self.entwined
        old_wanted = self.old_wanted and not entwined
        needs_mine = self.how == "inner" or (self.how == "left" and left)
        needs_theirs = self.how == "inner" or (self.how == "left" and not left)

        def result(mine: Any, theirs: Any) -> Any:
            if mine is None and (theirs is None or needs_mine):
                return None
            if theirs is None and needs_theirs:
                return None
            return joiner(mine, theirs) if left else joiner(theirs, mine)

        def take(key: Any, new: Any, old: Any, timestamp: int) -> Done:
            pair = other(key)
            theirs = None
            if pair is not None:
                theirs, time = pair
                if time > timestamp:
                    timestamp = time
            elif not entwined and (needs_theirs or (new is None and old is None)):
                return None  # there was no result, and there is none
            before = result(old, theirs) if old_wanted else None
            made = result(new, theirs)
            if made.__class__ in WAITS or before.__class__ in WAITS:
                return later(key, made, before, timestamp)
            return forward(key, made, before, timestamp)

        async def later(key: Any, made: Any, before: Any, timestamp: int) -> None:
            made, before = await both(made, before)
            done = forward(key, made, before, timestamp)
            if done is not None:
                await done

        return take

    def getter(self, context: Context) -> Callable[[Any], tuple[Any, int] | None]:
        get_left, get_right = (parent.getter(context) for parent in self.parents)
        joiner, how = self.joiner, self.how

        def get(key: Any) -> tuple[Any, int] | None:
            left, right = get_left(key), get_right(key)
            if left is None and (right is None or how != "outer"):
                return None
            if right is None and how == "inner":
                return None
            made = joiner(None if left is None else left[0], None if right is None else right[0])
            value = self._now(made)
            if value is None:
                return None
            return value, max(-1 if left is None else left[1], -1 if right is None else right[1])

        return get


def _follows(one: Operator, other: Operator) -> bool:
    """Whether a change of a table that a lookup in one operator reads also comes through another."""
    tables = set(one.looked_into())
    before, seen = [other], {other}
    for operator in before:
        if operator in tables:
            return True
        more = [parent for parent in operator.parents if parent not in seen]
        before += more
        seen.update(more)
    return False
