"""The worst delays of each day, as New York counts days."""

import msgspec

from app import app

__all__ = ["LEAST", "NEW_YORK", "TOP", "Delay", "worst"]

NEW_YORK = "New York"
LEAST = 60
TOP = 10


class Delay(msgspec.Struct, frozen=True, order=True):
    """A late departure; the greatest is the latest one."""

    minutes: int
    flight: str
    origin: str
    dest: str


worst = app.table("worst", key=str, value=list[Delay], default=list).calendar(
    "day", timezone="America/New_York", grace="30d", retention="400d"
)
