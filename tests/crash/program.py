"""The program under test, and what its log has to hold.

As a module it is one worker process: ``python -m tests.crash.program LOG SLOT [POINT COUNT]`` works on ``local://LOG``
until SIGTERM. With a point of `millstream.hooks.POINTS` it kills itself when that point is reached for the
COUNT-th time. `tests.crash.kafka_program` does the same on Kafka.

Every effect of the program is a plain function of what each agent has read, so `check` can say what tables and
topics must hold after any commit: the events before the committed positions, each of them once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

import millstream as ms
from millstream.hooks import observe
from millstream.records import TopicPartition
from millstream.serialization import partitioner
from millstream.worker import NOTES, _worker, notes_topic
from millstream.worker._metadata import decode_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from millstream.clock import Clock
    from millstream.transports.base import OffsetAndMetadata

__all__ = [
    "APP",
    "Checker",
    "Entry",
    "Event",
    "LogView",
    "Numbered",
    "Program",
    "Violation",
    "build",
    "changelog",
    "die_at",
    "work",
]

APP = "crash"
PARTITIONS = 3
KEYS = [f"key-{number}" for number in range(11)]
GROUPS = [f"group-{number}" for number in range(7)]
START_MS = 1_700_000_000_000


class Event(msgspec.Struct):
    """An input. The times are how long (ms) each agent sleeps in the middle of it; -1 is not at all."""

    id: int
    key: str
    group: str
    stall: int = -1
    note: int = -1
    slow: int = 0
    fails: int = 0
    """How often agents fail in it, in the middle; they are tried twice more, and then go on without it.

    Below 0 they do not raise, and write a value that cannot be committed."""


class Numbered(msgspec.Struct):
    """What comes of an event: its running number among those of its key."""

    id: int
    key: str
    number: int


class Closed(msgspec.Struct):
    """A window that is final."""

    key: str
    start: int
    count: int


@cache
def shared_keys(partition: int, partitions: int) -> list[str]:
    """Three keys of a shard that all of its events may write."""
    place = partitioner("murmur2")
    found = [
        name
        for name in (f"shared-{number}" for number in range(100 * partitions))
        if place(name.encode(), partitions) == partition
    ]
    return found[:3]


@dataclass(frozen=True, kw_only=True)
class Program:
    """The app and its topics."""

    app: ms.App
    events: Any
    numbered: Any
    finished: Any
    closed: Any
    prefix: str
    partitions: int


def build(
    *,
    clock: Clock | None = None,
    concurrency: int = 50,
    prefix: str = "",
    partitions: int = PARTITIONS,
    **settings: Any,
) -> Program:
    """The program, ready to run.

    Args:
        prefix: what the app's id and the names of its topics begin with.
    """
    app = ms.App(
        prefix + APP,
        clock=clock,
        partitions=partitions,
        on_error=ms.Retry(times=2, backoff=0.001, then="skip"),
        **{"web": False, **settings},
    )
    events = app.topic(f"{prefix}events", value=Event, key_from="key")
    numbered = app.topic(f"{prefix}numbered", value=Numbered, key_from="key")
    finished = app.topic(f"{prefix}finished", value=Numbered, key_from="key")
    closed = app.topic(f"{prefix}closed", value=Closed, key_from="key")
    counts = app.table("counts", key=str, value=int, default=0)
    notes = app.table("notes", key=str, value=dict[str, int], default=dict)
    members = app.set_table("members", key=str, value=int)
    groups = app.table("groups", key=str, value=int, default=0)
    both = app.table("both", key=str, value=int, default=0)
    shared = app.table("shared", key=str, value=int, default=0)
    shared_notes = app.table("shared_notes", key=str, value=dict[str, int], default=dict)
    runs = app.table("runs", key=str, value=int, default=0)
    unfit = app.table("unfit", key=str, value=dict[str, Any], default=dict)
    ticks = app.table("ticks", key=str, value=int, default=0)
    meetings = app.table("meetings", key=str, value=int, default=0)
    met = app.table("met", key=str, value=dict[str, int], default=dict)
    windows = app.table("windows", key=str, value=int, default=0).tumbling(WINDOW_MS / 1_000)

    failed: Counter[tuple[str, int]] = Counter()

    async def pause(milliseconds: int) -> None:
        if milliseconds >= 0:
            await app.clock.sleep(milliseconds / 1_000)

    def fail(agent: str, event: Event) -> None:
        if event.fails:
            failed[agent, event.id] += 1
            if event.fails < 0 and failed[agent, event.id] <= -event.fails:
                unfit[event.key][f"{agent}-{event.id}"] = object()
            if failed[agent, event.id] <= event.fails:
                raise Failing(f"{agent}: event {event.id}, time {failed[agent, event.id]}")

    def begin(agent: str, event: Event) -> None:
        entry = met[event.key]
        entry[agent] = entry.get(agent, 0) + 1

    def end(agent: str, event: Event) -> None:
        entry = met[event.key]
        entry[f"{agent} ended"] = entry.get(f"{agent} ended", 0) + 1

    @app.agent(events)
    async def count(stream: ms.Stream[Event]) -> None:
        async for event in stream:
            counts[event.key] += 1
            if event.id % MEETS == COUNT_MEETS:
                begin("count", event)
            await pause(event.stall)
            fail("count", event)
            if event.id % MEETS == COUNT_MEETS:
                end("count", event)
            await numbered.send(Numbered(event.id, event.key, counts[event.key]))

    @app.agent(events)
    async def note(stream: ms.Stream[Event]) -> None:
        async for event in stream:
            entry = notes[event.key]
            if event.id % 7 == 0:
                continue  # was only read
            entry["begun"] = entry.get("begun", 0) + 1
            await pause(event.note)
            fail("note", event)
            entry["ended"] = entry.get("ended", 0) + 1
            if event.id % 5 == 0:
                del notes[event.key]
            if event.id % 2:
                members.add(event.key, event.id % 4)
            else:
                members.discard(event.key, (event.id + 1) % 4)

    @app.agent(events)
    async def meet(stream: ms.Stream[Event]) -> None:
        """Has a table in common with another agent, which both use so late that they were apart before."""
        async for event in stream:
            meetings[event.key] += 1
            if event.id % MEETS == MEET_MEETS:
                begin("meet", event)
                await pause(event.note)
                fail("meet", event)
                end("meet", event)

    @app.agent(app.stream(events).group_by("group"))
    async def group(stream: ms.Stream[Event]) -> None:
        async for event in stream:
            groups[event.group] += 1

    @app.agent(events, numbered)
    async def join(stream: ms.Stream[Any]) -> None:
        async for value in stream:
            both[value.key] += 1

    async def slow(stream: ms.Stream[Event]) -> None:
        async for event in stream.events():
            value, names = event.value, shared_keys(event.partition, partitions)
            runs[value.key] += 1
            shared[names[value.id % 3]] += 1
            entry = shared_notes[names[value.id % 2]]
            entry["begun"] = entry.get("begun", 0) + value.id
            await pause(value.slow)
            fail("slow", value)
            entry = shared_notes[names[value.id % 2]]
            entry["ended"] = entry.get("ended", 0) + value.id
            shared[names[value.id // 3 % 3]] += 1
            await finished.send(Numbered(value.id, value.key, runs[value.key]))

    if concurrency:
        app.agent(events, concurrency=concurrency)(slow)

    @app.agent(events)
    async def window(stream: ms.Stream[Event]) -> None:
        async for event in stream:
            windows[event.key] += 1

    @windows.on_close
    async def close(key: str, window: ms.Window, value: int) -> None:
        await closed.send(Closed(key, window.start, value))

    @app.timer(0.05, scope="shard")
    async def tick() -> None:
        from millstream.context import current

        name = shared_keys(current.get().shard.number, partitions)[0]
        ticks[name] += 1

    return Program(
        app=app,
        events=events,
        numbered=numbered,
        finished=finished,
        closed=closed,
        prefix=prefix,
        partitions=partitions,
    )


WINDOW_MS = 50
MEETS, COUNT_MEETS, MEET_MEETS = 11, 9, 10
"""Events with such an id, modulo the first, are those in which agents use the table ``met``."""
ALWAYS = 1_000_000_000
"""As `Event.fails`: nothing comes of it."""


class Failing(Exception):
    """What events raise that fail on purpose."""


# what must hold


class Violation(AssertionError):
    """The log says something that cannot be."""


class Entry(NamedTuple):
    """A record of a partition."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass
class LogView:
    """A moment of the log: records by partition from the first offset on, and committed positions.

    Topics have their names without the program's prefix.
    """

    records: Mapping[TopicPartition, Sequence[Entry]]
    positions: Mapping[TopicPartition, OffsetAndMetadata] = field(default_factory=dict)

    def of(self, topic: str, partition: int) -> Sequence[Entry]:
        """A partition's records."""
        return self.records.get(TopicPartition(topic, partition), ())

    def position(self, agent: str, topic: str, partition: int) -> int:
        """How far an agent's work is committed."""
        found = self.positions.get(TopicPartition(topic, partition))
        if found is None:
            return 0
        return max(found.offset, decode_metadata(found.metadata).a.get(agent, 0))

    def done(self, agent: str, topic: str, partition: int) -> list[Entry]:
        """The records that an agent has committed."""
        at = self.position(agent, topic, partition)
        return [entry for entry in self.of(topic, partition) if entry.offset < at]

    def table(self, name: str, partition: int) -> dict[bytes, bytes]:
        """A table as its changelog tells it: reserved keys left out."""
        found: dict[bytes, bytes] = {}
        for entry in self.of(changelog(name), partition):
            assert entry.key is not None
            if entry.value is None:
                found.pop(entry.key, None)
            elif entry.key[:1] not in (b"\x00", b"\x04"):
                found[entry.key] = entry.value
        return found


def changelog(table: str) -> str:
    """The changelog's name, also that of the shards' notes."""
    return notes_topic(APP, PARTITIONS) if table == NOTES else f"{APP}-{table}-changelog"


GROUP_TOPIC = f"{APP}-events-by-group"
_event = msgspec.json.Decoder(Event)
_numbered = msgspec.json.Decoder(Numbered)


def _require(found: object, wanted: object, what: str) -> None:
    if found != wanted:
        raise Violation(f"{what}: found {found!r}, and it must be {wanted!r}")


class Checker:
    """Compares a log with the model; knows the layout of the tables' keys from a program."""

    def __init__(self, program: Program) -> None:
        self._partitions = program.partitions
        self._layouts = {
            name: declared.layout
            for name, declared in program.app.tables.items()
            if name != "windows"
        }
        program.app.streams.compile()
        self._agents = set(program.app.agents)
        self.regroup = f"stream:{program.prefix}events"
        self.group_topic = next(
            topic.name.removeprefix(program.prefix)
            for topic in program.app.agents["group"].sources[0].topics
        )

    def _table(self, view: LogView, name: str, partition: int) -> dict[Any, Any]:
        layout = self._layouts[name]
        return {
            layout.decode(key): msgspec.json.decode(value)
            for key, value in view.table(name, partition).items()
        }

    def check(self, view: LogView, *, complete: bool = False) -> None:
        """Raise `Violation` unless tables and outputs are what the committed positions say.

        Each partition number is looked at once, one after the other.
        """
        read: list[int] = []
        regrouped: list[int] = []
        for partition in range(self._partitions):
            self._first_stage(view, partition)
            if "slow" in self._agents:
                self._concurrent(view, partition)
            self._windows(view, partition, complete=complete)
            merged: Counter[str] = Counter()
            for topic, decoder in (("events", _event), ("numbered", _numbered)):
                for entry in view.done("join", topic, partition):
                    merged[decoder.decode(entry.value or b"").key] += 1
            _require(self._table(view, "both", partition), dict(merged), f"both/{partition}")
            grouped = Counter(
                _event.decode(entry.value or b"").group
                for entry in view.done("group", self.group_topic, partition)
            )
            _require(self._table(view, "groups", partition), dict(grouped), f"groups/{partition}")
            done = view.done(self.regroup, "events", partition)
            read += [_event.decode(entry.value or b"").id for entry in done]
            regrouped += self._regrouped(view, partition)
            if complete:
                self._complete(view, partition)
        _require(sorted(regrouped), sorted(read), "regrouped events")

    def is_read(self, view: LogView) -> bool:
        """Whether the committed positions are at the ends, which says less than `check` and is quick."""
        return all(
            at >= end
            for number in range(self._partitions)
            for *_, at, end in self._ends(view, number)
        )

    def readers(self) -> list[tuple[str, str]]:
        """Agents, each with a topic that it reads."""
        first = ("count", "note", "meet", "join", "slow", "window")
        return [
            *((name, "events") for name in first if name in self._agents),
            (self.regroup, "events"),
            ("join", "numbered"),
            ("group", self.group_topic),
        ]

    def _complete(self, view: LogView, partition: int) -> None:
        for agent, topic, at, end in self._ends(view, partition):
            # Kafka has the ends of transactions between records
            _require(max(at, end), at, f"position of {agent} in {topic}/{partition}")

    def _ends(self, view: LogView, partition: int) -> Iterator[tuple[str, str, int, int]]:
        for agent, topic in self.readers():
            records = view.of(topic, partition)
            end = records[-1].offset + 1 if records else 0
            yield agent, topic, view.position(agent, topic, partition), end

    def _first_stage(self, view: LogView, partition: int) -> None:
        counts: Counter[str] = Counter()
        wanted = []
        met: dict[str, Counter[str]] = defaultdict(Counter)
        for entry in view.done("count", "events", partition):
            event = _event.decode(entry.value or b"")
            if abs(event.fails) == ALWAYS:
                continue
            counts[event.key] += 1
            if event.id % MEETS == COUNT_MEETS:
                met[event.key].update(("count", "count ended"))
            wanted.append(Numbered(event.id, event.key, counts[event.key]))
        _require(self._table(view, "counts", partition), dict(counts), f"counts/{partition}")
        meetings: Counter[str] = Counter()
        for entry in view.done("meet", "events", partition):
            event = _event.decode(entry.value or b"")
            meets = event.id % MEETS == MEET_MEETS
            if meets and abs(event.fails) == ALWAYS:
                continue
            meetings[event.key] += 1
            if meets:
                met[event.key].update(("meet", "meet ended"))
        _require(self._table(view, "meetings", partition), dict(meetings), f"meetings/{partition}")
        _require(self._table(view, "met", partition), dict(met), f"met/{partition}")
        _require(self._table(view, "unfit", partition), {}, f"unfit/{partition}")
        found = [_numbered.decode(e.value or b"") for e in view.of("numbered", partition)]
        _require(found, wanted, f"numbered/{partition}")
        notes: dict[str, dict[str, int]] = defaultdict(dict)
        members: dict[str, set[int]] = defaultdict(set)
        for entry in view.done("note", "events", partition):
            event = _event.decode(entry.value or b"")
            if event.id % 7 == 0 or abs(event.fails) == ALWAYS:
                continue
            for name in ("begun", "ended"):
                notes[event.key][name] = notes[event.key].get(name, 0) + 1
            if event.id % 5 == 0:
                del notes[event.key]
            if event.id % 2:
                members[event.key].add(event.id % 4)
            else:
                members[event.key].discard((event.id + 1) % 4)
        _require(self._table(view, "notes", partition), dict(notes), f"notes/{partition}")
        found_members = {
            key: set(some) for key, some in self._table(view, "members", partition).items()
        }
        _require(found_members, {k: v for k, v in members.items() if v}, f"members/{partition}")

    def _concurrent(self, view: LogView, partition: int) -> None:
        names = shared_keys(partition, self._partitions)
        runs: Counter[str] = Counter()
        shared: Counter[str] = Counter()
        sums: Counter[str] = Counter()
        wanted: dict[str, list[Numbered]] = defaultdict(list)
        for entry in view.done("slow", "events", partition):
            event = _event.decode(entry.value or b"")
            if abs(event.fails) == ALWAYS:
                continue
            runs[event.key] += 1
            shared[names[event.id % 3]] += 1
            shared[names[event.id // 3 % 3]] += 1
            sums[names[event.id % 2]] += event.id
            wanted[event.key].append(Numbered(event.id, event.key, runs[event.key]))
        _require(self._table(view, "runs", partition), dict(runs), f"runs/{partition}")
        _require(self._table(view, "shared", partition), dict(shared), f"shared/{partition}")
        _require(
            self._table(view, "shared_notes", partition),
            {name: {"begun": total, "ended": total} for name, total in sums.items()},
            f"shared_notes/{partition}",
        )
        found: dict[str, list[Numbered]] = defaultdict(list)
        for entry in view.of("finished", partition):
            output = _numbered.decode(entry.value or b"")
            found[output.key].append(output)
        _require(dict(found), dict(wanted), f"finished/{partition}")

    def _windows(self, view: LogView, partition: int, *, complete: bool) -> None:
        done = view.done("window", "events", partition)
        counted: Counter[tuple[str, int]] = Counter()
        latest = -1
        for entry in done:
            start = entry.timestamp // WINDOW_MS * WINDOW_MS
            latest = max(latest, entry.timestamp)
            if start + WINDOW_MS > latest:
                counted[_event.decode(entry.value or b"").key, start] += 1
        found: dict[tuple[str, int], int] = {}
        for entry in view.of("closed", partition):
            closed = msgspec.json.decode(entry.value or b"", type=Closed)
            at = closed.key, closed.start
            if at in found:
                raise Violation(f"closed/{partition}: window {at} was closed twice")
            found[at] = closed.count
        final = {at: n for at, n in counted.items() if at[1] + WINDOW_MS <= latest}
        for at, n in found.items():
            _require(n, final.get(at), f"closed/{partition}: window {at}")
        if complete:
            _require(found, final, f"closed/{partition}")

    def _regrouped(self, view: LogView, partition: int) -> list[int]:
        """The ids of a partition's regrouped events, those of one key in the order in which they came."""
        last: dict[str, int] = {}
        found = []
        for entry in view.of(self.group_topic, partition):
            event = _event.decode(entry.value or b"")
            if event.id <= last.get(event.key, event.id - 1):
                raise Violation(
                    f"{self.group_topic}/{partition}: {event} comes after {last[event.key]}"
                )
            last[event.key] = event.id
            found.append(event.id)
        return found


# a worker process


async def work(program: Program) -> None:
    """Work until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with program.app.running(worker=True):
        runtime = program.app.runtime
        assert runtime is not None
        while not stopping.is_set() and not runtime.failed():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 0.1)


def die_at(log: str, point: str, count: int) -> Callable[[str, dict[str, object]], None]:
    """An observer that kills this process when ``point`` is reached for the ``count``-th time."""
    left = count

    def observe_point(reached: str, facts: dict[str, object]) -> None:
        nonlocal left
        if reached == point:
            left -= 1
            if left == 0:
                with open(f"{log}.died-at-{point}", "w"):
                    os.kill(os.getpid(), signal.SIGKILL)

    return observe_point


def main(log: str, slot: str, point: str = "", count: str = "1") -> None:
    """One worker process."""
    program = build(
        concurrency=50,
        broker=f"local://{log}",
        slot=slot,
        session_timeout="1s",
        commit_interval="5ms",
    )
    # on a slow machine a run takes longer than that, and those who check want to see every record
    _worker.PURGE_INTERVAL_S = 3_600.0  # type: ignore[attr-defined]
    with observe(die_at(log, point, int(count))):
        asyncio.run(work(program))


if __name__ == "__main__":
    main(*sys.argv[1:])
