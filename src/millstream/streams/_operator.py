"""What a program's streams and tables are made of: operators, as plain data until they are bound to a shard.

Theory of operation
-------------------
An operator is declared once, with its parents. `bind` makes it run in one shard: it is given a context (the shard's
tables, the event at hand) and a function that hands its results on, and it returns one function for each of
its inputs. So a chain of operators is a chain of plain function calls, without objects in between.

There are two kinds of connections. On one of *records* a call carries ``(key, value, timestamp)``; on one of
*changes*, which is what a table sends, ``(key, new, old, timestamp)``, where None means that there is no value.

A call returns None when everything that follows from it is done. Where some function of the program is async, it
returns an awaitable instead, which finishes the work; whoever calls hands it on, and the event's driver awaits
it. An operator that calls more than once uses `each`, so that one result is through before the next one begins.
Whether a function is async shows in what it returns (`WAITS`): so it may be one only now and then, or a lambda that calls
one.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeAlias

from typing_extensions import TypeVar

from millstream.errors import ConfigurationError
from millstream.streams._codec import value_codec
from millstream.streams._mixed import check_one_type
from millstream.tables import MISSING, WAITS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

    from millstream.agents import Topic
    from millstream.clock import Clock
    from millstream.context import Scope
    from millstream.serialization import Codec
    from millstream.streams._mixed import Mixed
    from millstream.streams._plan import Pipeline
    from millstream.windows import Window

logger = logging.getLogger("millstream.streams")

K = TypeVar("K", default=Any)

__all__ = [
    "SOMETHING",
    "UNCHANGED",
    "WAITS",
    "Context",
    "Done",
    "Group",
    "Kept",
    "Operator",
    "Windowed",
    "check_function",
    "each",
    "fan_out",
    "finish",
    "is_async",
    "nowhere",
]


class Windowed(NamedTuple, Generic[K]):
    """The key of a windowed result: the key of its group, and the window."""

    key: K
    window: Window


Done: TypeAlias = "Awaitable[None] | None"
"""What handing on returns: None, or what is still to be awaited."""


SOMETHING = object()
"""Stands for an old value of which nobody wants more than to know that it was there."""

UNCHANGED = object()
"""Stands for an old value where nothing has changed, and only the time matters. `Binding` keeps it from all but those
who use that."""


class Context:
    """What operators need of the shard that they are bound to."""

    __slots__ = ("clock", "counters", "parts", "scope")

    def __init__(self, scope: Scope, clock: Clock) -> None:
        self.scope = scope
        """The event at hand: set by whoever drives the operators, before each event."""
        self.parts: Mapping[str, Any] = scope.parts
        """The shard's part of every table, by the table's name."""
        self.clock = clock
        self.counters: Any = scope.shard.counters
        """Counts what is dropped, by reason."""


class Operator:
    """A node of the program's graph. Subclasses say what happens in `bind`."""

    kind: ClassVar[str] = "operator"
    """What people call it."""
    changes: ClassVar[bool] = False
    """Whether it hands on changes of a table rather than records."""
    holds_back: bool = False
    """Whether a record may bring out what others have left, of other keys: then no two are in progress at once."""
    uses_old: bool = False
    """Of operators that take changes: whether the old values matter."""
    uses_deleted: ClassVar[bool] = False
    """Likewise: whether it matters, where there is no new value, that there was an old one."""
    uses_time: ClassVar[bool] = False
    """Likewise: whether it has to see the time of one that changes nothing."""
    passes_time: ClassVar[bool] = False
    """Likewise: whether each of them comes out of it again, so that this time does so too."""
    tells_deleted: ClassVar[bool] = False
    """Of operators that hand on changes: whether they can say that for less than the old value."""
    keeps_keys: ClassVar[bool] = False
    """Whether it hands on records with the keys that they have, none among them."""
    history_ms: int | None = None
    """Of operators that hand on changes: how far back they know what was; None where they know the present alone."""
    keeps_records: ClassVar[bool] = False
    """Whether it hands on records as it was given them: not all of them, perhaps, but none with another key or value."""

    def __init__(self, *parents: Operator, name: str) -> None:
        self.parents = parents
        self.name = name
        """Unique in the app; stable, because the names of its tables and topics come from it."""
        self.stores: list[str] = []
        """Names of tables that it writes: whoever uses one of them runs in the same pipeline."""
        self.reads: list[str] = []
        """Names of tables that it only reads."""
        self.sinks: list[str] = []
        """Topics that it sends to."""
        self.pipeline: Pipeline | None = None
        """What it runs in; set before it runs."""
        self.old_wanted = False
        """Whether some operator further down uses old values; set before it runs."""
        self.deleted_wanted = False
        """Whether, instead, `SOMETHING` will do as the old value, and that only where there is no new one."""
        self.time_wanted = False
        """Whether some operator further down uses the time of what changes nothing; set before it runs."""
        first = parents[0] if parents else None
        self.key_type: Any = Any if first is None else first.key_type
        self.value_type: Any = Any if first is None else first.value_type
        self.codec: Codec[Any] | None = None if first is None else first.codec
        """Of its values, where they are still those of a topic."""
        self.mixed: Mixed | None = None if first is None else first.mixed
        """What its values were mixed of, where no codec tells them apart."""
        self.mend: str | None = None if first is None else first.mend
        """What to do about values that others have kept of it and that do not decode, where it has no ``upgrade=``."""
        self.windowed: bool = bool(first) and all(parent.windowed for parent in parents)
        """Whether its keys are `Windowed`."""
        self.makes_keys: bool = False
        """Whether its keys are its own, and not those of its parents."""
        self.rekeyed: bool = any(parent.rekeyed for parent in parents)
        """Whether the key may be another than that of the record in its topic."""
        same = self.keeps_records and all(one.key_from == parents[0].key_from for one in parents)
        self.key_from: str | Callable[[Any], Any] | None = parents[0].key_from if same else None
        """The field of the values, or the function of them, that their keys are; None where it is not known."""
        self.concurrency: int = max((parent.concurrency for parent in parents), default=1)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r}>"

    @property
    def acts(self) -> bool:
        """Whether it does something that is seen from outside: keeps a table, sends, calls the program."""
        return bool(self.stores or self.sinks)

    @property
    def topics(self) -> tuple[Topic[Any, Any], ...]:
        """The topics from which its records come."""
        found: dict[str, Topic[Any, Any]] = {}
        for parent in self.parents:
            found.update((topic.name, topic) for topic in parent.topics)
        return tuple(found.values())

    @property
    def goes_by_key(self) -> bool:
        """Whether it needs each record in the shard of its key."""
        return bool(self.stores or self.reads)

    @property
    def held(self) -> bool:
        """Whether its results may have been held back until event time had passed."""
        before: Iterable[Operator | Topic[Any, Any]] = self.parents or self.topics
        return self.holds_back or any(each.held for each in before)

    @property
    def values(self) -> Codec[Any]:
        """The codec for its values on their way through topics and buffers of our own.

        Raises:
            TopologyError: they are of types that it would not tell apart.
        """
        self.check_values()
        return value_codec(self.value_type) if self.codec is None else self.codec

    def takes_keyless(self, port: int) -> bool:
        """Whether a record without a key is more to it, as one of its parents', than something to drop."""
        return False

    def check_values(self) -> None:
        """See that values can be kept.

        Raises:
            TopologyError: they are of types that could not be told apart.
        """
        if self.codec is None:
            check_one_type(self.mixed, self.value_type)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        """Make it run in one shard.

        Args:
            forward: hands on a result to all that follow.

        Returns:
            A function for each parent, in their order.
        """
        raise NotImplementedError(f"{type(self).__name__} does not run by itself")

    def looked_into(self) -> list[Operator]:
        """Of operators with changes: those whose tables a lookup reads."""
        if self.stores:
            return [self]
        return [one for parent in self.parents for one in parent.looked_into()]

    def look_into(self) -> None:
        """Declare that somebody looks keys up in it: those that keep nothing for that look into others."""
        for parent in self.parents:
            parent.look_into()

    def getter(self, context: Context) -> Callable[[Any], tuple[Any, int] | None]:
        """Of operators with changes: a function that looks up a key's present value and its timestamp."""
        raise NotImplementedError(f"{self!r} cannot be looked up")

    def getter_as_of(self, context: Context) -> Callable[[Any, int], Any]:
        """Of operators with history: a function that looks up a key's value at a time; None where there was none."""
        raise NotImplementedError(f"{self!r} knows the present alone")


class Kept(Operator):
    """An operator whose own table, which has its name, holds what it hands on."""

    changes = True

    def __init__(self, *parents: Operator, name: str) -> None:
        super().__init__(*parents, name=name)
        self.stores.append(name)
        self.mend = None

    def look_into(self) -> None:
        """Nothing more is needed: the table has it all."""

    def getter(self, context: Context) -> Callable[[Any], tuple[Any, int] | None]:
        part = context.parts[self.name]

        def get(key: Any) -> tuple[Any, int] | None:
            stored = part.get(key, context.scope)
            return None if stored is MISSING else (stored[1], stored[0])

        return get


class Group(Kept):
    """An operator that keeps one value for each group of what it is given."""

    kind = "aggregate"

    def __init__(self, *parents: Operator, name: str, value_type: Any) -> None:
        super().__init__(*parents, name=name)
        self.value_type = value_type
        self.codec = None
        self._told = False

    def begin(
        self,
        part: Any,
        initial: Callable[[], Any],
        add: Callable[[Any, Any], Any],
        value: Any,
    ) -> Any:
        """What ``add`` makes of the first value of a group that has none."""
        begun = initial()
        made = add(begun, value)
        if made is None and part.mutable and not self._told and _differ(part, begun, initial()):
            self._told = True
            logger.warning(
                "table %r: add= has changed the group's value in place and returned None, which deletes the"
                " group: have it return the value (this is said once)",
                self.name,
            )
        return made


def _differ(part: Any, one: Any, other: Any) -> bool:
    try:
        return bool(part.dumps(one) != part.dumps(other))
    except Exception:  # a value that cannot be kept, and is not kept
        return True


def each(items: Iterable[tuple[Any, ...]], forward: Callable[..., Done]) -> Done:
    """Hand on several results, one after the other."""
    iterator = iter(items)
    for item in iterator:
        done = forward(*item)
        if done is not None:
            return _rest(done, iterator, forward)
    return None


async def _rest(
    done: Awaitable[None], items: Iterator[tuple[Any, ...]], forward: Callable[..., Done]
) -> None:
    await done
    for item in items:
        again = forward(*item)
        if again is not None:
            await again


async def finish(waits: Awaitable[Any], go_on: Callable[[Any], Done]) -> None:
    """Go on with what a function has returned, once it is there."""
    done = go_on(await waits)
    if done is not None:
        await done


def fan_out(inputs: Sequence[Callable[..., Done]]) -> Callable[..., Done]:
    """One function that hands on to all of these, in order."""
    if len(inputs) == 1:
        return inputs[0]
    if not inputs:
        return nowhere

    def forward(*result: Any) -> Done:
        for index, take in enumerate(inputs):
            done = take(*result)
            if done is not None:
                return _others(done, inputs[index + 1 :], result)
        return None

    return forward


async def _others(
    done: Awaitable[None], inputs: Sequence[Callable[..., Done]], result: tuple[Any, ...]
) -> None:
    await done
    for take in inputs:
        again = take(*result)
        if again is not None:
            await again


def nowhere(*_: Any) -> None:
    """Where results go that nobody takes."""


def check_function(function: Any, step: str, of: Operator) -> None:
    """See that a step was given a function.

    Raises:
        ConfigurationError: it was not.
    """
    if not callable(function):
        raise ConfigurationError(f"{step}() of {of.name!r}: {function!r} is not a function")


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives something to await."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )
