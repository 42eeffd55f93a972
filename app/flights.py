"""What happens to a flight, as events in the order in which it happens.

A row of the data is a flight seen from its end; here it becomes what was known on the day:
``scheduled``, then ``departed`` or ``cancelled``, then ``landed``. The moments are real ones:

- *scheduled*: two hours before the scheduled departure, when check-in is open. The data does not say
  when a flight was put on the schedule; the earliest departure in it is 43 minutes early.
- *departed*: scheduled departure (local time in New York, summer time included) plus the delay.
- *cancelled*: at the scheduled departure; the data has no better moment.
- *landed*: scheduled arrival plus the arrival delay. The scheduled arrival is the first moment after
  the scheduled departure at which the clocks of the destination show the scheduled arrival time. For
  all flights but one this is what the column ``arr_time`` says, to the minute; that one was in
  the air while the clocks went forward. ``air_time`` would leave out the taxiing at both ends.

A flight that departed and has no arrival delay was diverted, or its arrival is unknown: it never lands here.
"""

import csv
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from functools import cache
from itertools import islice
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec

from app.archive import lines, rows

__all__ = ["ANNOUNCED_MS", "NEW_YORK", "Flight", "derive", "flights", "moment", "zones"]

NEW_YORK = ZoneInfo("America/New_York")
ANNOUNCED_MS = 2 * 3_600_000
_MINUTE_MS = 60_000
_DAY_MS = 86_400_000
# What happens in one minute: a plane lands before it departs again.
_RANK = {"landed": 0, "scheduled": 1, "cancelled": 2, "departed": 3}
# The airports of the data leave out Puerto Rico and the Virgin Islands, where 7,602 flights go.
_CARIBBEAN = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


class Flight(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One thing that happened to a flight.

    Attributes:
        kind: What happened.
        at: When, in ms since the epoch.
        carrier: Code of the airline, for example ``UA``.
        flight: The number that passengers know, for example ``UA1545``; every day has it again.
        origin: Airport of departure: ``EWR``, ``JFK`` or ``LGA``.
        dest: Airport of arrival.
        tailnum: The plane; empty for some of the cancelled flights, which never had one.
        delay: Minutes, negative when early: of the departure when departed, of the arrival when landed, else 0.
    """

    kind: Literal["scheduled", "departed", "cancelled", "landed"]
    at: int
    carrier: str
    flight: str
    origin: str
    dest: str
    tailnum: str = ""
    delay: int = 0

    @property
    def key(self) -> str:
        """The plane where there is one, so that all that happens to a plane stays in order."""
        return self.tailnum or f"{self.flight}@{self.origin}"


def flights() -> Iterator[Flight]:
    """Yield the events of the whole year in order of time."""
    with lines("flights.csv") as text:
        yield from derive(text, zones())


def zones() -> dict[str, ZoneInfo]:
    """Return the time zone of every airport that a flight of the data goes to."""
    names = {row["faa"]: row["tzone"] for row in rows("airports.csv")} | _CARIBBEAN
    return {airport: _zone(name) for airport, name in names.items() if "/" in name}


def derive(text: Iterable[str], zones: dict[str, ZoneInfo]) -> Iterator[Flight]:
    """Turn the lines of ``flights.csv``, header first, into events in order of time.

    The days are put in order first (the file has October after January) and derived one at a time,
    so that memory holds the lines of the year but the events of two days.
    """
    days: dict[date, list[str]] = {}
    for line in islice(text, 1, None):
        days.setdefault(_date(*line.split(",", 3)[:3]), []).append(line)

    waiting: list[Flight] = []
    for day, of_day in sorted(days.items()):
        # No event of this day or of a later one is earlier than this.
        horizon = moment(NEW_YORK, day, 0) - ANNOUNCED_MS
        waiting.sort(key=_order)
        ready = bisect_left(waiting, horizon, key=_at)
        yield from waiting[:ready]
        del waiting[:ready]
        for row in csv.reader(of_day):
            waiting += _events(day, row, zones)
    yield from sorted(waiting, key=_order)


def moment(zone: ZoneInfo, day: date, minute: int) -> int:
    """Return when the clocks of ``zone`` show ``minute`` minutes after midnight of ``day``, in ms since the epoch.

    A time that they show twice, when summer ends, is the first of the two. One that they skip, when
    summer begins, is read on a clock that was not put forward: 2:30 is half an hour after 2:00.
    """
    midnight, usual = _midnight(zone, day)
    if usual:
        return midnight + minute * _MINUTE_MS
    clock = datetime(day.year, day.month, day.day) + timedelta(minutes=minute)
    return int(clock.replace(tzinfo=zone).timestamp()) * 1000


def _events(day: date, row: list[str], zones: dict[str, ZoneInfo]) -> list[Flight]:
    (_, _, _, _, planned, dep_delay, _, planned_arrival, arr_delay) = row[:9]
    carrier, number, tailnum, origin, dest = row[9:14]
    departure = moment(NEW_YORK, day, _minutes(planned))
    plane = "" if tailnum == "NA" else tailnum
    same = (carrier, carrier + number, origin, dest, plane)

    happened = [Flight("scheduled", departure - ANNOUNCED_MS, *same)]
    if dep_delay == "NA":
        happened.append(Flight("cancelled", departure, *same))
        return happened
    late = int(dep_delay)
    happened.append(Flight("departed", departure + late * _MINUTE_MS, *same, late))
    if arr_delay != "NA":
        late = int(arr_delay)
        arrival = _arrival(zones[dest], day, _minutes(planned_arrival), departure)
        happened.append(Flight("landed", arrival + late * _MINUTE_MS, *same, late))
    return happened


def _arrival(zone: ZoneInfo, day: date, minute: int, departure: int) -> int:
    """Return the first moment after ``departure`` at which the clocks of ``zone`` show ``minute``."""
    arrival = moment(zone, day, minute)
    if arrival - departure > _DAY_MS:  # departed so early that it is yesterday there
        arrival = moment(zone, day - timedelta(days=1), minute)
    while arrival <= departure:
        day += timedelta(days=1)
        arrival = moment(zone, day, minute)
    return arrival


@cache
def _midnight(zone: ZoneInfo, day: date) -> tuple[int, bool]:
    """Return when ``day`` begins, and whether its clocks are left alone."""
    begins, ends = (
        datetime(at.year, at.month, at.day, tzinfo=zone).timestamp()
        for at in (day, day + timedelta(days=1))
    )
    return int(begins) * 1000, ends - begins == _DAY_MS / 1000


@cache
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


@cache
def _date(year: str, month: str, day: str) -> date:
    return date(int(year), int(month), int(day))


@cache
def _minutes(clock: str) -> int:
    """Read ``517`` as 5:17; ``2400`` is the end of the day."""
    hours, minutes = divmod(int(clock), 100)
    return hours * 60 + minutes


def _at(event: Flight) -> int:
    return event.at


def _order(event: Flight) -> tuple[int, int]:
    return event.at, _RANK[event.kind]
