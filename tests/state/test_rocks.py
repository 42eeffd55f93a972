"""State in RocksDB: the common promises, and what is its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from millstream.errors import StateError
from millstream.state.rocks import RocksBackend, peek

from .conformance import *  # noqa: F403 - the suite that every backend passes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from millstream.state import StateBackend

ROWS = {b"%05d" % n: os.urandom(50) for n in range(2_000)}
POSITION = b"\0position"


@pytest.fixture
def backend(tmp_path: Path) -> RocksBackend:
    return RocksBackend(tmp_path / "state")


def test_it_is_a_state_backend(tmp_path: Path) -> None:
    """Checked by mypy: the class keeps to the contract."""
    backend: StateBackend = RocksBackend(tmp_path)
    assert backend.durable


def test_the_contract_does_not_load_rocksdb() -> None:
    """Importing the package costs nothing that is not used."""
    code = "import sys, millstream.state; sys.exit('rocksdict' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# A worker that writes epochs of 100 keys to two tables, each with its position, as told by its arguments.
_WORKER = """
import os, signal, sys
from pathlib import Path
from millstream.state.rocks import RocksBackend, peek
store = RocksBackend(Path(sys.argv[1])).open("s")
def epoch(number):
    rows = {b"%d-%03d" % (number, n): b"v" * 100 for n in range(100)}
    store.write({name: {**rows, b"\\0position": b"%d" % number} for name in ("a", "b")})
exec(sys.argv[2])
os.kill(os.getpid(), signal.SIGKILL)
"""


def _run_and_kill(root: Path, steps: str) -> None:
    done = subprocess.run([sys.executable, "-c", _WORKER, root, steps], check=False)
    assert done.returncode == -signal.SIGKILL


CRASHES = [
    # what a worker does before it is killed, epochs found in table a, and in table b
    ("epoch(1)", 0, 0),  # nothing was flushed
    ("epoch(1); store.flush()", 1, 1),
    ("epoch(1); store.flush(); epoch(2)", 1, 1),  # an older moment, whole
    ("epoch(1); store.table('a').flush(); epoch(2)", 1, 0),  # each table is at its own
    ("epoch(1); store.close()", 1, 1),
    ("epoch(1); rows = store.table('a').items(); next(rows); store.close()", 1, 1),
    ("epoch(1); store.checkpoint(store.path.parent / 'copy'); epoch(2)", 1, 1),
    ("epoch(1); store.flush(); store.drop('b')", 1, 0),
]


@pytest.mark.parametrize(("steps", "in_a", "in_b"), CRASHES)
def test_a_killed_process_leaves_position_and_data_together(
    tmp_path: Path, steps: str, in_a: int, in_b: int
) -> None:
    """Each table is found as some prefix of the writes left it, and its position says which."""
    _run_and_kill(tmp_path, steps)
    store = RocksBackend(tmp_path).open("s")
    for name, epochs in (("a", in_a), ("b", in_b)):
        table = store.table(name)
        assert int(table.get(POSITION) or 0) == epochs
        assert len(list(table.keys(b"\1"))) == 100 * epochs


def test_a_kill_at_any_moment_leaves_a_prefix(tmp_path: Path) -> None:
    """With a write buffer so small that flushes happen all the time, no table is torn."""
    steps = """
from pathlib import Path
number, said = 0, False
while True:
    number += 1
    epoch(number)
    if not said and next(Path(sys.argv[1]).rglob("*.sst"), None):  # something is on the disk
        print("go", flush=True)
        said = True
"""
    small = _WORKER.replace("(sys.argv[1])", "(sys.argv[1]), write_buffer_bytes=1 << 20")
    process = subprocess.Popen(
        [sys.executable, "-c", small, tmp_path, steps], stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.kill()
    store = RocksBackend(tmp_path).open("s")
    positions = []
    for name in ("a", "b"):
        table = store.table(name)
        position = int(table.get(POSITION) or 0)
        epochs = {int(key.split(b"-")[0]) for key in table.keys(b"\1")}
        assert epochs == set(range(1, position + 1))
        assert len(list(table.keys(b"\1"))) == 100 * position
        positions.append(position)
    assert max(positions) > 0


def test_another_process_holds_the_lock(tmp_path: Path) -> None:
    """The message names the directory, and what to do."""
    steps = "print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", _WORKER, tmp_path, steps],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        backend = RocksBackend(tmp_path)
        with pytest.raises(StateError, match="another process holds it") as caught:
            backend.open("s")
        assert str(tmp_path / "s") in str(caught.value)
        assert "state_dir" in str(caught.value)
        with pytest.raises(StateError, match="another process holds it"):
            backend.destroy("s")
        holder.kill()
    backend.open("s").close()


def _break_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 40)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGES: list[tuple[str, Callable[[Path], None]]] = [
    ("*.sst", Path.unlink),
    ("*.sst", _truncate),
    ("CURRENT", Path.unlink),
    ("CURRENT", _truncate),
    ("MANIFEST-*", Path.unlink),
    ("MANIFEST-*", _break_middle),
]


@pytest.mark.parametrize(("files", "damage"), DAMAGES)
def test_damage_is_found_when_the_store_is_opened(
    backend: RocksBackend, files: str, damage: Callable[[Path], None]
) -> None:
    """Missing and cut files: the error names the directory and says that it may be deleted."""
    store = backend.open("s")
    store.write({"t": ROWS})
    store.close()
    for path in list(backend.path("s").glob(files)):
        damage(path)
    with pytest.raises(StateError, match="damaged") as caught:
        backend.open("s")
    assert str(backend.path("s")) in str(caught.value)
    backend.destroy("s")
    assert backend.open("s").tables() == []


def test_a_damaged_block_is_an_error_and_not_an_end(backend: RocksBackend) -> None:
    """Iterators of rocksdict end silently there; a table that lost half of its rows must not look whole."""
    store = backend.open("s")
    store.write({"t": ROWS})
    store.close()
    for path in backend.path("s").glob("*.sst"):
        _break_middle(path)
    table = backend.open("s").table("t")
    reads: list[Callable[[], object]] = [
        lambda: list(table.items()),
        lambda: list(table.items(reverse=True)),
        lambda: list(table.keys()),
        lambda: list(table.keys(b"00900", b"01900")),
        lambda: [table.get(key) for key in ROWS],
        lambda: table.get_many(list(ROWS)),
    ]
    for read in reads:
        with pytest.raises(StateError, match="damaged"):
            read()
    assert table.get(b"00000") == ROWS[b"00000"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(path)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting needs root on Linux")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    """The flush fails with a sentence that says so, and the store can still be closed and opened."""
    backend = RocksBackend(small_disk)
    store = backend.open("s")
    store.write({"t": {b"old": b"v"}})
    store.flush()
    store.write({"t": {b"%05d" % n: os.urandom(1_000) for n in range(10_000)}})
    with pytest.raises(StateError, match="the disk is full"):
        store.flush()
    with pytest.raises(StateError, match=r"not flushed.*the disk is full"):
        store.close()
    store = backend.open("s")
    assert list(store.table("t").keys()) == [b"old"]
    store.close()


def test_a_checkpoint_can_be_restored(backend: RocksBackend, tmp_path: Path) -> None:
    """It holds all tables, what was only in memory too, and does not change with the store."""
    store = backend.open("s")
    store.write({"t": ROWS, "u": {b"k": b"1"}})
    store.table("empty")
    store.checkpoint(tmp_path / "deep" / "copy")
    store.write({"u": {b"k": b"2"}})
    store.drop("t")
    backend.restore("other", tmp_path / "deep" / "copy")
    restored = backend.open("other")
    assert restored.tables() == ["empty", "t", "u"]
    assert dict(restored.table("t").items()) == ROWS
    assert restored.table("u").get(b"k") == b"1"
    with pytest.raises(StateError, match="cannot write a checkpoint"):
        store.checkpoint(tmp_path / "deep" / "copy")
    with pytest.raises(StateError, match="has state already"):
        backend.restore("s", tmp_path / "deep" / "copy")
    with pytest.raises(StateError, match="not a checkpoint"):
        backend.restore("third", tmp_path)


def test_the_memory_of_all_shards_is_bounded(tmp_path: Path) -> None:
    """Writers that are faster than the disk wait at twice the common budget."""
    backend = RocksBackend(tmp_path, write_buffer_bytes=2 << 20)
    stores = [backend.open(str(n)) for n in range(4)]
    for part in range(60):
        rows = {b"%d-%d" % (part, n): os.urandom(500) for n in range(200)}
        for store in stores:
            store.write({"t": rows})
            assert backend._buffers.get_usage() < 6 << 20
    for store in stores:
        store.close()


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts what a process reads: Linux")
def test_a_read_of_a_large_table_brings_blocks_and_no_whole_filter(tmp_path: Path) -> None:
    """Also where the filter of its file is larger than what a shard of the cache holds."""
    store = RocksBackend(tmp_path, cache_bytes=128 << 10, write_buffer_bytes=256 << 20).open("s")
    table = store.table("t")
    keys = [b"%08d" % n for n in range(200_000)]
    for half in (keys[::2], keys[1::2]):
        for at in range(0, len(half), 2_000):
            store.write({"t": dict.fromkeys(half[at : at + 2_000], b"some value")})
        store.flush()
    table._rdict.compact_range(None, None)  # one file, as compactions leave it
    before = _bytes_read()
    found = [table.get(key) for key in keys[::1_000]]
    assert None not in found
    assert (_bytes_read() - before) / len(found) < 32 << 10
    store.close()


def _bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    """An impossible directory is a StateError like any other."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match="cannot open"):
        RocksBackend(tmp_path / "file").open("s")
    assert RocksBackend(tmp_path / "file").shards() == []


def test_peek(backend: RocksBackend, tmp_path: Path) -> None:
    """What is on disk is seen without a lock, and nothing is left behind."""
    store = backend.open("4-0")
    store.write({"a": {POSITION: b"1"}, "b": {b"other": b"2"}})
    store.flush()
    path = backend.path("4-0")
    assert peek(path, POSITION) == {"a": b"1"}
    store.close()
    before = sorted(path.iterdir())
    assert peek(path, POSITION) == {"a": b"1"}
    assert sorted(path.iterdir()) == before
    with pytest.raises(StateError, match="cannot be looked at"):
        peek(tmp_path / "nowhere", POSITION)
    assert not (tmp_path / "nowhere").exists()
