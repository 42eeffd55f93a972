"""Records on their way into the log, packed as they come."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.record._crecords.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from millstream.records import OutgoingRecord
from millstream.transports.batch import (
    Producer,
    RecordPack,
    headers_of,
    iterate_batches,
    iterate_records,
    rebase,
    sign,
)

RECORDS = st.lists(
    st.builds(
        OutgoingRecord,
        st.integers(0, 2**42),
        st.none() | st.binary(max_size=9),
        st.none() | st.binary(max_size=60),
        st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=4)), max_size=2),
    ),
    max_size=40,
)
BYTES_MAX = st.integers(1, 400)


def read(pack: RecordPack) -> list[OutgoingRecord]:
    """What the log would hold, as a reader finds it."""
    found, at = [], 0
    for batch, count in pack.batches():
        rebase(batch, at)
        records = list(iterate_records(bytes(batch), where="a pack"))
        assert [record.offset for record in records] == list(range(at, at + count))
        found += [OutgoingRecord(r.timestamp, r.key, r.value, list(r.headers)) for r in records]
        at += count
    return found


@given(RECORDS, BYTES_MAX)
def test_what_is_packed_is_read(records: list[OutgoingRecord], bytes_max: int) -> None:
    pack = RecordPack(records, bytes_max=bytes_max)
    assert len(pack) == len(records)
    size = pack.size
    assert read(pack) == records
    assert sum(len(batch) for batch, _ in pack.batches()) == pack.size
    assert size <= pack.size
    for batch, count in pack.batches():
        assert len(batch) <= bytes_max or count == 1


@given(RECORDS, RECORDS, RECORDS, BYTES_MAX)
def test_one_after_the_other(
    one: list[OutgoingRecord],
    two: list[OutgoingRecord],
    three: list[OutgoingRecord],
    bytes_max: int,
) -> None:
    pack, later = RecordPack(one, bytes_max=bytes_max), RecordPack(two, bytes_max=bytes_max)
    pack.extend(later)
    for record in three:
        pack.append(record)
    assert (len(pack), read(pack)) == (len(one + two + three), one + two + three)
    assert (len(later), read(later)) == (len(two), two)


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_record_that_cannot_be_encoded(part: int) -> None:
    """It is not there, whatever is wrong with it; what came before it is, and what comes later."""
    good = [OutgoingRecord(at, b"key", b"value", [("name", b"text")]) for at in range(4)]
    bad: Any = [9, b"key", b"value", [("name", b"text")]]
    bad[part] = 5
    pack = RecordPack(good[:1])
    with pytest.raises(TypeError):
        pack.fill([*good[1:3], bad])
    pack.append(good[3])
    assert (len(pack), read(pack)) == (4, good)


@given(RECORDS.filter(bool), st.integers(0, 2**60), st.integers(0, 99), st.booleans())
def test_signed(
    records: list[OutgoingRecord], number: int, epoch: int, transactional: bool
) -> None:
    """It is what aiokafka makes for that producer from the start, also where it was signed before."""
    ((batch, _),) = RecordPack(records).batches()
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=transactional,
        producer_id=number,
        producer_epoch=epoch,
        base_sequence=7,
        batch_size=1 << 20,
    )
    for offset, record in enumerate(records):
        builder.append(offset, *record)
    sign(batch, Producer(5, 5, 5, not transactional))
    sign(batch, Producer(number, epoch, 7, transactional))
    assert batch == builder.build()
    list(iterate_batches(bytes(batch), where="a pack"))  # compares the checksum
    assert headers_of(batch)[0].records == len(records)
