"""Where a reset begins, as people write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import click

from millstream.cli._tail import MOMENT_MIN, moment_of
from millstream.clock import format_timestamp
from millstream.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millstream.records import TopicPartition
    from millstream.transports.base import Transport

__all__ = ["Target", "TargetType"]


class Target(NamedTuple):
    """Where to begin: an ``end`` (earliest, latest), a ``moment`` in ms, or an ``offset``."""

    end: str = ""
    moment: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        if self.end:
            return "its first record" if self.end == "earliest" else "its end"
        if self.moment is not None:
            return f"the first record of {format_timestamp(self.moment)} or later"
        return f"offset {self.offset}, as far as a partition goes"

    async def offsets(
        self,
        transport: Transport,
        tps: list[TopicPartition],
        starts: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
    ) -> dict[TopicPartition, int]:
        """Where each partition begins.

        Raises:
            ConfigurationError: an offset that none of them holds.
        """
        if not tps:
            return {}
        if self.moment is not None:
            return await transport.offsets_at(tps, self.moment)
        if self.offset is None:
            return {tp: starts[tp] if self.end == "earliest" else ends[tp] for tp in tps}
        if not any(starts[tp] <= self.offset <= ends[tp] for tp in tps):
            held = ", ".join(f"{tp} {starts[tp]} to {ends[tp]}" for tp in tps)
            raise ConfigurationError(f"no partition holds offset {self.offset}: {held}")
        return {tp: min(max(self.offset, starts[tp]), ends[tp]) for tp in tps}


if TYPE_CHECKING:
    _TargetParam = click.ParamType[Target]
else:
    _TargetParam = click.ParamType  # which takes a type only since click 8.3


class TargetType(_TargetParam):
    """``earliest``, ``latest``, ``10m`` (ago), a time, or an offset."""

    name = "earliest|latest|TIME|OFFSET"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Target:
        """Read what the user wrote."""
        if isinstance(value, Target):
            return value
        if value in ("earliest", "latest"):
            return Target(end=value)
        if value.isdigit():
            number = int(value)
            return Target(moment=number) if number >= MOMENT_MIN else Target(offset=number)
        moment = moment_of(value)
        if moment is None:
            self.fail(
                f"{value!r} is neither earliest, latest, a length of time such as 10m, a time such as"
                f" 2026-01-31T12:00:00Z, nor an offset.",
                param,
                ctx,
            )
        return Target(moment=moment)
