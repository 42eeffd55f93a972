"""What an agent iterates over.

The loop in `Stream._values` is the hot path: for each event it sets two attributes, decodes, and yields. It
does not suspend while its run has records, and it makes no task, future, event object or log call.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Generic

from typing_extensions import TypeVar

from millstream.agents._event import Event
from millstream.clock import Duration, duration_ms
from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from millstream.agents._instance import Instance
    from millstream.context import Scope

__all__ = ["Stream"]

V = TypeVar("V")
W = TypeVar("W")
K = TypeVar("K", default=Any)

SKIP = object()
"""Stands for a record that its policy lets pass."""


class Stream(AsyncIterator[V], Generic[V, K]):
    """The values of an agent's sources, in the order in which its shard takes them.

    An event is finished when the next one is asked for; only then may it be committed.
    """

    def __init__(self, instance: Instance, steps: tuple[Callable[[Any], Any], ...] = ()) -> None:
        self._instance = instance
        self._steps = steps
        self._iterator: AsyncIterator[V] | None = None

    def __aiter__(self) -> AsyncIterator[V]:
        return self._steps_over(self._values()) if self._steps else self._values()

    async def __anext__(self) -> V:
        if self._iterator is None:
            self._iterator = self.__aiter__()
        return await self._iterator.__anext__()

    async def _values(self) -> AsyncIterator[Any]:
        instance = self._instance
        while True:
            run = await instance.next_run()
            assert run is not None
            source = run.source
            decode = source.decode
            if instance.journaled:
                for record in run.records:
                    value = instance.begin(run, record)
                    if value is SKIP:
                        value = await instance.undecodable()
                        if value is SKIP:
                            continue
                    yield value
                    instance.finish()
                    if instance.interrupted:
                        break
            else:
                scope = instance.plain_scope()
                scope.tp = run.tp
                scope.open = True
                time_of, latest = source.time_of, -1
                for record in run.records:
                    scope.record = record
                    scope.timestamp = record.timestamp
                    try:
                        value = decode(record.value)  # type: ignore[arg-type]  # None raises
                        if time_of is not None:
                            moment = time_of(value)
                            if moment is not None:
                                scope.timestamp = moment
                                if moment > latest:
                                    latest = moment
                                    instance.time_reached(moment)
                    except Exception as exc:
                        value = instance.tombstone_or_error(record, exc)
                        if value is SKIP:
                            value = await instance.undecodable()
                            scope.open = True
                            if value is SKIP:
                                continue
                    yield value
                    if instance.interrupted:
                        break
                scope.open = False

    async def _steps_over(self, values: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for value in values:
            for step in self._steps:
                value = step(value)
                if value is SKIP:
                    break
            else:
                yield value

    def _with(self, step: Callable[[Any], Any]) -> Stream[Any, K]:
        return Stream(self._instance, (*self._steps, step))

    def filter(self, keep: Callable[[V], Any]) -> Stream[V, K]:
        """The values for which ``keep`` is true."""
        return self._with(lambda value: value if keep(value) else SKIP)

    def map(self, function: Callable[[V], W]) -> Stream[W, K]:
        """What ``function`` makes of each value."""
        return self._with(function)

    def enumerate(self, start: int = 0) -> Stream[tuple[int, V], K]:
        """Values with a running number, which begins anew whenever the agent function does."""
        counter = itertools.count(start)
        return self._with(lambda value: (next(counter), value))

    async def events(self) -> AsyncIterator[Event[V, K]]:
        """Values as `Event`, with key, timestamp, offset, partition, topic and headers."""
        async for value in self:
            scope = self._instance.scope
            record, tp = scope.record, scope.tp
            assert record is not None
            assert tp is not None
            yield Event(
                key=self.decode_key(tp.topic, record.key),
                value=value,
                timestamp=scope.timestamp,
                offset=record.offset,
                partition=tp.partition,
                topic=tp.topic,
                headers=record.headers,
            )

    async def items(self) -> AsyncIterator[tuple[K, V]]:
        """Pairs of key and value."""
        async for value in self:
            scope = self._instance.scope
            assert scope.record is not None
            assert scope.tp is not None
            yield self.decode_key(scope.tp.topic, scope.record.key), value

    async def take(self, count: int, within: Duration | None = None) -> AsyncIterator[list[V]]:
        """Lists of up to ``count`` values; a shorter one when ``within`` has passed since its first.

        The list is the event: all of its records are finished together, and a failure concerns them all.

        Raises:
            ConfigurationError: the agent has a concurrency, or ``count`` is below 1.
        """
        if count < 1:
            raise ConfigurationError(f"take: count is {count}, and has to be at least 1")
        wait_s = None if within is None else duration_ms(within, what="take(within=)") / 1_000
        async for values in self._instance.batches(count, wait_s):
            kept = []
            for value in values:
                for step in self._steps:
                    value = step(value)
                    if value is SKIP:
                        break
                else:
                    kept.append(value)
            if kept:
                yield kept

    @property
    def scope(self) -> Scope:
        """The event at hand."""
        return self._instance.scope

    @property
    def key_decoders(self) -> dict[str, Callable[[bytes], Any]]:
        """What decodes the keys of each topic."""
        return {name: source.decode_key for name, source in self._instance.sources.items()}

    def decode_key(self, topic: str, key: bytes | None) -> Any:
        """A record's key in the declared type."""
        if key is None:
            return None
        return self._instance.sources[topic].decode_key(key)

    def decode_value(self, topic: str, value: bytes | None) -> Any:
        """A record's value in the declared type, decoded once more."""
        if value is None:
            return None
        return self._instance.sources[topic].decode(value)
