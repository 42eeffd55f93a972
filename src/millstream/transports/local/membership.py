"""One worker's place in a group: a thread that renews its lease, follows the group, and buries the dead.

The thread is the only one that knows the group; the event loop gets assignments from it and hands it
commands through a queue, whose time-out is the thread's clock. Every `TICK_S` it

1. reads the group, if the file has changed: a new generation goes to the event loop;
2. looks whether other members are gone (their process has ended, or their lease has run out);
3. if so, or if its own lease is due, writes: renews, removes the dead, and makes a new generation.

It stops renewing when the loop does not turn, and after the group has removed its member it joins again under a
new id as soon as the loop turns.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import uuid
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from millstream.errors import InternalError, LogUnavailableError
from millstream.transports.local import groups
from millstream.transports.local.processes import boottime

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Mapping

    from millstream.transports.base import AssignFunction, Assignment
    from millstream.transports.local.file import LogFile

__all__ = ["LocalMembership", "Terms"]

T = TypeVar("T")

TICK_S = 0.1
"""How soon a new generation or a dead process is noticed."""
RENEWALS = 5
"""How often a lease is renewed within its length."""
LATE_S = 0.5
"""A tick that comes later than this was kept back by something that may have kept others back too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a worker is in a group."""

    group: str
    assign: AssignFunction
    session_timeout_s: float
    max_poll_interval_s: float


class LocalMembership:
    """A membership of the embedded log. `join` it first."""

    def __init__(self, file: LogFile, terms: Terms, metadata: bytes) -> None:
        self._terms = terms
        self._loop = asyncio.get_running_loop()
        self._alive_at = time.monotonic()
        self._left = False
        # What the thread tells the loop:
        self._news = asyncio.Event()
        self._pending: Assignment | None = None
        self._failure: BaseException | None = None
        self._returned_member_id = ""
        self._heart = _Heart(file, terms, metadata, self)
        self._thread = threading.Thread(
            target=self._heart.run, name=f"millstream-member-{terms.group}", daemon=True
        )

    async def join(self) -> None:
        """Take a place in the group.

        Raises:
            TransportError: the log did not let us.
        """
        self._thread.start()
        try:
            await self._heart.tell(self._heart.join)
        except BaseException:
            self._heart.abandon()
            raise

    async def next_assignment(self) -> Assignment:
        """Wait for the next assignment that was not returned yet."""
        while self._pending is None:
            if self._failure is not None:
                raise self._failure
            if self._left:
                raise InternalError(
                    f"an assignment was awaited after leaving {self._terms.group!r}"
                )
            self._news.clear()
            await self._news.wait()
        assignment, self._pending = self._pending, None
        self._returned_member_id = assignment.member_id
        return assignment

    def alive(self) -> None:
        """Tell that the event loop turns."""
        self._alive_at = time.monotonic()

    def current(self) -> bool:
        """Whether the group confirmed this member, under its present id, within the session time-out."""
        heart = self._heart
        return (
            not self._left
            and heart.member_id == self._returned_member_id
            and boottime() - heart.confirmed_at < self._terms.session_timeout_s
        )

    async def update(self, metadata: bytes) -> None:
        """Replace this member's metadata, which causes a rebalance."""
        await self._heart.tell(lambda connection: self._heart.update(connection, metadata))

    def note(self, metadata: bytes) -> None:
        """Replace this member's metadata from the next rebalance on."""
        # nobody waits for it: what goes wrong goes wrong again with the next renewal, which has an owner
        self._heart.post(lambda connection: self._heart.note(connection, metadata))

    async def leave(self) -> None:
        """Leave at once. Idempotent."""
        if self._left:
            return
        self._left = True
        self._news.set()
        try:
            await self._heart.tell(self._heart.leave)
        except LogUnavailableError:
            pass  # the lease will run out by itself
        finally:
            self._heart.stop()

    async def suspect(self, member_id: str, *, processes: Mapping[str, str] | None = None) -> bool:
        """Nothing to do: this member looks itself whether the others' processes are there."""
        return False

    def close(self) -> None:
        """Wait for the thread's end, once it was told to leave; blocks."""
        self._heart.stop()
        self._thread.join()

    # what the thread calls

    def loop_turns(self) -> bool:
        """Whether the event loop has been heard of lately."""
        return time.monotonic() - self._alive_at < self._terms.max_poll_interval_s

    def assigned(self, assignment: Assignment) -> None:
        """Hand an assignment to the loop."""
        self._call(self._deliver, assignment)

    def failed(self, exc: BaseException) -> None:
        """Let the loop raise what has ended the thread."""
        with suppress(_LoopClosedError):
            self._call(self._fail, exc)

    def _call(self, function: Callable[[T], None], value: T) -> None:
        try:
            self._loop.call_soon_threadsafe(function, value)
        except RuntimeError as exc:
            raise _LoopClosedError from exc

    def _deliver(self, assignment: Assignment) -> None:
        self._pending = assignment
        self._news.set()

    def _fail(self, exc: BaseException) -> None:
        self._failure = exc
        self._news.set()


class _LoopClosedError(Exception):
    """The event loop ended without leaving the group."""


_Command = tuple["Callable[[sqlite3.Connection], None]", "Future[None]"]


class _Heart:
    """What runs in the thread; ``member_id`` and ``confirmed_at`` may be read from elsewhere."""

    def __init__(
        self, file: LogFile, terms: Terms, metadata: bytes, owner: LocalMembership
    ) -> None:
        self.member_id = ""
        self.confirmed_at = float("-inf")
        self._file = file
        self._terms = terms
        self._metadata = metadata
        self._untold = False
        """Whether the log does not have the metadata yet."""
        self._owner = owner
        self._commands: queue.SimpleQueue[_Command | None] = queue.SimpleQueue()
        self._ended = False
        self._others: list[groups.MemberRow] = []
        self._data_version = -1
        self._generation = -1
        self._ticked_at = boottime()

    async def tell(self, command: Callable[[sqlite3.Connection], None]) -> None:
        """Have a command done in the thread; it is done even if the caller is cancelled."""
        await asyncio.shield(asyncio.wrap_future(self.post(command)))

    def post(self, command: Callable[[sqlite3.Connection], None]) -> Future[None]:
        """Have a command done in the thread."""
        done: Future[None] = Future()
        self._commands.put((command, done))
        if self._ended:
            self._refuse_all()
        return done

    def abandon(self) -> None:
        """Leave, if the place was taken, and end the thread; nobody waits for it."""
        self._commands.put((self.leave, Future()))
        self.stop()

    def stop(self) -> None:
        """End the thread after the commands before this one."""
        self._commands.put(None)

    def run(self) -> None:
        """The thread."""
        try:
            with self._file.translated():
                connection = self._file.connect(durable=False)
                try:
                    self._beat(connection)
                finally:
                    connection.close()
        except _LoopClosedError:
            pass  # the lease runs out
        except Exception as exc:
            self._owner.failed(exc)
        finally:
            self._ended = True
            self._refuse_all()

    def _beat(self, connection: sqlite3.Connection) -> None:
        while True:
            try:
                entry = self._commands.get(timeout=TICK_S)
            except queue.Empty:
                try:
                    with self._file.translated():
                        self._tick(connection)
                except LogUnavailableError:
                    pass  # the next tick tries again; `current` tells how long it has been
                continue
            if entry is None:
                return
            command, done = entry
            if done.set_running_or_notify_cancel():
                try:
                    with self._file.translated():
                        command(connection)
                except BaseException as exc:
                    done.set_exception(exc)
                else:
                    done.set_result(None)

    def _refuse_all(self) -> None:
        while True:
            try:
                entry = self._commands.get_nowait()
            except queue.Empty:
                return
            if entry is not None and entry[1].set_running_or_notify_cancel():
                entry[1].set_exception(
                    LogUnavailableError(f"the membership in group {self._terms.group!r} has ended")
                )

    # commands

    def join(self, connection: sqlite3.Connection) -> None:
        """Take a place under a new id, which makes a generation."""
        terms, asked_at = self._terms, boottime()
        member_id = uuid.uuid4().hex
        with self._file.writing(connection) as waited:
            groups.expire(connection, terms.group, grace_s=waited, spare=None)
            groups.add_member(
                connection,
                terms.group,
                member_id,
                process_id=self._file.process_id,
                lease_s=terms.session_timeout_s,
                metadata=self._metadata,
            )
            groups.rebalance(connection, terms.group, terms.assign)
        self.member_id, self.confirmed_at, self._untold = member_id, asked_at, False
        self._generation = -1
        self._follow(connection)

    def update(self, connection: sqlite3.Connection, metadata: bytes) -> None:
        """Replace the metadata; of a member that was removed it comes with joining again."""
        with self._file.writing(connection):
            if groups.set_metadata(connection, self._terms.group, self.member_id, metadata):
                groups.rebalance(connection, self._terms.group, self._terms.assign)
        self._metadata, self._untold = metadata, False
        self._follow(connection)

    def note(self, connection: sqlite3.Connection, metadata: bytes) -> None:
        """Replace the metadata; everybody reads it with the next generation.

        Where it cannot be written now, it goes with the next renewal.
        """
        self._metadata, self._untold = metadata, True
        with self._file.writing(connection):
            groups.set_metadata(connection, self._terms.group, self.member_id, metadata)
        self._untold = False

    def leave(self, connection: sqlite3.Connection) -> None:
        """Give the place up."""
        with self._file.writing(connection) as waited:
            if groups.remove_member(connection, self._terms.group, self.member_id):
                groups.expire(connection, self._terms.group, grace_s=waited, spare=None)
                groups.rebalance(connection, self._terms.group, self._terms.assign)
        self.confirmed_at = float("-inf")

    # ticks

    def _tick(self, connection: sqlite3.Connection) -> None:
        late_s = boottime() - self._ticked_at - TICK_S
        grace_s = late_s if late_s > LATE_S else 0.0
        (version,) = connection.execute("PRAGMA data_version").fetchone()
        if version != self._data_version:
            self._data_version = version
            self._follow(connection)
        if self._owner.loop_turns():
            if not self.member_id:
                self.join(connection)
            elif self._is_due() or self._somebody_is_over(grace_s):
                self._renew(connection, grace_s)
        # A loop that does not turn gives its place up by silence; the others will see to that.
        self._ticked_at = boottime()

    def _is_due(self) -> bool:
        return boottime() - self.confirmed_at >= self._terms.session_timeout_s / RENEWALS

    def _somebody_is_over(self, grace_s: float) -> bool:
        now = boottime()
        return any(other.is_over(now, grace_s=grace_s) for other in self._others)

    def _renew(self, connection: sqlite3.Connection, grace_s: float) -> None:
        terms, asked_at = self._terms, boottime()
        with self._file.writing(connection) as waited:
            renewed = groups.renew(connection, terms.group, self.member_id)
            if self._untold:
                groups.set_metadata(connection, terms.group, self.member_id, self._metadata)
            if groups.expire(
                connection, terms.group, grace_s=grace_s + waited, spare=self.member_id
            ):
                groups.rebalance(connection, terms.group, terms.assign)
        self._untold = False
        if renewed:
            self.confirmed_at = asked_at
        self._follow(connection)

    def _follow(self, connection: sqlite3.Connection) -> None:
        """Read the group, and hand on an assignment that is new."""
        group = self._terms.group
        with self._file.reading(connection):
            assignment = groups.assignment_of(connection, group, self.member_id)
            self._others = [
                member
                for member in groups.members_of(connection, group)
                if member.member_id != self.member_id
            ]
        if assignment is None:
            self.member_id, self.confirmed_at = "", float("-inf")
        elif assignment.generation != self._generation:
            self._generation = assignment.generation
            self._owner.assigned(assignment)
