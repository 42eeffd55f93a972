"""What a shard remembers besides its tables: when its timers ran last.

Notes are entries of a table part like others, with a changelog of their own: one for each number of shards, compacted.
A note lies beside what its event has sent until that event is cut, and comes into the part then: so it is committed with
the event that makes it, connects it with no other, and is where the shard is. No table of a program has the part's name,
and nobody can ask for it.

=======================  =======================================================================================
``timer:NAME``           the moment (ms since the epoch) for which the timer ran last
``schema:TABLE``         of a table that is read from a topic: with which type its values can be read
``passed:TABLE@OFFSET``  of such a table: a record that could not be read, and that a policy let pass, or a user;
                         the id of the topic. Replayed by bytes, it would be part of the table after a recovery
=======================  =======================================================================================
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from millstream.serialization import key_layout
from millstream.tables import TablePart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from millstream.state.base import TableStore
    from millstream.worker._specs import TableSpec

__all__ = [
    "NOTES",
    "NotesPart",
    "encode_note",
    "is_notes_topic",
    "notes_of",
    "notes_table",
    "notes_topic",
    "passed_note",
    "timer_note",
]

NOTES = ":notes"
"""The part's name in a shard."""

_layout = key_layout(str)


def notes_topic(app: str, count: int) -> str:
    """The changelog of the notes of an app's ``count`` shards."""
    return f"{app}-notes-of-{count}-changelog"


def notes_of(topic: str) -> str | None:
    """The app whose notes a topic is the changelog of, for any number of shards; None for other topics."""
    match = re.fullmatch(r"(.+)-notes-of-\d+-changelog", topic)
    return None if match is None else match[1]


def is_notes_topic(app: str, topic: str) -> bool:
    """Whether it is the changelog of an app's notes: in use, or left over."""
    return notes_of(topic) == app


def timer_note(name: str) -> str:
    """Where the last moment of a timer is."""
    return f"timer:{name}"


def passed_note(table: str, offset: int) -> str:
    """Where it stands that a record is no part of a table."""
    return f"passed:{table}@{offset}"


def notes_table(app: str, count: int) -> TableSpec:
    """The notes of an app's ``count`` shards, as a shard needs them."""
    from millstream.worker._specs import TableSpec

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
        """A note, committed or on its way; None where there is none."""
        key = _layout.encode(name)
        for some in (self.changed_system, self.committing_system):
            if key in some:
                data = some[key]
                break
        else:
            data = self.store.get(key)
        value = None if data is None else self.loads(data)
        return value if isinstance(value, (int, str)) else None

    def put(self, name: str, value: int | str | None) -> None:
        """Make a note with the next cut; None deletes it."""
        self.changed_system[_layout.encode(name)] = None if value is None else self.dumps(value)

    def withdraw(self, names: Iterable[str]) -> None:
        """Notes that were put, and shall not go with the next cut after all."""
        for name in names:
            self.changed_system.pop(_layout.encode(name), None)

    def passed(self, table: str, *, topic_id: str, start: int, end: int) -> set[int]:
        """Offsets of the records that are no part of a table; what is of no use any more is deleted.

        Args:
            start: where the partition begins.
            end: up to where it is read. Records behind that are read again, and then it may be otherwise.
        """
        first, after = _layout.prefix(f"passed:{table}@")
        found = set()
        for key, data in self.store.items(first, after):
            name = _layout.decode(key)
            offset = int(name.rpartition("@")[2])
            if start <= offset < end and self.loads(data) == topic_id:
                found.add(offset)
            else:
                self.put(name, None)
        return found

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
