"""Keys and values between the text that people write and read, and the bytes of a topic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from millstream.cli._output import shown_bytes
from millstream.errors import ConfigurationError, DecodeError

if TYPE_CHECKING:
    from millstream.agents import Topic
    from millstream.app import App
    from millstream.serialization.base import Codec

__all__ = [
    "any_topic",
    "decode_shown",
    "find_topic",
    "key_from_text",
    "shown_key",
    "value_from_text",
]

_TEXT = ("str", "raw")


def find_topic(app: App, name: str) -> Topic[Any] | None:
    """The declared topic ``name``, or that of the agent ``@name``; None where the app declares none.

    Raises:
        ConfigurationError: there is no such agent, or it has no topic of its own.
    """
    if not name.startswith("@"):
        return app.topics.find(name)
    agent = app.agents.get(name[1:])
    if agent is None:
        has = ", ".join(f"@{other.name}" for other in app.agents.values() if not other.internal)
        raise ConfigurationError(f"there is no agent {name[1:]!r}: the app has {has or 'none'}")
    if agent.topic is None:
        read = ", ".join(app.topology.agents[agent.name].sources)
        raise ConfigurationError(
            f"agent {agent.name!r} reads several topics or a derived stream ({read}): name a topic"
        )
    return agent.topic


def any_topic(app: App, name: str) -> Topic[Any]:
    """A topic that the app does not declare: JSON of any kind, keyed by text."""
    return app.topic(name)


def value_from_text(topic: Topic[Any], text: str) -> Any:
    """A value as people write it: JSON, or the text itself where the codec is ``str`` or ``raw``.

    ``null`` is None, which deletes the key where the topic is read as a table.

    Raises:
        DecodeError: not a value of the topic's type; names the field.
    """
    codec = topic.value_codec
    if codec.name in _TEXT:
        return codec.loads(text.encode())
    if text.strip() == "null":
        return None
    try:
        return _loads(codec, text)
    except (ValueError, TypeError) as exc:
        raise DecodeError(
            f"topic {topic.name!r}",
            part="value",
            type_name=codec.type_name,
            reason=_reason(exc, text),
        ) from exc


def _loads(codec: Codec[Any], text: str) -> Any:
    if codec.name == "json":
        return codec.loads(text.encode())
    plain = msgspec.json.decode(text)
    if codec.name == "msgpack":
        return codec.loads(msgspec.msgpack.encode(plain))
    return codec.loads(codec.dumps(plain))


def _reason(error: Exception, text: str) -> str:
    if isinstance(error, msgspec.DecodeError) and not isinstance(error, msgspec.ValidationError):
        shown = text if len(text) <= 60 else f"{text[:57]}…"
        return f"{shown!r} is not JSON: {error}"
    return str(error)


def key_from_text(topic: Topic[Any], text: str) -> Any:
    """A key as people write it: text, or JSON where keys are neither str nor bytes.

    Raises:
        DecodeError: not a key of the topic's type.
    """
    codec = topic.key_codec
    try:
        return codec.loads(text.encode())
    except (ValueError, TypeError) as exc:
        raise DecodeError(
            f"topic {topic.name!r}", part="key", type_name=codec.type_name, reason=str(exc)
        ) from exc


def shown_key(topic: Topic[Any], key: Any) -> str:
    """A key as `key_from_text` reads it."""
    return shown_bytes(topic.key_codec.dumps(key))


def decode_shown(codec: Codec[Any] | None, data: bytes | None) -> Any:
    """What to show for bytes: text, or `msgspec.Raw` JSON; None for none."""
    if data is None:
        return None
    if codec is not None and codec.name not in ("json", *_TEXT, "key"):
        try:
            return msgspec.Raw(msgspec.json.encode(codec.loads(data), enc_hook=str))
        except (ValueError, TypeError):
            return shown_bytes(data)
    if codec is None or codec.name == "json":
        try:
            msgspec.json.decode(data)
        except (ValueError, TypeError):
            return shown_bytes(data)
        return msgspec.Raw(data)
    return shown_bytes(data)
