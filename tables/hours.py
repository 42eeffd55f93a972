"""Departures of an airport in windows of an hour, one beginning every ten minutes."""

import msgspec

from app import app

__all__ = ["Hour", "hours"]


class Hour(msgspec.Struct):
    """The departures of one hour from one airport."""

    departed: int = 0
    delay_sum: int = 0
    delay_mean: float = 0.0

    def add(self, delay: int) -> None:
        """Count one departure that was ``delay`` minutes late."""
        self.departed += 1
        self.delay_sum += delay
        self.delay_mean = round(self.delay_sum / self.departed, 2)


# The departures come grouped by airport from four shards, each reading at its own pace. A year fed in
# a minute puts them days apart, so a window waits for days, not for the minutes that real time would need.
hours = app.table("hours", key=str, value=Hour, default=Hour).hopping(
    "1h", "10m", grace="30d", retention="60d"
)
