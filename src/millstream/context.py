"""Which shard and event is being processed.

A `Scope` is one event as the tables and topics see it. An agent instance sets `current` once and reuses one
scope for all of its events, as long as none of its shard's events is ever cut in the middle. In a shard where
that can happen (see `millstream.worker._cut`) each event gets a scope of its own, which keeps a journal: what
it touched first and how that looked before, and which other events' unfinished work it has seen.

A task inherits the scope of whoever creates it, and may write as long as that event lasts. A scope that
many events share cannot tell: so a task that is created under one gets a `TaskScope`, which knows its event
(`watched_tasks`). That costs something where a task is created, and nothing for an event that creates none.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from millstream.records import Headers, OutgoingRecord, TopicPartition

__all__ = [
    "IncomingRecord",
    "Output",
    "PreImage",
    "Scope",
    "TaskScope",
    "current",
    "watched_tasks",
]


class IncomingRecord(Protocol):
    """A record as it comes out of a batch: what aiokafka's C record offers."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


Output = tuple["TopicPartition", "OutgoingRecord", "Scope"]
"""A record that an event with a journal has sent, waiting for the epoch, and the event. A plain tuple: there are many."""


class PreImage(NamedTuple):
    """How an entry of a table looked before an event first touched it.

    ``dirty`` tells whether the entry had a value of this epoch; only then does ``value`` mean something: the
    value itself where it cannot change in place, else its bytes.
    """

    dirty: bool
    value: Any
    order: int = 0
    """Touches of a table's entries are numbered, so that the earliest one can be told."""


class Scope:
    """One event, or the events of one agent instance one after the other."""

    __slots__ = (
        "_depends",
        "_times",
        "agent",
        "journal",
        "open",
        "part",
        "parts",
        "record",
        "shard",
        "stream",
        "subtopology",
        "table",
        "timestamp",
        "tp",
        "value",
        "wrote",
    )

    def __init__(
        self,
        *,
        shard: Any,
        agent: str,
        parts: Mapping[str, Any],
        subtopology: Any,
        journaled: bool,
    ) -> None:
        self.shard = shard
        """The running shard; `millstream.worker` knows its type."""
        self.agent = agent
        """Name of the agent, timer or callback."""
        self.parts = parts
        """The shard's part of every table, by the table's name."""
        self.table: Any = None
        """The one that was used last, as most agents use the same one again, and in `part` the shard's part of it."""
        self.part: Any = None
        self.subtopology = subtopology
        """Those of the shard that the event is connected with; `millstream.worker` knows its type."""
        self.open = False
        """Whether an event is in progress: only then may tables be used."""
        self.record: IncomingRecord | None = None
        self.tp: TopicPartition | None = None
        self.timestamp = 0
        """Event time of the event, ms since the epoch."""
        self.stream: Any = None
        self.value: Any = None
        self.wrote = False
        """Whether the event has written a table or sent; kept only with a journal."""
        self.journal: dict[tuple[Any, Any], PreImage] | None = {} if journaled else None
        self._depends: set[Scope] | None = None
        self._times: dict[Any, int] | None = None

    def append(self, tp: TopicPartition, record: OutgoingRecord) -> None:
        """Send a record, which is encoded already and may be a plain tuple, as part of the event."""
        to = self.subtopology
        if self.journal is None:
            pack = to.sent[tp]
            if pack.add(pack.count, *record) is None:
                pack.append(record)
            else:
                pack.count += 1
        else:
            self.wrote = True
            to.output.append((tp, record, self))
        to.epoch_bytes += len(record[1] or b"") + len(record[2] or b"")

    def settle(self) -> None:
        """The event is in an epoch: nobody asks any more what it has touched, and whose work it has seen.

        Its scope may be kept for long, as that of an instance that waits for its next event; with what it knows, and
        those whom it knows, it would keep all that ever were.
        """
        self._depends = self._times = None
        if self.journal:
            self.journal.clear()

    @property
    def depends(self) -> set[Scope]:
        """Events whose work this one has seen; kept only with a journal."""
        if self._depends is None:
            self._depends = set()
        return self._depends

    @depends.setter
    def depends(self, events: set[Scope]) -> None:
        self._depends = events

    @property
    def has_ties(self) -> bool:
        """Whether `depends` has anything in it."""
        return bool(self._depends)

    @property
    def has_times(self) -> bool:
        """Whether `times` has anything in it."""
        return bool(self._times)

    @property
    def times(self) -> dict[Any, int]:
        """Highest event time that this event gave to each windowed part; kept only with a journal."""
        if self._times is None:
            self._times = {}
        return self._times


current: ContextVar[Scope] = ContextVar("millstream_scope")


class TaskScope(Scope):
    """One event of a scope that many share, as a task sees it that the event has started."""

    __slots__ = ("_shared",)

    def __init__(self, shared: Scope) -> None:
        super().__init__(
            shard=shared.shard,
            agent=shared.agent,
            parts=shared.parts,
            subtopology=None,
            journaled=False,
        )
        self._shared = shared
        # a task from outside of any event: there is no record that could ever be the one at hand
        self.record = shared.record if shared.open else None
        self.tp = shared.tp
        self.timestamp = shared.timestamp
        self.stream = shared.stream

    @property
    def subtopology(self) -> Any:
        """That of the agent, whatever it is connected with by now."""
        return self._shared.subtopology

    @subtopology.setter
    def subtopology(self, value: Any) -> None:
        """Whoever connects it says so to the shared scope."""

    @property
    def open(self) -> bool:
        """Whether the event that has started the task is in progress."""
        shared = self._shared
        return shared.open and self.record is not None and shared.record is self.record

    @open.setter
    def open(self, value: bool) -> None:
        """Whoever runs the event says so to the shared scope."""


def _scope_for_task() -> Scope | None:
    """The scope that a task has to be given which is created here; None where it inherits the right one."""
    scope = current.get(None)
    if scope is None or scope.journal is not None or type(scope) is TaskScope:
        return None
    return TaskScope(scope)


def _plain(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
    """Create a task as a loop without a factory does."""
    return asyncio.Task(work, loop=loop, **options)


class _Factory:
    """Creates tasks as the loop's own factory does, under the scope that is theirs."""

    def __init__(self, before: Any) -> None:
        self.before = before
        self.users = 0
        self._create = _plain if before is None else before

    def __call__(self, loop: asyncio.AbstractEventLoop, work: Any, /, **options: Any) -> Any:
        scope = _scope_for_task()
        if scope is None:
            return self._create(loop, work, **options)
        token = current.set(scope)
        try:
            return self._create(loop, work, **options)
        finally:
            current.reset(token)


@contextmanager
def watched_tasks(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Have tasks that events create in ``loop`` know their event, for the length of the block.

    Several may overlap. A task that is created with a ``context`` of its own has the scope of that.
    """
    found = loop.get_task_factory()
    factory = found if isinstance(found, _Factory) else _Factory(found)
    installed: Any = factory
    loop.set_task_factory(installed)
    factory.users += 1
    try:
        yield
    finally:
        factory.users -= 1
        if factory.users == 0 and loop.get_task_factory() is installed:
            loop.set_task_factory(factory.before)
