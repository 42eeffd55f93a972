"""The graph of a program's operators, and the pipelines that it falls into.

A pipeline is what has to run together in a shard: operators that are connected by calls, or that use one table.
It is run by one agent, which reads all of its topics. Connections through a topic are between pipelines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.errors import TopologyError
from millstream.streams._stateless import SourceOperator, ToTopic
from millstream.topology import PIPELINE, StepNode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from millstream.agents import Topic
    from millstream.streams._operator import Operator

__all__ = ["Pipeline", "Plan"]


class Pipeline:
    """Connected operators, parents before children."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        self.operators = tuple(operators)
        self.children: dict[Operator, list[tuple[Operator, int]]] = {
            operator: [] for operator in operators
        }
        """Whom an operator hands on to, and as which of their parents."""
        for operator in operators:
            for port, parent in enumerate(operator.parents):
                self.children[parent].append((operator, port))
        topics: dict[str, Topic[Any, Any]] = {}
        for operator in self.sources:
            topics.update((topic.name, topic) for topic in operator.topics)
        self.topics = tuple(topics[name] for name in sorted(topics))
        self.keyed: set[tuple[Operator, Operator, int]] = set()
        """Connections on which records without a key are dropped: by operator, whom it hands on to, as which parent."""
        for source in self.sources:
            self._lead_keyless(source)
        for operator in operators:
            operator.pipeline = self
        concurrency = max(operator.concurrency for operator in operators)
        self.concurrency = 1 if any(operator.holds_back for operator in operators) else concurrency

    def _lead_keyless(self, source: Operator) -> None:
        """See whether records without a key move to a source, and lead them only to those who take them."""
        (*_, topic) = source.topics
        if not isinstance(source, SourceOperator) or not topic.comes_from:
            return
        topic.takes_keyless = any(self._take_keyless(*one) for one in self.children[source])
        waiting: list[Operator] = [source] if topic.takes_keyless else []
        while waiting:
            operator = waiting.pop()
            for child, port in self.children[operator]:
                if not self._take_keyless(child, port):
                    self.keyed.add((operator, child, port))
                elif child.keeps_keys:
                    waiting.append(child)

    def _take_keyless(self, operator: Operator, port: int) -> bool:
        if operator.keeps_keys:
            return any(self._take_keyless(*one) for one in self.children[operator])
        return operator.takes_keyless(port)

    @property
    def sources(self) -> list[Operator]:
        """Operators without parents: they read topics."""
        return [operator for operator in self.operators if not operator.parents]

    @property
    def name(self) -> str:
        """Named after its topics, so that it is the same whatever else the program declares."""
        return PIPELINE + "+".join(topic.name for topic in self.topics)

    @property
    def sinks(self) -> list[str]:
        """Topics that it sends to, as far as they are known."""
        return sorted({sink for operator in self.operators for sink in operator.sinks})

    def steps(self) -> tuple[StepNode, ...]:
        """The operators as data."""
        number = {operator: n for n, operator in enumerate(self.operators, start=1)}
        return tuple(
            StepNode(
                kind=operator.kind,
                name=operator.name,
                after=tuple(number[parent] for parent in operator.parents),
                topics=()
                if operator.parents
                else tuple(name for topic in operator.topics for name in topic.names),
                reads=tuple(operator.reads),
                keeps=tuple(operator.stores),
                sinks=tuple(operator.sinks),
                chooses=isinstance(operator, ToTopic) and not operator.sinks,
            )
            for operator in self.operators
        )


class Plan:
    """All operators of an app, in the order of their declaration."""

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self._names: dict[str, Operator] = {}
        self._sources: dict[tuple[str, ...], SourceOperator] = {}
        self.moved: dict[tuple[Operator, str], SourceOperator] = {}
        """What reads the topics through which operators' records move to the shards of their keys."""
        self.rekeyed: dict[tuple[Operator, Any, str], Operator] = {}
        """What gives records another key, by operator, field or function, and name."""
        self.grouped: dict[tuple[Operator, Any, str], SourceOperator] = {}
        """What reads the topics through which tables' changes move to the shards of their groups, likewise."""
        self.version = 0
        """Counts declarations."""

    def add(self, operator: Operator) -> Operator:
        """Take an operator in.

        Raises:
            TopologyError: another one that keeps something has the name.
        """
        if operator.stores:
            known = self._names.setdefault(operator.name, operator)
            if known is not operator:
                raise TopologyError(
                    f"two operators would be named {operator.name!r}, and what they keep goes by their"
                    f" names: give one of them another, for example name={operator.name + '-2'!r}"
                )
        self.operators.append(operator)
        self.version += 1
        return operator

    def source(self, topics: Sequence[Topic[Any, Any]], concurrency: int = 1) -> SourceOperator:
        """The operator that reads these topics; one for all who read the same, with the highest concurrency."""
        names = tuple(topic.name for topic in topics)
        if names not in self._sources:
            source = SourceOperator(topics, name="-".join(names))
            self._sources[names] = source
            self.add(source)
        source = self._sources[names]
        source.concurrency = max(source.concurrency, concurrency)
        return source

    def pipelines(self) -> list[Pipeline]:
        """What has to run, in pipelines: operators that nobody is affected by are left out."""
        live: set[Operator] = set()
        waiting = [operator for operator in self.operators if operator.acts]
        while waiting:
            operator = waiting.pop()
            if operator not in live:
                live.add(operator)
                waiting += operator.parents
        operators = [operator for operator in self.operators if operator in live]
        for operator in reversed(operators):  # children before parents
            for parent in operator.parents:
                if not parent.changes:
                    continue
                if operator.uses_time or (operator.passes_time and operator.time_wanted):
                    parent.time_wanted = True
                if operator.uses_old or (operator.changes and operator.old_wanted):
                    parent.old_wanted = True
                elif operator.uses_deleted:
                    if parent.tells_deleted:
                        parent.deleted_wanted = True
                    else:
                        parent.old_wanted = True
        return [Pipeline(part) for part in _components(operators)]


def _components(operators: Sequence[Operator]) -> list[list[Operator]]:
    leader: dict[Any, Any] = {}

    def find(one: Any) -> Any:
        leader.setdefault(one, one)
        while leader[one] != one:
            leader[one] = leader[leader[one]]
            one = leader[one]
        return one

    writers = {store: operator for operator in operators for store in operator.stores}
    read_topics: dict[str, Operator] = {}
    for operator in operators:
        near: Iterable[Operator] = operator.parents
        for other in near:
            leader[find(operator)] = find(other)
        for table in operator.reads:
            if table in writers:
                leader[find(operator)] = find(writers[table])
        if not operator.parents:
            for topic in operator.topics:
                other = read_topics.setdefault(topic.name, operator)
                leader[find(operator)] = find(other)
    parts: dict[Any, list[Operator]] = {}
    for operator in operators:
        parts.setdefault(find(operator), []).append(operator)
    return list(parts.values())
