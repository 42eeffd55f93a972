"""Kafka Streams' recorded answers, through the whole engine.

With ``compat="kafka-streams"`` every answer is the recorded one. By default all are, but for those that rest on a
defect of Kafka Streams' (semantics, section 7): these are listed here with the defect's name, and how many they
are. Ours is then the answer of a naive model, and so it is for all cases that have a model.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.__main__ import main
from tests.conformance.models import MODELS, model_of
from tests.conformance.programs import PROGRAMS
from tests.conformance.run import Output, difference, expected, run_case

FILE = Path(__file__).parent / "kafka-streams.jsonl"
KINDS = ("emit", "long_retention", "kind", "table", "versioned", "materialized", "buffer")
"""Parameters that make a group of their own."""

LOST = "emit-on-close is clipped by the expiry of the store: windows are lost"
GONE = "a session that is open by the grace rule has expired in the store"
TWICE = "suppress takes a window for final 1 ms before the aggregate does, and again when it is"
FORGOTTEN = "a window to which one input may still add has expired by the time of the other"

DEFECTS = {
    "tumbling close": (19, LOST),
    "hopping close": (42, LOST),
    "sliding close": (16, LOST),
    "sliding suppress": (18, TWICE),
    "sliding suppress long_retention": (18, TWICE),
    "session update": (4, GONE),
    "session close": (3, GONE),
    "session suppress": (14, TWICE),
    "session suppress long_retention": (17, TWICE),
    "cogroup_tumbling": (2, FORGOTTEN),
}
"""By group: how many recorded answers rest on a defect, and on which."""


def group_of(case: dict[str, Any]) -> str:
    """Topology and the parameters that matter most, in words."""
    params = case["params"]
    words = [params[name] if isinstance(params[name], str) else name * params[name]
             for name in KINDS if name in params]  # fmt: skip
    return " ".join([case["topology"], *(word.partition(" ")[0] for word in words if word)])


def _read() -> dict[str, list[dict[str, Any]]]:
    groups = defaultdict(list)
    with FILE.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            case = json.loads(line)
            groups[group_of(case)].append({"line": number, **case})
    return dict(groups)


GROUPS = _read()
each_group = pytest.mark.parametrize("group", GROUPS)
each_program = pytest.mark.parametrize("group", GROUPS)


async def check(case: dict[str, Any], wanted: Output, **settings: Any) -> None:
    """Run a case and hold it against an answer."""
    problem = difference(case, await run_case(case, **settings), wanted)
    assert problem is None, f"line {case['line']}, {case['params']}: {problem}"


def right_answer(case: dict[str, Any]) -> Output:
    """The naive model's where there is one, else the recorded one."""
    return model_of(case) if case["topology"] in MODELS else expected(case)


@each_program
async def test_the_answers_of_kafka_streams(group: str) -> None:
    """Where they are wanted, its defects are ours as well."""
    for case in GROUPS[group]:
        await check(case, expected(case), compat="kafka-streams")


WAITING = ("stream_stream left", "stream_stream outer")
"""Rows without a partner that are due wait there for a later record, or for the throttle of one second."""


@pytest.mark.parametrize("group", WAITING)
async def test_rows_that_wait(group: str) -> None:
    """Ours come out no later; all others, and the order of pairs, are the same; none is missing."""
    early = 0
    for case in GROUPS[group]:
        ours, theirs = await run_case(case), expected(case)
        early += ours != theirs
        for mine, recorded in zip(ours, theirs, strict=True):
            assert _pairs(mine) == _pairs(recorded), case["line"]
        assert not Counter(_alone(theirs)) - Counter(_alone(ours)), case["line"]
        for row in set(_alone(theirs)):
            for here, there in zip(_moments(ours, row), _moments(theirs, row), strict=False):
                assert here <= there, (case["line"], row)
    assert early


def _pairs(rows: list[list[Any]]) -> list[list[Any]]:
    return [row for row in rows if "null" not in row[1]]


def _alone(output: Output) -> list[tuple[Any, ...]]:
    return [tuple(row) for rows in output for row in rows if "null" in row[1]]


def _moments(output: Output, row: tuple[Any, ...]) -> list[int]:
    return [at for at, rows in enumerate(output) for found in rows if tuple(found) == row]


@pytest.mark.parametrize("group", [group for group in GROUPS if group not in WAITING])
async def test_the_right_answers(group: str) -> None:
    """By default every answer is the right one, which is Kafka Streams' own unless a defect is named."""
    for case in GROUPS[group]:
        await check(case, right_answer(case))


@each_group
def test_what_is_not_right_is_named(group: str) -> None:
    """The model and Kafka Streams differ in as many cases as rest on a named defect, and in no others."""
    differing = [case["line"] for case in GROUPS[group] if right_answer(case) != expected(case)]
    count, defect = DEFECTS.get(group, (0, "no defect is known"))
    assert len(differing) == count, f"{defect}: lines {differing}"


def test_every_topology_is_there() -> None:
    """The file has each program's cases, and each has its program."""
    assert {cases[0]["topology"] for cases in GROUPS.values()} == set(PROGRAMS)
    assert sum(map(len, GROUPS.values())) == 994
    assert set(DEFECTS) <= set(GROUPS)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints passed and total of each topology, the sum last, and fails when something fails."""
    one = {"topology": "count", "params": {}, "in": [["a", "A", "1", 0]], "out": [[["A", "1", 0]]]}
    raised = {**one, "in": [*one["in"], ["a", "A", "1", 1]], "error": "IllegalStateException"}
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(json.dumps(case) + "\n" for case in (one, raised)))
    assert main([str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == ["count: 2/2", "2 passed, 0 failed"]
    wrong = {**one, "out": [[["A", "2", 0]]]}
    unknown = {**one, "topology": "other"}
    file.write_text("\n".join([json.dumps(one), "", json.dumps(wrong), json.dumps(unknown), "?"]))
    assert main([str(file), "--compat", "kafka-streams", "--show", "1"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("line 3: count {}: after ")
    assert printed[-4:] == ["?: 0/1", "count: 1/2", "other: 0/1", "1 passed, 3 failed"]
