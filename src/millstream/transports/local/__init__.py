"""The embedded log: one SQLite file that several processes share."""

from millstream.transports.local.transport import LocalTransport

__all__ = ["LocalTransport"]
