"""Totals of the year per airline."""

import msgspec

from app import app

__all__ = ["CarrierTotals", "carriers"]


class CarrierTotals(msgspec.Struct):
    """Flights of one airline; ``arrival_delay_sum`` is in minutes, early arrivals count as negative."""

    departed: int = 0
    cancelled: int = 0
    landed: int = 0
    arrival_delay_sum: int = 0


carriers = app.table("carriers", key=str, value=CarrierTotals, default=CarrierTotals)
