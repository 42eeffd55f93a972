"""What streams need of the app in which they are declared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millstream.agents import Topic
    from millstream.clock import Clock, Duration
    from millstream.streams._operator import Operator
    from millstream.streams._plan import Plan
    from millstream.tables import TablePart
    from millstream.windows import AnyWindows

__all__ = ["Compat", "StreamHome"]

Compat = Literal["kafka-streams"] | None


class StreamHome(Protocol):
    """Where streams put the topics, tables and operators that they need: the app."""

    id: str

    @property
    def plan(self) -> Plan: ...

    @property
    def compat(self) -> Compat:
        """Whether Kafka Streams' defects are wanted as well."""
        ...

    @property
    def clock(self) -> Clock: ...

    def check_own(self, topic: Any, user: str) -> None:
        """Refuse what is no topic of this app."""
        ...

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
        """Declare the topic ``{id}-{name}-repartition``; what was processed leaves it.

        Args:
            of: operators whose results go through it.
            like: topics whose partitioner it has.
            beside: a topic with which it is co-partitioned: equal keys are in the same shard.
        """
        ...

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
        """Declare a table that an operator writes, and agents only read.

        Args:
            operator: whose changes are the table's, for `Table.changes` and its like.
            make_part: makes the shards' parts, where no part of the usual kinds will do; takes what
                `TablePart` takes.
            codec: for values, where their type does not say it.
            shown: makes what programs see of what is kept.
            stamped: whether each value is kept with a timestamp, as ``(timestamp, value)``.
            checked: whether a key has to belong to the shard that uses it.
            remedy: says of a value that is not of the type what the program should do.
            upgrade: turns stored values of an older form into new ones, where ``codec`` does not.
            mend: says what to do about stored values that do not decode.
            clocks: of windows, tables whose time decides what expires, the slowest one's; its own where
                there are none.

        Returns:
            The table, for the program to read.
        """
        ...

    def final_hook(self, table: str, function: Callable[..., Any]) -> None:
        """Have ``async function(key, window, value)`` called once for each final window of a table."""
        ...

    def hand_on(self, table: str, operator: Operator) -> None:
        """Have an operator's changes stand for a table's, for all who use these."""
        ...

    def due_hook(self, table: str, function: Callable[..., Any]) -> None:
        """Have ``async function(key, window, value)`` called when something in a table's parts is due.

        Parts that are not windowed tables' have ``due`` and ``close`` of their own for it.
        """
        ...

    def shard_timer(self, interval: Duration, table: str, function: Callable[..., Any]) -> None:
        """Have ``async function()`` called in an event of each shard of a table, every ``interval`` of the wall clock."""
        ...
