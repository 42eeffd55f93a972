"""Conformance cases with what Kafka Streams answers now, to standard output, in the form of the recorded ones.

``python -m tests.conformance.record FILE`` takes the inputs of a file, ``... FIRST COUNT`` makes inputs and parameters up:
a seed always makes the same ones. Kafka Streams runs in its own test driver (``Record.java``), with its record cache off,
and the wall clock moves by a second after each input. Needs Java and Maven.
"""

# ruff: noqa: T201

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.brokers.jars import Line, classpath
from tests.requirements import java

__all__ = ["generated", "recorded"]

STREAMS = Line(
    "4.1.1-streams",
    (
        "org.apache.kafka:kafka-streams-test-utils:4.1.1",
        "org.slf4j:slf4j-nop:1.7.36",
    ),
)
RECORD_S_MAX = 900.0

STEPS = {
    "dense": [0, 0, 1, 2],
    "mixed": [0, 1, 3, 5, 9, 11, 40],
    "gaps": [0, 1, 2, 8, 15, 60, 130, 700],
    "seconds": [0, 500, 3_000, 20_000, 61_000, 400_000],
}
"""How far event time goes from one input to the next."""
LATE = [0, 0, 0, 0, 1, 2, 4, 7, 11, 16, 30]
WEIGHTS = {
    "tumbling": 4,
    "hopping": 5,
    "sliding": 6,
    "session": 6,
    "stream_stream": 12,
    "stream_table": 4,
    "table_table": 3,
    "table_fk": 4,
    "suppress_time_limit": 4,
    "cogroup_tumbling": 3,
    "self_join": 4,
}
TOPOLOGIES = [
    "aggregate",
    "cogroup",
    "cogroup_tumbling",
    "count",
    "hopping",
    "merge",
    "reduce",
    "self_join",
    "session",
    "sliding",
    "stream_global",
    "stream_stream",
    "stream_table",
    "suppress_time_limit",
    "table_filter",
    "table_fk",
    "table_groupby_agg",
    "table_groupby_count",
    "table_source",
    "table_table",
    "to_table",
    "tumbling",
]
TWO_INPUTS = {
    "cogroup",
    "cogroup_tumbling",
    "merge",
    "stream_global",
    "stream_stream",
    "stream_table",
    "table_fk",
    "table_table",
}


def generated(seed: int) -> dict[str, Any]:
    """A case without its answer."""
    rng = random.Random(seed)
    topology = rng.choices(TOPOLOGIES, [WEIGHTS.get(name, 1) for name in TOPOLOGIES])[0]
    unit = 1_000 if rng.random() < 0.2 else 1
    style = "seconds" if unit > 1 else rng.choice(["dense", "mixed", "gaps"])
    topics = "ab" if topology in TWO_INPUTS else "a"
    keys = rng.choice(["A", "AB", "ABC", "ABCDE"])
    time, inputs = rng.choice([0, 0, 5, 37, 100]), []
    for number in range(rng.choice([8, 16, 24])):
        time += rng.choice(STEPS[style])
        inputs.append(
            [
                rng.choice(topics),
                None if rng.random() < 0.04 else rng.choice(keys),
                None if rng.random() < 0.12 else f"v{number}",
                max(0, time - rng.choice(LATE) * unit),
            ]
        )
    params = _params(topology, rng, unit)
    return {"topology": topology, "params": params, "seed": seed, "in": inputs}


def _params(topology: str, rng: random.Random, unit: int) -> dict[str, Any]:
    grace = rng.choice([0, 1, 3, 10, 25]) * unit
    emitted = {
        "grace": grace,
        "emit": rng.choice(["update", "close", "suppress"]),
        "long_retention": rng.random() < 0.3,
    }
    if topology == "tumbling":
        size = rng.choice([1, 3, 7, 10, 12, 60]) * unit
        return {"size": size, "advance": size, **emitted}
    if topology == "hopping":
        size = rng.choice([2, 6, 10, 12, 15])
        advance = rng.choice([one for one in (1, 2, 4, 5, 6, 7) if one <= size])
        return {"size": size * unit, "advance": advance * unit, **emitted}
    if topology == "sliding":
        return {"difference": rng.choice([0, 1, 4, 10, 20]) * unit, **emitted}
    if topology == "session":
        return {"gap": rng.choice([1, 2, 5, 12, 30]) * unit, **emitted}
    if topology == "cogroup_tumbling":
        return {"size": rng.choice([1, 5, 10, 12]), "grace": rng.choice([0, 2, 10, 30])}
    if topology in ("stream_stream", "self_join"):
        before = rng.choice([0, 1, 5, 10, 20, *([-1, -3] if topology == "stream_stream" else [])])
        after = rng.choice([one for one in (0, 1, 5, 10, 20, -1, -3) if one + before >= 0])
        reach = {"before": before * unit, "after": max(after, -before) * unit, "grace": grace}
        kind = rng.choice(["inner", "left", "left", "outer", "outer"])
        return {"kind": kind, **reach} if topology == "stream_stream" else reach
    if topology == "stream_table":
        table = rng.choice(["plain", "versioned", "versioned", "versioned_grace"])
        history = 0 if table == "plain" else rng.choice([1, 5, 30, 100, 1_000])
        waits = min(rng.choice([0, 1, 5, 10, 20]), history) if table == "versioned_grace" else 0
        kind = rng.choice(["inner", "left"])
        return {"kind": kind, "table": table, "history": history, "grace": waits}
    if topology in ("table_table", "table_fk"):
        history = rng.choice([0, 0, 0, 1, 5, 30, 100])
        kind = rng.choice(["inner", "left", *(["outer"] if topology == "table_table" else [])])
        return {"kind": kind, "versioned": history > 0, "history": history}
    if topology == "suppress_time_limit":
        buffer = rng.choice(["unbounded", "max_records 2 emit_early"])
        return {"limit": rng.choice([0, 1, 5, 10, 30, 1_000]), "buffer": buffer}
    if topology == "stream_global":
        return {"kind": rng.choice(["inner", "left"])}
    return {"materialized": rng.random() < 0.5} if topology == "table_filter" else {}


def recorded(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same cases with Kafka Streams' answers; where it raises at an input, that one is the last."""
    program = Path(__file__).with_name("Record.java")
    memory = Path("/dev/shm")  # RocksDB there opens ten times as fast
    folder = [f"-Djava.io.tmpdir={memory}"] if memory.is_dir() else []
    done = subprocess.run(
        [java(), *folder, "-cp", classpath(STREAMS), str(program)],
        input="".join(json.dumps(case) + "\n" for case in cases),
        capture_output=True,
        text=True,
        timeout=RECORD_S_MAX,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"Record.java ended with {done.returncode}: {done.stderr[-2_000:]}")
    answered: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    for case in answered:
        if "error" in case:
            del case["in"][len(case["out"]) + 1 :]
    return answered


def main(words: list[str]) -> None:
    """Print the cases of a file, or of some seeds."""
    if len(words) == 1:
        cases = [json.loads(line) for line in Path(words[0]).read_text().splitlines()]
    else:
        first, count = (int(word) for word in words)
        cases = [generated(seed) for seed in range(first, first + count)]
    for case in recorded(cases):
        print(json.dumps(case))


if __name__ == "__main__":
    main(sys.argv[1:])
