"""The part of a windowed table that suits its windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.tables._aligned_part import AlignedPart
from millstream.tables._keyed_part import KeyedPart, index_key
from millstream.tables._windowed_base import CLOSED_KEY, TIME_KEY, Due, WindowedPart
from millstream.windows import Session, Sliding

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.clock import Clock
    from millstream.serialization.keys import KeyLayout
    from millstream.state.base import TableStore
    from millstream.windows import AnyWindows

__all__ = [
    "CLOSED_KEY",
    "TIME_KEY",
    "AlignedPart",
    "Due",
    "KeyedPart",
    "WindowedPart",
    "index_key",
    "index_key_of",
    "windowed_part",
]


def index_key_of(windows: AnyWindows) -> Callable[[bytes], bytes | None] | None:
    """What derives a store's index entries from its keys; None for windows that need none."""
    return index_key if isinstance(windows, Sliding | Session) else None


def windowed_part(
    name: str,
    *,
    windows: AnyWindows,
    store: TableStore,
    layout: KeyLayout[Any],
    dumps: Callable[[Any], bytes],
    loads: Callable[[bytes], Any],
    mutable: bool,
    check: Callable[[Any], None],
    clock: Clock,
    merge: Callable[[Any, Any], Any] | None = None,
    closes: bool = False,
    stamped: bool = False,
    type_name: str = "value",
    cache_size: int = 32_768,
) -> AlignedPart | KeyedPart:
    """A windowed table in one shard.

    Args:
        layout: of the program's keys.
        check: for a key of the program.
        merge: `WindowedTable.merge`.
        closes: whether the table has functions to call for final windows.
        stamped: whether values are kept with the newest timestamp that contributed; sliding windows' are
            in any case, and a session ends at its newest.
    """
    common: dict[str, Any] = {
        "store": store,
        "encode_key": layout.encode,
        "decode_key": layout.decode,
        "dumps": dumps,
        "loads": loads,
        "mutable": mutable,
        "check": check,
        "clock": clock,
        "closes": closes,
        "type_name": type_name,
        "cache_size": cache_size,
    }
    if isinstance(windows, Sliding | Session):
        return KeyedPart(name, windows=windows, merge=merge, **common)
    return AlignedPart(name, windows=windows, stamped=stamped, **common)
