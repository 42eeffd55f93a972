"""The app: decorators fill a topology, and running it is another matter."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from millstream.app._agents import Agents
from millstream.app._pages import Pages
from millstream.app._schedule import Schedule
from millstream.app._sender import AppSender
from millstream.app._settings import Settings, read_settings
from millstream.app._streams import Streams
from millstream.app._tables import Tables
from millstream.app._topics import Topics, check_name
from millstream.clock import Duration, SystemClock
from millstream.errors import ProgramError, TopologyError
from millstream.streams import DeclaredStream
from millstream.topology import Topology

if TYPE_CHECKING:
    import click
    from typing_extensions import TypeForm, Unpack

    from millstream.agents import Agent, Stream, Topic
    from millstream.app._options import (
        AgentDecorator,
        AgentOptions,
        OwnTopicDecorator,
        SetTableOptions,
        Source,
        TableOptions,
        TopicOptions,
    )
    from millstream.app._runtime import Runtime
    from millstream.clock import Clock
    from millstream.serialization import Codec
    from millstream.streams import Table, VersionedTable
    from millstream.tables import SetTable

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
L = TypeVar("L")
M = TypeVar("M")
N = TypeVar("N")
P = TypeVar("P")


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
        self.id = check_name(id, "app")
        self.settings: Settings = read_settings(id, settings)
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.lifespan = lifespan
        sender = AppSender(self)
        self.topics = Topics(sender)
        self.tables = Tables(self)
        self.streams = Streams(self)
        self.agents = Agents(id, self.topics, sender, self.streams)
        self._schedule = Schedule()
        self.timers, self.tasks = self._schedule.timers, self._schedule.tasks
        self.pages = Pages()
        self.commands: list[click.Command] = []
        self.mounts: dict[str, Any] = {}
        self.assigned_hooks: list[Callable[..., Any]] = []
        self.revoked_hooks: list[Callable[..., Any]] = []
        self.state_hooks: list[Callable[..., Any]] = []
        self.runtime: Runtime | None = None
        """What runs it, inside `running`."""
        self.ended: str | None = None
        """How it ended when it ran last; None where it never did."""
        self._autodiscover = tuple(autodiscover)
        self._discovered = False

    def __repr__(self) -> str:
        return f"<App {self.id!r}>"

    # topics ---------------------------------------------------------------------------------------

    @overload
    def topic(
        self, *names: str, value: TypeForm[V], **options: Unpack[TopicOptions]
    ) -> Topic[V]: ...
    @overload
    def topic(
        self, *names: str, key: TypeForm[K], value: TypeForm[V], **options: Unpack[TopicOptions]
    ) -> Topic[V, K]: ...
    @overload
    def topic(
        self, *names: str, key: TypeForm[K], **options: Unpack[TopicOptions]
    ) -> Topic[Any, K]: ...
    @overload
    def topic(self, *names: str, **options: Unpack[TopicOptions]) -> Topic[Any]: ...
    def topic(
        self,
        *names: str,
        pattern: str | None = None,
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
        max_wait: Duration = 0,
        idle_timeout: Duration | None = None,
        partitioner: str = "murmur2",
        internal: bool = False,
    ) -> Topic[Any, Any]:
        """Describe a topic, or several that are read as one. Nothing is created before the app runs.

        Several have one type and one number of partitions. To send to one of them there is ``topic.named(name)``.

        Args:
            names: the topic, or the topics.
            pattern: in place of names, a regular expression: every topic whose whole name matches is read,
                from its beginning, also those that are made later. Topics that Millstream makes for the
                app do not match. A later one with another number of partitions is not read, and logged.
            key: type of the keys: str, bytes, or what JSON can say.
            value: type of the values; dataclasses, Structs, TypedDicts, attrs and pydantic classes, builtins.
            key_from: a field of the value, or a function of it, that gives the key where none is given.
            codec: json, msgpack, raw, str, or one of Kafka's number formats.
            partitions: how many, where the topic has to be created; checked where it exists.
            retention: how long records are kept; for ever where left out.
            compacted: keep the last record of each key.
            timestamp: a field of the value, or a function of it, that gives the event time.
            on_error: the policy for this topic's records where the agent has none.
            max_wait: how long an agent that reads other topics as well waits for this one's next record
                when it has come to the end of it, before it takes a later record of the others.
            idle_timeout: after so long without records, event time moves on by the time that has passed,
                and again after as long; so the last windows close. Off where left out: what comes out
                then depends on when records arrive, and not only on what they are.
            partitioner: how its writers choose the partition of a key: murmur2, as the Java client; crc32, as
                librdkafka by default; any, where it is not by the key. Records elsewhere are an error in an
                app that has tables.

        Raises:
            TopologyError: the topic is declared already, and otherwise.
        """
        return self.topics.declare(
            *names,
            pattern=pattern,
            key=key,
            value=value,
            key_from=key_from,
            codec=codec,
            key_codec=key_codec,
            partitions=partitions,
            retention=retention,
            compacted=compacted,
            timestamp=timestamp,
            on_error=on_error,
            max_wait=max_wait,
            idle_timeout=idle_timeout,
            partitioner=partitioner,
            internal=internal,
        )

    @overload
    def stream(
        self,
        source1: Topic[A, K],
        /,
        *,
        concurrency: int = 1,
    ) -> DeclaredStream[A, K]: ...
    @overload
    def stream(
        self,
        source1: Topic[A, K],
        source2: Topic[B, L],
        /,
        *,
        concurrency: int = 1,
    ) -> DeclaredStream[A | B, K | L]: ...
    @overload
    def stream(
        self,
        source1: Topic[A, K],
        source2: Topic[B, L],
        source3: Topic[C, M],
        /,
        *,
        concurrency: int = 1,
    ) -> DeclaredStream[A | B | C, K | L | M]: ...
    @overload
    def stream(
        self,
        source1: Topic[A, K],
        source2: Topic[B, L],
        source3: Topic[C, M],
        source4: Topic[D, N],
        /,
        *,
        concurrency: int = 1,
    ) -> DeclaredStream[A | B | C | D, K | L | M | N]: ...
    @overload
    def stream(
        self,
        source1: Topic[A, K],
        source2: Topic[B, L],
        source3: Topic[C, M],
        source4: Topic[D, N],
        source5: Topic[E, P],
        /,
        *,
        concurrency: int = 1,
    ) -> DeclaredStream[A | B | C | D | E, K | L | M | N | P]: ...
    @overload
    def stream(self, *topics: Topic[V, K], concurrency: int = 1) -> DeclaredStream[V, K]: ...
    @overload
    def stream(
        self, *topics: Topic[Any, Any], concurrency: int = 1
    ) -> DeclaredStream[Any, Any]: ...
    def stream(self, *topics: Topic[Any, Any], concurrency: int = 1) -> DeclaredStream[Any, Any]:
        """The records of some topics, to be filtered, mapped, joined, grouped, and sent on.

        Args:
            concurrency: how many records of a shard are in progress at once, never two with one key, where
                functions are async. What runs together with a step that holds records back (suppress, timers,
                left and outer joins, a join with grace) takes one at a time all the same.
        """
        if not topics:
            raise TopologyError("app.stream() needs the topics that it is to read")
        if concurrency < 1:
            raise TopologyError(f"app.stream(concurrency={concurrency}) is not above 0")
        for topic in topics:
            self.topics.check_own(topic, "stream")
        members = [member for topic in topics for member in topic.members]
        return DeclaredStream(self.streams.plan.source(members, concurrency), self.streams)

    # agents ---------------------------------------------------------------------------------------

    @overload
    def agent(self, function: Callable[[Stream[V, Any]], AsyncIterator[R]], /) -> Agent[V, R]: ...
    @overload
    def agent(self, function: Callable[[Stream[V, Any]], Awaitable[None]], /) -> Agent[V, None]: ...
    @overload
    def agent(self, **options: Unpack[AgentOptions]) -> OwnTopicDecorator: ...
    @overload
    def agent(
        self, source1: Source[A], /, **options: Unpack[AgentOptions]
    ) -> AgentDecorator[A]: ...
    @overload
    def agent(
        self, source1: Source[A], source2: Source[B], /, **options: Unpack[AgentOptions]
    ) -> AgentDecorator[A | B]: ...
    @overload
    def agent(
        self,
        source1: Source[A],
        source2: Source[B],
        source3: Source[C],
        /,
        **options: Unpack[AgentOptions],
    ) -> AgentDecorator[A | B | C]: ...
    @overload
    def agent(
        self,
        source1: Source[A],
        source2: Source[B],
        source3: Source[C],
        source4: Source[D],
        /,
        **options: Unpack[AgentOptions],
    ) -> AgentDecorator[A | B | C | D]: ...
    @overload
    def agent(
        self,
        source1: Source[A],
        source2: Source[B],
        source3: Source[C],
        source4: Source[D],
        source5: Source[E],
        /,
        **options: Unpack[AgentOptions],
    ) -> AgentDecorator[A | B | C | D | E]: ...
    @overload
    def agent(
        self, *sources: Source[Any], **options: Unpack[AgentOptions]
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
            return self.agents.declare(
                function,
                sources,
                name=name,
                concurrency=concurrency,
                ordered_by=ordered_by,
                sink=sink,
                on_error=on_error,
            )

        return declare

    # tables ---------------------------------------------------------------------------------------

    @overload
    def table(
        self,
        name: str,
        *,
        topic: Topic[V, K],
        versioned: Duration,
        default: V | Callable[[], V] | None = ...,
        **options: Unpack[TableOptions],
    ) -> VersionedTable[K, V]: ...
    @overload
    def table(
        self,
        name: str,
        *,
        key: TypeForm[K],
        value: TypeForm[V],
        versioned: Duration,
        default: V | Callable[[], V] | None = ...,
        **options: Unpack[TableOptions],
    ) -> VersionedTable[K, V]: ...
    @overload
    def table(
        self,
        name: str,
        *,
        value: TypeForm[V],
        versioned: Duration,
        default: V | Callable[[], V] | None = ...,
        **options: Unpack[TableOptions],
    ) -> VersionedTable[str, V]: ...
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
        versioned: Duration | None = None,
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
            versioned: remember for so long, by stream time, what the values were; see `VersionedTable`.
            on_change: called with key and value, or None for a deleted key, of each entry that an epoch has
                changed, once it is committed; the key is (key, window) where the table is windowed. What it
                raises is logged.
            upgrade: turns stored values of an older form (as plain JSON types) into new ones.
            on_error: the policy where an ``on_close`` function raises, or a record of ``topic`` cannot be read.

        Raises:
            ConfigurationError: a type that cannot be a key, or a contradiction.
        """
        return self.tables.declare(
            name,
            key=key,
            value=value,
            default=default,
            topic=topic,
            like=like,
            partitions=partitions,
            ttl=ttl,
            versioned=versioned,
            codec=codec,
            on_change=on_change,
            upgrade=upgrade,
            on_error=on_error,
            partitioner=partitioner,
            help=help,
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
        return self.tables.declare_global(
            name, topic=topic, key=key, value=value, default=default, help=help
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
        """Declare a table of sets, changed by ``add`` and ``discard``; a set is written whole when it changes.

        Args:
            key: type of the keys, as for `table`.
            value: type of the members; they have to be hashable.
            like: a topic whose partitions the table has.

        Raises:
            ConfigurationError: a type that cannot be a key, or a contradiction.
        """
        return self.tables.declare_sets(
            name, key=key, value=value, partitions=partitions, like=like, help=help
        )

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
        return self._schedule.timer(interval, scope=scope, time=time, on_error=on_error, name=name)

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
        return self._schedule.crontab(
            expression, timezone=timezone, scope=scope, missed=missed, on_error=on_error, name=name
        )

    def task(self, function: F) -> F:
        """Run the async function on each worker, once its first shards are ready.

        It may run for ever, and is cancelled when the worker stops. What it raises stops the worker. It is no event:
        tables raise in it, and what it sends leaves at once.

        Raises:
            ConfigurationError: the function is not async.
        """
        return self._schedule.task(function)

    def command(self, *args: Any, **kwargs: Any) -> Callable[[F], F]:
        """Add a command to the app's command line; takes what ``click.command`` takes."""
        import click

        def declare(function: F) -> F:
            self.commands.append(click.command(*args, **kwargs)(function))
            return function

        return declare

    def page(self, path: str) -> Callable[[F], F]:
        """Serve the function, a Starlette endpoint, at ``path``, for GET and POST.

        It may be async or not, and returns a response of Starlette's, or what is to be sent as JSON: a dict, a
        list, a Struct, a dataclass, a pydantic model. What it raises is answered with 500 and goes to the log.
        """
        return lambda function: self.pages.declare(path, function)

    def mount(self, path: str, other: Any) -> None:
        """Serve another ASGI application below ``path``, with the app's own pages.

        Raises:
            TopologyError: at the start, where the path is one of Millstream's own.
        """
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

    def on_state(self, function: F) -> F:
        """Call the function, which may be async, with each state of this process's worker, as text.

        The states: ``joining`` (the group has given it no shards yet), ``recovering`` (tables of some of its
        shards are being brought up to date), ``running`` (all of them process records), ``stopping``, and at the
        end ``stopped`` or ``failed``. Each is told in its turn, also one that is over by then; what the function
        raises is logged.
        """
        self.state_hooks.append(function)
        return function

    # as a whole -----------------------------------------------------------------------------------

    def discover(self) -> None:
        """Import the modules of ``autodiscover``, packages with everything in them; once."""
        import pkgutil

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
        self.streams.compile()
        return Topology(
            app=self.id,
            topics=self.topics.nodes(),
            tables=self.tables.nodes(),
            agents=self.agents.nodes() | self.tables.reader_nodes(),
            timers=self._schedule.nodes(),
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
            raise ProgramError(
                f"app {self.id!r} is running already in this process: enter app.running() once, and use the"
                f" app inside that block"
            )
        async with Runtime(self, worker=worker, web=web).running():
            yield result  # not the app in a lifespan, where it would become the server's state

    def why_not_running(self) -> str:
        """How the app came to be not running here."""
        if self.ended is None:
            return (
                f"App {self.id!r} is not running here: put it into the lifespan of the application that it"
                f" is mounted in, for example FastAPI(lifespan=app.running)."
            )
        return f"App {self.id!r} does not run here any more. {self.ended}"

    def view(self, table: str, *, stale: Duration | None = None) -> Any:
        """A table as everything outside of events reads it, by name; see `Table.view`."""
        if self.runtime is None and self.ended is not None:
            raise ProgramError(f"table {table!r}: {self.why_not_running()}")
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
