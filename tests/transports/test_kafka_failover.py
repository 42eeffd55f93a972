"""Who removes a member whose process seems to be gone."""

from __future__ import annotations

import itertools

import pytest

from millstream.transports.kafka._failover import AGAIN_FIRST_S, SUSPECTED_S, Failover


def members(names: str, *, static: str = "") -> dict[str, str | None]:
    """A group with a member for each letter."""
    return {name: ("place" if name in static else None) for name in names}


def may(
    failover: Failover, suspect: str, own: str, group: dict[str, str | None], now: float = 0.0
) -> bool:
    """Ask, with the member's letter for who it is."""
    return failover.may_remove(suspect, peer=f"peer {suspect}", own_id=own, members=group, now=now)


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


def test_a_peer_is_removed_again_after_a_while_only() -> None:
    """It comes back under another id, and cannot be reached: the time between two removals doubles."""
    failover, ids, removals = Failover(), iter("bcdefg"), []
    name = next(ids)
    for second in range(300):
        group = members("a" + name + "xyz")
        if failover.may_remove(name, peer="http://b", own_id="x", members=group, now=second):
            failover.removed(name, peer="http://b", now=second)
            removals.append(second)
            name = next(ids)
    gaps = [later - sooner for sooner, later in itertools.pairwise(removals)]
    assert gaps == [AGAIN_FIRST_S, 2 * AGAIN_FIRST_S, 4 * AGAIN_FIRST_S]


@pytest.mark.parametrize(
    ("names", "at_most"), [("abcdefgh", 4), ("abcde", 2), ("abcd", 2), ("ab", 1)]
)
def test_who_suspects_most_of_the_group_goes_no_further(names: str, at_most: int) -> None:
    """It is cut off itself, more likely: half of the group is the most that one removes in a minute."""
    failover, left = Failover(), members(names)
    for suspect in reversed(names[1:]):
        if may(failover, suspect, "a", left):
            failover.removed(suspect, peer=f"peer {suspect}", now=0.0)
            del left[suspect]
    assert len(names) - len(left) == at_most
