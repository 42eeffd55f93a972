"""Agents as programs declare them, and the calls that reach them by topic."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import uuid
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from millstream.agents._topic_group import TopicGroup
from millstream.clock import Duration, duration_ms
from millstream.context import current
from millstream.errors import AskError, ConfigurationError, ProgramError, TopologyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from millstream.agents._declared import AgentSource
    from millstream.agents._policy import Policy
    from millstream.agents._topic import Topic
    from millstream.records import Headers, Position

__all__ = ["Agent", "Asker", "Sink", "reply_headers"]

V = TypeVar("V")
R = TypeVar("R")

HEADER_REPLY_TO = "ms-reply-to"
HEADER_CORRELATION = "ms-correlation-id"
HEADER_ERROR = "ms-error"

Sink = Any
"""Where an agent's results go: a topic, another agent, or a function, which may be async."""


class Asker(Protocol):
    """Sends a request and waits for its reply; the running app provides it."""

    async def ask(
        self,
        topic: Topic[Any, Any],
        value: Any,
        *,
        key: Any,
        timeout_s: float | None,
    ) -> bytes | None: ...


class Agent(Generic[V, R]):
    """An async function over a stream, declared on its sources.

    Calling the agent object calls the function, so that a test can drive it by hand.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        *,
        name: str,
        sources: Sequence[AgentSource],
        topic: Topic[V, Any] | None,
        result_codec: Any = None,
        sinks: Sequence[Sink] = (),
        concurrency: int = 1,
        ordered_by: Callable[[Any], Any] | None = None,
        policy: Policy | None = None,
        asker: Asker | None = None,
        internal: bool = False,
    ) -> None:
        if concurrency < 1:
            raise ConfigurationError(
                f"agent {name!r}: concurrency is {concurrency}, and has to be at least 1"
            )
        if not (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)):
            raise ConfigurationError(
                f"agent {name!r} is not an async function: write `async def {name}(stream)`"
            )
        self.function = function
        self.name = name
        self.sources = tuple(sources)
        self.topic = topic
        self.result_codec = result_codec
        self.sinks: list[Sink] = []
        for sink in sinks:
            self.add_sink(sink)
        self.concurrency = concurrency
        self.ordered_by = ordered_by
        self.policy = policy
        self.internal = internal
        self.help = inspect.getdoc(function) or ""
        self._asker = asker
        self.__name__ = name
        self.__doc__ = function.__doc__

    def __repr__(self) -> str:
        return f"<Agent {self.name!r}>"

    def __call__(self, stream: Any) -> Any:
        return self.function(stream)

    def add_sink(self, sink: Sink) -> None:
        """Send the agent's results there as well.

        Raises:
            TopologyError: the sink is several topics that are read as one.
        """
        if isinstance(sink, TopicGroup):
            raise TopologyError(
                f"agent {self.name!r}: the sink {sink.name!r} stands for several topics; name one of"
                f" them, for example with sink=topic.named(...)"
            )
        self.sinks.append(sink)

    def source(self, name: str) -> Topic[Any, Any]:
        """The description by which the agent reads a topic: one of its own name comes before a pattern.

        Raises:
            KeyError: the agent does not read it.
        """
        read = [topic for stream in self.sources for topic in stream.topics if topic.reads(name)]
        for topic in read:
            if name in topic.names:
                return topic.named(name)
        for topic in read:
            return topic.named(name)
        raise KeyError(name)

    def _inbox(self) -> Topic[V, Any]:
        if self.topic is None:
            raise ProgramError(
                f"agent {self.name!r} reads several topics or a derived stream: send to one of its"
                f" topics instead"
            )
        return self.topic

    async def cast(self, value: V, *, key: Any = None) -> Position | None:
        """Send a value to the agent's topic and do not wait for it to be processed.

        Returns:
            Where the record is; None inside an event, with which it is committed.

        Raises:
            ProgramError: the agent reads several topics or a derived stream.
        """
        return await self._inbox().send(value, key=key)

    async def ask(self, value: V, *, key: Any = None, timeout: Duration | None = None) -> R:
        """Send a value and wait for what the agent yields for it, the setting ``reply_timeout`` at most.

        Inside an event the request leaves at once, outside the epoch: it may be repeated after a crash.

        Raises:
            AskError: no answer in time; the agent failed on the value; or the event at hand has already written a table or sent: the agent
                that is asked could not see those writes before this event is finished.
            ProgramError: the agent is no generator, and so has no answers.
        """
        topic = self._inbox()
        if not inspect.isasyncgenfunction(self.function):
            raise ProgramError(
                f"agent {self.name!r} yields nothing, so nobody would answer: `yield` a result for each"
                f" value, or use cast()"
            )
        if self._asker is None:
            raise ProgramError(f"agent {self.name!r} cannot be asked here")
        scope = current.get(None)
        if scope is not None and scope.open and scope.shard.has_written(scope):
            raise AskError(
                f"agent {self.name!r} is asked after a table write or a send in the same event: what"
                f" was written is not committed before the event ends. Ask first, or cast"
            )
        timeout_s = None if timeout is None else duration_ms(timeout, what="ask(timeout=)") / 1_000
        data = await self._asker.ask(topic, value, key=key, timeout_s=timeout_s)
        if data is None or self.result_codec is None:
            return None  # type: ignore[return-value]
        return self.result_codec.loads(data)  # type: ignore[no-any-return]

    async def map(
        self, values: Iterable[V], *, key: Any = None, timeout: Duration | None = None
    ) -> AsyncIterator[R]:
        """Ask for each value, all at once; results as they come.

        Args:
            key: of all requests; taken from each value by ``key_from`` where left out.
            timeout: of each question, as for `ask`.

        Raises:
            AskError: as `ask`, from the first one without an answer; the other questions are given up.
        """
        async with self._asking(values, key, timeout) as asked:
            for done in asyncio.as_completed(asked):
                yield await done

    async def join(
        self, values: Iterable[V], *, key: Any = None, timeout: Duration | None = None
    ) -> list[R]:
        """Ask for each value, all at once; results in the order of the values.

        Args and errors are those of `map`.
        """
        async with self._asking(values, key, timeout) as asked:
            return list(await asyncio.gather(*asked))

    @contextlib.asynccontextmanager
    async def _asking(
        self, values: Iterable[V], key: Any, timeout: Duration | None
    ) -> AsyncIterator[list[asyncio.Task[R]]]:
        """A task for each question; all of them have ended when the block has."""
        tasks = [asyncio.create_task(self.ask(v, key=key, timeout=timeout)) for v in values]
        try:
            yield tasks
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def reply_headers(headers: Headers) -> tuple[str, bytes] | None:
    """Where a request wants its reply, and its correlation id; None for any other record."""
    if not headers:
        return None
    found = dict(headers)
    topic, correlation = found.get(HEADER_REPLY_TO), found.get(HEADER_CORRELATION)
    if topic is None or correlation is None:
        return None
    return topic.decode(), correlation


def new_correlation_id() -> bytes:
    """An id that no other request has."""
    return uuid.uuid4().hex.encode()
