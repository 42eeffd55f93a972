"""The program under test as one worker process on Kafka: ``python -m tests.crash.kafka_program BROKER PREFIX SLOT``.

It works until SIGTERM. With ``POINT COUNT MARK`` behind it kills itself when that point is reached for the COUNT-th
time, and leaves a file MARK. Local state is where ``MILLSTREAM_STATE_DIR`` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys

from millstream.hooks import observe
from millstream.worker import _worker
from tests.crash.program import Program, build, die_at, work

__all__ = ["PARTITIONS", "SESSION_S", "program"]

logger = logging.getLogger("millstream.tests")

PARTITIONS = 12
SESSION_S = 4.0


def program(broker: str, prefix: str, slot: str, *, web: bool) -> Program:
    """What each process runs.

    Args:
        web: whether it answers over HTTP; workers watch the sockets of those that do.
    """
    return build(
        concurrency=50,
        broker=broker,
        prefix=prefix,
        partitions=PARTITIONS,
        replication=3,
        slot=slot,
        session_timeout=f"{SESSION_S}s",
        commit_interval="5ms",
        web=web,
    )


def main(
    broker: str, prefix: str, slot: str, web: str, point: str = "", count: str = "1", mark: str = ""
) -> None:
    """One worker process."""
    form = "%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s"
    logging.basicConfig(format=form, datefmt="%H:%M:%S")
    logging.getLogger("millstream").setLevel(logging.INFO)
    setattr(_worker, "PURGE_INTERVAL_S", 1e6)  # noqa: B010  # the records between the stages are looked at in the end
    made = program(broker, prefix, slot, web=web == "web")
    with observe(die_at(mark, point, int(count))) if point else contextlib.nullcontext():
        asyncio.run(_work(made))


async def _work(made: Program) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _tell, made)
    await work(made)


def _tell(made: Program) -> None:
    """What this worker is at, into its log: for somebody who looks at a run that does not end."""
    runtime = made.app.runtime
    worker = None if runtime is None else runtime.worker
    if worker is not None:
        for shard in worker.shards.values():
            logger.info("%s: ready %s", shard, shard.ready.is_set())
            for each in shard.subtopologies:
                logger.info("  %s: gate %s", each, each._closed_by)
            for name, lane in shard.lanes.items():
                for tp, inbox in lane.inboxes.items():
                    facts = lane.position(tp), inbox.position, inbox.fetched, inbox.end
                    logger.info("  %s %s: %s, here %s, fetched %s, end %s", name, tp, *facts)
    for task in asyncio.all_tasks():
        task.print_stack(limit=6)


if __name__ == "__main__":
    main(*sys.argv[1:])
