"""The garbage collector of a process that is a worker and nothing else."""

from __future__ import annotations

import gc

__all__ = ["tune_garbage_collector"]

YOUNG_OBJECTS = 50_000
"""Objects made, less those freed, before the collector looks at the young ones; Python's own is 700 to 2,000."""


def tune_garbage_collector() -> None:
    """Have the collector look less often, and not at what was there from the start.

    Records and values live for a moment and are freed by their counts; looking at them again and again costs a
    tenth of a worker's time. For ``millstream worker`` alone: an app embedded in another process leaves it be.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, 20, 50)
