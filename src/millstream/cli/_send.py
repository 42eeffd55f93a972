"""``millstream send``: one value, or many from stdin or a file."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from millstream.cli._progress import Bar
from millstream.cli._run import complete_names, run
from millstream.cli._session import Session, command
from millstream.cli._values import any_topic, find_topic, key_from_text, shown_key, value_from_text
from millstream.errors import ConfigurationError, MillstreamError, ProgramError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from millstream.agents import Topic
    from millstream.app import App
    from millstream.records import OutgoingRecord, TopicPartition

__all__ = ["send"]

BATCH_RECORDS = 1_000
"""Records that one append takes."""
CHUNK_BYTES = 1 << 18
QUEUE_CHUNKS = 4


@command("send")
@click.argument(
    "target",
    metavar="TOPIC|@AGENT",
    shell_complete=complete_names(
        lambda app: [*app.topics, *(f"@{a.name}" for a in app.agents.values() if not a.internal)]
    ),
)
@click.argument("value", metavar="VALUE|-|@FILE")
@click.option("--key", help="The key; taken from the value by key_from= where left out.")
@click.option("--key-field", metavar="FIELD", help="Take the key from this field of the value.")
def send(session: Session, target: str, value: str, key: str | None, key_field: str | None) -> None:
    """Send a value to a topic or an agent.

    VALUE is JSON, or plain text where the topic's codec is str or raw. - reads one value a line from stdin,
    and @FILE from a file.
    """
    if key is not None and key_field is not None:
        raise click.UsageError("--key and --key-field exclude one another.")
    app = session.app()
    app.lifespan = None  # sending needs nothing that the app opens for its workers
    if value == "-" or (value.startswith("@") and Path(value[1:]).is_file()):
        run(_send_lines(app, target, value, key, key_field))
    elif value.startswith("@"):
        raise ConfigurationError(f"there is no file {value[1:]}")
    else:
        run(_send_one(app, target, value, key, key_field))


async def _send_one(
    app: App, target: str, text: str, key_text: str | None, key_field: str | None
) -> None:
    declared = find_topic(app, target)
    early = None if declared is None else value_from_text(declared, text)
    async with app.running(worker=False):
        topic = _topic(app, target)
        value = early if declared is not None else value_from_text(topic, text)
        key = _key_of(topic, key_text, key_field)(value)
        position = await topic.send(value, key=key)
    shown = "" if key is None else f"  key={shown_key(topic, key)}"
    click.echo(f"{position}{shown}")


async def _send_lines(
    app: App, target: str, source: str, key_text: str | None, key_field: str | None
) -> None:
    async with app.running(worker=False):
        topic = _topic(app, target)
        key_of = _key_of(topic, key_text, key_field)
        sent = number = bytes_read = 0
        began = time.monotonic()
        total = None if source == "-" else os.path.getsize(source[1:])  # noqa: ASYNC240 - a file, at once
        try:
            with Bar(f"sending to {topic.name}", "bytes" if total else "records") as bar:
                async for lines, size in _lines(source):
                    for first in range(0, len(lines), BATCH_RECORDS):
                        batch = lines[first : first + BATCH_RECORDS]
                        sent += await _append(app, topic, batch, key_of, number + first)
                    number += len(lines)
                    bytes_read += size
                    bar.update(bytes_read if total else sent, total)
        except MillstreamError as exc:
            raise _LineError(f"{exc} ({sent:,} records before were sent)") from exc
    took_s = max(time.monotonic() - began, 1e-6)
    records = "1 record" if sent == 1 else f"{sent:,} records"
    click.echo(f"{records} to {topic.name} in {took_s:.1f} s, {sent / took_s:,.0f}/s")


class _LineError(ProgramError):
    """A line that could not be sent; nothing of its batch was."""


async def _append(
    app: App,
    topic: Topic[Any],
    lines: list[bytes],
    key_of: Callable[[Any], Any],
    before: int,
) -> int:
    batches: dict[TopicPartition, list[OutgoingRecord]] = {}
    count = 0
    for number, line in enumerate(lines, before + 1):
        if not line.strip():
            continue
        try:
            value = value_from_text(topic, line.decode())
            tp, record = topic.encode(value, key=key_of(value))
        except (MillstreamError, UnicodeDecodeError) as exc:
            raise _LineError(f"line {number:,}: {exc}") from exc
        batches.setdefault(tp, []).append(record)
        count += 1
    if batches:
        assert app.runtime is not None
        await app.runtime.transport.append(batches)
    return count


def _topic(app: App, target: str) -> Topic[Any]:
    """The topic to send to, which exists now if the app declares it."""
    runtime = app.runtime
    assert runtime is not None
    changelogs = {
        table.changelog: name for name, table in runtime.topology.tables.items() if table.changelog
    }
    if target in changelogs:
        raise ConfigurationError(
            f"topic {target!r} is the changelog of table {changelogs[target]!r}: only agents write it,"
            f" by writing the table"
        )
    topic = find_topic(app, target)
    if topic is not None:
        return topic
    if target not in runtime.infos:
        from difflib import get_close_matches

        close = get_close_matches(target, [*app.topics, *runtime.infos], n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigurationError(
            f"topic {target!r} is not declared by app {app.id!r}, and does not exist in"
            f" {runtime.transport.url}{meant}"
        )
    return any_topic(app, target)


def _key_of(topic: Topic[Any], key_text: str | None, key_field: str | None) -> Callable[[Any], Any]:
    """What derives the key of a value, as the options say."""
    if key_text is not None:
        key = key_from_text(topic, key_text)
        return lambda value: key
    if key_field is None:
        return topic.key_of
    from millstream.agents import field_getter

    getter = field_getter(key_field)

    def get(value: Any) -> Any:
        try:
            return getter(value)
        except (AttributeError, KeyError, TypeError) as exc:
            raise ProgramError(
                f"--key-field {key_field}: {type(value).__name__} has no such field"
            ) from exc

    return get


async def _lines(source: str) -> AsyncIterator[tuple[list[bytes], int]]:
    """Whole lines as they come, many at once, and how many bytes were read for them."""
    rest = b""
    async for chunk in _chunks(source):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines, len(chunk)
    if rest:
        yield [rest], 0


async def _chunks(source: str) -> AsyncIterator[bytes]:
    """What a pipe or file has to give; a thread of no importance waits for it, so that Ctrl-C works."""
    if source != "-":
        with open(source[1:], "rb") as file:  # noqa: ASYNC230 - nothing else runs meanwhile
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        return
    try:
        descriptor = sys.stdin.fileno()
    except (io.UnsupportedOperation, AttributeError, ValueError):
        stream: IO[bytes] = sys.stdin.buffer
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
        return
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes | OSError] = asyncio.Queue(QUEUE_CHUNKS)

    def read() -> None:
        # the loop is over, or about to be, and nobody wants more
        with contextlib.suppress(RuntimeError, CancelledError):
            more = True
            while more:
                found: bytes | OSError
                try:
                    found = os.read(descriptor, CHUNK_BYTES)
                    more = bool(found)
                except OSError as exc:
                    found, more = exc, False
                asyncio.run_coroutine_threadsafe(queue.put(found), loop).result()

    threading.Thread(target=read, daemon=True, name="stdin").start()
    while taken := await queue.get():
        if isinstance(taken, OSError):
            raise ConfigurationError(
                f"stdin cannot be read ({taken.strerror or taken}): give a pipe or a file"
            ) from taken
        yield taken
