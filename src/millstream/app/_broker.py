"""The log behind a broker URL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from millstream.errors import SettingError

if TYPE_CHECKING:
    from millstream.app._settings import Settings
    from millstream.app._slot import Slot
    from millstream.clock import Clock
    from millstream.transports.base import Transport

__all__ = ["local_path", "open_transport"]


def open_transport(
    broker: str,
    clock: Clock,
    settings: Settings | None = None,
    *,
    app: str = "millstream",
    slot: Slot | None = None,
) -> Transport:
    """The log behind a broker URL.

    Args:
        settings: those that say how brokers are logged in at.
        app: whose it is, by its id, as brokers are told.
        slot: a worker's, which may be taken later; None for those who only send, ask and look.

    Raises:
        SettingError: the URL is of no known kind, or it needs what is not installed.
    """
    if broker.startswith("local://"):
        from millstream.transports.local import LocalTransport

        return LocalTransport(local_path(broker), clock=clock)
    if broker.startswith("memory://"):
        from millstream.transports.memory import MemoryTransport

        return MemoryTransport(clock=clock)
    if broker.startswith("kafka://"):
        return _kafka(broker, settings, app, slot)
    raise SettingError(
        "broker",
        f"{broker!r} begins with none of local://, kafka://, memory://: write for example"
        f" local://shop.db, or kafka://host:9092",
    )


def _kafka(
    broker: str,
    settings: Settings | None,
    app: str,
    slot: Slot | None,
) -> Transport:
    try:
        from millstream.transports.kafka import KafkaTransport, Security
    except ModuleNotFoundError as exc:
        raise SettingError(
            "broker", f"{broker} needs {exc.name}: pip install 'millstream[kafka]'"
        ) from exc
    security = Security()
    if settings is not None:
        security = Security(
            encrypted=settings.ssl or bool(settings.ssl_cafile or settings.ssl_certfile),
            cafile=_text(settings.ssl_cafile),
            certfile=_text(settings.ssl_certfile),
            keyfile=_text(settings.ssl_keyfile),
            key_password=settings.ssl_password or None,
            check_hostname=settings.ssl_check_hostname,
            mechanism=settings.sasl_mechanism,
            username=settings.sasl_username or None,
            password=settings.sasl_password or None,
            token=settings.sasl_token,
        )
    if slot is None or settings is None:
        return KafkaTransport(broker, security=security, client_id=app)
    atomic = settings.processing_guarantee == "exactly_once"
    return KafkaTransport(
        broker,
        security=security,
        transactional_id=slot.transactional_id if atomic else None,
        former_id=str if atomic else slot.former_id,
        client_id=app,
        instance_id=settings.instance_id or None,
        evict_static=settings.evict_instances,
        id_file=slot.id_file,
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def local_path(broker: str) -> Path:
    """The file behind a ``local://`` URL, absolute."""
    text = broker.removeprefix("local://")
    if not text:
        raise SettingError("broker", "local:// needs a file, for example local://shop.db")
    return Path(text).expanduser().absolute()
