"""Events that stay open for long."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING

import pytest

import millstream as ms
from millstream.testing import TestApp
from millstream.worker import _open_events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DEADLINE_S = 10.0


async def _service(answers: asyncio.Event) -> None:
    await answers.wait()


@pytest.mark.parametrize(("kind", "concurrency"), [("coroutine", 1), ("generator", 3)])
async def test_its_line_is_told(
    kind: str,
    concurrency: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, with agent, event and the innermost line of the program; a quick event is not spoken of."""
    monkeypatch.setattr(_open_events, "OPEN_EVENT_S", 0.06)
    app = ms.App("open", partitions=1)
    topic = app.topic("calls", value=int)
    answers = asyncio.Event()

    async def work(stream: ms.Stream[int]) -> None:
        async for number in stream:
            if number:
                await _service(answers)

    async def yielding(stream: ms.Stream[int]) -> AsyncIterator[int]:
        async for number in stream:
            if number:
                await _service(answers)
            yield number

    app.agent(topic, name="work", concurrency=concurrency)(
        work if kind == "coroutine" else yielding
    )

    def told() -> list[str]:
        return [r.getMessage() for r in caplog.records if "has been open" in r.getMessage()]

    with caplog.at_level(logging.WARNING, "millstream.worker"):
        async with TestApp(app) as t:
            await t.send(topic, 0, key="a")
            await topic.send(1, key="a")
            async with asyncio.timeout(DEADLINE_S):
                while not told():  # noqa: ASYNC110 - for a line in the log
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            answers.set()
            await t.settle()
    (line,) = told()
    first = inspect.getsourcelines(_service)[1]
    assert line.startswith("agent 'work': event calls/0@1 has been open for 0 s, and waits at ")
    assert f"{__file__}:{first + 1}." in line
