"""What follows when an event of a shard fails: its policy, new attempts, and what has to start over for that."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NoReturn

from millstream.agents import user_line
from millstream.context import Scope
from millstream.errors import AgentError
from millstream.records import Position
from millstream.tables import DueError, DueFirstError
from millstream.worker._notes import passed_note
from millstream.worker._search import BlameSearch, table_value_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from millstream.agents import Failure, Run
    from millstream.context import IncomingRecord
    from millstream.errors import EncodeError, MillstreamError, RecordTooLargeError
    from millstream.records import TopicPartition
    from millstream.worker._shard import Shard
    from millstream.worker._specs import AgentSpec, TableSpec
    from millstream.worker._subtopology import Positions

__all__ = ["Failures"]

logger = logging.getLogger("millstream.worker")

STOP_WAIT_S = 1.0
"""How long a record that stops the worker waits for those before it."""


class Failures:
    """The failures of one shard. What is known of them outlives its new starts."""

    def __init__(
        self, shard: Shard, *, tables: Sequence[TableSpec], topic_ids: Mapping[str, str]
    ) -> None:
        self._shard = shard
        self._tables = tables
        self._topic_ids = topic_ids
        self._attempts: dict[tuple[str, TopicPartition, int], int] = {}
        self._condemned: dict[tuple[str, TopicPartition, int], BaseException] = {}
        """Records that have failed for good, and whose work others had seen: they do not run once more. And those that
        do not yet, as something is due first."""
        self._journaled_for: set[str] = set()
        """Agents that keep journals only until such a record comes again."""
        self._search: BlameSearch | None = None
        """While the event is looked for whose value could not be committed."""

    @property
    def is_searching(self) -> bool:
        """Whether the event is looked for whose value could not be committed."""
        return self._search is not None

    def condemned(self, scope: Scope) -> BaseException | None:
        """Why a journaled event that begins may not run again; None where it may."""
        if not self._condemned or scope.tp is None or scope.record is None:
            return None
        return self._condemned.get((scope.agent, scope.tp, scope.record.offset))

    def check(self, scope: Scope) -> None:
        """An event ends: see whether what it has written can be committed, where that is in doubt.

        Raises:
            EncodeError, RecordTooLargeError: it cannot; the event is not finished then.
        """
        if self._search is not None:
            self._search.check(scope)

    def look(self, scope: Scope) -> None:
        """In the middle of an event: the same, so that a row that it hands on is told from the rest of it."""
        if self._search is not None:
            self._search.look(scope)

    def settled(self, committed: Mapping[TopicPartition, int], positions: Positions) -> None:
        """Everything before these positions is committed."""
        if self._search is not None and self._search.is_over(positions):
            self._search = None
        if self._condemned:
            self._condemned = {
                (agent, tp, offset): error
                for (agent, tp, offset), error in self._condemned.items()
                if offset >= committed.get(tp, 0)
            }

    async def failed(self, spec: AgentSpec, failure: Failure) -> bool:
        """Undo the event and apply the policy; see `millstream.agents.InstanceHost`."""
        tp, offset = failure.run.tp, failure.record.offset
        refused = table_value_error(failure.error)
        if failure.ran and refused is not None:
            await self.seek(refused, failure.scope)
        if isinstance(failure.error, DueError):
            return await self._row_failed(spec, failure, failure.error)
        if isinstance(failure.error, DueFirstError):
            return await self._due_first(spec, failure, failure.error)
        identity = spec.agent.name, tp, offset
        attempts = self._attempts.get(identity, 0) + 1
        policy = spec.policies.get(tp.topic, spec.policy)
        if not failure.ran and identity in self._condemned:
            attempts = max(attempts, policy.retries + 1)
        if policy.action == "stop" and attempts > policy.retries:
            await self._stop(spec, failure)
        self._attempts[identity] = attempts
        if failure.ran and not self._undo(failure):
            if attempts > policy.retries and failure.scope.journal is not None:
                # the same would happen again, and again the others would have to start over
                self._condemn(spec, failure)
            await self._start_over()
        where = Position(*tp, offset)
        if attempts <= policy.retries:
            logger.warning(
                "agent %r: %s: %s; attempt %d of %d",
                spec.agent.name,
                where,
                failure.error,
                attempts,
                policy.retries + 1,
            )
            await self._shard.clock.sleep(policy.delay_s(attempts))
            return True
        line = user_line(failure.error)
        logger.error(
            "agent %r: %s %s (key %r)%s: %s: %s",
            spec.agent.name,
            "sets aside" if policy.action == "dlq" else "skips",
            where,
            failure.record.key,
            f" at {line}" if line else "",
            type(failure.error).__name__,
            failure.error,
        )
        set_aside = policy.action == "dlq"
        self._shard.counters["events_" + ("dead_lettered" if set_aside else "skipped")] += 1
        if set_aside:
            spec.dead_letter(failure.scope, failure)
        self._note_passed(spec, failure)
        if spec.refuse is not None:
            spec.refuse(failure.scope, failure)
        del self._attempts[identity]
        return False

    async def _row_failed(self, spec: AgentSpec, failure: Failure, error: DueError) -> bool:
        """A row that the record has brought out has failed: the record comes again, and the row alone pays for it."""
        delay_s = self._shard.due.note(error, (failure.run.tp, failure.record.offset))
        if delay_s is None:
            await self._stop(spec, failure)
        if failure.ran and not self._undo(failure):
            await self._start_over()
        await self._shard.clock.sleep(delay_s)
        return True

    async def _due_first(self, spec: AgentSpec, failure: Failure, error: DueFirstError) -> bool:
        """Have out what is due before the record, in events of its own; then the record comes again."""
        shard, name = self._shard, spec.agent.name
        identity = name, failure.run.tp, failure.record.offset
        if failure.ran and not failure.scope.subtopology.undo(failure.scope):
            if name not in shard.suspending:
                self._journaled_for.add(name)
                shard.suspending.add(name)
            self._condemned[identity] = error
            await self._start_over()
        self._condemned.pop(identity, None)
        scope = failure.scope
        part = scope.parts[error.table]
        # it has done nothing: it is no event in the middle for the commits to come
        scope.subtopology.events.pop(scope, None)
        shard.advance_idle(part, max(0, error.moment - part.stream_time))
        await shard.until_open(name)
        if not failure.ran:  # else it comes again as another one
            scope.subtopology.events[scope] = None
        if name in self._journaled_for:
            self._journaled_for.discard(name)
            shard.suspending.discard(name)
        return True

    def _undo(self, failure: Failure) -> bool:
        done: bool = failure.scope.subtopology.undo(failure.scope)
        if not done:
            self._shard.suspending.add(failure.scope.agent)
        return done

    def _condemn(self, spec: AgentSpec, failure: Failure) -> None:
        listed: list[tuple[Run, IncomingRecord]] = [
            *failure.before,
            (failure.run, failure.record),
        ]
        for run, record in listed:
            self._condemned[spec.agent.name, run.tp, record.offset] = failure.error

    async def _start_over(self) -> NoReturn:
        self._shard.rewind()
        await asyncio.Event().wait()
        raise AssertionError("a shard that starts over cancels what is in progress")

    def _note_passed(self, spec: AgentSpec, failure: Failure) -> None:
        """What a table's reader lets pass is no part of the table: recovery, which decodes nothing, is told."""
        for table in self._tables:
            if (
                table.source is not None
                and table.source == failure.run.tp.topic
                and table.reader == spec.agent.name
            ):
                note = passed_note(table.name, failure.record.offset)
                self._shard.note(note, self._topic_ids[table.source], failure.scope)

    # values that cannot be committed --------------------------------------------------------------

    def cannot_commit(self, error: EncodeError | RecordTooLargeError) -> None:
        """Something that an event has written cannot be committed: start over, and find the event.

        Raises:
            EncodeError, RecordTooLargeError: that has been done, and found nobody to blame.
        """
        shard = self._shard
        if not shard.ready.is_set():
            return  # an event has met the value before the commit did, and the shard starts over already
        if self._search is not None:
            raise error
        logger.warning(
            "shard %s of %s looks for the event that did this: %s", shard.number, shard.count, error
        )
        self._search = BlameSearch(shard.positions(), callbacks=shard.has_callbacks)
        shard.rewind()

    async def seek(self, error: EncodeError | RecordTooLargeError, scope: Scope) -> None:
        """An event met a table's value that cannot be encoded: return only if it is the event's own."""
        if self._search is None or not self._shard.ready.is_set():
            self.cannot_commit(error)
            await asyncio.Event().wait()
        assert self._search is not None
        self._search.found()
        other = error.culprit
        if not isinstance(other, Scope) or other is scope:
            return
        if other.record is not None and other.tp is not None:
            self._condemned[other.agent, other.tp, other.record.offset] = error
            await self._start_over()

    # the end --------------------------------------------------------------------------------------

    async def _stop(self, spec: AgentSpec, failure: Failure) -> NoReturn:
        """Commit what comes before the record, so that one can go past it, and stop the worker.

        Where the event cannot be undone, the shard starts over, and stops when the record's turn comes again,
        without giving it to the agent.
        """
        tp, offset = failure.run.tp, failure.record.offset
        lane = self._shard.lanes[spec.agent.name]
        if not lane.journaled or (failure.ran and not self._undo(failure)):
            self._shard.suspending.add(spec.agent.name)
            self._condemn(spec, failure)
            await self._start_over()
        loop = asyncio.get_running_loop()  # real time: a clock that is moved by hand stands still
        deadline = loop.time() + STOP_WAIT_S
        while lane.position(tp) < offset and loop.time() < deadline:  # noqa: ASYNC110
            # with concurrency, events before it may be in progress, and nobody says when the last one ends
            await asyncio.sleep(0.005)
        await self._shard.commit()
        if isinstance(failure.error, DueError):
            raise self._shard.due.stopped(failure.error)
        raise _stopped(spec, failure)

    async def commit_before_stop(self) -> None:
        """Commit what is finished, once events in progress have ended, as far as they do in time."""
        shard = self._shard
        shard.close_gate("stopping")
        loop = asyncio.get_running_loop()  # real time: a clock that is moved by hand stands still
        deadline = loop.time() + STOP_WAIT_S
        while shard.in_progress() and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)  # nobody says when the last one ends
        await shard.commit()


def _stopped(spec: AgentSpec, failure: Failure) -> MillstreamError:
    key = failure.record.key
    shown = None if key is None else key.decode("utf-8", "backslashreplace")
    return AgentError(
        f"agent {spec.agent.name!r}",
        cause=failure.error,
        record=str(Position(*failure.run.tp, failure.record.offset)),
        key=shown,
        line=user_line(failure.error),
    )
