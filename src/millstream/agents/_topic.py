"""Topics as programs use them: a typed description, and `send`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol

from typing_extensions import TypeVar

from millstream.agents._fields import field_getter
from millstream.clock import Duration, duration_ms, timestamp_ms
from millstream.context import Scope, current
from millstream.errors import (
    ConfigurationError,
    EncodeError,
    OutsideEventError,
    ProgramError,
    RecordTooLargeError,
)
from millstream.records import GivenHeaders, Headers, OutgoingRecord, Position, TopicPartition
from millstream.serialization import dump_str

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from millstream.agents._policy import Policy
    from millstream.serialization.base import Codec

__all__ = ["Sender", "Topic"]

V = TypeVar("V")
K = TypeVar("K", default=str)

NO_HEADERS: Headers = []
"""Shared by all records without headers; nobody adds to it."""
PARTITION_CACHE = 65_536
"""Keys whose partition is remembered, per topic."""


class Sender(Protocol):
    """What a topic needs to send outside of an event; the running app provides it."""

    def now(self) -> int: ...

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has; raises where the app is not running."""
        ...

    @property
    def record_bytes_max(self) -> int: ...

    async def append(
        self, records: Mapping[TopicPartition, Sequence[OutgoingRecord]]
    ) -> dict[TopicPartition, int]: ...


class Topic(Generic[V, K]):
    """A named, partitioned log of values of one type.

    Keys are encoded as UTF-8 where they are str, as they are where they are bytes, else as JSON text; the
    partition is chosen as the Java client does (murmur2), unless the topic says otherwise.
    """

    def __init__(
        self,
        name: str,
        *,
        value_codec: Codec[Any],
        key_codec: Codec[Any],
        sender: Sender,
        partitioner: Callable[[bytes, int], int],
        key_from: str | Callable[[Any], Any] | None = None,
        timestamp: str | Callable[[Any], Any] | None = None,
        partitions: int | None = None,
        retention: Duration | None = None,
        compacted: bool = False,
        internal: bool = False,
        policy: Policy | None = None,
        key_type: Any = str,
        value_type: Any = Any,
        max_wait: Duration = 0,
        idle_timeout: Duration | None = None,
    ) -> None:
        self.name = name
        self.names: tuple[str, ...] = (name,)
        """What an agent over it reads; a pattern stands for itself."""
        self.key_type = key_type
        self.value_type = value_type
        self.value_codec = value_codec
        self.key_codec = key_codec
        self.partitions = partitions
        self.retention_ms = (
            None if retention is None else duration_ms(retention, what=f"{name}: retention")
        )
        self.compacted = compacted
        self.internal = internal
        self.beside: str | None = None
        """A topic that has as many partitions."""
        self.comes_from: tuple[Topic[Any, Any], ...] = ()
        """Of a topic between two stages of the app: the topics that its records come from."""
        self.held = False
        """Whether its records may come out of something that holds them back until event time has passed."""
        self.takes_keyless = False
        """Whether records without a key move through it as well, to joins of which they come out unmatched."""
        self.policy = policy
        self.key_from = key_from
        self.timestamp_from = timestamp
        self.partitioner = partitioner
        self.max_wait_ms = duration_ms(max_wait, what=f"{name}: max_wait")
        self.idle_timeout_ms = (
            None
            if idle_timeout is None
            else duration_ms(idle_timeout, what=f"{name}: idle_timeout")
        )
        if self.max_wait_ms < 0 or (self.idle_timeout_ms is not None and self.idle_timeout_ms < 1):
            raise ConfigurationError(
                f"topic {name!r}: max_wait={max_wait!r}, idle_timeout={idle_timeout!r}: the first may"
                f" not be below 0, and the second has to be above"
            )
        self._sender = sender
        self._key_of = None if key_from is None else field_getter(key_from, value_type)
        self._time_of = None if timestamp is None else field_getter(timestamp, value_type)
        self._dumps = value_codec.dumps
        self._dump_key = key_codec.dumps
        self._record_bytes_max = sender.record_bytes_max
        self._placed: dict[bytes, TopicPartition] = {}
        self._text_keys = key_codec.dumps is dump_str
        self._keyed: dict[str, TopicPartition] = {}
        """By the keys themselves, where these are text: their bytes are quicker to make than to find."""
        self._alike: dict[tuple[int, int], TopicPartition] = {}
        """By a shard's count of partitions, which is the topic's own, and number."""
        self._next_keyless = 0

    def __repr__(self) -> str:
        return f"<Topic {self.name!r}>"

    @property
    def members(self) -> tuple[Topic[V, K], ...]:
        """The topics that it stands for, one by one, as far as they are known by name."""
        return (self,)

    def reads(self, name: str) -> bool:
        """Whether an agent over it reads the topic of that name."""
        return name == self.name

    def named(self, name: str) -> Topic[V, K]:
        """One of several topics that are read as one, by its name: to send to it.

        Raises:
            ConfigurationError: it is none of them.
        """
        if name != self.name:
            raise self._no_such_topic(name)
        return self

    def _no_such_topic(self, name: str) -> ConfigurationError:
        return ConfigurationError(f"topic {self.name!r} does not include {name!r}")

    def key_of(self, value: V) -> Any:
        """The key that ``key_from`` derives, or None.

        Raises:
            ProgramError: the value has no such field.
        """
        if self._key_of is None or value is None:
            return None
        try:
            return self._key_of(value)
        except (AttributeError, KeyError, TypeError, IndexError) as exc:
            raise ProgramError(
                f"topic {self.name!r}: key_from={self.key_from!r} cannot be read from a"
                f" {type(value).__name__}: {exc}"
            ) from exc

    def time_of(self, value: V) -> int | None:
        """The event time that ``timestamp`` extracts, in ms; None where the record's own counts.

        Raises:
            ProgramError: negative, or not a time.
        """
        if self._time_of is None or value is None:
            return None
        try:
            moment = timestamp_ms(self._time_of(value))
        except (AttributeError, KeyError, TypeError, IndexError, ConfigurationError) as exc:
            raise ProgramError(
                f"topic {self.name!r}: timestamp={self.timestamp_from!r} gives no time: {exc}"
            ) from exc
        if moment < 0:
            raise ProgramError(f"topic {self.name!r}: the timestamp {moment} is negative")
        return moment

    def encode(
        self,
        value: V | None,
        *,
        key: Any = None,
        timestamp: datetime | float | None = None,
        headers: GivenHeaders | None = None,
        partition: int | None = None,
        now: int | None = None,
    ) -> tuple[TopicPartition, OutgoingRecord]:
        """The record that `send` would append, and where to.

        Raises:
            EncodeError: key or value cannot be encoded.
            RecordTooLargeError: the record is above ``record_bytes_max``.
            ProgramError: a negative timestamp, or a partition that the topic does not have.
        """
        key_data, data = self._encode_pair(key, value)
        if timestamp is not None:
            moment = timestamp_ms(timestamp)
            if moment < 0:
                raise ProgramError(f"topic {self.name!r}: the timestamp {moment} is negative")
        else:
            extracted = None if self._time_of is None else self.time_of(value)  # type: ignore[arg-type]
            if extracted is not None:
                moment = extracted
            else:
                moment = self._sender.now() if now is None else now
        if partition is None:
            tp = self.place(key_data)
        else:
            count = self._sender.partitions(self.name)
            if not 0 <= partition < count:
                raise ProgramError(
                    f"topic {self.name!r} has no partition {partition}: it has {count}"
                )
            tp = TopicPartition(self.name, partition)
        return tp, OutgoingRecord(moment, key_data, data, _headers(headers) if headers else [])

    def _encode_pair(self, key: Any, value: V | None) -> tuple[bytes | None, bytes | None]:
        """Key and value as bytes; the key derived from the value where it is None."""
        if key is None and self._key_of is not None and value is not None:
            try:
                key = self._key_of(value)
            except (AttributeError, KeyError, TypeError, IndexError):
                key = self.key_of(value)  # raises
        try:
            data = None if value is None else self._dumps(value)
        except Exception as exc:
            raise EncodeError(f"topic {self.name!r}", value=value, reason=str(exc)) from exc
        try:
            key_data = None if key is None else self._dump_key(key)
        except Exception as exc:
            raise EncodeError(f"topic {self.name!r}, key", value=key, reason=str(exc)) from exc
        size = (len(data) if data else 0) + (len(key_data) if key_data else 0)
        if size > self._record_bytes_max:
            raise RecordTooLargeError(
                f"topic {self.name!r}, key {key!r}",
                size=size,
                limit=self._record_bytes_max,
                setting="record_bytes_max",
            )
        return key_data, data

    def place(self, key: bytes | None) -> TopicPartition:
        """The partition of a key; records without one go round."""
        if key is None:
            count = self._sender.partitions(self.name)
            self._next_keyless = (self._next_keyless + 1) % count
            return TopicPartition(self.name, self._next_keyless)
        tp = self._placed.get(key)
        if tp is None:
            if len(self._placed) >= PARTITION_CACHE:
                self._placed.clear()
            count = self._sender.partitions(self.name)
            tp = self._placed[key] = TopicPartition(self.name, self.partitioner(key, count))
        return tp

    def _place_result(self, scope: Scope, key: bytes | None) -> TopicPartition:
        """Likewise, where the key may be the one that the event's record has."""
        if key is not None:
            shard = scope.shard
            partition = shard.own_partition(scope, key, self.partitioner)
            if partition is not None:
                found = self._alike.get((shard.count, partition))
                if found is not None:
                    return found
                if self._sender.partitions(self.name) == shard.count:
                    found = TopicPartition(self.name, partition)
                    self._alike[shard.count, partition] = found
                    return found
        elif self.takes_keyless:
            # the same whenever the event is processed, as that of any other key
            count = self._sender.partitions(self.name)
            return TopicPartition(self.name, scope.shard.number % count)
        return self.place(key)

    def _place_str(self, key: str) -> TopicPartition:
        """The partition of a key; remembered by the key itself."""
        if len(self._keyed) >= PARTITION_CACHE:
            self._keyed.clear()
        found = self._keyed[key] = self.place(key.encode())
        return found

    def forget_placement(self) -> None:
        """Partition counts may have changed: another log, another run."""
        self._placed.clear()
        self._keyed.clear()
        self._alike.clear()

    def put(
        self,
        scope: Scope,
        value: V | None,
        *,
        key: Any = None,
        timestamp: datetime | float | None = None,
        headers: GivenHeaders | None = None,
        partition: int | None = None,
    ) -> None:
        """Send inside an event: encoded now, appended with the event's epoch."""
        if timestamp is None and headers is None and partition is None and self._time_of is None:
            key_data, data = self._encode_pair(key, value)
            tp = self._placed.get(key_data) if key_data is not None else None
            if tp is None:
                tp = self.place(key_data)
            moment, listed = scope.timestamp, NO_HEADERS
        else:
            tp, (moment, key_data, data, listed) = self.encode(
                value,
                key=key,
                timestamp=timestamp,
                headers=headers,
                partition=partition,
                now=scope.timestamp,
            )
        self._append(scope, tp, moment, key_data, data, listed)

    def put_result(
        self, scope: Scope, value: V | None, key: Any, timestamp: int, headers: Headers
    ) -> None:
        """Like `put`, with all that a record has; ``key_from``, where there is one, decides over ``key``."""
        try:
            if value is None:
                data = None
            else:
                data = self._dumps(value)
                if self._key_of is not None:
                    key = self._key_of(value)
            key_data = None if key is None else self._dump_key(key)
            size = (len(data) if data else 0) + (len(key_data) if key_data else 0)
        except Exception:
            size = self._record_bytes_max + 1
        if size > self._record_bytes_max:  # whatever is wrong is met again, and said, here
            key_data, data = self._encode_pair(
                None if self._key_of and value is not None else key, value
            )
        tp = self._placed.get(key_data) if key_data is not None else None
        if tp is None:
            tp = self._place_result(scope, key_data)
        if timestamp < 0:
            raise ProgramError(f"topic {self.name!r}: the timestamp {timestamp} is negative")
        self._append(scope, tp, timestamp, key_data, data, headers)

    @staticmethod
    def _append(
        scope: Scope,
        tp: TopicPartition,
        timestamp: int,
        key: bytes | None,
        data: bytes | None,
        headers: Headers,
    ) -> None:
        scope.append(tp, (timestamp, key, data, headers))  # type: ignore[arg-type]  # a plain tuple
        to = scope.subtopology
        if to.epoch_bytes > to.epoch_bytes_watch:
            to.filling(scope)

    def put_encoded(
        self,
        scope: Scope,
        value: V | None,
        *,
        key: bytes,
        timestamp: int,
        headers: Headers = NO_HEADERS,
        placed_by: bytes | None = None,
    ) -> None:
        """Like `put`, with a key that is bytes already.

        Args:
            placed_by: the bytes that decide the partition, where these are not the key's.
        """
        try:
            data = None if value is None else self._dumps(value)
        except Exception as exc:
            raise EncodeError(f"topic {self.name!r}", value=value, reason=str(exc)) from exc
        tp = self.place(key if placed_by is None else placed_by)
        self._append(scope, tp, timestamp, key, data, headers)

    async def send(
        self,
        value: V | None,
        *,
        key: K | None = None,
        timestamp: datetime | float | None = None,
        headers: GivenHeaders | None = None,
        partition: int | None = None,
    ) -> Position | None:
        """Send a value; None as the value deletes the key where the topic is read as a table.

        Inside an event the record joins the event's epoch: it is encoded now, and becomes visible when the
        epoch commits. Its timestamp is the event's, where none is given. Elsewhere it is sent at once.

        Returns:
            Where the record is, once the log has it; None inside an event.

        Raises:
            EncodeError, RecordTooLargeError: nothing was sent.
            LogUnavailableError: nothing was sent; only outside of an event.
            OutsideEventError: the event that started this task is finished.
        """
        scope = current.get(None)
        if scope is not None:
            if not scope.open:
                raise OutsideEventError(
                    f"topic {self.name!r}: send",
                    "A task that an event has started may send only until that event is finished:"
                    " await it in the agent.",
                )
            if (
                key is None
                and scope.journal is None
                and timestamp is None
                and headers is None
                and partition is None
                and self._key_of is not None
                and self._time_of is None
                and value is not None
            ):
                # the common case, flat; whatever is wrong is met again, and said, by put()
                try:
                    its_key = self._key_of(value)
                    if type(its_key) is str and self._text_keys:
                        tp = self._keyed.get(its_key) or self._place_str(its_key)
                        key_data = its_key.encode()
                    else:
                        key_data = self._dump_key(its_key)
                        tp = self._placed.get(key_data) or self.place(key_data)
                    data = self._dumps(value)
                    size = len(key_data) + len(data)
                except Exception:
                    size = self._record_bytes_max + 1
                if size <= self._record_bytes_max:
                    to = scope.subtopology
                    pack, moment = to.sent[tp], scope.timestamp
                    if pack.add(pack.count, moment, key_data, data, NO_HEADERS) is None:
                        pack.append((moment, key_data, data, NO_HEADERS))
                    else:
                        pack.count += 1
                    to.epoch_bytes = size = to.epoch_bytes + size
                    if size > to.epoch_bytes_watch:
                        to.filling(scope)
                    return None
            self.put(
                scope, value, key=key, timestamp=timestamp, headers=headers, partition=partition
            )
            return None
        tp, record = self.encode(
            value, key=key, timestamp=timestamp, headers=headers, partition=partition
        )
        first = await self._sender.append({tp: [record]})
        return Position(tp.topic, tp.partition, first[tp])

    async def send_many(self, values: Iterable[V], *, key: K | None = None) -> int:
        """Send many values at once, all of them or none; much quicker than one `send` after the other.

        Returns:
            How many were sent.
        """
        scope = current.get(None)
        if scope is not None:
            count = 0
            for value in values:
                await self.send(value, key=key)
                count += 1
            return count
        batches: dict[TopicPartition, list[OutgoingRecord]] = {}
        count = 0
        for value in values:
            tp, record = self.encode(value, key=key)
            batches.setdefault(tp, []).append(record)
            count += 1
        if batches:
            await self._sender.append(batches)
        return count


def _headers(given: GivenHeaders) -> Headers:
    pairs = given.items() if isinstance(given, Mapping) else given
    return [(name, _header_value(value)) for name, value in pairs]


def _header_value(value: bytes | str | None) -> bytes | None:
    if value is None:
        return None
    return value.encode() if isinstance(value, str) else bytes(value)
