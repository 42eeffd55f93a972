"""How many shards each worker gets: a minimum-cost flow, solved exactly.

The shards of one partition count are shared out evenly among the workers that can run them: ``low`` each, and one
more, an *extra*, for as many as there are left. Which workers get the extras decides two things: how even the
totals over all counts are, and how many shards can stay where they are. The cheapest choice minimises

    the sum of the squares of all totals, then the shards that move, then the shards without a warm copy.

It begins with a greedy choice and improves it. A step hands extras on in a circle: count *g* places one of its
extras at a worker that gives up one of count *h* for it, *h* places that one elsewhere, and so on; a circle through
``TOTALS`` makes one worker's total larger and another's smaller. As every step costs less than nothing, and a flow
without such a circle is the cheapest (Klein 1967), the steps end, at the optimum. There are as many nodes as
counts, and an edge is the cheapest of all workers: a step costs O(workers x counts^2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Demand", "share_out"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """The shards of one partition count, and the workers that can run them.

    ``owned`` is how many of them each worker owns now; ``within_reach`` how many more it has a copy of that
    nobody owns. Both may leave workers out that have none.
    """

    count: int
    workers: Sequence[str]
    owned: Mapping[str, int]
    within_reach: Mapping[str, int]


def share_out(demands: Sequence[Demand]) -> list[dict[str, int]]:
    """How many shards of each demand each of its workers gets; deterministic, whatever the order of workers."""
    return _Flow(demands).solve()


_Edge = tuple[int, str]
"""What handing an extra on costs, and at which worker."""


class _Flow:
    def __init__(self, demands: Sequence[Demand]) -> None:
        self._lows = [demand.count // len(demand.workers) for demand in demands]
        self._extras = [demand.count % len(demand.workers) for demand in demands]
        self._able = [sorted(demand.workers) for demand in demands]
        workers = sorted({worker for able in self._able for worker in able})
        self._counts_of: dict[str, list[int]] = {worker: [] for worker in workers}
        self._total = dict.fromkeys(workers, 0)
        for g, able in enumerate(self._able):
            for worker in able:
                self._counts_of[worker].append(g)
                self._total[worker] += self._lows[g]
        units = len(demands) * len(workers) + 1
        self._per_total = units * units
        self._gains = [
            {worker: _gain(demand, low, worker, units) for worker in demand.workers}
            for demand, low in zip(demands, self._lows, strict=True)
        ]
        self._has: list[set[str]] = [set() for _ in demands]

    def solve(self) -> list[dict[str, int]]:
        for g in range(len(self._has)):
            self._begin(g)
        while circle := self._circle():
            for source, target, worker in circle:
                self._hand_on(source, target, worker)
        return [
            {worker: low + (worker in has) for worker in able}
            for low, has, able in zip(self._lows, self._has, self._able, strict=True)
        ]

    def _begin(self, g: int) -> None:
        later = self._gains[g + 1 :]
        chosen = sorted(
            self._able[g],
            key=lambda worker: (
                self._total[worker],
                -self._gains[g][worker],
                sum(gains.get(worker, 0) for gains in later),
            ),
        )[: self._extras[g]]
        self._has[g].update(chosen)
        for worker in chosen:
            self._total[worker] += 1

    def _hand_on(self, source: int, target: int, worker: str) -> None:
        totals = len(self._has)
        if source == totals:
            self._total[worker] -= 1
        else:
            self._has[source].add(worker)
        if target == totals:
            self._total[worker] += 1
        else:
            self._has[target].discard(worker)

    def _edges(self) -> dict[tuple[int, int], _Edge]:
        """The cheapest worker for each way to hand an extra on."""
        totals = len(self._has)
        best: dict[tuple[int, int], _Edge] = {}

        def offer(source: int, target: int, cost: int, worker: str) -> None:
            known = best.get((source, target))
            if known is None or cost < known[0]:
                best[source, target] = (cost, worker)

        for worker, counts in self._counts_of.items():
            has = [g for g in counts if worker in self._has[g]]
            lost = [self._gains[g][worker] for g in has]
            total = self._total[worker] * self._per_total
            for g in counts:
                if worker not in self._has[g]:
                    gain = self._gains[g][worker]
                    offer(g, totals, total + self._per_total - gain, worker)
                    for h, loss in zip(has, lost, strict=True):
                        offer(g, h, loss - gain, worker)
            for h, loss in zip(has, lost, strict=True):
                offer(totals, h, loss - total, worker)
        return best

    def _circle(self) -> list[tuple[int, int, str]]:
        """A circle that costs less than nothing, by Bellman and Ford; empty where there is none."""
        edges = self._edges()
        nodes = len(self._has) + 1
        distance, before = [0] * nodes, [-1] * nodes
        relaxed = -1
        for _ in range(nodes):
            relaxed = -1
            for (source, target), (cost, _worker) in edges.items():
                if distance[source] + cost < distance[target]:
                    distance[target] = distance[source] + cost
                    before[target] = source
                    relaxed = target
            if relaxed < 0:
                return []
        for _ in range(nodes):
            relaxed = before[relaxed]  # once round, and the node is on the circle itself
        circle, target = [], relaxed
        while True:
            source = before[target]
            circle.append((source, target, edges[source, target][1]))
            target = source
            if target == relaxed:
                return circle


def _gain(demand: Demand, low: int, worker: str, units: int) -> int:
    """What an extra at this worker saves: a move counts as ``units`` copies."""
    owned = demand.owned.get(worker, 0)
    if owned > low:
        return units
    return 1 if owned + demand.within_reach.get(worker, 0) > low else 0
