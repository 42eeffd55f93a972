"""The tables, one to a file."""

from tables import airborne, carriers, facts, hours, worst

__all__ = ["airborne", "carriers", "facts", "hours", "worst"]
