"""``on_change``: telling a function what an epoch has changed in a table."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from millstream.app._declaration import DeclaredTable
    from millstream.worker import ShardCut

__all__ = ["change_listeners"]

logger = logging.getLogger("millstream.app")


def change_listeners(
    tables: Iterable[DeclaredTable[Any, Any]],
) -> list[Callable[[ShardCut], None]]:
    """A listener for each table that has ``on_change``: it is called with committed changes."""
    return [_listener(table) for table in tables if table.on_change is not None]


def _listener(table: DeclaredTable[Any, Any]) -> Callable[[ShardCut], None]:
    info = table.info(1, [])
    function = table.on_change
    assert function is not None

    def listen(cut: ShardCut) -> None:
        for slice_ in cut.changes.get(table.name, ()):
            for state_key, data in slice_.items():
                parsed = info.parse_state_key(state_key)
                if parsed is None:
                    continue
                key: Any = info.layout.decode(parsed[0])
                shown = key if parsed[1] is None else (key, parsed[1])
                try:
                    function(shown, None if data is None else info.load(data))
                except Exception:
                    # what is committed is committed: there is nothing left to undo
                    logger.exception("on_change of table %r, key %r", table.name, shown)

    return listen
