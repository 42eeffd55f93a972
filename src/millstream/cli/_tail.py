"""``millstream tail``: the records of a topic as they come."""

from __future__ import annotations

import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec

from millstream.cli._failure import note
from millstream.cli._log import open_log
from millstream.cli._output import one_line, shown_bytes, to_terminal
from millstream.cli._run import complete_names, run
from millstream.cli._session import Session, command
from millstream.cli._values import decode_shown, find_topic
from millstream.clock import duration_ms, format_timestamp, timestamp_ms
from millstream.errors import ConfigurationError, UnknownTopicError
from millstream.records import TopicPartition
from millstream.transports.batch import iterate_records

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.agents import Topic
    from millstream.app import App
    from millstream.transports.base import Transport

__all__ = ["MOMENT_MIN", "Begin", "moment_of", "tail"]

LAST_RECORDS = 10
FETCH_BYTES_MAX = 1 << 20
MOMENT_MIN = 10**11
"""A number from here on is ms since the epoch, and not a count of records."""


class Begin(NamedTuple):
    """Where to begin: at one of the ends, or at the ``last`` records, or at a ``moment`` in ms."""

    end: bool = False
    last: int | None = None
    moment: int | None = None


if TYPE_CHECKING:
    _BeginParam = click.ParamType[Begin]
else:
    _BeginParam = click.ParamType  # which takes a type only since click 8.3


class BeginType(_BeginParam):
    """``beginning``, ``end``, a count, ``10m`` (ago), or a time."""

    name = "beginning|end|N|TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Begin:
        """Read what the user wrote."""
        if isinstance(value, Begin):
            return value
        if value == "beginning":
            return Begin()
        if value == "end":
            return Begin(end=True)
        if value.isdigit():
            number = int(value)
            return Begin(moment=number) if number >= MOMENT_MIN else Begin(last=number)
        moment = moment_of(value)
        if moment is None:
            self.fail(
                f"{value!r} is neither beginning, end, a count of records, a length of time such as"
                f" 10m, nor a time such as 2026-01-31T12:00:00Z.",
                param,
                ctx,
            )
        return Begin(moment=moment)


def moment_of(text: str) -> int | None:
    """A moment in ms: ``10m`` (ago), or a time as in ISO 8601; None where it is neither."""
    try:
        return time.time_ns() // 1_000_000 - duration_ms(text)
    except ConfigurationError:
        pass
    try:
        return timestamp_ms(datetime.fromisoformat(text).astimezone())
    except ValueError:
        return None


@command("tail")
@click.argument(
    "topic", metavar="TOPIC", shell_complete=complete_names(lambda app: list(app.topics))
)
@click.option(
    "--from",
    "begin",
    type=BeginType(),
    default=str(LAST_RECORDS),
    help=f"Where to begin; with the last {LAST_RECORDS} records where left out.",
)
@click.option("--limit", type=click.IntRange(1), help="Stop after so many records.")
@click.option(
    "-f", "--follow/--no-follow", default=True, help="Wait for more at the end, or stop there."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one record a line.")
def tail(
    session: Session, topic: str, begin: Begin, limit: int | None, follow: bool, as_json: bool
) -> None:
    """Show the records of a topic, and go on as they come."""
    run(_tail(session.app(), topic, begin, limit=limit, follow=follow, as_json=as_json))


async def _tail(
    app: App, name: str, begin: Begin, *, limit: int | None, follow: bool, as_json: bool
) -> None:
    declared = find_topic(app, name)
    name = name if declared is None else declared.name
    async with open_log(app) as transport:
        info = (await transport.topics()).get(name)
        if info is None:
            raise UnknownTopicError(name, where=transport.url)
        tps = [TopicPartition(name, number) for number in range(info.partitions)]
        ends = await transport.end_offsets(tps)
        printer = _Printer(declared, limit=limit, as_json=as_json)
        positions = await _positions(transport, begin, tps, ends)
        if begin.last is not None:
            shown = await _last(transport, positions, ends, begin.last)
            for tp, record in shown[:limit]:
                printer.show(tp, record)
            positions = dict(ends)
        if follow and not printer.full and positions == ends and to_terminal() and not as_json:
            note(f"waiting for records in {name}; Ctrl-C ends this")
        await _follow(transport, positions, printer, bounds=None if follow else ends)


async def _positions(
    transport: Transport,
    begin: Begin,
    tps: list[TopicPartition],
    ends: Mapping[TopicPartition, int],
) -> dict[TopicPartition, int]:
    if begin.end:
        return dict(ends)
    if begin.moment is not None:
        return await transport.offsets_at(tps, begin.moment)
    starts = await transport.start_offsets(tps)
    if begin.last is None:
        return starts
    return {tp: max(starts[tp], ends[tp] - begin.last) for tp in tps}


async def _last(
    transport: Transport,
    positions: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    count: int,
) -> list[tuple[TopicPartition, Any]]:
    """The last records of all partitions together, the oldest first."""
    found: list[tuple[TopicPartition, Any]] = []

    class Collect(_Printer):
        def show(self, tp: TopicPartition, record: Any) -> None:
            found.append((tp, record))

    await _follow(transport, dict(positions), Collect(None, limit=None, as_json=False), bounds=ends)
    found.sort(key=lambda pair: (pair[1].timestamp, pair[0].partition, pair[1].offset))
    return found[-count:] if count else []


async def _follow(
    transport: Transport,
    positions: dict[TopicPartition, int],
    printer: _Printer,
    *,
    bounds: Mapping[TopicPartition, int] | None,
) -> None:
    """Show records from ``positions`` on, up to ``bounds`` or for ever."""
    if bounds is not None:
        positions = {tp: at for tp, at in positions.items() if at < bounds[tp]}
    reader = transport.reader()
    try:
        while positions and not printer.full:
            for fetched in await reader.fetch(
                positions, max_bytes=FETCH_BYTES_MAX, max_wait_s=60.0 if bounds is None else 1.0
            ):
                tp = fetched.tp
                for record in iterate_records(fetched.data, where=str(tp), position=positions[tp]):
                    if bounds is not None and record.offset >= bounds[tp]:
                        break
                    if printer.full:
                        break
                    printer.show(tp, record)
                positions[tp] = fetched.next_offset
                if bounds is not None and fetched.next_offset >= bounds[tp]:
                    del positions[tp]
            printer.flush()
    finally:
        await reader.close()


class _Printer:
    """Writes records to stdout, up to a limit."""

    def __init__(self, topic: Topic[Any] | None, *, limit: int | None, as_json: bool) -> None:
        self._key_codec = None if topic is None else topic.key_codec
        self._value_codec = None if topic is None else topic.value_codec
        self._left = limit
        self._as_json = as_json
        self._people = to_terminal()

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._left == 0

    def show(self, tp: TopicPartition, record: Any) -> None:
        """Print one record."""
        if self._left is not None:
            self._left -= 1
        key = None if record.key is None else shown_bytes(record.key)
        value = decode_shown(self._value_codec, record.value)
        if self._as_json:
            fact = {
                "topic": tp.topic,
                "partition": tp.partition,
                "offset": record.offset,
                "timestamp": record.timestamp,
                "key": decode_shown(self._key_codec, record.key) if self._key_codec else key,
                "value": value,
            }
            if record.headers:
                fact["headers"] = [
                    [name, None if data is None else shown_bytes(data)]
                    for name, data in record.headers
                ]
            click.echo(msgspec.json.encode(fact).decode())
            return
        place = f"{tp.topic}/{tp.partition}@{record.offset}"
        moment = format_timestamp(record.timestamp)
        text = "null" if value is None else one_line(value)
        if self._people:
            place, moment = click.style(place, fg="cyan"), click.style(moment, dim=True)
            click.echo("  ".join((place, moment, key or "", text)))
        else:
            click.echo("\t".join((place, moment, one_line(key), text)))

    def flush(self) -> None:
        """What was printed so far is for the reader to see."""
        sys.stdout.flush()
