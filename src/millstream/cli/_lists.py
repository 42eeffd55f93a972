"""``millstream topics``, ``tables`` and ``agents``: what the app declares, and how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from millstream.cli._failure import note
from millstream.cli._log import (
    AgentPositions,
    agent_positions,
    log_exists,
    matched_topology,
    open_log,
)
from millstream.cli._output import json_option, print_json, print_rows
from millstream.cli._run import run
from millstream.cli._session import Session, command
from millstream.clock import format_duration
from millstream.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.app import App
    from millstream.transports.base import TopicInfo

__all__ = ["agents", "tables", "topics"]


class _Seen:
    """What the log says; empty where there is none."""

    def __init__(self) -> None:
        self.infos: Mapping[str, TopicInfo] = {}
        self.starts: Mapping[TopicPartition, int] = {}
        self.ends: Mapping[TopicPartition, int] = {}
        self.positions: AgentPositions | None = None
        self.workers = 0

    def records(self, topic: str) -> int | None:
        """Offsets between the start and the end of a topic; None where it does not exist."""
        if topic not in self.infos:
            return None
        return sum(end - self.starts[tp] for tp, end in self.ends.items() if tp.topic == topic)


async def _look(app: App) -> _Seen:
    seen = _Seen()
    if not log_exists(app):
        note(f"the log {app.settings.broker} does not exist yet: this is what the app declares")
        return seen
    async with open_log(app) as transport:
        seen.infos = await transport.topics()
        tps = [
            TopicPartition(info.name, number)
            for info in seen.infos.values()
            for number in range(info.partitions)
        ]
        seen.starts = await transport.start_offsets(tps) if tps else {}
        seen.ends = await transport.end_offsets(tps) if tps else {}
        read = set(matched_topology(app, seen.infos).sources)
        seen.positions = await agent_positions(app, transport, [t for t in tps if t.topic in read])
        seen.workers = len((await transport.describe_group(app.id)).members)
    return seen


@command("topics")
@json_option
def topics(session: Session, as_json: bool) -> None:
    """List topics: those of the app, and whatever else the log holds."""
    app = session.app()
    seen = run(_look(app))
    changelogs = {table.changelog for table in app.tables.values()}
    rows: list[dict[str, Any]] = []
    for name in [*app.topics, *sorted(seen.infos.keys() - app.topics.keys())]:
        declared, info = app.topics.get(name), seen.infos.get(name)
        if declared is None and name in matched_topology(app, seen.infos).sources:
            declared = app.topics.find(name)  # one of a pattern
        if declared is not None:
            kind = "internal" if declared.internal else "declared"
        else:
            kind = "changelog" if name in changelogs else "not declared"
        retention = info.retention_ms if info else declared.retention_ms if declared else None
        rows.append(
            {
                "name": name,
                "kind": kind,
                "exists": info is not None,
                "partitions": info.partitions
                if info
                else declared.partitions
                if declared
                else None,
                "records": seen.records(name),
                "compacted": info.compacted if info else bool(declared and declared.compacted),
                "retention_ms": retention,
                "value": declared.value_codec.type_name if declared else None,
            }
        )
    if as_json:
        print_json(rows)
        return
    print_rows(
        ("topic", "kind", "partitions", "records", "kept", "value"),
        [
            (
                row["name"],
                row["kind"] if row["exists"] else f"{row['kind']}, not created yet",
                row["partitions"],
                row["records"],
                _kept(row),
                row["value"],
            )
            for row in rows
        ],
    )


def _kept(row: Mapping[str, Any]) -> str:
    retention = row["retention_ms"]
    parts = ["last of each key"] if row["compacted"] else []
    parts += [format_duration(retention)] if retention is not None else []
    return ", ".join(parts) or "for ever"


@command("tables")
@json_option
def tables(session: Session, as_json: bool) -> None:
    """List the app's tables."""
    app = session.app()
    seen = run(_look(app))
    rows: list[dict[str, Any]] = []
    for table in app.tables.values():
        origin = table.changelog or (table.topic.name if table.topic is not None else "")
        info = seen.infos.get(origin)
        rows.append(
            {
                "name": table.name,
                "key": table.layout.type_name,
                "value": table.codec.type_name,
                "window": None if table.windows is None else str(table.windows),
                "shards": 1 if table.everywhere else info.partitions if info else table.partitions,
                "origin": origin,
                "source": table.topic.name if table.topic is not None else None,
                "records": seen.records(origin),
                "help": table.table.help,
            }
        )
    if as_json:
        print_json(rows)
        return
    print_rows(
        ("table", "key", "value", "windows", "shards", "read from", "records"),
        [
            tuple(
                row[name]
                for name in ("name", "key", "value", "window", "shards", "source", "records")
            )
            for row in rows
        ],
    )


@command("agents")
@json_option
def agents(session: Session, as_json: bool) -> None:
    """List the app's agents, with the records that each has before it."""
    app = session.app()
    seen = run(_look(app))
    rows: list[dict[str, Any]] = []
    for node in matched_topology(app, seen.infos).agents.values():
        declared = app.agents.get(node.name)
        found = seen.positions
        rows.append(
            {
                "name": node.name,
                "sources": node.sources,
                "sinks": node.sinks,
                "concurrency": node.concurrency,
                "internal": node.internal,
                "lag": 0 if found is None else found.lag(node.name),
                "positions": {}
                if found is None
                else {str(tp): at for (name, tp), at in found.at.items() if name == node.name},
                "help": "" if declared is None else declared.help,
            }
        )
    if as_json:
        print_json(rows)
        return
    print_rows(
        ("agent", "reads", "sends to", "at once", "lag", ""),
        [
            (
                row["name"],
                ", ".join(row["sources"]) or "nothing yet",
                ", ".join(row["sinks"]),
                row["concurrency"],
                row["lag"],
                row["help"].partition("\n")[0],
            )
            for row in rows
        ],
    )
    if not seen.workers:
        note("no worker is running: lag is by the positions that were committed last")
