"""Windows before a silence: each comes out, whatever Kafka Streams does."""

from __future__ import annotations

from examples.lost_windows import events, finals


async def test_every_window_comes_out() -> None:
    """In order, once; with Kafka Streams' answers some of the same are missing."""
    moments = events(60)
    expected = sorted({moment // 60 * 60 for moment in moments})
    assert await finals(moments) == expected
    theirs = await finals(moments, "kafka-streams")
    assert len(theirs) < len(expected)
    assert set(theirs) < set(expected)
