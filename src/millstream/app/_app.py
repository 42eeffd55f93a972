"""The app: decorators fill a topology, and running it is another matter."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from millstream.agents import Agent, DeclaredStream, Topic, field_getter, policy_of
from millstream.app._declaration import DeclaredTable
from millstream.app._sender import AppSender
from millstream.app._settings import Settings, read_settings
from millstream.app._timers import Crontab, Timer
from millstream.clock import Duration, SystemClock, duration_ms
from millstream.errors import (
    ConfigurationError,
    PartitionCountError,
    ProgramError,
    SettingError,
    TopologyError,
)
from millstream.serialization import codec_for, key_codec_for, partitioner
from millstream.tables import SetTable
from millstream.topology import AgentNode, TimerNode, TopicNode, Topology

if TYPE_CHECKING:
    import click
    from typing_extensions import TypeForm, Unpack

    from millstream.agents import Stream
    from millstream.app._options import (
        AgentDecorator,
        AgentOptions,
        OwnTopicDecorator,
        SetTableOptions,
        TableOptions,
        TopicOptions,
    )
    from millstream.app._runtime import Runtime
    from millstream.clock import Clock
    from millstream.serialization import Codec
    from millstream.tables import Table

__all__ = ["App"]

F = TypeVar("F", bound=Callable[..., Any])
K = TypeVar("K")
V = TypeVar("V")
R = TypeVar("R")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")

_NAME = "letters, digits, dot, underscore and hyphen, at most 200"


def _check_name(name: str, what: str) -> str:
    import re

    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", name) or name in (".", ".."):
        raise ConfigurationError(f"{what} {name!r}: a name has {_NAME}")
    return name


class App:
    """A stream-processing program: topics, agents, tables, timers and pages under one id.

    The id names the consumer group, and begins the names of changelogs and other internal topics. Settings
    are documented in `millstream.app.Settings`; each can come from the environment as well.

    Raises:
        SettingError: a setting that is unknown or has a wrong value.
    """

    def __init__(
        self,
        id: str,
        *,
        lifespan: Callable[[App], contextlib.AbstractAsyncContextManager[Any]] | None = None,
        autodiscover: Sequence[str] = (),
        clock: Clock | None = None,
        **settings: Any,
    ) -> None:
        self.id = _check_name(id, "app")
        self.settings: Settings = read_settings(id, settings)
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.lifespan = lifespan
        self._sender = AppSender(self)
        self.topics: dict[str, Topic[Any, Any]] = {}
        self.tables: dict[str, DeclaredTable[Any, Any]] = {}
        self.agents: dict[str, Agent[Any, Any]] = {}
        self.timers: list[Timer] = []
        self.tasks: list[Callable[..., Awaitable[Any]]] = []
        self.commands: list[click.Command] = []
        self.pages: dict[str, Callable[..., Any]] = {}
        self.mounts: dict[str, Any] = {}
        self.assigned_hooks: list[Callable[..., Any]] = []
        self.revoked_hooks: list[Callable[..., Any]] = []
        self.runtime: Runtime | None = None
        """What runs it, inside `running`."""
        self._autodiscover = tuple(autodiscover)
        self._discovered = False

    def __repr__(self) -> str:
        return f"<App {self.id!r}>"

    # topics ---------------------------------------------------------------------------------------

    @overload
    def topic(
        self, name: str, *, value: TypeForm[V], **options: Unpack[TopicOptions]
    ) -> Topic[V]: ...
    @overload
    def topic(
        self, name: str, *, key: TypeForm[K], value: TypeForm[V], **options: Unpack[TopicOptions]
    ) -> Topic[V, K]: ...
    @overload
    def topic(
        self, name: str, *, key: TypeForm[K], **options: Unpack[TopicOptions]
    ) -> Topic[Any, K]: ...
    @overload
    def topic(self, name: str, **options: Unpack[TopicOptions]) -> Topic[Any]: ...
    def topic(
        self,
        name: str,
        *,
        key: Any = str,
        value: Any = Any,
        key_from: str | Callable[[Any], Any] | None = None,
        codec: str = "json",
        key_codec: str | Codec[Any] | None = None,
        partitions: int | None = None,
        retention: Duration | None = None,
        compacted: bool = False,
        timestamp: str | Callable[[Any], Any] | None = None,
        on_error: Any = None,
        partitioner: str = "murmur2",
        internal: bool = False,
    ) -> Topic[Any, Any]:
        """Describe a topic. Nothing is created before the app runs.

        Args:
            key: type of the keys: str, bytes, or what JSON can say.
            value: type of the values; dataclasses, Structs, TypedDicts, attrs and pydantic classes, builtins.
            key_from: a field of the value, or a function of it, that gives the key where none is given.
            codec: json, msgpack, raw, str, or one of Kafka's number formats.
            partitions: how many, where the topic has to be created; checked where it exists.
            retention: how long records are kept; for ever where left out.
            compacted: keep the last record of each key.
            timestamp: a field of the value, or a function of it, that gives the event time.
            on_error: the policy for this topic's records where the agent has none.
            partitioner: murmur2, as the Java client, or crc32, as librdkafka by default.

        Raises:
            TopologyError: the topic is declared already, and otherwise.
        """
        _check_name(name, "topic")
        _check_partitions(partitions, f"topic {name!r}")
        if name in self.topics:
            raise TopologyError(
                f"topic {name!r} is declared twice: keep the first object and use it everywhere"
            )
        topic: Topic[Any, Any] = Topic(
            name,
            value_codec=codec_for(codec, value),
            key_codec=key_codec_for(key, key_codec)
            if isinstance(key_codec, str | None)
            else key_codec,
            sender=self._sender,
            partitioner=_partitioner(partitioner),
            key_from=key_from,
            timestamp=timestamp,
            partitions=partitions,
            retention=retention,
            compacted=compacted,
            internal=internal,
            policy=None if on_error is None else policy_of(on_error),
            key_type=key,
            value_type=value,
        )
        self.topics[name] = topic
        return topic

    def stream(self, *topics: Topic[V, Any]) -> DeclaredStream[V]:
        """The records of some topics, to be filtered, mapped, regrouped, and read by an agent."""
        for topic in topics:
            self._check_own(topic, "stream")
        return DeclaredStream(tuple(topics), self)

    def regroup(
        self, stream: DeclaredStream[Any], key: str | Callable[[Any], Any], name: str | None
    ) -> Topic[Any, Any]:
        """Make the topic and the agent behind ``group_by``; see `DeclaredStream.group_by`."""
        sources = "-".join(topic.name.removeprefix(f"{self.id}-") for topic in stream.topics)
        if name is None:
            if not isinstance(key, str):
                raise TopologyError(
                    f"group_by over {sources} has a function: give it a name, for example"
                    f" group_by(..., name={sources + '-regrouped'!r}). The topic behind it is named"
                    f" after it, and has to keep its name"
                )
            name = f"{sources}-by-{key}"
        full = f"{self.id}-{name}-repartition"
        if full in self.topics:
            raise TopologyError(
                f"two streams over {sources} are grouped under the name {name!r}: give one of them"
                f" another, for example group_by(..., name={name + '-2'!r})"
            )
        first = stream.topics[0]
        getter = field_getter(key)
        topic = self.topic(
            full,
            key=Any,
            value=Any if any(step.kind == "map" for step in stream.steps) else first.value_type,
            key_from=None,
            codec=first.value_codec.name,
            key_codec=_AnyKeyCodec(),
            retention="7d",
            internal=True,
        )
        self._forwarder(name, stream, topic, getter)
        return topic

    def forward(self, stream: DeclaredStream[Any], topic: Topic[Any, Any]) -> None:
        """Make the agent behind ``through``; see `DeclaredStream.through`."""
        self._forwarder(f"to-{topic.name}", stream, topic, None)

    def _forwarder(
        self,
        name: str,
        stream: DeclaredStream[Any],
        topic: Topic[Any, Any],
        key_of: Callable[[Any], Any] | None,
    ) -> None:
        from millstream.context import current

        async def forward(events: Any) -> None:
            async for value in events:
                scope = current.get()
                if key_of is None:
                    key = topic.key_of(value)
                    if key is None and scope.record is not None and scope.tp is not None:
                        key = events.decode_key(scope.tp.topic, scope.record.key)
                else:
                    key = key_of(value)
                    if key is None:
                        continue
                record = scope.record
                topic.put(
                    scope,
                    value,
                    key=key,
                    timestamp=scope.timestamp,
                    headers=record.headers if record is not None and record.headers else None,
                )

        forward.__doc__ = f"Brings records to {topic.name}."
        self._add_agent(
            Agent(
                forward,
                name=name,
                sources=[stream],
                topic=None,
                internal=True,
                sinks=[topic],
            )
        )

    # agents ---------------------------------------------------------------------------------------

    @overload
    def agent(self, function: Callable[[Stream[V, Any]], AsyncIterator[R]], /) -> Agent[V, R]: ...
    @overload
    def agent(self, function: Callable[[Stream[V, Any]], Awaitable[None]], /) -> Agent[V, None]: ...
    @overload
    def agent(self, **options: Unpack[AgentOptions]) -> OwnTopicDecorator: ...
    @overload
    def agent(
        self, source1: Topic[A, Any] | DeclaredStream[A], /, **options: Unpack[AgentOptions]
    ) -> AgentDecorator[A]: ...
    @overload
    def agent(
        self,
        source1: Topic[A, Any] | DeclaredStream[A],
        source2: Topic[B, Any] | DeclaredStream[B],
        /,
        **options: Unpack[AgentOptions],
    ) -> AgentDecorator[A | B]: ...
    @overload
    def agent(
        self,
        source1: Topic[A, Any] | DeclaredStream[A],
        source2: Topic[B, Any] | DeclaredStream[B],
        source3: Topic[C, Any] | DeclaredStream[C],
        /,
        **options: Unpack[AgentOptions],
    ) -> AgentDecorator[A | B | C]: ...
    @overload
    def agent(
        self,
        source1: Topic[A, Any] | DeclaredStream[A],
        source2: Topic[B, Any] | DeclaredStream[B],
        source3: Topic[C, Any] | DeclaredStream[C],
        source4: Topic[D, Any] | DeclaredStream[D],
        /,
        **options: Unpack[AgentOptions],
    ) -> AgentDecorator[A | B | C | D]: ...
    @overload
    def agent(
        self,
        source1: Topic[A, Any] | DeclaredStream[A],
        source2: Topic[B, Any] | DeclaredStream[B],
        source3: Topic[C, Any] | DeclaredStream[C],
        source4: Topic[D, Any] | DeclaredStream[D],
        source5: Topic[E, Any] | DeclaredStream[E],
        /,
        **options: Unpack[AgentOptions],
    ) -> AgentDecorator[A | B | C | D | E]: ...
    @overload
    def agent(
        self, *sources: Topic[Any, Any] | DeclaredStream[Any], **options: Unpack[AgentOptions]
    ) -> AgentDecorator[Any]: ...
    def agent(
        self,
        *sources: Any,
        name: str | None = None,
        concurrency: int = 1,
        ordered_by: str | Callable[[Any], Any] | None = None,
        sink: Sequence[Any] | Any = (),
        on_error: Any = None,
    ) -> Any:
        """Declare an agent: an async function over a stream, or an async generator.

        Args:
            sources: topics, or streams from `stream`; a topic of the agent's own where left out.
            name: the function's name where left out; stored positions go by it.
            concurrency: how many events of a shard are in progress at once, never two with one key.
            ordered_by: a field or a function of the value that stands for the key in that.
            sink: where what the generator yields goes: topics, agents, functions, also async ones.
            on_error: stop, skip, dlq, Dlq(topic) or Retry(...).
        """
        if len(sources) == 1 and inspect.isfunction(sources[0]):
            return self.agent()(sources[0])

        def declare(function: Callable[..., Any]) -> Agent[Any, Any]:
            agent_name = _check_name(name or function.__name__, "agent")
            streams = [self._as_stream(source, agent_name) for source in sources]
            topic: Topic[Any, Any] | None = None
            if not streams:
                topic = self.topic(
                    f"{self.id}-{agent_name}", value=_stream_type(function), internal=True
                )
                streams = [DeclaredStream((topic,), self)]
            elif len(streams) == 1 and len(streams[0].topics) == 1 and not streams[0].steps:
                topic = streams[0].topics[0]
            sinks = list(sink) if isinstance(sink, (list, tuple)) else [sink]
            agent: Agent[Any, Any] = Agent(
                function,
                name=agent_name,
                sources=streams,
                topic=topic,
                result_codec=codec_for("json", _result_type(function)),
                sinks=sinks,
                concurrency=concurrency,
                ordered_by=None if ordered_by is None else field_getter(ordered_by),
                policy=None if on_error is None else policy_of(on_error),
                asker=self._sender,
            )
            return self._add_agent(agent)

        return declare

    def _add_agent(self, agent: Agent[Any, Any]) -> Agent[Any, Any]:
        if agent.name in self.agents:
            raise TopologyError(
                f"two agents are named {agent.name!r}: give one of them name=, as positions are"
                f" stored by it"
            )
        self.agents[agent.name] = agent
        return agent

    def _check_own(self, topic: Any, user: str) -> None:
        if not isinstance(topic, Topic):
            raise TopologyError(f"{user}: {topic!r} is not a topic")
        if self.topics.get(topic.name) is not topic:
            raise TopologyError(
                f"{user}: {topic.name!r} is a topic of another app; describe it with"
                f" app.topic({topic.name!r}, ...) here as well"
            )

    def _as_stream(self, source: Any, agent: str) -> DeclaredStream[Any]:
        if isinstance(source, DeclaredStream):
            return source
        if isinstance(source, Topic):
            self._check_own(source, f"agent {agent!r}")
            return DeclaredStream((source,), self)
        raise TopologyError(
            f"agent {agent!r}: {source!r} is neither a topic nor a stream of this app"
        )

    # tables ---------------------------------------------------------------------------------------

    @overload
    def table(
        self,
        name: str,
        *,
        key: TypeForm[K],
        value: TypeForm[V],
        default: V | Callable[[], V] | None = ...,
        **options: Unpack[TableOptions],
    ) -> Table[K, V]: ...
    @overload
    def table(
        self,
        name: str,
        *,
        value: TypeForm[V],
        default: V | Callable[[], V] | None = ...,
        **options: Unpack[TableOptions],
    ) -> Table[str, V]: ...
    @overload
    def table(
        self,
        name: str,
        *,
        topic: Topic[V, K],
        default: V | Callable[[], V] | None = ...,
        **options: Unpack[TableOptions],
    ) -> Table[K, V]: ...
    @overload
    def table(
        self, name: str, *, key: TypeForm[K], default: Any = ..., **options: Unpack[TableOptions]
    ) -> Table[K, Any]: ...
    @overload
    def table(
        self, name: str, *, default: Any = ..., **options: Unpack[TableOptions]
    ) -> Table[str, Any]: ...
    def table(
        self,
        name: str,
        *,
        key: Any = None,
        value: Any = None,
        default: Any = None,
        topic: Topic[Any, Any] | None = None,
        like: Topic[Any, Any] | None = None,
        partitions: int | None = None,
        ttl: Duration | None = None,
        codec: str = "json",
        on_change: Callable[..., Any] | None = None,
        upgrade: Callable[[Any], Any] | None = None,
        on_error: Any = None,
        partitioner: str | None = None,
        help: str = "",
    ) -> Any:
        """Declare a table: a partitioned, changelogged map; windowed by its methods.

        Args:
            key: type of the keys: str, int, float, bool, bytes, UUID, datetime, or tuples of them.
            value: type of the values.
            default: a value, or a function without arguments, for keys that are missing.
            topic: read the table from this topic, instead of writing it.
            like: a topic whose partitions the table has.
            ttl: forget entries that were not written for so long, by stream time.
            on_change: called with key and value, or None for a deleted key, of each entry that an epoch has
                changed, once it is committed; the key is (key, window) where the table is windowed. What it
                raises is logged.
            upgrade: turns stored values of an older form (as plain JSON types) into new ones.
            on_error: the policy where an ``on_close`` function raises, or a record of ``topic`` cannot be read.

        Raises:
            ConfigurationError: a type that cannot be a key, or a contradiction.
        """
        if topic is not None:
            key = topic.key_type if key is None else key
            value = topic.value_type if value is None else value
        return self._add_table(
            DeclaredTable(
                self,
                name,
                key=str if key is None else key,
                value=Any if value is None else value,
                default=default,
                topic=topic,
                like=like,
                partitions=partitions,
                ttl_ms=None if ttl is None else duration_ms(ttl, what=f"table {name!r}: ttl"),
                codec=codec,
                on_change=on_change,
                upgrade=upgrade,
                on_error=on_error,
                partitioner=partitioner,
                help=help,
            )
        )

    @overload
    def global_table(
        self,
        name: str,
        *,
        topic: Topic[V, K],
        default: V | Callable[[], V] | None = ...,
        help: str = ...,
    ) -> Table[K, V]: ...
    @overload
    def global_table(
        self,
        name: str,
        *,
        key: TypeForm[K],
        value: TypeForm[V],
        default: V | Callable[[], V] | None = ...,
        help: str = ...,
    ) -> Table[K, V]: ...
    @overload
    def global_table(
        self,
        name: str,
        *,
        value: TypeForm[V],
        default: V | Callable[[], V] | None = ...,
        help: str = ...,
    ) -> Table[str, V]: ...
    @overload
    def global_table(
        self, name: str, *, default: Any = ..., help: str = ...
    ) -> Table[str, Any]: ...
    def global_table(
        self,
        name: str,
        *,
        topic: Topic[Any, Any] | None = None,
        key: Any = None,
        value: Any = None,
        default: Any = None,
        help: str = "",
    ) -> Any:
        """Declare a table that every worker holds whole, read from a topic before the first event."""
        if topic is None:
            topic = self.topic(
                f"{self.id}-{name}-global",
                key=str if key is None else key,
                value=Any if value is None else value,
                compacted=True,
                internal=True,
            )
        return self._add_table(
            DeclaredTable(
                self,
                name,
                key=topic.key_type if key is None else key,
                value=topic.value_type if value is None else value,
                default=default,
                topic=topic,
                everywhere=True,
                help=help,
            )
        )

    @overload
    def set_table(
        self, name: str, *, key: TypeForm[K], value: TypeForm[V], **options: Unpack[SetTableOptions]
    ) -> SetTable[K, V]: ...
    @overload
    def set_table(
        self, name: str, *, value: TypeForm[V], **options: Unpack[SetTableOptions]
    ) -> SetTable[str, V]: ...
    @overload
    def set_table(
        self, name: str, *, key: TypeForm[K], **options: Unpack[SetTableOptions]
    ) -> SetTable[K, str]: ...
    @overload
    def set_table(self, name: str, **options: Unpack[SetTableOptions]) -> SetTable[str, str]: ...
    def set_table(
        self,
        name: str,
        *,
        key: Any = str,
        value: Any = str,
        partitions: int | None = None,
        like: Topic[Any, Any] | None = None,
        help: str = "",
    ) -> Any:
        """Declare a table of sets of ``value``."""
        return self._add_table(
            DeclaredTable(
                self,
                name,
                key=key,
                value=set[value],
                default=set,
                like=like,
                partitions=partitions,
                table_class=SetTable,
                help=help,
            )
        )

    def _add_table(self, declared: DeclaredTable[Any, Any]) -> Any:
        _check_name(declared.name, "table")
        _check_partitions(declared.partitions, f"table {declared.name!r}")
        if declared.name in self.tables:
            raise TopologyError(
                f"table {declared.name!r} is declared twice: keep the first object and use it everywhere"
            )
        for topic in (declared.topic, declared.like):
            if topic is not None:
                self._check_own(topic, f"table {declared.name!r}")
        self.tables[declared.name] = declared
        return declared.table

    # timers, tasks, commands, pages ---------------------------------------------------------------

    def timer(
        self,
        interval: Duration,
        *,
        scope: Literal["worker", "shard", "leader"] = "worker",
        time: Literal["wall", "event"] = "wall",
        on_error: Any = None,
        name: str | None = None,
    ) -> Callable[[F], F]:
        """Run the function every ``interval``: on each worker, for each shard, or on one worker.

        A timer of scope ``shard`` is an event of its shard, and may use tables and send; its sends join the
        epoch. Elsewhere a table raises, and sends may repeat after a crash. ``time="event"`` goes by the
        shard's stream time, aligned to the epoch. A function with a parameter is given the moment for which
        it runs, an aware datetime.

        Args:
            on_error: what follows when it raises: stop, skip, dlq, Dlq(topic) or Retry(...).
            name: the function's name where left out; what is stored goes by it.
        """
        interval_ms = duration_ms(interval, what="timer")
        if interval_ms < 1:
            raise ConfigurationError(f"timer: {interval!r} is not above 0")
        if scope not in ("worker", "shard", "leader"):
            raise ConfigurationError(f"timer: scope {scope!r} is none of worker, shard, leader")
        if time == "event" and scope != "shard":
            raise ConfigurationError(
                "timer: event time is each shard's own; add scope='shard', or use time='wall'"
            )

        def declare(function: F) -> F:
            self._add_timer(
                Timer(
                    name=name or function.__name__,
                    function=function,
                    interval_ms=interval_ms,
                    scope=scope,
                    time=time,
                    policy=None if on_error is None else policy_of(on_error),
                )
            )
            return function

        return declare

    def crontab(
        self,
        expression: str,
        *,
        timezone: str = "UTC",
        scope: Literal["worker", "shard", "leader"] = "leader",
        missed: Literal["once", "late", "skip"] | None = None,
        on_error: Any = None,
        name: str | None = None,
    ) -> Callable[[F], F]:
        """Run the function at the moments that a cron expression names; by default on one worker.

        A function with a parameter is given the moment for which it runs, a datetime in ``timezone``.

        Args:
            scope: as for `timer`.
            missed: what becomes of moments at which no worker was there: ``once`` (the default) runs it for
                the last of them as soon as one is, ``late`` for each of them in order, a thousand at most,
                ``skip`` for none. With scope ``worker`` they are always skipped.
            on_error: what follows when it raises: stop, skip, dlq, Dlq(topic) or Retry(...).
            name: the function's name where left out; the last run is stored by it.

        Raises:
            ConfigurationError: no cron expression, no such time zone, or a contradiction.
        """
        crontab = Crontab(expression, timezone)
        if scope not in ("worker", "shard", "leader"):
            raise ConfigurationError(f"crontab: scope {scope!r} is none of worker, shard, leader")
        if missed not in ("once", "late", "skip", None):
            raise ConfigurationError(f"crontab: missed={missed!r} is none of once, late, skip")
        if scope == "worker" and missed in ("once", "late"):
            raise ConfigurationError(
                f"crontab: missed={missed!r} does not go with scope='worker': nobody knows what a worker"
                f" that comes back has missed; use scope='leader' or scope='shard'"
            )

        def declare(function: F) -> F:
            self._add_timer(
                Timer(
                    name=name or function.__name__,
                    function=function,
                    crontab=crontab,
                    scope=scope,
                    missed=missed or ("skip" if scope == "worker" else "once"),
                    policy=None if on_error is None else policy_of(on_error),
                )
            )
            return function

        return declare

    def _add_timer(self, timer: Timer) -> None:
        if any(timer.name == other.name for other in self.timers):
            raise TopologyError(
                f"two timers are named {timer.name!r}: give one of them name=, as when they ran is"
                f" stored by it"
            )
        self.timers.append(timer)

    def task(self, function: F) -> F:
        """Run the async function on each worker, once its first shards are ready."""
        if not inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"task {function.__name__!r} is not an async function")
        self.tasks.append(function)
        return function

    def command(self, *args: Any, **kwargs: Any) -> Callable[[F], F]:
        """Add a command to the app's command line; takes what ``click.command`` takes."""
        import click

        def declare(function: F) -> F:
            self.commands.append(click.command(*args, **kwargs)(function))
            return function

        return declare

    def page(self, path: str) -> Callable[[F], F]:
        """Serve the function, a Starlette endpoint, at ``path``."""

        def declare(function: F) -> F:
            if not path.startswith("/"):
                raise ConfigurationError(f"page {path!r}: a path begins with a slash")
            if path in self.pages:
                raise ConfigurationError(f"page {path!r} is declared twice")
            self.pages[path] = function
            return function

        return declare

    def mount(self, path: str, other: Any) -> None:
        """Serve another ASGI application below ``path``."""
        self.mounts[path] = other

    def on_shards(
        self,
        assigned: Callable[..., Any] | None = None,
        revoked: Callable[..., Any] | None = None,
    ) -> Callable[[F], F]:
        """Call functions with lists of (count, number) when shards come and go.

        As a decorator, ``@app.on_shards()`` is told of those that come.
        """
        if assigned is not None:
            self.assigned_hooks.append(assigned)
        if revoked is not None:
            self.revoked_hooks.append(revoked)

        def declare(function: F) -> F:
            self.assigned_hooks.append(function)
            return function

        return declare

    # as a whole -----------------------------------------------------------------------------------

    def discover(self) -> None:
        """Import the modules of ``autodiscover``, packages with everything in them; once."""
        if self._discovered:
            return
        self._discovered = True
        for name in self._autodiscover:
            module = importlib.import_module(name)
            for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
                importlib.import_module(found.name)

    @property
    def topology(self) -> Topology:
        """What the app consists of, as data: print it, draw it, compare it."""
        self.discover()
        return Topology(
            app=self.id,
            topics={
                topic.name: TopicNode(
                    name=topic.name,
                    partitions=topic.partitions,
                    internal=topic.internal,
                    retention_ms=topic.retention_ms,
                    compacted=topic.compacted,
                )
                for topic in self.topics.values()
            },
            tables={table.name: table.node() for table in self.tables.values()},
            agents={
                agent.name: AgentNode(
                    name=agent.name,
                    sources=tuple(
                        dict.fromkeys(t.name for stream in agent.sources for t in stream.topics)
                    ),
                    sinks=tuple(_sink_name(sink) for sink in agent.sinks),
                    concurrency=agent.concurrency,
                    internal=agent.internal,
                )
                for agent in self.agents.values()
            }
            | {
                node.name: node
                for table in self.tables.values()
                if (node := table.reader_node()) is not None
            },
            timers={
                timer.name: TimerNode(name=timer.name, schedule=timer.schedule, scope=timer.scope)
                for timer in self.timers
            },
        )

    @overload
    def running(
        self, owner: object, /, *, worker: bool = ..., web: bool = ...
    ) -> contextlib.AbstractAsyncContextManager[None]: ...
    @overload
    def running(
        self, *, worker: bool = ..., web: bool = ...
    ) -> contextlib.AbstractAsyncContextManager[App]: ...
    def running(self, *owner: object, worker: bool = True, web: bool = False) -> Any:
        """Run the app inside the block; also ``FastAPI(lifespan=app.running)``.

        Args:
            worker: whether to process; without it the app only sends, asks and queries.
            web: whether to serve HTTP on the configured port.

        Raises:
            MillstreamError: as the worker's life ends with it.
        """
        return self._running(None if owner else self, worker, web)

    @contextlib.asynccontextmanager
    async def _running(self, result: App | None, worker: bool, web: bool) -> AsyncIterator[Any]:
        from millstream.app._runtime import Runtime

        if self.runtime is not None:
            raise ProgramError(f"app {self.id!r} is running already in this process")
        async with Runtime(self, worker=worker, web=web).running():
            yield result  # not the app in a lifespan, where it would become the server's state

    def view(self, table: str, *, stale: Duration | None = None) -> Any:
        """A table as everything outside of events reads it, by name; see `Table.view`."""
        if self.runtime is None:
            raise ProgramError(
                f"table {table!r}: app {self.id!r} is not running here; read inside"
                f" `async with app.running(worker=False):`, or with millstream.client.Client(url)"
            )
        return self.runtime.questions().view(table, stale)

    @property
    def asgi(self) -> Any:
        """The web part, to be mounted into another ASGI application below any prefix."""
        from millstream.app._web import LazyWeb

        return LazyWeb(self)

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """Run the command line with this app."""
        from millstream.app._entry import run_command_line

        run_command_line(self, arguments)


def _check_partitions(count: int | None, what: str) -> None:
    if count is not None and count < 1:
        raise PartitionCountError(f"{what}: partitions={count}, and there has to be at least 1")


class _AnyKeyCodec:
    """Keys of a regrouped stream: str as UTF-8, bytes as they are, others as JSON text."""

    name = "key"
    type_name = "key"

    def __init__(self) -> None:
        self._json = key_codec_for(Any, "json")

    def dumps(self, key: Any) -> bytes:
        if type(key) is str:
            return key.encode()
        if type(key) is bytes:
            return key
        return self._json.dumps(key)

    def loads(self, data: bytes) -> Any:
        return data.decode("utf-8", "surrogateescape")


def _partitioner(name: str) -> Callable[[bytes, int], int]:
    try:
        return partitioner(name)
    except ConfigurationError as exc:
        raise SettingError("partitioner", str(exc)) from exc


def _sink_name(sink: Any) -> str:
    if isinstance(sink, Topic):
        return sink.name
    if isinstance(sink, Agent):
        return sink.topic.name if sink.topic is not None else sink.name
    return getattr(sink, "__name__", repr(sink))


def _stream_type(function: Callable[..., Any]) -> Any:
    """The V of ``stream: Stream[V]``, or Any."""
    from typing import get_args, get_type_hints

    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):
        return Any
    hints.pop("return", None)
    for hint in hints.values():
        arguments = get_args(hint)
        if arguments:
            return arguments[0]
    return Any


def _result_type(function: Callable[..., Any]) -> Any:
    """The R of ``-> AsyncIterator[R]``, or Any."""
    from typing import get_args, get_type_hints

    try:
        result = get_type_hints(function).get("return")
    except (NameError, TypeError):
        return Any
    arguments = get_args(result)
    return arguments[0] if arguments else Any
