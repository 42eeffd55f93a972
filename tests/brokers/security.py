"""A broker with TLS, SASL and access rules, and what a client needs to get in."""

from __future__ import annotations

import base64
import contextlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from tests.brokers.certificates import Certificates
from tests.brokers.cluster import Cluster
from tests.brokers.kafka import DEADLINE_S, Kafka
from tests.brokers.keeper import keep, let_go
from tests.brokers.listeners import Listener

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["MECHANISMS", "PASSWORDS", "Secured", "secured", "unsecured_token"]

MECHANISMS = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
PASSWORDS = {"admin": "admin-secret", "alice": "alice-secret", "bob": "bob-secret"}
"""The users. ``admin`` may do everything, the others what a test allows."""

TOKEN_S = 3_600
_MODULES = {
    "plain": "plain.PlainLoginModule required "
    + " ".join(f'user_{user}="{password}"' for user, password in PASSWORDS.items()),
    "scram-sha-256": "scram.ScramLoginModule required",
    "scram-sha-512": "scram.ScramLoginModule required",
    "oauthbearer": "oauthbearer.OAuthBearerLoginModule required "
    'unsecuredLoginStringClaim_sub="broker"',
}


@dataclass(frozen=True, slots=True)
class Secured:
    """One broker with the listeners SSL, MTLS (a client's certificate is required), SASL_PLAINTEXT and SASL_SSL.

    Each of the last two takes every mechanism of MECHANISMS, with OAUTHBEARER's tokens unsecured. Nobody may do what
    no rule allows, but for ``admin`` and whoever comes through DIRECT or SSL (``User:ANONYMOUS``).
    """

    cluster: Cluster
    certificates: Certificates

    def client(
        self, listener: str, *, user: str = "admin", mechanism: str = "", password: str = ""
    ) -> Kafka:
        """Return the broker as a client of librdkafka sees it through a listener.

        Args:
            listener: SSL, MTLS, SASL_PLAINTEXT or SASL_SSL.
            user: Who, through the last two.
            mechanism: One of MECHANISMS, through the last two.
            password: The user's own, if not another.
        """
        settings: dict[str, Any] = {
            "security.protocol": "SSL" if listener == "MTLS" else listener,
        }
        if "SASL" not in listener or listener == "SASL_SSL":
            settings["ssl.ca.location"] = str(self.certificates.authority)
        if listener == "MTLS":
            client = str(self.certificates.client)
            settings |= {"ssl.certificate.location": client, "ssl.key.location": client}
        if mechanism:
            settings["sasl.mechanisms"] = mechanism
        if mechanism == "OAUTHBEARER":
            token = unsecured_token(user)
            settings["oauth_cb"] = lambda _: (token, time.time() + TOKEN_S)
        elif mechanism:
            own = password or PASSWORDS[user]
            settings |= {"sasl.username": user, "sasl.password": own}
        return Kafka(self.cluster.address(listener), settings)

    def allow(
        self,
        principal: str,
        kind: ResourceType,
        name: str,
        operation: AclOperation = AclOperation.ALL,
    ) -> None:
        """Add an access rule; it is in force when this returns.

        Args:
            principal: Such as ``User:alice`` or ``User:CN=client``.
            kind: What the name is of: a topic, a group, a transactional id.
            name: A prefix.
            operation: What may be done.
        """
        prefixed = ResourcePatternType.PREFIXED
        allow = AclPermissionType.ALLOW
        rule = AclBinding(kind, name, prefixed, principal, "*", operation, allow)
        admin = self.cluster.admin()
        for made in admin.create_acls([rule]).values():
            made.result(DEADLINE_S)
        any_one = AclBindingFilter(kind, name, prefixed, principal, "*", operation, allow)
        patience = time.monotonic() + DEADLINE_S
        while not admin.describe_acls(any_one).result(DEADLINE_S):
            assert time.monotonic() < patience, "the rule was added, and the broker has not heard"
            time.sleep(0.01)


@contextlib.contextmanager
def secured(properties: Mapping[str, object] | None = None) -> Iterator[Secured]:
    """Start a broker with every kind of security.

    Args:
        properties: Settings of the broker, such as ``connections.max.reauth.ms``.
    """
    with tempfile.TemporaryDirectory(prefix="millstream-certificates-") as name:
        keep(folder=Path(name))
        certificates = Certificates.made(Path(name))
        more = {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:admin",
            **(properties or {}),
        }
        listeners = _listeners(certificates)
        with Cluster(listeners=listeners, properties=more, scram=PASSWORDS) as cluster:
            yield Secured(cluster, certificates)
        let_go(Path(name))


def unsecured_token(principal: str, seconds: float = TOKEN_S) -> str:
    """Return a token for OAUTHBEARER that nobody has signed, which Kafka takes in tests.

    Args:
        principal: Who.
        seconds: How long it is good for.
    """
    now = time.time()
    claims = {"sub": principal, "iat": now - 1, "exp": now + seconds}
    return ".".join([_encoded({"alg": "none"}), _encoded(claims), ""])


def _encoded(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _listeners(certificates: Certificates) -> list[Listener]:
    tls = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": certificates.broker,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": certificates.authority,
    }
    sasl = {"sasl.enabled.mechanisms": ",".join(MECHANISMS)} | {
        f"{mechanism}.sasl.jaas.config": f"org.apache.kafka.common.security.{module};"
        for mechanism, module in _MODULES.items()
    }
    return [
        Listener(name="SSL", protocol="SSL", properties=tls),
        Listener(name="MTLS", protocol="SSL", properties={**tls, "ssl.client.auth": "required"}),
        Listener(name="SASL_PLAINTEXT", protocol="SASL_PLAINTEXT", properties=sasl),
        Listener(name="SASL_SSL", protocol="SASL_SSL", properties={**tls, **sasl}),
    ]
