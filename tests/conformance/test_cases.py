"""Kafka Streams' recorded answers, through the whole engine.

With ``compat="kafka-streams"`` every answer is the recorded one. By default all are, but for those that rest on a
defect of Kafka Streams' (semantics, section 7): these are listed here with the defect's name, and how many they
are. Ours is then the answer of a naive model, and so it is for all cases that have a model.
"""

from __future__ import annotations

import copy
import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.__main__ import main
from tests.conformance.cases import problem_of, read_case
from tests.conformance.models import DEFECTS, MODELS, defect_of, group_of, model_of
from tests.conformance.programs import PROGRAMS
from tests.conformance.record import generated, recorded
from tests.conformance.run import Output, difference, expected, run_case

FILE = Path(__file__).parent / "kafka-streams.jsonl"
EDGES = Path(__file__).parent / "edges.jsonl"
"""Inputs of ours at the edges of what Kafka Streams keeps, some of today and with gaps of days.

Its answers are those of ``tests.conformance.record``.
"""
RESTING = {
    "tumbling close": 19,
    "hopping close": 42,
    "sliding close": 16,
    "sliding suppress": 18,
    "sliding suppress long_retention": 18,
    "session update": 4,
    "session close": 3,
    "session suppress": 14,
    "session suppress long_retention": 17,
    "cogroup_tumbling": 2,
    "stream_stream left": 11,
    "stream_stream outer": 23,
}
"""By group: how many recorded answers rest on its defect (`defect_of`)."""


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


@pytest.mark.parametrize("group", ["stream_stream left", "stream_stream outer"])
def test_rows_that_wait(group: str) -> None:
    """The model's come out no later than the recorded ones; pairs, and their order, are the same; none is missing."""
    for case in GROUPS[group]:
        right, theirs = model_of(case), expected(case)
        for mine, there in zip(right, theirs, strict=True):
            assert _pairs(mine) == _pairs(there), case["line"]
        assert not Counter(_alone(theirs)) - Counter(_alone(right)), case["line"]
        for row in set(_alone(theirs)):
            for now, then in zip(_moments(right, row), _moments(theirs, row), strict=False):
                assert now <= then, (case["line"], row)


def _pairs(rows: list[list[Any]]) -> list[list[Any]]:
    return [row for row in rows if "null" not in row[1]]


def _alone(output: Output) -> list[tuple[Any, ...]]:
    return [tuple(row) for rows in output for row in rows if "null" in row[1]]


def _moments(output: Output, row: tuple[Any, ...]) -> list[int]:
    return [at for at, rows in enumerate(output) for found in rows if tuple(found) == row]


@each_group
async def test_the_right_answers(group: str) -> None:
    """By default every answer is the right one, which is Kafka Streams' own unless a defect is named."""
    for case in GROUPS[group]:
        await check(case, right_answer(case))


@each_group
def test_what_is_not_right_is_named(group: str) -> None:
    """The model and Kafka Streams differ in as many cases as rest on a named defect, and in no others."""
    differing = [case["line"] for case in GROUPS[group] if right_answer(case) != expected(case)]
    defect = defect_of(group) or "no defect is known"
    assert len(differing) == RESTING.get(group, 0), f"{defect}: lines {differing}"


def _edges() -> list[dict[str, Any]]:
    lines = EDGES.read_text(encoding="utf-8").splitlines()
    return [{"line": number, **json.loads(line)} for number, line in enumerate(lines, 1)]


async def test_edges() -> None:
    """Kafka Streams' answers where it keeps nothing, forgets in stretches, or has kept for a day."""
    for case in _edges():
        await check(case, expected(case), compat="kafka-streams")
        await check(case, right_answer(case))


def test_every_defect_is_seen() -> None:
    """There is a recorded answer that rests on each defect that is named."""
    resting = {
        group_of(case).removesuffix(" long_retention")
        for case in (*(case for cases in GROUPS.values() for case in cases), *_edges())
        if right_answer(case) != expected(case)
    }
    assert resting == set(DEFECTS)


@pytest.mark.slow
async def test_cases_that_nobody_has_seen() -> None:
    """Other parameters and inputs in each run, recorded on the spot."""
    first = random.SystemRandom().randrange(1 << 32)
    for case in recorded([generated(seed) for seed in range(first, first + 300)]):
        await check(
            {"line": f"seed {case['seed']}", **case}, expected(case), compat="kafka-streams"
        )


def test_every_topology_is_there() -> None:
    """The file has each program's cases, and each has its program."""
    assert {cases[0]["topology"] for cases in GROUPS.values()} == set(PROGRAMS)
    assert sum(map(len, GROUPS.values())) == 994
    assert set(RESTING) <= set(GROUPS)
    assert [case["line"] for cases in GROUPS.values() for case in cases if problem_of(case)] == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints passed and total of each topology, the sum last, and fails when something fails."""
    one = {"topology": "count", "params": {}, "in": [["a", "A", "1", 0]], "out": [[["A", "1", 0]]]}
    raised = {**one, "in": [*one["in"], ["a", "A", "1", 1]], "error": "IllegalStateException"}
    file = tmp_path / "cases.jsonl"
    file.write_text("".join(json.dumps(case) + "\n" for case in (one, raised)))
    assert main([str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == ["count: 2/2", "2 passed, 0 failed"]
    file.write_text(json.dumps(GROUPS["session update"][3]) + "\n")
    assert main([str(file), "--compat", "kafka-streams"]) == 0
    capsys.readouterr()
    assert main([str(file)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "session: 1/1"
    assert told[1].startswith(
        "  1 of these as the naive model, not as recorded: session update: a sess"
    )
    wrong = {**one, "out": [[["A", "2", 0]]]}
    unknown = {**one, "topology": "other"}
    file.write_text("\n".join([json.dumps(one), "", json.dumps(wrong), json.dumps(unknown), "?"]))
    assert main([str(file), "--compat", "kafka-streams", "--show", "1"]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("line 3: count {}: after ")
    assert printed[3:5] == [
        f"{file}, line 4: has a topology that is not known: 'other'",
        f"{file}, line 5: is not JSON: Expecting value: line 1 column 1 (char 0)",
    ]
    assert printed[5:] == ["?: 0/2", "count: 1/2", "1 passed, 3 failed"]


def test_the_command_excuses_only_what_was_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where an answer rests on a defect, one that Kafka Streams has not given fails all the same."""
    cases = [case for case in _edges() if group_of(case) == "tumbling close long_retention"]
    for wrong in ([], [["A@1700000000000/1700000000010", "v1;", 1_700_000_000_000]]):
        (case,) = copy.deepcopy(cases)
        file = tmp_path / "cases.jsonl"
        file.write_text(json.dumps(case) + "\n")
        assert main([str(file)]) == 0
        case["out"][1] = wrong
        file.write_text(json.dumps(case) + "\n")
        capsys.readouterr()
        assert main([str(file)]) == 1
        assert capsys.readouterr().out.splitlines() == ["tumbling: 0/1", "0 passed, 1 failed"]


def test_the_command_on_what_is_no_file_of_cases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says what it could not read, and where; with nothing to run it ends with 2."""
    file = tmp_path / "cases.jsonl"
    for cannot in (file, tmp_path):
        assert main([str(cannot)]) == 2
        told = capsys.readouterr().out.splitlines()
        assert told[0].startswith(f"{cannot}: cannot be read: ")
        assert told[1:] == ["0 passed, 0 failed"]
    file.write_text("\n\n")
    assert main([str(file)]) == 2
    assert capsys.readouterr().out.splitlines() == [f"{file}: no cases", "0 passed, 0 failed"]
    file.write_text(json.dumps(GROUPS["count"][0]) + "\n")
    assert main([str(file), "--only", "merge"]) == 2
    told = capsys.readouterr().out.splitlines()
    assert told == [f"{file}: no cases of merge", "0 passed, 0 failed"]
    file.write_bytes(json.dumps(GROUPS["count"][0]).encode() + b"\r\n\xff\xfe\n")
    assert main([str(file)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{file}, line 2: is not UTF-8: invalid start byte at byte 0",
        "?: 0/1",
        "count: 1/1",
        "1 passed, 1 failed",
    ]


COUNT: dict[str, Any] = {
    "topology": "count",
    "params": {},
    "in": [["a", "A", "1", 0]],
    "out": [[["A", "1", 0]]],
}
TUMBLING: dict[str, Any] = {
    "topology": "tumbling",
    "params": {"size": 10, "grace": 0},
    "in": [["a", None, "1", 0]],
    "out": [[]],
}


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        (COUNT, None),
        (TUMBLING, None),
        ({**COUNT, "error": "StreamsException", "out": []}, None),
        ([COUNT], "is not a JSON object"),
        ({"topology": "count"}, "has no 'params'"),
        ({**COUNT, "topology": ["count"]}, "has a topology that is not known: ['count']"),
        ({**COUNT, "params": []}, "has params that are not an object"),
        ({**COUNT, "params": {"size": 3}}, "has a parameter that count does not know: 'size'"),
        ({**TUMBLING, "params": {"grace": 0}}, "lacks a parameter of tumbling: 'size'"),
        ({**COUNT, "in": []}, "has no input, and so nothing to answer"),
        ({**COUNT, "out": []}, "answers 0 of 1 inputs"),
        ({**COUNT, "out": [[], []]}, "answers 2 of 1 inputs"),
        ({**COUNT, "in": [*COUNT["in"]] * 3, "out": [[]], "error": "E"}, "answers 1 of 3 inputs"),
        ({**COUNT, "in": {}}, "has an 'in' or 'out' that is not a list"),
        (
            {**COUNT, "in": [["c", "A", "1", 0]]},
            "has an input 1 that is not [topic a or b, key, value, ms]: ['c', 'A', '1', 0]",
        ),
        (
            {**COUNT, "in": ["a", "A", "1", 0]},
            "has an input 1 that is not [topic a or b, key, value, ms]: 'a'",
        ),
        (
            {**COUNT, "out": [[["A", 1, 0]]]},
            "has an answer 1 that is not a list of [key, value, ms]: [['A', 1, 0]]",
        ),
        (
            {**COUNT, "out": [[["A", "1", False]]]},
            "has an answer 1 that is not a list of [key, value, ms]: [['A', '1', False]]",
        ),
    ],
)
def test_what_is_no_case(case: Any, problem: str | None) -> None:
    """A line that says nothing that could be held against an answer, or something that is not understood."""
    assert read_case(json.dumps(case).encode())[1] == problem


@pytest.mark.parametrize(
    ("topology", "params", "name"),
    [
        ("tumbling", {"size": 10, "grace": 0, "emit": "weird"}, "emit"),
        ("tumbling", {"size": 10.5, "grace": 0}, "size"),
        ("tumbling", {"size": 10, "grace": 0, "long_retention": 1}, "long_retention"),
        ("stream_global", {"kind": "outer"}, "kind"),
        ("suppress_time_limit", {"limit": 1, "buffer": "max_bytes 2 emit_early"}, "buffer"),
        ("table_filter", {"materialized": True, "pred": "last digit odd"}, "pred"),
    ],
)
def test_parameters_that_cannot_be(topology: str, params: dict[str, Any], name: str) -> None:
    """A parameter of another value is not run as if it had a known one."""
    case = {**COUNT, "topology": topology, "params": params}
    wanted = f"has a parameter that {topology} cannot have: {name!r} is {params[name]!r}"
    assert problem_of(case) == wanted


def test_tumbling_windows_do_not_overlap() -> None:
    """What has another advance is hopping."""
    case = {**TUMBLING, "params": {"size": 10, "advance": 5, "grace": 0}}
    assert problem_of(case) == "has tumbling windows whose advance is not their size"


def test_an_answer_that_is_too_short_is_another_one() -> None:
    """What is not compared has not passed."""
    case = {**COUNT, "in": [*COUNT["in"]] * 2, "out": [[["A", "1", 0]], [["A", "2", 0]]]}
    assert difference(case, case["out"], case["out"]) is None
    assert difference(case, case["out"], case["out"][:1]) == "want 1 answers to 2 inputs"
    assert difference(case, case["out"][:1], case["out"]) == "got 1 answers to 2 inputs"
