"""A record that stops the worker, while others are in progress."""

from __future__ import annotations

import pytest

import millstream as ms
from millstream.errors import AgentError
from millstream.testing import TestApp


async def test_the_wait_is_in_real_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes before the record is waited for, not for ever, also where the clock stands still."""
    monkeypatch.setattr("millstream.worker._failures.STOP_WAIT_S", 0.05)
    app = ms.App("stop", partitions=1)
    topic = app.topic("t", value=int)

    @app.agent(topic, concurrency=2)
    async def work(stream: ms.Stream[int]) -> None:
        async for number in stream:
            if number == 0:
                await app.clock.sleep(1_000)  # which nobody moves
            raise ValueError("at once")

    with pytest.raises(AgentError, match="at once"):  # noqa: PT012 - an app ends with its block
        async with TestApp(app) as t:
            await t.send(topic, 0, key="a")
            await t.send(topic, 1, key="b")
