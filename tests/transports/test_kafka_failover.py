"""Who removes a member whose process seems to be gone."""

from __future__ import annotations

import itertools

import pytest

from millstream.transports.kafka._failover import HOLD_FIRST_S, RETURN_S, SUSPECTED_S, Failover


def members(names: str, *, static: str = "") -> dict[str, str | None]:
    """A group with a member for each letter."""
    return {name: ("place" if name in static else None) for name in names}


def may(
    failover: Failover, suspect: str, own: str, group: dict[str, str | None], now: float = 0.0
) -> bool:
    """Ask, with the member's letter for who it is."""
    processes = {name: f"process {name}" for name in group}
    return failover.may_remove(suspect, processes=processes, own_id=own, members=group, now=now)


@pytest.mark.parametrize(
    ("suspect", "own", "names", "static", "yes"),
    [
        ("b", "c", "abc", "", True),  # the next one acts
        ("b", "a", "abc", "", False),
        ("c", "a", "abc", "", True),  # in a circle
        ("c", "b", "abc", "", False),
        ("b", "a", "ab", "", True),  # two: the other one
        ("x", "a", "abc", "", False),  # it is not in the group any more
        ("a", "a", "abc", "", False),  # nobody removes itself
        ("b", "c", "abc", "b", False),  # it has a place, and will come back to it
        ("b", "c", "abc", "c", True),  # that the survivor has one is nothing
        ("b", "x", "abc", "", False),  # who is no member has no say
    ],
)
def test_who_acts(suspect: str, own: str, names: str, static: str, yes: bool) -> None:
    """One survivor, and only for a member that is listed and has no place of its own."""
    assert may(Failover(), suspect, own, members(names, static=static)) is yes


def test_exactly_one_acts() -> None:
    """Whoever is suspected, one of the others says yes."""
    group = members("abcdefg")
    for suspect in group:
        says = [own for own in group if may(Failover(), suspect, own, group)]
        assert len(says) == 1


def test_the_next_one_is_suspected_as_well() -> None:
    """Then it is for the one after it."""
    failover, group = Failover(), members("abcde")
    assert not may(failover, "c", "e", group)
    assert may(failover, "d", "e", group)
    assert may(failover, "c", "e", group)


def test_a_suspicion_is_forgotten() -> None:
    """A peer that was suspected a while ago may act again."""
    failover, group = Failover(), members("abcde")
    may(failover, "d", "e", group)
    assert may(failover, "c", "e", group, now=1.0)
    assert not may(failover, "c", "e", group, now=SUSPECTED_S + 1)


def test_static_members_when_asked_for() -> None:
    """They are removed like others."""
    assert may(Failover(static_too=True), "b", "c", members("abc", static="b"))


def test_a_process_that_comes_back_was_removed_by_mistake() -> None:
    """Then nobody is removed for a time that doubles with each mistake."""
    failover, ids = Failover(), iter("bcdefg")
    removals: list[int] = []
    name = next(ids)
    for second in range(300):
        group, own = members("a" + name + "xyz"), "x"
        if failover.may_remove(name, processes={name: "b"}, own_id=own, members=group, now=second):
            failover.removed(name, process="b", now=second)
            removals.append(second)
            name = next(ids)
    gaps = [later - sooner for sooner, later in itertools.pairwise(removals)]
    # a second until it is heard of
    assert gaps == [HOLD_FIRST_S + 1, 2 * HOLD_FIRST_S + 1, 4 * HOLD_FIRST_S + 1]


def test_after_a_mistake_nobody_is_removed() -> None:
    """Another one that is suspected then waits for the session time-out."""
    failover, group = Failover(), members("acxyz")
    failover.removed("b", process="b", now=0.0)
    for now, yes in ((1.0, False), (HOLD_FIRST_S, False), (1.0 + HOLD_FIRST_S, True)):
        assert yes is failover.may_remove(
            "x", processes={"c": "b", "x": "x"}, own_id="y", members=group, now=now
        )


def test_deaths_that_follow_one_another() -> None:
    """Processes that never come back are removed as soon as they die, however small the group, and their successors."""
    failover, now = Failover(), 0.0
    for number in range(10):
        group = members(f"a{number}z")
        assert may(failover, str(number), "a", group, now)
        failover.removed(str(number), process=f"process {number}", now=now)
        now += RETURN_S
    assert may(failover, "z", "a", members("az"), now)


@pytest.mark.parametrize(
    ("names", "at_most"), [("abcdefgh", 4), ("abcde", 2), ("abcd", 2), ("ab", 1)]
)
def test_who_suspects_most_of_the_group_goes_no_further(names: str, at_most: int) -> None:
    """It is cut off itself, more likely: half of the group is the most that one removes before it hears of its mistakes."""
    failover, left = Failover(), members(names)
    for suspect in reversed(names[1:]):
        if may(failover, suspect, "a", left):
            failover.removed(suspect, process=f"process {suspect}", now=0.0)
            del left[suspect]
    assert len(names) - len(left) == at_most
