"""A soak: workers at 60 % of what they can do, with a fault each minute, for half an hour or however long.

``python -m tests.crash.soak --minutes 30`` starts three brokers and three workers of the crash program, measures what
these can take, feeds a share of that, and has something fail each minute as `tests.crash.fire` does. One worker is
never killed or stopped. In the end every result has to be there once and in order, and over the time that worker's
memory and file handles have to be flat, and the lag may not grow; no worker may have logged an error.

A shard that comes brings its store's files, and a store opens more of them while it fills its levels: they are counted
apart, for each store. Cache and write buffers are so small here that they are full before the second quarter begins.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.brokers import Cluster, proxies, say
from tests.crash.fire import AHEAD_MAX, LARGE, Fire, Heat
from tests.crash.program import Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.brokers import Proxy
    from tests.crash.fire_worker import Worker

__all__ = ["Sample", "Soak", "complaints"]

LOAD = 0.6
MEASURED_EVENTS = 60_000
"""Fed at once in the beginning, to see what the workers can take: for so long that the brokers' own work is in it."""
SAMPLE_S = 2.0
FAULT_S = 60.0
MEMORY_GROWTH = 1.1
HANDLES_GROWTH = 8
"""File handles that may come and go, above those of the second quarter; without those of the stores' files."""
FILES_GROWTH = 2.0
"""Of a store's open files: its levels are full at some moments, and nearly empty at others."""
STATE_BYTES = 8 << 20
"""Of cache, and of write buffers."""
LAG_S = 5.0
"""Lag that means nothing, in seconds of the feed."""


class Sample(NamedTuple):
    """A moment of the worker that is spared; bytes, handles, and events that are fed and not processed."""

    memory: int
    handles: int
    files: float
    """Open ones of each store's."""
    lag: int


def complaints(samples: Sequence[Sample], rate: float) -> list[str]:
    """What has grown between the second quarter of the time and the last one; the first is for getting warm."""
    quarter = len(samples) // 4
    if not quarter:
        return ["the time was too short to say anything"]
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    found = []
    memory = [statistics.median(each.memory for each in some) for some in (early, late)]
    if memory[1] > memory[0] * MEMORY_GROWTH:
        found.append(f"memory has grown from {memory[0]:,.0f} to {memory[1]:,.0f} bytes")
    handles = [statistics.median(each.handles for each in some) for some in (early, late)]
    if handles[1] > handles[0] + HANDLES_GROWTH:
        found.append(f"file handles have grown from {handles[0]:.0f} to {handles[1]:.0f}")
    files = [statistics.median(each.files for each in some) for some in (early, late)]
    if files[1] > files[0] * FILES_GROWTH:
        found.append(f"files of each store have grown from {files[0]:.0f} to {files[1]:.0f}")
    lag = [statistics.median(each.lag for each in some) for some in (early, late)]
    if lag[1] > max(2 * lag[0], LAG_S * rate):
        found.append(f"the lag has grown from {lag[0]:,.0f} to {lag[1]:,.0f} events")
    waits = sum(each.lag >= AHEAD_MAX for some in (early, late) for each in some)
    if waits:
        found.append(f"the feed had to wait for the workers, {waits} times of {2 * quarter}")
    return found


def sample(worker: Worker, lag: int) -> Sample:
    """How a worker is now, as Linux tells."""
    folder = Path("/proc") / str(worker.child.pid)
    pages = int((folder / "statm").read_text().split()[1])
    handles = files = stores = 0
    for handle in (folder / "fd").iterdir():
        try:
            target = handle.readlink()
        except FileNotFoundError:
            continue  # closed meanwhile
        if worker.state_dir not in target.parents:
            handles += 1
        else:
            files += 1
            stores += target.name == "LOCK"
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    return Sample(memory, handles, files / max(1, stores), lag)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How long, and how hard."""

    minutes: float
    load: float


class Soak(Fire):
    """A fire that burns low, and for long."""

    def __init__(
        self, seed: int, directory: Path, cluster: Cluster, through: list[Proxy], terms: Terms
    ) -> None:
        heat = replace(LARGE, events=MEASURED_EVENTS, rate=1e6, fails=False)
        super().__init__(seed, directory, cluster, through, heat)
        self.web = True
        self._terms = terms
        self.samples: list[Sample] = []

    def run(self) -> dict[str, object]:
        """All of it; returns a summary.

        Raises:
            Violation: something has grown, was logged as an error, or is not as the model says.
        """
        try:
            for _ in range(3):
                self.start()
            self._create()
            self._until_working()
            capacity = self._measure()
            rate = capacity * self._terms.load
            say(capacity_per_s=round(capacity), rate_per_s=round(rate))
            self._soak(rate)
            self._mend()
            self.until_complete()
            self.end_workers()
            records, stores = self.check()
        finally:
            self.give_up()
        errors = self._errors()
        found = complaints(self.samples, rate)
        summary = {
            "minutes": self._terms.minutes,
            "events": self.heat.events,
            "rate_per_s": round(rate),
            "records": records,
            "stores": stores,
            "memory_mb": [round(each.memory / 1e6) for each in self._quarters()],
            "handles": [each.handles for each in self._quarters()],
            "files_of_a_store": [each.files for each in self._quarters()],
            "lag": [each.lag for each in self._quarters()],
            "errors": errors[:10],
            **dict(sorted(self.happened.items())),
        }
        if found or errors:
            raise Violation(f"{found} {summary}")
        return summary

    def _measure(self) -> float:
        """Events a second that the workers take while they are fed, as the feed has its share of the machine."""
        began = time.monotonic()
        self._feeding.start()
        self._feeding.join()
        self.until_complete()
        return self.processed() / (time.monotonic() - began)

    def _soak(self, rate: float) -> None:
        events = int(self._terms.minutes * 60 * rate)
        self.heat = Heat(
            events=self._fed + events,
            rate=rate,
            pause_s=(FAULT_S, FAULT_S),
            acts_min=0,
            sleeps=self.heat.sleeps,
            fails=False,
        )
        self._feeding = threading.Thread(target=self._feed, name="feeder", daemon=True)
        self._feeding.start()
        watching = threading.Thread(target=self._watch, name="samples", daemon=True)
        watching.start()
        self.trouble()
        self._feeding.join()
        watching.join()
        if self._failed:
            raise self._failed[0]

    def _watch(self) -> None:
        spared = self.workers[0]
        while self._feeding.is_alive():
            self.samples.append(sample(spared, self._fed - self.processed()))
            time.sleep(SAMPLE_S)

    def _quarters(self) -> list[Sample]:
        quarter = max(1, len(self.samples) // 4)
        return [
            Sample(
                *(
                    round(statistics.median(values))
                    for values in zip(*self.samples[at : at + quarter], strict=True)
                )
            )
            for at in range(0, quarter * 4, quarter)
            if self.samples[at : at + quarter]
        ]

    def victims(self) -> list[Worker]:
        """All but the first worker."""
        return [worker for worker in super().victims() if worker is not self.workers[0]]

    def _errors(self) -> list[str]:
        """What workers have logged that they should not have."""
        return [
            f"{file.name}: {line.strip()[:300]}"
            for file in sorted(self.directory.glob("worker-*.log"))
            for line in file.read_text(errors="replace").splitlines()
            if " ERROR " in line or " CRITICAL " in line or line.startswith("Traceback")
        ]


def main() -> None:
    """One soak."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--load", type=float, default=LOAD, help="share of what the workers take")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # not before everything is ended
    directory = Path(tempfile.mkdtemp(prefix="millstream-soak-"))
    for name in ("CACHE", "WRITE_BUFFER"):
        os.environ[f"MILLSTREAM_STATE_{name}_BYTES"] = str(STATE_BYTES)
    with Cluster(3) as cluster, proxies(cluster) as through:
        terms = Terms(minutes=given.minutes, load=given.load)
        try:
            say(**Soak(given.seed, directory, cluster, through, terms).run())
        except BaseException as exc:
            exc.add_note(f"see {directory}")
            raise
    shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
