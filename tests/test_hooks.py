"""Named observation points."""

from __future__ import annotations

from typing import Any

import pytest

from millstream import hooks
from millstream.errors import InternalError
from millstream.testing import TestApp
from tests.kit import Order, counting


def test_observers() -> None:
    """Observers are told of a point and its facts, as long as their block lasts."""
    seen: list[Any] = []
    hooks.reached("commit.cut", shards=0)
    with hooks.observe(lambda point, facts: seen.append((1, point, facts))):
        with hooks.observe(lambda point, facts: seen.append((2, point, facts))):
            hooks.reached("commit.cut", shards=2)
        hooks.reached("commit.sent")
    hooks.reached("commit.sent")
    assert seen == [
        (1, "commit.cut", {"shards": 2}),
        (2, "commit.cut", {"shards": 2}),
        (1, "commit.sent", {}),
    ]


def test_undeclared_points() -> None:
    """A point that is not in the list is a bug of ours."""
    with (
        hooks.observe(lambda point, facts: None),
        pytest.raises(
            InternalError, match=r"'nowhere' is not declared\. This is a bug in Millstream"
        ),
    ):
        hooks.reached("nowhere")


def test_what_an_observer_raises() -> None:
    """What an observer raises comes out where the point is reached, and the observer is gone after its block."""

    def fail(point: str, facts: dict[str, object]) -> None:
        raise RuntimeError(point)

    with hooks.observe(fail), pytest.raises(RuntimeError, match=r"commit\.cut"):
        hooks.reached("commit.cut")
    hooks.reached("commit.cut")


async def test_points_of_a_commit() -> None:
    """A worker's life goes through its points in order."""
    app, orders, _ = counting(partitions=1)
    seen: list[str] = []
    with hooks.observe(lambda point, facts: seen.append(point)):
        async with TestApp(app) as t:
            start = list(seen)
            seen.clear()
            await t.send(orders, Order("ada", 1.0))
            commit = list(seen)
            seen.clear()
    assert start[0] == "group.assigned"
    assert start[1:3] == ["recovery.started", "recovery.finished"]
    assert [point for point in commit if not point.startswith("commit.writ")] == [
        "commit.cut",
        "commit.encoded",
        "commit.sent",
        "commit.appended",
        "commit.positioned",
        "commit.committed",
        "commit.applying",
        "commit.applied",
    ]
    assert seen[-1] == "group.left"
    assert set(start + commit + seen) <= set(hooks.POINTS)
