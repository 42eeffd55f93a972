"""The tables of ``docs/streams/join-tables.md`` are what Kafka Streams has put out, and what we do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.run import difference, run_case
from tests.docs.pages import DOCS

FILE = Path(__file__).parents[1] / "conformance" / "join-semantics.jsonl"
"""Made by ``tests.conformance.record``."""
CASES: list[dict[str, Any]] = [json.loads(line) for line in FILE.read_text().splitlines()]
TABLES = ["stream_stream", "table_table", "stream_table", "table_fk"]
"""In the order of the page."""


def tables() -> list[list[list[str]]]:
    """The page's tables, as rows of cells, with their heads."""
    found: list[list[list[str]]] = []
    before = ""
    for line in (DOCS / "streams" / "join-tables.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        before = line
    return found


def side(key: str, value: str | None, *, keyed: bool) -> str:
    """An input as the page shows it."""
    shown = "–" if value is None else value
    return f"{key}: {shown}" if keyed else shown


def results(rows: list[list[Any]], *, keyed: bool) -> str:
    """Results as the page shows them."""
    shown = []
    for key, value, _ in rows:
        text = "deleted"
        if value is not None:
            text = f"({value.replace(',', ', ').replace('null', '–')})"
        shown.append(f"{key}: {text}" if keyed else text)
    return " ".join(shown)


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['topology']}-{case['params']['kind']}"
)
def test_the_page_shows_what_was_recorded(case: dict[str, Any]) -> None:
    """Cell by cell."""
    keyed = case["topology"] == "table_fk"
    head, _, *rows = tables()[TABLES.index(case["topology"])]
    column = 3 + head[3:].index(case["params"]["kind"])  # an input is called left as well
    assert len(rows) == len(case["in"])
    for row, (topic, key, value, timestamp), out in zip(rows, case["in"], case["out"], strict=True):
        text = side(key, value, keyed=keyed)
        assert row[:3] == [str(timestamp // 1_000), *([text, ""] if topic == "a" else ["", text])]
        assert row[column] == results(out, keyed=keyed)


@pytest.mark.parametrize("compat", [None, "kafka-streams"])
@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['topology']}-{case['params']['kind']}"
)
async def test_joins_put_that_out(case: dict[str, Any], compat: str | None) -> None:
    """Record for record, in both modes."""
    assert difference(case, await run_case(case, compat=compat), case["out"]) is None
