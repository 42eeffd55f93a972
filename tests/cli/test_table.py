"""``millstream table``: from the log where no worker runs, from a worker where one does."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from millstream.cli import _table
from tests.cli.engine import process_everything
from tests.cli.terminal import APP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

MORE = """
places = app.topic("places", key=tuple[str, int], value=Order, compacted=True)
known = app.table("known", topic=places)
everywhere = app.global_table("rates", topic=app.topic("rates", value=float, compacted=True))
hourly = app.table("hourly", key=str, value=int, default=0).tumbling("1h", grace="5m")
visits = app.table("visits", key=str, value=int, default=0).session("10m")
recent = app.table("recent", key=str, value=float, ttl="1h")


@app.agent(orders)
async def windows(stream: ms.Stream[Order]) -> None:
    async for order in stream:
        hourly[order.account] += 1
        visits[order.account] += 1
        recent[order.account] = order.amount
"""
COMMITTED = "no worker is running: this is what was committed last\n"


def _send(call: Callable[..., Result], **amounts: float) -> None:
    lines = "".join(f'{{"account": "{name}", "amount": {n}}}\n' for name, n in amounts.items())
    assert call("send", "orders", "-", input=lines).exit_code == 0


def test_without_a_worker(project: Path, call: Callable[..., Result]) -> None:
    """The fold of the changelog, in key order; stderr says where it comes from."""
    _send(call, bob=1.0, ada=2.5, eve=3.0)
    _send(call, ada=10.0)
    process_everything(project)
    one = call("table", "totals", "ada")
    assert (one.exit_code, one.stdout, one.stderr) == (0, "12.5\n", COMMITTED)
    assert call("table", "totals").stdout == "ada\t12.5\nbob\t1.0\neve\t3.0\n"
    assert call("table", "totals", "--prefix", "a").stdout == "ada\t12.5\n"
    found = json.loads(call("table", "totals", "--json").stdout)
    assert found[0] == {"key": "ada", "value": 12.5}
    assert json.loads(call("table", "totals", "ada", "--json").stdout) == found[0]


def test_limit(project: Path, call: Callable[..., Result]) -> None:
    """A table is cut off, and says so; 0 shows it whole."""
    _send(call, **{f"a{n:03}": float(n) for n in range(150)})
    process_everything(project)
    result = call("table", "totals")
    assert len(result.stdout.splitlines()) == 100
    assert "there are more rows: --limit 1000, or --limit 0 for all" in result.stderr
    assert len(call("table", "totals", "--limit", "0").stdout.splitlines()) == 150
    assert call("table", "totals", "--limit", "2").stdout == "a000\t0.0\na001\t1.0\n"


def test_a_key_that_is_not_there(call: Callable[..., Result]) -> None:
    """An error, also where the table's default would be something."""
    _send(call, ada=1.0)
    result = call("table", "totals", "bob")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Error: Table 'totals' has no key 'bob'." in result.stderr


def test_before_anything_was_sent(call: Callable[..., Result]) -> None:
    """There is no log, and none is made."""
    result = call("table", "totals")
    assert result.exit_code == 2
    assert "does not exist yet: start a worker" in result.stderr


def test_other_kinds_of_tables(project: Path, call: Callable[..., Result]) -> None:
    """Windows have bounds; tables of topics end where the worker was; time to live is not shown."""
    (project / "app.py").write_text(APP + MORE)
    _send(call, ada=1.0)
    _send(call, ada=2.0)
    place = '{"account": "x", "amount": 1}'
    assert call("send", "places", place, "--key", '["rome", 1]').exit_code == 0
    assert call("send", "places", place, "--key", '["oslo", 2]').exit_code == 0
    assert call("send", "rates", "1.5", "--key", "eur").exit_code == 0
    process_everything(project)
    assert call("send", "places", place, "--key", '["bonn", 3]').exit_code == 0  # not read yet
    rows = json.loads(call("table", "known", "--json").stdout)
    assert [row["key"] for row in rows] == [["oslo", 2], ["rome", 1]]
    assert rows[0]["value"] == {"account": "x", "amount": 1.0}
    assert json.loads(call("table", "known", '["rome", 1]').stdout)["account"] == "x"
    assert call("table", "known", "--prefix", '["rome"]').stdout.startswith('["rome",1]\t')
    assert call("table", "rates", "eur").stdout == "1.5\n"
    assert call("table", "recent", "ada").stdout == "2.0\n"
    for name in ("hourly", "visits"):
        (row,) = json.loads(call("table", name, "ada", "--json").stdout)
        assert (row["key"], row["value"]) == ("ada", 2)
        key, start, end, value = call("table", name, "ada").stdout.rstrip("\n").split("\t")
        assert (key, value) == ("ada", "2")
        assert start <= end
        assert start.endswith("+00:00")
    result = call("table", "known", "nonsense")
    assert (result.exit_code, "table 'known': " in result.stderr) == (2, True)


STREAMS = """
stream = app.stream(orders)
groups = stream.group_by()
groups.sum("amount", name="summed")
groups.mean("amount", name="averaged")
groups.tumbling("1h").mean("amount", name="per-hour")
groups.session("1h").max("amount", name="per-session")
groups.sliding("1h").count(name="sliding")
stream.to_table("last").filter(bool, name="kept")
"""


def test_tables_of_streams(project: Path, call: Callable[..., Result]) -> None:
    """What is kept beside a value, its time or its count, is not shown."""
    (project / "app.py").write_text(APP + STREAMS)
    for amount in (1.0, 3.0):
        _send(call, ada=amount)
    process_everything(project)
    shown = {
        name: json.loads(call("table", name, "--json").stdout)[-1]["value"]
        for name in ("summed", "averaged", "per-hour", "per-session", "kept", "last")
    }
    order = {"account": "ada", "amount": 3.0}
    assert shown == {
        "summed": 4.0,
        "averaged": 2.0,
        "per-hour": 2.0,
        "per-session": 3.0,
        "kept": order,
        "last": order,
    }
    assert all(
        row["value"] in (1, 2) for row in json.loads(call("table", "sliding", "--json").stdout)
    )


class _Worker(BaseHTTPRequestHandler):
    """Answers as the HTTP API does."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        status, body = self._answer(parts.path, query)
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        if path == "/tables/totals/keys/a%2Fb":
            return 200, {"key": "a/b", "value": 12.5, "position": {"orders/2": 1}}
        if path == "/tables/totals":
            first, count = int(query.get("after", "0")), int(query["limit"])
            rows = [
                {"key": f"k{n:04}", "value": n} for n in range(first, min(first + count, 1_200))
            ]
            more = first + count < 1_200
            return 200, {"rows": rows, "next": str(first + count) if more else None, "position": {}}
        if path == "/tables/totals/keys/busy":
            return 503, {"detail": "Nobody can answer right now."}
        return 404, {"detail": "Table 'totals' has no key 'bob'."}

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A worker of the group, as far as anyone can tell; the one before it in the list has just ended."""
    server = HTTPServer(("127.0.0.1", 0), _Worker)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"

    async def urls(*_: object) -> tuple[int, list[str]]:
        return 2, ["http://127.0.0.1:9", url]

    monkeypatch.setattr(_table, "worker_urls", urls)
    yield url
    server.shutdown()
    thread.join()
    server.server_close()


def test_with_a_worker(call: Callable[..., Result], url: str) -> None:
    """It is asked over HTTP, by pages, and nothing is said on stderr."""
    _send(call, ada=1.0)
    one = call("table", "totals", "a/b")
    assert (one.stdout, one.stderr) == ("12.5\n", "")
    assert json.loads(call("table", "totals", "a/b", "--json").stdout)["position"] == {
        "orders/2": 1
    }
    assert len(call("table", "totals", "--limit", "0").stdout.splitlines()) == 1_200
    some = call("table", "totals", "--limit", "1100")
    assert len(some.stdout.splitlines()) == 1_100
    assert "there are more rows" in some.stderr
    missing = call("table", "totals", "bob")
    assert (missing.exit_code, missing.stderr) == (1, "Error: Table 'totals' has no key 'bob'.\n")


def test_a_worker_that_cannot_answer(project: Path, call: Callable[..., Result], url: str) -> None:
    """What is committed is shown instead."""
    _send(call, busy=4.0)
    process_everything(project)
    result = call("table", "totals", "busy")
    assert result.stdout == "4.0\n"
    assert result.stderr == "no worker answers over HTTP: this is what was committed last\n"
