"""An app that moves from a local log to Kafka, and begins anew there."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING

from millstream.clock import format_timestamp
from tests.brokers import unique
from tests.cli.engine import process_everything
from tests.cli.terminal import APP, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest
    from click.testing import Result

    from tests.brokers import Kafka

GOOD = '{"account": "ada", "amount": 2.5}'


def test_copy_and_reset(
    project: Path,
    call: Callable[..., Result],
    kafka: Kafka,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tables and positions come along; a reset goes to the latest record, a time or the first one, and waits for no worker."""
    app, orders = unique("shop"), unique("orders")
    text = APP.replace('"shop"', f'"{app}"').replace('"orders"', f'"{orders}"')
    (project / "app.py").write_text(text)
    local = f"local://{project}/here.db"
    monkeypatch.setenv("MILLSTREAM_BROKER", local)
    for _ in range(3):
        call("send", orders, GOOD)
    process_everything(project)
    call("send", orders, GOOD)

    def total() -> str:
        return call("table", "totals", "ada").stdout

    def lag() -> int:
        return int(json.loads(call("lag", "--json").stdout)["agents"][0]["lag"])

    copied = call("copy", local, kafka.url, "--yes", "--json")
    assert copied.exit_code == 0, copied.output
    assert json.loads(copied.stdout)["topics"].keys() == {orders, f"{app}-totals-changelog"}
    assert json.loads(copied.stdout)["topics"][orders] == 4
    assert json.loads(copied.stdout)["groups"] == [app]
    monkeypatch.setenv("MILLSTREAM_BROKER", kafka.url)
    assert total() == "7.5\n"
    assert lag() > 0  # ends of transactions have offsets as well
    process_everything(project)
    assert (total(), lag()) == ("10.0\n", 0)
    between = time.time_ns() // 1_000_000 + 1
    time.sleep(0.01)
    call("send", orders, GOOD)

    said = call("reset", "--dry-run")
    assert said.exit_code == 0, said.output
    assert total() == "10.0\n"
    elsewhere = {"MILLSTREAM_BROKER": kafka.url, "MILLSTREAM_STATE_DIR": f"{project}/elsewhere"}
    with contextlib.closing(Terminal(project, environment=elsewhere)) as terminal:
        worker = terminal.start("worker")
        worker.until("ready in")
        refused = call("reset", "--yes")
        assert refused.exit_code == 1
        assert f"of app '{app}' is running" in refused.stderr
        assert worker.end()[0] == 0

    moment = format_timestamp(between).removesuffix(" ms")
    for to, counted in (("latest", ""), (moment, "2.5\n"), ("earliest", "12.5\n")):
        done = call("reset", "--to", to, "--yes")
        assert done.exit_code == 0, done.output
        assert total() == ""
        process_everything(project)
        assert total() == counted, to
