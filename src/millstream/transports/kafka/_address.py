"""Where a cluster is: ``kafka://host:9092,host2:9092``."""

from __future__ import annotations

from typing import NamedTuple

from millstream.errors import SettingError

__all__ = ["Address", "parse_url", "url_of"]

SCHEME = "kafka://"
PORT = 9092


class Address(NamedTuple):
    """Host and port of one broker; written ``host:9092``, ``[::1]:9092``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def url_of(addresses: tuple[Address, ...]) -> str:
    """The URL that `parse_url` reads."""
    return SCHEME + ",".join(map(str, addresses))


def parse_url(url: str) -> tuple[Address, ...]:
    """The brokers that a URL names; 9092 where a port is left out.

    Raises:
        SettingError: names what is wrong with it. A password in it is not repeated.
    """
    text = url.removeprefix(SCHEME)
    if "@" in text:
        raise SettingError(
            "broker",
            "a kafka:// address holds no user and no password: give sasl_username and sasl_password",
        )
    if any(sign in text for sign in "/?#"):
        raise SettingError(
            "broker", f"{url!r}: write kafka://host:9092,host2:9092, without a path or options"
        )
    addresses = tuple(_address(part.strip(), url) for part in text.split(",") if part.strip())
    if not addresses:
        raise SettingError("broker", f"{url!r} names no broker: write kafka://host:9092")
    return addresses


def _address(text: str, url: str) -> Address:
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
        if not closed or (rest and not rest.startswith(":")):
            raise SettingError("broker", f"{text!r} in {url!r}: write [address]:port")
    else:
        host, _, port = text.partition(":")
        if ":" in port:
            raise SettingError(
                "broker", f"{text!r} in {url!r}: an IPv6 address stands in brackets, [::1]:9092"
            )
    if not host:
        raise SettingError("broker", f"{text!r} in {url!r} has no host")
    if not port:
        return Address(host, PORT)
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise SettingError("broker", f"{text!r} in {url!r}: {port!r} is no port")
    return Address(host, int(port))
