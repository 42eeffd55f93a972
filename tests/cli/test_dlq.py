"""``millstream dlq``: dead letters are seen, sent back once, and dropped."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from millstream.cli._dlq_handle import handle
from millstream.cli._dlq_letters import Letter, read_letters, read_marks
from millstream.cli._groups_seat import take_seat
from millstream.clock import ManualClock
from millstream.errors import OutcomeUnknownError, TransportError
from millstream.hooks import observe
from millstream.records import Headers, OutgoingRecord, Position, TopicPartition
from millstream.transports.base import OffsetAndMetadata, TopicSpec
from millstream.transports.batch import iterate_records
from millstream.transports.local import LocalTransport
from millstream.transports.memory import MemoryLog, MemoryTransport
from tests.cli.engine import process_everything
from tests.cli.terminal import APP, poll

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from millstream.transports.base import CommitResult, Epoch
    from tests.cli.terminal import Terminal

ORDERS = TopicPartition("orders", 1)
LETTERS = TopicPartition("shop-dlq", 0)
MARKS = TopicPartition("shop-dlq-handled", 0)
DLQ = (
    APP.replace("web=False", 'web=False, on_error="dlq"')
    .replace("import msgspec", "import pathlib\n\nimport msgspec")
    .replace("if order.amount < 0:", 'if order.amount < 0 and not pathlib.Path("mended").exists():')
)
OTHER = """

@app.agent(orders)
async def other(stream: ms.Stream[Order]) -> None:
    async for order in stream: ...
"""


@pytest.fixture
def failed(project: Path, call: Callable[..., Result]) -> Path:
    """A project with two dead letters, of orders/1@1 and orders/1@3, and what failed is mended."""
    (project / "app.py").write_text(DLQ)
    for amount in (5, -1, 3):
        call("send", "orders", json.dumps({"account": "ada", "amount": amount}))
    _append(project, OutgoingRecord(7_000, b"ada", b'{"account": "ada"}', [("trace", b"t\xff")]))
    process_everything(project)
    (project / "mended").touch()
    return project


def _append(project: Path, record: OutgoingRecord, tp: TopicPartition = ORDERS) -> None:
    async def append() -> None:
        async with LocalTransport(project / "shop.db") as log:
            await log.append({tp: [record]})

    asyncio.run(append())


def _read(project: Path, tp: TopicPartition) -> list[Any]:
    async def read() -> list[Any]:
        async with LocalTransport(project / "shop.db") as log:
            return await _records(log, tp)

    return asyncio.run(read())


async def _records(log: Any, tp: TopicPartition) -> list[Any]:
    start, end = (await log.start_offsets([tp]))[tp], (await log.end_offsets([tp]))[tp]
    reader, found = log.reader(), []
    while start < end:
        for fetched in await reader.fetch({tp: start}, max_bytes=1 << 20, max_wait_s=1.0):
            found += list(iterate_records(fetched.data, where=str(tp), position=start))
            start = fetched.next_offset
    await reader.close()
    return found


def test_list(failed: Path, call: Callable[..., Result]) -> None:
    """Letters with the record that they are of, and why it failed."""
    first, second = (line.split("\t") for line in call("dlq", "list").stdout.splitlines())
    assert first[:4] == ["shop-dlq/0@0", "orders/1@1", "ada", "ValueError: negative"]
    assert second[:3] == ["shop-dlq/0@1", "orders/1@3", "ada"]
    assert "amount" in second[3]
    assert second[4] == "1970-01-01T00:00:07.000+00:00"
    data = json.loads(call("dlq", "list", "--json").stdout)
    assert (data[0]["exception"], data[0]["message"]) == ("builtins.ValueError", "negative")
    assert [letter["state"] for letter in data] == ["waiting", "waiting"]


@pytest.mark.parametrize(
    ("options", "letters"),
    [
        ([], 2),
        (["--error", "negative"], 1),
        (["--error", "valueerror"], 1),
        (["--error", "other"], 0),
        (["--source", "orders"], 2),
        (["--source", "payments"], 0),
        (["--topic", "shop-dlq"], 2),
        (["--limit", "1"], 1),
        (["--limit", "0"], 2),
    ],
)
def test_which(failed: Path, call: Callable[..., Result], options: list[str], letters: int) -> None:
    """By error, topic of the record, or dead-letter topic; a limit says that there is more."""
    result = call("dlq", "list", *options)
    assert len(result.stdout.splitlines()) == letters
    assert ("there are 2 letters" in result.stderr) == (options == ["--limit", "1"])
    assert ("no dead letters wait in shop-dlq" in result.stderr) == (letters == 0)


def test_show(failed: Path, call: Callable[..., Result]) -> None:
    """All of it: value, headers, the error, and the line of the user's code."""
    shown = call("dlq", "show", "shop-dlq/0@0").stdout
    assert "\nrecord: orders/1@1\n" in shown
    assert '\nvalue: {"account":"ada","amount":-1.0}\n' in shown
    assert "\nerror: ValueError: negative\n" in shown
    assert 'app.py", line ' in shown
    data = json.loads(call("dlq", "show", "shop-dlq/0@1", "--json").stdout)
    assert data["headers"] == [["trace", "t\\xff"]]
    assert data["value"] == {"account": "ada"}
    assert "Traceback" in data["stacktrace"]


def test_retry(failed: Path, call: Callable[..., Result]) -> None:
    """The record goes back as it was; once, however often one asks."""
    result = call("dlq", "retry", "shop-dlq/0@1")
    assert (result.exit_code, result.stdout) == (0, "shop-dlq/0@1\torders/1@4\n")
    assert result.stderr == "retried 1 letter\n"
    *_, record = _read(failed, ORDERS)
    assert (record.offset, record.timestamp, record.key) == (4, 7_000, b"ada")
    assert (record.value, list(record.headers)) == (b'{"account": "ada"}', [("trace", b"t\xff")])
    again = call("dlq", "retry", "shop-dlq/0@1")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "shop-dlq/0@1 was retried at " in again.stderr
    everything = call("dlq", "retry", "--all", "--json")
    assert json.loads(everything.stdout) == [
        {"letter": "shop-dlq/0@0", "action": "retried", "record": "orders/1@5"}
    ]
    assert json.loads(call("dlq", "retry", "--all", "--json").stdout) == []
    assert len(_read(failed, ORDERS)) == 6
    states = [line.split("\t")[5] for line in call("dlq", "list", "--all").stdout.splitlines()]
    assert states == ["retried", "retried"]
    process_everything(failed)
    # what cannot be decoded still cannot: it is a letter again, and a new one
    assert call("table", "totals", "ada").stdout == "7.0\n"
    (letter,) = json.loads(call("dlq", "list", "--json").stdout)
    assert (letter["letter"], letter["record"]) == ("shop-dlq/0@2", "orders/1@4")


def test_retry_with_a_worker(failed: Path, call: Callable[..., Result], terminal: Terminal) -> None:
    """Workers may run meanwhile, and take the record at once."""
    worker = terminal.start("worker")
    worker.until("ready in")
    assert call("dlq", "retry", "--error", "negative", "--all").exit_code == 0
    poll(lambda: call("table", "totals", "ada").stdout == "7.0\n", what="the letter is counted")
    assert worker.end()[0] == 0


def test_retry_for_several_agents(failed: Path, call: Callable[..., Result]) -> None:
    """Who reads the topic gets the record again, also who had processed it: that is said."""
    (failed / "app.py").write_text(DLQ + OTHER)
    stderr = call("dlq", "retry", "--all").stderr
    assert "orders is read by count, other: each of them gets the records again" in stderr


def test_drop(failed: Path, call: Callable[..., Result]) -> None:
    """Dropped letters are not listed or retried; their bytes go when none before them waits."""
    assert call("dlq", "drop", "shop-dlq/0@1", "--yes").stdout == "shop-dlq/0@1\n"
    assert [record.offset for record in _read(failed, LETTERS)] == [0, 1]
    assert len(call("dlq", "list").stdout.splitlines()) == 1
    result = call("dlq", "retry", "shop-dlq/0@1")
    assert "shop-dlq/0@1 was dropped at " in result.stderr
    assert len(_read(failed, ORDERS)) == 4
    refused = call("dlq", "drop", "--all")
    assert refused.exit_code == 2
    assert "Drop all letters that wait in shop-dlq? There is nobody to ask here" in refused.stderr
    assert call("dlq", "drop", "--all", "--yes").exit_code == 0
    assert _read(failed, LETTERS) == []
    assert call("dlq", "list", "--all").stdout == ""
    assert [record.value for record in _read(failed, MARKS)[-2:]] == [None, None]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["retry"], 2, "Name letters as `millstream dlq list` does, or say --all."),
        (["retry", "shop-dlq/0@0", "--all"], 2, "or say --all."),
        (["retry", "shop-dlq/0@9"], 1, "there is no letter shop-dlq/0@9"),
        (["show", "shop-dlq/0@9"], 1, "there is no letter shop-dlq/0@9"),
        (["show", "nonsense"], 2, "'nonsense' is not a record"),
        (["show", "letters/0@0"], 2, "there is no topic 'letters': dead letters of app 'shop' go"),
        (["list", "--topic", "letters"], 2, "dead letters of app 'shop' go to shop-dlq"),
    ],
)
def test_refused(
    failed: Path, call: Callable[..., Result], arguments: list[str], code: int, message: str
) -> None:
    """What is no letter."""
    result = call("dlq", *arguments)
    assert result.exit_code == code
    assert message in result.stderr


def test_letters_that_cannot_go_back(failed: Path, call: Callable[..., Result]) -> None:
    """They wait on, and the reason is said; the others are retried."""
    prefix = "__streams.errors."
    headers: Headers = [
        (f"{prefix}topic", b"gone"),
        (f"{prefix}partition", b"0"),
        (f"{prefix}offset", b"7"),
    ]
    _append(failed, OutgoingRecord(1, b"k", b"v", headers), LETTERS)
    headers[0] = (f"{prefix}topic", b"orders")
    headers[1] = (f"{prefix}partition", b"9")
    _append(failed, OutgoingRecord(1, b"k", b"v", headers), LETTERS)
    _append(failed, OutgoingRecord(1, b"k", b"no letter", []), LETTERS)
    result = call("dlq", "retry", "--all")
    assert result.exit_code == 1
    assert [line.split("\t")[0] for line in result.stdout.splitlines()] == [
        "shop-dlq/0@0",
        "shop-dlq/0@1",
    ]
    assert "shop-dlq/0@2 was not retried: topic 'gone' does not exist any more" in result.stderr
    assert (
        "shop-dlq/0@3 was not retried: topic 'orders' has 4 partitions, and it is of orders/9"
        in (result.stderr)
    )
    assert "shop-dlq/0@4 was not retried: it has no headers that tell" in result.stderr
    assert len(call("dlq", "list").stdout.splitlines()) == 3


def test_before_there_are_any(call: Callable[..., Result]) -> None:
    """No topic, no letters; that is no error."""
    call("send", "orders", '{"account": "ada", "amount": 1}')
    result = call("dlq", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no dead letters wait in shop-dlq\n"
    assert call("dlq", "retry", "--all").exit_code == 0


# once


@pytest.fixture
async def log() -> MemoryTransport:
    """A log with three letters of two records, two of which are equal in everything."""
    opened = MemoryTransport(clock=ManualClock(), log=MemoryLog())
    await opened.create_topics([TopicSpec(name="orders", partitions=2)])
    await opened.create_topics([TopicSpec(name="shop-dlq", partitions=1)])
    await opened.append({LETTERS: [_letter(0), _letter(1), _letter(1)]})
    return opened


def _letter(offset: int) -> OutgoingRecord:
    facts = {"topic": "orders", "partition": "1", "offset": str(offset)}
    headers = [(f"__streams.errors.{name}", text.encode()) for name, text in facts.items()]
    return OutgoingRecord(5, b"k", b"%d" % offset, [("own", b"h"), *headers])


def _any(_: Letter) -> bool:
    return True


async def _retry(log: MemoryTransport) -> list[tuple[Position, Position | None]]:
    return (await handle(log, "shop-dlq", _any, action="retried", now=1)).done


async def test_equal_letters_are_one(log: MemoryTransport) -> None:
    """A letter that was written twice is sent back once."""
    assert [str(place) for place, _ in await _retry(log)] == ["shop-dlq/0@0", "shop-dlq/0@1"]
    assert [record.value for record in await _records(log, ORDERS)] == [b"0", b"1"]
    states = [
        letter.state
        async for letter in read_letters(log, "shop-dlq", await read_marks(log, "shop-dlq"))
    ]
    assert states == ["retried"] * 3


@pytest.mark.parametrize("point", ["commit.writing", "commit.appended", "commit.positioned"])
async def test_what_fails_in_the_middle(log: MemoryTransport, point: str) -> None:
    """Record and memory of it are one: either both are there or none."""

    def fail(reached: str, _: dict[str, object]) -> None:
        if reached == point:
            raise TransportError("pulled the plug")

    with observe(fail), pytest.raises(TransportError, match="plug"):
        await _retry(log)
    assert await _records(log, ORDERS) == []
    assert len(await _retry(log)) == 2
    assert await _retry(log) == []
    assert len(await _records(log, ORDERS)) == 2


async def test_an_answer_that_never_came(
    log: MemoryTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log tells whether it was done: then it is not done again, and it is known where."""
    real = MemoryTransport.commit

    async def lose_answer(self: MemoryTransport, epoch: Epoch) -> CommitResult:
        await real(self, epoch)
        raise OutcomeUnknownError("no answer")

    monkeypatch.setattr(MemoryTransport, "commit", lose_answer)
    assert await _retry(log) == [
        (Position("shop-dlq", 0, 0), Position("orders", 1, 0)),
        (Position("shop-dlq", 0, 1), Position("orders", 1, 1)),
    ]
    assert len(await _records(log, ORDERS)) == 2


async def test_two_at_once(log: MemoryTransport) -> None:
    """The second is refused; where both got in, the first can write no more."""
    other = MemoryTransport(clock=ManualClock(), log=log.log)
    async with take_seat(log, "shop-dlq-handled", command="first") as seat:
        with pytest.raises(TransportError, match="runs already, elsewhere"):
            await _retry(other)
        await other.join(
            "shop-dlq-handled",
            metadata=b"second",
            assign=lambda members: dict.fromkeys(members, b""),
            session_timeout_s=5,
        )
        with pytest.raises(TransportError, match="another command works on"):
            await seat.commit({LETTERS: OffsetAndMetadata(1)}, {ORDERS: [_letter(0)]})
    assert await _records(log, ORDERS) == []
