"""A topic that is read as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.streams._operator import Context, Done, Operator
from millstream.tables import MISSING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millstream.agents import Topic

__all__ = ["TableSource"]


class TableSource(Operator):
    """The changes that a topic's records make to the table ``name``. Records without a key are dropped."""

    kind = "table"
    changes = True

    def __init__(self, topic: Topic[Any, Any], *, name: str, value_type: Any) -> None:
        super().__init__(name=name)
        self._topic = topic
        self.key_type = topic.key_type
        self.value_type = value_type
        self.codec = topic.value_codec
        self.stores.append(name)

    @property
    def topics(self) -> tuple[Topic[Any, Any], ...]:
        return (self._topic,)

    def bind(self, context: Context, forward: Callable[..., Done]) -> Sequence[Callable[..., Done]]:
        part = context.parts[self.name]
        counters = context.counters

        def take(key: Any, value: Any, timestamp: int) -> Done:
            if key is None:
                counters["null_keys_dropped"] += 1
                return None
            before = part.replace(key, value, timestamp, context.scope)
            return forward(key, value, None if before is None else before[1], timestamp)

        return [take]

    def getter(self, context: Context) -> Callable[[Any], tuple[Any, int] | None]:
        part = context.parts[self.name]

        def get(key: Any) -> tuple[Any, int] | None:
            stored = part.get(key, context.scope)
            return None if stored is MISSING else (stored[1], stored[0])

        return get
