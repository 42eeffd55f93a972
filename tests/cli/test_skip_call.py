"""``millstream skip`` for what comes from no record: windows, and timers' moments."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import pytest

from millstream.cli._find import find_app
from millstream.cli._log import open_log
from millstream.cli._skip import parse
from millstream.cli._skip_call import SkippedTimer, SkippedWindow
from millstream.errors import ConfigurationError
from millstream.records import OutgoingRecord, Position, TopicPartition
from millstream.transports.batch import iterate_records
from millstream.worker import encode_note, timer_note
from tests.cli.conftest import forget
from tests.cli.terminal import poll

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from tests.cli.terminal import Terminal

WINDOWS = """\
import millstream as ms

app = ms.App("shop", web=False, partitions=1)
seen = app.topic("seen", key=str, value=int, timestamp=lambda at: at)
closed = app.topic("closed", key=str, value=int)
counts = app.table("counts", key=str, value=int, default=0).KIND


@app.agent(seen)
async def count(stream: ms.Stream[int, str]) -> None:
    async for key, _ in stream.items():
        counts[key] += 1


@counts.on_close
async def close(key, window, value):
    if key == "bad @ key":
        raise ValueError("no")
    await closed.send(value, key=key)
"""

TIMERS = """\
import millstream as ms

app = ms.App("shop", web=False, partitions=SHARDS)
seen = app.topic("seen", key=str, value=int)
ran = app.topic("ran", key=str, value=str, partitions=1)
counts = app.table("counts", key=str, value=int, default=0)


@app.agent(seen)
async def count(stream: ms.Stream[int, str]) -> None:
    async for key, _ in stream.items():
        counts[key] += 1


@app.crontab("* * * * *", OPTIONS)
async def job(moment):
    if FAILS:
        raise ValueError("no")
    await ran.send(moment.isoformat(), key="k")
"""

NAMED = re.compile(r"millstream skip ('[^']+'|\S+)\n$")


def records(project: Path, topic: str, partition: int = 0) -> list[OutgoingRecord]:
    """What is in a partition."""
    tp = TopicPartition(topic, partition)

    async def read() -> list[OutgoingRecord]:
        found: list[OutgoingRecord] = []
        async with open_log(find_app(None, project)) as transport:
            at, end = 0, (await transport.end_offsets([tp]))[tp]
            reader = transport.reader()
            while at < end:
                for some in await reader.fetch({tp: at}, max_bytes=1 << 20, max_wait_s=1.0):
                    found += [
                        OutgoingRecord(r.timestamp, r.key, r.value, r.headers)
                        for r in iterate_records(some.data, where=str(tp), position=at)
                    ]
                    at = some.next_offset
            await reader.close()
        return found

    forget(project)
    return asyncio.run(read())


def note(project: Path, tp: TopicPartition, name: str, moment: int) -> None:
    """Make a note, as a worker does."""

    async def write() -> None:
        async with open_log(find_app(None, project)) as transport:
            record = OutgoingRecord(0, *encode_note(timer_note(name), moment), [])
            await transport.append({tp: [record]})

    forget(project)
    asyncio.run(write())


@pytest.mark.parametrize("kind", ['tumbling("10s")', 'session("5s")', 'sliding("10s")'])
def test_a_window_that_stops_a_worker(
    kind: str, project: Path, call: Callable[..., Result], terminal: Terminal
) -> None:
    """The command that the worker names goes past the window, and past no other one."""
    (project / "app.py").write_text(WINDOWS.replace("KIND", kind))
    for at, key in [(0, "ada"), (1, "bad @ key"), (2, "cyd"), (900, "ada")]:
        assert call("send", "seen", str(at * 1_000), "--key", key).exit_code == 0
    stopped = terminal.run("worker")
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    assert stopped.stderr.startswith("Error: on_close of table 'counts', window 1970-01-01T00:0")
    found = NAMED.search(stopped.stderr)
    assert found is not None, stopped.stderr
    position = found[1].strip("'")
    assert position.startswith("counts@bad @ key@1970-01-01T00:00:0")
    for other in (position.replace("bad @ key", "cyd"), position.replace("T00:00:", "T00:01:")):
        refused = call("skip", other)
        assert refused.exit_code == 1
        assert f"the next window to be closed there is {position}" in refused.stderr
    skipped = call("skip", position)
    assert skipped.exit_code == 0, skipped.stderr
    assert skipped.stdout.startswith("skipped window 1970-01-01T00:00:0")
    assert skipped.stdout.endswith("of bad @ key in table counts\n")
    again = call("skip", position)
    assert again.exit_code == 1
    assert "the next window to be closed there is counts@cyd@1970-01-01T00:00:0" in again.stderr
    worker = terminal.start("worker")
    worker.until("ready in")
    poll(lambda: len(records(project, "closed")) == 2, what="two windows are closed")
    assert [record.key for record in records(project, "closed")] == [b"ada", b"cyd"]
    refused = call("skip", position)
    assert refused.exit_code == 1
    assert "are running: stop them first" in refused.stderr
    assert worker.end()[0] == 0
    done = call("skip", position)
    assert done.exit_code == 1
    assert (
        "no window of table 'counts' waits to be closed in shop-counts-changelog/0" in done.stderr
    )


HELD = """\
import millstream as ms

app = ms.App("shop", web=False, partitions=1)
seen = app.topic("seen", key=str, value=int, timestamp=lambda at: at)
out = app.topic("out", key=str, value=int)
stream = app.stream(seen).peek(lambda at: None)


class Late:
    def process(self, key, value, context):
        context.set_timer(after="5s")

    def on_timer(self, key, context):
        context.forward(1, key=key)


def check(keyed):
    if keyed[0] == "bad @ key":
        raise ValueError("no")
    return keyed[1]


held = HELD
held.to(out)
"""
HELD_BY = {
    "counts-suppress": (
        'stream.group_by().tumbling("10s").count(name="counts", emit=ms.Suppress()).changes()'
        ".map_keys(lambda w: check((w.key, w.key)), type=str)"
    ),
    "rows-unmatched": (
        "stream.join(app.stream(app.topic('other', value=int)), lambda a, b: a, how='left', within='5s',"
        " name='rows').map_keys(lambda key: check((key, key)), type=str)"
    ),
    "late": (
        "stream.process(Late(), name='late', value=int)"
        ".map_keys(lambda key: check((key, key)), type=str)"
    ),
}


@pytest.mark.parametrize("table", HELD_BY)
def test_a_row_that_was_held_back(
    table: str, project: Path, call: Callable[..., Result], terminal: Terminal
) -> None:
    """The command that the worker names takes the row out, and no other one."""
    (project / "app.py").write_text(HELD.replace("HELD", HELD_BY[table]))
    for at, key in [(0, "ada"), (1, "bad @ key"), (2, "cyd"), (900, "ada")]:
        assert call("send", "seen", str(at * 1_000), "--key", key).exit_code == 0
    stopped = terminal.run("worker")
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    assert f"what '{table}' has held back of key 'bad @ key' raised ValueError" in stopped.stderr
    found = NAMED.search(stopped.stderr)
    assert found is not None, stopped.stderr
    position = found[1].strip("'")
    assert position.startswith(f"{table}@bad @ key@1970-01-01T00:00:0")
    refused = call("skip", position.replace("bad @ key", "eve"))
    assert refused.exit_code == 1
    assert f"'{table}' holds nothing back of 'eve'" in refused.stderr
    skipped = call("skip", position)
    assert skipped.exit_code == 0, skipped.stderr
    assert skipped.stdout == f"skipped what {table} has held back of bad @ key\n"
    worker = terminal.start("worker")
    worker.until("ready in")
    poll(lambda: len(records(project, "out")) == 2, what="the others have come out")
    assert [record.key for record in records(project, "out")] == [b"ada", b"cyd"]
    assert worker.end()[0] == 0


@pytest.mark.parametrize(
    ("scope", "shards", "shard"),
    # with a second shard the job would be due there as well, if a minute ends while the test runs
    [("leader", 2, ""), ("shard", 1, "/1-0")],
)
def test_a_moment_that_stops_a_worker(
    scope: str,
    shards: int,
    shard: str,
    project: Path,
    call: Callable[..., Result],
    terminal: Terminal,
) -> None:
    """The command that the worker names goes past the moment: the next worker does not run it."""
    program = TIMERS.replace("OPTIONS", f"scope={scope!r}").replace("SHARDS", str(shards))
    (project / "app.py").write_text(program.replace("FAILS", "False"))
    worker = terminal.start("worker")
    worker.until("ready in")
    topic = f"shop-notes-of-{shards}-changelog"
    poll(lambda: records(project, topic), what="the job has its beginning")
    assert worker.end()[0] == 0
    assert records(project, "ran") == []
    note(project, TopicPartition(topic, 0), "job", 1_700_000_000_000)  # it was long ago
    (project / "app.py").write_text(program.replace("FAILS", "True"))
    stopped = terminal.run("worker")
    assert stopped.returncode == 1, stopped.stdout + stopped.stderr
    found = NAMED.search(stopped.stderr)
    assert found is not None, stopped.stderr
    assert found[1].startswith(f"timer:job{shard}@20")
    (project / "app.py").write_text(program.replace("FAILS", "False"))
    skipped = call("skip", found[1])
    assert skipped.exit_code == 0, skipped.stderr
    moment = found[1].rpartition("@")[2]
    assert skipped.stdout == f"skipped timer job of {moment}\n"
    again = call("skip", found[1])
    assert again.exit_code == 1
    assert (
        f"timer 'job' is past that moment: the last one it ran for, or that was skipped, is {moment}"
        in (again.stderr)
    )
    worker = terminal.start("worker")
    worker.until("ready in")
    assert worker.end()[0] == 0
    # a minute may have ended meanwhile
    assert moment[:17] not in [
        (record.value or b"").decode()[1:18] for record in records(project, "ran")
    ]


@pytest.mark.parametrize(
    ("position", "code", "message"),
    [
        ("other@ada@1000", 2, "app 'shop' has no table 'other' with on_close: it has counts"),
        ("counts@ada@1000", 1, "no window of table 'counts' waits to be closed in"),
        ("counts@ada@noon", 2, "is not a record"),
        ("counts@ada@2024-07-01T12:00:00", 2, "is not a record"),  # of which zone?
    ],
)
def test_windows_that_are_refused(
    project: Path, call: Callable[..., Result], position: str, code: int, message: str
) -> None:
    """What is no window of this app."""
    (project / "app.py").write_text(WINDOWS.replace("KIND", 'tumbling("10s")'))
    call("send", "seen", "1", "--key", "ada")
    result = call("skip", position)
    assert result.exit_code == code
    assert message in result.stderr


@pytest.mark.parametrize(
    ("options", "position", "code", "message"),
    [
        ("", "timer:other@1000", 2, "app 'shop' has no timer 'other': it has job"),
        ("", "timer:job", 2, "is no timer's moment: write timer:name@moment"),
        ("", "timer:job@9999-01-01T00:00:00Z", 1, "is still to come"),
        ("", "timer:job/2-0@1000", 2, "has the scope 'leader': write timer:name@moment"),
        (
            "scope='shard'",
            "timer:job@1000",
            2,
            "has the scope 'shard': write timer:name/4-2@moment",
        ),
        ("scope='shard'", "timer:job/2-7@1000", 2, "'job' has not run in a shard 2-7"),
        ("missed='skip'", "timer:job@1000", 2, "there is nothing to skip"),
        ("scope='worker'", "timer:job@1000", 2, "there is nothing to skip"),
    ],
)
def test_moments_that_are_refused(
    project: Path,
    call: Callable[..., Result],
    options: str,
    position: str,
    code: int,
    message: str,
) -> None:
    """What is no moment of a timer that comes again."""
    program = TIMERS.replace("OPTIONS", options).replace("FAILS", "False").replace("SHARDS", "2")
    (project / "app.py").write_text(program)
    call("send", "seen", "1", "--key", "ada")
    result = call("skip", position)
    assert result.exit_code == code
    assert message in result.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("orders/3@5123", Position("orders", 3, 5123)),
        ("counts@ada@1000", SkippedWindow("counts", "ada", 1_000)),
        ("counts@a@b@1970-01-01T00:00:01Z", SkippedWindow("counts", "a@b", 1_000)),
        ("counts@@1970-01-01T01:00:01+01:00", SkippedWindow("counts", "", 1_000)),
        ('counts@["a", 1]@1000', SkippedWindow("counts", '["a", 1]', 1_000)),
        ("counts@orders/3@5123", SkippedWindow("counts", "orders/3", 5_123)),
        ("timer:tick@1000", SkippedTimer("tick", None, 1_000)),
        ("timer:tick/4-2@1000", SkippedTimer("tick", (4, 2), 1_000)),
        ("timer:a/b@1000", SkippedTimer("a/b", None, 1_000)),
        ("timer:a@b/4-2@1970-01-01T00:00:01Z", SkippedTimer("a@b", (4, 2), 1_000)),
    ],
)
def test_forms(text: str, expected: object) -> None:
    """Records, windows and moments, as workers name them."""
    assert parse(text) == expected


def test_no_form() -> None:
    """What is none of them."""
    for text in ("", "orders", "orders@5", "orders/x@5", "counts@5"):
        with pytest.raises(ConfigurationError, match="is not a record"):
            parse(text)
