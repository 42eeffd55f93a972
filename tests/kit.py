"""What the tests of running apps share: a typed record, raw records, and two apps over one log."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

import millstream as ms
from millstream.app._runtime import Runtime
from millstream.records import OutgoingRecord, TopicPartition
from millstream.testing import TestApp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

__all__ = ["Order", "append", "continued", "counting", "second_worker"]


class Order(msgspec.Struct):
    """What most of the programs here are about."""

    account: str
    amount: float


def counting(**settings: Any) -> tuple[ms.App, ms.Topic[Order], ms.Table[str, float]]:
    """The smallest useful program: totals per account; a negative amount raises."""
    app = ms.App("shop", **settings)
    orders = app.topic("orders", value=Order, key_from="account")
    totals = app.table("totals", key=str, value=float, default=0.0)

    @app.agent(orders)
    async def count(stream: ms.Stream[Order]) -> None:
        async for order in stream:
            totals[order.account] += order.amount
            if order.amount < 0:
                raise ValueError("negative")

    return app, orders, totals


async def append(
    t: TestApp,
    topic: str,
    *values: bytes | None,
    key: bytes | None = None,
    partition: int = 0,
    timestamp: int = 0,
    headers: Sequence[tuple[str, bytes]] = (),
) -> None:
    """Put bytes into a topic, as another program might, and let the app process them."""
    assert t._runtime is not None
    records = [OutgoingRecord(timestamp, key, value, list(headers)) for value in values]
    await t._runtime.transport.append({TopicPartition(topic, partition): records})
    await t.settle()


def continued(app: ms.App, before: TestApp) -> TestApp:
    """Another program over the log and the state that ``before`` has left, as after an upgrade."""
    test = TestApp(app, start=before.clock.now())
    test._log, test._state = before._log, before._state
    return test


@contextlib.asynccontextmanager
async def second_worker(app: ms.App, beside: TestApp) -> AsyncIterator[Runtime]:
    """Another app over the log of ``beside``, at the same time."""
    from millstream.state.memory import MemoryBackend
    from millstream.transports.memory import MemoryTransport

    app.clock = beside.clock
    transport = MemoryTransport(clock=beside.clock, log=beside._log)
    runtime = Runtime(app, transport=transport, state=MemoryBackend(), commits=False)
    async with runtime.running() as running:
        yield running
