"""A program that is a member of a group, and may be killed: it says what it is given.

Arguments: the broker's url, the group, its metadata, the session time-out in seconds.
"""

from __future__ import annotations

import asyncio
import sys

from millstream.transports.kafka import KafkaTransport
from tests.brokers import say
from tests.transports.conformance import assign


async def _main(url: str, group: str, metadata: str, session_s: str) -> None:
    async with KafkaTransport(url) as transport:
        membership = await transport.join(
            group, metadata=metadata.encode(), assign=assign, session_timeout_s=float(session_s)
        )
        say(ready=True)

        async def live() -> None:
            while True:
                membership.alive()
                await asyncio.sleep(0.1)

        living = asyncio.create_task(live())
        while not living.done():
            assignment = await membership.next_assignment()
            say(
                assignment={
                    "member_id": assignment.member_id,
                    "generation": assignment.generation,
                    "shards": assignment.assigned.decode(),
                }
            )


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
