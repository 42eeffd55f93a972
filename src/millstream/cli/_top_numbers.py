"""What a worker's ``/metrics`` tell at one moment, and what happened between two."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, NamedTuple

__all__ = ["Numbers", "parse_metrics", "rates", "total"]

_LINE = re.compile(r"(?P<name>[a-zA-Z_:]\w*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Row = dict[str, Any]


class Numbers(NamedTuple):
    """Counters and gauges of one worker; times are in seconds, sizes in bytes."""

    at: float
    """When they were read, on any steady clock."""
    read: float = 0
    changed: float = 0
    sent: float = 0
    commits: float = 0
    lag: float = 0
    state: float = 0
    shards: int = 0
    shards_ready: int = 0
    commit_p50: float | None = None
    commit_p99: float | None = None


def parse_metrics(text: str, *, at: float) -> Numbers:
    """Numbers from Prometheus' text format; what is not there counts as 0."""
    sums: defaultdict[str, float] = defaultdict(float)
    shards: dict[str, float] = {}
    quantiles: dict[str, float] = {}
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        name, value = found["name"].removeprefix("millstream_"), float(found["value"])
        labels = dict(_LABEL.findall(found["labels"] or ""))
        if name == "shards":
            shards[labels.get("state", "")] = value
        elif name == "commit_seconds" and "quantile" in labels:
            quantiles[labels["quantile"]] = value
        else:
            sums[name] += value
    return Numbers(
        at=at,
        read=sums["records_read_total"],
        changed=sums["table_changes_total"],
        sent=sums["records_sent_total"],
        commits=sums["commits_total"],
        lag=sums["lag_records"],
        state=sums["state_bytes"],
        shards=int(sum(shards.values())),
        shards_ready=int(shards.get("ready", 0)),
        commit_p50=quantiles.get("0.5"),
        commit_p99=quantiles.get("0.99"),
    )


def rates(before: Numbers | None, now: Numbers) -> Row:
    """A worker's row: rates per second since ``before``, where it is the same run of the worker; else None."""
    same = before is not None and before.at < now.at and now.commits >= before.commits

    def rate(name: str) -> float | None:
        if before is None or not same:
            return None
        grown = float(getattr(now, name) - getattr(before, name))
        return round(grown / (now.at - before.at), 1)

    return {
        "records_s": rate("read"),
        "changes_s": rate("changed"),
        "sent_s": rate("sent"),
        "commits_s": rate("commits"),
        "commit_p50_ms": _ms(now.commit_p50),
        "commit_p99_ms": _ms(now.commit_p99),
        "lag": int(now.lag),
        "shards": now.shards,
        "shards_ready": now.shards_ready,
        "state_bytes": int(now.state),
    }


def total(rows: list[Row]) -> Row:
    """All workers together; of times the longest."""
    found: Row = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows if isinstance(row[name], (int, float))]
        whole = max if name.endswith("_ms") else sum
        found[name] = whole(values) if values else None
    return found


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1_000, 1)
