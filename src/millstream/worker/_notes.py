"""What a shard remembers besides its tables: when its timers ran last.

Notes are entries of a table part like others, with a changelog of their own: one for each number of shards, compacted.
So a note is committed with the event that makes it, and is where the shard is. No table of a program has the part's
name, and nobody can ask for it.

=================  =============================================================
``timer:NAME``     the moment (ms since the epoch) for which the timer ran last
=================  =============================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from millstream.serialization import key_layout
from millstream.tables import MISSING, TablePart

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.context import Scope
    from millstream.state.base import TableStore
    from millstream.worker._shard import TableSpec

__all__ = ["NOTES", "NotesPart", "encode_note", "notes_table", "notes_topic", "timer_note"]

NOTES = ":notes"
"""The part's name in a shard."""

_layout = key_layout(str)


def notes_topic(app: str, count: int) -> str:
    """The changelog of the notes of an app's ``count`` shards."""
    return f"{app}-notes-of-{count}-changelog"


def timer_note(name: str) -> str:
    """Where the last moment of a timer is."""
    return f"timer:{name}"


def notes_table(app: str, count: int) -> TableSpec:
    """The notes of an app's ``count`` shards, as a shard needs them."""
    from millstream.worker._shard import TableSpec

    return TableSpec(
        name=NOTES,
        partitions=count,
        changelog=notes_topic(app, count),
        make=NotesPart,
        place=str.encode,
        partitioner=_anywhere,
    )


class NotesPart(TablePart):
    """The notes of one shard: from text to what JSON can hold."""

    __slots__ = ()

    def __init__(self, store: TableStore, check: Callable[[Any], None]) -> None:
        """
        Args:
            check: not asked: every shard has its own notes, whatever their keys are.
        """
        super().__init__(
            NOTES,
            store=store,
            encode_key=_layout.encode,
            decode_key=_layout.decode,
            dumps=msgspec.json.encode,
            loads=msgspec.json.decode,
            mutable=False,
            check=_anything,
            type_name="note",
        )

    def read(self, name: str) -> Any:
        """A note, committed or not; None where there is none."""
        value = self.dirty.get(name, MISSING)
        if value is MISSING:
            value = self.load(name)
        return value if isinstance(value, (int, str)) else None

    def write(self, name: str, value: int | str, scope: Scope) -> None:
        """Make a note, as part of an event."""
        self.set(name, value, scope)

    def is_committed(self, name: str, value: int | str) -> bool:
        """Whether the note is there for good."""
        return self.store.get(_layout.encode(name)) == self.dumps(value)


def encode_note(name: str, value: int | str) -> tuple[bytes, bytes]:
    """Key and value of a note as its changelog has them, for those who write it without a shard."""
    return _layout.encode(name), msgspec.json.encode(value)


def _anywhere(key: bytes, count: int) -> int:
    """Every shard has its own notes; nobody asks for the place of one."""
    return 0


def _anything(key: Any) -> None:
    return None
