"""Operators that keep nothing: filter, map and their like, and the ways out to topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.agents import TopicGroup
from millstream.errors import ProgramError, TopologyError
from millstream.serialization import any_partition
from millstream.streams._mixed import mix
from millstream.streams._operator import (
    WAITS,
    Context,
    Done,
    Operator,
    check_function,
    each,
    finish,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Sequence

    from millstream.agents import Topic
    from millstream.streams._sink import Send

__all__ = [
    "Branch",
    "Filter",
    "FlatMap",
    "Map",
    "Merge",
    "Peek",
    "Rekey",
    "SourceOperator",
    "Split",
    "ToTopic",
    "Values",
]


def _alike(topics: Sequence[Topic[Any, Any]]) -> bool:
    """Whether records of a key are in one shard, whichever of these topics they are in."""
    ways = {(topic.partitioner, topic.key_codec.name, topic.key_type) for topic in topics}
    counts = {topic.partitions for topic in topics if topic.partitions is not None}
    return len(ways) == 1 and len(counts) < 2 and topics[0].partitioner is not any_partition


class SourceOperator(Operator):
    """The records of some topics."""

    kind = "source"

    def __init__(self, topics: Sequence[Topic[Any, Any]], *, name: str) -> None:
        super().__init__(name=name)
        self._topics = tuple(topics)
        first = self._topics[0]
        self.key_type = first.key_type
        self.value_type, self.mixed = mix([(t.name, t.value_type, None) for t in self._topics])
        if all(topic.value_codec is first.value_codec for topic in self._topics):
            self.codec = first.value_codec
        if all(topic.key_from == first.key_from for topic in self._topics) and _alike(self._topics):
            self.key_from = first.key_from

    @property
    def topics(self) -> tuple[Topic[Any, Any], ...]:
        return self._topics

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        return [forward]


class Filter(Operator):
    """Lets values pass for which a function is true."""

    kind = "filter"
    keeps_keys = True
    keeps_records = True

    def __init__(self, parent: Operator, keep: Callable[[Any], Any], *, name: str) -> None:
        super().__init__(parent, name=name)
        check_function(keep, self.kind, parent)
        self.function = keep

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        keep = self.function

        def take(key: Any, value: Any, timestamp: int) -> Done:
            passes = keep(value)
            if passes.__class__ in WAITS:
                return finish(
                    passes, lambda found: forward(key, value, timestamp) if found else None
                )
            return forward(key, value, timestamp) if passes else None

        return [take]


class Map(Operator):
    """Replaces each value by what a function makes of it; the key stays."""

    kind = "map"
    keeps_keys = True

    def __init__(
        self,
        parent: Operator,
        function: Callable[[Any], Any],
        *,
        name: str,
        value_type: Any = Any,
    ) -> None:
        super().__init__(parent, name=name)
        check_function(function, self.kind, parent)
        self.function = function
        self.value_type = value_type
        self.codec = None

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        function = self.function

        def take(key: Any, value: Any, timestamp: int) -> Done:
            made = function(value)
            if made.__class__ in WAITS:
                return finish(made, lambda found: forward(key, found, timestamp))
            return forward(key, made, timestamp)

        return [take]


class FlatMap(Map):
    """Replaces each value by those of an iterable, none, one or many."""

    kind = "flat_map"

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        function = self.function

        def all_of(key: Any, made: Any, timestamp: int) -> Done:
            if hasattr(made, "__aiter__"):
                return one_by_one(key, made, timestamp)
            return each(((key, one, timestamp) for one in made), forward)

        async def one_by_one(key: Any, made: AsyncIterable[Any], timestamp: int) -> None:
            async for one in made:
                done = forward(key, one, timestamp)
                if done is not None:
                    await done

        def take(key: Any, value: Any, timestamp: int) -> Done:
            made = function(value)
            if made.__class__ in WAITS:
                return finish(made, lambda found: all_of(key, found, timestamp))
            return all_of(key, made, timestamp)

        return [take]


class Rekey(Operator):
    """Gives each record another key: from its value (``key_by``), or from its key (``map_keys``)."""

    kind = "key_by"

    def __init__(
        self,
        parent: Operator,
        function: Callable[[Any], Any],
        *,
        name: str,
        of_key: bool = False,
        key_from: str | Callable[[Any], Any] | None = None,
        key_type: Any = Any,
    ) -> None:
        super().__init__(parent, name=name)
        check_function(function, "map_keys" if of_key else self.kind, parent)
        self.function = function
        self.of_key = of_key
        self.key_from = key_from
        self.key_type = key_type
        self.makes_keys = self.rekeyed = True
        self.windowed = False

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        function, of_key = self.function, self.of_key

        def take(key: Any, value: Any, timestamp: int) -> Done:
            made = function(key if of_key else value)
            if made.__class__ in WAITS:
                return finish(made, lambda found: forward(found, value, timestamp))
            return forward(made, value, timestamp)

        return [take]


class Peek(Operator):
    """Calls a function with each value, and hands the value on, which the function may have changed."""

    kind = "peek"
    keeps_keys = True

    @property
    def acts(self) -> bool:
        return True

    def __init__(self, parent: Operator, function: Callable[[Any], Any], *, name: str) -> None:
        super().__init__(parent, name=name)
        check_function(function, self.kind, parent)
        self.function = function

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        function = self.function

        def take(key: Any, value: Any, timestamp: int) -> Done:
            waits = function(value)
            if waits.__class__ in WAITS:
                return finish(waits, lambda _: forward(key, value, timestamp))
            return forward(key, value, timestamp)

        return [take]


class Merge(Operator):
    """The records of several streams, as they come."""

    kind = "merge"
    keeps_records = True

    def __init__(self, *parents: Operator, name: str) -> None:
        super().__init__(*parents, name=name)
        if any(parent.value_type != self.value_type for parent in parents):
            self.codec = None
        self.value_type, self.mixed = mix([(p.name, p.value_type, p.mixed) for p in parents])
        if any(parent.key_type is not self.key_type for parent in parents):
            self.key_type = Any
        self.windowed = any(parent.windowed for parent in parents)
        if not _alike(self.topics):
            self.key_from = None

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        return [forward] * len(self.parents)


class Split(Operator):
    """Numbers each record by the first of some predicates that is true for it: `Branch` takes its own."""

    kind = "split"
    keeps_keys = True
    keeps_records = True

    def __init__(
        self, parent: Operator, predicates: Sequence[Callable[[Any], Any]], *, name: str
    ) -> None:
        super().__init__(parent, name=name)
        for predicate in predicates:
            check_function(predicate, self.kind, parent)
        self.predicates = tuple(predicates)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        predicates = self.predicates
        count = len(predicates)

        def choose(number: int, key: Any, value: Any, timestamp: int) -> Done:
            """Try the predicates from one on."""
            while number < count:
                passes = predicates[number](value)
                if passes.__class__ in WAITS:
                    return later(passes, number, key, value, timestamp)
                if passes:
                    break
                number += 1
            return forward(key, (number, value), timestamp)

        async def later(
            passes: Awaitable[Any], number: int, key: Any, value: Any, timestamp: int
        ) -> None:
            if await passes:
                done = forward(key, (number, value), timestamp)
            else:
                done = choose(number + 1, key, value, timestamp)
            if done is not None:
                await done

        return [lambda key, value, timestamp: choose(0, key, value, timestamp)]


class Branch(Operator):
    """The records of a `Split` that have one number."""

    kind = "branch"
    keeps_keys = True
    keeps_records = True

    def __init__(self, parent: Split, number: int, *, name: str) -> None:
        super().__init__(parent, name=name)
        self.number = number

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        mine = self.number

        def take(key: Any, numbered: tuple[int, Any], timestamp: int) -> Done:
            number, value = numbered
            return forward(key, value, timestamp) if number == mine else None

        return [take]


class Values(Operator):
    """A table's changes as a stream of its new values; None where a key was deleted."""

    kind = "changes"

    def __init__(self, parent: Operator, *, name: str) -> None:
        super().__init__(parent, name=name)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        def take(key: Any, new: Any, old: Any, timestamp: int) -> Done:
            return forward(key, new, timestamp)

        return [take]


class ToTopic(Operator):
    """Sends each record to a topic, or to the one that a function chooses."""

    kind = "to"

    def __init__(
        self,
        parent: Operator,
        topic: Topic[Any, Any] | Callable[[Any], Topic[Any, Any]],
        send: Send,
        *,
        name: str,
        grouped: bool = False,
    ) -> None:
        """
        Args:
            send: puts one record into a topic.
            grouped: whether records without a key are dropped, unless something behind the topic takes them.
        """
        if isinstance(topic, TopicGroup):
            raise TopologyError(
                f"the stream {parent.name!r} is to go to {topic.name!r}, which stands for several topics:"
                f" name one of them, for example with topic.named(...)"
            )
        super().__init__(parent, name=name)
        self.topic = topic
        self.send = send
        self.grouped = grouped
        if not callable(topic):
            self.sinks.append(topic.name)

    @property
    def acts(self) -> bool:
        return True

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        topic, send, grouped = self.topic, self.send, self.grouped
        if callable(topic):
            choose = topic

            def send_to(chosen: Any, key: Any, value: Any, timestamp: int) -> None:
                if not hasattr(chosen, "put"):
                    raise ProgramError(
                        f"to(): {chosen!r} is no topic; the function has to return one of app.topic()"
                    )
                send(context.scope, chosen, key, value, timestamp)

            def take_chosen(key: Any, value: Any, timestamp: int) -> Done:
                chosen: Any = choose(value)
                if chosen.__class__ in WAITS:
                    return finish(chosen, lambda found: send_to(found, key, value, timestamp))
                send_to(chosen, key, value, timestamp)
                return None

            return [take_chosen]

        def take(key: Any, value: Any, timestamp: int) -> None:
            if key is None and grouped and not topic.takes_keyless:
                context.counters["null_keys_dropped"] += 1
                return
            send(context.scope, topic, key, value, timestamp)

        return [take]
