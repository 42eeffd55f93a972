"""The topics of the application: what comes in, and what comes out."""

import msgspec

from app import app
from app.facts import Plane, Weather
from app.flights import Flight

__all__ = [
    "Alert",
    "Departure",
    "Gate",
    "alerts",
    "departures",
    "flights",
    "gates",
    "plane_facts",
    "weather_facts",
]


class Alert(msgspec.Struct):
    """A flight that is more than three hours late."""

    flight: str
    what: str
    minutes: int


class Departure(msgspec.Struct):
    """A departed flight with its plane and the weather of the hour, where they are known."""

    flight: Flight
    plane: Plane | None
    weather: Weather | None


class Gate(msgspec.Struct):
    """The gate where a plane is expected."""

    tailnum: str
    flight: str
    gate: str


flights = app.topic("flights", value=Flight, key_from=lambda event: event.key, timestamp="at")
plane_facts = app.topic("planes", value=Plane, key_from="tailnum", compacted=True)
weather_facts = app.topic(
    "weather",
    key=tuple[str, int],
    value=Weather,
    key_from=lambda hour: (hour.origin, hour.at),
    compacted=True,
)

alerts = app.topic("alerts", value=Alert, key_from="flight")
departures = app.topic("departures", value=Departure, key_from=lambda event: event.flight.key)
gates = app.topic("gates", value=Gate, key_from="tailnum")
