"""Rolling deployments: workers are replaced one after the other, and nothing is lost or counted twice."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

from millstream.records import OutgoingRecord, TopicPartition
from millstream.serialization import partitioner
from millstream.transports.local import LocalTransport
from tests.cli.terminal import APP, poll

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.terminal import Terminal

ACCOUNTS = [f"account-{number}" for number in range(12)]
NEW = APP.replace(
    "    async for order in stream:", "    async for order in stream:\n        print('new')"
)


def _feed(project: Path, times: int) -> None:
    """One unit for each account, so many times."""

    async def feed() -> None:
        async with LocalTransport(project / "shop.db") as log:
            for _ in range(times):
                for account in ACCOUNTS:
                    value = b'{"account": "%s", "amount": 1}' % account.encode()
                    number = partitioner("murmur2")(account.encode(), 4)
                    record = OutgoingRecord(1, account.encode(), value, [])
                    await log.append({TopicPartition("orders", number): [record]})

    asyncio.run(feed())


def _until_counted(terminal: Terminal, times: int) -> None:
    expected = "".join(f"{account}\t{times}.0\n" for account in sorted(ACCOUNTS))
    poll(
        lambda: terminal.run("table", "totals").stdout == expected,
        what=f"every account has {times}",
    )


def test_the_same_topology(project: Path, terminal: Terminal) -> None:
    """Old and new workers share the shards while the new ones come in, with records on their way."""
    workers = [terminal.start("worker") for _ in range(2)]
    for worker in workers:
        worker.until("ready in")
    _feed(project, 3)
    (project / "app.py").write_text(NEW)
    for at in range(2):
        assert workers[at].end(signal.SIGTERM)[0] == 0
        _feed(project, 2)
        workers[at] = terminal.start("worker")
        workers[at].until("ready in")
        _feed(project, 2)
    _until_counted(terminal, 11)
    for worker in workers:
        worker.until("new")
        assert worker.end(signal.SIGTERM)[0] == 0


def test_another_topology(project: Path, terminal: Terminal) -> None:
    """It waits for the old workers to go: it is refused, and they work on."""
    old = terminal.start("worker")
    old.until("ready in")
    _feed(project, 1)
    (project / "app.py").write_text(
        APP + "\n\n@app.agent(orders)\nasync def other(stream):\n    async for _ in stream: ...\n"
    )
    refused = terminal.run("worker")
    assert refused.returncode == 2
    assert "app 'shop': another program runs under the same app id" in refused.stderr
    assert "stop its workers first" in refused.stderr
    _until_counted(terminal, 1)
    assert old.end(signal.SIGTERM)[0] == 0
    new = terminal.start("worker")
    new.until("ready in")
    _feed(project, 1)
    _until_counted(terminal, 2)
