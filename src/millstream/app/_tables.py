"""The tables of an app, by name."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from millstream.agents import TopicGroup
from millstream.app._declaration import DeclaredTable
from millstream.app._topics import check_name, check_partitions
from millstream.clock import duration_ms
from millstream.errors import ConfigurationError, TopologyError
from millstream.streams import VersionedPart, VersionedSource, VersionedTable
from millstream.tables import SetTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.agents import Topic
    from millstream.app._app import App
    from millstream.clock import Duration
    from millstream.topology import AgentNode, TableNode

__all__ = ["Tables"]


class Tables(dict[str, DeclaredTable[Any, Any]]):
    """What `App.table`, `App.global_table` and `App.set_table` were given; they give the programs' objects."""

    def __init__(self, app: App) -> None:
        super().__init__()
        self._app = app

    def declare(
        self,
        name: str,
        *,
        key: Any,
        value: Any,
        default: Any,
        topic: Topic[Any, Any] | None,
        like: Topic[Any, Any] | None,
        partitions: int | None,
        ttl: Duration | None,
        versioned: Duration | None,
        codec: str,
        on_change: Callable[..., Any] | None,
        upgrade: Callable[[Any], Any] | None,
        on_error: Any,
        partitioner: str | None,
        help: str,
    ) -> Any:
        """Make a table; see `App.table`."""
        if isinstance(topic, TopicGroup):
            raise TopologyError(
                f"table {name!r} is read from {topic.name!r}, which stands for several topics: a table is"
                f" read from one. Read them with an agent that writes the table"
            )
        if topic is not None:
            self._app.topics.check_own(topic, f"table {name!r}")
            key = topic.key_type if key is None else key
            value = topic.value_type if value is None else value
        if versioned is not None:
            return self._declare_versioned(
                name,
                key=str if key is None else key,
                value=Any if value is None else value,
                default=default,
                topic=topic,
                like=like,
                partitions=partitions,
                ttl=ttl,
                history=versioned,
                codec=codec,
                on_change=on_change,
                upgrade=upgrade,
                partitioner=partitioner,
                help=help,
            )
        return self.add(
            DeclaredTable(
                self._app,
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

    def _declare_versioned(
        self,
        name: str,
        *,
        topic: Topic[Any, Any] | None,
        like: Topic[Any, Any] | None,
        ttl: Duration | None,
        history: Duration,
        codec: str,
        **options: Any,
    ) -> Any:
        """Make a table with history. One that is read from a topic keeps it in a changelog of its own."""
        history_ms = duration_ms(history, what=f"table {name!r}: versioned")
        if history_ms < 1:
            raise ConfigurationError(f"table {name!r}: versioned={history!r} is not above 0")
        if ttl is not None:
            raise TopologyError(
                f"table {name!r}: versioned= keeps the latest value for ever, and ttl= forgets it: give one"
                f" of them"
            )
        declared: DeclaredTable[Any, Any] = DeclaredTable(
            self._app,
            name,
            like=like if topic is None else topic,
            codec=codec if topic is None else topic.value_codec,
            key_codec=None if topic is None else topic.key_codec,
            versioned_ms=history_ms,
            table_class=VersionedTable,
            make_part=functools.partial(VersionedPart, history_ms=history_ms),
            stamped=True,
            **options,
        )
        if topic is not None:
            source = VersionedSource(
                topic, name=name, value_type=declared.value_type, history_ms=history_ms
            )
            source.codec = declared.codec  # which converts old values further on as well
            declared.operator = self._app.streams.plan.add(source)
            declared.table.read_only = True
        return self.add(declared)

    def declare_global(
        self,
        name: str,
        *,
        topic: Topic[Any, Any] | None,
        key: Any,
        value: Any,
        default: Any,
        help: str,
    ) -> Any:
        """Make a table that is everywhere; see `App.global_table`."""
        if topic is None:
            topic = self._app.topics.declare(
                f"{self._app.id}-{name}-global",
                key=str if key is None else key,
                value=Any if value is None else value,
                compacted=True,
                internal=True,
            )
        self._app.topics.check_own(topic, f"table {name!r}")
        return self.add(
            DeclaredTable(
                self._app,
                name,
                key=topic.key_type if key is None else key,
                value=topic.value_type if value is None else value,
                default=default,
                topic=topic,
                everywhere=True,
                help=help,
            )
        )

    def declare_sets(
        self,
        name: str,
        *,
        key: Any,
        value: Any,
        partitions: int | None,
        like: Topic[Any, Any] | None,
        help: str,
    ) -> Any:
        """Make a table of sets; see `App.set_table`."""
        return self.add(
            DeclaredTable(
                self._app,
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

    def add(self, declared: DeclaredTable[Any, Any]) -> Any:
        """Take a table that is made, and give the program's object.

        Raises:
            TopologyError: there is one of that name.
        """
        name = check_name(declared.name, "table")
        check_partitions(declared.partitions, f"table {name!r}")
        if name in self:
            raise TopologyError(
                f"table {name!r} is declared twice: keep the first object and use it everywhere"
            )
        for topic in (declared.topic, declared.like):
            if topic is not None:
                self._app.topics.check_own(topic, f"table {name!r}")
        self[name] = declared
        return declared.table

    def nodes(self) -> dict[str, TableNode]:
        """The tables as data."""
        return {table.name: table.node() for table in self.values()}

    def reader_nodes(self) -> dict[str, AgentNode]:
        """The agents that read tables from topics, as data."""
        nodes = [table.reader_node() for table in self.values()]
        return {node.name: node for node in nodes if node is not None}
