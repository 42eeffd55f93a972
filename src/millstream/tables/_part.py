"""One table in one shard: this epoch's values, over those on their way, over the store.

Theory of operation
-------------------
A key is looked up in four places, newest first::

    dirty        changed, or handed out, since the last cut      values
    committing   of the epoch on its way to the log              values, and their bytes once encoded
    cache        clean entries that were used lately             values, or bytes where values can change
    store        what the changelog is known to hold             bytes

``near`` is a part of the store that is at hand: what `millstream.worker._ahead` has read for the records to come. The
store's next change ends it.

A *cut* moves ``dirty`` to ``committing`` and starts an empty one; nothing is copied. The committer encodes
``committing`` in slices while events go on, hands it to the log, writes it to the store, and drops it
(`settle`), or gives it back (`restore`) when the group has moved on and the shard stayed.

Where values can change in place (any type that is not known to be immutable):

* reading an entry hands out an object that the program may change, so reading makes the entry dirty; the cut
  drops it again if its bytes are what they were (``base``);
* an object in ``committing`` is encoded before anyone touches its key again, and whoever touches it gets an
  object of their own;
* the cache keeps bytes.

In a shard with journals, an event's first touch of an entry records how it looked (`PreImage`), and touching
what another unfinished or uncommitted event has touched ties the two: see `millstream.worker._cut`.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Any, Final

from millstream.context import PreImage, Scope, current
from millstream.errors import DecodeError, EncodeError, RecordTooLargeError, TopologyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from millstream.state.base import TableStore

__all__ = ["DELETED", "MISSING", "SCHEMA_KEY", "TablePart"]


class _Marker:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


MISSING: Final = _Marker("MISSING")
"""There is no such entry."""
DELETED: Final = _Marker("DELETED")
"""The entry is deleted in this epoch or in the one on its way."""

SCHEMA_KEY: Final = b"\x00schema"
"""Where the text is that tells with which type all of the stored values can be read."""
FORM_MARK: Final = "\x00form: "
"""Between the schema of the values and the form in which they are kept."""
CHECK_SLICE: Final = 512
"""Stored values that are decoded before the event loop turns once."""
AHEAD_MAX: Final = 512
"""Entries that are read ahead at once: the event loop waits as long."""
ENCODE_SLICE: Final = 512
"""Entries that are encoded before the event loop turns once."""


class TablePart:
    """The entries of one table in one shard."""

    __slots__ = (
        "_cache_old",
        "_cache_size",
        "_check",
        "_order",
        "_schema_is_kept",
        "base",
        "cache",
        "changed_system",
        "committing",
        "committing_base",
        "committing_fresh",
        "committing_gone",
        "committing_system",
        "decode_key",
        "dirty",
        "dumps",
        "encode_key",
        "encoded",
        "form",
        "fresh",
        "gone",
        "keep_schema",
        "last_toucher",
        "loads",
        "mend",
        "missed",
        "mutable",
        "name",
        "near",
        "schema",
        "show",
        "store",
        "type_name",
        "value_bytes_max",
    )

    def __init__(
        self,
        name: str,
        *,
        store: TableStore,
        encode_key: Callable[[Any], bytes],
        decode_key: Callable[[bytes], Any],
        dumps: Callable[[Any], bytes],
        loads: Callable[[bytes], Any],
        mutable: bool,
        check: Callable[[Any], None],
        type_name: str = "value",
        cache_size: int = 32_768,
    ) -> None:
        """
        Args:
            encode_key: key to its order-preserving bytes; raises TypeError for a key of the wrong type.
            mutable: whether values may change in place.
            check: raises WrongShardError for a key of another shard; called on a key's first use.
            cache_size: clean entries that are kept, at most twice this many.
        """
        self.name = name
        self.store = store
        self.encode_key = encode_key
        self.decode_key = decode_key
        self.dumps = dumps
        self.loads = loads
        self.mutable = mutable
        self.type_name = type_name
        self._check = check
        self._cache_size = cache_size
        self._order = itertools.count().__next__
        self.missed = 0
        """How often the store was asked for one entry."""
        self.near: dict[Any, bytes] = {}
        """What was read ahead, until somebody asks for it or the store changes."""
        self.value_bytes_max = 1 << 40
        """The largest value, in bytes; set by whoever makes the part."""
        self.show: Callable[[Any], Any] | None = None
        """Makes what programs see of a kept value, where they see another one; set by whoever makes the part."""
        self.mend = "Convert it with upgrade=, or reset the table"
        """What to do about stored values that do not decode; set likewise."""
        self.schema = ""
        """What `millstream.serialization.value_schema` says of the values; set likewise, empty for none."""
        self.form = ""
        """How entries are kept, in words: what was kept in another form means something else. Set likewise."""
        self.keep_schema: Callable[[str], None] = self._keep_schema
        """Store `schema` with the next cut: in the changelog, or wherever those put it who have none."""
        self._schema_is_kept = True
        self.dirty: dict[Any, Any] = {}
        self.base: dict[Any, bytes] = {}
        self.fresh: set[Any] = set()
        """Keys in ``dirty`` that hold a default which nobody assigned."""
        self.gone: set[Any] = set()
        """Those of ``fresh`` whose entry was deleted before: a default that stays as it is means a deletion."""
        self.committing: dict[Any, Any] = {}
        self.committing_base: dict[Any, bytes] = {}
        self.committing_fresh: set[Any] = set()
        self.committing_gone: set[Any] = set()
        self.encoded: dict[Any, bytes] = {}
        """Bytes of entries in ``committing``."""
        self.cache: dict[Any, Any] = {}
        self._cache_old: dict[Any, Any] = {}
        self.changed_system: dict[bytes, bytes | None] = {}
        """Entries under reserved keys (first byte 0) to go with the next cut."""
        self.committing_system: dict[bytes, bytes | None] = {}
        self.last_toucher: dict[Any, Scope] = {}

    # reading and writing, by the event at hand ----------------------------------------------------

    def get(self, key: Any, scope: Scope) -> Any:
        """The value, or `MISSING`. Makes the entry dirty where values can change in place."""
        if scope.journal is not None:
            self.touch(key, scope)
        value = self.dirty.get(key, MISSING)
        if value is MISSING:
            value = self.load(key)
        return MISSING if value is DELETED else value

    def look_up(self, key: Any, scope: Scope) -> Any:
        """The value, or `MISSING`, for who will not change the entry: an object of the caller's own; nothing becomes dirty."""
        if not self.mutable:
            return self.get(key, scope)
        if scope.journal is not None:
            self.touch(key, scope)
        value = self.dirty.get(key, MISSING)
        if value is DELETED:
            return MISSING
        if value is not MISSING:
            return self.own(key, value)
        data = self._bytes_of(key)
        if data is None:
            return MISSING
        if key not in self.committing:
            self.trim()
            self.cache[key] = data
        return self.decode(key, data)

    def set(self, key: Any, value: Any, scope: Scope) -> None:
        """Give the entry a value."""
        if scope.journal is not None:
            self.touch(key, scope)
        if key not in self.dirty:
            if key not in self.committing and key not in self.cache:
                self._check(key)
        elif key in self.fresh:
            self.fresh.discard(key)
            self.gone.discard(key)
            del self.base[key]
        self.dirty[key] = value

    def delete(self, key: Any, scope: Scope) -> None:
        """Remove the entry, which may be missing."""
        self.set(key, DELETED, scope)

    def keep_default(self, key: Any, value: Any) -> None:
        """Hold a default that was handed out, so that it is kept if it is changed in place."""
        self.admit(key)
        if self.dirty.get(key) is DELETED:
            self.gone.add(key)
        self.dirty[key] = value
        self.base[key] = self._encode(key, value)
        self.fresh.add(key)

    def contains(self, key: Any, scope: Scope) -> bool:
        """Whether there is such an entry; hands nothing out, and so makes nothing dirty."""
        if scope.journal is not None:
            self.touch(key, scope)
        if key in self.dirty:
            return self._is_kept(key)
        if key in self.committing:
            return (
                self._bytes_of(key) is not None
                if self.mutable
                else self.committing[key] is not DELETED
            )
        self.admit(key)
        return self.cached(key) is not MISSING or key in self.near or self._stored(key) is not None

    def admit(self, key: Any) -> None:
        """Check the key on its first use: its type, and that it belongs to this shard."""
        if key not in self.committing and key not in self.cache:
            self._check(key)

    def load(self, key: Any) -> Any:
        """The value of a key that is not dirty, or `MISSING` or `DELETED`."""
        if self.mutable:
            return self._load_mutable(key)
        value = self.committing.get(key, MISSING)
        if value is MISSING:
            value = self.cache.get(key, MISSING)
            if value is MISSING:
                if self._cache_old:
                    value = self._cache_old.pop(key, MISSING)
                if value is MISSING:
                    data = self._stored(key)
                    if data is None:
                        return MISSING
                    value = self.decode(key, data)
                    self.trim()
                self.cache[key] = value
        return value

    def _load_mutable(self, key: Any) -> Any:
        data = self._bytes_of(key)
        return MISSING if data is None else self._hand_out(key, data)

    def _hand_out(self, key: Any, data: bytes) -> Any:
        """The value of an entry, which may change in place from now on."""
        value = self.dirty[key] = self.decode(key, data)
        self.base[key] = data
        return value

    def _bytes_of(self, key: Any) -> bytes | None:
        """The bytes of a key that is not dirty, in a table whose values can change in place."""
        if key in self.committing:
            value = self.committing[key]
            if value is DELETED:
                return None
            data = self.encoded.get(key)
            if data is None:
                data = self.encoded[key] = self._encode(key, value)
            if key in self.committing_fresh and data == self.committing_base[key]:
                return None
            return data
        cached = self.cached(key)
        if cached is not MISSING:
            return cached  # type: ignore[no-any-return]
        return self._stored(key)

    def _stored(self, key: Any) -> bytes | None:
        """The bytes of a key that is in none of the dictionaries."""
        self._check(key)
        data = self.near.pop(key, None)
        if data is None:
            self.missed += 1
            data = self.store.get(self.encode_key(key))
        return data

    def read_ahead(self, keys: Sequence[Any], timestamps: Sequence[int]) -> tuple[int, list[Any]]:
        """Bring near what is in the store alone, for records that will probably ask for it.

        Args:
            keys: of the records.
            timestamps: of the same records, in ms.

        Returns:
            How many entries the store was asked for, and those that it has.
        """
        dirty, committing, cache, old = self.dirty, self.committing, self.cache, self._cache_old
        near = self.near
        entries = [
            entry
            for entry in dict.fromkeys(
                itertools.islice(self.entries_of(keys, timestamps), AHEAD_MAX)
            )
            if not (entry in dirty or entry in cache or entry in committing or entry in old)
        ]
        if not entries:
            return 0, entries
        stored = self.store.get_many([self.encode_key(entry) for entry in entries])
        found = []
        for entry, data in zip(entries, stored, strict=True):
            if data is not None:
                near[entry] = data
                found.append(entry)
        return len(entries), found

    def entries_of(self, keys: Sequence[Any], timestamps: Sequence[int]) -> Iterable[Any]:
        """The entries that the events of some records will probably ask for."""
        return keys

    def cached(self, key: Any) -> Any:
        """The clean entry, or `MISSING`."""
        value = self.cache.get(key, MISSING)
        if value is MISSING and self._cache_old:
            value = self._cache_old.pop(key, MISSING)
            if value is not MISSING:
                self.cache[key] = value
        return value

    def trim(self) -> None:
        """Keep the clean entries within their bound."""
        if len(self.cache) > self._cache_size:
            self._cache_old, self.cache = self.cache, {}

    def forget_clean(self) -> None:
        """Drop the clean entries: the store has changed under them."""
        self.cache, self._cache_old, self.near = {}, {}, {}

    def decode(self, key: Any, data: bytes) -> Any:
        """Stored bytes to a value.

        Raises:
            DecodeError: names table and key.
        """
        try:
            return self.loads(data)
        except Exception as exc:
            raise DecodeError(
                f"table {self.name!r}, key {key!r}",
                part="stored value",
                type_name=self.type_name,
                reason=f"{exc}. {self.mend}",
            ) from exc

    @property
    def kept_as(self) -> str:
        """What the part's entries are, in words."""
        return "values"

    def check_entry(self, key: Any, data: bytes) -> None:
        """Decode what is stored of an entry, to see whether it can be.

        Raises:
            DecodeError: it cannot.
        """
        self.decode(key, data)

    def known_schema(self) -> str | None:
        """The `schema` with which all of the stored values can be read, as far as the changelog tells."""
        found = self.store.get(SCHEMA_KEY)
        return None if found is None else found.decode().partition(FORM_MARK)[0]

    def check_form(self) -> None:
        """See that what is stored was kept in the present form, as far as the changelog tells.

        Raises:
            TopologyError: it was kept in another one, and would be taken for something that it is not.
        """
        if not self.form:
            return
        kept = (self.store.get(SCHEMA_KEY) or b"").decode().partition(FORM_MARK)[2]
        if kept == self.form:
            return
        # whatever there is: entries of the other form need not lie where those of this one would
        if kept and next(iter(self.store.keys(b"\x01")), None) is not None:
            raise TopologyError(
                f"table {self.name!r} has state of another form: it was kept as {kept}, and the program"
                f" keeps {self.form}. Give it back its form; or give it another name, to begin anew beside"
                f" (the old one then goes with: millstream reset --orphans); or begin anew with all of the"
                f" app: millstream reset"
            )
        self._schema_is_kept = False

    def check_stored(self, known: str | None) -> Iterator[int]:
        """Decode what is stored, so that values of an older form are met before the first event.

        Nothing is decoded where the stored values are known to be of the present type. That they are is kept with the
        next cut; where nothing is stored yet, with the first that has something.

        Args:
            known: the `schema` with which they can be read.

        Yields:
            How many values were decoded in a slice, after which the event loop should turn.

        Raises:
            DecodeError: names table, key and field.
        """
        if not self.schema or known == self.schema:
            return
        self._schema_is_kept = False
        stored = self.stored()
        any_stored = False
        while slice_ := list(itertools.islice(stored, CHECK_SLICE)):
            any_stored = True
            for data, value in slice_:
                self.check_entry(self.decode_key(data), value)
            yield len(slice_)
        if any_stored:
            self.keep_schema(self.schema)
            self._schema_is_kept = True

    def _keep_schema(self, schema: str) -> None:
        data = f"{schema}{FORM_MARK}{self.form}" if self.form else schema
        self.changed_system[SCHEMA_KEY] = data.encode()

    def stored(self) -> Iterator[tuple[bytes, bytes]]:
        """Entries of the store as it has them, without what the part keeps for itself."""
        return self.store.items(b"\x01")

    def _encode(self, key: Any, value: Any) -> bytes:
        try:
            data = self.dumps(value)
        except Exception as exc:
            raise EncodeError(
                f"table {self.name!r}, key {key!r}",
                value=value,
                reason=str(exc),
                table=self.name,
            ) from exc
        if len(data) > self.value_bytes_max:
            raise RecordTooLargeError(
                f"table {self.name!r}, key {key!r}",
                size=len(data),
                limit=self.value_bytes_max,
                setting="record_bytes_max",
                table=self.name,
            )
        return data

    def check_value(self, key: Any) -> None:
        """See whether the entry, as it is now, can be committed.

        Raises:
            EncodeError, RecordTooLargeError: it cannot.
        """
        value = self.dirty.get(key, DELETED)
        if value is not DELETED:
            self._encode(key, value)

    def _is_kept(self, key: Any) -> bool:
        value = self.dirty[key]
        if value is DELETED:
            return False
        return key not in self.fresh or self._encode(key, value) != self.base[key]

    # ranges ---------------------------------------------------------------------------------------

    def items(
        self, start: bytes, end: bytes | None, scope: Scope, *, reverse: bool = False
    ) -> Iterator[tuple[Any, Any]]:
        """Entries with ``start <= key bytes < end`` in key order, as they are while iterating.

        Keys that become part of the range after the iteration has begun are left out.
        """
        for key in self.keys(start, end, reverse=reverse):
            value = self.get(key, scope)
            if value is not MISSING:
                yield key, value

    def keys(self, start: bytes, end: bytes | None, *, reverse: bool = False) -> Iterator[Any]:
        """Keys in order; those deleted meanwhile may still come."""
        overlay: dict[bytes, Any] = {}
        for source in (self.committing, self.dirty):
            for key in source:
                data = self.encode_key(key)
                if start <= data and (end is None or data < end):
                    overlay[data] = key
        self._see_range(overlay.values())
        below = (
            (data, MISSING)
            for data, _ in self.store.items(max(start, b"\x01"), end, reverse=reverse)
            if data not in overlay
        )
        above = sorted(overlay.items(), key=lambda pair: pair[0], reverse=reverse)
        for data, key in heapq.merge(above, below, key=lambda pair: pair[0], reverse=reverse):
            if key is MISSING:
                yield self.decode_key(data)
            elif key in self.dirty:
                if self._is_kept(key):
                    yield key
            elif self.mutable:
                if self._bytes_of(key) is not None:
                    yield key
            elif self.committing.get(key) is not DELETED:
                yield key

    def _see_range(self, keys: Iterable[Any]) -> None:
        """The event at hand sees that these entries are there, or are not: whoever touched them made it so."""
        scope = current.get(None)
        if scope is None or scope.journal is None:
            return
        for key in keys:
            last = self.last_toucher.get(key)
            if last is not None and last is not scope:
                scope.depends.add(last)

    # the journal ----------------------------------------------------------------------------------

    def touch(self, key: Any, scope: Scope) -> None:
        """Record how the entry looks before ``scope`` first touches it, and whose work it sees."""
        journal = scope.journal
        assert journal is not None
        last = self.last_toucher.get(key)
        if last is not scope:
            if last is not None:
                scope.depends.add(last)
                if last.open and self.mutable:
                    last.depends.add(scope)
            self.last_toucher[key] = scope
            if (self, key) in journal:
                if last is not None:
                    last.depends.add(scope)
            else:
                try:
                    journal[self, key] = self._look(key)
                except (EncodeError, RecordTooLargeError) as exc:
                    exc.culprit = last
                    raise
        scope.wrote = True

    def _look(self, key: Any) -> PreImage:
        if key not in self.dirty:
            return PreImage(False, None, self._order())
        value = self.dirty[key]
        if value is DELETED or not self.mutable:
            return PreImage(True, value, self._order())
        if key in self.fresh and self._encode(key, value) == self.base[key]:
            if key in self.gone:
                return PreImage(True, DELETED, self._order())
            return PreImage(False, None, self._order())
        return PreImage(True, self._encode(key, value), self._order())

    def has_changed(self, key: Any, before: PreImage) -> bool:
        """Whether the entry is another than it was when an event first touched it."""
        live = self.dirty.get(key, MISSING)
        if live is MISSING:
            return before.dirty
        if self.mutable and live is not DELETED:
            found = before.value if before.dirty else self.base.get(key)
            return found is DELETED or self._encode(key, live) != found
        return not before.dirty or live is not before.value

    def undo(self, key: Any, before: PreImage) -> None:
        """Make the entry look as it did before an event, on which no other event depends."""
        if key in self.fresh:
            self.fresh.discard(key)
            self.gone.discard(key)
            del self.base[key]
        if not before.dirty:
            self.dirty.pop(key, None)
            self.base.pop(key, None)
        elif self.mutable and before.value is not DELETED:
            self.dirty[key] = self.decode(key, before.value)
        else:
            self.dirty[key] = before.value

    # hooks for parts that keep time ---------------------------------------------------------------

    def recovered(self) -> None:
        """The store is whole: read from it what a part keeps in memory."""

    def used_by(self, agent: str) -> None:
        """An agent uses the part for the first time since the shard was recovered."""

    def advance(self, by: int) -> None:
        """Move the part's own event time forward, in ms."""

    def value_of(self, stored: Any) -> Any:
        """What a decoded entry is to users."""
        return stored

    def own(self, key: Any, stored: Any) -> Any:
        """A decoded entry as an object of the caller's own: a change to it in place is none to the table."""
        return self.decode(key, self._encode(key, stored)) if self.mutable else stored

    def shown(self, key: Any) -> Any:
        """A key of this part's dictionaries as users see it."""
        return key

    def take_times(self, events: Sequence[Scope]) -> None:
        """These events go with the cut: so does the event time that they brought."""

    # the commit -----------------------------------------------------------------------------------

    def is_dirty(self) -> bool:
        """Whether the next cut takes something from here."""
        return bool(self.dirty or self.changed_system)

    def cut(self, excluded: Mapping[Any, PreImage]) -> None:
        """Move what is dirty to ``committing``, which must be empty.

        Args:
            excluded: for entries that an event outside the cut has touched: how they looked before the
                first such event. Those stay dirty; what goes is how they looked.
        """
        if not self._schema_is_kept and self.dirty:
            self.keep_schema(self.schema)
            self._schema_is_kept = True
        self.committing, self.dirty = self.dirty, {}
        self.committing_base, self.base = self.base, {}
        self.committing_system, self.changed_system = self.changed_system, {}
        self.committing_fresh, self.fresh = self.fresh, set()
        self.committing_gone, self.gone = self.gone, set()
        for key, before in excluded.items():
            live = self.committing.pop(key, MISSING)
            if live is not MISSING:
                self.dirty[key] = live
            base = self.committing_base.get(key)
            fresh, gone = key in self.committing_fresh, key in self.committing_gone
            if before.dirty and self.mutable and before.value is not DELETED:
                self.committing[key] = MISSING  # its bytes are in ``encoded``
                self.encoded[key] = before.value
                if not gone:
                    self.base[key] = before.value
                    continue
                # excluded events deleted it, and were handed a default after that
            elif before.dirty:
                self.committing[key] = before.value
            if fresh:
                # a default that excluded events were handed: the epoch knows nothing of it
                assert base is not None
                self.fresh.add(key)
                self.base[key] = base
                self.committing_fresh.discard(key)
                self.committing_gone.discard(key)
                del self.committing_base[key]
                if gone and before.value is not DELETED:
                    self.gone.add(key)
            elif base is not None and not before.dirty:
                self.base[key] = base

    def encode(self) -> Iterator[dict[bytes, bytes | None]]:
        """Encode ``committing`` in slices; entries that have not changed fall out.

        Yields:
            State key to value bytes, or None for a deleted entry; the last slice holds system entries.
        """
        encode = self._encode_mutable if self.mutable else self._encode_values
        entries = list(self.committing.items())
        for at in range(0, max(1, len(entries)), ENCODE_SLICE):
            slice_ = encode(entries[at : at + ENCODE_SLICE])
            if at + ENCODE_SLICE >= len(entries):
                slice_.update(self.committing_system)
            yield slice_

    def _encode_values(self, entries: list[tuple[Any, Any]]) -> dict[bytes, bytes | None]:
        encode_key, encode = self.encode_key, self._encode
        return {
            encode_key(key): None if value is DELETED else encode(key, value)
            for key, value in entries
        }

    def _encode_mutable(self, entries: list[tuple[Any, Any]]) -> dict[bytes, bytes | None]:
        slice_: dict[bytes, bytes | None] = {}
        base, encoded = self.committing_base, self.encoded
        for key, value in entries:
            data: bytes | None = None
            if value is not DELETED:
                data = encoded.get(key)
                if data is None:
                    data = encoded[key] = self._encode(key, value)
                if base.get(key) == data:
                    if key not in self.committing_fresh:
                        continue
                    del encoded[key]
                    if key not in self.committing_gone:
                        del self.committing[key]
                        continue
                    self.committing[key] = DELETED
                    del base[key]
                    data = None
            slice_[self.encode_key(key)] = data
        return slice_

    def settle(self) -> None:
        """The store holds ``committing`` now: keep it as clean entries, and drop it."""
        self.near.clear()
        if self.committing:
            self.trim()
            cache, old = self.cache, self._cache_old
            if self.mutable:
                for key, value in self.committing.items():
                    if value is DELETED:
                        cache.pop(key, None)
                        old.pop(key, None)
                    elif key in self.encoded:
                        cache[key] = self.encoded[key]
            else:
                cache.update(self.committing)
                for key in [k for k, v in self.committing.items() if v is DELETED]:
                    cache.pop(key, None)
                    old.pop(key, None)
        self._drop()

    def restore(self, events: Iterable[Scope] = ()) -> None:
        """The epoch was refused and the shard stayed: what was on its way is dirty again.

        Args:
            events: those with a journal that are not cut. Where one was the first to touch an entry after the
                cut, what it found is of the running epoch again.
        """
        self._restore_images(events)
        for key, value in self.committing.items():
            gone = value is DELETED or key in self.committing_gone
            if key in self.fresh:
                if gone:
                    self.gone.add(key)
                continue
            base = self.committing_base.get(key)
            if base is None or (key in self.dirty and key in self.committing_fresh):
                self.base.pop(key, None)
            else:
                self.base[key] = base
            if key in self.dirty:
                continue
            if value is MISSING or (key in self.encoded and value is not DELETED):
                value = self.decode(key, self.encoded[key])
            self.dirty[key] = value
            if key in self.committing_fresh and value is not DELETED:
                self.fresh.add(key)
                if gone:
                    self.gone.add(key)
        self.changed_system = {**self.committing_system, **self.changed_system}
        self._drop()

    def _restore_images(self, events: Iterable[Scope]) -> None:
        for event in events:
            if event.journal is None:
                continue
            for (part, key), before in event.journal.items():
                if part is not self or before.dirty or key not in self.committing:
                    continue
                value = self.committing[key]
                if self.mutable and value is not DELETED:
                    value = self._bytes_of(key)
                    if value is None:
                        if key not in self.committing_gone:
                            continue
                        value = DELETED
                event.journal[part, key] = before._replace(dirty=True, value=value)

    def _drop(self) -> None:
        self.committing, self.committing_base, self.encoded = {}, {}, {}
        self.committing_system = {}
        self.committing_fresh, self.committing_gone = set(), set()
