"""``millstream skip``: go past what stops the workers: a record, a window, a timer's moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from millstream.cli._log import AgentPositions, agent_positions, matched_topology, open_log
from millstream.cli._run import run
from millstream.cli._session import Session, command
from millstream.cli._skip_call import SkippedTimer, SkippedWindow, check_stopped, running
from millstream.errors import ConfigurationError, FencedError, ProgramError
from millstream.records import OutgoingRecord, Position, TopicPartition
from millstream.transports.base import OffsetAndMetadata
from millstream.transports.batch import iterate_records
from millstream.worker import encode_note, notes_topic, passed_note
from millstream.worker._metadata import decode_metadata, encode_metadata

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.app import App
    from millstream.transports.base import TopicInfo, Transport

__all__ = ["skip"]

FETCH_BYTES_MAX = 1 << 20


@command("skip")
@click.argument("record", metavar="RECORD")
def skip(session: Session, record: str) -> None:
    """Go past a record: the agents whose next record it is begin behind it.

    RECORD is written as a stopped worker names it, for example orders/3@5123. So is a window whose on_close
    function failed (totals@ada@2024-07-01T12:00:00Z), and a timer's moment (timer:report@2024-07-01T12:00:00Z).
    Workers have to be stopped.
    """
    app, named = session.app(), parse(record)
    if isinstance(named, Position):
        run(_skip(app, named))
    else:
        click.echo(run(named.skip(app)))


def parse(text: str) -> Position | SkippedTimer | SkippedWindow:
    """Read what is to be skipped.

    Raises:
        ConfigurationError: it is none of the three.
    """
    for form in (SkippedTimer, SkippedWindow):
        found = form.parse(text.strip())
        if found is not None:
            return found
    return Position.parse(text)


async def _skip(app: App, record: Position) -> None:
    tp = record.tp
    async with open_log(app) as transport:
        infos = await transport.topics()
        topology = matched_topology(app, infos)
        read = topology.sources
        if tp.topic not in read:
            raise ConfigurationError(
                f"no agent of app {app.id!r} reads {tp.topic!r}: it reads"
                f" {', '.join(read) or 'nothing'}"
            )
        info = infos.get(tp.topic)
        if info is None or tp.partition >= info.partitions:
            has = "does not exist" if info is None else f"has {info.partitions} partitions"
            raise ConfigurationError(f"{record}: topic {tp.topic!r} {has}")
        await check_stopped(app, transport)
        positions = await agent_positions(app, transport, [tp])
        following = await _next_records(transport, positions, tp)
        moved = past(record, positions, following)
        found = positions.committed.get(tp)
        metadata = decode_metadata("" if found is None else found.metadata)
        metadata.check_finished(app.id)
        offset, text = encode_metadata(
            metadata.t,
            {
                topology.agents[name].position_name(tp.topic): moved.get(name, at)
                for (name, _), at in positions.at.items()
            },
            metadata.s,
        )
        await _note_passed(app, transport, record, info, moved)
        try:
            await transport.set_committed(app.id, {tp: OffsetAndMetadata(offset, text)})
        except FencedError as exc:
            raise running(app) from exc
    names = ", ".join(sorted(moved))
    click.echo(f"skipped {record} for {names}, which goes on with {tp}@{record.offset + 1}")


async def _note_passed(
    app: App, transport: Transport, record: Position, info: TopicInfo, moved: Mapping[str, int]
) -> None:
    """Where the record would have been a table's entry, it is to stay out of it."""
    tables = [table.name for table in app.tables.values() if table.reader_name in moved]
    notes = [
        OutgoingRecord(
            app.clock.now(), *encode_note(passed_note(name, record.offset), info.topic_id), []
        )
        for name in tables
    ]
    topic = notes_topic(app.id, info.partitions)
    if notes and topic in await transport.topics():  # no worker has begun where there is none
        await transport.append({TopicPartition(topic, record.partition): notes})


def past(
    record: Position, positions: AgentPositions, following: Mapping[str, int]
) -> dict[str, int]:
    """New positions of the agents that have ``record`` before them.

    An agent that is past the record stays where it is, and one that is before it still has to read what comes
    first.

    Args:
        following: the first record at or after each agent's position; the end where there is none.

    Raises:
        ProgramError: it is the next record of no agent; the message tells where they are.
    """
    tp = record.tp
    if record.offset >= positions.ends[tp]:
        raise ProgramError(f"{record}: there is no such record; {tp} ends at {positions.ends[tp]}")
    moved = {
        name: record.offset + 1 for name, offset in following.items() if offset == record.offset
    }
    if not moved:
        at = ", ".join(f"{name} at {tp}@{offset}" for name, offset in sorted(following.items()))
        raise ProgramError(
            f"{record} is the next record of no agent: {at}. Only the record that an agent reads next"
            f" can be skipped, as those before it would be lost as well"
        )
    return moved


async def _next_records(
    transport: Transport, positions: AgentPositions, tp: TopicPartition
) -> dict[str, int]:
    """The first record at or after each agent's position: compaction leaves gaps between offsets."""
    found: dict[int, int] = {}
    for at in set(positions.at.values()):
        found[at] = await _next_record(transport, tp, at, positions.ends[tp])
    return {name: found[at] for (name, _), at in positions.at.items()}


async def _next_record(transport: Transport, tp: TopicPartition, at: int, end: int) -> int:
    reader = transport.reader()
    try:
        while at < end:
            fetched = await reader.fetch({tp: at}, max_bytes=FETCH_BYTES_MAX, max_wait_s=1.0)
            for some in fetched:
                for record in iterate_records(some.data, where=str(tp), position=at):
                    return int(record.offset)
                at = some.next_offset
        return end
    finally:
        await reader.close()
