"""``python -m tests.conformance FILE [--compat kafka-streams]``: passed and total per topology, then the sum."""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

from tests.conformance.run import Disturbance, run_case


def main() -> int:
    """Run every case of the file; 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--compat", choices=["kafka-streams"])
    parser.add_argument("--only", help="one topology")
    parser.add_argument("--disturbed", choices=["crash", "lose", "rebalance"])
    parser.add_argument("--show", type=int, default=0, help="print so many differences")
    arguments = parser.parse_args()
    passed: Counter[str] = Counter()
    total: Counter[str] = Counter()
    left_to_show = arguments.show
    with arguments.file.open() as lines:
        for number, line in enumerate(lines, 1):
            case = json.loads(line)
            topology = case["topology"]
            if arguments.only not in (None, topology):
                continue
            total[topology] += 1
            if "error" in case:  # the last input raised; how we do there is up to us
                case["out"] = case["out"][: len(case["in"]) - 1]
            problem = _problem(case, arguments.compat, arguments.disturbed)
            passed[topology] += problem is None
            if problem is not None and left_to_show:
                left_to_show -= 1
                print(f"line {number}: {topology} {case['params']}: {problem}")
    for topology, count in sorted(total.items()):
        print(f"{topology}: {passed[topology]}/{count}")
    failed = sum(total.values()) - sum(passed.values())
    print(f"{sum(passed.values())} passed, {failed} failed")
    return 1 if failed else 0


def _problem(case: dict[str, object], compat: str | None, disturbed: Disturbance) -> str | None:
    """What is wrong with the answer to a case, or None."""
    expected: list[object] = case["out"]  # type: ignore[assignment]
    inputs: list[object] = case["in"]  # type: ignore[assignment]
    try:
        found = asyncio.run(run_case(case, compat=compat, disturbed=disturbed))
    except Exception as exc:
        return f"{type(exc).__name__}: {exc}"
    for index, want in enumerate(expected):
        if found[index] != want:
            return f"after {inputs[: index + 1]}:\n    got  {found[index]}\n    want {want}"
    return None


if __name__ == "__main__":
    sys.exit(main())
