"""The application's agents over a day of flights, against plain folds of the same events."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from datetime import date, datetime, time
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from agents import gates as gates_agent
from agents.alerts import LIMIT
from app import app
from app.archive import lines
from app.facts import HOUR_MS, planes, weather
from app.flights import NEW_YORK, Flight, derive, zones
from app.topics import (
    Alert,
    Departure,
    alerts,
    departures,
    flights,
    gates,
    plane_facts,
    weather_facts,
)
from millstream.testing import TestApp
from tables.airborne import Airborne, airborne
from tables.carriers import CarrierTotals, carriers
from tables.hours import Hour, hours
from tables.worst import LEAST, TOP, Delay, worst

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY = date(2013, 3, 10)
"""The clocks of New York go forward in its night: it has 23 hours."""
TEN_MINUTES_MS = 600_000


class Day:
    """The events of the day in order of time, and what is known of its planes and its weather."""

    def __init__(self) -> None:
        with lines("flights.csv") as text:
            head = next(text)
            of_day = [line for line in text if line.startswith("2013,3,10,")]
        self.events = list(derive([head, *of_day], zones()))
        tails = {event.tailnum for event in self.events}
        self.planes = {plane.tailnum: plane for plane in planes() if plane.tailnum in tails}
        first, last = self.events[0].at - HOUR_MS, self.events[-1].at
        self.weather = {
            (hour.origin, hour.at): hour for hour in weather() if first <= hour.at <= last
        }

    def of_kind(self, kind: str) -> Iterator[Flight]:
        """The events of one kind."""
        return (event for event in self.events if event.kind == kind)


@pytest.fixture(scope="module")
def day() -> Day:
    found = Day()
    assert len(found.events) > 2_000
    return found


@pytest.fixture
async def t(day: Day, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The application when it has processed the day, and has crashed and lost its state in the middle of it."""
    rng = random.Random(10)

    async def gate_of(event: Flight) -> str:
        for _ in range(rng.randrange(20)):
            await asyncio.sleep(0)
        return event.dest

    monkeypatch.setattr(gates_agent, "gate_of", gate_of)
    async with TestApp(app) as found:
        await found.send_many(plane_facts, day.planes.values())
        await found.send_many(weather_facts, day.weather.values())
        coming = iter(day.events)
        await found.send_many(flights, islice(coming, len(day.events) // 2))
        await found.crash(lose_state=True)
        await found.send_many(flights, coming)
        yield found


async def test_what_a_day_comes_to(day: Day, t: TestApp) -> None:
    """Each table and each topic holds what a loop over the day's events gives."""
    assert t.table(carriers) == totals(day)
    assert t.table(airborne) == in_the_air(day)
    assert windows(t.table(hours)) == departures_by_the_hour(day)
    assert windows(t.table(worst)) == worst_delays(day)
    late = [Alert(one.flight, one.kind, one.delay) for one in day.events if one.delay > LIMIT]
    assert late
    assert in_order(t.sent(alerts)) == in_order(late)
    enriched = [with_facts(day, event) for event in day.of_kind("departed")]
    assert {one.weather is None for one in enriched} == {False}
    assert {one.plane is None for one in enriched} == {False, True}
    assert in_order(t.sent(departures)) == in_order(enriched)
    # answers that come back in any order leave each plane's departures in theirs
    assert by_plane((one.tailnum, one.flight) for one in t.sent(gates)) == by_plane(
        (one.tailnum, one.flight) for one in day.of_kind("departed")
    )


# the same in plain Python ---------------------------------------------------------------------


def totals(day: Day) -> dict[str, CarrierTotals]:
    found: dict[str, CarrierTotals] = defaultdict(CarrierTotals)
    for event in day.events:
        if event.kind != "scheduled":
            one = found[event.carrier]
            one.departed += event.kind == "departed"
            one.cancelled += event.kind == "cancelled"
            if event.kind == "landed":
                one.landed += 1
                one.arrival_delay_sum += event.delay
    return dict(found)


def in_the_air(day: Day) -> dict[str, Airborne]:
    found: dict[str, Airborne] = {}
    for event in day.events:
        if event.kind == "departed":
            found[event.tailnum] = Airborne(event.flight, event.origin, event.dest, event.at)
        elif event.kind == "landed" and found[event.tailnum].flight == event.flight:
            del found[event.tailnum]
    return found


def departures_by_the_hour(day: Day) -> dict[tuple[str, int], Hour]:
    found: dict[tuple[str, int], Hour] = defaultdict(Hour)
    for event in day.of_kind("departed"):
        last = event.at - event.at % TEN_MINUTES_MS
        for start in range(last - 5 * TEN_MINUTES_MS, last + 1, TEN_MINUTES_MS):
            one = found[event.origin, start]
            one.departed += 1
            one.delay_sum += event.delay
            one.delay_mean = round(one.delay_sum / one.departed, 2)
    return dict(found)


def worst_delays(day: Day) -> dict[tuple[str, int], list[Delay]]:
    found: dict[tuple[str, int], list[Delay]] = defaultdict(list)
    for event in day.of_kind("departed"):
        if event.delay >= LEAST:
            clock = datetime.fromtimestamp(event.at / 1000, NEW_YORK)
            midnight = datetime.combine(clock.date(), time(), NEW_YORK)
            delay = Delay(event.delay, event.flight, event.origin, event.dest)
            found["New York", int(midnight.timestamp() * 1000)].append(delay)
    return {key: sorted(delays, reverse=True)[:TOP] for key, delays in found.items()}


def with_facts(day: Day, event: Flight) -> Departure:
    hour = day.weather.get((event.origin, event.at - event.at % HOUR_MS))
    return Departure(event, day.planes.get(event.tailnum), hour)


def windows(table: Any) -> dict[tuple[str, int], Any]:
    return {(key, window.start): value for (key, window), value in table.items()}


def by_plane(pairs: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for tail, flight in pairs:
        found[tail].append(flight)
    return dict(found)


def in_order(values: list[Any]) -> list[str]:
    return sorted(map(repr, values))
