"""The listeners of brokers: names, ports and settings."""

from __future__ import annotations

import random
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["DIRECT", "HOST", "PROXIED", "Listener", "free_ports", "listening"]

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A listener of each broker.

    Args:
        name: Its name, in capitals; what a test asks an address of.
        protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        proxied: Whether the brokers tell clients another port than they listen on, where a proxy is to stand.
        properties: Its settings, without the prefix ``listener.name.…``.
    """

    name: str
    protocol: str = "PLAINTEXT"
    proxied: bool = False
    properties: Mapping[str, object] = field(default_factory=dict)


DIRECT = Listener(name="DIRECT")
PROXIED = Listener(name="PROXIED", proxied=True)


def listening(
    listeners: Sequence[Listener],
    own: Mapping[str, int],
    told: Mapping[str, int],
    host: str = HOST,
) -> dict[str, object]:
    """Return the settings of a broker's listeners.

    Args:
        listeners: Those of clients; there may be one more in ``own``, which is plain text.
        own: The port that it listens on, by the listener's name.
        told: The port that it tells clients, by the listener's name.
        host: Where it listens.
    """
    protocols = dict.fromkeys(own, "PLAINTEXT") | {one.name: one.protocol for one in listeners}
    return {
        "listeners": ",".join(f"{name}://{host}:{port}" for name, port in own.items()),
        "advertised.listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in told.items()),
        "listener.security.protocol.map": ",".join(f"{a}:{b}" for a, b in protocols.items()),
        "inter.broker.listener.name": DIRECT.name,
    } | {
        f"listener.name.{one.name.lower()}.{key}": value
        for one in listeners
        for key, value in one.properties.items()
    }


def free_ports(count: int) -> Iterator[int]:
    """Return ports of loopback that nobody listens on.

    They lie below those that the system gives to outgoing connections, which might otherwise take one before the
    broker does, or while it is down.
    """
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(12_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        found.add(port)
    return iter(sorted(found))
