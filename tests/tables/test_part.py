"""Plain tables against a dict, through cuts in the middle of events, refusals, failures and crashes."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from millstream.context import Scope, current
from millstream.serialization.keys import key_layout
from millstream.tables import MISSING, Table, TablePart
from tests.tables.shards import Cut, Shard

KEYS = st.sampled_from("abc")
LAYOUT = key_layout(str)


def make_part(store: Any, check: Any, *, mutable: bool) -> TablePart:
    return TablePart(
        "t",
        store=store,
        encode_key=LAYOUT.encode,
        decode_key=LAYOUT.decode,
        dumps=msgspec.json.encode,
        loads=msgspec.json.decode,
        mutable=mutable,
        check=check,
        cache_size=2,
    )


class TableMachine(RuleBasedStateMachine):
    """Events that overlap, and every way in which an epoch can end.

    The model is a log of what each event did, in order. What is committed has to be what the events of all
    commits did, in that order, and nothing of any other event.
    """

    mutable = False
    table: Table[str, Any]

    @initialize(journaled=st.booleans())
    def start(self, journaled: bool) -> None:
        default: Any = list if self.mutable else 0
        self.table = Table("t", layout=LAYOUT, default=default)
        self.shard = Shard(
            {"t": lambda store, check: make_part(store, check, mutable=self.mutable)},
            journaled=journaled,
        )
        self.log: list[tuple[Scope, str, str, int]] = []
        self.open: list[Scope] = []
        self.pending: Cut | None = None
        self.number = 0

    def fold(self, events: set[Scope] | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event, action, key, number in self.log:
            if events is not None and event not in events:
                continue
            if action == "delete":
                found.pop(key, None)
            elif action == "set":
                found[key] = [number] if self.mutable else number
            elif self.mutable:
                found[key] = [*found.get(key, []), number]
            else:
                found[key] = found.get(key, 0) + number
        return found

    @precondition(lambda self: len(self.open) < (3 if self.shard.journaled else 1))
    @rule()
    def begin(self) -> None:
        self.open.append(self.shard.begin(0))

    def enter(self, which: int) -> Scope:
        event = self.open[which % len(self.open)]
        current.set(event)
        return event

    @precondition(lambda self: self.open)
    @rule(
        which=st.integers(0, 2), key=KEYS, action=st.sampled_from(["set", "add", "delete", "read"])
    )
    def touch(self, which: int, key: str, action: str) -> None:
        event = self.enter(which)
        self.number += 1
        expected = self.fold(None)
        if action == "set":
            self.table[key] = [self.number] if self.mutable else self.number
        elif action == "delete":
            assert (key in self.table) == (key in expected)
            if key not in expected:
                return
            del self.table[key]
        elif action == "add" and self.mutable:
            self.table[key].append(self.number)  # in place, and never assigned
        elif action == "add":
            self.table[key] += self.number
        else:
            default: Any = [] if self.mutable else 0
            assert self.table[key] == expected.get(key, default)
            assert self.table.get(key) == expected.get(key, default if self.mutable else None)
            return
        self.log.append((event, action, key, self.number))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2), key=KEYS)
    def look_up(self, which: int, key: str) -> None:
        """What who does not write is given is as the table has it, and a change to it is none to the table."""
        found = self.shard.parts["t"].look_up(key, self.enter(which))
        expected = self.fold(None)
        if key in expected:
            assert found == expected[key]
        else:
            assert found is MISSING or found in ([], 0)  # a default that somebody was handed
        if isinstance(found, list):
            found.append(-1)

    @rule(keys=st.lists(KEYS))
    def read_ahead(self, keys: list[str]) -> None:
        """At any moment, for whatever keys: nothing but clean entries comes of it."""
        self.shard.parts["t"].read_ahead(keys, [0] * len(keys))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2))
    def items(self, which: int) -> None:
        self.enter(which)
        assert dict(self.table.items()) == self.fold(None)
        assert list(self.table) == sorted(self.fold(None))

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2))
    def finish(self, which: int) -> None:
        event = self.open.pop(which % len(self.open))
        self.shard.finish(event)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 2))
    def fail(self, which: int) -> None:
        """The event is undone and skipped, or all starts over where it was read by others."""
        event = self.open[which % len(self.open)]
        if self.shard.undo(event):
            self.log = [entry for entry in self.log if entry[0] is not event]
            self.open.remove(event)
            self.shard.finish(event)
        else:
            self.crash(rebuild=False)

    @precondition(lambda self: self.pending is None)
    @rule()
    def cut(self) -> None:
        self.pending = self.shard.cut()

    @precondition(lambda self: self.pending is not None)
    @rule()
    def land(self) -> None:
        assert self.pending is not None
        self.shard.commit(self.pending)
        self.pending = None
        committed = set(self.shard.committed_events)
        expected = {LAYOUT.encode(k): v for k, v in self.fold(committed).items()}
        changelog = self.shard.changelogs["t"]
        assert {k: msgspec.json.decode(v) for k, v in changelog.items()} == expected
        assert self.shard.stored("t") == changelog

    @precondition(lambda self: self.pending is not None)
    @rule(encoded=st.booleans())
    def refuse(self, encoded: bool) -> None:
        assert self.pending is not None
        self.shard.give_back(self.pending, encoded=encoded)
        self.pending = None

    @rule(rebuild=st.booleans())
    def crash(self, rebuild: bool) -> None:
        self.shard.start(rebuild=rebuild)
        committed = set(self.shard.committed_events)
        self.log = [entry for entry in self.log if entry[0] in committed]
        self.open, self.pending = [], None

    @invariant()
    def tidy(self) -> None:
        part = self.shard.parts["t"] if hasattr(self, "shard") else None
        if part is not None:
            assert set(part.fresh) <= set(part.dirty)
            assert set(part.fresh) <= set(part.base)

    def teardown(self) -> None:
        if not hasattr(self, "shard"):
            return
        for event in self.open:
            self.shard.finish(event)
        if self.pending is not None:
            self.shard.commit(self.pending)
        self.shard.commit_all()
        expected = {LAYOUT.encode(k): v for k, v in self.fold(None).items()}
        changelog = self.shard.changelogs["t"]
        assert {k: msgspec.json.decode(v) for k, v in changelog.items()} == expected


class MutableTableMachine(TableMachine):
    mutable = True


TestImmutable = TableMachine.TestCase
TestMutable = MutableTableMachine.TestCase
TestImmutable.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
TestMutable.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
