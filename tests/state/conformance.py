"""What every state backend promises. A test module imports these tests and gives a fixture ``backend``."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from millstream.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from millstream.state import ShardStore, StateBackend

ROWS = {b"%03d" % n: b"value %d" % n for n in range(500)}
KEYS = sorted(ROWS)


@pytest.fixture
def store(backend: StateBackend) -> ShardStore:
    """An open, empty store."""
    return backend.open("orders-4/3")


def test_a_value_is_read_back(store: ShardStore) -> None:
    """What was written is there, and what was not is None."""
    store.write({"totals": {b"ada": b"1", b"empty": b"", b"": b"no key"}})
    table = store.table("totals")
    assert table.get(b"ada") == b"1"
    assert table.get(b"empty") == b""
    assert table.get(b"") == b"no key"
    assert table.get(b"bob") is None


def test_none_deletes(store: ShardStore) -> None:
    """A change to None removes the key, also one that was never there."""
    store.write({"totals": {b"ada": b"1", b"bob": b"2"}})
    store.write({"totals": {b"ada": None, b"eve": None}})
    assert list(store.table("totals").items()) == [(b"bob", b"2")]


def test_get_many_keeps_order_and_repetition(store: ShardStore) -> None:
    """One answer for each key asked for, any sequence will do."""
    store.write({"totals": ROWS})
    table = store.table("totals")
    assert table.get_many((b"001", b"nobody", b"001")) == [b"value 1", None, b"value 1"]
    assert table.get_many([]) == []


def test_a_table_is_the_same_object_each_time(store: ShardStore) -> None:
    """Callers may fetch it once, before or after the first write to it."""
    table = store.table("totals")
    store.write({"totals": {b"ada": b"1"}})
    assert store.table("totals") is table
    assert table.get(b"ada") == b"1"


def test_tables_are_apart(store: ShardStore) -> None:
    """One key in two tables is two rows."""
    store.write({"a": {b"k": b"1"}, "b": {b"k": b"2"}})
    assert (store.table("a").get(b"k"), store.table("b").get(b"k")) == (b"1", b"2")


@pytest.mark.parametrize("name", ["default", "a.b_c-D", "0", "x" * 249, ".", "table:x"])
def test_any_name_is_a_table(backend: StateBackend, name: str) -> None:
    """Names that mean something to the storage underneath are names like any other."""
    store = backend.open("s")
    store.write({name: {b"k": b"v"}})
    assert store.tables() == [name]
    store.close()
    store = backend.open("s")
    assert store.tables() == [name]
    assert store.table(name).get(b"k") == b"v"


RANGES = [
    # start, end, the keys of ROWS that are in it
    (b"", None, KEYS),
    (b"010", b"013", [b"010", b"011", b"012"]),
    (b"0105", b"0125", [b"011", b"012"]),  # bounds between the keys
    (b"010", b"010", []),
    (b"011", b"010", []),  # the wrong way round is empty, not an error
    (b"497", None, KEYS[497:]),
    (b"9", None, []),
    (b"", b"0", []),
    (b"", b"001", KEYS[:1]),
    (b"", b"400", KEYS[:400]),  # many chunks
    (b"499\xff", b"\xff", []),
]


@pytest.mark.parametrize(("start", "end", "expected"), RANGES)
def test_ranges(store: ShardStore, start: bytes, end: bytes | None, expected: list[bytes]) -> None:
    """A range holds its start and not its end; both directions, pairs or keys."""
    store.write({"before": ROWS, "t": dict(reversed(ROWS.items())), "u": ROWS})
    table = store.table("t")
    pairs = [(key, ROWS[key]) for key in expected]
    assert list(table.items(start, end)) == pairs
    assert list(table.items(start, end, reverse=True)) == pairs[::-1]
    assert list(table.keys(start, end)) == expected


def test_a_range_may_be_left_early(store: ShardStore) -> None:
    """An iteration that nobody finishes disturbs nothing, the close neither."""
    store.write({"t": ROWS})
    rows = store.table("t").items()
    assert next(rows) == (b"000", b"value 0")
    untouched = store.table("t").items()
    store.close()
    with pytest.raises(StateError):
        list(untouched)
    with pytest.raises(StateError):
        list(rows)


def test_writing_during_a_range(store: ShardStore) -> None:
    """Every key that stays is seen once and in order, whatever is written meanwhile."""
    store.write({"t": ROWS})
    seen = []
    for number, (key, _) in enumerate(store.table("t").items()):
        seen.append(key)
        if number % 50 == 0:
            store.write({"t": {b"%03d!" % number: b"new", key: None}})
            list(store.table("t").keys())
    assert [key for key in seen if key in ROWS] == KEYS
    assert seen == sorted(seen)


def test_ranges_are_deleted_before_changes_are_written(store: ShardStore) -> None:
    """A value that is written inside a range deleted by the same call stays."""
    store.write({"t": ROWS, "u": ROWS})
    store.write({"t": {b"100": b"again", b"005": None}}, delete_ranges={"t": (b"010", b"490")})
    assert list(store.table("t").keys()) == sorted([*KEYS[:5], *KEYS[6:10], b"100", *KEYS[490:]])
    assert list(store.table("u").keys()) == KEYS


@pytest.mark.parametrize("bounds", [(b"5", b"5"), (b"6", b"5")])
def test_an_empty_delete_range_deletes_nothing(
    store: ShardStore, bounds: tuple[bytes, bytes]
) -> None:
    """A range whose end is not above its start is empty."""
    store.write({"t": {b"5": b"v"}})
    store.write({"t": {b"7": b"v"}}, delete_ranges={"t": bounds})
    assert list(store.table("t").keys()) == [b"5", b"7"]


def test_drop(store: ShardStore) -> None:
    """A dropped table is gone; under its name a new, empty one may begin."""
    store.write({"t": ROWS, "u": ROWS})
    dropped = store.table("t")
    running = dropped.items()
    next(running)
    store.drop("t")
    store.drop("never there")
    assert store.tables() == ["u"]
    for use in (
        lambda: dropped.get(b"001"),
        lambda: dropped.get_many([b"001"]),
        lambda: dropped.items(),
        lambda: dropped.count(),
        lambda: list(running),
    ):
        with pytest.raises(StateError, match="'t' was dropped"):
            use()
    assert store.table("t").get(b"001") is None
    assert list(store.table("t").items()) == []


def test_count_is_about_right(store: ShardStore) -> None:
    """The count of keys that were written once is exact, also after the store was opened again."""
    assert store.table("t").count() == 0
    store.write({"t": ROWS})
    assert store.table("t").count() == len(ROWS)
    assert store.disk_bytes() > 0


def test_close_and_open_again(backend: StateBackend) -> None:
    """A store that was closed holds what was written, its tables included."""
    store = backend.open("s")
    store.write({"t": ROWS, "u": {b"k": b"v"}})
    store.table("empty")
    store.close()
    store = backend.open("s")
    assert store.tables() == ["empty", "t", "u"]
    assert dict(store.table("t").items()) == ROWS
    assert store.table("t").count() == len(ROWS)


def test_close_is_idempotent_and_final(backend: StateBackend) -> None:
    """Closing twice is fine; any other use afterwards says that the store is closed."""
    store = backend.open("s")
    table = store.table("t")
    store.close()
    store.close()
    uses: list[Callable[[], object]] = [
        store.tables,
        store.flush,
        store.disk_bytes,
        table.count,
        lambda: store.table("t"),
        lambda: store.write({"t": {b"k": b"v"}}),
        lambda: store.write({}),
        lambda: store.drop("t"),
        lambda: table.get(b"k"),
        lambda: table.get_many([b"k"]),
        lambda: list(table.items()),
        lambda: list(table.keys()),
    ]
    for use in uses:
        with pytest.raises(StateError, match="closed"):
            use()


def test_a_store_is_open_once(backend: StateBackend) -> None:
    """A second open is refused while the first one lasts."""
    store = backend.open("s")
    with pytest.raises(StateError, match="open already"):
        backend.open("s")
    store.close()
    backend.open("s").close()


def test_destroy(backend: StateBackend) -> None:
    """A destroyed store begins empty; an open one is not destroyed, an unknown one is ignored."""
    store = backend.open("s")
    store.write({"t": ROWS})
    with pytest.raises(StateError, match="open"):
        backend.destroy("s")
    store.close()
    backend.destroy("s")
    backend.destroy("s")
    assert backend.shards() == []
    assert backend.open("s").tables() == []


def test_shards(backend: StateBackend) -> None:
    """The shards that have a store, open or not, under the names that they were given."""
    assert backend.shards() == []
    for name in ("orders/3", "a b", "4-0", ".hidden", "100%"):
        backend.open(name).close()
    open_still = backend.open("zoé")
    assert backend.shards() == sorted(["orders/3", "a b", "4-0", ".hidden", "100%", "zoé"])
    open_still.close()


def test_shards_are_apart(backend: StateBackend) -> None:
    """One table name in two shards is two tables."""
    first, second = backend.open("1"), backend.open("2")
    first.write({"t": {b"k": b"1"}})
    assert second.table("t").get(b"k") is None
    first.close()
    second.close()


TABLES = ("a", "default", "c")
KEY = st.lists(st.sampled_from([b"\0", b"\1", b"a", b"b", b"\xff"]), max_size=3).map(b"".join)
CHANGES = st.dictionaries(
    st.sampled_from(TABLES), st.dictionaries(KEY, st.none() | st.binary(max_size=3), max_size=12)
)


class StoreMachine(RuleBasedStateMachine):
    """A store does what a dict of dicts does."""

    numbers = itertools.count()

    def __init__(self, backend: StateBackend) -> None:
        super().__init__()
        self.backend = backend
        self.shard = f"machine {next(self.numbers)}"
        self.store = backend.open(self.shard)
        self.model: dict[str, dict[bytes, bytes]] = {}

    @rule(changes=CHANGES, ranges=st.dictionaries(st.sampled_from(TABLES), st.tuples(KEY, KEY)))
    def write(
        self,
        changes: dict[str, dict[bytes, bytes | None]],
        ranges: dict[str, tuple[bytes, bytes]],
    ) -> None:
        self.store.write(changes, delete_ranges=ranges)
        for name, (start, end) in ranges.items():
            table = self.model.get(name, {})
            for key in [key for key in table if start <= key < end]:
                del table[key]
        for name, values in changes.items():
            table = self.model.setdefault(name, {})
            for key, value in values.items():
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value

    @rule(name=st.sampled_from(TABLES), start=KEY, end=st.none() | KEY)
    def read_range(self, name: str, start: bytes, end: bytes | None) -> None:
        rows = self.model.setdefault(name, {})
        expected = [
            (k, v) for k, v in sorted(rows.items()) if k >= start and (end is None or k < end)
        ]
        table = self.store.table(name)
        assert list(table.items(start, end)) == expected
        assert list(table.items(start, end, reverse=True)) == expected[::-1]
        assert list(table.keys(start, end)) == [key for key, _ in expected]

    @rule(name=st.sampled_from(TABLES), keys=st.lists(KEY))
    def read_keys(self, name: str, keys: list[bytes]) -> None:
        rows = self.model.setdefault(name, {})
        table = self.store.table(name)
        assert table.get_many(keys) == [rows.get(key) for key in keys]
        assert [table.get(key) for key in keys] == [rows.get(key) for key in keys]

    @rule(name=st.sampled_from(TABLES))
    def drop(self, name: str) -> None:
        self.store.drop(name)
        self.model.pop(name, None)

    @rule()
    def flush(self) -> None:
        self.store.flush()

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = self.backend.open(self.shard)

    def teardown(self) -> None:
        stored = {name: dict(self.store.table(name).items()) for name in self.store.tables()}
        self.store.close()
        self.backend.destroy(self.shard)
        held = {name: rows for name, rows in self.model.items() if rows}
        assert {name: rows for name, rows in stored.items() if rows} == held


def test_a_store_is_a_dict_of_dicts(backend: StateBackend) -> None:
    """Any sequence of operations has the outcome that it has on dicts."""

    class Machine(StoreMachine):
        def __init__(self) -> None:
            super().__init__(backend)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
