"""``python -m tests.conformance FILE [--compat kafka-streams]``: passed and total per topology, then the sum.

A line that is no case is told, and has failed. Without ``--compat`` an answer passes as well if it is the naive model's
where Kafka Streams' rests on a defect, which is what ``compat="kafka-streams"`` answers then: how many do, and on which
one, comes after the topologies. Ends with 1 if any case failed, and with 2 if there was none to run.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import asyncio
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.conformance.cases import read_case
from tests.conformance.models import defect_of, group_of, model_of
from tests.conformance.programs import PROGRAMS
from tests.conformance.run import Disturbance, Output, difference, expected, run_case


def main(words: list[str] | None = None) -> int:
    """Run every case of the file; 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--compat", choices=["kafka-streams"])
    parser.add_argument("--only", help="one topology")
    parser.add_argument("--disturbed", choices=["crash", "lose", "rebalance", "torn"])
    parser.add_argument("--show", type=int, default=0, help="print so many differences")
    arguments = parser.parse_args(words)
    passed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    rests: Counter[str] = Counter()
    left_to_show = arguments.show
    try:
        lines = arguments.file.read_bytes().splitlines()
    except OSError as exc:
        print(f"{arguments.file}: cannot be read: {exc.strerror}")
        print("0 passed, 0 failed")
        return 2
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        case, malformed = read_case(line)
        topology = next((name for name in PROGRAMS if name == case.get("topology")), "?")
        if arguments.only not in (None, topology) and topology != "?":
            continue
        total[topology] += 1
        if malformed is not None:
            print(f"{arguments.file}, line {number}: {malformed}")
            continue
        found = _answer(case, arguments.compat, arguments.disturbed)
        problem = found if isinstance(found, str) else difference(case, found, expected(case))
        if problem is not None and not isinstance(found, str) and not arguments.compat:
            defect = _defect(case, found)
            if defect is not None:
                rests[defect] += 1
                problem = None
        passed[topology] += problem is None
        if problem is not None and left_to_show:
            left_to_show -= 1
            print(f"line {number}: {topology} {case['params']}: {problem}")
    if not total:
        print(f"{arguments.file}: no cases{f' of {arguments.only}' if arguments.only else ''}")
    for topology, count in sorted(total.items()):
        print(f"{topology}: {passed[topology]}/{count}")
    for defect, count in sorted(rests.items()):
        print(f"  {count} of these as the naive model, not as recorded: {defect}")
    failed = sum(total.values()) - sum(passed.values())
    print(f"{sum(passed.values())} passed, {failed} failed")
    return 2 if not total else 1 if failed else 0


def _answer(case: dict[str, Any], compat: str | None, disturbed: Disturbance) -> Output | str:
    """The answer to a case, or what went wrong."""
    try:
        return asyncio.run(run_case(case, compat=compat, disturbed=disturbed))
    except Exception as exc:  # whatever it is: the other cases are to be run
        return f"{type(exc).__name__}: {exc}"


def _defect(case: dict[str, Any], found: Output) -> str | None:
    """The defect on which the recorded answer rests: ours is the naive model's, with the defect it is the recorded one."""
    group = group_of(case)
    defect = defect_of(group)
    if defect is None or difference(case, found, model_of(case)) is not None:
        return None
    theirs = _answer(case, "kafka-streams", None)
    if isinstance(theirs, str) or difference(case, theirs, expected(case)) is not None:
        return None
    return f"{group}: {defect}"


if __name__ == "__main__":
    sys.exit(main())
