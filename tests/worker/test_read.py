"""Reading entries out of a store, against a filter over a list."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from millstream.serialization import codec_for, key_codec_for, key_layout, partitioner
from millstream.state.memory import MemoryBackend
from millstream.tables._query import Entry, Read, TableInfo
from millstream.tables._windowed_part import TIME_KEY, index_key
from millstream.windows import AnyWindows, Window, hopping, session, sliding, tumbling
from millstream.worker import _read
from millstream.worker._read import read_store

KEYS = st.text("ab\x00\x01é", max_size=3)
TIMES = st.integers(0, 60)


def info_of(windows: AnyWindows | None, *, ttl_ms: int | None = None) -> TableInfo:
    """A table of numbers."""
    return TableInfo(
        name="t",
        layout=key_layout(str),
        codec=codec_for("json", int),
        windows=windows,
        place=key_codec_for(str).dumps,
        partitioner=partitioner("murmur2"),
        ttl_ms=ttl_ms,
    )


PLAIN = info_of(None)
ALIGNED = info_of(hopping(0.01, 0.005, retention=0.05))
TUMBLING = info_of(tumbling(0.001, retention=1))
SLIDING = info_of(sliding(0.01, retention=0.05))
SESSIONS = info_of(session(0.01, retention=0.05))
STORED = b"\x00" * 8


def window_of(info: TableInfo, moment: int, length: int) -> Window | None:
    """Some window that the table can have."""
    windows: Any = info.windows
    if windows is None:
        return None
    if info is SESSIONS:
        return Window(moment, moment + length)
    if info is SLIDING:
        return windows.window(moment)  # type: ignore[no-any-return]
    return windows.window(windows.latest(moment))  # type: ignore[no-any-return]


@st.composite
def questions(draw: st.DrawFn) -> Read:
    key = draw(st.none() | KEYS)
    start, end = draw(st.none() | KEYS), draw(st.none() | KEYS)
    encode = PLAIN.layout.encode
    return Read(
        table="t",
        key=None if key is None else encode(key),
        start=b"\x01" if start is None else encode(start),
        end=None if end is None else encode(end),
        from_=draw(st.none() | TIMES),
        to=draw(st.none() | TIMES),
        at=draw(st.none() | TIMES),
        reverse=draw(st.booleans()),
        limit=draw(st.integers(1, 4)),
    )


def expected(info: TableInfo, entries: dict[bytes, Entry], read: Read, time: int) -> list[Entry]:
    """What a filter over all entries finds."""
    found = [
        entry
        for _, entry in sorted(entries.items(), reverse=read.reverse)
        if (
            entry.key == read.key
            if read.key is not None
            else read.start <= entry.key and (read.end is None or entry.key < read.end)
        )
    ]
    return [
        entry
        for entry in found
        if read.takes(entry.window, info.windows) and not info.expired(entry.window, STORED, time)
    ]


@settings(max_examples=400)
@given(
    st.sampled_from([PLAIN, ALIGNED, TUMBLING, SLIDING, SESSIONS]),
    st.lists(st.tuples(KEYS, TIMES, st.integers(0, 9)), max_size=40),
    st.integers(0, 70),
    questions(),
    st.integers(1, 9),
)
def test_pages_hold_what_a_filter_finds(
    info: TableInfo,
    written: list[tuple[str, int, int]],
    stream_time: int,
    read: Read,
    scanned_max: int,
) -> None:
    """All pages together are what is wanted, in order, whatever the bounds, limits and layout."""
    store = MemoryBackend().open("1-0")
    entries: dict[bytes, Entry] = {}
    stored: dict[bytes, bytes | None] = {b"\x00position": b"x"}
    for number, (key, moment, length) in enumerate(written):
        window = window_of(info, moment, length)
        entry = Entry(info.layout.encode(key), window, str(number).encode())
        state_key = info.state_key(entry.key, window)
        entries[state_key] = entry
        stored[state_key] = (STORED if info is SLIDING else b"") + entry.value
        index = index_key(state_key) if info.keyed_windows else None
        if index is not None:
            stored[index] = b""
        assert info.parse_state_key(state_key) == (entry.key, window)
    if info.windows is not None:
        stored[TIME_KEY] = stream_time.to_bytes(8, "big")
    store.write({"t": stored})
    found: list[Entry] = []
    asked = read
    while True:
        page, after = read_store(store.table("t"), info, asked, scanned_max=scanned_max)
        assert len(page) <= read.limit
        found += page
        if after is None:
            break
        assert asked.after is None or (after < asked.after if read.reverse else after > asked.after)
        asked = replace(asked, after=after)
    assert found == expected(info, entries, read, stream_time)


def test_a_long_row_of_empty_windows_is_skipped() -> None:
    """Windows that are far apart are found without looking up all those between them."""
    windows = tumbling("1s", retention="1000d")
    info = info_of(windows)
    store = MemoryBackend().open("1-0")
    key = info.layout.encode("a")
    starts = [0, 1_000, 80_000_000_000, 80_000_001_000]
    store.write({"t": {info.state_key(key, windows.window(s)): b"1" for s in starts}})
    for reverse in (False, True):
        read = Read(table="t", key=key, reverse=reverse)
        entries, after = read_store(store.table("t"), info, read)
        found = [entry.window.start for entry in entries if entry.window is not None]
        assert (found, after) == (sorted(starts, reverse=reverse), None)
    assert _read.LOOKED_UP * 10 < 80_000_000


def test_what_has_outlived_its_time_is_not_shown() -> None:
    """Entries with a time to live are hidden as soon as stream time says so."""
    info = info_of(None, ttl_ms=100)
    store = MemoryBackend().open("1-0")
    for key, written in {"old": 0, "new": 50}.items():
        stored = written.to_bytes(8, "big") + b"7"
        store.write({"t": {info.layout.encode(key): stored}})
    read = Read(table="t")
    entries, _ = read_store(store.table("t"), info, read, stream_time=120)
    assert [(info.layout.decode(e.key), e.value) for e in entries] == [("new", b"7")]
    assert len(read_store(store.table("t"), info, read, stream_time=99)[0]) == 2
