"""What a lane holds of one partition: positions come to the end, whatever lies between and behind the records."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.agents import Source
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import Fetched
from millstream.transports.batch import RecordPack, rebase
from millstream.worker._ahead import ReadAhead
from millstream.worker._lane import PIECE_RECORDS, Inbox

TP = TopicPartition("t", 0)


def batch_of(*times: int) -> bytes:
    """A batch at offset 0."""
    records = [OutgoingRecord(time, b"k", b"v", []) for time in times]
    return bytes(RecordPack(records).batches()[0][0])


def make_inbox() -> Inbox:
    """One that is empty, of a partition that begins at 0."""
    lane: Any = SimpleNamespace(
        subtopology=SimpleNamespace(epoch_bytes=0),
        time_reached=lambda time: None,
        ahead_of=ReadAhead({}),
    )
    source = Source(topic="t", decode=bytes, decode_key=bytes, time_of=None, type_name="bytes")
    return Inbox(source, 0, 0, lane)


@pytest.mark.parametrize("look", ["take", "peek"])
@pytest.mark.parametrize(
    "brought",
    [
        # the end of a transaction, or records that were never committed, behind the records
        [Fetched(TP, batch_of(1, 2), 5, 5)],
        # the same, fetched while the records wait in the inbox
        [Fetched(TP, batch_of(1, 2), 2, 2), Fetched(TP, b"", 5, 5)],
        # nothing else
        [Fetched(TP, b"", 5, 5)],
    ],
)
def test_the_end_is_reached(brought: list[Fetched], look: str) -> None:
    """An inbox that has nothing more stands at the end: lanes with several inputs wait for it otherwise."""
    inbox = make_inbox()
    for fetched in brought:
        inbox.add(fetched)
    if look == "take":
        while found := inbox.take(1):
            list(found[1])
    else:
        while inbox.peek() is not None:
            inbox.take_until(0, 1)
    assert inbox.position == inbox.end == 5
    assert inbox.is_empty()
    assert inbox.size == 0


def test_records_are_read_as_they_are_asked_for() -> None:
    """What is not asked for yet is not read, is not passed by the position, and comes in its order."""
    inbox = make_inbox()
    count = 3 * PIECE_RECORDS + 10
    inbox.add(Fetched(TP, batch_of(*range(count)), count + 5, count + 5))
    found = inbox.take(2 * PIECE_RECORDS + 1)
    assert found is not None
    first, records = found
    assert [record.offset for record in first] == list(range(PIECE_RECORDS))
    for offset in range(2 * PIECE_RECORDS + 1):
        assert next(records).offset == offset
        assert offset < inbox.position <= offset + PIECE_RECORDS
    assert next(records, None) is None
    assert inbox.position == 2 * PIECE_RECORDS + 1
    found = inbox.take(count)
    assert found is not None
    assert [record.offset for record in found[1]] == list(range(2 * PIECE_RECORDS + 1, count))
    assert inbox.take(1) is None
    assert inbox.position == count + 5


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=30),
)
def test_records_up_to_a_time(batches: list[list[int]], asked: list[tuple[int, int]]) -> None:
    """The oldest one in any case, and those behind it up to the first that is later, over the ends of batches."""
    inbox = make_inbox()
    times: list[int] = []
    for batch in batches:
        data = bytearray(batch_of(*batch))
        rebase(data, len(times))
        times += batch
        inbox.add(Fetched(TP, bytes(data), len(times), len(times)))
    at = 0
    for bound, count in asked:
        if inbox.peek() is None:
            break
        taken = inbox.take_until(bound, count)
        assert [(record.offset, record.timestamp) for record in taken] == list(
            enumerate(times[at : at + len(taken)], at)
        )
        assert all(time <= bound for time in times[at + 1 : at + len(taken)])
        at += len(taken)
        assert inbox.position == at
        assert len(taken) == count or at == len(times) or times[at] > bound
    assert (inbox.peek() is None) == (at == len(times))
