"""Operators that keep nothing: filter, map and their like, and the ways out to topics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.agents import TopicGroup
from millstream.errors import ProgramError, TopologyError
from millstream.streams._operator import Context, Done, Operator, each, is_async

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


class SourceOperator(Operator):
    """The records of some topics."""

    kind = "source"

    def __init__(self, topics: Sequence[Topic[Any, Any]], *, name: str) -> None:
        super().__init__(name=name)
        self._topics = tuple(topics)
        first = self._topics[0]
        self.key_type = first.key_type
        same = all(topic.value_type is first.value_type for topic in self._topics)
        self.value_type = first.value_type if same else Any
        self.codec = first.value_codec if len(self._topics) == 1 else None

    @property
    def topics(self) -> tuple[Topic[Any, Any], ...]:
        return self._topics

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        return [forward]


class Filter(Operator):
    """Lets values pass for which a function is true."""

    kind = "filter"

    def __init__(self, parent: Operator, keep: Callable[[Any], Any], *, name: str) -> None:
        super().__init__(parent, name=name)
        self.function = keep

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        keep = self.function
        if is_async(keep):

            async def later(key: Any, value: Any, timestamp: int) -> None:
                if await keep(value):
                    done = forward(key, value, timestamp)
                    if done is not None:
                        await done

            return [later]

        def take(key: Any, value: Any, timestamp: int) -> Done:
            if keep(value):
                return forward(key, value, timestamp)
            return None

        return [take]


class Map(Operator):
    """Replaces each value by what a function makes of it; the key stays."""

    kind = "map"

    def __init__(
        self,
        parent: Operator,
        function: Callable[[Any], Any],
        *,
        name: str,
        value_type: Any = Any,
    ) -> None:
        super().__init__(parent, name=name)
        self.function = function
        self.value_type = value_type
        self.codec = None

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        function = self.function
        if is_async(function):

            async def later(key: Any, value: Any, timestamp: int) -> None:
                done = forward(key, await function(value), timestamp)
                if done is not None:
                    await done

            return [later]

        def take(key: Any, value: Any, timestamp: int) -> Done:
            return forward(key, function(value), timestamp)

        return [take]


class FlatMap(Map):
    """Replaces each value by those of an iterable, none, one or many."""

    kind = "flat_map"

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        function = self.function
        if is_async(function):

            async def later(key: Any, value: Any, timestamp: int) -> None:
                for made in await function(value):
                    done = forward(key, made, timestamp)
                    if done is not None:
                        await done

            return [later]

        def take(key: Any, value: Any, timestamp: int) -> Done:
            return each(((key, made, timestamp) for made in function(value)), forward)

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
        key_type: Any = Any,
    ) -> None:
        super().__init__(parent, name=name)
        self.function = function
        self.of_key = of_key
        self.key_type = key_type
        self.rekeyed = True
        self.windowed = False

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        function, of_key = self.function, self.of_key
        if is_async(function):

            async def later(key: Any, value: Any, timestamp: int) -> None:
                done = forward(await function(key if of_key else value), value, timestamp)
                if done is not None:
                    await done

            return [later]
        if of_key:

            def take_key(key: Any, value: Any, timestamp: int) -> Done:
                return forward(function(key), value, timestamp)

            return [take_key]

        def take(key: Any, value: Any, timestamp: int) -> Done:
            return forward(function(value), value, timestamp)

        return [take]


class Peek(Operator):
    """Calls a function with each value, and hands the value on."""

    kind = "peek"

    @property
    def acts(self) -> bool:
        return True

    def __init__(self, parent: Operator, function: Callable[[Any], Any], *, name: str) -> None:
        super().__init__(parent, name=name)
        self.function = function

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        function = self.function
        if is_async(function):

            async def later(key: Any, value: Any, timestamp: int) -> None:
                await function(value)
                done = forward(key, value, timestamp)
                if done is not None:
                    await done

            return [later]

        def take(key: Any, value: Any, timestamp: int) -> Done:
            function(value)
            return forward(key, value, timestamp)

        return [take]


class Merge(Operator):
    """The records of several streams, as they come."""

    kind = "merge"

    def __init__(self, *parents: Operator, name: str) -> None:
        super().__init__(*parents, name=name)
        if any(parent.value_type is not self.value_type for parent in parents):
            self.value_type, self.codec = Any, None
        if any(parent.key_type is not self.key_type for parent in parents):
            self.key_type = Any

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        return [forward] * len(self.parents)


class Split(Operator):
    """Numbers each record by the first of some predicates that is true for it: `Branch` takes its own."""

    kind = "split"

    def __init__(
        self, parent: Operator, predicates: Sequence[Callable[[Any], Any]], *, name: str
    ) -> None:
        super().__init__(parent, name=name)
        self.predicates = tuple(predicates)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        predicates = self.predicates
        if any(is_async(predicate) for predicate in predicates):

            async def later(key: Any, value: Any, timestamp: int) -> None:
                number = 0
                for predicate in predicates:
                    found = predicate(value)
                    if await found if is_async(predicate) else found:
                        break
                    number += 1
                done = forward(key, (number, value), timestamp)
                if done is not None:
                    await done

            return [later]

        def take(key: Any, value: Any, timestamp: int) -> Done:
            number = 0
            for predicate in predicates:
                if predicate(value):
                    break
                number += 1
            return forward(key, (number, value), timestamp)

        return [take]


class Branch(Operator):
    """The records of a `Split` that have one number."""

    kind = "branch"

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
            grouped: whether records without a key are dropped: nothing that is grouped takes them.
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

            def take_chosen(key: Any, value: Any, timestamp: int) -> None:
                chosen = choose(value)
                if not hasattr(chosen, "put"):
                    raise ProgramError(
                        f"to(): {chosen!r} is no topic; the function has to return one of app.topic()"
                    )
                send(context.scope, chosen, key, value, timestamp)

            return [take_chosen]

        def take(key: Any, value: Any, timestamp: int) -> None:
            if key is None and grouped:
                context.counters["null_keys_dropped"] += 1
                return
            send(context.scope, topic, key, value, timestamp)

        return [take]
