"""Several workers of one app in one process, over one log: what they own, and of what they keep copies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

from millstream.app._app import App
from millstream.app._runtime import Runtime
from millstream.clock import SystemClock
from millstream.state.memory import MemoryBackend
from millstream.transports.memory import MemoryLog, MemoryTransport
from millstream.worker._queries import LocalQueries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from millstream.tables._query import TableInfo
    from millstream.worker import Worker

__all__ = ["KEYS", "Group", "Member", "until"]

DEADLINE_S = 30.0
SHARDS = 4
KEYS = [f"key-{number}" for number in range(40)]


async def until(condition: Callable[[], object], what: str = "it") -> None:
    """Wait for something that nobody tells."""
    patience = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < patience, f"{what} has not come"
        await asyncio.sleep(0.005)


class Member:
    """A worker of the app that counts words, and copies of a topic's last values in table ``seen``."""

    def __init__(self, log: MemoryLog, state: MemoryBackend, **settings: Any) -> None:
        self.app = App("shop", broker="memory://test", state="memory", **settings)
        self.state = state
        words = self.app.topic("words", key=str, value=str)
        self.counts = self.app.table("counts", key=str, value=int, default=0)
        self.last = self.app.topic("last", key=str, value=int)
        self.seen = self.app.table("seen", topic=self.last, on_error="skip")
        self.counted = 0

        @self.app.agent(words)
        async def count(stream: Any) -> None:
            async for word in stream:
                self.counts[word] += 1
                self.counted += 1

        transport = MemoryTransport(clock=SystemClock(), log=log)
        self.runtime = Runtime(self.app, transport=transport, state=state)
        self.words = words
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Join the group."""
        await self._stack.enter_async_context(self.runtime.running())
        await until(lambda: self.worker.assignment is not None, "an assignment")

    async def stop(self, *, crash: bool = False) -> None:
        """Leave it; with ``crash`` nothing is committed any more."""
        if crash:
            self.worker.abandon()
        await self._stack.aclose()

    @property
    def worker(self) -> Worker:
        """The worker."""
        assert self.runtime.worker is not None
        return self.runtime.worker

    @property
    def owned(self) -> list[int]:
        """Numbers of its shards."""
        return sorted(number for _, number in self.worker.shards)

    @property
    def copied(self) -> list[int]:
        """Numbers of the shards that it has copies of."""
        return sorted(number for _, number in self.worker.copies.by_shard)

    @property
    def replayed(self) -> int:
        """Records that its shards had to replay."""
        return self.worker.options.progress.records_done

    @property
    def followed(self) -> int:
        """Records that its copies have applied."""
        return self.worker.copies.progress.records_done

    @property
    def is_settled(self) -> bool:
        """Its shards are ready, and its copies are at the end and know it."""
        transport = self.runtime.transport
        assert isinstance(transport, MemoryTransport)
        return self.worker.ready.is_set() and all(
            copy.lag == 0
            and copy.age_s() < 5
            and copy.tables
            and all(
                each.position == transport._partition(each.replay.tp).end_offset
                for each in copy.tables
                if each.replay.tp in copy.changelogs()
            )
            for copy in self.worker.copies.by_shard.values()
        )

    @property
    def tables(self) -> dict[str, TableInfo]:
        """Its tables, as those who ask need them."""
        return {name: declared.info(SHARDS, []) for name, declared in self.app.tables.items()}

    def queries(self) -> LocalQueries:
        """What it can answer itself."""
        return LocalQueries(self.worker, self.tables)


class Group:
    """A log, and workers by name; each keeps its state between its lives."""

    def __init__(self, **settings: Any) -> None:
        self.log = MemoryLog()
        self.states: dict[str, MemoryBackend] = {}
        self.members: dict[str, Member] = {}
        self.settings = settings
        self.written = 0

    async def start(self, name: str) -> Member:
        """One more worker."""
        state = self.states.setdefault(name, MemoryBackend())
        member = self.members[name] = Member(self.log, state, **self.settings)
        await member.start()
        return member

    async def stop(self, name: str, *, crash: bool = False) -> None:
        """One less."""
        await self.members.pop(name).stop(crash=crash)

    async def write(self, times: int = 1) -> None:
        """Each word so many times."""
        some = next(iter(self.members.values()))
        for _ in range(times):
            for word in KEYS:
                await some.words.send(word, key=word)
        self.written += times

    def total(self) -> int:
        """What all workers have counted and committed, from the stores of the owners."""
        total = 0
        for member in self.members.values():
            info = member.tables["counts"]
            for shard in member.worker.shards.values():
                for key, value in shard.store.table("counts").items():
                    if info.parse_state_key(key) is not None:
                        total += int(value)
        return total

    async def settled(self) -> None:
        """Everything is counted, every shard has an owner, and copies are at the end."""

        def rests() -> bool:
            owned = sorted(n for member in self.members.values() for n in member.owned)
            return (
                owned == list(range(SHARDS))
                and all(member.is_settled for member in self.members.values())
                and self.total() == self.written * len(KEYS)
                and not any(
                    c.warming
                    for m in self.members.values()
                    for c in m.worker.copies.by_shard.values()
                )
            )

        await until(rests, "rest")

    async def close(self) -> None:
        """Stop all of them."""
        for name in list(self.members):
            await self.stop(name)


@contextlib.asynccontextmanager
async def group(**settings: Any) -> AsyncIterator[Group]:
    """A group without workers yet."""
    made = Group(**settings)
    try:
        yield made
    finally:
        await made.close()
