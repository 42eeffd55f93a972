"""What a worker tells of itself and of its group: topics, agents and their lag, shards, numbers to graph."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from millstream.records import TopicPartition
from millstream.worker._assign import LAG_UNKNOWN
from millstream.worker._metadata import decode_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from millstream.topology import Topology
    from millstream.transports.base import Transport
    from millstream.worker._shard import Shard, ShardCut
    from millstream.worker._worker import Worker

__all__ = ["Metric", "Sample", "WorkerReport"]

COUNTERS = {
    "events_skipped": "Events that were skipped after an error.",
    "events_dead_lettered": "Events that went to a dead-letter topic after an error.",
}
"""What shards count under these names in `Shard.counters`."""


class Sample(NamedTuple):
    """One number; ``suffix`` goes to the metric's name."""

    value: float
    labels: Mapping[str, str] = {}
    suffix: str = ""


class Metric(NamedTuple):
    """A number, or one for each of its labels, as Prometheus understands it."""

    name: str
    kind: str
    help: str
    samples: Sequence[Sample]


class WorkerReport:
    """Facts about one worker and its group, for its pages, for programs and for Prometheus.

    Args:
        worker: None where this process only sends, asks and queries.
        topology: resolved against the log.
    """

    def __init__(
        self, worker: Worker | None, *, topology: Topology, transport: Transport, group: str
    ) -> None:
        self.topology = topology
        self._worker = worker
        self._transport = transport
        self._group = group
        self._began_s = time.monotonic()
        self._read: Counter[str] = Counter()
        self._changed: Counter[str] = Counter()
        self._sent = 0
        self._offsets: dict[TopicPartition, int] = {}
        self._commit_s = 0.0
        self._commits_seen = 0
        self._counted: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._seen: WeakKeyDictionary[Shard | Worker, Counter[str]] = WeakKeyDictionary()
        self._late_seen: dict[tuple[str, str], tuple[Any, int]] = {}
        if worker is not None:
            worker.committer.listeners.append(self._committed)

    def close(self) -> None:
        """Stop following commits."""
        if self._worker is not None:
            with contextlib.suppress(ValueError):  # closed before
                self._worker.committer.listeners.remove(self._committed)

    @property
    def log(self) -> str:
        """Where the log is, for people."""
        return self._transport.url

    # the group ------------------------------------------------------------------------------------

    async def topics(self) -> list[dict[str, Any]]:
        """The topics of the app: how many partitions, and how many records they hold."""
        existing = await self._transport.topics()
        named = {name: existing[name] for name in self.topology.topics if name in existing}
        tps = [TopicPartition(t.name, p) for t in named.values() for p in range(t.partitions)]
        starts = await self._transport.start_offsets(tps)
        ends = await self._transport.end_offsets(tps)
        return [
            {
                "name": name,
                "partitions": found.partitions,
                "records": sum(ends[tp] - starts[tp] for tp in tps if tp.topic == name),
                "end": {str(tp): ends[tp] for tp in tps if tp.topic == name},
                "compacted": found.compacted,
                "retention_ms": found.retention_ms,
                "internal": self.topology.topics[name].internal,
            }
            for name, found in sorted(named.items())
        ]

    async def agents(self) -> list[dict[str, Any]]:
        """The agents, with their lag: records of their sources that are not committed as processed.

        The numbers come from the log and are those of the whole group: events in the middle, shards that
        are being recovered and shards that nobody owns are included.
        """
        progress = await self._progress(None)
        return [
            {
                "name": agent.name,
                "sources": list(agent.sources),
                "sinks": list(agent.sinks),
                "concurrency": agent.concurrency,
                "internal": agent.internal,
                "processed": progress[agent.name][0],
                "lag": progress[agent.name][1],
            }
            for agent in self.topology.agents.values()
        ]

    async def _progress(
        self, shards: Iterable[tuple[int, int]] | None
    ) -> dict[str, tuple[int, int]]:
        """For each agent: how far it has come, and how many records it has before it."""
        topics = await self._transport.topics()
        only = None if shards is None else set(shards)
        by_agent = {
            agent.name: [
                TopicPartition(source, number)
                for source in agent.sources
                if source in topics
                for number in range(topics[source].partitions)
                if only is None or (topics[source].partitions, number) in only
            ]
            for agent in self.topology.agents.values()
        }
        tps = sorted({tp for listed in by_agent.values() for tp in listed})
        if not tps:
            return dict.fromkeys(by_agent, (0, 0))
        committed = await self._transport.committed(self._group, tps, settled=False)
        starts = await self._transport.start_offsets(tps)
        ends = await self._transport.end_offsets(tps)  # last, so that nothing committed is ahead
        metadata = {tp: decode_metadata(found.metadata) for tp, found in committed.items()}
        progress = {}
        for name, listed in by_agent.items():
            agent, processed, lag = self.topology.agents[name], 0, 0
            for tp in listed:
                at = starts[tp]
                if tp in committed:
                    kept = agent.position_name(tp.topic)
                    at = max(at, metadata[tp].position_of(kept, committed[tp].offset))
                processed += at
                lag += max(0, ends[tp] - at)
            progress[name] = (processed, lag)
        return progress

    # this worker ----------------------------------------------------------------------------------

    def unready(self) -> str | None:
        """Why the worker is not ready to answer, as a sentence; None when it is."""
        worker = self._worker
        if worker is None or not worker.plan.counts:
            return None
        if worker.assignment is None:
            return "The worker has not been given any shards yet."
        recovering = [shard.name for shard in worker.shards.values() if not shard.ready.is_set()]
        if recovering:
            done, total = (
                worker.options.progress.records_done,
                worker.options.progress.records_total,
            )
            return (
                f"{len(recovering)} of {len(worker.shards)} shards are being recovered"
                f" ({done:,} of {total:,} records)."
            )
        cold = sum(1 for c in worker.copies.by_shard.values() if c.warming and not c.warm)
        if cold:
            return f"{cold} shards are being warmed up, and move here then."
        if worker.membership is not None and not worker.membership.current():
            return "The group has not confirmed the worker within the session time-out."
        return None if worker.ready.is_set() else "The worker is getting its shards ready."

    def generation(self) -> int:
        """The group's generation as the worker knows it; 0 before its first."""
        worker = self._worker
        if worker is None or worker.assignment is None:
            return 0
        return worker.assignment.generation

    def worker(self) -> dict[str, Any]:
        """This worker, as the others may show it."""
        worker = self._worker
        if worker is None:
            return {"url": "", "member": "", "ready": True, "shards": []}
        stats = list(worker.committer.stats)
        times = sorted(stat.total_s for stat in stats)
        return {
            "url": worker.url,
            "member": "" if worker.assignment is None else worker.assignment.member_id,
            "ready": self.unready() is None,
            "why": self.unready(),
            "generation": worker.committer.generation,
            "uptime_s": round(time.monotonic() - self._began_s, 1),
            "shards": [
                {"count": count, "number": number, "ready": shard.ready.is_set()}
                for (count, number), shard in sorted(worker.shards.items())
            ],
            "copies": [
                {
                    "count": count,
                    "number": number,
                    "warming": copy.warming,
                    "lag": None if copy.lag == LAG_UNKNOWN else copy.lag,
                    "age_s": round(copy.age_s(), 1) if math.isfinite(copy.age_s()) else None,
                }
                for (count, number), copy in sorted(worker.copies.by_shard.items())
            ],
            "commits": worker.committer.epochs,
            "commit_ms": {
                "p50": _milliseconds(times, 0.5),
                "p99": _milliseconds(times, 0.99),
            },
            "recovered": worker.options.progress.records_done,
        }

    async def metrics(self) -> list[Metric]:
        """The numbers of this worker alone."""
        worker = self._worker
        if worker is None:
            return []
        self._tally()
        shards, copies = worker.shards, list(worker.copies.by_shard.values())
        times = sorted(stat.total_s for stat in worker.committer.stats)
        progress = await self._progress(shards)
        return [
            _gauge("uptime_seconds", "Time since the start.", time.monotonic() - self._began_s),
            _gauge("ready", "1 while the worker is ready.", float(self.unready() is None)),
            Metric(
                "millstream_shards",
                "gauge",
                "Shards that this worker owns.",
                [
                    Sample(sum(s.ready.is_set() for s in shards.values()), {"state": "ready"}),
                    Sample(
                        sum(not s.ready.is_set() for s in shards.values()), {"state": "recovering"}
                    ),
                ],
            ),
            Metric(
                "millstream_records_read_total",
                "counter",
                "Records that were processed and committed, by topic.",
                [Sample(n, {"topic": topic}) for topic, n in sorted(self._read.items())],
            ),
            _counter("records_sent_total", "Records that agents sent, committed.", self._sent),
            Metric(
                "millstream_table_changes_total",
                "counter",
                "Entries of tables that were changed and committed.",
                [Sample(n, {"table": table}) for table, n in sorted(self._changed.items())],
            ),
            *(
                _counter(f"{name}_total", text, self._counted[name])
                for name, text in COUNTERS.items()
            ),
            Metric(
                "millstream_late_records_total",
                "counter",
                "Records that came too late for a window, by table.",
                [Sample(n, {"table": table}) for table, n in sorted(self._late.items())],
            ),
            Metric(
                "millstream_lag_records",
                "gauge",
                "Records before each agent that it has not processed, in this worker's shards.",
                [Sample(lag, {"agent": name}) for name, (_, lag) in sorted(progress.items())],
            ),
            _counter("commits_total", "Commits.", worker.committer.epochs),
            Metric(
                "millstream_commit_seconds",
                "summary",
                "How long commits take, the last thousand for the quantiles.",
                [
                    *(
                        Sample(_quantile(times, q), {"quantile": str(q)})
                        for q in (0.5, 0.9, 0.99)
                        if times
                    ),
                    Sample(self._commit_s, {}, "_sum"),
                    Sample(worker.committer.epochs, {}, "_count"),
                ],
            ),
            _counter(
                "recovered_records_total",
                "Records of changelogs that were replayed.",
                worker.options.progress.records_done,
            ),
            Metric(
                "millstream_copies",
                "gauge",
                "Copies of other workers' shards that this worker keeps.",
                [
                    Sample(sum(c.warming is warming for c in copies), {"role": role})
                    for role, warming in (("standby", False), ("warming", True))
                ],
            ),
            Metric(
                "millstream_copy_lag_records",
                "gauge",
                "How far behind the copy of a shard is, in records of its changelogs.",
                [
                    Sample(copy.lag, {"shard": copy.name})
                    for copy in copies
                    if copy.lag != LAG_UNKNOWN
                ],
            ),
            _gauge(
                "state_bytes",
                "Size of the local state.",
                sum(shard.store.disk_bytes() for shard in shards.values()),
            ),
        ]

    def _committed(self, cut: ShardCut) -> None:
        for tp, (offset, _) in cut.offsets.items():
            before = self._offsets.get(tp, _begin(cut.shard, tp))
            self._read[tp.topic] += max(0, offset - before)
            self._offsets[tp] = offset
        self._sent += sum(map(len, chain.from_iterable(s.outputs.values() for s in cut.shares)))
        for table, slices in cut.changes.items():
            self._changed[table] += sum(map(len, slices))
        self._note_commits()

    def _note_commits(self) -> None:
        """Add up the times of commits before they are forgotten."""
        if self._worker is None:
            return
        committer = self._worker.committer
        new = min(committer.epochs - self._commits_seen, len(committer.stats))
        if new > 0:
            self._commit_s += sum(stat.total_s for stat in list(committer.stats)[-new:])
            self._commits_seen = committer.epochs

    def _tally(self) -> None:
        assert self._worker is not None
        self._note_commits()
        counting: list[Shard | Worker] = [self._worker, *self._worker.shards.values()]
        for of in counting:
            seen = self._seen.get(of, Counter())
            self._counted.update({n: c - seen[n] for n, c in of.counters.items()})
            self._seen[of] = Counter(of.counters)
        for shard in self._worker.shards.values():
            for table, part in shard.own_parts.items():
                late = getattr(part, "late_records", None)  # windowed parts count them
                if late is not None:
                    before = self._late_seen.get((shard.name, table), (None, 0))
                    self._late[table] += late - (before[1] if before[0] is part else 0)
                    self._late_seen[shard.name, table] = (part, late)


def _begin(shard: Shard, tp: TopicPartition) -> int:
    """Where the shard began to read a partition."""
    return min(
        (at for (_, read), at in shard.input_positions.begun.items() if read == tp), default=0
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return Metric(f"millstream_{name}", "gauge", text, [Sample(value)])


def _counter(name: str, text: str, value: float) -> Metric:
    return Metric(f"millstream_{name}", "counter", text, [Sample(value)])


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _milliseconds(ordered: Sequence[float], share: float) -> float | None:
    return round(_quantile(ordered, share) * 1_000, 2) if ordered else None
