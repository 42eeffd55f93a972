"""The committer: one epoch after the other, without stopping anybody.

An epoch is cut from every shard at one moment, encoded in slices, handed to the transport, and written to the
shards' stores, in that order. A commit starts as soon as there is something to commit and the one before it is
done. Two cuts are at least ``commit_interval`` apart, and further where commits are so large that they would
take more than a share of the time: under light load the latency is that of one commit, under heavy load the
epochs grow, and more writes to one key become one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from millstream import hooks
from millstream.errors import (
    EncodeError,
    FencedError,
    IllegalGenerationError,
    LogUnavailableError,
    OutcomeUnknownError,
    RecordTooLargeError,
    UnknownMemberError,
)
from millstream.records import TopicPartition
from millstream.tables import POSITION_KEY, StorePosition, encode_position
from millstream.transports.base import CommitResult, Epoch, OffsetAndMetadata
from millstream.transports.batch import RecordPack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from millstream.clock import Clock
    from millstream.records import Headers
    from millstream.transports.base import Transport
    from millstream.worker._shard import Shard, ShardCut

__all__ = ["CommitStats", "Committer"]

logger = logging.getLogger("millstream.worker")

APPLY_KEYS_MAX = 2_048
"""Keys that are written to a store before the event loop turns."""
COMMIT_SHARE = 4
"""Two cuts are at least this many times the last commit's own work apart."""
INTERVAL_S_MAX = 0.5
BUILD_RECORD_S = 2e-6
"""What a record costs in the transport's own thread, about."""
REFUSED_S = 1.0
"""How long the group's next assignment is waited for after it has refused a commit; it comes with the next heartbeat."""
NO_HEADERS: Headers = []
"""Those of all changelog records: nobody changes them, and a list for each would be one more for the collector."""
RETRY_S = (0.005, 0.02, 0.1, 0.5, 1.0)


class CommitStats(NamedTuple):
    """One commit; times in seconds."""

    at: int
    total_s: float
    records: int
    shards: int


class Committer:
    """Commits the epochs of a worker's shards."""

    def __init__(
        self,
        *,
        transport: Transport,
        group: str,
        app: str,
        clock: Clock,
        interval_s: float,
        topic_ids: Mapping[str, str],
        atomic: bool = True,
    ) -> None:
        self._transport = transport
        self._group = group
        self._app = app
        self._clock = clock
        self._interval_s = interval_s
        self._topic_ids = topic_ids
        self._atomic = atomic
        self.shards: dict[tuple[int, int], Shard] = {}
        self.member_id = ""
        self.generation = 0
        """That of the last assignment received and applied."""
        self.lock = asyncio.Lock()
        """Held from a cut until the stores hold it."""
        self.stirred = asyncio.Event()
        """Set when there may be something to commit."""
        self.fenced: Callable[[FencedError], None] = lambda error: None
        self.stats: deque[CommitStats] = deque(maxlen=1_000)
        self.epochs = 0
        self.refused = 0
        """Epochs that the group kept out of the log."""
        self.moved = asyncio.Event()
        """Set unless the group has refused an epoch, and its next assignment is not applied yet."""
        self.moved.set()
        self.listeners: list[Callable[[ShardCut], None]] = []
        """Called for each shard's part of a committed epoch, once the store holds it."""
        self._work_s = 0.0
        self._began = 0.0

    async def run(self) -> NoReturn:
        """Commit for ever."""
        last = self._clock.monotonic() - INTERVAL_S_MAX
        while True:
            self.stirred.clear()
            if not any(shard.has_work() for shard in self.shards.values()):
                await self.stirred.wait()
            since = self._clock.monotonic() - last
            if since < self._pause_s():
                await self._clock.sleep(self._pause_s() - since)
            last = self._clock.monotonic()
            await self.commit()
            await self.until_moved()

    async def until_moved(self) -> None:
        """After a refusal, wait for the next assignment: what is tried under the old one is in vain."""
        if self.moved.is_set():
            return
        moved = asyncio.ensure_future(self.moved.wait())
        late = asyncio.ensure_future(self._clock.sleep(REFUSED_S))
        try:
            await asyncio.wait({moved, late}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            moved.cancel()
            late.cancel()

    def _pause_s(self) -> float:
        return min(max(self._interval_s, COMMIT_SHARE * self._work_s), INTERVAL_S_MAX)

    async def commit(self) -> int:
        """Commit what is finished now.

        Returns:
            How many shards had something that was committed.
        """
        async with self.lock:
            self._began = self._clock.monotonic()
            cuts = self._cut()
            if not cuts:
                # looking for a cut takes time as well, where many events wait for an earlier one
                self._work_s = self._clock.monotonic() - self._began
                return 0
            task = asyncio.ensure_future(self._carry_out(cuts))
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                await asyncio.wait([task])  # the stores must not be closed under it
                raise

    def _cut(self) -> list[ShardCut]:
        cuts = []
        for shard in self.shards.values():
            cut = shard.cut()
            if cut is not None:
                cuts.append(cut)
        if cuts:
            hooks.reached("commit.cut", shards=len(cuts))
        return cuts

    async def _carry_out(self, cuts: list[ShardCut]) -> int:
        began = self._began
        member_id, generation = self.member_id, self.generation
        now = self._clock.now()
        records: dict[TopicPartition, RecordPack] = {}
        for cut in cuts.copy():
            try:
                await self._encode(cut, records, now)
            except (EncodeError, RecordTooLargeError) as exc:
                # nobody knows which event has done it: the shard finds out, and the others go on.
                # What a broker refuses comes here, too, once a bisection has found the shard
                cuts.remove(cut)
                cut.shard.cannot_commit(exc)
        if not cuts:
            return 0
        hooks.reached("commit.encoded")
        epoch = Epoch(
            group=self._group,
            member_id=member_id,
            generation=generation,
            offsets={
                tp: OffsetAndMetadata(offset, metadata)
                for cut in cuts
                for tp, (offset, metadata) in cut.offsets.items()
            },
            records=records,
            atomic=self._atomic,
        )
        hooks.reached("commit.sent")
        encoded = self._clock.monotonic()
        try:
            result = await self._send(epoch)
        except IllegalGenerationError as exc:
            self.refused += 1
            self.moved.clear()
            for cut in cuts:
                if exc.written:  # what tables hold may be said again, as it says what is
                    cut.drop_outputs()
                cut.shard.give_back(cut)
            self.fenced(exc)
            return 0
        except FencedError as exc:
            if isinstance(exc, UnknownMemberError):
                self.refused += 1
                self.moved.clear()
            self.fenced(exc)
            return 0
        except OutcomeUnknownError as exc:
            # The offsets do not tell: an epoch of a timer's repeats those before it. A recovery finds out what is there
            logger.warning("it is not known whether a commit was done, so its shards look: %s", exc)
            for cut in cuts:
                cut.shard.rewind()
            return 0
        logged = self._clock.monotonic()
        hooks.reached("commit.committed")
        for cut in cuts:
            await self._apply(cut, result, now)
        hooks.reached("commit.applied")
        done = self._clock.monotonic()
        self.epochs += 1
        count = sum(len(listed) for listed in records.values())
        self._work_s = (encoded - began) + (done - logged) + count * BUILD_RECORD_S
        self.stats.append(CommitStats(now, done - began, count, len(cuts)))
        return len(cuts)

    async def _encode(
        self, cut: ShardCut, records: dict[TopicPartition, RecordPack], now: int
    ) -> None:
        changelogs: dict[TopicPartition, RecordPack] = {}
        for part in cut.parts:
            slices = cut.changes[part.name] = []
            topic = cut.shard.changelog(part.name)
            pack = RecordPack()
            for slice_ in part.encode():
                if not slice_:
                    continue
                slices.append(slice_)
                if topic is not None:
                    pack.fill([(now, key, data, NO_HEADERS) for key, data in slice_.items()])  # type: ignore[misc]  # plain tuples
                await asyncio.sleep(0)
            if topic is not None and pack:
                changelogs[TopicPartition(topic, cut.shard.number)] = pack
        # only now, as a value that cannot be encoded keeps all of the cut out of the epoch
        for share in cut.shares:
            for tp, sent in share.outputs.items():
                if tp in records:
                    earlier, records[tp] = records[tp], RecordPack()
                    records[tp].extend(earlier)
                    records[tp].extend(sent)
                else:
                    records[tp] = sent
        records.update(changelogs)

    async def _send(self, epoch: Epoch) -> CommitResult:
        attempt = 0
        while True:
            try:
                return await self._transport.commit(epoch)
            except LogUnavailableError as exc:
                pause_s = RETRY_S[min(attempt, len(RETRY_S) - 1)]
                attempt += 1
                if attempt == len(RETRY_S):
                    logger.warning("a commit waits for the log: %s", exc)
                await self._clock.sleep(pause_s)

    async def _apply(self, cut: ShardCut, result: CommitResult, now: int) -> None:
        shard = cut.shard
        async with shard.store_lock:
            for part in cut.parts:
                changelog = shard.changelog(part.name)
                source = shard.source(part.name)
                slices = cut.changes[part.name]
                offset = None
                topic = changelog or source
                assert topic is not None
                tp = TopicPartition(topic, shard.number)
                if source is not None:
                    offset = cut.offsets[tp][0] if tp in cut.offsets else None
                elif slices:
                    offset = result.next_offsets[tp]
                if offset is None:
                    continue
                index_key = shard.index_key(part.name)
                for number, slice_ in enumerate(slices):
                    shard.store.write({part.name: _with_index(slice_, index_key)})
                    hooks.reached("commit.applying", table=part.name)
                    if number % (APPLY_KEYS_MAX // 512) == 0:
                        await asyncio.sleep(0)
                position = StorePosition(offset, self._topic_ids[topic], now, self._app)
                shard.store.write({part.name: {POSITION_KEY: encode_position(position)}})
            shard.settle(cut)
        for listener in self.listeners:
            listener(cut)


def _with_index(
    slice_: dict[bytes, bytes | None], index_key: Callable[[bytes], bytes | None] | None
) -> Mapping[bytes, bytes | None]:
    if index_key is None:
        return slice_
    return {**slice_, **dict(_index_entries(slice_, index_key))}


def _index_entries(
    slice_: dict[bytes, bytes | None], index_key: Callable[[bytes], bytes | None]
) -> Iterable[tuple[bytes, bytes | None]]:
    for key, data in slice_.items():
        index = index_key(key)
        if index is not None:
            yield index, None if data is None else b""
