"""Assembly: the one place that chooses backends and puts the parts of a running app together."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from millstream.agents import (
    HEADER_CORRELATION,
    HEADER_ERROR,
    Agent,
    Failure,
    Policy,
    Source,
    Topic,
    reply_headers,
    user_line,
)
from millstream.app._broker import open_transport
from millstream.app._changes import change_listeners
from millstream.app._dead_letters import ERROR_HEADERS, error_headers, timer_letter
from millstream.app._patterns import Patterns
from millstream.app._replies import Replies, reply_topic
from millstream.app._slot import Slot
from millstream.app._timing import Passing, run_leader_crontab, run_shard_timer, run_timer
from millstream.context import watched_tasks
from millstream.errors import (
    AgentError,
    MillstreamError,
    PartitionCountError,
    ProgramError,
    TopologyError,
)
from millstream.records import Headers, OutgoingRecord, TopicPartition
from millstream.topology import TopicNode
from millstream.worker import (
    AgentSpec,
    Stage,
    Worker,
    WorkerPlan,
    notes_table,
    notes_topic,
    prepare_topics,
    refuse_orphans,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping

    from millstream.app._app import App
    from millstream.app._timers import Timer
    from millstream.app._web import Questions
    from millstream.context import Scope
    from millstream.state.base import StateBackend
    from millstream.topology import Topology
    from millstream.transports.base import TopicInfo, Transport
    from millstream.worker import Shard

__all__ = ["Runtime", "counts_with_notes", "shard_groups"]


def shard_groups(app: App, resolved: Topology) -> dict[int, list[str]]:
    """Agents by the number of their shards."""
    groups = resolved.shard_counts()
    if not groups and any(timer.scope != "worker" for timer in app.timers):
        groups = {1: []}
    return groups


def counts_with_notes(app: App, resolved: Topology) -> set[int]:
    """Numbers of shards that have something to remember besides their tables' entries."""
    groups = shard_groups(app, resolved)
    noted = {timer.scope for timer in app.timers if timer.noted}
    if "shard" in noted:
        return set(groups)
    read = [t for t in resolved.tables.values() if t.source is not None and not t.everywhere]
    counts = {table.partitions or 1 for table in read}
    return counts | {max(groups)} if noted else counts


class Runtime:
    """One run of an app: its transport, and a worker and a web server if it has them."""

    def __init__(
        self,
        app: App,
        *,
        worker: bool = True,
        web: bool = False,
        transport: Transport | None = None,
        state: StateBackend | None = None,
        commits: bool = True,
    ) -> None:
        app.discover()
        self.app = app
        self.settings = app.settings
        self._with_worker = worker
        self._with_web = web
        self._commits = commits
        self.slot = Slot(app.id, app.settings)
        self.transport: Transport = (
            open_transport(
                app.settings.broker,
                app.clock,
                app.settings,
                app=app.id,
                slot=self.slot if worker else None,
            )
            if transport is None
            else transport
        )
        self._given_state = state
        self.worker: Worker | None = None
        self.topology: Topology = app.topology
        self.infos: Mapping[str, TopicInfo] = {}
        self.partitions: Mapping[str, int] = {}
        self.web_url = ""
        self._replies: Replies | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._stop: Callable[[], None] = lambda: None
        self.prepared = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._questions: Questions | None = None
        self._background: list[asyncio.Task[Any]] = []
        self._patterns: Patterns | None = None

    # life -----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Runtime]:
        """Everything that runs, for the length of the block."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.transport)
            await self._prepare()
            if self.app.lifespan is not None:
                await stack.enter_async_context(self.app.lifespan(self.app))
            self.app.runtime, self.app.ended = self, "It has stopped."
            stack.callback(self._forget)
            if self._with_worker:
                stack.enter_context(watched_tasks(asyncio.get_running_loop()))
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._tasks = tasks
                    working = None
                    async with contextlib.AsyncExitStack() as inner:
                        state = self._open_state(inner) if self._with_worker else None
                        everywhere = await self._everywhere(inner, tasks, state)
                        if self._with_worker:
                            assert state is not None
                            self.worker = Worker(
                                self._plan(),
                                transport=self.transport,
                                state=state,
                                clock=self.app.clock,
                                everywhere=everywhere,
                                slot=self.slot.name,
                            )
                            self.worker.assigned += [_hook(h) for h in self.app.assigned_hooks]
                            self.worker.revoked += [_hook(h) for h in self.app.revoked_hooks]
                            self.worker.states.listeners += [_hook(h) for h in self.app.state_hooks]
                        inner.push_async_callback(self._close_questions)
                        if self.worker is not None:
                            self.worker.committer.listeners += change_listeners(
                                self.app.tables.values()
                            )
                        if self._with_web:
                            serving = self.questions().serving(self)
                            self.web_url = await inner.enter_async_context(serving)
                        if self.worker is not None:
                            self.worker.url = self.web_url
                            working = tasks.create_task(self.worker.run(commits=self._commits))
                            self._working = working
                        self.prepared.set()
                        try:
                            yield self
                        finally:
                            if self.worker is not None and working is not None:
                                self.worker.stop()
                                await asyncio.wait([working])
                    self._cancel_rest()
            except BaseExceptionGroup as group:
                error = _single(group)
                self.app.ended = f"It has ended with {type(error).__name__}: {error}"
                raise error from error.__cause__

    def failed(self) -> bool:
        """Whether the worker has ended, with an error."""
        return self._working is not None and self._working.done()

    def _forget(self) -> None:
        self.app.runtime = None

    def _cancel_rest(self) -> None:
        for task in self._background:
            task.cancel()

    async def _prepare(self) -> None:
        app, settings = self.app, self.settings
        for topic in app.topics.all():
            topic.forget_placement()
        topics = dict(self.topology.topics)
        for name in self._dead_letter_topics():
            topics.setdefault(name, TopicNode(name=name, internal=True, partitions=1))
        topics |= await self._notes_topics()
        for sink in [sink for agent in app.agents.values() for sink in agent.sinks]:
            known: Mapping[str, Any] | None = None
            if isinstance(sink, (Topic, Agent)):
                known = app.topics if isinstance(sink, Topic) else app.agents
            if known is not None and known.get(sink.name) is not sink:
                raise TopologyError(
                    f"sink {sink.name!r} belongs to another app: describe its topic with app.topic()"
                    f" here as well, and use that"
                )
        declared = _with_topics(self.topology, topics)
        self.topology, self.infos = await prepare_topics(
            declared,
            self.transport,
            partitions=settings.partitions,
            replication=settings.replication,
            works=self._with_worker,
        )
        if self._with_worker:
            await refuse_orphans(self.topology, self.transport, self.infos)
        if any(agent.declared for agent in self.topology.agents.values()):
            self._patterns = Patterns(declared, self.topology)
        self.partitions = {name: info.partitions for name, info in self.infos.items()}

    async def _notes_topics(self) -> dict[str, TopicNode]:
        """Changelogs for what shards remember besides their tables."""
        existing = {name: info.partitions for name, info in (await self.transport.topics()).items()}
        resolved = self.topology.resolved(existing, self.settings.partitions)
        topics = {}
        for count in counts_with_notes(self.app, resolved):
            name = notes_topic(self.app.id, count)
            if name in resolved.topics:
                raise TopologyError(
                    f"the topic {name!r} is Millstream's own, for what shards remember: give yours, or"
                    f" the table whose changelog it would be, another name"
                )
            topics[name] = TopicNode(name=name, internal=True, partitions=count, compacted=True)
        return topics

    def _dead_letter_topics(self) -> set[str]:
        policies = [self._policy(agent, None) for agent in self.app.agents.values()]
        policies += [t.policy for t in self.app.topics.all() if t.policy is not None]
        readers = [(table.reader(), table.topic) for table in self.app.tables.values()]
        policies += [self._policy(agent, topic) for agent, topic in readers if agent is not None]
        policies += [self._timer_policy(timer) for timer in self.app.timers]
        policies += [
            table.close_policy
            for table in self.app.tables.values()
            if table.windows is not None and table.table.closing
        ]
        return {self._dead_letter_topic(p) for p in policies if p.action == "dlq"}

    def _dead_letter_topic(self, policy: Policy) -> str:
        return policy.topic or f"{self.app.id}-dlq"

    def _timer_policy(self, timer: Timer) -> Policy:
        return self.settings.on_error if timer.policy is None else timer.policy

    def _policy(self, agent: Agent[Any, Any], topic: Topic[Any, Any] | None) -> Policy:
        if agent.policy is not None:
            return agent.policy
        if topic is not None and topic.policy is not None:
            return topic.policy
        return self.settings.on_error

    def _open_state(self, stack: contextlib.AsyncExitStack) -> StateBackend:
        if self._given_state is not None:
            return self._given_state
        if self.settings.state == "memory":
            from millstream.state.memory import MemoryBackend

            return MemoryBackend()
        from millstream.state.rocks import RocksBackend

        return RocksBackend(
            stack.enter_context(self.slot.taken()),
            cache_bytes=self.settings.state_cache_bytes,
            write_buffer_bytes=self.settings.state_write_buffer_bytes,
        )

    async def replies(self) -> Replies:
        """What `ask` waits at; opened when it is first needed."""
        if self._replies is None:
            replies = Replies(transport=self.transport, app=self.app.id, clock=self.app.clock)
            await replies.open()
            if self._replies is None:
                self._replies = replies
                self.partitions = {**self.partitions, reply_topic(self.app.id): 1}
                assert self._tasks is not None
                self._background.append(self._tasks.create_task(replies.run(), name="replies"))
        return self._replies

    async def ask(
        self, topic: Topic[Any, Any], value: Any, *, key: Any, timeout_s: float
    ) -> bytes | None:
        """Send a request and wait for its reply."""
        replies = await self.replies()
        return await replies.ask(topic, value, key=key, timeout_s=timeout_s)

    # assembly -------------------------------------------------------------------------------------

    def _plan(self) -> WorkerPlan:
        settings = self.settings
        groups = shard_groups(self.app, self.topology)
        agents: dict[int, list[AgentSpec]] = {count: [] for count in groups}
        by_name = dict(self.app.agents)
        for declared in self.app.tables.values():
            reader = declared.reader()
            if reader is not None:
                by_name[reader.name] = reader
        for count, names in groups.items():
            agents[count] = [self._agent_spec(by_name[name]) for name in names]
        if self._patterns is not None:
            self._patterns.specs = {
                spec.agent.name: spec for listed in agents.values() for spec in listed
            }
        stages = {
            topic.name: [
                Stage(agent=spec, partitions=count, topics=topic.comes_from)
                for count, specs in agents.items()
                for spec in specs
                if topic.name in self.topology.agents[spec.agent.name].sinks
            ]
            for topic in self.app.topics.all()
            if topic.comes_from
        }
        tables: dict[int, list[Any]] = {count: [] for count in groups}
        for declared in self.app.tables.values():
            if declared.everywhere:
                continue
            count = self.topology.tables[declared.name].partitions or 1
            tables[count].append(declared.spec(count, self.app.topics.read(self.topology, count)))
        for count in counts_with_notes(self.app, self.topology):
            tables[count].append(notes_table(self.app.id, count))
        return WorkerPlan(
            app=self.app.id,
            fingerprint=self.topology.fingerprint(),
            agents=agents,
            tables=tables,
            topic_ids={name: info.topic_id for name, info in self.infos.items()},
            idles=any(t.idle_timeout_ms is not None for t in self.app.topics.all())
            or any(t.idle_timeout_ms is not None for t in self.app.tables.values()),
            stages=stages,
            commit_interval_s=settings.commit_interval / 1_000,
            session_timeout_s=settings.session_timeout / 1_000,
            standby_replicas=settings.standby_replicas,
            rack=settings.rack,
            inbox_bytes_max=settings.inbox_bytes_max,
            epoch_bytes_max=settings.epoch_bytes_max,
            shard_tasks={count: self._shard_timers(count) for count in groups},
            worker_tasks=[
                *(_task(function, self.app) for function in self.app.tasks),
                *(self._timer(t) for t in self.app.timers if t.scope == "worker"),
            ],
            leader_tasks=[self._leader_timer(t) for t in self.app.timers if t.scope == "leader"],
            look=self._look,
            follow=self._follow if self._patterns is not None else None,
            atomic=settings.processing_guarantee == "exactly_once",
            passing=self.topology.passing(),
        )

    def _look(self, infos: Mapping[str, TopicInfo]) -> None:
        """Refuse to go on where what is read has more partitions than when we began."""
        for name in self.topology.sources:
            known, now = self.topology.topics[name].partitions, infos.get(name)
            if known is not None and now is not None and now.partitions > known:
                raise PartitionCountError(
                    f"topic {name!r} has {now.partitions} partitions now, and had {known} when this worker"
                    f" started: nobody reads the new ones, and keys may be elsewhere than before. Start"
                    f" the workers again: without tables they go on with all of them, and with tables they"
                    f" say what to do"
                )

    def _follow(self, infos: Mapping[str, TopicInfo]) -> None:
        """Topics may have been made that match a pattern."""
        assert self._patterns is not None
        self.infos = {**self.infos, **infos}
        self.partitions = {**self.partitions, **{n: i.partitions for n, i in infos.items()}}
        for agent, topic in self._patterns.take(self.partitions):
            spec = self._patterns.specs[agent]
            spec.policies[topic.name] = self._policy(spec.agent, topic)
            spec.sources[topic.name] = _source(topic, spec.agent)
        self.topology = self._patterns.topology
        if self._questions is not None:
            self._questions.report.topology = self.topology

    def _shard_timers(self, count: int) -> list[Callable[[Shard], Coroutine[Any, Any, None]]]:
        def set_aside(scope: Scope, timer: Timer, moment: int, error: Exception) -> None:
            tp = TopicPartition(self._dead_letter_topic(self._timer_policy(timer)), 0)
            now = self.app.clock.now()
            letter = timer_letter(timer.name, moment, scope.shard.name, error, now=now)
            scope.append(tp, letter)

        return [
            run_shard_timer(timer, self.app.clock, self._timer_policy(timer), set_aside)
            for timer in self.app.timers
            if timer.scope == "shard"
            and (
                timer.table is None or self.topology.tables[timer.table].partitions in (None, count)
            )
        ]

    def _passing(self, timer: Timer) -> Passing:
        policy = self._timer_policy(timer)

        def count(name: str) -> None:
            assert self.worker is not None
            self.worker.counters[name] += 1

        async def set_aside(timer: Timer, moment: int, error: Exception) -> None:
            tp = TopicPartition(self._dead_letter_topic(policy), 0)
            letter = timer_letter(timer.name, moment, None, error, now=self.app.clock.now())
            await self.transport.append({tp: [letter]})

        return Passing(policy=policy, count=count, set_aside=set_aside)

    def _timer(self, timer: Timer) -> Callable[[], Awaitable[None]]:
        return partial(run_timer, timer, self.app.clock, self._passing(timer))

    def _leader_timer(
        self, timer: Timer
    ) -> Callable[[Callable[[], Awaitable[Shard]]], Awaitable[None]]:
        if timer.noted:
            return partial(run_leader_crontab, timer, self.app.clock, self._passing(timer))
        run = self._timer(timer)
        return lambda leading: run()

    def _agent_spec(self, agent: Agent[Any, Any]) -> AgentSpec:
        sources: dict[str, Source] = {}
        policies: dict[str, Policy] = {}
        for name in self.topology.agents[agent.name].sources:
            topic = agent.source(name)
            sources[name] = _source(topic, agent)
            policies[name] = self._policy(agent, topic)
        return AgentSpec(
            agent=_with_steps(agent),
            sources=sources,
            policy=self._policy(agent, None),
            policies=policies,
            emit=self._emitter(agent),
            dead_letter=self._dead_letter(policies),
            refuse=self._refuse,
        )

    def _refuse(self, scope: Scope, failure: Failure) -> None:
        text = f"the agent failed: {type(failure.error).__name__}: {failure.error}"
        for _, record in [*failure.before, (failure.run, failure.record)]:
            reply = reply_headers(record.headers)
            if reply is None:
                continue
            topic, correlation = reply
            headers: Headers = [(HEADER_CORRELATION, correlation), (HEADER_ERROR, text.encode())]
            answer = OutgoingRecord(self.app.clock.now(), None, None, headers)
            scope.append(TopicPartition(topic, 0), answer)

    def _emitter(self, agent: Agent[Any, Any]) -> Callable[[Scope, Any], Awaitable[None]]:
        codec = agent.result_codec

        async def emit(scope: Scope, value: Any) -> None:
            from millstream.context import current

            scope = current.get()
            for sink in agent.sinks:
                if isinstance(sink, Topic):
                    sink.put(scope, value)
                elif isinstance(sink, Agent):
                    await sink.cast(value)
                else:
                    result = sink(value)
                    if inspect.isawaitable(result):
                        await result
            record = scope.record
            if record is not None and record.headers:
                reply = reply_headers(record.headers)
                if reply is not None and codec is not None:
                    topic, correlation = reply
                    headers: Headers = [(HEADER_CORRELATION, correlation)]
                    now = self.app.clock.now()
                    answer = OutgoingRecord(now, None, codec.dumps(value), headers)
                    scope.append(TopicPartition(topic, 0), answer)

        return emit

    def _dead_letter(self, policies: Mapping[str, Policy]) -> Callable[[Scope, Failure], None]:
        def put(scope: Scope, failure: Failure) -> None:
            about = error_headers(failure.error)
            for run, record in [*failure.before, (failure.run, failure.record)]:
                tp = run.tp
                place = {
                    "topic": tp.topic,
                    "partition": str(tp.partition),
                    "offset": str(record.offset),
                }
                headers = [*(record.headers or ()), *about]
                headers += [(ERROR_HEADERS + name, text.encode()) for name, text in place.items()]
                scope.append(
                    TopicPartition(self._dead_letter_topic(policies[tp.topic]), 0),
                    OutgoingRecord(record.timestamp, record.key, record.value, headers),
                )

        return put

    async def _everywhere(
        self,
        stack: contextlib.AsyncExitStack,
        tasks: asyncio.TaskGroup,
        state: StateBackend | None,
    ) -> Mapping[str, Any]:
        declared = [table for table in self.app.tables.values() if table.everywhere]
        if not declared or state is None:
            return {}
        from millstream.worker._everywhere import EverywhereTables

        followed = EverywhereTables(
            declared,
            transport=self.transport,
            state=state,
            clock=self.app.clock,
            app=self.app.id,
            topic_ids={name: info.topic_id for name, info in self.infos.items()},
            partitions=self.partitions,
        )
        stack.callback(followed.close)
        await followed.load()
        followed.changed = self._publish
        self._background.append(tasks.create_task(followed.follow(), name="global tables"))
        return followed.parts

    def questions(self) -> Questions:
        """What answers for the tables; made when it is first needed."""
        if self._questions is None:
            from millstream.app._web import Questions

            self._questions = Questions(self)
        return self._questions

    def _publish(self, table: str, changes: Mapping[bytes, bytes | None]) -> None:
        if self._questions is not None:
            self._questions.publish(table, changes)

    async def _close_questions(self) -> None:
        if self._questions is not None:
            await self._questions.aclose()


def _source(topic: Topic[Any, Any], agent: Agent[Any, Any]) -> Source:
    return Source(
        topic=topic.name,
        decode=topic.value_codec.loads,
        decode_key=topic.key_codec.loads,
        time_of=topic.time_of if topic.timestamp_from is not None else None,
        type_name=topic.value_codec.type_name,
        max_wait_s=topic.max_wait_ms / 1_000,
        idle_ms=topic.idle_timeout_ms,
        partitioner=topic.partitioner,
        ours=topic.internal,
        drops_keyless=topic.takes_keyless and not agent.internal,  # streams see to it themselves
    )


def _with_steps(agent: Agent[Any, Any]) -> Agent[Any, Any]:
    """The agent with the filters and maps of its declared streams in front."""
    steps = [step for stream in agent.sources for step in stream.steps]
    if not steps:
        return agent
    if len(agent.sources) > 1:
        raise ProgramError(
            f"agent {agent.name!r}: filter and map stand on a single source; give each source an agent"
        )
    function = agent.function

    def stepped(stream: Any) -> Any:
        for step in steps:
            stream = getattr(stream, step.kind)(step.function)
        return function(stream)

    copy = object.__new__(Agent)
    copy.__dict__.update(agent.__dict__)
    copy.function = stepped
    return copy


def _with_topics(topology: Topology, topics: Mapping[str, TopicNode]) -> Topology:
    from dataclasses import replace

    return replace(topology, topics=topics)


def _task(function: Callable[..., Awaitable[Any]], app: App) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        takes_app = len(inspect.signature(function).parameters) > 0
        try:
            await (function(app) if takes_app else function())
        except Exception as exc:
            name = getattr(function, "__name__", repr(function))
            raise AgentError(f"task {name!r}", cause=exc, line=user_line(exc)) from exc

    return run


def _hook(function: Callable[..., Any]) -> Callable[[Any], Awaitable[None]]:
    async def call(what: Any) -> None:
        result = function(what)
        if inspect.isawaitable(result):
            await result

    return call


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error in a group, however deep; the group itself where there are several that differ in kind."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        distinct = [e for e in error.exceptions if not isinstance(e, asyncio.CancelledError)]
        if not distinct:
            return error.exceptions[0]
        if len(distinct) > 1 and not _same(distinct):
            if not all(isinstance(e, MillstreamError) for e in distinct):
                return error
            for other in distinct[1:]:  # each of them says all that there is to say
                distinct[0].add_note(f"At the same time: {other}")
        error = distinct[0]
    return error


def _same(errors: list[BaseException]) -> bool:
    return len({(type(e), str(e)) for e in errors}) == 1
