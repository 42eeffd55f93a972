"""``millstream topics``, ``tables``, ``agents`` and ``topology``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from tests.cli.engine import process_everything

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

ADA = '{"account": "ada", "amount": 12.5}'


def test_topics(call: Callable[..., Result]) -> None:
    """Declared ones first, then what else the log holds."""
    declared = call("topics")
    assert declared.stdout == "orders\tdeclared, not created yet\t\t\tfor ever\tOrder\n"
    assert "does not exist yet: this is what the app declares" in declared.stderr
    call("send", "orders", ADA)
    orders, changelog = json.loads(call("topics", "--json").stdout)
    assert orders == {
        "name": "orders",
        "kind": "declared",
        "exists": True,
        "partitions": 4,
        "records": 1,
        "compacted": False,
        "retention_ms": None,
        "value": "Order",
    }
    assert (changelog["name"], changelog["kind"]) == ("shop-totals-changelog", "changelog")
    lines = call("topics").stdout.splitlines()
    assert lines[1].split("\t") == [
        "shop-totals-changelog",
        "changelog",
        "4",
        "0",
        "last of each key",
        "",
    ]


def test_tables(call: Callable[..., Result]) -> None:
    """Types, windows, and where they come from."""
    call("send", "orders", ADA)
    (table,) = json.loads(call("tables", "--json").stdout)
    assert (table["name"], table["key"], table["value"], table["window"]) == (
        "totals",
        "str",
        "float",
        None,
    )
    assert call("tables").stdout == "totals\tstr\tfloat\t\t4\t\t0\n"


def test_agents(project: Path, call: Callable[..., Result]) -> None:
    """Lag is what is in the log and not committed."""
    for _ in range(3):
        call("send", "orders", ADA)
    (agent,) = json.loads(call("agents", "--json").stdout)
    assert (agent["lag"], agent["positions"]["orders/1"]) == (3, 0)
    result = call("agents")
    assert result.stdout == "count\torders\t\t1\t3\tTotals per account.\n"
    assert "no worker is running" in result.stderr
    process_everything(project)
    call("send", "orders", ADA)
    (agent,) = json.loads(call("agents", "--json").stdout)
    assert (agent["lag"], agent["positions"]["orders/1"]) == (1, 3)


def test_topology(project: Path, call: Callable[..., Result]) -> None:
    """As text, Mermaid, SVG and data; with partitions whether the log exists or not."""
    text = call("topology").stdout
    assert text.splitlines() == [
        "shop",
        "  orders → agent count",
        "  table totals (4 shards) ⇄ shop-totals-changelog",
    ]
    assert call("topology", "--mermaid").stdout.startswith("flowchart LR\n")
    assert call("topology", "--svg", "shop.svg").stdout == "shop.svg\n"
    assert ElementTree.parse(project / "shop.svg").getroot().tag.endswith("svg")
    data = json.loads(call("topology", "--json").stdout)
    assert data["agents"]["count"]["sources"] == ["orders"]
    assert data["tables"]["totals"]["partitions"] == 4
    assert call("topology", "--svg", "nowhere/shop.svg").exit_code == 2
    assert call("topology", "--mermaid", "--json").exit_code == 2
    assert not (project / "shop.db").exists()
