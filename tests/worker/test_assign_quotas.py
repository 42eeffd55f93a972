"""How many shards each worker gets."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from millstream.worker._assign_quotas import Demand, share_out


def cost(demands: list[Demand], quotas: list[dict[str, int]]) -> tuple[int, int]:
    """What the choice is to minimise, as the theory of operation says it: unevenness, then moves."""
    total: dict[str, int] = {}
    for quota in quotas:
        for name, number in quota.items():
            total[name] = total.get(name, 0) + number
    moves = sum(
        max(0, demand.owned.get(name, 0) - number)
        for demand, quota in zip(demands, quotas, strict=True)
        for name, number in quota.items()
    )
    return sum(number**2 for number in total.values()), moves


def every_choice(demands: list[Demand]) -> list[list[dict[str, int]]]:
    """All ways to give out the extras."""
    choices = []
    for demand in demands:
        low, extra = divmod(demand.count, len(demand.workers))
        choices.append(
            [
                {name: low + (name in some) for name in demand.workers}
                for some in itertools.combinations(demand.workers, extra)
            ]
        )
    return [list(choice) for choice in itertools.product(*choices)]


@st.composite
def demands(draw: st.DrawFn) -> list[Demand]:
    """Up to four partition counts, which most of up to five workers can run."""
    names = [f"w{i}" for i in range(draw(st.integers(1, 5)))]
    found = []
    for count in draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)):
        able = sorted(draw(st.sets(st.sampled_from(names), min_size=1)))
        holders = draw(st.lists(st.sampled_from(able), max_size=count))
        found.append(
            Demand(
                count=count,
                workers=able,
                owned={name: holders.count(name) for name in set(holders)},
                within_reach={},
            )
        )
    return found


@given(demands())
def test_the_choice_is_the_cheapest_of_all(found: list[Demand]) -> None:
    """No other choice is more even, nor as even with fewer moves."""
    quotas = share_out(found)
    assert [sum(quota.values()) for quota in quotas] == [demand.count for demand in found]
    best = min(cost(found, choice) for choice in every_choice(found))
    assert cost(found, quotas) == best


@given(demands(), st.randoms())
def test_the_order_of_workers_is_nothing(found: list[Demand], random: object) -> None:
    """The same workers in another order get the same."""
    shuffled = [
        Demand(
            count=demand.count,
            workers=random.sample(demand.workers, len(demand.workers)),  # type: ignore[attr-defined]
            owned=demand.owned,
            within_reach=demand.within_reach,
        )
        for demand in found
    ]
    assert share_out(shuffled) == share_out(found)


def test_extras_go_where_copies_are() -> None:
    """Of two workers that own as much, the one that has a copy of a free shard gets it."""
    (quota,) = share_out(
        [Demand(count=3, workers=["a", "b"], owned={"a": 1, "b": 1}, within_reach={"b": 1})]
    )
    assert quota == {"a": 1, "b": 2}


def test_a_move_costs_more_than_a_copy() -> None:
    """An extra stays with the worker that owns it, whoever has a copy."""
    (quota,) = share_out(
        [Demand(count=1, workers=["a", "b"], owned={"a": 1}, within_reach={"b": 1})]
    )
    assert quota == {"a": 1, "b": 0}


def test_totals_are_even_over_all_counts() -> None:
    """Ten counts with one shard each over five workers: two for each of them, and none for a worker twice."""
    quotas = share_out(
        [
            Demand(count=1, workers=["a", "b", "c", "d", "e"], owned={"a": 1}, within_reach={})
            for _ in range(10)
        ]
    )
    assert {name: sum(quota[name] for quota in quotas) for name in "abcde"} == dict.fromkeys(
        "abcde", 2
    )
