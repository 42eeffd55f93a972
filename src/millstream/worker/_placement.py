"""Whether the records of an input are in the partitions where their keys belong.

Tables and operators keep what belongs to a key in the shard that the key's partition is of. Where another program
chose partitions in another way, one key's records would meet another key's shard, and no answer would be right. So the
first records of each partition are looked at before an agent gets them, and one of each run after that, at most one in
`FIRST_RECORDS`: a murmur2 costs about 1 us, and nearly every key is elsewhere when the ways differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from millstream.errors import PlacementError
from millstream.records import Position
from millstream.serialization import PARTITIONERS, any_partition

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from millstream.agents import Source
    from millstream.context import IncomingRecord
    from millstream.records import TopicPartition

__all__ = ["Placement"]

FIRST_RECORDS = 64
"""So many of each partition are looked at when a shard starts; after that at most one in so many."""


class Placement:
    """Looks at what one agent of a shard takes in.

    Args:
        count: how many partitions the inputs have.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._left: dict[TopicPartition, int] = {}
        """How many of the first ones are still to come; below 0, how many went by since one was looked at."""

    @staticmethod
    def looks_at(source: Source) -> bool:
        """Whether its records have to be where their keys belong; our own are, unless we were told otherwise."""
        place = source.partitioner
        return place is not None and place is not any_partition and not source.ours

    def look(self, tp: TopicPartition, source: Source, records: Sequence[IncomingRecord]) -> None:
        """See whether some records of a run are where they belong.

        Raises:
            PlacementError: one is not.
        """
        place = source.partitioner
        if place is None or not self.looks_at(source):
            return
        left = self._left.get(tp, FIRST_RECORDS)
        if left > 0:
            self._left[tp] = max(0, left - len(records))
        elif left - len(records) > -FIRST_RECORDS:
            self._left[tp] = left - len(records)
            return
        else:
            self._left[tp], left = 0, 1
        for record in records[:left]:
            # clients put records without a key, and librdkafka those with an empty one, where they like
            if record.key and place(record.key, self._count) != tp.partition:
                raise self._misplaced(tp, source, record, records[:FIRST_RECORDS])

    def _misplaced(
        self,
        tp: TopicPartition,
        source: Source,
        record: IncomingRecord,
        sample: Iterable[IncomingRecord],
    ) -> PlacementError:
        assert record.key is not None
        assert source.partitioner is not None
        keys = [one.key for one in sample if one.key]
        fits = [
            name
            for name, place in PARTITIONERS.items()
            if name != "any" and all(place(key, self._count) == tp.partition for key in keys)
        ]
        return PlacementError(
            record=str(Position(*tp, record.offset)),
            key=record.key,
            belongs=source.partitioner(record.key, self._count),
            fits=fits[0] if fits else None,
        )
