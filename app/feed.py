"""Sends the year 2013 through the topics: ``python -m app.feed --help``.

The planes and the weather go first, the events of the flights after them in order of time. What is
due goes out in one append, so that a fast feed pays for a few thousand events once.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import TypeVar

from app import app
from app.archive import ArchiveError, archive
from app.facts import planes, weather
from app.flights import NEW_YORK, Flight
from app.flights import flights as year
from app.topics import flights, plane_facts, weather_facts

__all__ = ["BATCH", "TICK_S", "main", "send_facts", "send_fast", "send_paced"]

BATCH = 5_000
TICK_S = 0.1
REPORT_S = 5.0

T = TypeVar("T")


async def send_facts() -> None:
    """Send what is known of the planes and the weather."""
    for some in _batches(planes()):
        await plane_facts.send_many(some)
    for hours in _batches(weather()):
        await weather_facts.send_many(hours)


async def send_fast(events: Iterable[Flight]) -> int:
    """Send the events as fast as they go, and return how many there were."""
    progress = _Progress()
    for some in _batches(events):
        await flights.send_many(some)
        progress.sent(some)
    return progress.count


async def send_paced(events: Iterable[Flight], speed: float) -> int:
    """Send each event when it is due if time goes ``speed`` times as fast as it does, and return how many."""
    progress = _Progress()
    coming = iter(events)
    following = next(coming, None)
    began, first = time.monotonic(), following.at if following else 0
    while following:
        now = first + (time.monotonic() - began) * 1000 * speed
        some: list[Flight] = []
        while following and following.at <= now and len(some) < BATCH:
            some.append(following)
            following = next(coming, None)
        if some:
            await flights.send_many(some)
            progress.sent(some)
        if len(some) < BATCH:
            await asyncio.sleep(TICK_S)
    return progress.count


def main() -> None:
    """Read the command line and feed until the year is over."""
    parser = argparse.ArgumentParser(prog="python -m app.feed", description=__doc__)
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--speed",
        type=float,
        default=3600.0,
        metavar="N",
        help="N seconds in one (default: %(default)g)",
    )
    pace.add_argument("--once", action="store_true", help="the whole year as fast as it goes")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N events")
    parser.add_argument("--only", choices=["facts", "flights"], help="send one of the two")
    options = parser.parse_args()
    if options.speed <= 0:
        parser.error("--speed must be greater than 0")
    try:
        archive()
        with suppress(KeyboardInterrupt):
            asyncio.run(_feed(options))
    except ArchiveError as error:
        sys.exit(str(error))


async def _feed(options: argparse.Namespace) -> None:
    async with app.running(worker=False):
        if options.only != "flights":
            await send_facts()
        if options.only == "facts":
            return
        events = islice(year(), options.limit)
        began = time.monotonic()
        sent = await (send_fast(events) if options.once else send_paced(events, options.speed))
        elapsed = time.monotonic() - began
    _print(f"fed {sent:,} events in {elapsed:.1f} s")


def _batches(values: Iterable[T]) -> Iterator[list[T]]:
    coming = iter(values)
    while some := list(islice(coming, BATCH)):
        yield some


class _Progress:
    """Counts what was sent, and says so every few seconds."""

    def __init__(self) -> None:
        self.count = 0
        self._next = time.monotonic()

    def sent(self, some: list[Flight]) -> None:
        self.count += len(some)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + REPORT_S
            day = datetime.fromtimestamp(some[-1].at / 1000, NEW_YORK).date()
            _print(f"fed {self.count:,} events, up to {day}")


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
