"""Codecs that read stored values of an older form as well, by way of a function of the program's."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import msgspec

from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.serialization.base import Codec

__all__ = ["UpgradingCodec", "upgrading"]

_PLAIN: dict[str, Callable[[bytes], Any]] = {
    "json": msgspec.json.decode,
    "msgpack": msgspec.msgpack.decode,
}


class UpgradingCodec:
    """A codec whose ``loads`` converts what the one below it does not read; see `upgrading`."""

    def __init__(self, codec: Codec[Any], upgrade: Callable[[Any], Any]) -> None:
        self.codec = codec
        self.upgrade = upgrade
        self.name = codec.name
        self.type_name = codec.type_name
        self.dumps = codec.dumps
        self._plain = _PLAIN.get(codec.name, bytes)

    def loads(self, data: bytes) -> Any:
        """Bytes to a value, which is of the codec's type in any case.

        Raises:
            ValueError: it is of an older form, and cannot be converted.
        """
        try:
            return self.codec.loads(data)
        except (ValueError, TypeError) as exc:
            problem = exc
        try:
            # there and back: what upgrade= returns may be no value of the type either
            return self.codec.loads(self.codec.dumps(self.upgrade(self._plain(data))))
        except Exception as exc:
            raise ValueError(
                f"{problem}; and upgrade= did not convert it ({type(exc).__name__}: {exc})"
            ) from exc


def upgrading(codec: Codec[Any], upgrade: Callable[[Any], Any], what: str) -> UpgradingCodec:
    """The codec, which hands values that it does not read to ``upgrade``.

    That gets them as plain types, where the codec is ``json`` or ``msgpack``, and else as the bytes that they are.

    Args:
        codec: one with a conversion of its own loses it.
        what: names in errors for whose values it is.

    Raises:
        ConfigurationError: ``upgrade`` is no function, or an async one.
    """
    if not callable(upgrade):
        raise ConfigurationError(
            f"{what}: upgrade={upgrade!r} is no function of a stored value of an older form"
        )
    if inspect.iscoroutinefunction(upgrade):
        raise ConfigurationError(
            f"{what}: upgrade= may not be async: values are read where nobody can wait"
        )
    return UpgradingCodec(codec.codec if isinstance(codec, UpgradingCodec) else codec, upgrade)
