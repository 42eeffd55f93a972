"""Which events an epoch takes: the finished prefix, and nothing that has seen unfinished work."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millstream.context import PreImage, Scope
from millstream.records import Headers, TopicPartition
from millstream.worker._cut import before_excluded, choose_excluded

TP = TopicPartition("orders", 0)
Source = tuple[str, TopicPartition]


class Record(NamedTuple):
    offset: int
    timestamp: int = 0
    key: bytes | None = None
    value: bytes | None = None
    headers: Headers = []  # noqa: RUF012  # nobody adds to it


def event(agent: str, offset: int | None, *, open: bool = False, after: Any = ()) -> Scope:
    """An event of an agent, or of a timer where it has no offset, that has seen the work of ``after``."""
    scope = Scope(shard=None, agent=agent, parts={}, subtopology=None, journaled=True)
    if offset is not None:
        scope.tp, scope.record = TP, Record(offset)
    scope.open = open
    scope.depends = set(after)
    return scope


def chosen(events: list[Scope], limits: dict[str, int]) -> tuple[list[int], dict[str, int]]:
    """The numbers of the events that stay out, and the positions that are left."""
    bounds = {(agent, TP): at for agent, at in limits.items()}
    excluded = choose_excluded(events, bounds)
    return (
        [i for i, one in enumerate(events) if one in excluded],
        {agent: at for (agent, _), at in bounds.items()},
    )


def test_cases() -> None:
    """Each row: events as (agent, offset, open, numbers of events it has seen), limits, what stays out."""
    rows: list[tuple[Any, dict[str, int], list[int], dict[str, int]]] = [
        # everything is finished
        ([("a", 0, False, []), ("a", 1, False, [])], {"a": 2}, [], {"a": 2}),
        # the last one is open
        ([("a", 0, False, []), ("a", 1, True, [])], {"a": 1}, [1], {"a": 1}),
        # the first one is open: the finished one behind it stays out as well
        ([("a", 0, True, []), ("a", 1, False, [])], {"a": 0}, [0, 1], {"a": 0}),
        # another agent is not concerned
        ([("a", 0, True, []), ("b", 0, False, [])], {"a": 0, "b": 1}, [0], {"a": 0, "b": 1}),
        # unless it has seen what the open event wrote
        ([("a", 0, True, []), ("b", 0, False, [0])], {"a": 0, "b": 1}, [0, 1], {"a": 0, "b": 0}),
        # and then everything behind it, whatever that has seen
        (
            [("a", 0, True, []), ("b", 4, False, [0]), ("b", 5, False, [])],
            {"a": 0, "b": 6},
            [0, 1, 2],
            {"a": 0, "b": 4},
        ),
        # what came before it goes
        (
            [("a", 0, True, []), ("b", 3, False, []), ("b", 4, False, [0])],
            {"a": 0, "b": 5},
            [0, 2],
            {"a": 0, "b": 4},
        ),
        # a chain over three agents
        (
            [("a", 0, True, []), ("b", 0, False, [0]), ("c", 0, False, [1])],
            {"a": 0, "b": 1, "c": 1},
            [0, 1, 2],
            {"a": 0, "b": 0, "c": 0},
        ),
        # an open timer keeps out who has seen its work
        ([("t", None, True, []), ("a", 0, False, [0])], {"a": 1}, [0, 1], {"a": 0}),
        # a finished timer that has seen open work stays out without any position
        ([("a", 0, True, []), ("t", None, False, [0])], {"a": 0}, [0, 1], {"a": 0}),
        # an event at or behind the limit stays out though it is closed: it is held in a batch
        ([("a", 0, False, []), ("a", 1, False, [])], {"a": 1}, [1], {"a": 1}),
        # two events that have seen each other's work: both or neither
        (
            [("a", 0, False, [1]), ("b", 0, True, [0])],
            {"a": 1, "b": 0},
            [0, 1],
            {"a": 0, "b": 0},
        ),
        ([("a", 0, False, [1]), ("b", 0, False, [0])], {"a": 1, "b": 1}, [], {"a": 1, "b": 1}),
        # nothing at all
        ([], {"a": 7}, [], {"a": 7}),
    ]
    for written, limits, excluded, left in rows:
        events = [event(agent, offset, open=is_open) for agent, offset, is_open, _ in written]
        for one, (_, _, _, seen) in zip(events, written, strict=True):
            one.depends = {events[i] for i in seen}
        assert chosen(events, limits) == (excluded, left), written


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Scope], dict[str, int]]:
    """Events of three agents and a timer, some of them open, each having seen some earlier ones."""
    events: list[Scope] = []
    offsets = dict.fromkeys("abc", 0)
    for _ in range(draw(st.integers(0, 9))):
        agent = draw(st.sampled_from("abct"))
        offset = offsets.get(agent)
        if offset is not None:
            offsets[agent] += draw(st.integers(1, 3))
        seen = draw(st.lists(st.sampled_from(events), max_size=2)) if events else []
        events.append(event(agent, offset, open=draw(st.booleans()), after=seen))
    limits = {}
    for agent, end in offsets.items():
        opened = [e.record.offset for e in events if e.agent == agent and e.open and e.record]
        limits[agent] = min([end, *opened])
    return events, limits


def is_clean(taken: set[Scope], events: list[Scope], limits: dict[str, int]) -> bool:
    """Whether an epoch may hold these events."""
    for one in taken:
        if one.open or not one.depends <= taken:
            return False
        if one.record is not None:
            if one.record.offset >= limits[one.agent]:
                return False
            for other in events:
                if other.agent == one.agent and other.record is not None:
                    before = other.record.offset < one.record.offset
                    if before and other not in taken:
                        return False
    return True


@given(histories())
def test_the_largest_clean_cut(history: tuple[list[Scope], dict[str, int]]) -> None:
    """What is taken is clean, and no clean cut is larger: against all subsets."""
    events, limits = history
    bounds: dict[Source, int] = {(agent, TP): at for agent, at in limits.items()}
    excluded = choose_excluded(events, bounds)
    taken = set(events) - excluded
    assert is_clean(taken, events, limits)
    larger = (
        set(subset)
        for size in range(len(taken) + 1, len(events) + 1)
        for subset in combinations(events, size)
    )
    assert not any(is_clean(subset, events, limits) for subset in larger)


@given(histories())
def test_the_position_of_a_cut(history: tuple[list[Scope], dict[str, int]]) -> None:
    """Each position is the first event that stays out, or the limit where none does."""
    events, limits = history
    bounds: dict[Source, int] = {(agent, TP): at for agent, at in limits.items()}
    excluded = choose_excluded(events, bounds)
    for agent, limit in limits.items():
        out = [e.record.offset for e in excluded if e.agent == agent and e.record is not None]
        assert bounds[agent, TP] == min([limit, *out])


def journaled(one: Scope, entries: dict[tuple[str, str], PreImage]) -> Scope:
    one.journal = dict(entries)
    return one


def test_before_excluded() -> None:
    """An entry goes as it was before the first event outside the cut touched it."""
    first = journaled(
        event("a", 1, open=True),
        {("t", "x"): PreImage(True, 1, 5), ("t", "y"): PreImage(False, None, 6)},
    )
    second = journaled(
        event("a", 2), {("t", "x"): PreImage(True, 2, 7), ("u", "z"): PreImage(True, 3, 8)}
    )
    found = before_excluded({first, second})
    assert found == {
        "t": {"x": PreImage(True, 1, 5), "y": PreImage(False, None, 6)},
        "u": {"z": PreImage(True, 3, 8)},
    }


def test_journals_after_a_cut() -> None:
    """What the first touch found is of the epoch that leaves, and so no value of the next one."""
    first = journaled(event("a", 1, open=True), {("t", "x"): PreImage(True, 1, 5)})
    before_excluded({first})
    assert first.journal is not None
    assert first.journal["t", "x"].dirty is False


@pytest.mark.parametrize("count", [2_000])
def test_many_events(count: int) -> None:
    """Thousands of events in a chain are cut without recursion."""
    events = [event("a", 0, open=True)]
    for number in range(1, count):
        events.append(event("b", number, after=[events[-1]]))
    excluded, left = chosen(events, {"a": 0, "b": count})
    assert (len(excluded), left) == (count, {"a": 0, "b": 1})
