"""What of fetched bytes is committed."""

from __future__ import annotations

import struct

import pytest
from crc32c import crc32c

from millstream.errors import ConfigurationError, LogDamagedError, TransportError
from millstream.records import OutgoingRecord
from millstream.transports.batch import Producer, RecordPack, iterate_records, rebase, sign
from millstream.transports.kafka._committed_data import committed_data

CONTROL = 0x20


def changed(batch: bytes, attributes: int) -> bytes:
    """The same batch with other attributes, and the right checksum."""
    found = bytearray(batch)
    found[21:23] = struct.pack(">H", attributes)
    found[17:21] = struct.pack(">I", crc32c(found[21:]))
    return bytes(found)


def batch(offset: int, count: int = 1, *, producer: int = -1, size: int = 1) -> bytes:
    """Records whose values are their offsets; of a transaction where there is a producer."""
    records = [
        OutgoingRecord(1_000, b"k" * size, b"%d" % (offset + number), []) for number in range(count)
    ]
    ((made, _),) = RecordPack(records).batches()
    sign(made, Producer(producer, 0, 0, producer >= 0))
    rebase(made, offset)
    return bytes(made)


def marker(offset: int, producer: int) -> bytes:
    """The end of a transaction."""
    return changed(batch(offset, producer=producer), CONTROL | 0x10)


def values(data: bytes) -> list[int]:
    """The offsets that are left."""
    return [int(record.value) for record in iterate_records(data, where="t/0")]


RANGES = [
    # batches as (offset, count, producer) or (offset, producer) for a marker; aborted; what is left
    ([(0, 2, -1), (2, 1, -1)], [], [0, 1, 2]),
    ([(0, 2, 7), (2, 7)], [], [0, 1]),  # a committed one, without its marker
    ([(0, 2, 7), (2, 7)], [(7, 0)], []),  # an aborted one
    ([(0, 1, 7), (1, 1, -1), (2, 1, 8), (3, 7), (4, 8)], [(7, 0)], [1, 2]),  # with others between
    ([(0, 1, 7), (1, 7), (2, 1, 7), (3, 7)], [(7, 0)], [2]),  # one of a producer, then another
    ([(0, 1, 7), (1, 7), (2, 1, 7), (3, 7)], [(7, 2)], [0]),
    ([(0, 1, 7), (1, 7), (2, 1, 7), (3, 7)], [(7, 2), (7, 0)], []),  # in no order
    ([(5, 1, 7), (6, 7)], [(7, 0)], []),  # begun before what was fetched
    ([(0, 1, 7), (1, 1, 7)], [(7, 1)], [0]),  # begins in the middle, ends later
    ([(0, 1, -1), (1, 1, 7)], [(7, 1)], [0]),
]


@pytest.mark.parametrize(("parts", "aborted", "left"), RANGES)
def test_aborted_ranges(
    parts: list[tuple[int, ...]], aborted: list[tuple[int, int]], left: list[int]
) -> None:
    """From an aborted transaction's first offset to its marker, its producer's batches are left out."""
    data = b"".join(
        marker(part[0], part[1]) if len(part) == 2 else batch(part[0], part[1], producer=part[2])
        for part in parts
    )
    found = committed_data(data, aborted, position=0, where="t/0")
    assert values(found.data) == left
    last = parts[-1]
    assert found.next_offset == last[0] + (1 if len(last) == 2 else last[1])


def test_nothing_is_copied_where_nothing_is_left_out() -> None:
    """The bytes are handed on as they are."""
    data = batch(0, 10) + batch(10, 5)
    assert committed_data(data, [], position=0, where="t/0").data is data


def test_a_batch_that_is_cut_off() -> None:
    """It is left out, wherever the cut is, and the position stays before it."""
    first, second = batch(0, 3), batch(3, 3)
    for end in range(len(first), len(first + second)):
        found = committed_data((first + second)[:end], [], position=0, where="t/0")
        assert (found.data, found.next_offset) == (first, 3)
    for end in range(len(first)):
        assert committed_data(first[:end], [], position=0, where="t/0").next_offset == 0


def test_a_position_within() -> None:
    """The batch that holds the position stays whole; those before it go."""
    data = batch(0, 3) + batch(3, 3)
    assert values(committed_data(data, [], position=4, where="t/0").data) == [3, 4, 5]
    assert values(committed_data(data, [], position=2, where="t/0").data) == [0, 1, 2, 3, 4, 5]
    assert committed_data(batch(0, 3), [], position=7, where="t/0")[:2] == (b"", 7)


def test_every_byte_is_checked() -> None:
    """A bit that is wrong is found, whichever batch it is in; the error names partition and offset."""
    first, second = batch(0), batch(1)
    for at in range(len(first) + 17, len(first + second)):
        data = bytearray(first + second)
        data[at] ^= 1
        with pytest.raises(LogDamagedError, match=r"t/0.*offset 1"):
            committed_data(bytes(data), [], position=0, where="t/0")


@pytest.mark.parametrize("magic", [0, 1])
def test_an_old_format(magic: int) -> None:
    """Messages from before Kafka 0.11 are refused, in words."""
    data = bytearray(batch(4))
    data[16] = magic
    with pytest.raises(TransportError, match=f"t/0.*format v{magic}.*0.11"):
        committed_data(bytes(data), [], position=4, where="t/0")


def test_a_compression_that_nobody_knows() -> None:
    """It is an error that names it."""
    with pytest.raises(ConfigurationError, match=r"t/0@4.*method 5"):
        committed_data(changed(batch(4), 5), [], position=0, where="t/0")
