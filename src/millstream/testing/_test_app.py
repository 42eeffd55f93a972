"""Running an app in a test: in memory, on the real engine, with a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from millstream.app._runtime import Runtime
from millstream.clock import Duration, ManualClock, duration_ms
from millstream.context import current
from millstream.errors import AskError, ConfigurationError, ProgramError
from millstream.records import Position, TopicPartition
from millstream.testing._records import SentRecord
from millstream.transports.base import TopicSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

    from millstream.agents import Topic
    from millstream.app import App
    from millstream.worker import Worker

__all__ = ["CommittedTable", "TestApp"]

TURNS_MAX = 200
"""Turns of the event loop without any progress, after which an app counts as settled."""
REAL_WAIT_S = 5.0
"""How long `TestApp.settle` waits for an event that waits for something real, a thread or a socket."""


WAITS_PER_S_MIN = 400
"""Waits of a millisecond that a second has at least to count as one: a busy machine gets more time."""


class _Patience:
    """Waits for something real, for `REAL_WAIT_S` of a machine at rest."""

    def __init__(self) -> None:
        self._until = asyncio.get_running_loop().time() + REAL_WAIT_S
        self._waits_left = WAITS_PER_S_MIN * REAL_WAIT_S

    async def wait(self) -> bool:
        """Wait a moment, and say whether there may be another one."""
        await asyncio.sleep(0.001)
        self._waits_left -= 1
        return self._waits_left > 0 or asyncio.get_running_loop().time() <= self._until


class TestClock(ManualClock):
    """A clock that stands still, and knows how many events wait for it to be moved."""

    __test__ = False

    def __init__(self, start: int) -> None:
        super().__init__(start)
        self.events_waiting = 0

    async def sleep(self, seconds: float) -> None:
        scope = current.get(None)
        if scope is None or not scope.open:
            await super().sleep(seconds)
            return
        self.events_waiting += 1
        try:
            await super().sleep(seconds)
        finally:
            self.events_waiting -= 1


class TestRuntime(Runtime):
    """A running app that follows up on a question by itself, as nobody else commits in a test.

    Except where an agent asks: whoever let the app process its event goes on until that is finished.
    """

    __test__ = False

    def __init__(self, app: App, *, settle: Callable[[], Awaitable[None]], **parts: Any) -> None:
        super().__init__(app, **parts)
        self._settle = settle

    async def ask(
        self, topic: Topic[Any, Any], value: Any, *, key: Any, timeout_s: float
    ) -> bytes | None:
        asking = asyncio.ensure_future(super().ask(topic, value, key=key, timeout_s=timeout_s))
        try:
            scope = current.get(None)
            if scope is None or not scope.open:
                await self._settle()
                await asyncio.wait([asking], timeout=REAL_WAIT_S)
                if not asking.done():
                    raise AskError(
                        f"no reply through {topic.name!r}, and none will come while the clock stands"
                        f" still: let the agent yield a result for each value, or ask in a task of its"
                        f" own and move the clock meanwhile with t.advance(...)"
                    )
            return await asking
        finally:
            asking.cancel()


class TestApp:
    """An app that runs inside ``async with``, deterministically.

    Nothing happens by itself: `send` and `advance` return when everything that follows from them is processed
    and committed. Time stands still until `advance` moves it.

    Args:
        start: what the clock shows at first, in ms since the epoch.
    """

    __test__ = False

    def __init__(self, app: App, *, start: int = 1_700_000_000_000) -> None:
        from millstream.state.memory import MemoryBackend
        from millstream.transports.memory import MemoryLog

        self._log = MemoryLog()
        self._state = MemoryBackend()
        self.app = app
        self.clock = TestClock(start)
        self._real_clock = app.clock
        self._stack: contextlib.AsyncExitStack | None = None
        self._runtime: Runtime | None = None
        self._error: BaseException | None = None
        """What has ended the worker."""
        self._owner: asyncio.Task[Any] | None = None
        """The task in which the app was started; it is cancelled where a timer ends the worker."""
        self._settling = asyncio.Lock()

    async def __aenter__(self) -> TestApp:
        self.app.clock = self.clock
        try:
            await self._start()
        except BaseException:
            self.app.clock = self._real_clock
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._stack is not None
        try:
            await self._stack.__aexit__(*exc)  # type: ignore[arg-type]
        finally:
            self.app.clock = self._real_clock

    async def _start(self) -> None:
        from millstream.transports.memory import MemoryTransport

        self._stack = contextlib.AsyncExitStack()
        self._owner = asyncio.current_task()
        self._error = None
        runtime = TestRuntime(
            self.app,
            settle=self.settle,
            transport=MemoryTransport(clock=self.clock, log=self._log),
            state=self._state,
            commits=False,
        )
        self._runtime = await self._stack.enter_async_context(runtime.running())
        try:
            await self.settle()
        except BaseException as exc:
            await self._unwind(exc)
            raise

    async def _unwind(self, exc: BaseException) -> None:
        """End the app; what ended the worker takes the place of a cancellation."""
        assert self._stack is not None
        try:
            await self._stack.__aexit__(type(exc), exc, exc.__traceback__)
        except Exception as error:
            self._error = error
            raise

    async def _stop(self) -> None:
        assert self._stack is not None
        await self._stack.aclose()

    @property
    def _running(self) -> Runtime:
        if self._runtime is None:
            raise ProgramError(
                "the app does not run: use it inside `async with TestApp(app) as t:`"
            )
        return self._runtime

    @property
    def worker(self) -> Worker:
        """The running worker."""
        worker = self._running.worker
        assert worker is not None
        return worker

    # what a test does -----------------------------------------------------------------------------

    async def send(
        self,
        topic: Topic[Any, Any],
        value: Any,
        *,
        key: Any = None,
        timestamp: Any = None,
        headers: Mapping[str, bytes | str | None] | None = None,
        partition: int | None = None,
    ) -> Position:
        """Send a value, as from outside, and let the app process it and commit.

        Raises:
            AgentError: the record stopped the worker.
        """
        position = await topic.send(
            value, key=key, timestamp=timestamp, headers=headers, partition=partition
        )
        if position is None:
            raise ProgramError("TestApp.send is for tests, not for agents")
        await self.settle()
        return position

    async def send_many(self, topic: Topic[Any, Any], values: Iterable[Any]) -> None:
        """Send values at once, and let the app process them and commit."""
        await topic.send_many(values)
        await self.settle()

    async def create_topic(self, name: str, *, partitions: int | None = None) -> None:
        """Make a topic in the log, as from outside; a pattern finds it when `advance` has moved the clock on.

        Args:
            partitions: as many as the app's setting says where left out.
        """
        runtime = self._running
        count = partitions or self.app.settings.partitions
        await runtime.transport.create_topics([TopicSpec(name=name, partitions=count)])
        runtime.partitions = {**runtime.partitions, name: count}

    async def advance(self, wall: Duration = 0, *, stream: Duration = 0) -> None:
        """Move the clock forward, or event time in every shard, and let the app follow.

        The clock stops at each moment for which somebody waits, in order.
        """
        await self.settle()  # what tasks of the test have begun happens before
        target = self.clock.now() + duration_ms(wall, what="advance")
        while (due := self.clock.next_due()) is not None and due <= target:
            self.clock.move_to(due)
            await self.settle()
        self.clock.move_to(target)
        by = duration_ms(stream, what="advance(stream=)")
        if by:
            for shard in self.worker.shards.values():
                shard.advance_stream_time(by)
        await self.settle()

    async def settle(self) -> None:
        """Let the app process everything that is there, and commit it."""
        async with self._settling:
            try:
                await self._settle()
            except asyncio.CancelledError as exc:
                if asyncio.current_task() is self._owner:
                    await self._unwind(exc)
                raise

    async def _settle(self) -> None:
        loop = asyncio.get_running_loop()
        patience = _Patience()
        still = 0
        before: object = None
        while True:
            await asyncio.sleep(0)
            if self._error is not None:
                raise self._error
            worker = self.worker
            if self._failed():
                await self._end()
            if not worker.ready.is_set() and worker.plan.counts:
                if not await patience.wait():
                    raise ProgramError(
                        f"app {self.app.id!r} was not ready after {REAL_WAIT_S:g} s: what runs at the"
                        f" start (lifespan=, a table's load) waits for something that does not come"
                    )
                continue
            if await worker.committer.commit():
                still = 0
            now = self._progress()
            still = still + 1 if now == before else 0
            before = now
            if still < 20 and not (still and _all_wait(loop)):
                continue
            if await self._caught_up():
                return
            if worker.in_progress():
                if self.clock.events_waiting >= self._events_in_progress():
                    if still > 50:
                        return  # they all wait for the test to move the clock
                    continue
                if not await patience.wait():
                    return
            elif still > TURNS_MAX:
                return

    async def _end(self) -> None:
        """Raise what has ended the worker."""
        try:
            await self._stop()
        except BaseException as exc:
            self._error = exc
            raise

    def _failed(self) -> bool:
        runtime = self._runtime
        return runtime is not None and runtime.failed()

    def _events_in_progress(self) -> int:
        return sum(
            instance.in_event
            for shard in self.worker.shards.values()
            for lane in shard.lanes.values()
            for instance in lane.instances
        )

    def _progress(self) -> object:
        return [
            (shard.name, name, tp, lane.position(tp), lane.inboxes[tp].fetched)
            for shard in self.worker.shards.values()
            for name, lane in shard.lanes.items()
            for tp in lane.inboxes
        ]

    async def _caught_up(self) -> bool:
        for shard in self.worker.shards.values():
            if not shard.ready.is_set():  # it starts over
                return False
            for lane in shard.lanes.values():
                ends = await self._running.transport.end_offsets(list(lane.inboxes))
                if any(lane.position(tp) < end for tp, end in ends.items()):
                    return False
            if shard.is_closing or shard.has_work():
                return False
        return True

    async def crash(self, *, lose_state: bool = False) -> None:
        """End the worker as a kill would, with nothing committed that was not, and start another.

        Args:
            lose_state: whether the local state is lost as well.
        """
        self.worker.abandon()
        await self._stop()
        if lose_state:
            for shard in self._state.shards():
                self._state.destroy(shard)
        await self._start()

    async def rebalance(self) -> None:
        """Have the group take every shard away and give it back."""
        assignment = self.worker.assignment
        assert assignment is not None
        self._running.transport.evict(self.app.id, assignment.member_id)  # type: ignore[attr-defined]
        for _ in range(TURNS_MAX):
            await asyncio.sleep(0)
            if self.worker.assignment is not assignment:
                break
        await self.settle()

    # what a test looks at -------------------------------------------------------------------------

    def table(self, table: Any) -> CommittedTable:
        """A table's committed entries, over all shards."""
        return CommittedTable(self, table.name)

    def sent(self, topic: Topic[Any, Any]) -> list[Any]:
        """The values in a topic, partition by partition in order of offset."""
        return [value for _, value in self.records(topic)]

    def records(self, topic: Topic[Any, Any]) -> list[SentRecord]:
        """The records in a topic, partition by partition in order of offset.

        Each is a pair of key and value, with ``headers``, ``timestamp``, ``topic``, ``partition`` and ``offset``
        as attributes.
        """
        from millstream.transports.batch import iterate_records

        partitions = self._running.partitions
        internal = {node.name for node in self._running.topology.topics.values() if node.internal}
        names = [
            name
            for name in sorted(partitions)
            if topic.reads(name) and (name == topic.name or name not in internal)
        ]
        if not names:
            raise ConfigurationError(f"there is no topic {topic.name!r} in the log")
        found = []
        for tp in [TopicPartition(name, n) for name in names for n in range(partitions[name])]:
            for data in self._log.batches(tp):
                for record in iterate_records(data, where=str(tp)):
                    key = None if record.key is None else topic.key_codec.loads(record.key)
                    value = None if record.value is None else topic.value_codec.loads(record.value)
                    position = Position(*tp, record.offset)
                    found.append(SentRecord(key, value, record.headers, record.timestamp, position))
        return found


def _all_wait(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether all other tasks wait for something; False where the loop does not tell."""
    # of asyncio's own loops, which have no public word for it
    ready = getattr(loop, "_ready", None)
    return ready is not None and not ready


class CommittedTable:
    """A table's committed entries: a mapping for tests. Windowed tables have (key, window) as keys."""

    def __init__(self, test: TestApp, name: str) -> None:
        self._test = test
        self._name = name

    def _entries(self) -> Iterator[tuple[Any, Any]]:
        for shard in self._test.worker.shards.values():
            part = shard.own_parts.get(self._name)
            if part is None:
                continue
            for data, value in part.store.items(b"\x01"):
                if data[:1] == b"\x04":  # a local index
                    continue
                key = part.decode_key(data)
                yield part.shown(key), part.value_of(part.decode(key, value))

    def __getitem__(self, key: Any) -> Any:
        for found, value in self._entries():
            if found == key:
                return value
        raise KeyError(key)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value, or ``default``."""
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        return any(found == key for found, _ in self._entries())

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._entries())

    def __len__(self) -> int:
        return sum(1 for _ in self._entries())

    def items(self) -> list[tuple[Any, Any]]:
        """Entries, shard by shard in key order."""
        return list(self._entries())

    def __eq__(self, other: object) -> bool:
        return dict(self._entries()) == other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return repr(dict(self._entries()))
