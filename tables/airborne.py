"""The planes that are in the air now."""

import msgspec

from app import app

__all__ = ["Airborne", "airborne"]


class Airborne(msgspec.Struct, frozen=True):
    """Where a plane is going, and since when (ms since the epoch)."""

    flight: str
    origin: str
    dest: str
    since: int


# The data has no landing for a diverted flight: its plane leaves this table after a day, or with its
# next departure.
airborne = app.table("airborne", key=str, value=Airborne, ttl="1d")
