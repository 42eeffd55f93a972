"""What streams need of the app in which they are declared: topics, tables, and the agents that run them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from millstream.agents import AgentSource, Step, Topic
from millstream.app._declaration import DeclaredTable
from millstream.errors import TopologyError
from millstream.serialization import any_partition, codec_for, key_codec_for, partitioner
from millstream.streams import (
    DeclaredStream,
    DerivedTable,
    DerivedWindowedTable,
    Plan,
    TableStream,
    pipeline_agent,
)
from millstream.streams import operators as ops
from millstream.tables import PackedPart

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from millstream.app._app import App
    from millstream.clock import Clock, Duration
    from millstream.streams import Compat, Operator
    from millstream.tables import TablePart
    from millstream.topology import StepNode
    from millstream.windows import AnyWindows

__all__ = ["Streams"]


class Streams:
    """The home of an app's streams."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.id = app.id
        self.plan = Plan()
        self._compiled = -1
        self._agents: list[str] = []
        self.steps: dict[str, tuple[StepNode, ...]] = {}
        """What the agents of the pipelines do, by their names."""
        self._users: defaultdict[str, set[str]] = defaultdict(set)

    @property
    def clock(self) -> Clock:
        """The app's."""
        return self._app.clock

    @property
    def compat(self) -> Compat:
        """The setting."""
        return self._app.settings.compat

    def check_own(self, topic: Any, user: str) -> None:
        """Refuse what is no topic of this app."""
        self._app.topics.check_own(topic, user)

    # what operators keep --------------------------------------------------------------------------

    def repartition_topic(
        self,
        name: str,
        *,
        key: Any,
        value: Any,
        of: Sequence[Operator],
        like: Sequence[Topic[Any, Any]],
        partitions: int | None = None,
        codec: Any = None,
        beside: Topic[Any, Any] | None = None,
    ) -> Topic[Any, Any]:
        """Declare the topic ``{id}-{name}-repartition``.

        It has no retention, which would go by the time of the events and take those of long ago at once: workers
        have the log forget what they have processed. Its ``idle_timeout`` is the longest of the topics that its
        records come from. It has none behind what holds results back: they would be late when they come.
        """
        _check_stem(name)
        full = f"{self.id}-{name}-repartition"
        if full in self._app.topics:
            raise TopologyError(
                f"two streams would move their records through {full!r}: give one of them another name,"
                f" for example name={name + '-2'!r}, or .repartition(name={name + '-2'!r}) after key_by()"
            )
        key_codec: Any = AnyKeyCodec() if key is Any else key_codec_for(key)
        if beside is not None:
            key_codec = beside.key_codec
        topic = self._app.topics.declare(
            full,
            key=key,
            value=value,
            codec=codec_for("json", value) if codec is None else codec,
            key_codec=key_codec,
            partitions=partitions,
            internal=True,
        )
        theirs = like[0].partitioner
        topic.partitioner = partitioner("murmur2") if theirs is any_partition else theirs
        topic.beside = None if beside is None else beside.name
        sources = {source.name: source for operator in of for source in operator.topics}
        topic.comes_from = tuple(sources.values())
        topic.held = any(operator.held for operator in of)
        if not topic.held:
            found = [source.idle_timeout_ms for source in topic.comes_from]
            topic.idle_timeout_ms = max((ms for ms in found if ms is not None), default=None)
        return topic

    def kept_table(
        self,
        name: str,
        *,
        key: Any,
        value: Any,
        like: Topic[Any, Any],
        operator: Operator | None = None,
        windows: AnyWindows | None = None,
        merge: Callable[[Any, Any], Any] | None = None,
        make_part: Callable[..., TablePart] | None = None,
        codec: Any = None,
        shown: Callable[[Any], Any] | None = None,
        stamped: bool = True,
        checked: bool = True,
        remedy: Callable[[Any], str] | None = None,
        upgrade: Callable[[Any], Any] | None = None,
        mend: str | None = None,
        clocks: Sequence[str] = (),
        help: str = "",
    ) -> Any:
        """Declare a table that an operator writes, and agents only read."""
        _check_stem(name)
        declared: DeclaredTable[Any, Any] = DeclaredTable(
            self._app,
            name,
            key=str if key is Any else key,
            value=value,
            like=like,
            codec="json" if codec is None else codec,
            key_codec=like.key_codec if key in (like.key_type, Any) else None,
            table_class=DerivedTable,
            operator=operator,
            make_part=make_part,
            shown=shown,
            stamped=stamped,
            checked=checked,
            remedy=remedy,
            upgrade=upgrade,
            mend=mend,
            help=help,
        )
        declared.clocks = tuple(clocks)
        self._app.tables.add(declared)
        if windows is not None:
            declared.windowed(
                declared.table, windows, merge=merge, table_class=DerivedWindowedTable
            )
        return declared.table

    def final_hook(self, table: str, function: Callable[..., Any]) -> None:
        """Have ``async function(key, window, value)`` called once for each final window of a table."""
        self._app.tables[table].table.on_close(function)

    def hand_on(self, table: str, operator: Operator) -> None:
        """Have an operator's changes stand for a table's, for all who use these."""
        self._app.tables[table].operator = operator

    def due_hook(self, table: str, function: Callable[..., Any]) -> None:
        """Have ``async function(key, window, value)`` called when something in a table's parts is due."""
        self._app.tables[table].on_due = function

    def shard_timer(self, interval: Duration, table: str, function: Callable[..., Any]) -> None:
        """Have ``async function()`` called in an event of each shard of a table, every ``interval`` of the wall clock.

        A moment at which no worker was there is made up for: a restart does not put off what is due.
        """
        schedule = self._app._schedule
        timer = schedule.timer(
            interval, scope="shard", time="wall", name=table, missed="once", table=table
        )
        timer(function)

    def flow(self, table: DeclaredTable[Any, Any]) -> TableStream[Any, Any]:
        """A table's changes.

        Raises:
            TopologyError: agents write the table.
        """
        if table.operator is None:
            if table.topic is None or table.everywhere:
                windowed = table.windows is not None
                raise TopologyError(
                    f"table {table.name!r} is {'global' if table.everywhere else 'written by agents'}:"
                    f" its changes are no stream. Send them to a topic, and read that with"
                    f" {'app.stream(topic)' if windowed else 'app.table(..., topic=...)'}"
                )
            source = ops.TableSource(table.topic, name=table.name, value_type=table.value_type)
            source.codec = table.codec  # which converts old values further on as well
            table.operator = self.plan.add(source)
            table.stamped = True
            table.part_maker = PackedPart
        return TableStream(table.operator, self)

    # what runs ------------------------------------------------------------------------------------

    def source(self, stream: DeclaredStream[Any, Any], agent: str) -> AgentSource:
        """A stream as an agent reads it: filters and maps run with the agent, all else before it."""
        steps: list[Step] = []
        operator = stream.operator
        while isinstance(operator, (ops.Filter, ops.Map)) and operator.kind in ("filter", "map"):
            if ops.is_async(operator.function):
                break
            steps.insert(0, Step(operator.kind, operator.function))
            operator = operator.parents[0]
        if isinstance(operator, ops.SourceOperator):
            return AgentSource(operator.topics, tuple(steps))
        moved = stream.repartition(name=f"{agent}-input").operator
        return AgentSource(moved.topics)

    def compile(self) -> None:
        """Make an agent of each pipeline."""
        if self._compiled == self.plan.version:
            return
        self._compiled = self.plan.version
        for name in self._agents:
            del self._app.agents[name]
        self._agents = []
        self.steps = {}
        self._users.clear()
        for pipeline in self.plan.pipelines():
            self.steps[pipeline.name] = pipeline.steps()
            agent = pipeline_agent(pipeline, lambda: self._app.clock)
            self._agents.append(self._app.agents.add(agent).name)
            for operator in pipeline.operators:
                for table in (*operator.stores, *operator.reads):
                    self._users[table].add(agent.name)

    def users(self, table: str) -> Collection[str]:
        """The agents of pipelines that use a table."""
        return frozenset(self._users.get(table, ()))


def _check_stem(name: str) -> None:
    if "~" in name:  # the mark of a pattern
        raise TopologyError(
            f"what streams keep is named after their topics, and {name!r} comes from a pattern, which is"
            f" no name: give the operator one, for example group_by(..., name='by-account')"
        )


class AnyKeyCodec:
    """Keys of a type that is not known: str as UTF-8, bytes as they are, others as JSON text."""

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
