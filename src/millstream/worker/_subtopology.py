"""Agents, timers and callbacks of a shard that have to do with one another, and what they share.

Theory of operation
-------------------
Inside a shard, programs meet in tables and nowhere else: each agent has inboxes, positions and a pace of its own, also
where others read the same topic, and what one sends, another one reads once it is committed. So those who use a table
in common, directly or by way of others, are a *sub-topology*. It has a gate, an append buffer, a bound in bytes and a
stream time of its own; it keeps journals or does not; it goes into an epoch by itself, or stays out for once. Nobody
waits for one that it shares no table with.

Which tables somebody uses is known once they are used. So everybody begins alone, and two sub-topologies *merge* when
one of them uses a table of the other.

Journals
    An event that a cut finds in the middle has to stay out of the epoch, with all who have seen its work (see
    `millstream.worker._cut`). That takes a scope and a journal for each event, which cost more than everything else.
    So each sub-topology begins with journals, and stops keeping them when none of so many events was ever found in the
    middle. Should a cut find one later, journals begin again, at once and for good. What is in the middle then has none:
    it *overlaps* those that have. As nobody can tell what it has seen of them, and they of it, the sub-topology
    stays out of the epochs until it has ended, and then goes in whole. The same holds where a sub-topology without
    journals merges with one that has them.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millstream.errors import RecordTooLargeError
from millstream.transports.batch import RecordPack
from millstream.worker._cut import before_excluded, choose_excluded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from millstream.context import Output, PreImage, Scope
    from millstream.records import OutgoingRecord, TopicPartition
    from millstream.tables import TablePart
    from millstream.worker._lane import Lane
    from millstream.worker._shard import Shard

__all__ = ["Positions", "Share", "SubTopology"]

Positions = dict[tuple[str, "TopicPartition"], int]
"""By agent and partition: the offset after what is finished, or committed."""

Sent = defaultdict["TopicPartition", RecordPack]
Note = tuple[str, "int | str", "Scope"]
"""Name, value, and the event."""

EVENT_OUTPUT_EPOCHS = 4
"""How many times ``epoch_bytes_max`` the output of one event may be."""
QUIET_EVENTS = 500
"""After so many events of which none was found in the middle, a sub-topology stops keeping journals."""
TIED_S = 0.25
"""When finished events were kept out of the epochs for so long, by ties to others, intake stops until they go."""
OVERLAPPING_EVENTS_MAX = 4_096
"""Events with a journal that may come in while one without is in the middle; then intake stops."""


@dataclass(slots=True)
class Share:
    """What a sub-topology gives to an epoch."""

    subtopology: SubTopology
    limits: Positions
    """Up to where its agents' inputs are in it."""
    outputs: dict[TopicPartition, RecordPack]
    """What its events have sent, in order."""
    notes: list[Note]
    """What they have noted."""
    parts: list[TablePart]
    time_before: int
    """What `SubTopology.cut_time` was before."""


class SubTopology:
    """A sub-topology in one shard, which begins with one agent, timer or callback."""

    def __init__(self, shard: Shard, *, epoch_bytes_max: int) -> None:
        self._shard = shard
        self._epoch_bytes_max = epoch_bytes_max
        self.merged_into: SubTopology | None = None
        self.members: set[str] = set()
        """Names of its agents, timers and callbacks."""
        self.lanes: list[Lane] = []
        self.parts: dict[str, TablePart] = {}
        """Of the tables that it uses."""
        self.sent: Sent = defaultdict(RecordPack)
        """What events without a journal have sent since the last cut."""
        self.output: list[Output] = []
        """What events with one have sent."""
        self.notes: list[Note] = []
        """What events have noted: it goes into the epoch with them."""
        self.epoch_bytes = 0
        """Input taken, and output, since the last cut."""
        self.epoch_bytes_watch = epoch_bytes_max
        """Above it, an event that sends calls `filling`."""
        self._full_at: dict[TopicPartition, int] = {}
        """How many bytes had been sent when the next epoch was found full."""
        self.stream_time = -1
        self.cut_time = -1
        """The stream time that what was cut has brought: what stays out is processed again after a crash, in its own."""
        self.time_advanced = False
        """Whether event time has moved without a record, and is to be committed."""
        self.journaled = True
        self.events: dict[Scope, None] = {}
        """Events with a journal that are open, or that have written and are not committed, in order."""
        self.callbacks: set[Scope] = set()
        """Events without a journal that come from no record and are open."""
        self.overlapped = False
        """Whether events without a journal may have met some that have one."""
        self._quiet_events = 0
        self._finished_events = 0
        self._looked_at_events = 0
        """How many were finished when `_drop_journals` looked last."""
        self._tied: dict[tuple[str, TopicPartition], tuple[int, float]] = {}
        """Where ties hold back finished events: from which offset, and since when."""
        self.gate = asyncio.Event()
        self.gate.set()
        self._closed_by: set[str] = set()
        self._room = asyncio.Event()
        self.closing = asyncio.Lock()
        """Held by whoever calls the functions for its final windows."""

    def __repr__(self) -> str:
        return f"<SubTopology of {', '.join(sorted(self.members))}>"

    def current(self) -> SubTopology:
        """What has become of it: itself, or what it was merged into."""
        found = self
        while found.merged_into is not None:
            found = found.merged_into
        return found

    def absorb(self, other: SubTopology) -> None:
        """Take in another one, as somebody uses tables of both."""
        if self.journaled != other.journaled:
            plain = other if self.journaled else self
            plain.set_journaled(True)
            self.overlapped = self.overlapped or plain.has_plain_events()
        self.overlapped = self.overlapped or other.overlapped
        self.members |= other.members
        self.parts.update(other.parts)
        for tp, sent in other.sent.items():
            self.sent[tp].extend(sent)
        self.output += other.output
        self.notes += other.notes
        self.epoch_bytes += other.epoch_bytes
        self.stream_time = max(self.stream_time, other.stream_time)
        self.cut_time = max(self.cut_time, other.cut_time)
        self.time_advanced = self.time_advanced or other.time_advanced
        for scope in (*other.events, *other.callbacks):
            scope.subtopology = self
        for lane in other.lanes:
            lane.subtopology = self
            for instance in lane.instances:
                instance.scope.subtopology = self
        self.lanes += other.lanes
        self.events.update(other.events)
        self.callbacks |= other.callbacks
        self._quiet_events = self._finished_events = self._looked_at_events = 0
        self._tied.update(other._tied)
        other.merged_into = self
        for reason in other._closed_by:
            self.close_gate(reason)
        other.gate.set()
        other._room.set()

    # the gate: intake stops while any reason holds ------------------------------------------------

    def close_gate(self, reason: str) -> None:
        """Take in nothing more, for this reason."""
        self._closed_by.add(reason)
        self.gate.clear()

    def open_gate(self, reason: str) -> None:
        """The reason holds no longer."""
        self._closed_by.discard(reason)
        if reason == "epoch full":
            self._room.set()
        if not self._closed_by and not self.gate.is_set():
            self.gate.set()
            for lane in self.lanes:
                lane.stir()

    def is_closed_by(self, reason: str) -> bool:
        """Whether intake has stopped for this reason, among others."""
        return reason in self._closed_by

    def interrupt(self) -> None:
        """Have every instance stop between two events, and ask what comes next."""
        for lane in self.lanes:
            for instance in lane.instances:
                instance.interrupted = True

    def took_run(self) -> None:
        """A run is through: bound what waits for the next commit."""
        if self.journaled:
            self._drop_journals()
        if self._shard.is_full(self):
            self._full()
        if self.overlapped and len(self.events) > OVERLAPPING_EVENTS_MAX:
            self.close_gate("journals begin")
        self._shard.time_moves()
        self._shard.wake()

    @property
    def is_full(self) -> bool:
        """Whether the next epoch is: nothing more comes in before a commit."""
        return "epoch full" in self._closed_by

    def _full(self) -> None:
        """The next epoch is above its bound: the events at hand are the last ones before a commit."""
        if self.is_full:
            return
        self.close_gate("epoch full")
        self._full_at = {tp: sent.size for tp, sent in self.sent.items()}
        self.epoch_bytes_watch = self.epoch_bytes + self._epoch_bytes_max
        self.interrupt()

    def filling(self, scope: Scope) -> None:
        """An event sends although the next epoch is full: that is fine, up to several times the bound.

        Raises:
            RecordTooLargeError: this event alone has sent more than that.
        """
        self._full()
        self.epoch_bytes_watch = self.epoch_bytes + self._epoch_bytes_max
        limit = self._epoch_bytes_max * EVENT_OUTPUT_EPOCHS
        if scope.journal is None:
            size = sum(sent.size - self._full_at.get(tp, 0) for tp, sent in self.sent.items())
        else:
            size = _size(record for _, record, event in self.output if event is scope)
        if size > limit:
            raise RecordTooLargeError(
                "the output of this event", size=size, limit=limit, setting="epoch_bytes_max"
            )

    def time_reached(self, timestamp: int) -> None:
        """Event time has come so far."""
        if timestamp > self.stream_time:
            self.stream_time = timestamp
            self._shard.time_moves()

    async def until_room(self) -> None:
        """Wait while the next epoch is full."""
        if self.is_full:
            self._room.clear()
            await self._room.wait()

    # events ---------------------------------------------------------------------------------------

    def in_progress(self) -> bool:
        """Whether some event is in the middle, waiting for something."""
        return bool(self.callbacks) or any(lane.in_progress() for lane in self.lanes)

    def has_plain_events(self) -> bool:
        """Whether some event without a journal is in the middle."""
        return bool(self.callbacks) or any(
            instance.in_event and instance.scope.journal is None
            for lane in self.lanes
            for instance in lane.instances
        )

    def undo(self, scope: Scope) -> bool:
        """Make it as if the event had not run; False where only a rewind can."""
        if scope.journal is None or self.overlapped:
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
        self.output[:] = [output for output in self.output if output[-1] is not scope]
        self.notes[:] = [note for note in self.notes if note[-1] is not scope]
        if self.epoch_bytes > self._epoch_bytes_max:
            kept = _size(record for _, record, _ in self.output)
            self.epoch_bytes = kept + sum(sent.size for sent in self.sent.values())
        return True

    def _forget_toucher(self, scope: Scope, part: Any, key: Any) -> None:
        """Whoever touches the entry next sees the work of those who did before ``scope``."""
        before = [
            (event.journal[part, key].order, event)
            for event in self.events
            if event is not scope and event.journal and (part, key) in event.journal
        ]
        if before:
            part.last_toucher[key] = max(before, key=lambda found: found[0])[1]
        else:
            del part.last_toucher[key]

    def event_finished(self, scope: Scope) -> bool:
        """A journaled event of an agent is finished.

        Returns:
            Whether it is of no further interest, as it has written nothing.
        """
        self._finished_events += 1
        if scope.wrote or scope.has_times:
            return False
        self.events.pop(scope, None)
        return True

    def set_journaled(self, on: bool) -> None:
        """Whether events that begin from now on have journals."""
        self.journaled = on
        self.interrupt()

    # the commit -----------------------------------------------------------------------------------

    def positions(self) -> Positions:
        """Up to where its agents have finished."""
        return {
            (lane.agent.name, tp): lane.position(tp) for lane in self.lanes for tp in lane.inboxes
        }

    def has_work(self) -> bool:
        """Whether there may be something to commit, besides the positions of its agents."""
        return bool(
            self.sent
            or self.output
            or self.notes
            or self.time_advanced
            or any(part.is_dirty() for part in self.parts.values())
        )

    def cut(self, cut_positions: Positions) -> Share | None:
        """Take the finished prefix out; None when nothing can be taken now.

        Args:
            cut_positions: those of the last cut.
        """
        if not self.journaled and self.in_progress():
            self._shard.suspending.update(self.members)
            self.set_journaled(True)
            self.overlapped = True
        if self.overlapped and self.has_plain_events():
            return None
        limits = self.positions()
        unfinished = limits.copy()
        excluded = choose_excluded(list(self.events), limits) if self.events else set()
        if self.overlapped:
            if any(event.wrote for event in excluded):
                self.close_gate("journals begin")
                return None
            self.overlapped = False
            self.open_gate("journals begin")
        self._watch_ties(unfinished, limits)
        taken = [event for event in self.events if event not in excluded]
        if excluded and not taken and not self._moves(limits, cut_positions, excluded):
            return None
        # only now, as it rewrites the events' journals for the cut
        before: Mapping[Any, dict[Any, PreImage]] = before_excluded(excluded) if excluded else {}
        outputs, self.sent = self.sent, defaultdict(RecordPack)
        kept = []
        for output in self.output:
            if output[2] in excluded:
                kept.append(output)
            else:
                outputs[output[0]].append(output[1])
        self.output = kept
        notes = [note for note in self.notes if note[-1] not in excluded]
        for name, value, _ in notes:
            self._shard.put_note(name, value)
        self.notes = [note for note in self.notes if note[-1] in excluded]
        self.events = {event: None for event in self.events if event in excluded}
        ahead = Counter(event.agent for event in excluded)
        for lane in self.lanes:
            lane.ahead = ahead[lane.agent.name]
            lane.stir()
        for event in excluded:
            if event.has_ties:
                event.depends &= excluded
        for part in self.parts.values():
            if self.journaled:
                part.take_times(taken)
            part.cut(before.get(part, {}))
            if self.journaled:
                part.last_toucher = {k: s for k, s in part.last_toucher.items() if s in excluded}
        for event in taken:
            event.settle()
        self.epoch_bytes = 0
        self.epoch_bytes_watch = self._epoch_bytes_max
        self.time_advanced = False
        time_before, self.cut_time = self.cut_time, self._time_of(taken if excluded else None)
        self._note_quiet(bool(excluded))
        self.open_gate("epoch full")
        return Share(self, limits, outputs, notes, list(self.parts.values()), time_before)

    def _time_of(self, taken: Iterable[Scope] | None) -> int:
        """Stream time as far as these events have brought it, of which some may be missing; None stands for all."""
        if taken is None:
            return self.stream_time
        return max([self.cut_time, *(e.timestamp for e in taken if e.record is not None)])

    def _watch_ties(self, unfinished: Positions, limits: Positions) -> None:
        """Stop intake where finished events stay out again and again, tied to others that overlap for ever."""
        now = self._shard.clock.monotonic()
        tied = {}
        for source, at in limits.items():
            if at < unfinished[source]:
                before = self._tied.get(source)
                tied[source] = before if before is not None and before[0] == at else (at, now)
        self._tied = tied
        if not tied:
            self.open_gate("tied events")
        elif any(now - since >= TIED_S for _, since in tied.values()):
            self.close_gate("tied events")

    def _moves(self, limits: Positions, cut_positions: Positions, excluded: set[Scope]) -> bool:
        """Whether there is something in a cut at these positions, although it takes no event."""
        return (
            bool(self.sent)
            or any(at > cut_positions[source] for source, at in limits.items())
            or any(scope not in excluded for _, _, scope in self.notes)
        )

    def _note_quiet(self, excluded: bool) -> None:
        if not self.journaled or self._shard.failures.is_searching:
            return
        suspending = self._shard.suspending
        if excluded or any(lane.agent.concurrency > 1 for lane in self.lanes):
            suspending.update(self.members)
        self._quiet_events += self._finished_events
        self._finished_events = 0
        if (
            self._quiet_events >= QUIET_EVENTS
            and not self.events
            and suspending.isdisjoint(self.members)
        ):
            self.set_journaled(False)

    def _drop_journals(self) -> None:
        """Go on without journals before the next cut, if that would take all that has been done.

        A commit may take long, and events with a journal cost several times as much as those without. What
        they have done stays as it is, and is from now on the work of events without one.
        """
        finished = self._quiet_events + self._finished_events
        if (
            finished - self._looked_at_events < QUIET_EVENTS
            or self.overlapped
            or self._closed_by
            or self._shard.failures.is_searching
            or any(lane.agent.concurrency > 1 for lane in self.lanes)
            or not self._shard.suspending.isdisjoint(self.members)
        ):
            return
        self._looked_at_events = finished
        events = list(self.events)
        if choose_excluded(events, self.positions()):
            return
        for part in self.parts.values():
            part.take_times(events)
            part.last_toucher = {}
        for tp, record, _ in self.output:
            self.sent[tp].append(record)
        self.output = []
        self.events = {}
        for event in events:
            event.settle()
        for lane in self.lanes:
            lane.ahead = 0
        self.set_journaled(False)

    def give_back(self, share: Share) -> None:
        """The epoch was refused, and the shard stays here: what was cut goes with the next one."""
        self.cut_time = min(self.cut_time, share.time_before)
        self.notes[:0] = share.notes
        for part in share.parts:
            part.restore(self.events)
        for tp, sent in share.outputs.items():
            whole = RecordPack()
            whole.extend(sent)
            whole.extend(self.sent[tp])
            self.sent[tp] = whole
            self._full_at[tp] = self._full_at.get(tp, 0) + sent.size
            self.epoch_bytes += sent.size
            self.epoch_bytes_watch += sent.size


def _size(records: Iterable[OutgoingRecord]) -> int:
    """Bytes of keys and values."""
    return sum(len(record[1] or b"") + len(record[2] or b"") for record in records)
