"""What is known beforehand: the planes, and the weather of every hour at the three airports."""

from collections.abc import Iterator
from datetime import datetime

import msgspec

from app.archive import rows

__all__ = ["HOUR_MS", "Plane", "Weather", "planes", "weather"]

HOUR_MS = 3_600_000


class Plane(msgspec.Struct, frozen=True, omit_defaults=True):
    """A plane, by the number on its tail."""

    tailnum: str
    manufacturer: str
    model: str
    seats: int
    built: int | None = None


class Weather(msgspec.Struct, frozen=True, omit_defaults=True):
    """The weather of the hour that begins at ``at`` (ms since the epoch); what was not measured is None."""

    origin: str
    at: int
    temperature_f: float | None = None
    wind_mph: float | None = None
    rain_in: float | None = None
    visibility_miles: float | None = None


def planes() -> Iterator[Plane]:
    """Yield the planes; some of those that flew are not among them."""
    for row in rows("planes.csv"):
        built = None if row["year"] == "NA" else int(row["year"])
        yield Plane(row["tailnum"], row["manufacturer"], row["model"], int(row["seats"]), built)


def weather() -> Iterator[Weather]:
    """Yield the weather, hour by hour for each of the airports."""
    for row in rows("weather.csv"):
        measured = (
            None if row[column] == "NA" else float(row[column])
            for column in ("temp", "wind_speed", "precip", "visib")
        )
        at = int(datetime.fromisoformat(row["time_hour"]).timestamp()) * 1000
        yield Weather(row["origin"], at, *measured)
