"""Running a conformance case: one input after the other, and what came out after each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from millstream.records import TopicPartition
from millstream.testing import TestApp
from millstream.transports.batch import iterate_records
from tests.conformance.programs import build
from tests.streams.running import feed

if TYPE_CHECKING:
    from millstream.transports.base import Transport
    from tests.conformance.programs import Program

__all__ = ["Disturbance", "Output", "difference", "expected", "outputs", "run_case"]

Output = list[list[list[Any]]]
"""After each input: what came out, as key, value and timestamp."""

Disturbance = Literal["crash", "lose", "rebalance", "torn"] | None
"""What happens after each input: a crash, one that loses the disk as well, or a rebalance; torn is a crash in its midst."""
TORN_TURNS = 12
"""A worker dies less than so many turns of the event loop after a record has come; by then it is committed."""


async def run_case(
    case: dict[str, Any], *, compat: str | None = None, disturbed: Disturbance = None
) -> Output:
    """What the program of a case puts out after each input, as the cases have it.

    The wall clock moves by a second after each, as it did for Kafka Streams.
    """
    program = build(case, compat)
    results: Output = []
    async with TestApp(program.app, start=0) as t:
        at = 0
        for number, (topic, key, value, timestamp) in enumerate(case["in"]):
            if disturbed == "torn":
                await feed(t, program.inputs[topic], [(key, value, timestamp)], settle=False)
                for _ in range(number % TORN_TURNS):
                    await asyncio.sleep(0)
                await t.crash()
                await t.settle()
            else:
                await t.send(program.inputs[topic], value, key=key, timestamp=timestamp)
            await t.advance(wall="1s")
            assert t._runtime is not None
            found, at = await outputs(t._runtime.transport, program, at)
            results.append(found)
            if disturbed == "rebalance":
                await t.rebalance()
            elif disturbed in ("crash", "lose"):
                await t.crash(lose_state=disturbed == "lose")
    return results


async def outputs(transport: Transport, program: Program, at: int) -> tuple[list[list[Any]], int]:
    """The output's records from an offset on, and the offset to go on from."""
    tp = TopicPartition(program.output.name, 0)
    reader = transport.reader()
    found: list[list[Any]] = []
    for fetched in await reader.fetch({tp: at}, max_bytes=1 << 20, max_wait_s=0):
        for record in iterate_records(fetched.data, where=str(tp), position=at):
            key = None if record.key is None else record.key.decode()
            window = dict(record.headers)
            if "ms-window-start" in window:
                start, end = (window[f"ms-window-{side}"].decode() for side in ("start", "end"))
                key = f"{key}@{start}/{end}"
            value = None if record.value is None else record.value.decode()
            found.append([key, value, record.timestamp])
        at = fetched.next_offset
    await reader.close()
    return found, at


def expected(case: dict[str, Any]) -> Output:
    """What Kafka Streams put out; where its last input raised, only what came before counts."""
    out: Output = case["out"]
    return out[: len(case["in"]) - 1] if "error" in case else out


def difference(case: dict[str, Any], found: Output, wanted: Output) -> str | None:
    """The first input after which something else came out than was wanted, in words; or None."""
    count = len(case["in"])
    answers = count - 1 if "error" in case else count
    for name, output in (("got", found), ("want", wanted)):
        if len(output) not in (answers, count):
            return f"{name} {len(output)} answers to {count} inputs"
    for index, want in enumerate(wanted[:answers]):
        if found[index] != want:
            inputs = "\n      ".join(str(one) for one in case["in"][: index + 1])
            return f"after {inputs}\n    got  {found[index]}\n    want {want}"
    return None
