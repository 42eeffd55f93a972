"""``millstream copy``: a log into another one, so that apps go on over there where they stood."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from millstream.app._settings import read_settings
from millstream.cli._confirm import confirm, yes_option
from millstream.cli._copy_progress import COPY_GROUP
from millstream.cli._copy_records import Copy
from millstream.cli._failure import note
from millstream.cli._groups_seat import take_seat
from millstream.cli._log import open_url
from millstream.cli._output import json_option, print_json
from millstream.cli._run import run
from millstream.cli._session import Session, command
from millstream.clock import SystemClock

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from millstream.clock import Clock
    from millstream.transports.base import Transport

__all__ = ["copy"]


@command("copy")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option(
    "--topic", "topics", multiple=True, metavar="TOPIC", help="Only this topic; may be repeated."
)
@click.option(
    "--replication",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Replicas of the topics that are made.",
)
@yes_option
@json_option
def copy(
    session: Session,
    source: str,
    target: str,
    topics: tuple[str, ...],
    replication: int,
    yes: bool,
    as_json: bool,
) -> None:
    """Copy a log: its topics with their records, and where the groups stand in them.

    SRC and DST are brokers as in the setting of that name, for example local://shop.db and kafka://host:9092. With
    the changelogs come the tables, so an app goes on over there where it stood. Workers have to be stopped. A copy
    that was interrupted goes on when it is started again; what it has copied is compared at the end.
    """
    run(_copy(source, target, topics, replication=replication, yes=yes, as_json=as_json))


async def _copy(
    source: str,
    target: str,
    topics: tuple[str, ...],
    *,
    replication: int,
    yes: bool,
    as_json: bool,
) -> None:
    clock = SystemClock()
    async with contextlib.AsyncExitStack() as stack:
        here = await stack.enter_async_context(_log(source, clock))
        there = await stack.enter_async_context(_log(target, clock, new=True))
        if here.url == there.url:
            raise click.UsageError(f"SRC and DST are the same log, {here.url}.")
        copying = Copy(here, there, topics=topics, replication=replication)
        await copying.look()
        if not as_json:
            _say(copying, here.url, there.url)
        confirm(f"Copy to {there.url}?", yes=yes)
        seat = await stack.enter_async_context(
            take_seat(there, COPY_GROUP, command="millstream copy")
        )
        await copying.run(seat)
        for line in copying.notes:
            note(line)
    records = sum(one.records for one in copying.progress.values())
    if as_json:
        print_json(
            {
                "source": here.url,
                "target": there.url,
                "topics": {
                    name: sum(o.records for tp, o in copying.progress.items() if tp.topic == name)
                    for name in copying.infos
                },
                "groups": list(copying.groups),
            }
        )
    else:
        click.echo(
            f"copied {records:,} records of {len(copying.infos)} topics, and compared them; to go on"
            f" there: broker={there.url!r}"
        )


def _log(url: str, clock: Clock, *, new: bool = False) -> AbstractAsyncContextManager[Transport]:
    settings = read_settings(COPY_GROUP, {"broker": url})
    return open_url(settings, clock, app=COPY_GROUP, may_be_new=new)


def _say(copying: Copy, here: str, there: str) -> None:
    click.echo(f"from {here} to {there}:")
    done = {tp: one.at for tp, one in copying.progress.items()}
    for name, info in copying.infos.items():
        tps = [tp for tp in copying.tps if tp.topic == name]
        offsets = sum(copying.ends[tp] - done.get(tp, copying.starts[tp]) for tp in tps)
        begun = ", the rest" if any(tp in done for tp in tps) else ""
        records = "1 record" if offsets == 1 else f"{offsets:,} records"
        partitions = "1 partition" if info.partitions == 1 else f"{info.partitions} partitions"
        click.echo(f"  {name}: {partitions}, {records}{begun}")
    for group in copying.groups:
        click.echo(f"  positions of group {group}")
