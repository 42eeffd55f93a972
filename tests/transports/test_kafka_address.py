"""kafka:// addresses."""

from __future__ import annotations

import pytest

from millstream.errors import SettingError
from millstream.transports.kafka._address import Address, parse_url, url_of

GOOD = [
    # url, addresses
    ("kafka://one", [("one", 9092)]),
    ("kafka://one:1,two:65535", [("one", 1), ("two", 65535)]),
    ("kafka:// one:1 , two ,", [("one", 1), ("two", 9092)]),
    ("kafka://127.0.0.1:9", [("127.0.0.1", 9)]),
    ("kafka://[::1]:9,[fe80::1]", [("::1", 9), ("fe80::1", 9092)]),
]


@pytest.mark.parametrize(("url", "addresses"), GOOD)
def test_a_url(url: str, addresses: list[tuple[str, int]]) -> None:
    """Brokers with and without ports; what is told of them can be read again."""
    found = parse_url(url)
    assert list(found) == addresses
    assert parse_url(url_of(found)) == found
    assert url_of(found).count("[") == url.count("[")


BAD = [
    # url, what the error says
    ("kafka://", "names no broker"),
    ("kafka://,", "names no broker"),
    ("kafka://one:port", "no port"),
    ("kafka://one:0", "no port"),
    ("kafka://one:65536", "no port"),
    ("kafka://one:-1", "no port"),
    ("kafka://one:٣", "no port"),
    ("kafka://:9092", "no host"),
    ("kafka://::1", "brackets"),
    ("kafka://[::1", "address"),
    ("kafka://[::1]9", "address"),
    ("kafka://one/topic", "without a path"),
    ("kafka://one?ssl=1", "without a path"),
]


@pytest.mark.parametrize(("url", "says"), BAD)
def test_a_url_that_is_none(url: str, says: str) -> None:
    """The error names the setting, and what to write."""
    with pytest.raises(SettingError, match=says) as caught:
        parse_url(url)
    assert caught.value.name == "broker"


def test_a_password_in_a_url_is_not_repeated() -> None:
    """It does not belong there, and the error does not show it."""
    with pytest.raises(SettingError, match="sasl_password") as caught:
        parse_url("kafka://me:s3cret@one:9092")
    assert "s3cret" not in str(caught.value)


def test_an_address_as_text() -> None:
    """As it is written in a url."""
    assert str(Address("one", 1)) == "one:1"
    assert str(Address("::1", 1)) == "[::1]:1"
