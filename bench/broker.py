"""A broker for a benchmark: the one that is given, or one that is started beside it and ends with it.

Topics of a benchmark begin with a name of its own, and do not outlive it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["broker", "own_topics"]

_ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def broker(url: str | None) -> Iterator[str]:
    """Give a broker's address, ``kafka://host:port``.

    Raises:
        RuntimeError: it could not be started; why stands on standard error.
    """
    if url is not None:
        yield url
        return
    command = [sys.executable, "-m", "tests.brokers"]
    with subprocess.Popen(
        command,
        cwd=_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        try:
            if not address:
                raise RuntimeError("no broker: give one with --broker kafka://host:port")
            yield address
        finally:
            process.stdin.close()  # it ends with its input


@contextlib.contextmanager
def own_topics(url: str) -> Iterator[str]:
    """Give what the names of topics shall begin with; those topics are removed afterwards."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    try:
        yield name
    finally:
        asyncio.run(_remove(url, name))


async def _remove(url: str, name: str) -> None:
    from millstream.transports.kafka import KafkaTransport

    async with KafkaTransport(url) as transport:
        await transport.delete_topics(
            [topic for topic in await transport.topics() if topic.startswith(name)]
        )
