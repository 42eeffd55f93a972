"""Entries of tables that the next records will ask for, read from the store many at once.

Most programs look up the key of the record at hand, which the caches do not have where there are many keys. One look-up
of 64 keys costs the store far less than 64 of one key, so where an agent's table has had to ask its store, the keys of
the records to come are asked for before their turn. What is read waits beside the table, as the store has it: whoever asks
for another key finds all as it would be. Whether it is of use is seen by what was asked for.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from millstream.agents import Source
    from millstream.context import IncomingRecord
    from millstream.tables import TablePart

__all__ = ["ReadAhead"]

PIECE_RECORDS = 64
"""Records whose keys are looked up at once."""
MISSES = 64
"""So many look-ups of single entries are worth a try."""
TRIAL_RECORDS = 256
"""Records after which a look is taken at what it was good for."""
PAUSE_BATCHES_MIN, PAUSE_BATCHES_MAX = 16, 1_024
"""Batches before another try, after one and after several that were no good."""


class _Input:
    """What reading ahead does for one table with the records of one topic."""

    __slots__ = (
        "_missed",
        "_part",
        "_pause",
        "_pause_next",
        "_waiting",
        "asked",
        "is_on",
        "records",
        "used",
    )

    def __init__(self, part: TablePart) -> None:
        self._part = part
        self._missed = 0
        """How often the table had asked for one entry when a look was taken last."""
        self._pause = 0
        self._pause_next = PAUSE_BATCHES_MIN
        self._waiting: list[Any] = []
        """Entries of the last piece."""
        self.is_on = False
        self.records = self.asked = self.used = 0

    def is_due(self) -> bool:
        """Whether entries are read for the batch that begins."""
        if self._pause:
            self._pause -= 1
            self._missed = self._part.missed
        elif not self.is_on:
            if self._part.missed - self._missed >= MISSES:
                self.is_on = True
                self._begin_trial()
        elif self.records >= TRIAL_RECORDS:
            self._judge()
        return self.is_on

    def _judge(self) -> None:
        missed = self._part.missed - self._missed
        # nobody wants these, or most are not there, or what is wanted cannot be read ahead
        if self.used < self.asked / 2 or (not self.asked and missed >= MISSES):
            self.is_on = False
            self._pause = self._pause_next
            self._pause_next = min(2 * self._pause, PAUSE_BATCHES_MAX)
        else:
            self.is_on = self.asked > self.records / 8
            self._pause_next = PAUSE_BATCHES_MIN
        self._begin_trial()

    def _begin_trial(self) -> None:
        self._missed = self._part.missed
        self.records = self.asked = self.used = 0

    def read(self, count: int, keys: list[Any], timestamps: list[int]) -> None:
        """Read the entries of ``count`` records, as far as these have keys."""
        near = self._part.near
        for entry in self._waiting:
            if near.pop(entry, None) is None:
                self.used += 1
        self._waiting = []
        self.records += count
        with suppress(Exception):  # whoever asks for such an entry meets it again, and says it
            asked, self._waiting = self._part.read_ahead(keys, timestamps)
            self.asked += asked


class ReadAhead:
    """Reads ahead for one agent of a shard.

    Args:
        parts: the tables that it has used.
    """

    def __init__(self, parts: Mapping[str, TablePart]) -> None:
        self._parts = parts
        self._inputs: dict[tuple[str, str], _Input] = {}

    def batch(self, records: Iterator[IncomingRecord], source: Source) -> Iterator[IncomingRecord]:
        """The records of a batch, with what they will ask for read before."""
        due = []
        for name, part in self._parts.items():
            if part.missed:
                found = self._inputs.get((name, source.topic))
                if found is None:
                    found = self._inputs[name, source.topic] = _Input(part)
                if found.is_due():
                    due.append(found)
        return _read_before(records, source, due) if due else records


def _read_before(
    records: Iterator[IncomingRecord], source: Source, inputs: Iterable[_Input]
) -> Iterator[IncomingRecord]:
    decode = source.decode_key
    while piece := list(islice(records, PIECE_RECORDS)):
        keyed = [record for record in piece if record.key is not None]
        try:
            keys = [decode(record.key) for record in keyed]  # type: ignore[arg-type]
        except Exception:
            keyed, keys = [], []  # the agent's policy meets it when its turn comes
        timestamps = [record.timestamp for record in keyed]
        for one in inputs:
            one.read(len(piece), keys, timestamps)
        yield from piece
