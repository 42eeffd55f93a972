"""The agents, one to a file."""

from agents import airborne, alerts, carriers, departures, gates, hours, worst

__all__ = ["airborne", "alerts", "carriers", "departures", "gates", "hours", "worst"]
