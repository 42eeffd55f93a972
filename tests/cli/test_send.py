"""``millstream send`` and ``tail``: records in, records out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.terminal import APP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from tests.cli.terminal import Terminal

MORE = """
words = app.topic("words", value=str, codec="str")
raw = app.topic("raw", key=bytes, value=bytes, codec="raw")
counts = app.topic("counts", key=int, value=int, codec="long")
packed = app.topic("packed", value=Order, codec="msgpack", key_from="account")


@app.agent(orders, words)
async def both(stream):
    async for x in stream: ...
"""
ADA = '{"account": "ada", "amount": 12.5}'


@pytest.fixture
def call(project: Path, call: Callable[..., Result]) -> Callable[..., Result]:
    """The command line, with topics of several codecs."""
    (project / "app.py").write_text(APP + MORE)
    return call


@pytest.mark.parametrize(
    ("arguments", "printed", "key", "value"),
    [
        (["orders", ADA], "orders/1@0  key=ada", "ada", {"account": "ada", "amount": 12.5}),
        (["@count", ADA], "orders/1@0  key=ada", "ada", {"account": "ada", "amount": 12.5}),
        (["packed", ADA], "packed/1@0  key=ada", "ada", {"account": "ada", "amount": 12.5}),
        (["orders", ADA, "--key", "bob"], "orders/2@0  key=bob", "bob", None),
        (["orders", "null", "--key", "bob"], "orders/2@0  key=bob", "bob", None),  # deletes
        (["words", "hello there", "--key", "a"], "words/0@0  key=a", "a", "hello there"),
        (["raw", "\u00e4", "--key", "a"], "raw/0@0  key=a", "a", "\u00e4"),
        (["counts", "17", "--key", "3"], "counts/3@0  key=3", 3, 17),
    ],
)
def test_send_one(
    call: Callable[..., Result], arguments: list[str], printed: str, key: object, value: object
) -> None:
    """JSON by the topic's type, plain text for str and raw; the key from the value or the option."""
    result = call("send", *arguments)
    assert (result.exit_code, result.output) == (0, f"{printed}\n")
    topic = printed.partition("/")[0]
    (line,) = call("tail", topic, "--no-follow", "--json").output.splitlines()
    record = json.loads(line)
    assert record["key"] == key
    if value is not None:
        assert record["value"] == value


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["orders", '{"account": "ada"}'], 1, "the value is not Order: .*missing .*field `amount`"),
        (
            ["orders", '{"account": 1, "amount": 1}'],
            1,
            r"Expected `str`, got `int` - at `\$\.account`",
        ),
        (["orders", '{"acc'], 1, "is not JSON"),
        (["counts", '"x"', "--key", "1"], 1, "topic 'counts': the value is not int: expected int"),
        (["counts", "1", "--key", "x"], 1, "topic 'counts': the key is not int"),
        (["ordrs", "1"], 2, "not declared by app 'shop', and does not exist in .*mean 'orders'"),
        (["@nobody", "1"], 2, "no agent 'nobody': the app has @count"),
        (["@both", "1"], 2, "'both' reads several topics or a derived stream"),
        (["shop-totals-changelog", "1"], 2, "is the changelog of table 'totals'"),
        (["orders", "@nothing.jsonl"], 2, "there is no file nothing.jsonl"),
        (["orders", ADA, "--key", "a", "--key-field", "b"], 2, "exclude one another"),
        (["orders", ADA, "--key-field", "b"], 1, "--key-field b: Order has no such field"),
        (
            ["orders", ADA, "--key-field", "amount"],
            1,
            "key: a value of type float cannot be encoded",
        ),
    ],
)
def test_send_refuses(
    call: Callable[..., Result], arguments: list[str], code: int, message: str
) -> None:
    """The error names the field, and nothing is sent."""
    import re

    result = call("send", *arguments)
    assert result.exit_code == code
    assert re.search(message, result.stderr), result.stderr
    rows = json.loads(call("topics", "--json").stdout)
    assert sum(row["records"] or 0 for row in rows) == 0


@pytest.mark.parametrize("source", ["-", "@lines.jsonl"])
def test_send_many(project: Path, call: Callable[..., Result], source: str) -> None:
    """One value a line, from stdin or a file; empty lines are nothing."""
    lines = "".join(f'{{"account": "a{n}", "amount": {n}}}\n' for n in range(2_500)) + "\n\n" + ADA
    (project / "lines.jsonl").write_text(lines)
    result = call("send", "orders", source, input=lines)
    assert result.exit_code == 0
    assert result.output.startswith("2,501 records to orders in ")
    records = call("tail", "orders", "--from", "beginning", "--no-follow", "--json").output
    sent = [json.loads(line) for line in records.splitlines()]
    assert sorted(record["value"]["amount"] for record in sent) == sorted([*range(2_500), 12.5])
    assert all(record["key"] == record["value"]["account"] for record in sent)


def test_a_wrong_line(call: Callable[..., Result]) -> None:
    """Its number, and how many were sent before: whole batches."""
    lines = f"{ADA}\n" * 1_500 + "nonsense\n"
    result = call("send", "orders", "-", input=lines)
    assert result.exit_code == 1
    assert "line 1,501: topic 'orders': the value is not Order" in result.stderr
    assert "(1,000 records before were sent)" in result.stderr


def test_a_topic_of_others(call: Callable[..., Result], project: Path) -> None:
    """A topic that exists takes any JSON, although this app does not declare it."""
    (project / "app.py").write_text(APP + 'app.topic("events")\n')
    assert call("topics").exit_code == 0
    assert call("send", "events", "1", "--key", "a").exit_code == 0
    (project / "app.py").write_text(APP)
    result = call("send", "events", '{"any": [1, 2]}', "--key", "a")
    assert result.output == "events/0@1  key=a\n"
    rows = {row["name"]: row for row in json.loads(call("topics", "--json").output)}
    assert (rows["events"]["kind"], rows["events"]["records"]) == ("not declared", 2)


def test_lifespan_is_not_run(project: Path, call: Callable[..., Result]) -> None:
    """What the app opens for its workers is not opened for a send."""
    (project / "app.py").write_text(
        APP.replace("web=False", "web=False, lifespan=lambda app: open('nowhere')")
    )
    assert call("send", "orders", ADA).exit_code == 0


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        ("beginning", [0, 1, 2, 3, 4]),
        ("2", [3, 4]),  # the last two
        ("end", []),
        ("1h", [0, 1, 2, 3, 4]),  # an hour ago
        ("2100-01-01T00:00:00Z", []),
        ("1600000000000", [0, 1, 2, 3, 4]),
    ],
)
def test_where_tail_begins(call: Callable[..., Result], begin: str, expected: list[int]) -> None:
    """At the ends, at the last records, or at a time."""
    lines = "".join(f'{{"account": "a", "amount": {n}}}\n' for n in range(5))
    call("send", "orders", "-", input=lines)
    output = call("tail", "orders", "--no-follow", "--json", "--from", begin).output
    assert [json.loads(line)["value"]["amount"] for line in output.splitlines()] == expected


def test_tail_on_lines(call: Callable[..., Result]) -> None:
    """Position, time, key and value, with tabs where no terminal is; --limit ends it."""
    call("send", "orders", ADA)
    call("send", "orders", ADA)
    result = call("tail", "orders", "--from", "beginning", "--limit", "1")
    place, moment, key, value = result.output.rstrip("\n").split("\t")
    assert (place, key) == ("orders/1@0", "ada")
    assert json.loads(value) == json.loads(ADA)
    assert moment.endswith("+00:00")
    assert call("tail", "orders", "--limit", "1").output == result.output


def test_tail_refuses(call: Callable[..., Result]) -> None:
    """A topic that does not exist, and a beginning that is none."""
    call("send", "orders", ADA)
    result = call("tail", "nothing")
    assert (result.exit_code, "'nothing' does not exist" in result.stderr) == (1, True)
    result = call("tail", "orders", "--from", "somewhere")
    assert result.exit_code == 2
    assert "neither beginning, end, a count" in result.stderr


def test_tail_follows(terminal: Terminal) -> None:
    """Records that other processes send appear at once."""
    assert terminal.run("send", "orders", ADA).returncode == 0
    tail = terminal.start("tail", "orders")
    tail.until(r"orders/1@0\t.*\tada\t")
    assert terminal.run("send", "orders", ADA).returncode == 0
    tail.until(r"orders/1@1\t")
    code, _ = tail.end()
    assert code == 130
    assert "Traceback" not in tail.output


def test_send_from_what_cannot_be_read(terminal: Terminal) -> None:
    """It says so, and does not wait for ever; ``nohup`` gives such a stdin."""
    import os
    import subprocess

    from tests.cli.terminal import MILLSTREAM

    with open(os.devnull, "wb") as unreadable:
        sent = subprocess.run(
            [*MILLSTREAM, "send", "orders", "-"],
            cwd=terminal.directory,
            stdin=unreadable,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert sent.returncode == 1
    assert "stdin cannot be read (Bad file descriptor): give a pipe or a file" in sent.stderr


def test_send_follows_a_pipe(terminal: Terminal) -> None:
    """Lines are sent as they come, and Ctrl-C ends it although nothing comes."""
    import subprocess

    from tests.cli.terminal import MILLSTREAM, poll

    feeder = subprocess.Popen(
        [*MILLSTREAM, "send", "orders", "-"],
        cwd=terminal.directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert feeder.stdin is not None
    feeder.stdin.write(f"{ADA}\n")
    feeder.stdin.flush()
    poll(
        lambda: "orders/1@0" in terminal.run("tail", "orders", "--no-follow").stdout,
        what="the record is in the log",
    )
    feeder.send_signal(2)
    assert feeder.wait(10) == 130
    feeder.stdin.close()
