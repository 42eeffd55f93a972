"""The planes and the weather, whole on every worker, to look things up in."""

from app import app
from app.topics import plane_facts, weather_facts

__all__ = ["planes", "weather"]

planes = app.global_table("planes", topic=plane_facts)
weather = app.global_table("weather", topic=weather_facts)
