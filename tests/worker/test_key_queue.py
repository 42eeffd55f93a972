"""Records that wait for an instance: keys in progress, their order, gaps, and what has not begun."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from millstream.agents import Run
from millstream.records import TopicPartition
from millstream.worker._key_queue import KeyQueue, Waiting

TP, OTHER = TopicPartition("t", 0), TopicPartition("u", 0)


class Record(NamedTuple):
    offset: int
    key: bytes | None
    timestamp: int = 0
    value: bytes | None = b""
    headers: Any = ()


def run_of(tp: TopicPartition, *records: Record) -> Run:
    source: Any = None
    return Run(tp, source, iter(records), start=records[0].offset)


def queue() -> KeyQueue:
    return KeyQueue(lambda run, record: record.key)


def offsets_of(*taken: Waiting | None) -> list[int | None]:
    return [None if waiting is None else waiting.record.offset for waiting in taken]


def test_one_at_a_time_for_each_key() -> None:
    """Those of a key in progress wait, in order, and others pass them; records without a key wait for nobody."""
    waiting = queue()
    waiting.add(
        run_of(TP, *(Record(n, key) for n, key in enumerate([b"a", b"a", b"b", b"a", None, None])))
    )
    taken = [waiting.take() for _ in range(5)]
    assert offsets_of(*taken) == [0, 2, 4, 5, None]
    assert len(waiting) == 2
    assert waiting.first_offset(TP) == 1
    waiting.finished(b"a")
    assert offsets_of(waiting.take(), waiting.take()) == [1, None]
    waiting.finished(b"a")
    assert offsets_of(waiting.take()) == [3]
    waiting.finished(b"a")
    waiting.add(run_of(TP, Record(6, b"a")))
    assert offsets_of(waiting.take(), waiting.take()) == [6, None]
    assert len(waiting) == 0
    assert waiting.first_offset(TP) is None


def test_gaps() -> None:
    """A gap is what has waited for its key while others behind it have begun, and nothing else."""
    waiting = queue()
    waiting.add(run_of(TP, *(Record(n, key) for n, key in enumerate([b"a", b"a", b"b", b"b"]))))
    assert offsets_of(waiting.take(), waiting.take(), waiting.take()) == [0, 2, None]
    assert waiting.take_gap() is None
    waiting.finished(b"a")
    waiting.finished(b"b")
    assert offsets_of(waiting.take_gap(), waiting.take_gap()) == [1, None]  # 3 is behind everything
    assert offsets_of(waiting.take()) == [3]


def test_put_back() -> None:
    """What was given out and has not begun is the next one, and its key stays in progress."""
    waiting = queue()
    waiting.add(run_of(TP, Record(0, b"a"), Record(1, b"a"), Record(2, b"b")))
    first = waiting.take()
    assert first is not None
    waiting.put_back(first)
    assert (len(waiting), waiting.first_offset(TP)) == (3, 0)
    assert offsets_of(waiting.take(), waiting.take(), waiting.take()) == [0, 2, None]


@given(
    keys=st.lists(st.sampled_from([b"a", b"b", b"c", None]), max_size=40),
    instances=st.integers(1, 5),
    choices=st.lists(st.integers(0, 9), max_size=60),
)
def test_order_is_kept(keys: list[bytes | None], instances: int, choices: list[int]) -> None:
    """Whatever ends when: each record comes once, those of a key in order and never two at a time."""
    waiting = queue()
    for n, key in enumerate(keys):
        waiting.add(run_of(TP if n % 2 else OTHER, Record(n, key)))
    busy: list[Waiting] = []
    begun: list[Record] = []
    left = deque(choices)
    while True:
        while len(busy) < instances and (taken := waiting.take()) is not None:
            assert taken.key is None or taken.key not in [other.key for other in busy]
            busy.append(taken)
            begun.append(taken.record)  # type: ignore[arg-type]
        here = [n for n in range(len(keys)) if n not in [record.offset for record in begun]]
        for tp, odd in ((TP, 1), (OTHER, 0)):
            assert waiting.first_offset(tp) == min((n for n in here if n % 2 == odd), default=None)
        if not busy:
            break
        waiting.finished(busy.pop((left.popleft() if left else 0) % len(busy)).key)
    assert len(waiting) == 0
    for key in {*keys} - {None}:
        of_key = [record.offset for record in begun if record.key == key]
        assert of_key == sorted(of_key)
    assert sorted(record.offset for record in begun) == list(range(len(keys)))
