"""Encryption, logins and access rules of a real broker, and what is said where they refuse us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka.admin import AclOperation, ResourceType

import millstream as ms
from millstream.errors import ConfigurationError, LogUnavailableError, MillstreamError
from millstream.records import OutgoingRecord, TopicPartition
from millstream.transports.base import TopicSpec
from millstream.transports.kafka import KafkaTransport, Security
from tests.brokers import unique
from tests.brokers.security import MECHANISMS, PASSWORDS, unsecured_token
from tests.integration.groups import member_of

if TYPE_CHECKING:
    from tests.brokers.security import Secured

ADMIN = {"sasl_username": "admin", "sasl_password": PASSWORDS["admin"]}


def rec(key: str) -> OutgoingRecord:
    """A record with a key."""
    return OutgoingRecord(1_000, key.encode(), b"v", [])


def transport(secured: Secured, listener: str, security: Security) -> KafkaTransport:
    """A transport to one of the broker's listeners."""
    return KafkaTransport(f"kafka://{secured.cluster.address(listener)}", security=security)


def login(secured: Secured, listener: str, mechanism: str, user: str = "admin") -> KafkaTransport:
    """A transport of a user."""
    bearer = mechanism == "OAUTHBEARER"
    return transport(
        secured,
        listener,
        Security(
            encrypted=listener == "SASL_SSL",
            cafile=str(secured.certificates.authority) if listener == "SASL_SSL" else None,
            mechanism=mechanism,
            username=None if bearer else user,
            password=None if bearer else PASSWORDS[user],
            token=(lambda: unsecured_token(user)) if bearer else None,
        ),
    )


async def written(opened: KafkaTransport) -> None:
    """See that records can be written and read."""
    name = unique("topic")
    tp = TopicPartition(name, 0)
    async with opened:
        await opened.create_topics([TopicSpec(name=name, partitions=1)])
        assert await opened.append({tp: [rec("k")]}) == {tp: 0}
        (fetched,) = await opened.reader().fetch({tp: 0}, max_bytes=1_000, max_wait_s=10)
        assert fetched.next_offset == 1


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("listener", ["SASL_PLAINTEXT", "SASL_SSL"])
async def test_a_login(secured_kafka: Secured, listener: str, mechanism: str) -> None:
    """Every mechanism, encrypted and in the clear."""
    await written(login(secured_kafka, listener, mechanism))


async def test_a_token_that_is_waited_for(secured_kafka: Secured) -> None:
    """The function that gives the token may be async."""

    async def token() -> str:
        return unsecured_token("admin")

    security = Security(mechanism="OAUTHBEARER", token=token)
    await written(transport(secured_kafka, "SASL_PLAINTEXT", security))


async def test_tls_and_a_certificate_of_our_own(secured_kafka: Secured) -> None:
    """The broker is checked, and we are where it asks for that."""
    authority = str(secured_kafka.certificates.authority)
    own = str(secured_kafka.certificates.client)
    await written(transport(secured_kafka, "SSL", Security(encrypted=True, cafile=authority)))
    async with transport(
        secured_kafka, "MTLS", Security(encrypted=True, cafile=authority, certfile=own)
    ) as opened:
        assert await opened.groups() == []


SETTINGS = [
    # listener, settings of an app, in which AUTHORITY and CLIENT are files
    ("SSL", {"ssl_cafile": "AUTHORITY"}),
    ("MTLS", {"ssl_cafile": "AUTHORITY", "ssl_certfile": "CLIENT"}),
    ("SASL_SSL", {"ssl_cafile": "AUTHORITY", "sasl_mechanism": "SCRAM-SHA-256", **ADMIN}),
    ("SASL_PLAINTEXT", {"sasl_mechanism": "PLAIN", **ADMIN}),
]


@pytest.mark.parametrize("by", ["settings", "environment"])
@pytest.mark.parametrize(("listener", "given"), SETTINGS, ids=lambda one: str(one)[:8])
async def test_an_app_s_settings(
    secured_kafka: Secured,
    listener: str,
    given: dict[str, str],
    by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They reach the brokers, whether the program or the environment has them; no text of them has the password."""
    files = {
        "AUTHORITY": str(secured_kafka.certificates.authority),
        "CLIENT": str(secured_kafka.certificates.client),
    }
    chosen: dict[str, Any] = {name: files.get(value, value) for name, value in given.items()}
    chosen["broker"] = f"kafka://{secured_kafka.cluster.address(listener)}"
    if by == "environment":
        for name, value in chosen.items():
            monkeypatch.setenv(f"MILLSTREAM_{name.upper()}", value)
        chosen = {}
    app = ms.App(unique("app"), **chosen)
    async with app.running(worker=False, web=False):
        runtime = app.runtime
        assert runtime is not None
        await runtime.transport.topics()
    assert PASSWORDS["admin"] not in f"{app.settings!r}{app!r}{vars(app)!r}"


async def test_an_app_s_token(secured_kafka: Secured) -> None:
    """The function that gives tokens is a setting of the program alone."""
    app = ms.App(
        unique("app"),
        broker=f"kafka://{secured_kafka.cluster.address('SASL_SSL')}",
        ssl_cafile=str(secured_kafka.certificates.authority),
        sasl_mechanism="OAUTHBEARER",
        sasl_token=lambda: unsecured_token("admin"),
    )
    async with app.running(worker=False, web=False):
        runtime = app.runtime
        assert runtime is not None
        await runtime.transport.topics()


REFUSED = [
    # listener, what we give (AUTHORITY is the right file), the error, what it says
    ("SSL", {"encrypted": True}, ConfigurationError, "not trusted.*ssl_cafile"),
    ("SSL", {}, MillstreamError, "ssl"),
    ("MTLS", {"encrypted": True, "cafile": "AUTHORITY"}, MillstreamError, "ssl_certfile"),
    ("DIRECT", {"encrypted": True, "cafile": "AUTHORITY"}, MillstreamError, "listener for SSL"),
    ("SASL_PLAINTEXT", {}, MillstreamError, "sasl_mechanism"),
    (
        "SASL_PLAINTEXT",
        {"mechanism": "PLAIN", "username": "alice", "password": "wr0ng"},
        ConfigurationError,
        "refused the login of 'alice' by PLAIN",
    ),
    (
        "SASL_PLAINTEXT",
        {"mechanism": "SCRAM-SHA-256", "username": "alice", "password": "wr0ng"},
        ConfigurationError,
        "refused the login of 'alice' by SCRAM-SHA-256",
    ),
    (
        "SASL_PLAINTEXT",
        {"mechanism": "OAUTHBEARER", "token": lambda: "wr0ng"},
        ConfigurationError,
        "refused the login by OAUTHBEARER",
    ),
    (
        "DIRECT",
        {"mechanism": "PLAIN", "username": "alice", "password": "wr0ng"},
        ConfigurationError,
        "does not take PLAIN",
    ),
]


@pytest.mark.parametrize(("listener", "given", "error", "says"), REFUSED)
async def test_a_broker_that_refuses_us(
    secured_kafka: Secured,
    listener: str,
    given: dict[str, object],
    error: type[Exception],
    says: str,
) -> None:
    """The error says at which address, and which setting to look at; never the password."""
    authority = str(secured_kafka.certificates.authority)
    fitting = {name: authority if value == "AUTHORITY" else value for name, value in given.items()}
    opened = transport(secured_kafka, listener, Security(**fitting))  # type: ignore[arg-type]
    with pytest.raises(error, match=f"(?s){says}") as caught:
        async with opened:
            pass
    assert secured_kafka.cluster.address(listener) in str(caught.value)
    assert "wr0ng" not in str(caught.value)


async def test_what_a_user_may_not_do(secured_kafka: Secured) -> None:
    """The error names what was tried, and says what to grant."""
    topic, group, name = secured_kafka.cluster.topic(), unique("group"), unique("slot")
    tp = TopicPartition(topic, 0)
    member = await member_of(secured_kafka.cluster.url, group)
    async with login(secured_kafka, "SASL_PLAINTEXT", "PLAIN", "alice") as opened:
        with pytest.raises(ConfigurationError, match=f"describe topic '{topic}'"):
            await opened.end_offsets([tp])
        with pytest.raises(ConfigurationError, match="create topic 'mine'"):
            await opened.create_topics([TopicSpec(name="mine", partitions=1)])
        with pytest.raises(ConfigurationError, match=f"group '{group}'"):
            await opened.committed(group, [tp])
        secured_kafka.allow("User:alice", ResourceType.TOPIC, topic, AclOperation.DESCRIBE)
        secured_kafka.allow("User:alice", ResourceType.TOPIC, topic, AclOperation.READ)
        with pytest.raises(ConfigurationError, match=f"write to {topic}/0"):
            await opened.append({tp: [rec("k")]})
        with pytest.raises(ConfigurationError, match="transactional id"):
            await opened.commit(member.epoch({tp: 1}, {tp: [rec("k")]}))
    secured_kafka.allow("User:alice", ResourceType.TRANSACTIONAL_ID, name)
    alice = KafkaTransport(
        f"kafka://{secured_kafka.cluster.address('SASL_PLAINTEXT')}",
        security=Security(mechanism="PLAIN", username="alice", password=PASSWORDS["alice"]),
        transactional_id=lambda: name,
    )
    async with alice:
        with pytest.raises(ConfigurationError, match=r"group"):
            await alice.commit(member.epoch({tp: 1}))
        secured_kafka.allow("User:alice", ResourceType.GROUP, group)
        with pytest.raises(ConfigurationError, match=rf"{topic}/0"):
            await alice.commit(member.epoch({tp: 1}, {tp: [rec("k")]}))
        secured_kafka.allow("User:alice", ResourceType.TOPIC, topic)
        await alice.commit(member.epoch({tp: 1}, {tp: [rec("k")]}))


async def test_nobody_at_home() -> None:
    """The error names every address that was tried."""
    with pytest.raises(LogUnavailableError) as caught:
        async with KafkaTransport("kafka://127.0.0.1:1,127.0.0.1:2"):
            pass
    assert "broker 127.0.0.1:1 cannot be reached" in str(caught.value)
    assert "broker 127.0.0.1:2 cannot be reached" in str(caught.value)
