"""``millstream lag``: how far behind the agents are, in records and in time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from millstream.cli._failure import FAILED, note
from millstream.cli._live import Screen, interval_option
from millstream.cli._log import agent_positions, open_log
from millstream.cli._output import json_option
from millstream.cli._run import run
from millstream.cli._session import Session, command
from millstream.records import TopicPartition
from millstream.transports.batch import iterate_records
from millstream.worker._metadata import decode_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from millstream.app import App
    from millstream.cli._live import Part
    from millstream.transports.base import Transport

__all__ = ["first_timestamps", "lag", "lag_rows", "shown_age"]

FETCH_BYTES_MAX = 1 << 20
_UNITS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))

At = tuple[TopicPartition, int]
"""A partition, and an offset in it."""


@command("lag")
@click.option("--watch", is_flag=True, help="Go on, and look again and again.")
@interval_option
@click.option(
    "--max",
    "most",
    type=click.IntRange(0),
    metavar="RECORDS",
    help="Exit with 1 if an agent has more records before it.",
)
@json_option
def lag(session: Session, watch: bool, interval_s: float, most: int | None, as_json: bool) -> int:
    """Show how many records each agent has before it, and how old the oldest is.

    By partition, then over all of them. Committed positions are what counts, whether workers run or not. The age is by
    the record's own timestamp.
    """
    if watch and most is not None:
        raise click.UsageError("--watch and --max exclude one another.")
    return run(_lag(session.app(), watch=watch, interval_s=interval_s, most=most, as_json=as_json))


async def _lag(app: App, *, watch: bool, interval_s: float, most: int | None, as_json: bool) -> int:
    async with open_log(app) as transport:
        with Screen(as_json=as_json, again=watch) as screen:
            while True:
                rows, interrupted = await lag_rows(app, transport)
                totals = _totals(rows)
                data = {"partitions": rows, "agents": totals}
                screen.show(data, [_shown(rows, totals)])
                if not watch:
                    break
                await asyncio.sleep(interval_s)
        if interrupted:
            note(f"millstream {interrupted} was interrupted: run it again, to its end")
        if not (await transport.describe_group(app.id)).members:
            note("no worker is running: lag is by the positions that were committed last")
    return FAILED if most is not None and any(row["lag"] > most for row in totals) else 0


async def lag_rows(app: App, transport: Transport) -> tuple[list[dict[str, Any]], str]:
    """One row for each agent and partition, and the command that was interrupted, if one was."""
    infos = await transport.topics()
    read = sorted({topic for agent in app.topology.agents.values() for topic in agent.sources})
    tps = [TopicPartition(t, n) for t in read if t in infos for n in range(infos[t].partitions)]
    found = await agent_positions(app, transport, tps)
    waiting = {(tp, at) for (_, tp), at in found.at.items() if at < found.ends[tp]}
    moments = await first_timestamps(transport, waiting, found.ends)
    now = app.clock.now()
    rows = []
    for name in app.topology.agents:
        for tp in tps:
            if (name, tp) not in found.at:
                continue
            at, end = found.at[name, tp], found.ends[tp]
            oldest = moments.get(
                (tp, at)
            )  # none: what is left are gaps, and a broker's own markers
            rows.append(
                {
                    "agent": name,
                    "topic": tp.topic,
                    "partition": tp.partition,
                    "committed": at if tp in found.committed else None,
                    "end": end,
                    "lag": 0 if oldest is None else end - at,
                    "oldest": oldest,
                    "oldest_age_ms": None if oldest is None else max(0, now - oldest),
                }
            )
    unfinished = {decode_metadata(one.metadata).u for one in found.committed.values()} - {""}
    return rows, min(unfinished, default="")


async def first_timestamps(
    transport: Transport, places: Iterable[At], ends: Mapping[TopicPartition, int]
) -> dict[At, int]:
    """Timestamps (ms) of the first records at or after these places; absent where none is left."""
    left = set(places)
    found: dict[At, int] = {}
    reader = transport.reader()
    try:
        while left:
            some = dict(left)  # one place of each partition at a time
            left -= set(some.items())
            positions = dict(some)
            while positions:
                for fetched in await reader.fetch(
                    positions, max_bytes=FETCH_BYTES_MAX, max_wait_s=1.0
                ):
                    tp = fetched.tp
                    records = iterate_records(fetched.data, where=str(tp), position=positions[tp])
                    first = next(records, None)
                    if first is not None:
                        found[tp, some[tp]] = int(first.timestamp)
                    if first is not None or fetched.next_offset >= ends[tp]:
                        del positions[tp]
                    else:
                        positions[tp] = fetched.next_offset
    finally:
        await reader.close()
    return found


def _totals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    totals: dict[str, dict[str, Any]] = {}
    for row in rows:
        total = totals.setdefault(
            row["agent"],
            {"agent": row["agent"], "partitions": 0, "lag": 0, "oldest_age_ms": None},
        )
        total["partitions"] += 1
        total["lag"] += row["lag"]
        if row["oldest_age_ms"] is not None:
            total["oldest_age_ms"] = max(total["oldest_age_ms"] or 0, row["oldest_age_ms"])
    return list(totals.values())


def _shown(rows: list[dict[str, Any]], totals: list[dict[str, Any]]) -> Part:
    listed = [
        (
            row["agent"],
            f"{row['topic']}/{row['partition']}",
            row["committed"],
            row["end"],
            row["lag"],
            shown_age(row["oldest_age_ms"]),
        )
        for row in rows
    ]
    listed += [
        (row["agent"], "all", None, None, row["lag"], shown_age(row["oldest_age_ms"]))
        for row in totals
    ]
    return ("agent", "partition", "committed", "end", "lag", "oldest"), listed


def shown_age(milliseconds: int | None) -> str | None:
    """A length of time in one unit, for people: ``350 ms``, ``12 s``, ``3 min``, ``5 h``, ``2 d``."""
    if milliseconds is None:
        return None
    for size, unit in _UNITS:
        if milliseconds >= size:
            return f"{milliseconds // size} {unit}"
    return f"{milliseconds} ms"
