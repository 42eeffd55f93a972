"""Event time of inputs that have fallen silent: ``idle_timeout``.

Theory of operation
-------------------
Event time comes from records, so nothing after the last record ever happens: its windows stay open. Where a topic
or a window has an ``idle_timeout``, the wall clock stands in: each time that so much of it has passed without a record,
event time moves on by as much. It is never set to the wall clock, so a replay of 2013 stays in 2013.

What moves is a window table's own time, and a sub-topology's (timers by event time, entries with a time to live). A
table goes by the inputs of those agents that use it. Of streams these are known; others its part has noted
(`TimedPart.feeders`) and keeps with its entries, as no record may come to tell after a restart. Names of agents that the
program does not have any more count for nothing; where these are all, as after an agent was renamed, any agent may be
the one that uses the table from now on, so it goes by all inputs of the shard, if all of these have a time-out, or the
table has. A sub-topology goes by all of its inputs. Inputs are silent when everything that was fetched is finished, the log confirms that there is no
more, and nothing has come since: an outage is no silence.

A topic between two stages of the app is silent for as long as the topics are that its records come from. So silence there
counts up to the moment of which it is known that all that these had has come through (`millstream.worker._passage`): while
the stage before recovers, or reads a history, event time behind it stands still.

Moved time is part of the next epoch like time that a record brought.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

from millstream.errors import LogUnavailableError, UnknownTopicError
from millstream.tables import TimedPart

if TYPE_CHECKING:
    from collections.abc import Iterable

    from millstream.transports.base import Transport
    from millstream.worker._lane import Lane
    from millstream.worker._passage import Passage
    from millstream.worker._shard import Shard
    from millstream.worker._subtopology import SubTopology

__all__ = ["follow_silence"]

LOOK_S_MAX = 5.0
"""How soon it is noticed that an agent has new inputs or has begun to use a table, or that a stage before is through."""


class _Subject(NamedTuple):
    """What has a time that may move by itself, after how long, and its inputs."""

    of: SubTopology | TimedPart
    idle_ms: int
    lanes: list[Lane]

    def silent_ms(self, until: float) -> int:
        """For how long nothing had come at a moment, in whole time-outs."""
        silent_s = max(0.0, until - self.since)
        return round(silent_s * 1_000) // self.idle_ms * self.idle_ms

    def known_until(self, passage: Passage, now: float) -> float:
        """Up to which moment all is here that was meant for it."""
        topics = {tp.topic for lane in self.lanes for tp in lane.inboxes}
        return min((passage.until(topic, now) for topic in topics), default=now)

    @property
    def since(self) -> float:
        return max(lane.active_at for lane in self.lanes)


async def follow_silence(shard: Shard, transport: Transport, passage: Passage) -> NoReturn:
    """Move the event time of a running shard on, for as long as it runs."""
    clock = shard.clock
    followed: dict[SubTopology | TimedPart, float] = {}
    """Up to which moment of the monotonic clock silence has moved time; a merge may move its beginning before that."""
    while True:
        for lane in shard.lanes.values():
            if not lane.is_quiet():
                lane.active_at = clock.monotonic()
        if shard.has_work():  # nobody else tells of positions behind what was never committed
            shard.wake()
        subjects = list(_subjects(shard))
        if any(subject.silent_ms(clock.monotonic()) for subject in subjects):
            await _confirm(shard, transport, passage)
        now = clock.monotonic()
        wake = now + _shortest_ms(shard) / 1_000
        for subject in subjects:
            since, ms = subject.since, subject.silent_ms(subject.known_until(passage, now))
            moved = max(0, round((followed.get(subject.of, since) - since) * 1_000))
            if ms > moved:
                shard.advance_idle(subject.of, ms - moved)
                followed[subject.of] = since + ms / 1_000
            due = since + (ms + subject.idle_ms) / 1_000
            if due <= now:  # a stage before is not through
                due = now + min(subject.idle_ms / 1_000, LOOK_S_MAX)
            wake = min(wake, due)
        await clock.sleep(max(wake - now, 0.001))


async def _confirm(shard: Shard, transport: Transport, passage: Passage) -> None:
    """An input that the log has more of, or that the log cannot tell about, is not silent."""
    inputs = [(lane, tp) for lane in shard.lanes.values() for tp in lane.inboxes]
    try:
        await passage.look((tp.topic for _, tp in inputs), shard.clock.monotonic())
        ends = await transport.end_offsets([tp for _, tp in inputs])
    except (LogUnavailableError, UnknownTopicError):  # of a stage before, perhaps
        ends = {}
    now = shard.clock.monotonic()
    for lane, tp in inputs:
        if tp not in ends or ends[tp] > lane.inboxes[tp].fetched:
            lane.active_at = now


def _subjects(shard: Shard) -> Iterable[_Subject]:
    for each in shard.subtopologies:
        idle_ms = _idle_ms(each.lanes)
        if idle_ms is not None and each.stream_time >= 0:
            yield _Subject(each, idle_ms, each.lanes)
    for part in shard.own_parts.values():
        if not isinstance(part, TimedPart) or part.stream_time < 0:
            continue
        feeding = [shard.lanes[name] for name in part.feeders if name in shard.lanes]
        idle_ms = part.idle_ms if part.idle_ms is not None else _idle_ms(feeding)
        if part.feeders and not feeding and shard.has_user(part.name):
            feeding = list(shard.lanes.values())
            if idle_ms is None and all(_idle_ms([lane]) is not None for lane in feeding):
                idle_ms = _idle_ms(feeding)
        if idle_ms is not None and feeding:
            yield _Subject(part, idle_ms, feeding)


def _idle_ms(lanes: Iterable[Lane]) -> int | None:
    """The longest time-out of these agents' inputs, as far as they have any."""
    found = [inbox.source.idle_ms for lane in lanes for inbox in lane.inboxes.values()]
    return max((ms for ms in found if ms is not None), default=None)


def _shortest_ms(shard: Shard) -> int:
    """No time-out passes unnoticed that is as long as this."""
    found = [
        inbox.source.idle_ms for lane in shard.lanes.values() for inbox in lane.inboxes.values()
    ]
    found += [part.idle_ms for part in shard.own_parts.values() if isinstance(part, TimedPart)]
    return min((ms for ms in found if ms is not None), default=round(LOOK_S_MAX * 1_000))
