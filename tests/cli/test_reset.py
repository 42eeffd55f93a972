"""``millstream reset``: from a clean state, whatever interrupts it, and never while workers run."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from millstream.app._slot import take_slot
from millstream.cli._reset_plan import ResetPlan, plan_reset
from millstream.errors import ConfigurationError, LogUnavailableError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.topology import AgentNode, TableNode, TopicNode, Topology
from millstream.transports.local import LocalTransport
from tests.cli.engine import process_everything
from tests.cli.terminal import APP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from millstream.transports.base import OffsetAndMetadata
    from tests.cli.terminal import Terminal

GOOD = '{"account": "ada", "amount": 2.5}'
TP = TopicPartition("orders", 1)
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")

CHAIN = """
import msgspec
import millstream as ms

app = ms.App("shop", web=False)


class Order(msgspec.Struct):
    account: str
    amount: float


orders = app.topic("orders", value=Order, key_from="account")
large = app.topic("large", value=Order, key_from="account")
totals = app.table("totals", key=float, value=int, default=0)
seen = app.table("seen", key=str, value=int, default=0)


@app.agent(orders, sink=large)
async def pick(stream):
    async for order in stream:
        if order.amount > 10:
            yield order


@app.agent(large)
async def follow(stream):
    async for order in stream:
        seen[order.account] += 1


@app.agent(app.stream(orders).group_by("amount"))
async def count(stream):
    async for amount, order in stream.items():
        totals[amount] += 1
"""


def _committed(project: Path, *tps: TopicPartition) -> dict[TopicPartition, OffsetAndMetadata]:
    async def look() -> dict[TopicPartition, OffsetAndMetadata]:
        async with LocalTransport(project / "shop.db") as log:
            return await log.committed("shop", tps)

    return asyncio.run(look())


def _topics(project: Path) -> dict[str, str]:
    async def look() -> dict[str, str]:
        async with LocalTransport(project / "shop.db") as log:
            return {name: info.topic_id for name, info in (await log.topics()).items()}

    return asyncio.run(look())


def _append(project: Path, *timestamps: int) -> None:
    async def append() -> None:
        async with LocalTransport(project / "shop.db") as log:
            records = [OutgoingRecord(at, b"ada", GOOD.encode(), []) for at in timestamps]
            await log.append({TP: records})

    asyncio.run(append())


def test_a_rerun_is_from_a_clean_state(
    project: Path, call: Callable[..., Result], terminal: Terminal
) -> None:
    """What is counted again is counted once; it is said before what is done."""
    for _ in range(3):
        call("send", "orders", GOOD)
    process_everything(project)
    assert call("table", "totals", "ada").stdout == "7.5\n"
    before = _topics(project)
    state = project / ".millstream" / "shop" / "0"
    result = call("reset", "--yes")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert re.fullmatch(r"  shop-totals-changelog is deleted, with \d records?", lines.pop(3))
    assert lines == [
        f"in local://{project}/shop.db:",
        "  orders: begins at its first record, reads 3 records again",
        "  table totals begins empty",
        f"  state in {state} is deleted, of 4 shards",
        "  state on other machines is found to be old, and rebuilt, when a worker starts there",
        "shop is reset: the next worker begins there",
    ]
    assert [path.name for path in state.iterdir()] == ["lock"]
    assert call("agents").stdout.split("\t")[4] == "3"
    worker = terminal.start("worker")
    worker.until("ready in")
    assert call("send", "orders", GOOD).exit_code == 0
    process = worker.end()
    assert process[0] == 0
    process_everything(project)
    assert call("table", "totals", "ada").stdout == "10.0\n"
    after = _topics(project)
    assert after["orders"] == before["orders"]
    assert after["shop-totals-changelog"] != before["shop-totals-changelog"]


def test_dry_run(project: Path, call: Callable[..., Result]) -> None:
    """It says the same, and does nothing."""
    call("send", "orders", GOOD)
    process_everything(project)
    before = _topics(project), _committed(project, TP)
    said = call("reset", "--dry-run").stdout
    data = json.loads(call("reset", "--dry-run", "--json").stdout)
    assert data["positions"]["orders/1"] == {"before": 1, "after": 0}
    assert data["tables"] == ["totals"]
    assert data["deleted"] == {"shop-totals-changelog": 2}
    assert (len(data["state"]), data["done"]) == (4, False)
    assert (_topics(project), _committed(project, TP)) == before
    assert call("table", "totals", "ada").stdout == "2.5\n"
    assert call("reset", "--yes").stdout.startswith(said)


def test_while_workers_run(project: Path, call: Callable[..., Result], terminal: Terminal) -> None:
    """They are named, and nothing is done; looking is allowed."""
    (project / "app.py").write_text(APP.replace(", web=False", ""))
    call("send", "orders", GOOD)
    worker = terminal.start("worker")
    url = worker.until(r"ready in .* (http://\S+)")[1]
    before = _topics(project)
    result = call("reset", "--yes")
    assert result.exit_code == 1
    assert (
        f"1 of app 'shop' is running: slot 0 at {url}. Stop what runs (Ctrl-C), then reset it"
        in result.stderr
    )
    assert _topics(project) == before
    assert call("reset", "--dry-run").exit_code == 0
    assert worker.end()[0] == 0


@pytest.mark.parametrize("step", ["delete_topics", "state", "last"])
def test_interrupted(
    project: Path,
    call: Callable[..., Result],
    terminal: Terminal,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Wherever it stops, no worker goes on from there, and the same command does it all."""
    for _ in range(2):
        call("send", "orders", GOOD)
    process_everything(project)
    with monkeypatch.context() as patch:
        _fail_at(patch, step)
        result = call("reset", "--yes")
        assert result.exit_code == 1
        assert "out of order" in result.stderr
    stopped = terminal.run("worker")
    assert stopped.returncode == 2
    assert (
        "millstream reset has begun to change the positions and tables of group 'shop', and was"
        " interrupted: run the same millstream reset again" in stopped.stderr
    )
    assert call("skip", "orders/1@0").exit_code == 2
    assert "millstream reset was interrupted" in call("lag").stderr
    assert call("reset", "--yes").exit_code == 0
    process_everything(project)
    assert call("table", "totals", "ada").stdout == "5.0\n"


def _fail_at(patch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise LogUnavailableError("out of order")

    if step == "delete_topics":
        patch.setattr(LocalTransport, "delete_topics", fail)
    elif step == "state":
        patch.setattr("millstream.cli._reset.remove_store", fail)
    else:
        real, calls = LocalTransport.set_committed, 0

        async def second_fails(self: LocalTransport, *args: Any) -> None:
            nonlocal calls
            calls += 1
            await (fail() if calls == 2 else real(self, *args))

        patch.setattr(LocalTransport, "set_committed", second_fails)


@pytest.mark.parametrize(
    ("to", "offset"),
    [
        ("earliest", 0),
        ("latest", 4),
        ("2", 2),
        ("1970-01-01T00:00:02Z", 1),
        ("1970-01-01T00:00:02.001Z", 2),
        ("2100-01-01T00:00:00Z", 4),
        ("10m", 3),
    ],
)
def test_where_to(project: Path, call: Callable[..., Result], to: str, offset: int) -> None:
    """An end, a time, a length of time ago, or an offset."""
    call("send", "orders", GOOD, "--key", "somebody else")  # makes the topics
    _append(project, 1_000, 2_000, 3_000, time.time_ns() // 1_000_000)
    assert call("reset", "orders", "--to", to, "--yes").exit_code == 0
    found = _committed(project, TP)[TP]
    assert found.offset == offset
    assert found.metadata == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--to", "7"], 2, "An offset goes with the topic that it is of: reset TOPIC --to 5123"),
        (
            ["orders", "--to", "7"],
            2,
            "no partition holds offset 7: orders/0 0 to 0, orders/1 0 to 1",
        ),
        (["--to", "yesterday"], 2, "'yesterday' is neither earliest, latest"),
        (["payments", "--yes"], 2, "no agent of app 'shop' reads 'payments': it reads orders"),
        ([], 2, "Reset shop? There is nobody to ask here: say --yes."),
    ],
)
def test_refused(
    call: Callable[..., Result], arguments: list[str], code: int, message: str
) -> None:
    """What is no place to begin, or was not confirmed."""
    call("send", "orders", GOOD)
    result = call("reset", *arguments)
    assert result.exit_code == code
    assert message in result.stderr


@posix_only
def test_a_person_is_asked(project: Path, call: Callable[..., Result], terminal: Terminal) -> None:
    """Anything but yes leaves all as it is."""
    call("send", "orders", GOOD)
    process_everything(project)
    for typed, code, offset in (("n\n", 130, 1), ("\n", 130, 1), ("y\n", 0, 0)):
        found, shown = terminal.look("reset", typed=typed, until=r"Reset shop\?")
        assert found == code, shown
        assert ("nothing was changed" in shown) == (code == 130)
        assert _committed(project, TP)[TP].offset == offset


def test_state_that_is_in_use(project: Path, call: Callable[..., Result]) -> None:
    """By a process that is in no group: nothing is done."""
    call("send", "orders", GOOD)
    process_everything(project)
    before = _committed(project, TP)
    with take_slot(project / ".millstream" / "shop", "0"):
        result = call("reset", "--yes")
    assert result.exit_code == 1
    assert "is in use by process" in result.stderr
    assert _committed(project, TP) == before


def test_topics_between_agents(project: Path, call: Callable[..., Result]) -> None:
    """Repartition topics go; of what agents make and read themselves, the old records are passed over."""
    (project / "app.py").write_text(CHAIN)
    for amount in (5, 20, 30):
        call("send", "orders", json.dumps({"account": "ada", "amount": amount}))
    process_everything(project)
    shown = [line.split("\t") for line in call("table", "seen").stdout.splitlines()]
    assert shown == [["ada", "2"]]
    before = _topics(project)
    result = call("reset", "--yes", "--json")
    data = json.loads(result.stdout)
    assert data["done"] is True
    assert data["deleted"]["shop-orders-by-amount-repartition"] == 3
    assert data["positions"]["large/1"] == {"before": 2, "after": 2}
    process_everything(project)
    assert call("table", "seen").stdout == "ada\t2\n"
    assert sorted(call("table", "totals").stdout.splitlines()) == ["20.0\t1", "30.0\t1", "5.0\t1"]
    after = _topics(project)
    assert {n for n in before if before[n] != after[n]} == {
        "shop-orders-by-amount-repartition",
        "shop-seen-changelog",
        "shop-totals-changelog",
    }
    lines = call("tail", "large", "--from", "beginning", "--no-follow").stdout.splitlines()
    assert len(lines) == 4  # sent again


def test_other_partition_counts(project: Path, call: Callable[..., Result]) -> None:
    """It is the way out where a table has to have another count than its changelog."""
    call("send", "orders", GOOD)
    process_everything(project)
    (project / "app.py").write_text(
        APP.replace('"orders", value', '"orders2", partitions=2, value')
    )
    result = call("send", "orders2", GOOD)
    assert result.exit_code == 2
    assert "start it anew: millstream reset" in result.stderr
    assert call("reset", "--yes").exit_code == 0
    assert call("send", "orders2", GOOD).exit_code == 0
    process_everything(project)
    assert call("table", "totals", "ada").stdout == "2.5\n"


def test_positions_alone(project: Path, call: Callable[..., Result]) -> None:
    """With --keep-tables the same records count twice, as was asked for."""
    call("send", "orders", GOOD)
    process_everything(project)
    result = call("reset", "--keep-tables", "--yes")
    assert result.stdout.splitlines()[1:] == [
        "  orders: begins at its first record, reads 1 record again",
        "shop is reset: the next worker begins there",
    ]
    process_everything(project)
    assert call("table", "totals", "ada").stdout == "5.0\n"


# plans


def _topology(
    agents: dict[str, tuple[tuple[str, ...], tuple[str, ...]]],
    *,
    tables: dict[str, int],
    topics: dict[str, int],
    internal: tuple[str, ...] = (),
) -> Topology:
    return Topology(
        app="shop",
        topics={
            name: TopicNode(name=name, partitions=count, internal=name in internal)
            for name, count in topics.items()
        },
        tables={
            name: TableNode(name=name, changelog=f"shop-{name}-changelog", partitions=count)
            for name, count in tables.items()
        }
        | {"rates": TableNode(name="rates", changelog=None, source="rates", partitions=4)},
        agents={
            name: AgentNode(name=name, sources=sources, sinks=sinks, internal=name[:2] == "to")
            for name, (sources, sinks) in agents.items()
        }
        | {"table:rates": AgentNode(name="table:rates", sources=("rates",), internal=True)},
    )


TWO = _topology(
    {
        "count": (("orders",), ()),
        "pay": (("payments",), ("paid",)),
        "follow": (("paid",), ()),
        "to-by-user": (("clicks",), ("by-user",)),
        "users": (("by-user",), ()),
    },
    tables={"totals": 4, "visits": 8},
    topics={"orders": 4, "payments": 4, "paid": 4, "clicks": 6, "by-user": 8, "rates": 4},
    internal=("by-user",),
)


@pytest.mark.parametrize(
    ("named", "keep", "plan"),
    [
        # all of it
        (
            [],
            False,
            ResetPlan(
                read=("clicks", "orders", "payments", "rates"),
                passed=("paid",),
                deleted=("by-user", "shop-totals-changelog", "shop-visits-changelog"),
                tables=("totals", "visits"),
                counts=frozenset({4, 6, 8}),
            ),
        ),
        # positions alone
        ([], True, ResetPlan(read=("clicks", "orders", "payments", "rates"))),
        (["orders"], True, ResetPlan(read=("orders",))),
        # a part that stands by itself, through the topic that is made of it
        (
            ["clicks"],
            False,
            ResetPlan(
                read=("clicks",),
                deleted=("by-user", "shop-visits-changelog"),
                tables=("visits",),
                counts=frozenset({6, 8}),
            ),
        ),
        # what is read as a table is written by nobody
        (["rates"], False, ResetPlan(read=("rates",))),
        # both that share the tables with four shards, and one that is made of them by name
        (
            ["orders", "payments"],
            False,
            ResetPlan(
                read=("orders", "payments"),
                passed=("paid",),
                deleted=("shop-totals-changelog",),
                tables=("totals",),
                counts=frozenset({4}),
            ),
        ),
        (
            ["orders", "paid", "payments"],
            False,
            ResetPlan(
                read=("orders", "paid", "payments"),
                deleted=("shop-totals-changelog",),
                tables=("totals",),
                counts=frozenset({4}),
            ),
        ),
    ],
)
def test_plans(named: list[str], keep: bool, plan: ResetPlan) -> None:
    """Which topics are read again, passed over and deleted, and which tables begin empty."""
    existing = {*TWO.topics, "shop-totals-changelog", "shop-visits-changelog"}
    assert plan_reset(TWO, existing=existing, named=named, keep_tables=keep) == plan


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (
            ["orders"],
            "table totals would begin empty, and may hold what paid, payments brought, which would not"
            " be read again. Name these topics as well",
        ),
        (["by-user"], "'by-user' is made by Millstream out of other topics"),
        (["refunds"], "no agent of app 'shop' reads 'refunds': it reads clicks, orders, paid,"),
    ],
)
def test_plans_that_would_lose_data(named: list[str], message: str) -> None:
    """They are refused; the message names what is missing."""
    with pytest.raises(ConfigurationError, match=message):
        plan_reset(TWO, existing=set(TWO.topics), named=named, keep_tables=False)


def test_a_topic_that_only_its_reader_makes() -> None:
    """It is an input as well: where else would its first record come from?"""
    loop = _topology({"loop": (("steps",), ("steps",))}, tables={}, topics={"steps": 4, "rates": 4})
    plan = plan_reset(loop, existing={"steps"}, named=[], keep_tables=False)
    assert (plan.read, plan.passed) == (("steps",), ())


def test_topics_that_do_not_exist_yet() -> None:
    """There is nothing to reset in them."""
    plan = plan_reset(TWO, existing={"orders"}, named=[], keep_tables=False)
    assert (plan.read, plan.passed, plan.deleted) == (("orders",), (), ())
    assert plan.tables == ("totals", "visits")


def test_orphans(project: Path, call: Callable[..., Result]) -> None:
    """What a table that is gone has kept is named before the first event, and deleted when one says so."""
    call("send", "orders", GOOD)
    process_everything(project)
    source = (project / "app.py").read_text()
    (project / "app.py").write_text(source.replace('app.table("totals"', 'app.table("sums"'))
    with pytest.raises(ConfigurationError, match=r"table 'totals' \(\d+ records? in shop-totals"):
        process_everything(project)
    assert (
        "shop-totals-changelog is deleted, with" in call("reset", "--orphans", "--dry-run").output
    )
    assert "shop-totals-changelog" in _topics(project)
    result = call("reset", "--orphans", "--yes", "--json")
    assert list(json.loads(result.output)["deleted"]) == ["shop-totals-changelog"]
    assert "shop-totals-changelog" not in _topics(project)
    process_everything(project)
    assert "nothing is left" in call("reset", "--orphans").output
