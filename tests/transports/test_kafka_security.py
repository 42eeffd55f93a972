"""What goes together for encryption and login, without a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from millstream.errors import SettingError
from millstream.transports.kafka import KafkaTransport, Security

if TYPE_CHECKING:
    from pathlib import Path

WRONG = [
    # what is given, the setting that the error names
    ({"keyfile": "key.pem"}, "ssl_keyfile"),
    ({"username": "me"}, "sasl_username"),
    ({"password": "s3cret"}, "sasl_password"),
    ({"token": str}, "sasl_token"),
    ({"mechanism": "GSSAPI"}, "sasl_mechanism"),
    ({"mechanism": "PLAIN", "password": "s3cret"}, "sasl_username"),
    ({"mechanism": "SCRAM-SHA-256", "username": "me"}, "sasl_password"),
    ({"mechanism": "OAUTHBEARER", "username": "me", "password": "s3cret"}, "sasl_token"),
]


@pytest.mark.parametrize(("given", "setting"), WRONG)
def test_what_does_not_go_together(given: dict[str, Any], setting: str) -> None:
    """The error names the setting that is missing or too much, and no secret."""
    with pytest.raises(SettingError) as caught:
        Security(**given)
    assert caught.value.name == setting
    assert "s3cret" not in str(caught.value)


def test_nothing_of_it_is_shown() -> None:
    """Neither its own text nor that of a transport holds names, files or secrets."""
    security = Security(
        encrypted=True,
        certfile="c3rt",
        key_password="k3y",
        mechanism="PLAIN",
        username="us3r",
        password="s3cret",
    )
    transport = KafkaTransport("kafka://one", security=security)
    shown = f"{security!r} {security} {transport!r} {transport.url} {transport._access!r}"
    assert [part for part in ("c3rt", "k3y", "us3r", "s3cret") if part in shown] == []


FILES = [
    # what is given, the setting that the error names
    ({"cafile": "missing"}, "ssl_cafile"),
    ({"cafile": "rubbish"}, "ssl_cafile"),
    ({"certfile": "missing"}, "ssl_certfile"),
    ({"certfile": "rubbish"}, "ssl_certfile"),
]


@pytest.mark.parametrize(("given", "setting"), FILES)
async def test_files_that_cannot_be_used(
    tmp_path: Path, given: dict[str, str], setting: str
) -> None:
    """The error names the setting and the file."""
    (tmp_path / "rubbish").write_text("not a certificate")
    paths: dict[str, Any] = {name: str(tmp_path / file) for name, file in given.items()}
    transport = KafkaTransport("kafka://one", security=Security(encrypted=True, **paths))
    with pytest.raises(SettingError, match=next(iter(given.values()))) as caught:
        async with transport:
            pass
    assert caught.value.name == setting


async def test_logins_without_a_broker() -> None:
    """What PLAIN and OAUTHBEARER send, and that they end."""
    plain = Security(mechanism="PLAIN", username="me", password="é").login()
    assert await plain.step(None) == "\0me\0é".encode()
    assert await plain.step(b"") is None
    bearer = Security(mechanism="OAUTHBEARER", token=lambda: "abc").login()
    assert await bearer.step(None) == b"n,,\x01auth=Bearer abc\x01\x01"
    assert await bearer.step(b"") is None
