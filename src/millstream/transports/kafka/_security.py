"""Encryption and login; nothing of it is ever shown."""

from __future__ import annotations

import inspect
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from millstream.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["MECHANISMS", "Login", "Security"]

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")


class Login(Protocol):
    """One login: what to send next, given what the broker said; None when there is no more."""

    async def step(self, answer: bytes | None) -> bytes | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Security:
    """How a connection is encrypted and who logs in. Its text form holds neither names nor secrets.

    Args:
        encrypted: TLS; with the system's certificate authorities where ``cafile`` is None.
        cafile: certificates (PEM) of the authorities to trust.
        certfile: this client's certificate (PEM), where the broker asks for one.
        keyfile: its key, where it is not in ``certfile``.
        key_password: of the key.
        check_hostname: whether the broker's certificate has to be for its host name.
        mechanism: one of `MECHANISMS`, or None for no login.
        username, password: for PLAIN and SCRAM.
        token: gives the token for OAUTHBEARER, as text; may be async. Called for each connection.

    Raises:
        SettingError: what does not go together; names the setting.
    """

    encrypted: bool = field(default=False, repr=False)
    cafile: str | None = field(default=None, repr=False)
    certfile: str | None = field(default=None, repr=False)
    keyfile: str | None = field(default=None, repr=False)
    key_password: str | None = field(default=None, repr=False)
    check_hostname: bool = field(default=True, repr=False)
    mechanism: str | None = field(default=None, repr=False)
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: Callable[[], str | Awaitable[str]] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.keyfile and not self.certfile:
            raise SettingError(
                "ssl_keyfile", "a key needs a certificate: give ssl_certfile as well"
            )
        if self.mechanism is None:
            for name, value in (
                ("sasl_username", self.username),
                ("sasl_password", self.password),
                ("sasl_token", self.token),
            ):
                if value:
                    raise SettingError(
                        name, f"means nothing without sasl_mechanism ({', '.join(MECHANISMS)})"
                    )
            return
        if self.mechanism not in MECHANISMS:
            raise SettingError(
                "sasl_mechanism", f"{self.mechanism!r} is none of {', '.join(MECHANISMS)}"
            )
        if self.mechanism == "OAUTHBEARER":
            if self.token is None:
                raise SettingError("sasl_token", "OAUTHBEARER needs a function that gives a token")
        elif not self.username or self.password is None:
            missing = "sasl_username" if not self.username else "sasl_password"
            raise SettingError(missing, f"{self.mechanism} needs it")

    def context(self) -> ssl.SSLContext | None:
        """The TLS context, or None for connections in the clear.

        Raises:
            SettingError: a file that cannot be read, or holds something else.
        """
        if not self.encrypted:
            return None
        try:
            context = ssl.create_default_context(cafile=self.cafile)
        except (OSError, ssl.SSLError) as exc:
            raise SettingError("ssl_cafile", f"{self.cafile}: {exc}") from exc
        if not self.check_hostname:
            context.check_hostname = False
        if self.certfile:
            try:
                # without a password OpenSSL would ask for one on the terminal
                context.load_cert_chain(self.certfile, self.keyfile, self.key_password or "")
            except (OSError, ssl.SSLError) as exc:
                files = self.certfile + (f", {self.keyfile}" if self.keyfile else "")
                raise SettingError("ssl_certfile", f"{files}: {exc}") from exc
        return context

    def login(self) -> Login:
        """A login by `mechanism`, for one connection."""
        if self.mechanism == "PLAIN":
            return _Once(f"\0{self.username}\0{self.password}")
        if self.mechanism == "OAUTHBEARER":
            assert self.token is not None
            return _Bearer(self.token)
        return _Scram(self)


class _Once:
    """A login of one message."""

    def __init__(self, message: str) -> None:
        self._message: bytes | None = message.encode()

    async def step(self, answer: bytes | None) -> bytes | None:
        message, self._message = self._message, None
        return message


class _Bearer:
    """RFC 7628: a token. Where it is refused, the broker wants one more message before it says why."""

    def __init__(self, token: Callable[[], str | Awaitable[str]]) -> None:
        self._token = token
        self._sent = False

    async def step(self, answer: bytes | None) -> bytes | None:
        if self._sent:
            return b"\x01" if answer else None
        token = self._token()
        if inspect.isawaitable(token):
            token = await token
        self._sent = True
        return f"n,,\x01auth=Bearer {token}\x01\x01".encode()


class _Scram:
    """RFC 5802, by aiokafka."""

    def __init__(self, security: Security) -> None:
        import asyncio

        from aiokafka.conn import ScramAuthenticator

        self._steps: Any = ScramAuthenticator(
            loop=asyncio.get_running_loop(),
            sasl_plain_username=security.username,
            sasl_plain_password=security.password,
            sasl_mechanism=security.mechanism,
        )

    async def step(self, answer: bytes | None) -> bytes | None:
        found = await self._steps.step(answer)
        return None if found is None else found[0]
