"""Every error that Millstream raises, split by who has to act.

::

    MillstreamError
    ├── ProgramError             the user's program
    │   ├── AgentError               a function of the user raised, and no policy let it pass
    │   ├── OutsideEventError        a table or send used where no event is in progress
    │   ├── WrongShardError          a key that belongs to another shard
    │   ├── DecodeError              bytes that are not a value of the declared type
    │   ├── EncodeError              a value that the codec cannot write
    │   ├── RecordTooLargeError      one record, or one event's output, above its bound
    │   └── AskError                 an ask that cannot be answered, or that failed elsewhere
    ├── ConfigurationError       settings, topology, topics
    │   ├── SettingError             a setting that is unknown or has a wrong value
    │   ├── TopologyError            declarations that contradict one another or the stored state
    │   ├── PartitionCountError      a topic or table with an unresolved or wrong partition count
    │   ├── PlacementError           a record in a partition that is not its key's
    │   └── AddressInUseError        a port that another process holds
    ├── TransportError           the log: broker, network, file
    │   ├── UnknownTopicError        a topic that does not exist
    │   ├── OffsetOutOfRangeError    a position that the log no longer or not yet holds
    │   ├── FencedError              this worker may not commit any more
    │   │   ├── IllegalGenerationError   the group has moved on; shards that stayed may be sent again
    │   │   └── UnknownMemberError       the group has removed this member
    │   ├── LogUnavailableError      no answer, locked, full, read-only: nothing was written
    │   ├── OutcomeUnknownError      a commit that was sent and whose answer never came
    │   └── LogDamagedError          the log's own bytes are wrong
    ├── QueryError               a question about a table, from outside of events
    │   ├── UnknownTableError        the app has no such table
    │   ├── BadQueryError            the question itself is wrong
    │   ├── UnavailableError         nobody can answer at the moment
    │   └── NotHereError             the worker that was asked does not own the shard
    ├── StateError               the local state of a shard
    └── InternalError            a bug of ours; please report it

An error keeps its facts as attributes and builds its own sentence: what happened, to which topic,
partition or table, and what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "AddressInUseError",
    "AgentError",
    "AskError",
    "BadQueryError",
    "ConfigurationError",
    "DecodeError",
    "EncodeError",
    "FencedError",
    "IllegalGenerationError",
    "InternalError",
    "LogDamagedError",
    "LogUnavailableError",
    "MillstreamError",
    "NotHereError",
    "OffsetOutOfRangeError",
    "OutcomeUnknownError",
    "OutsideEventError",
    "PartitionCountError",
    "PlacementError",
    "ProgramError",
    "QueryError",
    "RecordTooLargeError",
    "SettingError",
    "StateError",
    "TopologyError",
    "TransportError",
    "UnavailableError",
    "UnknownMemberError",
    "UnknownTableError",
    "UnknownTopicError",
    "WrongShardError",
]


class MillstreamError(Exception):
    """The root of every error that Millstream raises on purpose."""


# -- the user's program ---------------------------------------------------------------------------


class ProgramError(MillstreamError):
    """The user's program did something that cannot be carried out."""


class AgentError(ProgramError):
    """A function of the user raised on a record, and no policy let it pass.

    Attributes:
        where: what ran, for example ``agent 'count'``.
        record: the record's position as the user writes it, ``orders/3@5123``, or None for a timer.
        key: the record's key as text, or None.
        line: ``file:line`` of the user's code that raised, or None.
        position: what ``millstream skip`` takes to go past it: the record, or a timer's moment, or a window;
            None where the same does not come again.
    """

    def __init__(
        self,
        where: str,
        *,
        cause: BaseException,
        record: str | None = None,
        key: str | None = None,
        line: str | None = None,
        position: str | None = None,
    ) -> None:
        self.where, self.record, self.key, self.line = where, record, key, line
        self.position = position or record
        at = f" on record {record} (key {key})" if record else ""
        code = f" at {line}" if line else ""
        onward = " Nothing of it was committed. Mend the program and start the worker again."
        if self.position is not None:
            import shlex

            kept = "Nothing after it was" if record else "Nothing of it was"
            onward = (
                f" {kept} committed. Mend the program and start the worker again, or go past"
                f" {'the record' if record else 'it'} with: millstream skip {shlex.quote(self.position)}"
            )
        super().__init__(f"{where} raised {type(cause).__name__}: {cause}{at}{code}.{onward}")
        self.__cause__ = cause


class OutsideEventError(ProgramError):
    """A table was used, or written, where no event of its shard is in progress."""

    def __init__(self, what: str, advice: str) -> None:
        self.what = what
        super().__init__(f"{what}: no event is in progress here. {advice}")


class WrongShardError(ProgramError):
    """A key was used in a shard that does not own it."""

    def __init__(self, *, table: str, key: object, shard: int, owner: int, count: int) -> None:
        self.table, self.key, self.shard, self.owner, self.count = table, key, shard, owner, count
        super().__init__(
            f"table {table!r}: key {key!r} belongs to shard {owner} of {count}, and the event at hand"
            f" is in shard {shard}. Group the stream by that key first"
            f" (app.stream(...).group_by(...)), or send the value to a topic keyed by it."
        )


class DecodeError(ProgramError):
    """Bytes that are not a value of the declared type.

    Attributes:
        where: topic and position, or table and key.
        field: path of the wrong field inside the value, or None.
    """

    def __init__(self, where: str, *, part: str, type_name: str, reason: str) -> None:
        self.where, self.part, self.type_name, self.reason = where, part, type_name, reason
        super().__init__(f"{where}: the {part} is not {type_name}: {reason}")


class EncodeError(ProgramError):
    """A value that its codec cannot write.

    Attributes:
        table: the table whose value it is, or None.
        culprit: for a table's value: the event that wrote it, where another one met it, or None.
    """

    culprit: object = None

    def __init__(self, where: str, *, value: object, reason: str, table: str | None = None) -> None:
        self.where, self.reason, self.table = where, reason, table
        super().__init__(
            f"{where}: a value of type {type(value).__name__} cannot be encoded: {reason}"
        )


class RecordTooLargeError(ProgramError):
    """One record, or the output of one event, is larger than its bound, in bytes.

    Attributes:
        table: the table whose value it is, or None.
        culprit: as for `EncodeError`.
    """

    culprit: object = None

    def __init__(
        self, where: str, *, size: int, limit: int, setting: str, table: str | None = None
    ) -> None:
        self.where, self.size, self.limit, self.setting = where, size, limit, setting
        self.table = table
        super().__init__(
            f"{where}: {size:,} bytes, more than the {limit:,} that {setting} allows."
            f" Send less at once, or raise {setting}."
        )


class AskError(ProgramError):
    """An ``ask`` that cannot be answered, or that failed in the agent that was asked."""


# -- settings, topology, topics -------------------------------------------------------------------


class ConfigurationError(MillstreamError):
    """Settings or declarations that cannot work; raised before the first event, where it can be known then."""


class SettingError(ConfigurationError):
    """A setting that is unknown or has a wrong value."""

    def __init__(self, name: str, problem: str) -> None:
        self.name, self.problem = name, problem
        super().__init__(f"setting {name!r}: {problem}")


class TopologyError(ConfigurationError):
    """Declarations that contradict one another, the running group, or the stored state."""


class PartitionCountError(ConfigurationError):
    """A topic or table whose partition count is unresolved or not what was declared."""


class PlacementError(ConfigurationError):
    """A record is in a partition where its key does not belong: its writer chooses in another way.

    Attributes:
        record: the record's position as the user writes it, ``orders/3@5123``.
        key: its bytes.
        belongs: the partition that the topic's partitioner says.
        fits: the partitioner that the records at hand were placed with, or None where we know of none.
    """

    def __init__(self, *, record: str, key: bytes, belongs: int, fits: str | None) -> None:
        self.record, self.key, self.belongs, self.fits = record, key, belongs, fits
        topic = record.rpartition("/")[0]
        if fits is not None:
            advice = (
                f"They are where {fits} puts them: declare the topic with partitioner={fits!r}."
            )
        else:
            advice = (
                "Let the writer choose partitions by murmur2, as the Java client does (librdkafka:"
                " partitioner=murmur2_random), or declare the topic with partitioner='any' and regroup"
                " its stream (group_by, key_by) before tables and joins."
            )
        super().__init__(
            f"record {record}: its key {key!r} belongs in partition {belongs} of {topic!r}, so what is"
            f" kept for that key is in another shard. Whoever wrote the records chose partitions in"
            f" another way. {advice} Nothing of it was processed."
        )


class AddressInUseError(ConfigurationError):
    """The web port that was asked for is held by another process."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        super().__init__(
            f"port {port} on {host} is in use by another process."
            f" Choose another with --web-port, or leave it out to take the next free one."
        )


# -- the log --------------------------------------------------------------------------------------


class TransportError(MillstreamError):
    """The log (broker, network or file) refused or failed."""


class UnknownTopicError(TransportError):
    """A topic that the log does not hold."""

    def __init__(self, topic: str, *, where: str) -> None:
        self.topic, self.where = topic, where
        super().__init__(f"topic {topic!r} does not exist in {where}")


class OffsetOutOfRangeError(TransportError):
    """A position below the first or above the last offset that a partition holds."""

    def __init__(self, partition: str, *, position: int, start: int, end: int) -> None:
        self.partition, self.position, self.start, self.end = partition, position, start, end
        super().__init__(
            f"{partition}: position {position} is outside the log, which holds {start} to {end}"
        )


class FencedError(TransportError):
    """This worker may not commit any more; nothing of the epoch was written."""


class IllegalGenerationError(FencedError):
    """The group has another generation than the epoch; nothing of the epoch was written.

    Attributes:
        written: of an epoch that is not atomic, its records are in the log all the same, and its offsets are not.
    """

    written = False


class UnknownMemberError(FencedError):
    """The group has removed this member; nothing of the epoch was written."""


class LogUnavailableError(TransportError):
    """The log did not take the request; nothing of it was written, and it may be tried again.

    With ``processing_guarantee="at_least_once"`` some of a commit's records may be there already.
    """


class OutcomeUnknownError(TransportError):
    """A commit was sent and its answer never came: it may have happened, or not."""


class LogDamagedError(TransportError):
    """The log holds bytes that are not what was once written there."""


# -- questions about tables -----------------------------------------------------------------------


class QueryError(MillstreamError):
    """A question that cannot be answered."""


class UnknownTableError(QueryError):
    """The app has no such table."""

    def __init__(self, table: str, known: Iterable[str] = ()) -> None:
        self.table = table
        listed = ", ".join(sorted(known))
        has = f"it has {listed}" if listed else "it has none"
        super().__init__(f"There is no table {table!r} in this app: {has}.")


class BadQueryError(QueryError):
    """The question itself is wrong; asking again does not help."""


class UnavailableError(QueryError):
    """Nobody can answer at the moment; ask again."""


class NotHereError(QueryError):
    """The worker that was asked does not own the shard, or does not any more."""


# -- state, and ourselves -------------------------------------------------------------------------


class StateError(MillstreamError):
    """The local state of a shard cannot be opened, read or written."""


class InternalError(MillstreamError):
    """A promise between two parts of Millstream was broken: a bug of ours."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}. This is a bug in Millstream; please report it.")
