"""A topic that is read as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.streams._operator import SOMETHING, Context, Done, Operator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from millstream.agents import Topic

__all__ = ["TableSource"]


class TableSource(Operator):
    """The changes that a topic's records make to the table ``name``. Records without a key are dropped."""

    kind = "table"
    changes = True
    tells_deleted = True

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
        old_wanted, deleted_wanted = self.old_wanted, self.deleted_wanted

        def take(key: Any, value: Any, timestamp: int) -> Done:
            if key is None:
                counters["null_keys_dropped"] += 1
                return None
            scope = context.scope
            old = None
            if old_wanted:
                pair = part.pair(key, scope)
                if pair is not None:
                    old = pair[0]
            elif value is None and deleted_wanted and part.contains(key, scope):
                old = SOMETHING
            data = None if value is None else scope.record.value  # type: ignore[union-attr]
            part.put(key, data, timestamp, scope)
            return forward(key, value, old, timestamp)

        return [take]

    def getter(self, context: Context) -> Callable[[Any], tuple[Any, int] | None]:
        pair = context.parts[self.name].pair

        def get(key: Any) -> tuple[Any, int] | None:
            found: tuple[Any, int] | None = pair(key, context.scope)
            return found

        return get
