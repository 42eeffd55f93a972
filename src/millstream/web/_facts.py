"""What the pages tell besides tables; a worker's report provides it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from millstream.topology import Topology

__all__ = ["Facts", "Metric", "Sample"]


class Sample(Protocol):
    """One number; ``suffix`` goes to the metric's name."""

    @property
    def value(self) -> float: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def suffix(self) -> str: ...


class Metric(Protocol):
    """A number, or one for each of its labels, as Prometheus understands it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def samples(self) -> Sequence[Sample]: ...


class Facts(Protocol):
    """Facts about one worker and its group; rows are what JSON can hold."""

    @property
    def topology(self) -> Topology:
        """What the app consists of."""
        ...

    @property
    def log(self) -> str:
        """Where the log is, for people."""
        ...

    async def topics(self) -> list[dict[str, Any]]:
        """``name partitions records end compacted retention_ms internal``."""
        ...

    async def agents(self) -> list[dict[str, Any]]:
        """``name sources sinks concurrency internal processed lag``, of the whole group."""
        ...

    def worker(self) -> dict[str, Any]:
        """``url member ready why shards commits commit_ms uptime_s``, of this worker."""
        ...

    def unready(self) -> str | None:
        """Why this worker is not ready, as a sentence; None when it is."""
        ...

    def generation(self) -> int:
        """The group's generation as this worker knows it; 0 before its first."""
        ...

    async def metrics(self) -> Sequence[Metric]:
        """The numbers of this worker alone."""
        ...
