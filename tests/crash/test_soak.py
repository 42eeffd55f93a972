"""What a soak complains of, and what it does not."""

from __future__ import annotations

import pytest

from tests.crash.fire import AHEAD_MAX
from tests.crash.soak import Sample, complaints

MB = 1_000_000


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        # getting warm is no growth
        ([Sample(50 * MB, 40, 20, 0)] * 10 + [Sample(100 * MB, 60, 20, 50)] * 30, []),
        # a fault's lag goes away
        ([Sample(100 * MB, 60, 20, lag) for lag in [10, 10, 900, 10] * 10], []),
        ([Sample((100 + at) * MB, 60, 20, 0) for at in range(100)], ["memory"]),
        ([Sample(100 * MB, 60 + at, 20, 0) for at in range(40)], ["file handles"]),
        ([Sample(100 * MB, 60, 20 + at, 0) for at in range(40)], []),
        ([Sample(100 * MB, 60, 20 + 6 * at, 0) for at in range(40)], ["files of each store"]),
        ([Sample(100 * MB, 60, 20, 100 * at) for at in range(40)], ["lag"]),
        # a lag that is as large as it may be does not grow
        ([Sample(100 * MB, 60, 20, AHEAD_MAX)] * 40, ["feed"]),
        ([Sample(100 * MB, 60, 20, 0)] * 3, ["too short"]),
    ],
)
def test_complaints(samples: list[Sample], says: list[str]) -> None:
    """Each of them is of one kind."""
    found = complaints(samples, rate=100.0)
    assert len(found) == len(says)
    assert all(word in text for word, text in zip(says, found, strict=True))
