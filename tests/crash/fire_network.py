"""What happens to brokers and to the connections to them, and how it comes to its end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tests.brokers import Action, Api

if TYPE_CHECKING:
    import random
    from collections import Counter

    from tests.brokers import Cluster, Proxy, Rule

__all__ = ["Network"]

LOST = [
    Api.END_TXN,
    Api.END_TXN,
    Api.END_TXN,
    Api.PRODUCE,
    Api.TXN_OFFSET_COMMIT,
    Api.INIT_PRODUCER_ID,
    Api.ADD_PARTITIONS_TO_TXN,
    Api.FETCH,
    Api.HEARTBEAT,
    Api.JOIN_GROUP,
    Api.SYNC_GROUP,
    Api.OFFSET_FETCH,
]
"""Whose answers never arrive."""
LATE = [Api.END_TXN, Api.END_TXN, Api.PRODUCE, Api.TXN_OFFSET_COMMIT, Api.SYNC_GROUP]
"""Which requests arrive late."""


class Network:
    """Brokers, each with a proxy before it.

    Args:
        cluster: the brokers.
        through: their proxies.
        rng: decides what is hit, and for how long.
        happened: counts what was done.
    """

    def __init__(
        self, cluster: Cluster, through: list[Proxy], rng: random.Random, happened: Counter[str]
    ) -> None:
        self._cluster, self._proxies = cluster, through
        self._rng, self._happened = rng, happened
        self._down: tuple[float, int] | None = None
        """Which broker is dead, and until when."""
        self._slow_until = 0.0
        self._held: list[tuple[float, list[Rule]]] = []
        """Requests that are not passed on, and until when."""

    def tick(self) -> None:
        """What was begun comes to its end."""
        now = time.monotonic()
        if self._slow_until and now > self._slow_until:
            self._slow_until = 0.0
            for proxy in self._proxies:
                proxy.delay(0.0)
        if self._down is not None and now > self._down[0]:
            self._start_broker()
        for until, rules in self._held.copy():
            if now > until:
                self._held.remove((until, rules))
                for rule in rules:
                    rule.release()

    def mend(self) -> None:
        """Everything passes, and all brokers live."""
        for proxy in self._proxies:
            proxy.reset()
        if self._down is not None:
            self._start_broker()

    def kill_broker(self) -> None:
        """One of them, for some seconds."""
        if self._down is None:
            self._happened["broker killed"] += 1
            at = self._rng.randrange(len(self._cluster.brokers))
            self._down = time.monotonic() + self._rng.uniform(0.5, 4.0), at
            self._cluster.brokers[at].kill()

    def _start_broker(self) -> None:
        assert self._down is not None
        broker, self._down = self._cluster.brokers[self._down[1]], None
        broker.start()

    def cut(self) -> None:
        """All connections to one of the brokers."""
        self._happened["connections cut"] += 1
        self._rng.choice(self._proxies).cut()

    def delay(self) -> None:
        """Let what passes to and from one of the brokers take its time."""
        self._happened["connections slow"] += 1
        self._slow_until = time.monotonic() + 1.0
        self._rng.choice(self._proxies).delay(self._rng.choice([0.02, 0.1, 0.4]))

    def lose_answer(self) -> None:
        """The next one of a kind, or the one after that, where none comes."""
        api = self._rng.choice(LOST)
        action = self._rng.choice([Action.CUT, Action.CUT, Action.LOSE])
        self._happened[f"answer lost: {api.name}"] += 1
        for proxy in self._proxies:
            proxy.on_answer(api, action, times=1)

    def hold_request(self) -> None:
        """The next ones of a kind arrive late, each broker's."""
        api = self._rng.choice(LATE)
        self._happened[f"request late: {api.name}"] += 1
        until = time.monotonic() + self._rng.uniform(0.3, 4.0)
        rules = [proxy.on_request(api, Action.HOLD, times=1) for proxy in self._proxies]
        self._held.append((until, rules))
