"""The events of the reference application, derived from the real data."""

from collections import Counter
from datetime import UTC, date, datetime
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from app.archive import NAME, SHA256, ArchiveError, archive, rows
from app.facts import planes, weather
from app.flights import ANNOUNCED_MS, NEW_YORK, Flight, derive, flights, moment, zones

HEADER = (
    "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,"
    "carrier,flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour\n"
)
ZONES = {
    "LAX": ZoneInfo("America/Los_Angeles"),
    "BOS": NEW_YORK,
    "SJU": ZoneInfo("America/Puerto_Rico"),
}


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1000


def row(day: str, planned: int, late: object, arrives: int, arr_late: object, dest: str) -> str:
    _, month, number = (int(part) for part in day.split("-"))
    return (
        f"2013,{month},{number},0,{planned},{late},0,{arrives},{arr_late},"
        f"UA,7,N1,EWR,{dest},0,0,0,0,x\n"
    )


def told(*of_flights: str) -> list[tuple[str, str, int]]:
    """Derive events and show them as kind, time in UTC and delay."""
    return [
        (
            event.kind,
            datetime.fromtimestamp(event.at / 1000, UTC).strftime("%m-%d %H:%M"),
            event.delay,
        )
        for event in derive([HEADER, *of_flights], ZONES)
    ]


@pytest.mark.parametrize(
    ("flight", "events"),
    [
        # early away, late to arrive: scheduled, departed, landed
        (
            row("2013-01-01", 800, -5, 1100, 12, "LAX"),
            [
                ("scheduled", "01-01 11:00", 0),
                ("departed", "01-01 12:55", -5),
                ("landed", "01-01 19:12", 12),
            ],
        ),
        # cancelled, at the time of the planned departure
        (
            row("2013-07-01", 800, "NA", 1100, "NA", "LAX"),
            [("scheduled", "07-01 10:00", 0), ("cancelled", "07-01 12:00", 0)],
        ),
        # diverted: away, and never down
        (
            row("2013-07-01", 800, 0, 1100, "NA", "LAX"),
            [("scheduled", "07-01 10:00", 0), ("departed", "07-01 12:00", 0)],
        ),
        # arrives after midnight
        (
            row("2013-01-01", 2300, 0, 15, 0, "BOS"),
            [
                ("scheduled", "01-02 02:00", 0),
                ("departed", "01-02 04:00", 0),
                ("landed", "01-02 05:15", 0),
            ],
        ),
        # the last minute of a day is written 2400
        (
            row("2013-01-01", 2230, 0, 2400, 0, "BOS"),
            [
                ("scheduled", "01-02 01:30", 0),
                ("departed", "01-02 03:30", 0),
                ("landed", "01-02 05:00", 0),
            ],
        ),
        # departs after midnight, when it is still yesterday at the destination
        (
            row("2013-01-02", 10, 0, 2359, 0, "LAX"),
            [
                ("scheduled", "01-02 03:10", 0),
                ("departed", "01-02 05:10", 0),
                ("landed", "01-02 07:59", 0),
            ],
        ),
        # in the air while New York puts its clocks forward; San Juan leaves them alone
        (
            row("2013-03-10", 130, 0, 615, 0, "SJU"),
            [
                ("scheduled", "03-10 04:30", 0),
                ("departed", "03-10 06:30", 0),
                ("landed", "03-10 10:15", 0),
            ],
        ),
        # in the air while they are put back
        (
            row("2013-11-03", 30, 0, 300, 0, "BOS"),
            [
                ("scheduled", "11-03 02:30", 0),
                ("departed", "11-03 04:30", 0),
                ("landed", "11-03 08:00", 0),
            ],
        ),
    ],
)
def test_what_becomes_of_a_flight(flight: str, events: list[tuple[str, str, int]]) -> None:
    """A row becomes its events, at real times."""
    assert told(flight) == events


@pytest.mark.parametrize(
    ("day", "minute", "expected"),
    [
        (date(2013, 1, 1), 60, "2013-01-01T06:00:00Z"),
        (date(2013, 7, 1), 60, "2013-07-01T05:00:00Z"),
        # 1:59 is followed by 3:00; 2:30, which no clock shows, is half an hour after that 2:00
        (date(2013, 3, 10), 119, "2013-03-10T06:59:00Z"),
        (date(2013, 3, 10), 150, "2013-03-10T07:30:00Z"),
        (date(2013, 3, 10), 180, "2013-03-10T07:00:00Z"),
        # 1:30 comes twice, and is taken as the first
        (date(2013, 11, 3), 90, "2013-11-03T05:30:00Z"),
        (date(2013, 11, 3), 120, "2013-11-03T07:00:00Z"),
        # the last minute is the next midnight
        (date(2013, 3, 10), 1440, "2013-03-11T04:00:00Z"),
    ],
)
def test_local_time_becomes_a_moment(day: date, minute: int, expected: str) -> None:
    """The clocks of New York are read as they are, also where they skip or repeat an hour."""
    assert moment(NEW_YORK, day, minute) == ms(expected)


def test_days_come_in_any_order_and_events_in_the_order_of_time() -> None:
    """A flight that leaves a day late comes after those of the next day, and a plane lands before it departs."""
    late = row("2013-01-01", 800, 1500, 1000, 1500, "BOS")
    turn = row("2013-01-02", 1000, 60, 1200, 0, "BOS")
    found = told(turn, late)
    assert [time for _, time, _ in found] == sorted(time for _, time, _ in found)
    assert [kind for kind, _, _ in found] == [
        "scheduled",
        "scheduled",
        "departed",
        "landed",
        "departed",
        "landed",
    ]


@pytest.fixture(scope="module")
def year() -> list[Flight]:
    return list(flights())


def test_the_year_adds_up(year: list[Flight]) -> None:
    """The events hold the totals that are known of the data."""
    assert Counter(event.kind for event in year) == {
        "scheduled": 336_776,
        "departed": 328_521,
        "cancelled": 8_255,
        "landed": 327_346,
    }
    united = [event for event in year if event.carrier == "UA"]
    counts = Counter(event.kind for event in united)
    assert (counts["departed"], counts["landed"]) == (57_979, 57_782)
    assert sum(event.delay for event in united if event.kind == "landed") == 205_589


def test_the_year_is_in_order(year: list[Flight]) -> None:
    """Time goes forward, and no flight departs or lands more often than it could by then."""
    assert all(one.at <= other.at for one, other in pairwise(year))
    so_far = Counter[tuple[str, str, str, str]]()
    for event in year:
        flight = (event.flight, event.origin, event.tailnum)
        so_far[event.kind, *flight] += 1
        away = so_far["departed", *flight]
        assert away + so_far["cancelled", *flight] <= so_far["scheduled", *flight], event
        assert so_far["landed", *flight] <= away, event


def test_departures_agree_with_the_hour_that_the_data_gives() -> None:
    """Our reading of New York's clocks is that of the column ``time_hour``, which is in UTC."""
    for planned in rows("flights.csv"):
        day = date(int(planned["year"]), int(planned["month"]), int(planned["day"]))
        hour = moment(NEW_YORK, day, int(planned["hour"]) * 60)
        assert datetime.fromtimestamp(hour / 1000, UTC) == datetime.fromisoformat(
            planned["time_hour"]
        )


def test_landings_agree_with_the_clocks_of_the_destination(year: list[Flight]) -> None:
    """The minute of landing is that of the column ``arr_time`` for all flights but one."""
    shown = Counter[tuple[str, str, int]]()
    for flown in rows("flights.csv"):
        if flown["arr_delay"] != "NA":
            name = flown["carrier"] + flown["flight"]
            shown[name, flown["dest"], int(flown["arr_time"]) % 2400] += 1
    where = zones()
    for event in year:
        if event.kind == "landed":
            clock = datetime.fromtimestamp(event.at / 1000, where[event.dest])
            shown[event.flight, event.dest, clock.hour * 100 + clock.minute] -= 1
    assert sum(abs(count) for count in shown.values()) == 2


def test_every_departure_is_announced_before(year: list[Flight]) -> None:
    """The earliest departure of the data is later than its announcement."""
    assert min(event.delay for event in year if event.kind == "departed") * 60_000 > -ANNOUNCED_MS


def test_planes_and_weather_are_found_by_the_events(year: list[Flight]) -> None:
    """Nearly all departures have the weather of their hour, and most of them a plane."""
    hours = {(hour.origin, hour.at) for hour in weather()}
    known = {plane.tailnum for plane in planes()}
    assert len(known) == 3_322
    departed = [event for event in year if event.kind == "departed"]
    with_weather = sum(
        (event.origin, event.at - event.at % 3_600_000) in hours for event in departed
    )
    with_plane = sum(event.tailnum in known for event in departed)
    assert with_weather > 0.99 * len(departed)
    assert with_plane > 0.8 * len(departed)


def test_another_archive_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of that name with another content is named with both hashes."""
    monkeypatch.setenv("MILLSTREAM_DATA", str(tmp_path))
    (tmp_path / NAME).write_bytes(b"something else")
    with pytest.raises(ArchiveError, match=SHA256):
        archive()
