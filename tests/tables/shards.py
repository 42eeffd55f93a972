"""A shard in one object, for tests of table parts: events, cuts, commits, give-backs, crashes.

It does what `millstream.worker.Shard` and the committer do to parts, in the same order, without agents and a
log: the changelog is a dict. And the most naive windowed aggregation there is, as the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, NamedTuple

from millstream.clock import Clock, ManualClock
from millstream.context import Output, Scope, current
from millstream.records import TopicPartition
from millstream.state.memory import MemoryBackend, MemoryStore
from millstream.tables import TablePart
from millstream.tables._windowed_part import WindowedPart, index_key
from millstream.windows import AnyWindows, Session, Sliding, Window
from millstream.worker._cut import before_excluded, choose_excluded
from millstream.worker._due import DueFailures

if TYPE_CHECKING:
    from millstream.worker._calls import CallFailure

MakePart = Callable[[Any, Callable[[Any], None]], TablePart]

TP = TopicPartition("events", 0)


class Record(NamedTuple):
    """As much of a record as a scope needs."""

    offset: int
    timestamp: int
    key: bytes | None = None
    value: bytes | None = b""
    headers: Any = ()


class Cut(NamedTuple):
    """What a commit takes."""

    events: list[Scope]
    offset: int
    parts: list[TablePart]


class Shard:
    """Parts of tables, a store, and a changelog for each table."""

    def __init__(self, tables: dict[str, MakePart], *, journaled: bool) -> None:
        self.tables = tables
        self.journaled = journaled
        self.changelogs: dict[str, dict[bytes, bytes]] = {name: {} for name in tables}
        self.records_written = 0
        self.committed_offset = 0
        self.committed_events: list[Scope] = []
        """Every event of a commit, in the order in which they began."""
        self.checked: list[Any] = []
        self.output: list[Output] = []
        self.clock: Clock = ManualClock()
        self.counters: Counter[str] = Counter()
        self.call_failures: dict[Hashable, CallFailure] = {}
        self.due = DueFailures([], self.counters)
        self._backend = MemoryBackend()
        self._store: MemoryStore | None = None
        self.start()

    # life -----------------------------------------------------------------------------------------

    def start(self, *, rebuild: bool = False) -> None:
        """Begin anew from what is committed; with ``rebuild`` from the changelogs alone."""
        if self._store is not None:
            self._store.close()
        if rebuild:
            self._backend.destroy("shard")
        self.events: list[Scope] = []
        self.done: set[int] = set()
        self.given_back: list[Scope] = []
        self.call_failures.clear()
        self.next_offset = self.committed_offset
        self._store = self._backend.open("shard")
        self.parts: dict[str, Any] = {}
        for name, make in self.tables.items():
            self.parts[name] = make(self._store.table(name), self.checked.append)
        if rebuild:
            for name, changelog in self.changelogs.items():
                self._write(name, dict(changelog))
        for part in self.parts.values():
            part.recovered()

    def begin(self, timestamp: int, *, key: bytes | None = None) -> Scope:
        """Open the next record's event, and make it the current one."""
        scope = self.scope("agent", journaled=self.journaled)
        scope.tp = TP
        scope.record = Record(self.next_offset, timestamp, key)
        scope.timestamp = timestamp
        scope.open = True
        self.next_offset += 1
        self.events.append(scope)
        current.set(scope)
        return scope

    def finish(self, scope: Scope) -> None:
        scope.open = False
        assert scope.record is not None
        self.done.add(scope.record.offset)
        if self.journaled and not scope.wrote:
            self.events.remove(scope)

    def scope(self, agent: str, *, journaled: bool) -> Scope:
        return Scope(
            shard=self, agent=agent, parts=self.parts, subtopology=self, journaled=journaled
        )

    def begin_callback(self, name: str, timestamp: int) -> Scope:
        """As `millstream.worker.Shard` does it."""
        scope = self.scope(name, journaled=self.journaled)
        scope.timestamp = timestamp
        scope.open = True
        self.events.append(scope)
        return scope

    def end_callback(self, scope: Scope) -> None:
        scope.open = False

    def undo_callback(self, scope: Scope) -> bool:
        """Whoever lets a call fail here starts the shard anew after that."""
        return True

    async def seek(self, error: Exception, scope: Scope) -> None:
        raise error

    def rewind(self) -> None:
        raise AssertionError("undo_callback() has done all that there is to do")

    async def commit_before_stop(self) -> None:
        """A crash may come at any moment, also before this."""

    def undo(self, scope: Scope) -> bool:
        """As if the event had not run; False where only a new start can do that."""
        if scope.journal is None:
            return False
        if any(scope in event.depends for event in self.events if event is not scope):
            return False
        for (part, key), before in scope.journal.items():
            part.undo(key, before)
            if part.last_toucher.get(key) is scope:
                self._forget_toucher(scope, part, key)
        for part in scope.times:
            part.undo_time(scope)
        scope.journal.clear()
        scope.depends.clear()
        scope.times.clear()
        scope.wrote = False
        return True

    def _forget_toucher(self, scope: Scope, part: TablePart, key: Any) -> None:
        before = [
            (event.journal[part, key].order, event)
            for event in self.events
            if event is not scope and event.journal and (part, key) in event.journal
        ]
        if before:
            part.last_toucher[key] = max(before, key=lambda found: found[0])[1]
        else:
            del part.last_toucher[key]

    # commits --------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The first offset that is not finished."""
        at = self.committed_offset
        while at in self.done:
            at += 1
        return at

    def cut(self) -> Cut | None:
        """Take the finished prefix; None where that is not possible now."""
        if not self.journaled and any(event.open for event in self.events):
            return None
        limits = {("agent", TP): self.position}
        excluded = choose_excluded(self.events, limits) if self.journaled else set()
        before = before_excluded(excluded)
        taken = [event for event in self.events if event not in excluded]
        self.events = [event for event in self.events if event in excluded]
        for event in excluded:
            event.depends &= excluded
        for part in self.parts.values():
            if self.journaled:
                part.take_times(taken)
            part.cut(before.get(part, {}))
            part.last_toucher = {k: s for k, s in part.last_toucher.items() if s in excluded}
        return Cut(taken, limits["agent", TP], list(self.parts.values()))

    def commit(self, cut: Cut, *, between: Callable[[], None] | None = None) -> None:
        """Encode, write to the changelog, write to the store, settle.

        Args:
            between: called after each slice is encoded, and before the store has it.
        """
        changes: dict[str, list[dict[bytes, bytes | None]]] = {}
        for part in cut.parts:
            changes[part.name] = []
            for slice_ in part.encode():
                changes[part.name].append(slice_)
                if between is not None:
                    between()
        for part in cut.parts:
            for slice_ in changes[part.name]:
                self.records_written += len(slice_)
                for key, data in slice_.items():
                    if data is None:
                        self.changelogs[part.name].pop(key, None)
                    else:
                        self.changelogs[part.name][key] = data
        self.committed_offset = cut.offset
        self.committed_events += self.given_back + cut.events
        self.given_back = []
        for part in cut.parts:
            for slice_ in changes[part.name]:
                self._write(part.name, slice_)
        for part in cut.parts:
            part.settle()

    def give_back(self, cut: Cut, *, encoded: bool = True) -> None:
        """The epoch was refused, and the shard stays."""
        for part in cut.parts:
            if encoded:
                for _ in part.encode():
                    pass
            part.restore(self.events)
        self.given_back += cut.events

    def commit_all(self) -> None:
        cut = self.cut()
        assert cut is not None
        self.commit(cut)

    def _write(self, table: str, changes: Any) -> None:
        assert self._store is not None
        indexed = dict(changes)
        if isinstance(self.parts[table], WindowedPart):
            for key, data in changes.items():
                index = index_key(key)
                if index is not None:
                    indexed[index] = None if data is None else b""
        self._store.write({table: indexed})

    def stored(self, table: str) -> dict[bytes, bytes]:
        """The store's entries, without the index."""
        assert self._store is not None
        return {k: v for k, v in self._store.table(table).items() if k[:1] != b"\x04"}


# -- the model --------------------------------------------------------------------------------------


class Model:
    """Folds updates into windows held in a dict. ``late`` counts the windows that refused one."""

    def __init__(self, windows: AnyWindows) -> None:
        self.windows = windows
        self.stream_time = -1
        self.held: dict[tuple[str, Window], tuple[list[Any], int]] = {}
        """Key and window to what was added, in order, and the newest timestamp."""
        self.closed: list[tuple[str, Window, list[Any]]] = []
        self._waiting: set[tuple[str, Window]] = set()
        self.late = 0

    def feed(self, key: str, added: Any, timestamp: int) -> None:
        """One update; then close what is final. Without a key, time moves and nothing else."""
        self.stream_time = max(self.stream_time, timestamp)
        for entry in [e for e in self.held if e not in self._waiting and self.expired(e[1])]:
            del self.held[entry]
        before = set(self.held)
        windows = self.windows
        if key and isinstance(windows, Session):
            self._session(windows, key, added, timestamp)
        elif key and isinstance(windows, Sliding):
            self._sliding(windows, key, added, timestamp)
        elif key:
            self._aligned(key, added, timestamp)
        self._waiting |= set(self.held) - before
        self._waiting &= set(self.held)
        due = [e for e in self._waiting if self.windows.final_at(e[1]) <= self.stream_time]
        for entry in sorted(due, key=lambda entry: (entry[1].end, entry[1].start, entry[0])):
            self.closed.append((*entry, self.held[entry][0]))
            self._waiting.discard(entry)
        for entry in [entry for entry in self.held if self.expired(entry[1])]:
            del self.held[entry]

    def expired(self, window: Window) -> bool:
        kept_from = window.end if isinstance(self.windows, Session) else window.start
        return self.windows.expires_at(kept_from) <= self.stream_time

    def contents(self) -> dict[tuple[str, Window], list[Any]]:
        """What can be read."""
        return {e: value for e, (value, _) in self.held.items() if not self.expired(e[1])}

    def _aligned(self, key: str, added: Any, timestamp: int) -> None:
        windows = self.windows
        assert not isinstance(windows, Session | Sliding)
        for start in windows.starts(timestamp):
            window = windows.window(start)
            if windows.accepts(window, self.stream_time):
                value, newest = self.held.get((key, window), ([], -1))
                self.held[key, window] = ([*value, added], max(newest, timestamp))
            else:
                self.late += 1

    def _sliding(self, windows: Sliding, key: str, added: Any, timestamp: int) -> None:
        of_key = {w.start: held for (k, w), held in self.held.items() if k == key}
        lowest, highest = windows.reach(timestamp)
        existing = sorted((s, n) for s, (_, n) in of_key.items() if lowest <= s <= highest)
        changes = windows.touch(existing, timestamp, self.stream_time)
        for change in changes:
            base = [] if change.base is None else of_key[change.base][0]
            value = [*base, added] if change.adds else base
            self.held[key, change.window] = (value, change.timestamp)
        if timestamp + windows.width_ms < self.stream_time - windows.grace_ms:
            self.late += 1

    def _session(self, windows: Session, key: str, added: Any, timestamp: int) -> None:
        lowest, highest = windows.reach(timestamp)
        of_key = sorted(w for k, w in self.held if k == key and not self.expired(w))
        existing = [w for w in of_key if w.end >= lowest and w.start <= highest]
        change = windows.touch(existing, timestamp, self.stream_time)
        if change is None:
            self.late += 1
            return
        merged: list[Any] = []
        for window in change.merged:
            merged += self.held.pop((key, window))[0]
        self._waiting -= {(key, window) for window in change.merged}
        self.held[key, change.window] = ([*merged, added], change.window.end)
        self._waiting.add((key, change.window))


def contents(part: WindowedPart, changelog: dict[bytes, bytes]) -> dict[tuple[str, Window], Any]:
    """What a changelog holds, decoded."""
    found = {}
    for data, value in changelog.items():
        if data[:1] in (b"\x02", b"\x03"):
            entry = part.decode_key(data)
            found[part.shown(entry)] = part.value_of(part.decode(entry, value))
    return found
