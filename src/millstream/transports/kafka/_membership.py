"""One worker's place in a group: what the event loop sees of it; the member itself lives in a thread of its own.

The thread has its own event loop and its own connections, so that a slow callback in the worker's loop does not
cost the membership. Assignments come from it one after the other, none left out, because a worker keeps its uncommitted
work only from one generation to the next; they are void once the group has removed the member.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from millstream.errors import InternalError, LogUnavailableError
from millstream.transports.kafka._member import Member, Terms
from millstream.transports.local.processes import boottime

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from millstream.transports.base import Assignment
    from millstream.transports.kafka._cluster import Access

__all__ = ["KafkaMembership", "Terms"]

T = TypeVar("T")

PENDING_MAX = 100
"""Assignments that wait for the loop; after that the oldest is lost, and the worker begins anew."""


class KafkaMembership:
    """A membership of a Kafka group. `join` it first."""

    def __init__(self, access: Access, terms: Terms, metadata: bytes) -> None:
        self._terms = terms
        self._loop = asyncio.get_running_loop()
        self._alive_at = time.monotonic()
        self._left = False
        self._member = Member(access, terms, metadata, self)
        self._returned_member_id = ""
        # What the thread tells the loop:
        self._news = asyncio.Event()
        self._pending: deque[Assignment] = deque(maxlen=PENDING_MAX)
        self._failure: BaseException | None = None
        self._accepted = asyncio.Event()
        self._ended = asyncio.Event()
        # What the loop tells the thread:
        self._thread_loop = asyncio.new_event_loop()
        self._leaving = asyncio.Event()
        self._thread = threading.Thread(
            target=self._run, name=f"millstream-member-{terms.group}", daemon=True
        )

    async def join(self) -> None:
        """Begin; returns when the group knows of the member.

        Raises:
            LogUnavailableError: no broker answers.
            ConfigurationError: the brokers, or the group as it is, do not take it.
        """
        self._thread.start()
        try:
            await self._accepted.wait()
        except BaseException:
            self._tell_leaving()
            raise
        if self._failure is not None:
            raise self._failure

    async def next_assignment(self) -> Assignment:
        """Wait for the next assignment that was not returned yet."""
        while not self._pending:
            if self._failure is not None:
                raise self._failure
            if self._left:
                raise InternalError(
                    f"an assignment was awaited after leaving {self._terms.group!r}"
                )
            self._news.clear()
            await self._news.wait()
        assignment = self._pending.popleft()
        self._returned_member_id = assignment.member_id
        return assignment

    def alive(self) -> None:
        """Tell that the event loop turns."""
        self._alive_at = time.monotonic()

    def current(self) -> bool:
        """Whether the group confirmed this member, under its present id, within the session time-out."""
        member = self._member
        return (
            not self._left
            and self._failure is None
            and member.member_id == self._returned_member_id
            and boottime() - member.confirmed_at < self._terms.session_timeout_s
        )

    async def update(self, metadata: bytes) -> None:
        """Replace this member's metadata; returns when the group has it, with the rebalance that it causes."""
        await self._in_thread(self._member.update(metadata))

    def note(self, metadata: bytes) -> None:
        """Replace this member's metadata from the next rebalance on."""
        self._member.metadata = metadata

    async def suspect(self, member_id: str, *, processes: Mapping[str, str] | None = None) -> bool:
        """Remove a member whose process is gone, if that is for this one to do (see `Failover`)."""
        return await self._in_thread(self._member.suspect(member_id, processes or {}))

    async def leave(self) -> None:
        """Leave at once. Idempotent."""
        self._left = True
        self._news.set()
        self._tell_leaving()
        await self._ended.wait()

    # inside

    def _tell_leaving(self) -> None:
        with suppress(RuntimeError):  # it has ended
            self._thread_loop.call_soon_threadsafe(self._leaving.set)

    async def _in_thread(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            done = asyncio.run_coroutine_threadsafe(work, self._thread_loop)
        except RuntimeError:  # it has ended
            work.close()
            raise self._over() from None
        ended = asyncio.ensure_future(self._ended.wait())
        answer = asyncio.wrap_future(done)
        try:
            both: set[asyncio.Future[Any]] = {answer, ended}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise self._over()
            return answer.result()
        finally:
            ended.cancel()
            answer.cancel()

    def _over(self) -> Exception:
        return LogUnavailableError(f"the membership in group {self._terms.group!r} has ended")

    # what the thread does

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._thread_loop) as runner:
                runner.run(self._live())
        except _LoopClosedError:
            pass  # nobody is there to tell
        except BaseException as exc:
            with suppress(_LoopClosedError):
                self._call(self._fail, exc)
        finally:
            with suppress(_LoopClosedError):
                self._call(self._end)

    async def _live(self) -> None:
        serving = asyncio.ensure_future(self._member.serve(self._leaving))
        accepted = asyncio.ensure_future(self._member.accepted.wait())
        try:
            await asyncio.wait({serving, accepted}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                self._call(self._accepted.set)
            await serving
        finally:
            accepted.cancel()
            serving.cancel()

    def loop_turns(self) -> bool:
        """Whether the event loop has been heard of lately."""
        return time.monotonic() - self._alive_at < self._terms.max_poll_interval_s

    def assigned(self, assignment: Assignment) -> None:
        """Hand an assignment to the loop."""
        self._call(self._deliver, assignment)

    def expelled(self) -> None:
        """Take back what the loop has not taken yet."""
        self._call(self._pending.clear)

    def _call(self, function: Callable[..., object], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *values)
        except RuntimeError as exc:
            raise _LoopClosedError from exc

    # what the thread has the loop do

    def _deliver(self, assignment: Assignment) -> None:
        self._pending.append(assignment)
        self._news.set()

    def _fail(self, exc: BaseException) -> None:
        self._failure = exc
        self._news.set()

    def _end(self) -> None:
        self._accepted.set()
        self._ended.set()
        self._news.set()


class _LoopClosedError(Exception):
    """The event loop ended without leaving the group."""
