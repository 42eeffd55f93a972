"""One connection to one broker: frames, versions, login.

Messages are kio's classes, which are made from Kafka's own schemas, one class for each version of each
request. We send the version that brokers from Kafka 2.8 to 4.x understand, and a newer one where a feature
needs it; what a broker speaks it says when the connection begins (ApiVersions).

A broker answers the requests of one connection one after the other, in their order. A request whose answer
does not come in time closes the connection: what was sent behind it would wait as well.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import ssl
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, TypeVar

from kio.schema.api_versions.v3 import ApiVersionsRequest, ApiVersionsResponse
from kio.schema.sasl_authenticate.v1 import SaslAuthenticateRequest, SaslAuthenticateResponse
from kio.schema.sasl_handshake.v1 import SaslHandshakeRequest, SaslHandshakeResponse
from kio.serial import entity_reader, entity_writer
from kio.static.primitive import i32

from millstream.errors import ConfigurationError, LogUnavailableError
from millstream.transports.kafka._errors import AnswerLostError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kio.static.protocol import Payload

    from millstream.transports.kafka._address import Address
    from millstream.transports.kafka._security import Security

__all__ = ["Connection"]

R = TypeVar("R", bound="Payload")

CONNECT_TIMEOUT_S = 10.0
"""For the socket, TLS, versions and login together."""
SCRATCH_BYTES = 1 << 16
FRAME_BYTES_MAX = 256 << 20
"""Less than what the beginning of a TLS alert or of a line of HTTP would be as a length."""
_HINTS = {
    False: " Does this listener want encryption (ssl)?",
    True: " Is this a listener for SSL, and does it want a certificate of yours (ssl_certfile)?",
}
UNSUPPORTED_VERSION = b"\0\x23"
"""The error code, in the answer's oldest version, of a broker that does not know the asked one."""
SESSION_SHARE = 0.8
"""How much of a login's lifetime a connection is used for (KIP-368)."""


class Connection(asyncio.BufferedProtocol):
    """An open connection. Made by `open`; of one event loop."""

    def __init__(self, address: Address, client_id: str) -> None:
        self.address = address
        self.versions: Mapping[int, tuple[int, int]] = {}
        """Lowest and highest version of each API that the broker speaks."""
        self.features: Mapping[str, int] = {}
        """The cluster's finalized features with their levels: ``transaction.version``."""
        self._client_id = client_id
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[type[Any], asyncio.Future[Any]]] = {}
        self._scratch = bytearray(SCRATCH_BYTES)
        self._filled = 0
        self._frame: bytearray | None = None
        self._frame_filled = 0
        self._over: Exception | None = None
        """Why it is closed."""
        self._expires = float("inf")

    @classmethod
    async def open(
        cls, address: Address, security: Security, *, client_id: str, context: ssl.SSLContext | None
    ) -> Connection:
        """Connect, learn what the broker speaks, and log in.

        Raises:
            LogUnavailableError: nobody answers there.
            ConfigurationError: it answers, and cannot be used: too old, another protocol, a login that
                it refuses.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, connection = await loop.create_connection(
                    lambda: cls(address, client_id), address.host, address.port, ssl=context
                )
                try:
                    await connection._greet()
                    if security.mechanism is not None:
                        await connection._log_in(security)
                except BaseException:
                    connection.close()
                    raise
        except TimeoutError as exc:
            raise LogUnavailableError(
                f"broker {address} did not answer within {CONNECT_TIMEOUT_S:g} s"
            ) from exc
        except ssl.SSLCertVerificationError as exc:
            raise ConfigurationError(
                f"broker {address}: its certificate is not trusted: {exc.verify_message}."
                f" Give the authority's certificate as ssl_cafile."
            ) from exc
        except ssl.SSLError as exc:
            raise ConfigurationError(
                f"broker {address}: no encrypted connection: {exc}.{_HINTS[True]}"
            ) from exc
        except ConnectionRefusedError as exc:
            raise LogUnavailableError(f"broker {address} cannot be reached: {exc}") from exc
        except OSError as exc:
            hint = _HINTS[True] if context is not None else ""
            raise LogUnavailableError(
                f"broker {address} cannot be reached: {exc or type(exc).__name__}.{hint}"
            ) from exc
        except AnswerLostError as exc:
            raise LogUnavailableError(f"{exc}.{_HINTS[context is not None]}") from exc
        return connection

    @property
    def usable(self) -> bool:
        """Whether requests may be sent: it is open, and its login has not grown old."""
        return self._over is None and self._loop.time() < self._expires

    @property
    def closed(self) -> bool:
        """Whether nothing more comes of it."""
        return self._over is not None

    def supports(self, request: type[Payload]) -> bool:
        """Whether the broker speaks this version of this request."""
        low, high = self.versions.get(request.__api_key__, (0, -1))
        return low <= request.__version__ <= high

    async def send(self, request: Payload, response: type[R], *, timeout_s: float) -> R:
        """Send a request and wait for its answer. Cancelled, it stays sent, and the answer is dropped.

        Raises:
            LogUnavailableError: it was not sent.
            AnswerLostError: it was sent, and the connection ended or the time was over.
            ConfigurationError: the broker does not speak this version.
        """
        future = self._write(request, response)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            lost = AnswerLostError(
                f"broker {self.address} did not answer {_name(request)} within {timeout_s:g} s"
            )
            self.close(lost)
            raise lost from None

    def close(self, why: Exception | None = None) -> None:
        """Close at once; requests that wait for an answer get `AnswerLostError`."""
        if self._over is not None:
            return
        self._over = why or AnswerLostError(f"the connection to {self.address} was closed")
        if self._transport is not None:
            self._transport.abort()
        waiting, self._waiting = self._waiting, {}
        for _, future in waiting.values():
            if not future.done():
                known = isinstance(self._over, ConfigurationError)
                future.set_exception(self._over if known else AnswerLostError(str(self._over)))
                future.exception()  # who was to take it may be gone

    def retire(self) -> None:
        """Close once the answers that are awaited have come."""
        self._expires = 0.0
        if not self._waiting:
            self.close()

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if self._over is not None:
            transport.abort()  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        why = str(exc) if exc is not None else "it was closed at the other end"
        self.close(AnswerLostError(f"the connection to broker {self.address} ended: {why}"))

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._frame is not None:
            return memoryview(self._frame)[self._frame_filled :]
        return memoryview(self._scratch)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._frame is not None:
            self._frame_filled += nbytes
            if self._frame_filled == len(self._frame):
                frame, self._frame = self._frame, None
                self._answer(frame)
            return
        self._filled += nbytes
        at = 0
        while self._filled - at >= 4 and self._over is None:
            size = int.from_bytes(self._scratch[at : at + 4], "big", signed=True)
            if not 4 <= size <= FRAME_BYTES_MAX:
                self.close(self._not_kafka(bytes(self._scratch[at : at + 4])))
                return
            there = self._filled - at - 4
            if there < size:
                if size + 4 > SCRATCH_BYTES:  # the rest goes straight to where it is wanted
                    self._frame = bytearray(size)
                    self._frame[:there] = self._scratch[at + 4 : self._filled]
                    self._frame_filled, self._filled = there, 0
                    return
                break
            self._answer(self._scratch[at + 4 : at + 4 + size])
            at += 4 + size
        if at:
            rest = self._scratch[at : self._filled]
            self._scratch[: len(rest)] = rest
            self._filled = len(rest)

    # inside

    def _write(self, request: Payload, response: type[R]) -> asyncio.Future[R]:
        if self._over is not None or self._transport is None:
            raise LogUnavailableError(
                f"the connection to broker {self.address} is closed: {self._over}"
            )
        if self.versions and not self.supports(type(request)):
            low, high = self.versions.get(request.__api_key__, (0, -1))
            speaks = f"versions {low} to {high}" if high >= low else "none"
            raise ConfigurationError(
                f"broker {self.address} speaks {speaks} of {_name(request)}, and Millstream needs"
                f" version {request.__version__}: it works with brokers from Kafka 2.8 on"
            )
        number = next(self._numbers) & 0x7FFFFFFF
        buffer = io.BytesIO()
        buffer.write(b"\0\0\0\0")
        header: Any = request.__header_schema__
        entity_writer(header)(
            buffer,
            header(
                request_api_key=request.__api_key__,
                request_api_version=request.__version__,
                correlation_id=i32(number),
                client_id=self._client_id,
            ),
        )
        entity_writer(type(request))(buffer, request)
        size = buffer.tell() - 4
        buffer.seek(0)
        buffer.write(size.to_bytes(4, "big"))
        future: asyncio.Future[R] = self._loop.create_future()
        self._waiting[number] = (response, future)
        self._transport.write(buffer.getbuffer())
        return future

    def _answer(self, frame: bytearray) -> None:
        number = int.from_bytes(frame[:4], "big")
        response: Any
        response, future = self._waiting.pop(number, (None, None))
        if future is None:
            self.close(AnswerLostError(f"broker {self.address} answered what was not asked"))
            return
        self._take(response, future, frame)
        if self._expires == 0.0 and not self._waiting:
            self.close()

    def _take(self, response: Any, future: asyncio.Future[Any], frame: bytearray) -> None:
        if future.done():  # nobody waits for it any more
            return
        data, header = memoryview(frame).toreadonly(), response.__header_schema__
        try:
            _, size = _reader(header)(data, 0)
            value, _ = _reader(response)(data, size)
        except Exception as exc:
            future.set_exception(self._unreadable(response, frame, exc))
            return
        future.set_result(value)

    def _unreadable(self, response: type[Payload], frame: bytearray, exc: Exception) -> Exception:
        if response is ApiVersionsResponse and frame[4:6] == UNSUPPORTED_VERSION:
            return ConfigurationError(
                f"broker {self.address} is too old: Millstream works with brokers from Kafka 2.8 on"
            )
        return AnswerLostError(
            f"broker {self.address} sent a {response.__name__} that cannot be read: {exc}"
        )

    def _not_kafka(self, begin: bytes) -> Exception:
        if begin[:2] in (b"\x15\x03", b"\x16\x03"):
            return ConfigurationError(
                f"broker {self.address} speaks TLS on this port: set ssl, or use its other listener"
            )
        return AnswerLostError(f"what answers at {self.address} is no Kafka broker ({begin!r})")

    async def _greet(self) -> None:
        answer = await self.send(
            ApiVersionsRequest(
                client_software_name="millstream", client_software_version=_own_version()
            ),
            ApiVersionsResponse,
            timeout_s=CONNECT_TIMEOUT_S,
        )
        if answer.error_code:
            raise ConfigurationError(
                f"broker {self.address} does not tell what it speaks: {answer.error_code.name}"
            )
        self.versions = {key.api_key: (key.min_version, key.max_version) for key in answer.api_keys}
        self.features = {
            feature.name: feature.max_version_level for feature in answer.finalized_features
        }

    async def _log_in(self, security: Security) -> None:
        mechanism = security.mechanism or ""
        offered = await self.send(
            SaslHandshakeRequest(mechanism=mechanism),
            SaslHandshakeResponse,
            timeout_s=CONNECT_TIMEOUT_S,
        )
        if offered.error_code:
            raise ConfigurationError(
                f"broker {self.address} does not take {mechanism} here"
                f" ({offered.error_code.name}); it offers: {', '.join(offered.mechanisms) or 'nothing'}"
            )
        login, said = security.login(), None
        while True:
            try:
                message = await login.step(said)
            except (ValueError, AssertionError, KeyError) as exc:
                raise ConfigurationError(
                    f"broker {self.address} answered wrongly during the login: {exc}"
                ) from exc
            if message is None:
                return
            answer = await self.send(
                SaslAuthenticateRequest(auth_bytes=message),
                SaslAuthenticateResponse,
                timeout_s=CONNECT_TIMEOUT_S,
            )
            if answer.error_code:
                who = f" of {security.username!r}" if security.username else ""
                raise ConfigurationError(
                    f"broker {self.address} refused the login{who} by {mechanism}:"
                    f" {answer.error_message or answer.error_code.name}"
                )
            said = answer.auth_bytes
            lifetime_s = answer.session_lifetime.total_seconds()
            if lifetime_s > 0:
                self._expires = self._loop.time() + lifetime_s * SESSION_SHARE


@cache
def _reader(entity: Any) -> Any:
    return entity_reader(entity)


@cache
def _own_version() -> str:
    try:
        return version("millstream")
    except PackageNotFoundError:
        return "0"


def _name(request: Payload) -> str:
    return type(request).__name__.removesuffix("Request")
