"""Joining a table with another by a foreign key: a field of the left table's values is a key of the right one.

Theory of operation
-------------------
The sides are in other shards, so they talk through two topics. A change on the left sends a *subscription* to the
shard of its foreign key: its own key, a hash of its value, and what is to be done. The right side keeps the
subscriptions by foreign key, and answers with its value now; a change on the right answers all of its
subscribers. An answer comes back to the left key's shard, and counts only if the left value still has the hash that
the answer names: any other is overtaken by a newer one, which is on its way. (Kafka Streams, KIP-213.)

So every change on the left needs an answer: the one before may have been overtaken by it, and with that the result's
end. Where Kafka Streams sends none, as there was no result and is none, ours is *quiet*: nothing follows from it
unless there is a result.

Another version of the program may make other bytes of a left value that nobody has changed: a field with a default has
come, or an ``upgrade=``. So behind the hash stands what tells the *form* of the values. An answer to another hash in
another form need not be overtaken by anything: it is answered with a new subscription, for the value as it is. That one
is of the present form, so it is not answered again; where something newer was on its way, there is a word too many.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec

from millstream.agents import field_getter
from millstream.errors import ConfigurationError
from millstream.serialization import upgrading, value_schema
from millstream.streams._codec import upgrade_with
from millstream.streams._operator import WAITS, Context, Done, Operator, finish
from millstream.streams._sides import check_foreign_key
from millstream.streams._table_ops import Upsert, both
from millstream.streams._types import field_type, result_type, without_none
from millstream.tables import DELETED, MISSING, TablePart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from millstream.agents import Topic
    from millstream.context import PreImage, Scope
    from millstream.serialization import Codec
    from millstream.streams._home import StreamHome

__all__ = ["join_foreign"]

# what a subscription asks for
DELETE_SILENTLY, DELETE_AND_ANSWER, ANSWER_ANYWAY, ANSWER_IF_THERE = range(4)


class Subscription(msgspec.Struct, array_like=True, frozen=True):
    """What the left side sends: its key, in its own codec, a hash of its value with the form, and what is to be done."""

    key: bytes
    hash: bytes | None
    request: int


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What the right side answers: the hash that it was asked with, and its value, in its own codec."""

    hash: bytes | None
    value: bytes | None
    quiet: bool = False
    """Whether it says nothing new if there is no result."""


class StructCodec:
    """MessagePack of one Struct type."""

    name = "msgpack"

    def __init__(self, kind: type[Any]) -> None:
        self.type_name = kind.__name__
        self.dumps = msgspec.msgpack.Encoder().encode
        self.loads = msgspec.msgpack.Decoder(kind).decode


HASH_BYTES = 16
FORM_BYTES = 4


def hash_of(data: bytes | None, form: bytes) -> bytes | None:
    """16 bytes that stand for a value, and its form."""
    return None if data is None else hashlib.blake2b(data, digest_size=HASH_BYTES).digest() + form


def form_of(left: Operator) -> bytes:
    """What tells the left side's values from those of other versions of the program."""
    schema = value_schema(left.values, left.value_type, defaults=True)
    return bytes.fromhex(schema)[:FORM_BYTES]


class PrefixPart(TablePart):
    """Entries ``(prefix, rest)``; those of a prefix are found without a look at all that is not stored yet."""

    __slots__ = ("_committing_recent", "_recent")

    @property
    def kept_as(self) -> str:
        return "subscriptions"

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__(name, **arguments)
        self._recent: dict[Any, dict[Any, None]] = {}
        """By prefix: entries that were written since the last cut, and may not be in the store."""
        self._committing_recent: dict[Any, dict[Any, None]] = {}

    def set(self, key: Any, value: Any, scope: Scope) -> None:
        super().set(key, value, scope)
        self._recent.setdefault(key[0], {})[key] = None

    def of(self, prefix: Any, scope: Scope) -> list[tuple[Any, Any]]:
        """Entries of a prefix with their values, in key order."""
        start = self.encode_key((prefix, b""))
        found: dict[bytes, Any] = {}
        for data in self.store.keys(start, None):
            key = self.decode_key(data)
            if key[0] != prefix:
                break
            found[data] = key
        for recent in (self._committing_recent, self._recent):
            for key in recent.get(prefix, ()):
                found[self.encode_key(key)] = key
        pairs = ((key, self.get(key, scope)) for _, key in sorted(found.items()))
        return [(key, value) for key, value in pairs if value is not MISSING]

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        super().cut(excluded)
        self._committing_recent, self._recent = self._recent, {}
        for key in excluded:
            self._recent.setdefault(key[0], {})[key] = None

    def settle(self) -> None:
        super().settle()
        self._committing_recent = {}

    def restore(self, events: Iterable[Scope] = ()) -> None:
        super().restore(events)
        for prefix, keys in self._committing_recent.items():
            self._recent.setdefault(prefix, {}).update(keys)
        self._committing_recent = {}


class Subscribe(Operator):
    """Left side: sends a subscription for each change."""

    kind = "subscribe"
    uses_old = True

    def __init__(
        self,
        left: Operator,
        foreign_key: Callable[[Any], Any],
        topic: Topic[Any, Any],
        answers: Topic[Any, Any],
        *,
        name: str,
        outer: bool,
    ) -> None:
        """
        Args:
            answers: the way back, taken at once where nobody is to be asked.
            outer: whether rows without a match come out as well.
        """
        super().__init__(left, name=name)
        self.foreign_key = foreign_key
        self.topic = topic
        self.answers = answers
        self.outer = outer
        self.sinks += [topic.name, answers.name]

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        foreign_key, subscribe = self.foreign_key, self.sender(context)

        def take(key: Any, new: Any, old: Any, timestamp: int) -> Done:
            if new is None and old is None:
                return None
            before = None if old is None else foreign_key(old)
            after = None if new is None else foreign_key(new)
            if before.__class__ in WAITS or after.__class__ in WAITS:
                return later(key, new, before, after, timestamp)
            subscribe(key, new, before, after, timestamp)
            return None

        async def later(key: Any, new: Any, before: Any, after: Any, timestamp: int) -> None:
            subscribe(key, new, *await both(before, after), timestamp)

        return [take]

    def sender(self, context: Context) -> Callable[[Any, Any, Any, Any, int], None]:
        """What sends subscriptions in one shard, given a key, its value, and its foreign key before and now."""
        topic, dumps, form = self.topic, self.values.dumps, form_of(self.parents[0])
        dump_key = self.topics[0].key_codec.dumps
        outer, answers = self.outer, self.answers

        def subscribe(key: Any, new: Any, before: Any, after: Any, timestamp: int) -> None:
            hashed = hash_of(None if new is None else dumps(new), form)
            data = dump_key(key)

            def send(to: Any, request: int) -> None:
                message = Subscription(data, hashed, request)
                topic.put(context.scope, message, key=to, timestamp=timestamp)

            if outer:
                if before is not None and before != after:
                    send(before, DELETE_SILENTLY)
                send(after, ANSWER_ANYWAY)
            elif after is None:
                if before is not None:
                    send(before, DELETE_AND_ANSWER)
                else:
                    quiet = Answer(hashed, None, quiet=True)
                    answers.put_encoded(context.scope, quiet, key=data, timestamp=timestamp)
            elif before is not None and before != after:
                send(before, DELETE_SILENTLY)
                send(after, ANSWER_ANYWAY)
            else:
                send(after, ANSWER_IF_THERE)

        return subscribe


class Serve(Operator):
    """Right side: keeps the subscriptions, and answers them, at once and whenever its value changes."""

    kind = "serve subscriptions"

    def __init__(
        self, subscriptions: Operator, right: Operator, topic: Topic[Any, Any], *, name: str
    ) -> None:
        super().__init__(subscriptions, right, name=name)
        right.look_into()
        self.topic = topic
        self.stores.append(name)
        self.sinks.append(topic.name)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        right = self.parents[1]
        part, get, dumps = context.parts[self.name], right.getter(context), right.values.dumps
        topic = self.topic

        def answer(
            key: bytes, hashed: bytes | None, value: Any, timestamp: int, *, quiet: bool = False
        ) -> None:
            made = Answer(hashed, None if value is None else dumps(value), quiet)
            topic.put_encoded(context.scope, made, key=key, timestamp=timestamp)

        def subscribed(foreign: Any, message: Subscription, timestamp: int) -> None:
            deletes = message.request in (DELETE_SILENTLY, DELETE_AND_ANSWER)
            pair = None
            if foreign is not None:
                entry = (foreign, message.key)
                part.set(entry, DELETED if deletes else message.hash, context.scope)
                pair = get(foreign)
            if pair is not None:
                timestamp = max(timestamp, pair[1])
            if message.request == DELETE_AND_ANSWER:
                answer(message.key, message.hash, None, timestamp)
            elif message.request in (ANSWER_ANYWAY, ANSWER_IF_THERE):
                value = None if pair is None else pair[0]
                quiet = pair is None and message.request == ANSWER_IF_THERE
                answer(message.key, message.hash, value, timestamp, quiet=quiet)

        def changed(key: Any, new: Any, old: Any, timestamp: int) -> None:
            for (_, left_key), hashed in part.of(key, context.scope):
                answer(left_key, hashed, new, timestamp)

        return [subscribed, changed]


class Resolve(Operator):
    """Left side again: makes a result of each answer that is not overtaken."""

    kind = "join"

    def __init__(
        self,
        answers: Operator,
        subscribe: Subscribe,
        right_values: Codec[Any],
        joiner: Callable[[Any, Any], Any],
        *,
        name: str,
        results: str,
        outer: bool,
        value_type: Any,
    ) -> None:
        """
        Args:
            subscribe: sends the subscriptions, of which one may have to be sent again.
            results: the table that they go to.
        """
        super().__init__(answers, name=name)
        self.left = left = subscribe.parents[0]
        self.subscribe = subscribe
        self.sinks += subscribe.sinks
        left.look_into()
        self.results = results
        self.reads.extend(left.stores)
        self.right_values = right_values
        self.joiner = joiner
        self.outer = outer
        self.key_type = left.key_type
        self.value_type = value_type
        self.codec = None

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        get, dumps, form = self.left.getter(context), self.left.values.dumps, form_of(self.left)
        loads, joiner, outer = self.right_values.loads, self.joiner, self.outer
        results = context.parts[self.results]
        foreign_key, subscribe = self.subscribe.foreign_key, self.subscribe.sender(context)

        def matches(left: Any, right: Any) -> bool:
            return right is not None or (outer and left is not None)

        def take(key: Any, answer: Answer, timestamp: int) -> Done:
            if answer.quiet and results.get(key, context.scope) is MISSING:
                return None
            pair = get(key)
            left = None if pair is None else pair[0]
            mine, theirs = hash_of(None if left is None else dumps(left), form), answer.hash
            if mine is None or theirs is None:
                if mine is not theirs:
                    return None
            elif mine[:HASH_BYTES] != theirs[:HASH_BYTES]:
                return None if theirs[HASH_BYTES:] == form else again(key, left, timestamp)
            right = None if answer.value is None else loads(answer.value)
            result = joiner(left, right) if matches(left, right) else None
            if result.__class__ in WAITS:
                return finish(result, lambda found: forward(key, found, timestamp))
            return forward(key, result, timestamp)

        def again(key: Any, left: Any, timestamp: int) -> Done:
            foreign = foreign_key(left)
            if foreign.__class__ in WAITS:
                return finish(foreign, lambda found: subscribe(key, left, found, found, timestamp))
            subscribe(key, left, foreign, foreign, timestamp)
            return None

        return [take]


def join_foreign(
    home: StreamHome,
    left: Operator,
    right: Operator,
    joiner: Callable[[Any, Any], Any],
    *,
    how: str,
    on: str | Callable[[Any], Any],
    name: str | None,
    value_type: Any,
    upgrade: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare the join; returns the table of its results.

    Args:
        upgrade: turns stored results of an older form into new ones.

    Raises:
        ConfigurationError: an outer join, which foreign keys do not have.
        TopologyError: the foreign key is of another type than the right table's keys.
    """
    if how == "outer":
        raise ConfigurationError(
            "join(on=): by a foreign key there are inner and left joins; rows of the right side without a"
            " match have no key that a result could have"
        )
    found = field_type(left.value_type, on) if isinstance(on, str) else result_type(on)
    what = f"join of table {left.name!r} and table {right.name!r}"
    check_foreign_key(without_none(found), right, what)
    if name is None:
        name = f"{left.name}-{right.name}-join"
    plan = home.plan
    subscriptions = home.repartition_topic(
        f"{name}-subscriptions",
        key=right.key_type,
        value=Any,
        codec=StructCodec(Subscription),
        of=[left],
        like=right.topics,
        beside=right.topics[0],
    )
    answers = home.repartition_topic(
        f"{name}-answers",
        key=left.key_type,
        value=Any,
        codec=StructCodec(Answer),
        of=[plan.source([subscriptions]), right, left],
        like=left.topics,
        beside=left.topics[0],
    )
    outer = how == "left"
    getter = field_getter(on, left.value_type)
    asks = Subscribe(left, getter, subscriptions, answers, name=f"{name}-subscribe", outer=outer)
    plan.add(asks)
    serve = Serve(plan.source([subscriptions]), right, answers, name=f"{name}-subscriptions")
    plan.add(serve)
    home.kept_table(
        serve.name,
        key=tuple[right.key_type, bytes],  # type: ignore[name-defined]
        value=bytes | None,
        codec=HashCodec(),
        like=right.topics[0],
        make_part=make_prefix_part,
        stamped=False,
        checked=False,
        operator=serve,
        help="Who is told of a key's changes.",
    )
    resolve = plan.add(
        Resolve(
            plan.source([answers]),
            asks,
            right.values,
            joiner,
            name=f"{name}-resolve",
            results=name,
            outer=outer,
            value_type=value_type,
        )
    )
    kept = plan.add(Upsert(resolve, name=name))
    if upgrade is not None:
        kept.codec = upgrading(kept.values, upgrade, f"table {name!r}")
    return home.kept_table(
        name,
        key=left.key_type,
        value=value_type,
        codec=kept.values,
        like=left.topics[0],
        operator=kept,
        mend=upgrade_with("join"),
    )


def make_prefix_part(name: str, **arguments: Any) -> PrefixPart:
    """A shard's subscriptions."""
    return PrefixPart(name, **{**arguments, "mutable": False})


class HashCodec:
    """A hash as it is; nothing stands for none."""

    name = "hash"
    type_name = "a hash"

    @staticmethod
    def dumps(value: bytes | None) -> bytes:
        """To the store."""
        return value or b""

    @staticmethod
    def loads(data: bytes) -> bytes | None:
        """From the store."""
        return data or None
