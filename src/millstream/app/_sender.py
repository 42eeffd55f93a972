"""Sending and asking outside of events, by way of whatever runs the app."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.errors import ProgramError, UnknownTopicError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from millstream.agents import Topic
    from millstream.app._app import App
    from millstream.app._runtime import Runtime
    from millstream.records import OutgoingRecord, TopicPartition

__all__ = ["AppSender"]


class AppSender:
    """What topics and agents need of the running app."""

    def __init__(self, app: App) -> None:
        self._app = app

    def _runtime(self) -> Runtime:
        runtime = self._app.runtime
        if runtime is None:
            if self._app.ended is not None:
                raise ProgramError(self._app.why_not_running())
            raise ProgramError(
                f"app {self._app.id!r} is not running here: send and ask inside"
                f" `async with app.running(worker=False):`, in an agent, or in a page"
            )
        return runtime

    def now(self) -> int:
        """The wall clock, in ms since the epoch."""
        return self._app.clock.now()

    def partitions(self, topic: str) -> int:
        """How many partitions the topic has.

        Raises:
            UnknownTopicError: it is not there, or was made so recently that the app has not found it yet.
        """
        runtime = self._runtime()
        if topic not in runtime.partitions:
            raise UnknownTopicError(topic, where=runtime.transport.url)
        return runtime.partitions[topic]

    @property
    def record_bytes_max(self) -> int:
        """The largest record, in bytes."""
        return self._app.settings.record_bytes_max

    async def append(
        self, records: Mapping[TopicPartition, Sequence[OutgoingRecord]]
    ) -> dict[TopicPartition, int]:
        """Append at once."""
        return await self._runtime().transport.append(records)

    async def ask(
        self, topic: Topic[Any, Any], value: Any, *, key: Any, timeout_s: float | None
    ) -> bytes | None:
        """Send a request and wait for its reply; for ``reply_timeout`` where no time is given."""
        if timeout_s is None:
            timeout_s = self._app.settings.reply_timeout / 1_000
        return await self._runtime().ask(topic, value, key=key, timeout_s=timeout_s)
