"""What a doctor looks at in a log: topics, positions, dead letters, workers."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from millstream.cli._dlq_letters import dead_letter_topics, read_letters, read_marks
from millstream.cli._doctor_findings import Finding, error, fine, warning
from millstream.cli._groups import Member, health, members_of
from millstream.cli._lag import shown_age
from millstream.cli._log import agent_positions, open_log, resolved_topology
from millstream.errors import LogUnavailableError, MillstreamError
from millstream.records import TopicPartition
from millstream.tables._position import plan_recovery
from millstream.worker._metadata import decode_metadata
from millstream.worker._notes import is_notes_topic
from millstream.worker._orphans import begin_alike

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping
    from pathlib import Path

    from millstream.app import App
    from millstream.tables._position import StorePosition
    from millstream.topology import Topology
    from millstream.transports.base import TopicInfo, Transport

__all__ = ["NO_WORKER", "log_findings"]

NO_WORKER = "none is running"
FUTURE_MS = 5 * 60_000
"""Timestamps that are so far ahead of the clock are a mistake of a clock, or of an extractor."""
OPEN_S = 20.0
"""How long a broker may take to answer."""
UNREACHED = "check that the broker runs, its address, and firewalls in between"


async def log_findings(
    app: App, stores: list[tuple[Path, str, StorePosition]]
) -> AsyncIterator[Finding]:
    """Everything that the log tells.

    Args:
        stores: how far the local state is, by store and table.
    """
    began = time.monotonic()
    try:
        async with asyncio.timeout(OPEN_S), open_log(app) as transport:
            infos = await transport.topics()
            took = shown_age(round((time.monotonic() - began) * 1_000))
            yield fine("log", f"{transport.url} answers, in {took}; it has {len(infos)} topics")
            for finding in _topic_findings(app, infos, await transport.groups()):
                yield finding
            async for finding in _position_findings(app, transport, infos):
                yield finding
            async for finding in _state_findings(app, transport, infos, stores):
                yield finding
            async for finding in _letter_findings(app, transport, infos):
                yield finding
            async for finding in _worker_findings(app, transport, infos):
                yield finding
    except TimeoutError:
        yield error("log", f"the log gave no answer within {OPEN_S:g} s", UNREACHED)
    except LogUnavailableError as exc:
        kafka = app.settings.broker.startswith("kafka:")
        yield error("log", str(exc), UNREACHED if kafka else "see the message")
    except MillstreamError as exc:
        yield error("log", str(exc), "see the message")


def _topic_findings(
    app: App, infos: Mapping[str, TopicInfo], groups: list[str]
) -> Iterator[Finding]:
    try:
        topology = resolved_topology(app, infos)
        topology.shard_counts()
    except MillstreamError as exc:
        yield error("topics", str(exc), "see the message")
        return
    missing = sorted(topology.topics.keys() - infos.keys())
    if missing:
        yield fine("topics", f"the next worker will make {', '.join(missing)}")
    for table in topology.tables.values():
        changelog = infos.get(table.changelog or "")
        if changelog is not None and not changelog.compacted:
            yield error(
                "topics",
                f"{changelog.name}, the changelog of table {table.name!r}, is not compacted: entries would"
                f" be lost",
                "set cleanup.policy=compact on it",
            )
    for topic in app.topics.values():
        info = infos.get(topic.name)
        if info is None or topic.internal:
            continue
        if topic.retention_ms is not None and info.retention_ms != topic.retention_ms:
            yield warning(
                "topics",
                f"{topic.name} is declared with another retention than it has",
                "change the topic's settings, or the declaration: topics that exist stay as they are",
            )
        if topic.compacted and not info.compacted:
            yield warning(
                "topics",
                f"{topic.name} is declared as compacted, and is not",
                "set cleanup.policy=compact on it, or change the declaration",
            )
    if app.settings.replication == 1 and app.settings.broker.startswith("kafka://"):
        yield warning(
            "topics",
            "replication=1: a broker that is lost takes its partitions along",
            "set replication=3 (MILLSTREAM_REPLICATION) before topics are made",
        )
    yield from _orphans(app, topology, infos, groups)


def _orphans(
    app: App, topology: Topology, infos: Mapping[str, TopicInfo], groups: list[str]
) -> Iterator[Finding]:
    """Changelogs under this app's name that no table of it goes with."""
    others = begin_alike(app.id, groups, infos)
    orphans = [
        name
        for name in sorted(infos)
        if name.startswith(f"{app.id}-")
        and name.endswith(("-changelog", "-repartition"))
        and name not in topology.topics
        and not is_notes_topic(app.id, name)
        and not name.startswith(others)
    ]
    if orphans:
        yield warning(
            "topics",
            f"no table of this app goes with {', '.join(orphans)}",
            "delete them if no other app of that name has them",
        )


async def _position_findings(
    app: App, transport: Transport, infos: Mapping[str, TopicInfo]
) -> AsyncIterator[Finding]:
    read = {topic for agent in app.topology.agents.values() for topic in agent.sources}
    tps = [
        TopicPartition(t, n) for t in sorted(read & set(infos)) for n in range(infos[t].partitions)
    ]
    if not tps:
        return
    found = await agent_positions(app, transport, tps)
    lag = sum(found.lag(name) for name in app.topology.agents)
    yield fine("positions", f"{lag:,} records are before the agents")
    for command in sorted(
        {decode_metadata(at.metadata).u for at in found.committed.values()} - {""}
    ):
        yield error(
            "positions",
            f"millstream {command} was interrupted, and no worker goes on from there",
            f"run the same millstream {command} again, to its end",
        )
    for tp, at in found.committed.items():
        if at.offset > found.ends[tp]:
            yield error(
                "positions",
                f"{tp} ends at {found.ends[tp]}, and the agents are at {at.offset}: it was made anew, or"
                f" has lost records",
                f"millstream reset {tp.topic}",
            )
        elif at.offset < found.starts[tp]:
            yield warning(
                "positions",
                f"{tp} begins at {found.starts[tp]}, and the agents are at {at.offset}: retention took"
                f" {found.starts[tp] - at.offset:,} offsets that they have not read",
                "nothing brings them back; raise the topic's retention, or the number of workers",
            )
    limit = app.clock.now() + FUTURE_MS
    ahead = await transport.offsets_at(tps, limit)
    for tp in tps:
        if ahead[tp] < found.ends[tp]:
            yield warning(
                "clock",
                f"{tp}@{ahead[tp]} has a time more than {shown_age(FUTURE_MS)} ahead of this machine's clock:"
                f" windows close early, and later records are late",
                "check the clocks of this machine and of whoever sends, and timestamp= of the topic",
            )


async def _state_findings(
    app: App,
    transport: Transport,
    infos: Mapping[str, TopicInfo],
    stores: list[tuple[Path, str, StorePosition]],
) -> AsyncIterator[Finding]:
    places = []
    for store, table, position in stores:
        declared = app.tables.get(table)
        number = int(store.name.partition("-")[2])
        topic = None if declared is None else declared.changelog
        if topic is not None and topic in infos and number < infos[topic].partitions:
            places.append((store, position, TopicPartition(topic, number)))
    tps = sorted({tp for _, _, tp in places})
    if not tps:
        return
    starts, ends = await transport.start_offsets(tps), await transport.end_offsets(tps)
    old: dict[tuple[Path, str], int] = {}
    for store, position, tp in places:
        plan = plan_recovery(
            position,
            topic_id=infos[tp.topic].topic_id,
            app=app.id,
            log_start=starts[tp],
            log_end=ends[tp],
            now=app.clock.now(),
        )
        if plan.rebuild:
            where = store.parent, plan.reason
            old[where] = old.get(where, 0) + plan.end - plan.start
    for (slot, reason), records in old.items():
        yield warning(
            "state",
            f"the state in {slot} does not go with the log ({_REASONS.get(reason, reason)}): a worker that takes it"
            f" replays {records:,} records first",
            f"nothing has to be done; to make room, delete {slot} while no worker runs",
        )


_REASONS = {
    "other log": "it is of another log or app, or of a topic that was made anew",
    "away too long": "it is older than deletions are kept",
    "log purged": "the log has forgotten what comes after it",
    "ahead of the log": "it is ahead of the log: was an old copy of the log put back?",
}


async def _letter_findings(
    app: App, transport: Transport, infos: Mapping[str, TopicInfo]
) -> AsyncIterator[Finding]:
    for topic in dead_letter_topics(app):
        if topic not in infos:
            continue
        marks = await read_marks(transport, topic)
        count = 0
        async for letter in read_letters(transport, topic, marks):
            count += letter.mark is None
        if count:
            letters = "1 dead letter waits" if count == 1 else f"{count:,} dead letters wait"
            yield warning("dead letters", f"{letters} in {topic}", "millstream dlq list")


async def _worker_findings(
    app: App, transport: Transport, infos: Mapping[str, TopicInfo]
) -> AsyncIterator[Finding]:
    described = await transport.describe_group(app.id)
    members = members_of(described)
    if not members:
        yield fine("workers", NO_WORKER)
        return
    try:
        ours = resolved_topology(app, infos).fingerprint()
    except MillstreamError:
        ours = None  # which is said elsewhere
    states = await asyncio.gather(
        *(asyncio.to_thread(health, member.url, described.generation) for member in members)
    )
    for member, state in zip(members, states, strict=True):
        yield _worker_finding(member, state, ours)


def _worker_finding(member: Member, state: str, ours: str | None) -> Finding:
    if member.about is None:
        return error(
            "workers",
            f"another program is in the group, as {member}",
            "give the app another id, or that program another group",
        )
    if ours is not None and member.about.topology != ours:
        return error(
            "workers",
            f"{member} runs another program: it has [{member.about.topology}], and this one has [{ours}]",
            "stop the old workers, or give one of the programs another id",
        )
    if state in ("ready", "serves no HTTP"):
        return fine("workers", f"{member}: {state}")
    return warning("workers", f"{member}: {state}", "look at what it has logged")
