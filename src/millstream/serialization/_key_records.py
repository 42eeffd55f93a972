"""Layouts of keys that are made of others: tuples, records with named fields, enums."""

from __future__ import annotations

import json
from operator import call
from typing import TYPE_CHECKING, Any

from millstream.serialization._key_layout import KeyLayout, after_prefix

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["EnumLayout", "RecordLayout", "TupleLayout"]


class TupleLayout(KeyLayout[Any]):
    """One encoding after the other."""

    def __init__(self, elements: Sequence[KeyLayout[Any]]) -> None:
        self.type_name = f"tuple[{', '.join(element.type_name for element in elements)}]"
        self._elements = tuple(elements)
        self._encoders = tuple(element.encode for element in elements)
        self._count = len(elements)

    def encode(self, key: Any) -> bytes:
        if not isinstance(key, tuple) or len(key) != self._count:
            raise self._wrong(key)
        return b"".join(map(call, self._encoders, key))

    def read(self, data: bytes, at: int = 0) -> tuple[Any, int]:
        parts = []
        for element in self._elements:
            part, at = element.read(data, at)
            parts.append(part)
        return tuple(parts), at

    def prefix(self, prefix: Any) -> tuple[bytes, bytes | None]:
        parts = prefix if isinstance(prefix, (tuple, list)) else (prefix,)
        if len(parts) > self._count:
            raise self._wrong(prefix)
        start = b"".join(
            [encode(part) for encode, part in zip(self._encoders, parts, strict=False)]
        )
        return start or b"\x01", after_prefix(start)

    def parse(self, text: str) -> Any:
        try:
            value = json.loads(text)
        except ValueError as problem:
            raise self._not(text, f"a JSON array, {self._example()}") from problem
        return self.from_json(value)

    def format(self, key: Any) -> str:
        return json.dumps(self.to_json(key), ensure_ascii=False, separators=(",", ":"))

    def to_json(self, key: Any) -> Any:
        if not isinstance(key, tuple) or len(key) != self._count:
            raise self._wrong(key)
        return [part.to_json(value) for part, value in zip(self._elements, key, strict=True)]

    def from_json(self, value: Any) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != self._count:
            raise self._not(value, f"a JSON array, {self._example()}")
        return tuple(
            part.from_json(found) for part, found in zip(self._elements, value, strict=True)
        )

    def _wrong(self, key: object) -> TypeError:
        of = f" of {len(key)}" if isinstance(key, tuple) else ""
        return TypeError(f"expected a key of type {self.type_name}, got {type(key).__name__}{of}")

    def _example(self) -> str:
        return f"[{', '.join(element.type_name for element in self._elements)}]"


class RecordLayout(KeyLayout[Any]):
    """The fields of a record, as a tuple; an object in JSON.

    Args:
        kind: the record's class.
        fields: the fields' layouts, in order.
        build: makes a record of the fields' values by name.
    """

    def __init__(
        self, kind: type, fields: Mapping[str, KeyLayout[Any]], build: Callable[..., Any]
    ) -> None:
        self.type_name = kind.__name__
        self._kind = kind
        self._fields = dict(fields)
        self._build = build
        self._tuple = TupleLayout(list(fields.values()))

    def encode(self, key: Any) -> bytes:
        return self._tuple.encode(self._values(key))

    def _values(self, key: Any) -> tuple[Any, ...]:
        if type(key) is not self._kind:  # a subclass would lose what it adds
            raise self._wrong(key)
        return tuple([getattr(key, name) for name in self._fields])

    def _record(self, values: Sequence[Any]) -> Any:
        return self._build(**dict(zip(self._fields, values, strict=True)))

    def read(self, data: bytes, at: int = 0) -> tuple[Any, int]:
        values, end = self._tuple.read(data, at)
        return self._record(values), end

    def prefix(self, prefix: Any) -> tuple[bytes, bytes | None]:
        whole = isinstance(prefix, self._kind)
        return self._tuple.prefix(self._values(prefix) if whole else prefix)

    def parse(self, text: str) -> Any:
        try:
            value = json.loads(text)
        except ValueError as problem:
            raise self._not(text, self._example()) from problem
        return self.from_json(value)

    def format(self, key: Any) -> str:
        return json.dumps(self.to_json(key), ensure_ascii=False, separators=(",", ":"))

    def to_json(self, key: Any) -> Any:
        values = self._tuple.to_json(self._values(key))
        return dict(zip(self._fields, values, strict=True))

    def from_json(self, value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() != self._fields.keys():
                raise self._not(value, self._example())
            value = [value[name] for name in self._fields]
        elif not isinstance(value, list) or len(value) != len(self._fields):
            raise self._not(value, self._example())
        return self._record(self._tuple.from_json(value))

    def _example(self) -> str:
        return f"a JSON object with the fields {', '.join(self._fields)}, or an array of them"


class EnumLayout(KeyLayout[Any]):
    """The values of an enum."""

    def __init__(self, kind: type[enum.Enum], values: KeyLayout[Any]) -> None:
        self.type_name = kind.__name__
        self._kind = kind
        self._values = values
        self._encoded = {member: values.encode(member.value) for member in kind}
        self._texts = {values.format(member.value): member for member in kind}

    def encode(self, key: Any) -> bytes:
        if not isinstance(key, self._kind):
            raise self._wrong(key)
        return self._encoded[key]

    def read(self, data: bytes, at: int = 0) -> tuple[Any, int]:
        value, end = self._values.read(data, at)
        return self._kind(value), end

    def parse(self, text: str) -> Any:
        if text not in self._texts:
            raise self._not(text, f"one of {', '.join(self._texts)}")
        return self._texts[text]

    def to_json(self, key: Any) -> Any:
        if not isinstance(key, self._kind):
            raise self._wrong(key)
        return key.value

    def from_json(self, value: Any) -> Any:
        return self.parse(str(value) if isinstance(value, (str, int)) else "")
