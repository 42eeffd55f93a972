"""``millstream reset``: begin anew, or from somewhere else.

The order of what is done makes an interrupted reset harmless. First all positions are set, with a mark that
keeps workers away; the log takes them only while no worker is there. Then topics and local state are deleted.
Last the mark goes. Whatever interrupts this leaves the mark, and the same command does all of it again.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from millstream.app._slot import state_folder
from millstream.cli._confirm import confirm, yes_option
from millstream.cli._groups import refuse_running
from millstream.cli._log import open_log
from millstream.cli._output import json_option, print_json
from millstream.cli._reset_plan import ResetPlan, plan_reset
from millstream.cli._reset_state import hold_slots, remove_store, slots_of, stores_of
from millstream.cli._reset_target import Target, TargetType
from millstream.cli._run import complete_names, run
from millstream.cli._session import Session, command
from millstream.errors import FencedError, TransportError
from millstream.records import TopicPartition
from millstream.transports.base import OffsetAndMetadata
from millstream.worker import find_orphans
from millstream.worker._metadata import unfinished

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from millstream.app import App
    from millstream.transports.base import TopicInfo, Transport

__all__ = ["reset"]

DELETED_S = 30.0
"""How long a broker may take until a topic that was deleted is gone."""


@command("reset")
@click.argument(
    "topics",
    nargs=-1,
    metavar="[TOPIC]...",
    shell_complete=complete_names(lambda app: app.topology.sources),
)
@click.option(
    "--to",
    "target",
    type=TargetType(),
    default="earliest",
    show_default=True,
    help="Where agents begin to read; an offset is that of each partition.",
)
@click.option("--keep-tables", is_flag=True, help="Change positions only.")
@click.option(
    "--orphans",
    is_flag=True,
    help="Delete what tables and streams kept that the program does not declare any more; no more.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@yes_option
@json_option
def reset(
    session: Session,
    topics: tuple[str, ...],
    target: Target,
    keep_tables: bool,
    orphans: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Have the app read its topics again, with empty tables.

    Positions of the agents are set; changelogs, repartition topics and local state are deleted, and made anew by
    the next worker. Records of all other topics stay, also those that agents have sent: they will be sent again.
    Workers have to be stopped. What will be done is said before it is done.

    With TOPICs, only these are read again. With --keep-tables, tables stay as they are, and what is read again is
    counted again.

    With --orphans, nothing is read again: what was kept under names that are gone is deleted.
    """
    if orphans:
        if topics or keep_tables:
            raise click.UsageError("--orphans goes with no topics, and without --keep-tables.")
        run(_forget(session.app(), dry_run=dry_run, yes=yes, as_json=as_json))
        return
    if target.offset is not None and not topics:
        raise click.UsageError(
            "An offset goes with the topic that it is of: reset TOPIC --to 5123."
        )
    run(
        _reset(
            session.app(),
            topics,
            target,
            keep_tables=keep_tables,
            dry_run=dry_run,
            yes=yes,
            as_json=as_json,
        )
    )


async def _reset(
    app: App,
    named: Sequence[str],
    target: Target,
    *,
    keep_tables: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    async with open_log(app) as transport:
        if not dry_run:
            await refuse_running(transport, app.id, "reset it")
        infos = await transport.topics()
        plan = _plan(app, infos, named, keep_tables=keep_tables)
        found = await _Found.look(app, transport, infos, plan, target)
        if not as_json:
            for line in found.lines(plan, target, transport.url):
                click.echo(line)
        if not dry_run:
            confirm(f"Reset {app.id}?", yes=yes)
            with hold_slots(found.slots):
                await _carry_out(app, transport, plan, found)
    if as_json:
        print_json(found.data(plan, done=not dry_run))
    elif not dry_run:
        click.echo(f"{app.id} is reset: the next worker begins there")


async def _forget(app: App, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    async with open_log(app) as transport:
        if not dry_run:
            await refuse_running(transport, app.id, "delete state of it")
        infos = await transport.topics()
        counts = {name: info.partitions for name, info in infos.items()}
        topology = app.topology.resolved(counts, app.settings.partitions)
        found = await find_orphans(topology, transport, infos)
        if not as_json:
            click.echo(f"in {transport.url}:")
            for topic, count in found.items():
                click.echo(f"  {topic} is deleted, with {_records(count)}")
            if not found:
                click.echo("  nothing is left of tables or streams that are gone")
        if found and not dry_run:
            confirm(f"Delete what {app.id} does not use any more?", yes=yes)
            await _delete(transport, list(found))
    if as_json:
        print_json({"deleted": found, "done": not dry_run})


def _plan(
    app: App, infos: Mapping[str, TopicInfo], named: Sequence[str], *, keep_tables: bool
) -> ResetPlan:
    # topics that may be deleted do not decide over partition counts: that is what some are reset for
    made = {table.changelog for table in app.tables.values()}
    made |= {name for name, topic in app.topics.items() if topic.internal}
    counts = {name: info.partitions for name, info in infos.items() if name not in made}
    topology = app.topology.resolved(counts, app.settings.partitions)
    return plan_reset(topology, existing=set(infos), named=named, keep_tables=keep_tables)


class _Found(NamedTuple):
    """What a plan means for this log and this machine."""

    positions: Mapping[TopicPartition, tuple[int, int]]
    """Where each partition is, and where it goes."""
    records: Mapping[str, int]
    """Of topics that are deleted, by name."""
    slots: list[Path]
    stores: list[Path]

    @classmethod
    async def look(
        cls,
        app: App,
        transport: Transport,
        infos: Mapping[str, TopicInfo],
        plan: ResetPlan,
        target: Target,
    ) -> _Found:
        def tps(names: Sequence[str]) -> list[TopicPartition]:
            return [TopicPartition(n, p) for n in names for p in range(infos[n].partitions)]

        read, passed, deleted = tps(plan.read), tps(plan.passed), tps(plan.deleted)
        every = [*read, *passed, *deleted]
        starts = await transport.start_offsets(every) if every else {}
        ends = await transport.end_offsets(every) if every else {}
        committed = await transport.committed(app.id, [*read, *passed]) if every else {}
        goals = await target.offsets(transport, read, starts, ends)
        goals |= {tp: ends[tp] for tp in passed}
        now = {tp: committed[tp].offset if tp in committed else starts[tp] for tp in goals}
        records: dict[str, int] = dict.fromkeys(plan.deleted, 0)
        for tp in deleted:
            records[tp.topic] += ends[tp] - starts[tp]
        slots = [] if not plan.tables else slots_of(state_folder(app.settings) / app.id)
        stores = [store for slot in slots for store in stores_of(slot, plan.counts)]
        return cls({tp: (now[tp], goals[tp]) for tp in goals}, records, slots, stores)

    def lines(self, plan: ResetPlan, target: Target, where: str) -> Iterator[str]:
        """What will be done, for people."""
        yield f"in {where}:"
        for topic in plan.read:
            moves = [pair for tp, pair in self.positions.items() if tp.topic == topic]
            back = sum(max(0, now - to) for now, to in moves)
            onward = sum(max(0, to - now) for now, to in moves)
            parts = [f"  {topic}: begins at {target}"]
            parts += [f"reads {_records(back)} again"] if back else []
            parts += [f"passes over {_records(onward)}"] if onward else []
            yield ", ".join(parts)
        for topic in plan.passed:
            yield f"  {topic}: begins at its end, as agents make its records again"
        for table in plan.tables:
            yield f"  table {table} begins empty"
        for topic, count in self.records.items():
            yield f"  {topic} is deleted, with {_records(count)}"
        for slot in self.slots:
            count = sum(store.parent == slot for store in self.stores)
            if count:
                shards = "1 shard" if count == 1 else f"{count} shards"
                yield f"  state in {slot} is deleted, of {shards}"
        if plan.tables:
            yield "  state on other machines is found to be old, and rebuilt, when a worker starts there"

    def data(self, plan: ResetPlan, *, done: bool) -> dict[str, Any]:
        """The same for programs."""
        return {
            "positions": {
                str(tp): {"before": now, "after": to} for tp, (now, to) in self.positions.items()
            },
            "tables": plan.tables,
            "deleted": self.records,
            "state": [str(store) for store in self.stores],
            "done": done,
        }


def _records(count: int) -> str:
    return "1 record" if count == 1 else f"{count:,} records"


async def _carry_out(app: App, transport: Transport, plan: ResetPlan, found: _Found) -> None:
    mark = unfinished("reset")
    goals = {tp: to for tp, (_, to) in found.positions.items()}
    infos = await transport.topics()
    read = set(app.topology.sources)
    marked = {tp: OffsetAndMetadata(to, mark) for tp, to in goals.items()}
    if plan.tables or plan.deleted:
        # positions in a topic that is deleted go with it, at once or some time later
        marked |= {
            TopicPartition(name, number): OffsetAndMetadata(0, mark)
            for name in plan.deleted
            if name in read
            for number in range(infos[name].partitions)
        }
        await _set(app, transport, marked)
        await _delete(transport, plan.deleted)
        for store in found.stores:
            await asyncio.to_thread(remove_store, store)
    await _set(app, transport, {tp: OffsetAndMetadata(to) for tp, to in goals.items()})


async def _set(
    app: App, transport: Transport, offsets: Mapping[TopicPartition, OffsetAndMetadata]
) -> None:
    if not offsets:
        return
    try:
        await transport.set_committed(app.id, offsets)
    except FencedError as exc:
        await refuse_running(transport, app.id, "reset it again")
        raise TransportError(
            f"a worker of app {app.id!r} was there for a moment: reset it again"
        ) from exc


async def _delete(transport: Transport, names: Sequence[str]) -> None:
    if not names:
        return
    await transport.delete_topics(names)
    deadline = time.monotonic() + DELETED_S
    while left := set(names) & set(await transport.topics()):
        if time.monotonic() > deadline:
            raise TransportError(
                f"{', '.join(sorted(left))} was to be deleted, and is still there after"
                f" {DELETED_S:g} s. Look after the log, and run the same reset again"
            )
        await asyncio.sleep(0.1)
