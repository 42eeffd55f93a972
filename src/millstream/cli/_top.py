"""``millstream top``: what the workers do at this moment."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from millstream.cli._ask import ask_text
from millstream.cli._failure import FAILED, note
from millstream.cli._groups import Member, members_of
from millstream.cli._live import Screen, interval_option
from millstream.cli._log import open_log
from millstream.cli._output import json_option
from millstream.cli._run import run
from millstream.cli._session import Session, command
from millstream.cli._top_numbers import Numbers, parse_metrics, rates, total

if TYPE_CHECKING:
    from millstream.app import App
    from millstream.cli._live import Part
    from millstream.transports.base import Transport

__all__ = ["top"]

ANSWER_S = 2.0
FIRST_S = 1.0
"""How soon there are rates to show, at most."""
NO_WORKER = "no worker is running"


@command("top")
@interval_option
@click.option("--once", is_flag=True, help="Show one answer and end.")
@json_option
def top(session: Session, interval_s: float, once: bool, as_json: bool) -> int:
    """Show what the workers do, as it changes: records a second, lag, commits, shards.

    The numbers are those of the workers' /metrics. Lag is in records; the times of commits are those of the last
    thousand. Ctrl-C ends it.
    """
    return run(_top(session.app(), interval_s=interval_s, once=once, as_json=as_json))


async def _top(app: App, *, interval_s: float, once: bool, as_json: bool) -> int:
    async with open_log(app) as transport:
        looking = _Looking(app, transport)
        with Screen(as_json=as_json, again=not once, whole=True) as screen:
            await looking.look()
            await asyncio.sleep(min(interval_s, FIRST_S))
            while True:
                data = await looking.look()
                screen.show(data, [_part(data)], title=_title(data, transport.url))
                if once:
                    break
                await asyncio.sleep(interval_s)
    if not data["workers"]:
        note(NO_WORKER)
        return FAILED
    return 0


class _Looking:
    """Asks the workers, and remembers what they said the last time."""

    def __init__(self, app: App, transport: Transport) -> None:
        self._app = app
        self._transport = transport
        self._before: dict[str, Numbers] = {}

    async def look(self) -> dict[str, Any]:
        """All workers, with rates since the last look."""
        described = await self._transport.describe_group(self._app.id)
        members = members_of(described)
        answers = await asyncio.gather(*(asyncio.to_thread(_ask, member) for member in members))
        rows, now = [], {}
        for member, answer in zip(members, answers, strict=True):
            row: dict[str, Any] = {
                "slot": "" if member.about is None else member.about.slot,
                "url": member.url,
                "member": member.id,
            }
            if isinstance(answer, Numbers):
                now[member.id] = answer
                row |= {"error": None, **rates(self._before.get(member.id), answer)}
            else:
                row |= {"error": answer, **rates(None, Numbers(at=0, shards=len(member.shards)))}
            rows.append(row)
        self._before = now
        told = [row for row in rows if row["error"] is None]
        facts = [{k: v for k, v in row.items() if k not in _NAMES} for row in told]
        return {
            "group": self._app.id,
            "generation": described.generation,
            "workers": rows,
            "total": total(facts),
        }


_NAMES = ("slot", "url", "member", "error")


def _ask(member: Member) -> Numbers | str:
    if not member.url:
        return "serves no HTTP"
    try:
        text = ask_text(member.url, "/metrics", timeout_s=ANSWER_S)
    except OSError as exc:
        return f"does not answer ({exc})"
    return parse_metrics(text, at=time.monotonic())


def _title(data: dict[str, Any], url: str) -> str:
    workers = len(data["workers"])
    counted = NO_WORKER if not workers else "1 worker" if workers == 1 else f"{workers} workers"
    return f"{data['group']}  {url}  generation {data['generation']}, {counted}"


def _part(data: dict[str, Any]) -> Part:
    columns = (
        *("worker", "address", "shards", "records/s", "changes/s", "sent/s", "commits/s"),
        *("p50 ms", "p99 ms", "lag", "state"),
    )
    rows = [_cells(row, row["slot"], row["error"] or row["url"]) for row in data["workers"]]
    if len(data["workers"]) > 1 and data["total"]:
        rows.append(_cells(data["total"], "all", ""))
    return columns, rows


def _cells(row: dict[str, Any], name: str, where: str) -> tuple[Any, ...]:
    ready, shards = row["shards_ready"], row["shards"]
    return (
        name,
        where,
        f"{shards}" if ready == shards else f"{ready} of {shards} ready",
        *(row[rate] for rate in ("records_s", "changes_s", "sent_s", "commits_s")),
        *(row["commit_p50_ms"], row["commit_p99_ms"], row["lag"]),
        f"{row['state_bytes'] / (1 << 20):.1f} MiB",
    )
