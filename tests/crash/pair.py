"""Two workers of a small program in this process, on a real broker, that are led through a schedule by hand.

A worker commits when it is told to, and may be made to hear nothing of its group: so the moments that random faults
meet once in a thousand are made, one after the other, without waiting for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

import millstream as ms
from millstream.app._runtime import Runtime
from millstream.serialization import partitioner
from millstream.state.memory import MemoryBackend
from millstream.transports.kafka import KafkaTransport
from tests.brokers import Record, unique
from tests.crash.program import Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from millstream.records import TopicPartition
    from millstream.transports.base import Assignment, Membership, OffsetAndMetadata
    from millstream.worker import Shard, Worker
    from tests.brokers import Kafka

__all__ = ["KEYS", "Pair", "Side"]

PARTITIONS = 2
SESSION_S = 30.0
"""No schedule waits for it."""
DEADLINE_S = 30.0
TICK_S = 0.1


def _key_of(shard: int) -> str:
    place = partitioner("murmur2")
    return next(
        name
        for name in (f"key-{number}" for number in range(100))
        if place(name.encode(), PARTITIONS) == shard
    )


KEYS = [_key_of(shard) for shard in range(PARTITIONS)]
"""One of each shard."""


class _Frozen:
    """A membership of which its worker hears nothing while ``awake`` is not set."""

    def __init__(self, inner: Membership, awake: asyncio.Event) -> None:
        self._inner = inner
        self._awake = awake

    async def next_assignment(self) -> Assignment:
        """The next assignment, once it may be heard."""
        assignment = await self._inner.next_assignment()
        await self._awake.wait()
        return assignment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Transport(KafkaTransport):
    """A transport whose memberships may be frozen."""

    def __init__(self, url: str, awake: asyncio.Event, **settings: Any) -> None:
        super().__init__(url, **settings)
        self._awake = awake
        self.positions_asked = self.positions_known = 0

    async def committed(
        self, group: str, tps: Collection[TopicPartition], *, settled: bool = True
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """As it is; what is asked for the sake of going on from there is counted."""
        self.positions_asked += settled
        found = await super().committed(group, tps, settled=settled)
        self.positions_known += settled
        return found

    async def join(self, group: str, **terms: Any) -> Membership:
        """Join, as a worker that may hear nothing."""
        frozen: Any = _Frozen(await super().join(group, **terms), self._awake)
        return frozen  # type: ignore[no-any-return]


class Side:
    """One of the workers."""

    def __init__(self, pair: Pair, slot: str, url: str, *, commits: bool) -> None:
        self.transactional_id = f"{pair.app}-{slot}"
        self.awake = asyncio.Event()
        self.awake.set()
        self._end = asyncio.Event()
        self._runtime = Runtime(
            pair.program(url),
            transport=_Transport(
                url,
                self.awake,
                transactional_id=lambda: self.transactional_id,
                client_id=pair.app,
            ),
            state=MemoryBackend(),
            commits=commits,
        )
        self._life: asyncio.Task[None] | None = None

    @property
    def worker(self) -> Worker:
        """The worker, once it has been started."""
        assert self._runtime.worker is not None
        return self._runtime.worker

    @property
    def positions(self) -> tuple[int, int]:
        """How often it has asked from where a shard goes on, and heard it."""
        found = self._runtime.transport
        assert isinstance(found, _Transport)
        return found.positions_asked, found.positions_known

    @property
    def transport(self) -> KafkaTransport:
        """Its own view of the log."""
        found = self._runtime.transport
        assert isinstance(found, KafkaTransport)
        return found

    async def start(self) -> None:
        """Join, and wait until the shards are ready that it is given."""
        self._life = asyncio.create_task(self._live())
        await self.until(lambda: self._runtime.worker is not None and self.worker.ready.is_set())

    async def stop(self) -> None:
        """Commit what is finished, and leave."""
        self._end.set()
        self.awake.set()
        if self._life is not None:
            await self._life

    def over(self) -> BaseException | None:
        """The error that it has ended with."""
        life = self._life
        return life.exception() if life is not None and life.done() else None

    async def _live(self) -> None:
        async with self._runtime.running():
            await self._end.wait()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds in this process."""
        async with asyncio.timeout(DEADLINE_S):
            while not holds():
                assert self._life is not None
                if self._life.done():
                    await self._life
                await asyncio.sleep(0.005)

    @property
    def generation(self) -> int:
        """That of the last assignment that it has applied."""
        return 0 if self.worker.assignment is None else self.worker.assignment.generation

    def shards(self) -> list[Shard]:
        """Those that are ready."""
        return [shard for shard in self.worker.shards.values() if shard.ready.is_set()]

    def _all_ready(self) -> bool:
        return 0 < len(self.shards()) == len(self.worker.shards)

    def numbers(self) -> list[int]:
        """Their numbers."""
        return sorted(shard.number for shard in self.shards())

    async def processed(self, times: int) -> None:
        """Wait until each of its shards has taken in so many words; nothing is committed by that."""

        def done() -> bool:
            return self._all_ready() and all(
                lane.position(tp) >= times
                for shard in self.shards()
                for lane in shard.lanes.values()
                for tp in lane.inboxes
            )

        await self.until(lambda: self.worker.ready.is_set() and done())

    async def ticked(self) -> None:
        """Wait until the timer of each shard has written something that is not committed."""
        await self.until(
            lambda: (
                self._all_ready()
                and all(
                    any(
                        tp.topic.endswith("-ticked")
                        for of in s.subtopologies
                        for tp in (*of.sent, *(output[0] for output in of.output))
                    )
                    for s in self.shards()
                )
            )
        )

    async def commit(self) -> None:
        """Commit what is finished now."""
        await self.worker.committer.commit()


class Pair:
    """A program, its topics, and the workers that a schedule starts.

    Args:
        settings: of the app.
    """

    def __init__(self, kafka: Kafka, **settings: Any) -> None:
        self.kafka = kafka
        self._settings = settings
        self.app = unique("pair")
        self.topic = kafka.topic("words", partitions=PARTITIONS)
        self.written = 0
        self._sides: list[Side] = []

    def program(self, url: str) -> ms.App:
        """Counts words, and ticks; each result is sent, and so a repeated one is seen."""
        app = ms.App(
            self.app, broker=url, web=False, session_timeout=f"{SESSION_S}s", **self._settings
        )
        words = app.topic(self.topic, key=str, value=str)
        totals = app.topic(f"{self.app}-totals", key=str, value=int, partitions=PARTITIONS)
        ticked = app.topic(f"{self.app}-ticked", key=str, value=int, partitions=PARTITIONS)
        counts = app.table("counts", key=str, value=int, default=0, partitions=PARTITIONS)
        ticks = app.table("ticks", key=str, value=int, default=0, partitions=PARTITIONS)

        @app.agent(words)
        async def count(stream: ms.Stream[str]) -> None:
            async for word in stream:
                counts[word] += 1
                await totals.send(counts[word], key=word)

        @app.timer(TICK_S, scope="shard")
        async def tick() -> None:
            from millstream.context import current

            name = KEYS[current.get().shard.number]
            ticks[name] += 1
            await ticked.send(ticks[name], key=name)

        return app

    def side(self, slot: str, url: str = "", *, commits: bool = False) -> Side:
        """A worker that is not started yet.

        Args:
            slot: what its transactional id ends with.
            url: where it finds the broker.
            commits: whether it commits by itself.
        """
        side = Side(self, slot, url or self.kafka.url, commits=commits)
        self._sides.append(side)
        return side

    async def write(self) -> None:
        """One word for each shard."""
        words = [Record(key=key.encode(), value=f'"{key}"'.encode()) for key in KEYS]
        await asyncio.to_thread(self.kafka.write, self.topic, words, partitioner="murmur2")
        self.written += 1

    async def check(self) -> None:
        """Every result is there once and in order, and the tables say the same.

        Raises:
            Violation: they are not, and will not be.
        """
        wanted = {key: list(range(1, self.written + 1)) for key in KEYS if self.written}
        totals = await self._results("totals", lambda found: _sized(found, wanted))
        if totals != wanted:
            raise Violation(f"totals are {totals}, and must be {wanted}")
        ticked = await self._results("ticked", lambda found: True)
        for key, found in ticked.items():
            if found != list(range(1, len(found) + 1)):
                raise Violation(f"ticks of {key} are {found}")
        for table, results in (("counts", totals), ("ticks", ticked)):
            for key, values in (await self._changelog(table)).items():
                # what is at least once repeats what a table holds after a refusal, and means the same
                if values != sorted(values if self._settings else set(values)):
                    raise Violation(f"{table}[{key!r}] goes back, or repeats: {values}")
                if values[-1] != results[key][-1]:
                    raise Violation(f"{table}[{key!r}] ends with {values}, and {results[key]}")

    async def _results(
        self, name: str, complete: Callable[[dict[str, list[int]]], bool]
    ) -> dict[str, list[int]]:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            found: dict[str, list[int]] = defaultdict(list)
            for record in await asyncio.to_thread(self.kafka.read, f"{self.app}-{name}"):
                found[(record.key or b"").decode()].append(msgspec.json.decode(record.value or b""))
            if complete(found) or time.monotonic() > deadline:
                return dict(found)
            await asyncio.sleep(0.05)

    async def _changelog(self, table: str) -> dict[str, list[int]]:
        """What each key was, one committed value after the other."""
        found: dict[str, list[int]] = defaultdict(list)
        for record in await asyncio.to_thread(self.kafka.read, f"{self.app}-{table}-changelog"):
            name = (record.key or b"")[1:].decode(errors="replace")
            for key in KEYS:
                if key in name and record.value is not None:
                    found[key].append(msgspec.json.decode(record.value))
        return dict(found)

    async def close(self) -> None:
        """Stop who still works."""
        for side in self._sides:
            with contextlib.suppress(Exception):
                await side.stop()


def _sized(found: dict[str, list[int]], wanted: dict[str, list[int]]) -> bool:
    return all(len(found.get(key, ())) >= len(values) for key, values in wanted.items())
