"""Layouts of keys that are one value."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from struct import Struct
from struct import error as StructError
from typing import Any
from uuid import UUID

from millstream.serialization._key_layout import KeyLayout, after_prefix

__all__ = [
    "BoolLayout",
    "BytesLayout",
    "DatetimeLayout",
    "FloatLayout",
    "IntLayout",
    "StrLayout",
    "UuidLayout",
]

_END = b"\x01"
_ESCAPED = re.compile(rb"[\x00-\x02]")
_ESCAPE = {b"\x00": b"\x02\x02", b"\x01": b"\x02\x03", b"\x02": b"\x02\x04"}
_UNESCAPED = re.compile(rb"\x02(.)", re.DOTALL)
_UNESCAPE = {b"\x02": b"\x00", b"\x03": b"\x01", b"\x04": b"\x02"}


def _escape(data: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: _ESCAPE[found[0]], data)


def _read_escaped(data: bytes, at: int) -> tuple[bytes, int]:
    # An escaped byte is never 01: the first one is the end.
    end = data.find(_END, at)
    if end < 0:
        raise ValueError("the key has no end")
    found = data[at:end]
    if b"\x02" in found:
        try:
            found = _UNESCAPED.sub(lambda pair: _UNESCAPE[pair[1]], found)
        except KeyError as problem:
            raise ValueError("the key has an unknown escape") from problem
    return found, end + 1


class StrLayout(KeyLayout[str]):
    type_name = "str"

    def encode(self, key: str) -> bytes:
        try:
            # Nothing that is printable needs an escape.
            return key.encode() + _END if key.isprintable() else _escape(key.encode()) + _END
        except (AttributeError, TypeError):
            raise self._wrong(key) from None

    def decode(self, data: bytes) -> str:
        if data.find(_END) == len(data) - 1 >= 0 and b"\x02" not in data:
            return data[:-1].decode()
        return super().decode(data)

    def read(self, data: bytes, at: int = 0) -> tuple[str, int]:
        found, end = _read_escaped(data, at)
        return found.decode(), end

    def prefix(self, prefix: Any) -> tuple[bytes, bytes | None]:
        if not isinstance(prefix, str):
            raise self._wrong(prefix)
        start = _escape(prefix.encode())
        return start or _END, after_prefix(start)

    def parse(self, text: str) -> str:
        return text

    def to_json(self, key: str) -> str:
        return key

    def from_json(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self._not(value, "text")
        return value


class BytesLayout(KeyLayout[bytes]):
    type_name = "bytes"

    def encode(self, key: bytes) -> bytes:
        if not isinstance(key, bytes):
            raise self._wrong(key)
        return _escape(key) + _END

    def read(self, data: bytes, at: int = 0) -> tuple[bytes, int]:
        return _read_escaped(data, at)

    def prefix(self, prefix: Any) -> tuple[bytes, bytes | None]:
        if not isinstance(prefix, bytes):
            raise self._wrong(prefix)
        start = _escape(prefix)
        return start or _END, after_prefix(start)

    def parse(self, text: str) -> bytes:
        if not text.startswith("0x"):
            return text.encode()
        try:
            return bytes.fromhex(text[2:])
        except ValueError as problem:
            raise self._not(text, "text, or 0x and hex digits") from problem

    def to_json(self, key: bytes) -> str:
        try:
            text = key.decode()
        except UnicodeDecodeError:
            return f"0x{key.hex()}"
        return text if text.isprintable() and not text.startswith("0x") else f"0x{key.hex()}"

    def from_json(self, value: Any) -> bytes:
        if not isinstance(value, str):
            raise self._not(value, "text, or 0x and hex digits")
        return self.parse(value)


_BIAS = 1 << 63
_NUMBER = Struct(">BQ")
_pack, _unpack, _NUMBER_BYTES = _NUMBER.pack, _NUMBER.unpack_from, _NUMBER.size
_BELOW, _HEAD, _ABOVE = 0x7F, 0x80, 0x81


def _read_number(data: bytes, at: int) -> int:
    if len(data) < at + _NUMBER_BYTES:
        raise ValueError("the key is cut off")
    head, number = _unpack(data, at)
    if head != _HEAD:
        raise ValueError(f"the key has an unknown first byte, 0x{head:02x}")
    return int(number)


class IntLayout(KeyLayout[int]):
    type_name = "int"

    def encode(self, key: int) -> bytes:
        if type(key) is not int:
            key = self._plain(key)
        try:
            return _pack(_HEAD, key + _BIAS)
        except StructError:
            return _encode_large(key)

    def _plain(self, key: object) -> int:
        if isinstance(key, bool) or not isinstance(key, int):
            raise self._wrong(key)
        return int(key)

    def decode(self, data: bytes) -> int:
        if len(data) == _NUMBER_BYTES and data[0] == _HEAD:
            return int.from_bytes(data[1:], "big") - _BIAS
        return super().decode(data)

    def read(self, data: bytes, at: int = 0) -> tuple[int, int]:
        head = data[at : at + 1]
        if head == b"\x81" or head == b"\x7f":
            return _read_large(data, at)
        return _read_number(data, at) - _BIAS, at + _NUMBER_BYTES

    def parse(self, text: str) -> int:
        try:
            return int(text)
        except ValueError as problem:
            raise self._not(text, "digits") from problem

    def to_json(self, key: int) -> int:
        return self._plain(key)

    def from_json(self, value: Any) -> int:
        if type(value) is not int:
            raise self._not(value, "a whole number")
        return value


def _encode_large(key: int) -> bytes:
    magnitude = abs(key)
    size = (magnitude.bit_length() + 7) // 8
    body = size.to_bytes(4, "big") + magnitude.to_bytes(size, "big")
    return bytes((_ABOVE,)) + body if key > 0 else bytes((_BELOW,)) + _inverted(body)


def _read_large(data: bytes, at: int) -> tuple[int, int]:
    negative = data[at] == _BELOW
    count = data[at + 1 : at + 5]
    size = int.from_bytes(_inverted(count) if negative else count, "big")
    end = at + 5 + size
    if len(data) < end or len(count) < 4:
        raise ValueError("the key is cut off")
    body = data[at + 5 : end]
    if negative:
        return -int.from_bytes(_inverted(body), "big"), end
    return int.from_bytes(body, "big"), end


def _inverted(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)


_DOUBLE, _WORD = Struct(">d"), Struct(">Q")
_SIGN, _MASK = 1 << 63, (1 << 64) - 1


class FloatLayout(KeyLayout[float]):
    """Takes an int too where a float is the same number, as Python does."""

    type_name = "float"

    def encode(self, key: float) -> bytes:
        key = self._plain(key)
        (bits,) = _WORD.unpack(_DOUBLE.pack(key))
        return _pack(_HEAD, bits ^ _MASK if bits & _SIGN else bits | _SIGN)

    def _plain(self, key: object) -> float:
        if isinstance(key, bool) or not isinstance(key, (float, int)):
            raise self._wrong(key)
        try:
            number = float(key) + 0.0  # -0.0 becomes 0.0
        except OverflowError:
            number = float("nan")
        if number != key:
            raise ValueError(f"{key!r} cannot be a key of type float: it equals no float")
        return number

    def read(self, data: bytes, at: int = 0) -> tuple[float, int]:
        bits = _read_number(data, at)
        bits = bits ^ _SIGN if bits & _SIGN else bits ^ _MASK
        return float(_DOUBLE.unpack(_WORD.pack(bits))[0]), at + _NUMBER_BYTES

    def parse(self, text: str) -> float:
        try:
            return self._plain(float(text))
        except ValueError as problem:
            raise self._not(text, "a decimal number") from problem

    def to_json(self, key: float) -> float | str:
        number = self._plain(key)
        return str(number) if number in (float("inf"), float("-inf")) else number

    def from_json(self, value: Any) -> float:
        if value in ("inf", "-inf"):
            return float(value)
        try:
            return self._plain(value)
        except (TypeError, ValueError) as problem:
            raise self._not(value, "a number") from problem


class BoolLayout(KeyLayout[bool]):
    type_name = "bool"

    def encode(self, key: bool) -> bytes:
        if key is True:
            return b"\x02"
        if key is False:
            return b"\x01"
        raise self._wrong(key)

    def read(self, data: bytes, at: int = 0) -> tuple[bool, int]:
        byte = data[at : at + 1]
        if byte not in (b"\x01", b"\x02"):
            raise ValueError("the key is not 01 or 02")
        return byte == b"\x02", at + 1

    def parse(self, text: str) -> bool:
        if text not in ("true", "false"):
            raise self._not(text, "true or false")
        return text == "true"

    def format(self, key: bool) -> str:
        return "true" if self.to_json(key) else "false"

    def to_json(self, key: bool) -> bool:
        if not isinstance(key, bool):
            raise self._wrong(key)
        return key

    def from_json(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._not(value, "true or false")
        return value


class UuidLayout(KeyLayout[UUID]):
    type_name = "UUID"

    def encode(self, key: UUID) -> bytes:
        if not isinstance(key, UUID):
            raise self._wrong(key)
        return b"\x80" + key.bytes

    def read(self, data: bytes, at: int = 0) -> tuple[UUID, int]:
        if len(data) < at + 17 or data[at] != _HEAD:
            raise ValueError("the key is not 80 and the 16 bytes of a UUID")
        return UUID(bytes=data[at + 1 : at + 17]), at + 17

    def parse(self, text: str) -> UUID:
        try:
            return UUID(text)
        except ValueError as problem:
            raise self._not(text, "32 hex digits") from problem

    def to_json(self, key: UUID) -> str:
        if not isinstance(key, UUID):
            raise self._wrong(key)
        return str(key)

    def from_json(self, value: Any) -> UUID:
        if not isinstance(value, str):
            raise self._not(value, "32 hex digits")
        return self.parse(value)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class DatetimeLayout(KeyLayout[datetime]):
    type_name = "datetime"

    def encode(self, key: datetime) -> bytes:
        return _pack(_HEAD, (self._aware(key) - _EPOCH) // _MICROSECOND + _BIAS)

    def _aware(self, key: object) -> datetime:
        if not isinstance(key, datetime):
            raise self._wrong(key)
        if key.utcoffset() is None:
            raise ValueError(
                f"{key!r} has no time zone: write for example datetime(..., tzinfo=UTC)"
            )
        return key

    def read(self, data: bytes, at: int = 0) -> tuple[datetime, int]:
        microseconds = _read_number(data, at) - _BIAS
        try:
            return _EPOCH + timedelta(microseconds=microseconds), at + _NUMBER_BYTES
        except OverflowError as problem:
            raise ValueError(f"{microseconds} microseconds are no datetime") from problem

    def parse(self, text: str) -> datetime:
        try:
            return self._aware(datetime.fromisoformat(text)).astimezone(UTC)
        except (ValueError, OverflowError) as problem:
            raise self._not(text, "ISO 8601 with a zone, 2024-05-01T12:00:00Z") from problem

    def to_json(self, key: datetime) -> str:
        moment = self.decode(
            self.encode(key)
        )  # astimezone() would fail at both ends of the calendar
        return f"{moment.replace(tzinfo=None).isoformat()}Z"

    def from_json(self, value: Any) -> datetime:
        if not isinstance(value, str):
            raise self._not(value, "ISO 8601 with a zone, 2024-05-01T12:00:00Z")
        return self.parse(value)
