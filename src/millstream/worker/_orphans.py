"""State that a program has left behind: what tables and streams kept that it does not declare any more.

A table that was renamed by accident would begin empty, and nobody would know. So what was kept under a name that is
gone is an error before the first event, until somebody says what is meant. Notes are none of that: what a timer that is
gone has left is of no use to anybody, and does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, NamedTuple

from millstream.errors import TopologyError
from millstream.records import TopicPartition
from millstream.tables._part import FORM_MARK, SCHEMA_KEY
from millstream.transports.batch import iterate_records
from millstream.worker._notes import is_notes_topic, notes_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

    from millstream.topology import Topology
    from millstream.transports.base import TopicInfo, Transport

__all__ = ["begin_alike", "find_orphans", "refuse_orphans"]

_CHANGELOG, _REPARTITION = "-changelog", "-repartition"

FETCH_BYTES_MAX = 4 << 20
FETCH_WAIT_S = 1.0
READ_RECORDS_MAX = 1_000_000
"""Of a changelog that is read to see whether anything is in it. A longer one is taken to hold something."""

_HELD = {
    "suppress": (
        "changes that are held back",
        "ms.Suppress(...) held back of",
        "emit= or .suppress()",
    ),
    "emit": ("changes that are held back", "emit_every= held back of", "emit_every="),
    "unmatched": ("rows that wait", "waits for a partner in join", "how="),
    "waiting": ("rows that wait", "waits for the table of join", "grace="),
}
"""What operators hold back beside their tables, by the end of its name: the form in which it is kept, what it is, and the
argument by which it is held back."""
_BESIDE = re.compile(
    r"(?P<owner>.+)-(?P<what>suppress|emit|unmatched|waiting|left|right|released|time-\d+)"
)
"""Names that operators give to what they keep beside their tables."""
_JOIN_FORM = "rows of a join"


def begin_alike(app: str, groups: Iterable[str], topics: Iterable[str]) -> tuple[str, ...]:
    """How the topics of other apps begin whose ids begin like this one's.

    They are known by their groups; a broker forgets a group that was not there for a while, and then by the notes of
    their shards, if they have any.

    Args:
        groups: of the log; ``topics`` likewise.
    """
    prefix = f"{app}-"
    noted = [notes_of(topic) for topic in topics if topic.startswith(prefix)]
    found = {*groups, *(other for other in noted if other is not None)}
    return tuple(sorted(f"{other}-" for other in found if other.startswith(prefix)))


async def find_orphans(
    topology: Topology, transport: Transport, infos: Mapping[str, TopicInfo]
) -> dict[str, int]:
    """Changelogs and repartition topics of the app that no table or stream of it uses.

    Args:
        topology: resolved.

    Returns:
        How many records each of them holds, by name; empty ones are left out.
    """
    prefix = f"{topology.app}-"
    names = [
        name
        for name in sorted(infos)
        if name.startswith(prefix)
        and name.endswith((_CHANGELOG, _REPARTITION))
        and name not in topology.topics
        and not is_notes_topic(topology.app, name)
    ]
    if not names:
        return {}  # nor is the log asked for groups, for which every broker would have to answer
    others = begin_alike(topology.app, await transport.groups(), infos)
    names = [name for name in names if not name.startswith(others)]
    tps = [TopicPartition(name, p) for name in names for p in range(infos[name].partitions)]
    starts, ends = await transport.start_offsets(tps), await transport.end_offsets(tps)
    records = dict.fromkeys(names, 0)
    for tp in tps:
        records[tp.topic] += ends[tp] - starts[tp]
    return {name: count for name, count in records.items() if count}


async def refuse_orphans(
    topology: Topology, transport: Transport, infos: Mapping[str, TopicInfo]
) -> None:
    """See that nothing was left behind.

    What is left and holds nothing any more is no reason to stop: a buffer whose rows have all come out, a topic
    between two stages that is processed to its end.

    Raises:
        TopologyError: something was; the message names it, and tells how to go on.
    """
    found = await find_orphans(topology, transport, infos)
    if not found or (await transport.describe_group(topology.app)).members:
        return  # of what runs beside it, a worker is told when it joins
    prefix = f"{topology.app}-"
    gone: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    moved: dict[str, list[str]] = {}
    held: list[_Left] = []
    for topic, count in found.items():
        tps = [TopicPartition(topic, p) for p in range(infos[topic].partitions)]
        stem = topic.removeprefix(prefix).removesuffix(_CHANGELOG).removesuffix(_REPARTITION)
        records = f"{count:,} record{'' if count == 1 else 's'} in {topic}"
        if topic.endswith(_REPARTITION):
            if await _is_processed(transport, topology.app, tps):
                continue
            gone.setdefault(f"records on their way for {stem!r}", []).append(records)
            names.setdefault(stem, stem)
            continue
        match = _BESIDE.fullmatch(stem)
        what = f"table {stem!r}"
        if match is not None:
            owner, end = match["owner"], match["what"]
            if end == "released" and (
                f"{owner}-left" in topology.tables or f"{prefix}{owner}-left{_CHANGELOG}" in found
            ):
                continue  # whatever it is without its join: in which order the rows of another table leave
            if end in ("left", "right"):
                form, _ = await _look(transport, tps, whole=False)
                if form.startswith(_JOIN_FORM):
                    if owner in topology.tables:
                        moved.setdefault(owner, []).append(records)
                        continue
                    what, stem = f"join {owner!r}", owner
            else:
                form, holds = await _look(transport, tps, whole=count <= READ_RECORDS_MAX)
                if not holds:
                    continue
                if end in _HELD and form.startswith(_HELD[end][0]):
                    held.append(_Left(owner, end, records))
                    continue
        elif f"{stem}-left" in topology.tables:
            form, _ = await _look(transport, tps, whole=False)
            if form.startswith(_JOIN_FORM):
                moved.setdefault(stem, []).append(records)
                continue
        gone.setdefault(what, []).append(records)
        names.setdefault(stem, stem)
    told = []
    if gone:
        listed = ", ".join(f"{what} ({', '.join(records)})" for what, records in gone.items())
        told.append(
            f"app {topology.app!r} has left state behind: the log holds {listed}, which the program does not"
            f" declare any more. If it has got another name, give it the old one back:"
            f" name={next(iter(names))!r}. If it is to go: millstream reset --orphans"
        )
    told += [
        f"app {topology.app!r} has rows of join {join!r} that it does not use ({', '.join(records)}): the join of a"
        f" stream with itself keeps them elsewhere since its how= has changed. Give the how= back as it was; or"
        f" have the join begin without these rows: millstream reset --orphans"
        for join, records in moved.items()
    ]
    # with the name that is gone, what was held back under it comes again
    told += [left.told(topology) for left in held if left.owner not in names]
    if told:
        raise TopologyError(". ".join(told))


class _Left(NamedTuple):
    """Rows that an operator held back, and that have not been sent."""

    owner: str
    what: str
    records: str

    def told(self, topology: Topology) -> str:
        _, kept, argument = _HELD[self.what]
        declared = {self.owner, f"{self.owner}-left"} & topology.tables.keys()
        renamed = "" if declared else f" (if it has got another name, name={self.owner!r})"
        return (
            f"app {topology.app!r} has not sent yet what {kept} {self.owner!r} ({self.records}), and the program"
            f" has no place for it any more. To have it sent, give back the {argument} as it was{renamed}, and let a"
            f" worker run until it has come out. To lose it: millstream reset --orphans, which leaves everything"
            f" else as it is"
        )


async def _is_processed(transport: Transport, app: str, tps: Sequence[TopicPartition]) -> bool:
    """Whether the app has nothing more to read in a topic between two stages."""
    committed = await transport.committed(app, tps, settled=False)
    starts, ends = await transport.start_offsets(tps), await transport.end_offsets(tps)
    positions = {
        tp: max(starts[tp], committed[tp].offset) if tp in committed else starts[tp] for tp in tps
    }
    async with contextlib.aclosing(_records(transport, positions, ends)) as records:
        async for _ in records:
            return False
    return True


async def _look(
    transport: Transport, tps: Sequence[TopicPartition], *, whole: bool
) -> tuple[str, bool]:
    """The form in which a changelog has its entries, and whether there are any.

    Args:
        whole: read all of it; else no further than to the form, and then there may be entries.
    """
    starts, ends = await transport.start_offsets(tps), await transport.end_offsets(tps)
    form = ""
    entries = set()
    async with contextlib.aclosing(_records(transport, starts, ends)) as records:
        async for tp, key, value in records:
            if key == SCHEMA_KEY and value is not None:
                form = value.decode().partition(FORM_MARK)[2]
                if not whole:
                    return form, True
            if key[:1] == b"\x00":
                continue  # the table's own, like its event time
            if value is None:
                entries.discard((tp, key))
            else:
                entries.add((tp, key))
    return form, bool(entries)


async def _records(
    transport: Transport,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
) -> AsyncGenerator[tuple[TopicPartition, bytes, bytes | None], None]:
    """Keys and values of what some partitions hold."""
    positions = {tp: start for tp, start in starts.items() if start < ends[tp]}
    reader = transport.reader()
    try:
        while positions:
            for fetched in await reader.fetch(
                positions, max_bytes=FETCH_BYTES_MAX, max_wait_s=FETCH_WAIT_S
            ):
                tp = fetched.tp
                for record in iterate_records(fetched.data, where=str(tp), position=positions[tp]):
                    yield tp, record.key or b"", record.value
                positions[tp] = fetched.next_offset
                if fetched.next_offset >= ends[tp]:
                    del positions[tp]
            await asyncio.sleep(0)
    finally:
        await reader.close()
