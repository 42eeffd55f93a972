"""The app of a project, run in this process until nothing is left to do."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from millstream.cli._find import find_app
from millstream.cli._log import agent_positions, matched_topology
from millstream.records import TopicPartition
from tests.cli.conftest import forget

if TYPE_CHECKING:
    from pathlib import Path

    from millstream.app import App

__all__ = ["process_everything"]


def process_everything(project: Path, *, deadline_s: float = 20.0) -> None:
    """Run a worker until all of its agents have committed all that there is."""
    forget(project)
    asyncio.run(_process(find_app(None, project), deadline_s))


async def _process(app: App, deadline_s: float) -> None:
    until = time.monotonic() + deadline_s
    async with app.running():
        runtime = app.runtime
        assert runtime is not None
        sources = matched_topology(app, runtime.infos).sources
        tps = [TopicPartition(s, n) for s in sources for n in range(runtime.partitions[s])]
        while True:
            found = await agent_positions(app, runtime.transport, tps)
            if not any(found.lag(name) for name in app.topology.agents):
                return
            assert time.monotonic() < until, f"not done: {found}"
            await asyncio.sleep(0.01)
