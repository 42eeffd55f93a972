"""The contract of a codec: a value to bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["Codec", "CodecFactory"]

V = TypeVar("V")


class Codec(Protocol, Generic[V]):
    """Writes and reads values of one declared type.

    ``dumps`` and ``loads`` are attributes on purpose: hot loops fetch them once, and an implementation may
    put a C function there.
    """

    @property
    def name(self) -> str:
        """How users choose it: ``json``, ``msgpack``, ``raw``, ``str``, …"""
        ...

    @property
    def type_name(self) -> str:
        """The declared type, for messages."""
        ...

    @property
    def dumps(self) -> Callable[[V], bytes]:
        """Value to bytes; raises `ValueError` or `TypeError` with a reason that names the field."""
        ...

    @property
    def loads(self) -> Callable[[bytes], V]:
        """Bytes to value; raises `ValueError` or `TypeError` with a reason that names the field."""
        ...


CodecFactory = Callable[[Any], Codec[Any]]
"""Makes a codec for a declared type; raises ConfigurationError where the type cannot be served."""
