"""Running a pipeline: its operators bound to the tables of one shard, and the agent that drives them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.agents import Agent, AgentSource
from millstream.streams._operator import UNCHANGED, Context, Done, Operator, fan_out, nowhere

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millstream.agents import Stream
    from millstream.clock import Clock
    from millstream.context import Scope
    from millstream.records import TopicPartition
    from millstream.streams._plan import Pipeline

__all__ = ["Binding", "bound", "pipeline_agent"]


class Binding:
    """A pipeline in one shard."""

    def __init__(self, pipeline: Pipeline, scope: Scope, clock: Clock) -> None:
        self.context = Context(scope, clock)
        self._pipeline = pipeline
        self._inputs: dict[Operator, Sequence[Callable[..., Done]]] = {}
        self._forwards: dict[Operator, Callable[..., Done]] = {}

    def forward(self, operator: Operator) -> Callable[..., Done]:
        """What hands on the results of an operator."""
        found = self._forwards.get(operator)
        if found is None:
            children = self._pipeline.children[operator]
            found = fan_out([self._input(operator, *child) for child in children])
            self._forwards[operator] = found
        return found

    def _input(self, parent: Operator, child: Operator, port: int) -> Callable[..., Done]:
        """What takes a parent's results; the time of a change that is none goes past those that have no use for it."""
        take = self._inputs_of(child)[port]
        if (parent, child, port) in self._pipeline.keyed:
            return _keyed(take, self.context)
        if not parent.time_wanted or child.uses_time:
            return take
        past = self.forward(child) if child.time_wanted else nowhere

        def take_changed(key: Any, new: Any, old: Any, timestamp: int) -> Done:
            return (past if old is UNCHANGED else take)(key, new, old, timestamp)

        return take_changed

    def _inputs_of(self, operator: Operator) -> Sequence[Callable[..., Done]]:
        inputs = self._inputs.get(operator)
        if inputs is None:
            inputs = operator.bind(self.context, self.forward(operator))
            self._inputs[operator] = inputs
        return inputs

    def taker(self, topic: str) -> Callable[..., Done]:
        """What takes the records of a topic."""
        takers: list[Callable[..., Done]] = []
        for source in self._pipeline.sources:
            if any(read.reads(topic) for read in source.topics):
                takers += self._inputs_of(source)
        return fan_out(takers)


def _keyed(take: Callable[..., Done], context: Context) -> Callable[..., Done]:
    """The same for records with a key; the others are dropped."""

    def take_keyed(key: Any, value: Any, timestamp: int) -> Done:
        if key is None:
            context.counters["null_keys_dropped"] += 1
            return None
        return take(key, value, timestamp)

    return take_keyed


def bound(pipeline: Pipeline, scope: Scope, clock: Clock) -> Binding:
    """The pipeline in the shard of an event that comes from no record; made once for each callback and run of the shard."""
    bindings: dict[Any, Any] = scope.shard.bindings
    key = pipeline, scope.agent  # as it is connected with the tables that it uses
    binding: Binding | None = bindings.get(key)
    if binding is None:
        binding = bindings[key] = Binding(pipeline, scope, clock)
    binding.context.scope = scope
    return binding


def pipeline_agent(pipeline: Pipeline, clock: Callable[[], Clock]) -> Agent[Any, Any]:
    """The agent that runs a pipeline."""

    async def run(stream: Stream[Any]) -> None:
        binding: Binding | None = None
        takers: dict[str, Callable[..., Done]] = {}
        seen: Scope | None = None
        tp: TopicPartition | None = None
        async for value in stream:
            scope = stream.scope
            if scope is not seen:
                if binding is None:
                    binding = Binding(pipeline, scope, clock())
                binding.context.scope = seen = scope
            if scope.tp is not tp:
                tp = scope.tp
                topic = tp.topic  # type: ignore[union-attr]
                if topic not in takers:  # patterns may match further ones
                    decoders, takers[topic] = stream.key_decoders, binding.taker(topic)  # type: ignore[union-attr]
                take, decode = takers[topic], decoders[topic]
            key: Any = scope.record.key  # type: ignore[union-attr]
            done = take(None if key is None else decode(key), value, scope.timestamp)
            if done is not None:
                await done

    run.__doc__ = "Runs " + ", ".join(
        f"{operator.kind} {operator.name}" for operator in pipeline.operators if operator.parents
    )
    return Agent(
        run,
        name=pipeline.name,
        sources=[AgentSource(pipeline.topics)],
        topic=None,
        sinks=pipeline.sinks,
        concurrency=pipeline.concurrency,
        internal=True,
    )
