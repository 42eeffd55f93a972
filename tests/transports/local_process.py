"""A worker in a process of its own, for the tests of the embedded log.

``local_process.py FILE SESSION_S [POINT ACTION]`` joins group ``g`` and then obeys the lines that it reads: ``commit N``
commits an epoch with position N, ``hold`` keeps the present assignment, ``late N`` commits an epoch that was cut
under the one that was kept, ``append`` appends a record. At POINT inside a commit it does ACTION to itself, which
is the name of a signal. It says what happens in lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

from millstream.errors import MillstreamError
from millstream.hooks import observe
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import Assignment, Epoch, Membership, OffsetAndMetadata, TopicSpec
from millstream.transports.local import LocalTransport


def say(**facts: object) -> None:
    """One line to whoever started this process."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def follow(membership: Membership, latest: list[Assignment]) -> None:
    """Keep the latest assignment."""
    while True:
        latest.append(await membership.next_assignment())
        say(assigned=latest[-1].member_id, generation=latest[-1].generation)


async def turn(membership: Membership) -> None:
    """Tell the group that the loop turns."""
    while True:
        membership.alive()
        await asyncio.sleep(0.05)


async def commit(transport: LocalTransport, assignment: Assignment, position: int) -> None:
    """An epoch with two partitions' records."""
    record = OutgoingRecord(1, b"k", str(position).encode(), [])
    epoch = Epoch(
        group="g",
        member_id=assignment.member_id,
        generation=assignment.generation,
        offsets={TopicPartition("a", 0): OffsetAndMetadata(position)},
        records={TopicPartition("a", 1): [record], TopicPartition("a", 2): [record]},
    )
    try:
        await transport.commit(epoch)
    except MillstreamError as exc:
        say(refused=type(exc).__name__)
    else:
        say(committed=position)


async def main(path: str, session_s: float) -> None:
    """Work until the input ends."""
    async with LocalTransport(path) as transport:
        await transport.create_topics([TopicSpec(name="a", partitions=3)])
        membership = await transport.join(
            "g",
            metadata=b"process",
            assign=lambda members: dict.fromkeys(members, b""),
            session_timeout_s=session_s,
        )
        latest: list[Assignment] = []
        held: list[Assignment] = []
        tasks = [asyncio.ensure_future(follow(membership, latest))]
        tasks.append(asyncio.ensure_future(turn(membership)))
        while line := await asyncio.to_thread(sys.stdin.readline):
            word, _, number = line.strip().partition(" ")
            if word == "commit":
                await commit(transport, latest[-1], int(number))
            elif word == "hold":
                held.append(latest[-1])
                say(held=held[-1].generation)
            elif word == "late":
                await commit(transport, held[-1], int(number))
            elif word == "append":
                record = OutgoingRecord(1, b"k", b"appended", [])
                await transport.append({TopicPartition("a", 0): [record]})
                say(appended=True)
        for task in tasks:
            task.cancel()


if __name__ == "__main__":
    point, action = (*sys.argv[3:], "", "")[:2]

    def act(reached: str, _: dict[str, object]) -> None:
        """Do to this process what was asked for."""
        if reached == point:
            say(reached=reached)
            os.kill(os.getpid(), signal.Signals[action])

    with observe(act):
        asyncio.run(main(sys.argv[1], float(sys.argv[2])))
