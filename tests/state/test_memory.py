"""State in memory: the common promises, and what is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from millstream.errors import StateError
from millstream.state.memory import MemoryBackend

from .conformance import *  # noqa: F403 - the suite that every backend passes

if TYPE_CHECKING:
    from pathlib import Path

    from millstream.state import StateBackend


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


def test_it_is_a_state_backend() -> None:
    """Checked by mypy: the class keeps to the contract."""
    backend: StateBackend = MemoryBackend()
    assert not backend.durable


def test_count_and_size_are_exact(backend: MemoryBackend) -> None:
    """Overwritten and deleted keys are not counted."""
    store = backend.open("s")
    store.write({"t": {b"a": b"1", b"b": b"2"}})
    store.write({"t": {b"a": b"333", b"b": None}})
    assert store.table("t").count() == 1
    assert store.disk_bytes() == 4


def test_many_deletions_do_not_pile_up(backend: MemoryBackend) -> None:
    """Keys that came and went leave the order of those that stay as it is."""
    store = backend.open("s")
    table = store.table("t")
    for generation in range(5):
        keys = [b"%d-%04d" % (generation, n) for n in range(1_000)]
        store.write({"t": dict.fromkeys(keys, b"v")})
        assert list(table.keys(b"%d" % generation)) == keys
        store.write({"t": dict.fromkeys(keys[1:])})
    assert list(table.keys()) == [b"%d-0000" % generation for generation in range(5)]


def test_a_checkpoint_can_be_restored(backend: MemoryBackend, tmp_path: Path) -> None:
    """A restored shard has the tables of the moment of the checkpoint."""
    store = backend.open("s")
    store.write({"t": {b"a": b"1"}, "u": {}})
    store.table("u")
    store.checkpoint(tmp_path / "copy")
    store.write({"t": {b"a": b"2"}})
    backend.restore("other", tmp_path / "copy")
    restored = backend.open("other")
    assert restored.tables() == ["t", "u"]
    assert list(restored.table("t").items()) == [(b"a", b"1")]
    with pytest.raises(StateError, match="has state already"):
        backend.restore("s", tmp_path / "copy")
    with pytest.raises(StateError, match="not a checkpoint"):
        backend.restore("third", tmp_path)
    with pytest.raises(StateError, match="no checkpoint"):
        store.checkpoint(tmp_path / "copy")
