"""The errors: a tree, drawn in its module, and sentences that say what to do."""

from __future__ import annotations

import inspect
import re

import pytest

from millstream import errors
from millstream.errors import (
    AddressInUseError,
    AgentError,
    DecodeError,
    EncodeError,
    InternalError,
    MillstreamError,
    OffsetOutOfRangeError,
    OutsideEventError,
    RecordTooLargeError,
    SettingError,
    UnknownTopicError,
    WrongShardError,
)

CLASSES = {
    name: found
    for name, found in vars(errors).items()
    if inspect.isclass(found) and issubclass(found, MillstreamError)
}


def drawn_tree() -> dict[str, str]:
    """Name of each error to that of the one above it, as the module's docstring draws them."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│├└─ ]*)(\w+Error)\b", line)
        if found is None:
            continue
        depth, name = len(found[1]), found[2]
        while above and above[-1][0] >= depth:
            above.pop()
        if above:
            parents[name] = above[-1][1]
        above.append((depth, name))
    return parents


def test_the_tree_is_as_drawn() -> None:
    """Every error stands in the drawing, below the class from which it is derived."""
    real = {name: found.__bases__[0].__name__ for name, found in CLASSES.items()}
    del real["MillstreamError"]
    assert drawn_tree() == real


def test_all_are_exported_and_documented() -> None:
    """Every error is public and says when it is raised."""
    assert sorted(CLASSES) == sorted(errors.__all__)
    assert all(found.__doc__ for found in CLASSES.values())


@pytest.mark.parametrize(
    ("error", "facts", "sentence"),
    [
        (
            AgentError(
                "agent 'count'",
                cause=ValueError("no"),
                record="orders/3@7",
                key="ada",
                line="a.py:5",
            ),
            {"record": "orders/3@7", "key": "ada", "line": "a.py:5", "where": "agent 'count'"},
            "agent 'count' raised ValueError: no on record orders/3@7 (key ada) at a.py:5. Nothing after"
            " it was committed. Mend the program and start the worker again, or go past the record with:"
            " millstream skip orders/3@7",
        ),
        (
            AgentError("timer 'tick'", cause=ValueError("no")),
            {"record": None},
            "timer 'tick' raised ValueError: no. Nothing of it was committed."
            " Mend the program and start the worker again.",
        ),
        (
            OutsideEventError("table 't'", "Use a view."),
            {"what": "table 't'"},
            "table 't': no event is in progress here. Use a view.",
        ),
        (
            WrongShardError(table="t", key="k", shard=1, owner=2, count=4),
            {"owner": 2},
            "table 't': key 'k' belongs to shard 2 of 4, and the event at hand is in shard 1. Group the"
            " stream by that key first (app.stream(...).group_by(...)), or send the value to a topic keyed"
            " by it.",
        ),
        (
            DecodeError("orders/0@1", part="value", type_name="Order", reason="missing `at`"),
            {"where": "orders/0@1"},
            "orders/0@1: the value is not Order: missing `at`",
        ),
        (
            EncodeError("topic 't'", value=object(), reason="no"),
            {"where": "topic 't'"},
            "topic 't': a value of type object cannot be encoded: no",
        ),
        (
            RecordTooLargeError(
                "topic 't'", size=1_000_001, limit=1_000_000, setting="record_bytes_max"
            ),
            {"limit": 1_000_000},
            "topic 't': 1,000,001 bytes, more than the 1,000,000 that record_bytes_max allows. Send less at"
            " once, or raise record_bytes_max.",
        ),
        (
            SettingError("brokr", "there is no such setting"),
            {"name": "brokr"},
            "setting 'brokr': there is no such setting",
        ),
        (
            AddressInUseError("127.0.0.1", 6066),
            {"port": 6066},
            "port 6066 on 127.0.0.1 is in use by another process. Choose another with --web-port, or leave"
            " it out to take the next free one.",
        ),
        (
            UnknownTopicError("t", where="shop.db"),
            {"topic": "t"},
            "topic 't' does not exist in shop.db",
        ),
        (
            OffsetOutOfRangeError("t/0", position=9, start=1, end=5),
            {"position": 9},
            "t/0: position 9 is outside the log, which holds 1 to 5",
        ),
        (
            InternalError("two and two are five"),
            {},
            "two and two are five. This is a bug in Millstream; please report it.",
        ),
    ],
)
def test_sentences(error: MillstreamError, facts: dict[str, object], sentence: str) -> None:
    """An error builds its sentence from its facts, and keeps them."""
    assert str(error) == sentence
    assert {name: getattr(error, name) for name in facts} == facts


def test_causes() -> None:
    """An agent's error is chained to what the user's code raised."""
    cause = ValueError("no")
    assert AgentError("agent 'a'", cause=cause).__cause__ is cause
