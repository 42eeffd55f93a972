"""Joins of two streams: each record looks for partners on the other side, within a reach of event time.

What a record does, in this order: it brings event time, and what has waited in vain for a partner until then comes out
(left and outer joins); it meets the rows of the other side that are in reach; without any it comes out alone, at
once where stream time is beyond its reach, else when it is beyond reach and grace; and it lies in its own side's
buffer for those that come later.

A row is found as long as its own side's stream time is not beyond it by reach and grace together: the sides' times count
by themselves, as in Kafka Streams, so a side that is ahead takes nothing from the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from millstream.context import current
from millstream.serialization import codec_for, key_layout
from millstream.streams._join_compat import KafkaRelease
from millstream.streams._join_delivery import deliver_waiting, delivery, then
from millstream.streams._join_rows import WAITS, BufferPart, RowsCodec
from millstream.streams._join_waiting import WaitingPart
from millstream.streams._operator import Context, Done, Operator
from millstream.streams._pipeline import bound
from millstream.streams._stateless import SourceOperator
from millstream.tables import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from millstream.clock import Clock
    from millstream.serialization import Codec
    from millstream.streams._home import StreamHome
    from millstream.streams._join_delivery import Pair
    from millstream.streams._join_waiting import Waiting

__all__ = ["Reach", "SelfJoin", "StreamJoin", "keep_rows", "plain_encoder"]


class Reach(NamedTuple):
    """What a join takes together: ``left - before <= right <= left + after``, in ms; either may be negative."""

    before: int
    after: int
    grace: int

    @property
    def width(self) -> int:
        """How many moments a record reaches."""
        return self.before + self.after + 1

    def retention(self, *, left: bool, compat: bool) -> int:
        """How far a side's stream time may be beyond a row that is still found, in ms.

        Reach and grace, as in Kafka Streams. Where a side reaches only into the future, Kafka Streams
        drops rows of an ordered stream before their partners can come; here its reach is the least. Where
        all of it is 0, Kafka Streams keeps nothing; here rows of one moment meet.
        """
        kept = self.before + self.after + self.grace
        if compat:
            return kept
        if min(self.before, self.after) < 0:
            kept = max(kept, (self.after if left else self.before) + 1)
        return max(kept, 1)

    def hold(self, *, left: bool) -> int:
        """How far stream time has to be beyond a row for which no partner can come any more, in ms."""
        return (self.after if left else self.before) + self.grace


class StreamJoin(Operator):
    """Inner, left and outer joins of two streams."""

    kind = "join"

    def __init__(
        self,
        left: Operator,
        right: Operator,
        joiner: Callable[[Any, Any], Any],
        *,
        name: str,
        how: str,
        reach: Reach,
        value_type: Any,
    ) -> None:
        super().__init__(left, right, name=name)
        self.joiner = joiner
        self.how = how
        self.reach = reach
        self.value_type = value_type
        self.codec = None
        self.buffers = {True: f"{name}-left", False: f"{name}-right"}
        self.waits = None if how == "inner" else f"{name}-unmatched"
        self.holds_back = self.waits is not None
        self.stores += self.buffers.values()
        if self.waits is not None:
            self.stores.append(self.waits)
        self.memory = f"{name}-released"
        """Kept only where Kafka Streams' answers are wanted."""
        self._compat = False
        self._clock: Callable[[], Clock] | None = None

    def declare(self, home: StreamHome) -> None:
        """Declare what it keeps."""
        self._compat = compat = home.compat == "kafka-streams"
        if compat and self.waits is not None:
            self.stores.append(self.memory)
        self._clock = lambda: home.clock
        sides = {True: self.parents[0], False: self.parents[1]}
        for left, parent in sides.items():
            keep_buffer(home, parent, self.buffers[left], self.reach, left=left)
        if self.waits is not None:
            codecs = {left: parent.values for left, parent in sides.items()}
            holds = {left: self.reach.hold(left=left) for left in self._alone()}
            encode_plain = plain_encoder(self.parents[0])

            def make_part(name: str, **arguments: Any) -> WaitingPart:
                return WaitingPart(
                    name,
                    codecs=codecs,
                    holds_ms=holds,
                    encode_plain=encode_plain,
                    releases=not compat,
                    **arguments,
                )

            keep_rows(
                home,
                self.parents[0],
                self.waits,
                make_part,
                key=lambda kind: tuple[bool, int, kind, int],  # type: ignore[valid-type]
                values=codecs[True] if self.how == "left" else _either(codecs),
                help=f"Records of join {self.name!r} that have not met a partner yet.",
            )
            home.due_hook(self.waits, self.close)
            if compat:
                home.kept_table(
                    self.memory,
                    key=str,
                    value=tuple[int | None, int],
                    like=self.parents[0].topics[0],
                    stamped=False,
                    checked=False,
                    help=f"Which rows of join {self.name!r} Kafka Streams would look at next, and when.",
                )

    def takes_keyless(self, port: int) -> bool:
        return (port == 0) in self._alone()

    def _alone(self) -> list[bool]:
        """Sides, left or not, whose records come out without a partner."""
        return {"inner": [], "left": [True], "outer": [True, False]}[self.how]

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        release = None
        if self.waits is not None and self._compat:
            holds = {left: self.reach.hold(left=left) for left in (True, False)}
            parts = context.parts
            release = KafkaRelease(
                parts[self.waits], parts[self.memory], context.clock, holds_ms=holds
            )
        return [self._side(context, forward, release, left=left) for left in (True, False)]

    def _side(
        self,
        context: Context,
        forward: Callable[..., Done],
        release: KafkaRelease | None,
        *,
        left: bool,
    ) -> Callable[..., Done]:
        mine: BufferPart = context.parts[self.buffers[left]]
        theirs: BufferPart = context.parts[self.buffers[not left]]
        waiting: WaitingPart | None = None if self.waits is None else context.parts[self.waits]
        before, after, _ = self.reach
        if not left:
            before, after = after, before
        alone, others_wait = left in self._alone(), (not left) in self._alone()
        others_hold = NEVER if self._compat else self.reach.hold(left=not left)
        counters, loads = context.counters, theirs.values.loads
        deliver = delivery(self.joiner, forward)
        parent = self.parents[0 if left else 1]
        plain = isinstance(parent, SourceOperator) and parent.codec is not None

        def take(key: Any, value: Any, timestamp: int) -> Done:
            scope = context.scope
            stream_time, out = timestamp, None
            if waiting is not None:
                stream_time = waiting.stream_time
                if timestamp > stream_time or scope.journal is not None:
                    stream_time = waiting.reached(timestamp, scope)
                if stream_time >= waiting.next_due:
                    rows = waiting.release(scope, first=True)
                    out = deliver_waiting(waiting, rows, scope, deliver)
            if key is None or value is None:
                if value is None or not alone:
                    counters["null_keys_dropped" if key is None else "null_values_dropped"] += 1
                    return out
                return then(out, deliver, [_pair(None, value, None, timestamp, left=left)])
            if release is not None and timestamp == stream_time:
                late = release.release(stream_time, scope, left=left)
                out = deliver_waiting(waiting, late, scope, deliver)  # type: ignore[arg-type]
            if plain and scope.record is not None and scope.record.value is not None:
                data = scope.record.value  # as it is in its topic
            else:
                data = mine.dump(key, value)
            last = timestamp + after
            if last < 0:
                last = 0  # as Kafka Streams has it at the beginning of time
            found = theirs.between(key, timestamp - before, last, scope)
            mark = 0
            pairs: list[Pair] = []
            if found:
                met = -1
                for moment, waits, payload in found:
                    if (
                        others_wait
                        and waits
                        and moment != met
                        and moment + others_hold >= stream_time
                    ):
                        met = moment
                        waiting.remove(not left, moment, key, scope)  # type: ignore[union-attr]
                    try:
                        other = loads(payload)
                    except Exception:
                        other = theirs.load_value((key, 0), payload)  # says what is wrong
                    when = moment if moment > timestamp else timestamp
                    pairs.append((key, value, other, when) if left else (key, other, value, when))
            elif alone and waiting is not None:
                if last < stream_time:
                    waiting.tie(last + 1, scope)
                    pairs.append(_pair(key, value, None, timestamp, left=left))
                else:
                    mark = WAITS
                    headers = scope.record.headers if scope.record is not None else []
                    waiting.put(left, timestamp, key, data, headers, scope)
                    if release is not None:
                        release.put(timestamp, scope)
            mine.add(key, timestamp, mark, data, scope)
            if not pairs:
                return out
            return deliver(pairs) if out is None else then(out, deliver, pairs)

        return take

    async def close(self, key: Any, window: Any, value: Iterable[Waiting]) -> None:
        """Event time has moved without a record, or far: let out what is due."""
        scope = current.get()
        assert self.pipeline is not None
        assert self._clock is not None
        binding = bound(self.pipeline, scope, self._clock())
        deliver = delivery(self.joiner, binding.forward(self))
        assert self.waits is not None
        done = deliver_waiting(scope.parts[self.waits], value, scope, deliver)
        if done is not None:
            await done


class SelfJoin(Operator):
    """The inner join of a stream with itself, from one buffer: each record is a left one, then a right one."""

    kind = "join"

    def __init__(
        self,
        parent: Operator,
        joiner: Callable[[Any, Any], Any],
        *,
        name: str,
        reach: Reach,
        value_type: Any,
    ) -> None:
        super().__init__(parent, name=name)
        self.joiner = joiner
        self.reach = reach
        self.value_type = value_type
        self.codec = None
        self.stores.append(name)

    def declare(self, home: StreamHome) -> None:
        """Declare what it keeps."""
        keep_buffer(home, self.parents[0], self.name, self.reach, left=None)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        part: BufferPart = context.parts[self.name]
        before, after, _ = self.reach
        deliver = delivery(self.joiner, forward)
        counters = context.counters

        def take(key: Any, value: Any, timestamp: int) -> Done:
            if key is None or value is None:
                counters["null_keys_dropped" if key is None else "null_values_dropped"] += 1
                return None
            scope = context.scope
            data = part.dump(key, value)
            pairs = [
                (key, value, part.load_value((key, 0), payload), max(moment, timestamp))
                for moment, _, payload in part.between(
                    # as Kafka Streams has it at the beginning of time
                    key,
                    timestamp - before,
                    max(timestamp + after, 0),
                    scope,
                )
            ]
            part.add(key, timestamp, 0, data, scope)
            pairs += [
                (key, part.load_value((key, 0), payload), value, max(moment, timestamp))
                for moment, _, payload in part.between(
                    key, timestamp - after, max(timestamp + before, 0), scope
                )
            ]
            return deliver(pairs)

        return [take]


def _pair(key: Any, value: Any, other: Any, timestamp: int, *, left: bool) -> Any:
    return (key, value, other, timestamp) if left else (key, other, value, timestamp)


def _either(codecs: dict[bool, Codec[Any]]) -> Codec[Any]:
    """A codec that shows the values of both sides, without their types where these differ."""
    names = {codec.name for codec in codecs.values()}
    return codec_for("json" if names == {"json"} else "raw", Any)


def keep_buffer(
    home: StreamHome, parent: Operator, name: str, reach: Reach, *, left: bool | None
) -> None:
    """Declare the table of a side's rows; ``left`` is None for the one of a self join."""
    compat = home.compat == "kafka-streams"
    sides = (True, False) if left is None else (left,)
    retention_ms = max(reach.retention(left=side, compat=compat) for side in sides)
    encode_plain = plain_encoder(parent)

    def make_part(part: str, **arguments: Any) -> BufferPart:
        return BufferPart(
            part,
            values=parent.values,
            bucket_ms=2 * reach.width,
            retention_ms=retention_ms,
            encode_plain=encode_plain,
            **arguments,
        )

    keep_rows(
        home,
        parent,
        name,
        make_part,
        key=lambda kind: tuple[int, kind, int],  # type: ignore[valid-type]
        values=parent.values,
        help="Records of late that a join may still need.",
    )


def _key_type(parent: Operator) -> Any:
    return str if parent.key_type is Any else parent.key_type


def plain_encoder(parent: Operator) -> Callable[[Any], bytes]:
    """What makes order-preserving bytes of the keys of a stream."""
    encode: Callable[[Any], bytes] = key_layout(_key_type(parent)).encode
    return encode


def keep_rows(
    home: StreamHome,
    parent: Operator,
    name: str,
    make_part: Callable[..., Any],
    *,
    key: Callable[[Any], Any],
    values: Codec[Any],
    help: str,
) -> None:
    """Declare a table of rows.

    Args:
        key: makes the entries' type from that of the keys.
        values: shows the rows' values to queries.
    """
    home.kept_table(
        name,
        key=key(_key_type(parent)),
        value=bytes,
        codec=RowsCodec(values),
        like=parent.topics[0],
        make_part=make_part,
        stamped=False,
        checked=False,
        help=help,
    )
