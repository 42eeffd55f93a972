"""Commands for an app that reads topics by a pattern."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.engine import process_everything
from tests.cli.terminal import poll

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from tests.cli.terminal import Terminal

BY_PATTERN = '''
import msgspec

import millstream as ms

app = ms.App("shop", partitions=2)


class Order(msgspec.Struct):
    account: str
    amount: float


orders = app.topic(pattern="orders-.*", value=Order, key_from="account")
totals = app.table("totals", key=str, value=float, default=0.0)


@app.agent(orders)
async def count(stream: ms.Stream[Order]) -> None:
    """Totals of all regions."""
    async for order in stream:
        totals[order.account] += order.amount
'''
OTHER = """
import millstream as ms

app = ms.App("other", broker="local://shop.db", partitions=2)
eu = app.topic("orders-eu", value=dict, key_from="account")
us = app.topic("orders-us", value=dict, key_from="account")
"""
ADA = '{"account": "ada", "amount": 12.5}'


@pytest.fixture
def regions(project: Path, call: Callable[..., Result]) -> Path:
    """A log with two topics that match, one of which has an order that another program has sent."""
    (project / "app.py").write_text(BY_PATTERN)
    (project / "other.py").write_text(OTHER)
    assert call("-A", "other", "send", "orders-eu", ADA).exit_code == 0
    return project


def test_lists(regions: Path, call: Callable[..., Result]) -> None:
    """Agents are listed with the topics that match, and these with the type that the pattern gives them."""
    (agent,) = json.loads(call("agents", "--json").stdout)
    assert (agent["sources"], agent["lag"]) == (["orders-eu", "orders-us"], 1)
    topics = {row["name"]: row for row in json.loads(call("topics", "--json").stdout)}
    assert (topics["orders-eu"]["kind"], topics["orders-eu"]["value"]) == ("declared", "Order")
    assert topics["orders-us"]["records"] == 0
    process_everything(regions)
    assert json.loads(call("agents", "--json").stdout)[0]["lag"] == 0
    assert call("table", "totals", "ada").stdout == "12.5\n"


def test_before_there_are_any(project: Path, call: Callable[..., Result]) -> None:
    """Without a log the pattern stands for itself; with one that has none, nothing is read yet."""
    (project / "app.py").write_text(BY_PATTERN)
    assert "nothing yet" in call("agents").stdout
    assert "~orders-.*" not in call("topics").stdout
    assert "agent count" in call("topology").stdout


def test_send_and_tail(regions: Path, call: Callable[..., Result]) -> None:
    """Values are checked and keyed as the pattern's description says."""
    sent = call("send", "orders-us", '{"account": "ada", "amount": 1}')
    assert sent.stdout.endswith("@0  key=ada\n")
    wrong = call("send", "orders-us", '{"account": "ada"}')
    assert wrong.exit_code == 1
    assert "missing required field `amount`" in wrong.stderr
    nowhere = call("send", "orders-br", ADA)
    assert nowhere.exit_code == 1
    assert "topic 'orders-br' does not exist" in nowhere.stderr
    assert '"amount":1' in call("tail", "orders-us", "--no-follow").stdout.replace(" ", "")


def test_skip(regions: Path, call: Callable[..., Result]) -> None:
    """A record of a topic that matches can be gone past; one of another topic is not the app's."""
    topics = json.loads(call("tail", "orders-eu", "--no-follow", "--json").stdout)
    record = f"orders-eu/{topics['partition']}@0"
    assert call("skip", record).stdout.startswith(f"skipped {record} for count")
    other = call("skip", "invoices/0@0")
    assert other.exit_code == 2
    assert "no agent of app 'shop' reads 'invoices': it reads orders-eu, orders-us" in other.stderr


def test_worker(project: Path, terminal: Terminal) -> None:
    """An idle worker says what it waits for, and takes a topic in that another program makes."""
    (project / "app.py").write_text(BY_PATTERN.replace("partitions=2", "partitions=2, web=False"))
    (project / "other.py").write_text(OTHER)
    worker = terminal.start("worker")
    worker.until(r"waiting for records in topics that match orders-\.\*\n")
    assert terminal.run("-A", "other", "send", "orders-eu", ADA).returncode == 0
    poll(lambda: terminal.run("table", "totals", "ada").stdout == "12.5\n", what="the total of ada")
