"""The app: declarations, settings, and the assembly of what runs."""

from millstream.app._app import App
from millstream.app._settings import Settings

__all__ = ["App", "Settings"]
