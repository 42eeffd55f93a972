"""A table as it was declared: its types, and how shards make their parts of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from millstream.agents import Agent, AgentSource, policy_of
from millstream.app._dead_letters import row_letter, window_letter
from millstream.clock import duration_ms
from millstream.context import current
from millstream.errors import ConfigurationError, TopologyError
from millstream.records import TopicPartition
from millstream.serialization import (
    UpgradingCodec,
    any_partition,
    codec_for,
    is_immutable_type,
    key_codec_for,
    key_layout,
    partitioner,
    strict_codec,
    type_of,
    upgrading,
    value_schema,
)
from millstream.streams import DerivedTable, Table, WindowedTable, store_retention_ms
from millstream.tables import (
    DELETED,
    StampedPart,
    TableInfo,
    TablePart,
    TtlPart,
    TtlTable,
    WindowedPart,
    index_key_of,
    stamp,
    windowed,
)
from millstream.topology import AgentNode, TableNode
from millstream.windows import Session, form_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from millstream.agents import Policy, Topic
    from millstream.app._app import App
    from millstream.clock import Duration
    from millstream.context import IncomingRecord, Scope
    from millstream.serialization import Codec
    from millstream.state.base import TableStore
    from millstream.streams import Operator
    from millstream.tables import DueRow
    from millstream.windows import AnyWindows, Window
    from millstream.worker import Closing, TableSpec

__all__ = ["DeclaredTable"]

K = TypeVar("K")
V = TypeVar("V")


class DeclaredTable(Generic[K, V]):
    """What `App.table` was given."""

    def __init__(
        self,
        app: App,
        name: str,
        *,
        key: Any,
        value: Any,
        default: Any = None,
        topic: Topic[Any, Any] | None = None,
        like: Topic[Any, Any] | None = None,
        partitions: int | None = None,
        ttl_ms: int | None = None,
        versioned_ms: int | None = None,
        codec: str | Codec[Any] = "json",
        on_change: Callable[..., Any] | None = None,
        upgrade: Callable[[Any], Any] | None = None,
        on_error: Any = None,
        partitioner: str | None = None,
        everywhere: bool = False,
        table_class: type[Any] = Table,
        key_codec: Codec[Any] | None = None,
        operator: Operator | None = None,
        make_part: Callable[..., TablePart] | None = None,
        shown: Callable[[Any], Any] | None = None,
        stamped: bool = False,
        checked: bool = True,
        remedy: Callable[[Any], str] | None = None,
        mend: str | None = None,
        help: str = "",
    ) -> None:
        if ttl_ms is not None and ttl_ms < 1:
            raise ConfigurationError(f"table {name!r}: ttl has to be above 0")
        self.app = app
        self.name = name
        self.key_type, self.value_type = key, value
        self.layout = key_layout(key)
        self.codec = (
            topic.value_codec
            if topic is not None
            else codec_for(codec, value)
            if isinstance(codec, str)
            else codec
        )
        self._dumps = self.codec.dumps
        if isinstance(codec, str) and topic is None and codec in ("json", "msgpack"):
            self._dumps = strict_codec(self.codec, value, remedy or _declare_it).dumps
        if upgrade is not None:
            self.codec = upgrading(self.codec, upgrade, f"table {name!r}")
        self._placed_by_sources = key_codec is None and topic is None
        if key_codec is None:
            key_codec = topic.key_codec if topic is not None else key_codec_for(key)
        self.key_codec = key_codec
        self.operator = operator
        """What makes its changes, where a stream does, or where streams use it as a table."""
        self.on_due: Callable[..., Awaitable[Any]] | None = None
        """Called when something in a part is due, other than a final window."""
        self.clocks: tuple[str, ...] = ()
        """Of windows: tables by whose time they expire."""
        self.stamped = stamped
        self.part_maker = make_part
        self._shown = shown
        self._checked = checked
        self._mend = mend
        self.topic = topic
        self.like = like
        self.partitions = partitions
        self.ttl_ms = ttl_ms
        self.versioned_ms = versioned_ms
        """How far back the table remembers its values."""
        self.on_change = on_change
        self.policy = None if on_error is None else policy_of(on_error)
        self.everywhere = everywhere
        self.windows: AnyWindows | None = None
        self.idle_timeout_ms: int | None = None
        self.merge: Any = None
        self.default = default
        self._partitioner = partitioner
        if ttl_ms is not None:
            if topic is not None or table_class is not Table:
                raise TopologyError(
                    f"table {name!r}: ttl goes with plain tables that agents write; it is read from a"
                    f" topic, or a table of sets"
                )
            table_class = TtlTable
        elif topic is not None:
            table_class = DerivedTable
        self.table: Any = table_class(
            name,
            layout=self.layout,
            **({} if default is None else {"default": default}),
            read_only=topic is not None,
            help=help,
            home=self,
        )

    # for the table --------------------------------------------------------------------------------

    def windowed(
        self,
        table: Any,
        windows: AnyWindows,
        *,
        merge: Any = None,
        idle_timeout: Duration | None = None,
        table_class: type[WindowedTable[Any, Any]] = WindowedTable,
    ) -> Any:
        """Make the table a windowed one; see `Table.tumbling` and its like."""
        if self.topic is not None or self.windows is not None:
            raise TopologyError(
                f"table {self.name!r} cannot be windowed: it is read from a topic, or windowed already"
            )
        if self.operator is not None and table_class is WindowedTable:
            raise TopologyError(
                f"table {self.name!r} cannot be windowed: a stream makes it. Window the stream's groups, for"
                f" example .group_by().tumbling('1m').count()"
            )
        if self.ttl_ms is not None:
            raise TopologyError(
                f"table {self.name!r}: a windowed table forgets by its retention; leave ttl out"
            )
        if idle_timeout is not None:
            what = f"table {self.name!r}: idle_timeout"
            self.idle_timeout_ms = duration_ms(idle_timeout, what=what)
            if self.idle_timeout_ms < 1:
                raise ConfigurationError(f"{what} has to be above 0")
        self.windows = windows
        self.merge = merge
        self.table = windowed(
            self.name,
            layout=self.layout,
            windows=windows,
            default=self.default,
            value_type=self.value_type,
            merge=merge,
            help=table.help,
            home=self,
            table_class=table_class,
        )
        return self.table

    def flow(self) -> Any:
        """The table's changes, for streams; see `Streams.flow`."""
        return self.app.streams.flow(self)

    def view(self, name: str, stale: Duration | None) -> Any:
        """The committed table, for everything outside of events."""
        return self.app.view(name, stale=stale)

    # for the topology -----------------------------------------------------------------------------

    @property
    def changelog(self) -> str | None:
        """The topic that holds the table's truth, unless it is read from one."""
        return None if self.topic is not None else f"{self.app.id}-{self.name}-changelog"

    def node(self) -> TableNode:
        """The table as data."""
        return TableNode(
            name=self.name,
            changelog=self.changelog,
            partitions=self.partitions,
            like=None if self.like is None else self.like.names[0],
            source=None if self.topic is None else self.topic.name,
            window=None if self.windows is None else str(self.windows),
            everywhere=self.everywhere,
        )

    @property
    def reader_name(self) -> str:
        """Name of the agent that reads a table from its topic."""
        pipeline = None if self.operator is None else self.operator.pipeline
        return f"table:{self.name}" if pipeline is None else pipeline.name

    def reader_node(self) -> AgentNode | None:
        """That agent as data; None where there is none."""
        if self.topic is None or self.everywhere or self.operator is not None:
            return None
        return AgentNode(
            name=self.reader_name, sources=(self.topic.name,), internal=True, tables=(self.name,)
        )

    def reader(self) -> Agent[Any, Any] | None:
        """The agent that reads the table from its topic; None where there is none."""
        if self.topic is None or self.everywhere or self.operator is not None:
            return None
        name = self.name

        async def read(stream: Any) -> None:
            async for value in stream:
                scope = current.get()
                record, tp = scope.record, scope.tp
                if record is None or tp is None or record.key is None:
                    continue
                key = stream.decode_key(tp.topic, record.key)
                scope.parts[name].set(key, DELETED if value is None else value, scope)

        return Agent(
            read,
            name=self.reader_name,
            sources=[AgentSource((self.topic,))],
            topic=None,
            policy=self.policy,
            internal=True,
        )

    # for shards -----------------------------------------------------------------------------------

    def spec(self, partitions: int, sources: list[Topic[Any, Any]]) -> TableSpec:
        """How shards make their parts of the table.

        Args:
            partitions: the resolved count.
            sources: topics of that count: the partitioner is theirs.
        """
        from millstream.worker import TableSpec

        closes = self.windows is not None and bool(self.table.closing)
        if self.policy is not None and self.topic is None and not closes:
            raise TopologyError(
                f"table {self.name!r}: on_error= is for what comes from a topic and for on_close"
                f" functions; it has neither. What an agent does with it is up to the agent's on_error="
            )
        if self._partitioner is not None:
            place = partitioner(self._partitioner)
        elif self.topic is not None:
            place = self.topic.partitioner
        elif self.like is not None:
            place = self.like.partitioner
        else:
            written = [source for source in sources if not source.internal]
            found = {source.partitioner for source in written or sources}
            place = found.pop() if len(found) == 1 else partitioner("murmur2")
        if place is any_partition:
            place = partitioner("murmur2")
        return TableSpec(
            name=self.name,
            partitions=partitions,
            changelog=self.changelog,
            source=None if self.topic is None else self.topic.name,
            reader=self.reader_name,
            make=self.make_part,
            place=self._placing(sources).dumps,
            partitioner=place,
            on_close=self._closing(),
            state_key=None if self.topic is None else self.state_key,
            index_key=self.index_key(),
            checked=self._checked,
            clocks=self.clocks,
            users=self.app.streams.users(self.name),
            stored_value=self._stamp if self.topic is not None and self.stamped else None,
        )

    @property
    def close_policy(self) -> Policy:
        """What becomes of a window whose ``on_close`` function raises."""
        return self.app.settings.on_error if self.policy is None else self.policy

    def _closing(self) -> Closing | None:
        from millstream.worker import Closing

        policy = self.close_policy
        tp = TopicPartition(policy.topic or f"{self.app.id}-dlq", 0)

        def set_aside_row(scope: Scope, row: DueRow, error: Exception) -> None:
            place = self.key_codec if self.like is None else self.like.key_codec
            scope.append(tp, row_letter(row, place.dumps(row.key), error))

        if self.windows is None or not self.table.closing:
            if self.on_due is None:
                return None
            return Closing(call=self.on_due, policy=policy, set_aside_row=set_aside_row)

        def set_aside(
            scope: Scope, key: Any, window: Window, data: bytes | None, error: Exception
        ) -> None:
            letter = window_letter(self.name, self.place(key), window, data, error)
            scope.append(tp, letter)

        return Closing(
            call=self.table.close,
            show_key=self.layout.format,
            policy=policy,
            set_aside=set_aside,
        )

    def info(self, partitions: int, sources: list[Topic[Any, Any]]) -> TableInfo:
        """The table as those who ask need it; ``sources`` as for `spec`."""
        spec = self.spec(partitions, sources)
        return TableInfo(
            name=self.name,
            layout=self.layout,
            codec=self.codec,
            windows=self.windows,
            partitions=partitions,
            place=spec.place,
            partitioner=spec.partitioner,
            loads=self._loads_shown(),
            ttl_ms=self.ttl_ms,
            stamped=self.stamped and not isinstance(self.windows, Session),
            everywhere=self.everywhere,
            source=None if self.topic is None else self.topic.name,
            help=self.table.help,
        )

    def place(self, key: Any) -> bytes:
        """A key as bytes, in the table's own codec."""
        return self.key_codec.dumps(key)

    def _placing(self, sources: list[Topic[Any, Any]]) -> Codec[Any]:
        """What makes the bytes of a key that decide its shard: the topics' codec, where they have such keys."""
        if not self._placed_by_sources:
            return self.key_codec
        topics = sources if self.like is None else [self.like]
        codecs = {
            topic.key_codec.name: topic.key_codec
            for topic in topics
            if not topic.internal and topic.key_type == self.key_type
        }
        return codecs.popitem()[1] if len(codecs) == 1 else self.key_codec

    def state_key(self, key: bytes) -> bytes:
        """A record's key to the store's."""
        assert self.topic is not None
        return self.layout.encode(self.topic.key_codec.loads(key))

    def index_key(self) -> Any:
        """What derives local index entries from the store's keys, or None."""
        if self.windows is None:
            return None
        return index_key_of(self.windows)

    def _loads_shown(self) -> Callable[[bytes], Any] | None:
        shown, loads = self._shown, self.codec.loads
        if shown is None:
            return loads if isinstance(self.codec, UpgradingCodec) else None
        return lambda data: shown(loads(data))

    def _stamp(self, record: IncomingRecord) -> bytes | None:
        """A record of the table's topic as it is stored: with its event time."""
        if record.value is None:
            return None
        assert self.topic is not None
        moment = None
        if self.topic.timestamp_from is not None:
            moment = self.topic.time_of(self.topic.value_codec.loads(record.value))
        return stamp(record.timestamp if moment is None else moment, record.value)

    def make_part(self, store: TableStore, check: Callable[[Any], None]) -> TablePart:
        """A shard's part of the table."""
        part = self._make_part(store, check)
        part.value_bytes_max = self.app.settings.record_bytes_max
        part.show = self._shown
        part.schema = value_schema(self.codec, self.value_type)
        if self._mend is not None:
            part.mend = self._mend
        if self.changelog is not None:
            part.form = self._form(part)
        return part

    def _form(self, part: TablePart) -> str:
        """How entries are kept; what may change without harm, like a grace, is no part of it."""
        what = part.kept_as
        if self.windows is not None:
            what = f"{'results of a stream in ' if self.stamped else ''}{form_of(self.windows)}"
        elif self.ttl_ms is not None:
            what = "values with a time to live"
        return f"{what}, by keys of type {self.layout.type_name}"

    def _make_part(self, store: TableStore, check: Callable[[Any], None]) -> TablePart:
        mutable = not is_immutable_type(self.value_type)
        if self.ttl_ms is not None:
            return TtlPart(
                self.name,
                ttl_ms=self.ttl_ms,
                store=store,
                encode_key=self.layout.encode,
                decode_key=self.layout.decode,
                dumps=self._dumps,
                loads=self.codec.loads,
                mutable=True,
                check=check,
                type_name=self.codec.type_name,
            )
        if self.windows is None:
            make = self.part_maker or (StampedPart if self.stamped else TablePart)
            return make(
                self.name,
                store=store,
                encode_key=self.layout.encode,
                decode_key=self.layout.decode,
                dumps=self._dumps,
                loads=self.codec.loads,
                mutable=mutable,
                check=check,
                type_name=self.codec.type_name,
            )
        made: WindowedPart = self.table.make_part(
            store,
            check,
            dumps=self._dumps,
            loads=self.codec.loads,
            mutable=mutable,
            clock=self.app.clock,
            stamped=self.stamped,
            type_name=self.codec.type_name,
        )
        if self.operator is not None and self.app.settings.compat == "kafka-streams":
            made.store_retention_ms = store_retention_ms(self.windows)
        made.idle_ms = self.idle_timeout_ms
        made.reads_bring_time = self.operator is None
        return made


def _declare_it(value: Any) -> str:
    """What to do about a value that is not of its table's type."""
    return f"give the table the type of its values, app.table(..., value={type_of(value)})"
