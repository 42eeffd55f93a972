"""Reading: fetches to the leaders of many partitions, which go on when nobody waits for them.

Theory of operation
-------------------
A fetch waits at the broker until there is data, and the broker answers one request of a connection after the
other. So each request has a connection for itself, and there may be two to a broker: a partition that becomes
wanted while one request waits for others need not wait for them.

What a request brings is kept by partition until a call asks for it at the same position. A call that is
cancelled leaves its requests behind, and the next one finds what they brought. No request is sent for a
partition that has something here, and so a reader holds what two requests to each broker may bring.

Each request tells the broker the leader's epoch that we know, and the epoch of the last batch that was read:
the broker answers where another leader has been chosen, or where the log was cut below our position (KIP-320).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from kio.schema.errors import ErrorCode
from kio.schema.fetch.v12 import FetchRequest, FetchResponse
from kio.schema.fetch.v12.request import FetchPartition, FetchTopic
from kio.schema.types import TopicName
from kio.static.primitive import i8, i32, i64

from millstream.errors import (
    InternalError,
    LogDamagedError,
    LogUnavailableError,
    MillstreamError,
    OffsetOutOfRangeError,
    UnknownTopicError,
)
from millstream.records import TopicPartition
from millstream.transports.base import Fetched
from millstream.transports.kafka._committed_data import committed_data
from millstream.transports.kafka._errors import LEADER_MOVED, AnswerLostError, refusal
from millstream.transports.kafka._messages import duration

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from kio.schema.fetch.v12.response import PartitionData

    from millstream.transports.kafka._cluster import Cluster, Leader
    from millstream.transports.kafka._offsets import Offsets

__all__ = ["KafkaReader"]

logger = logging.getLogger("millstream.transports.kafka")

READ_COMMITTED = i8(1)
FLIGHTS = 2
"""Requests of one reader that may wait at one broker."""
FLIGHT_WAIT_S = 0.5
"""How long a request waits at the broker, at most."""
GRACE_S = 0.1
"""A request that waits there for longer would have brought what the broker held."""
LATE_S = 5.0
"""How much later than its time an answer may be until a call returns without it."""
ANSWER_TIMEOUT_S = 10.0
PAUSE_FIRST_S = 0.01
"""After a request that failed; twice as long after each further one."""
PAUSE_LONGEST_S = 0.5
UNAVAILABLE_S = 30.0
"""For how long a partition may be out of reach before a call says so."""


class _Trouble(NamedTuple):
    """A partition that cannot be read: since when, until when we leave it alone, and why."""

    since: float
    until: float
    pause_s: float
    why: str


class _Place(NamedTuple):
    tp: TopicPartition
    position: int


@dataclass(slots=True, eq=False)
class _Flight:
    """A request on its way; ``node`` is -1 for a question about leaders."""

    node: int
    places: set[_Place]
    began: float
    until: float
    """When the broker answers, even with nothing."""
    task: asyncio.Task[None] | None = None

    def may_bring(self, now: float) -> bool:
        """Whether an answer is to be expected at once."""
        if now < self.until:
            return now < self.began + GRACE_S
        return now < self.until + LATE_S


class KafkaReader:
    """Reads committed batches; made by the transport, for one task at a time."""

    def __init__(self, cluster: Cluster, offsets: Offsets) -> None:
        self._cluster = cluster
        self._offsets = offsets
        self._flights: set[_Flight] = set()
        self._arrived: dict[_Place, Fetched | Exception] = {}
        self._answered: set[_Place] = set()
        """What was answered since the current call began, also with nothing."""
        self._served: dict[TopicPartition, int] = {}
        self._serial = 0
        self._epochs: dict[TopicPartition, tuple[int, int]] = {}
        """Where the last batch that was read ended, and its leader epoch."""
        self._topic_ids: dict[str, str] = {}
        self._trouble: dict[TopicPartition, _Trouble] = {}
        self._closed = False

    async def fetch(
        self, positions: Mapping[TopicPartition, int], *, max_bytes: int, max_wait_s: float
    ) -> list[Fetched]:
        """Bring what is there for these partitions, waiting up to ``max_wait_s`` for the first data."""
        if self._closed:
            raise InternalError("a reader was used after it was closed")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max_wait_s
        wanted = [_Place(TopicPartition(*tp), position) for tp, position in positions.items()]
        self._answered.clear()
        self._forget_others(set(wanted), max_bytes)
        while True:
            found = self._deliver(wanted, max_bytes)
            if found:
                return found
            now = loop.time()
            self._raise_if_unavailable(wanted, now)
            left_s = deadline - now
            covered = self._launch(wanted, max_bytes, max(0.0, min(left_s, FLIGHT_WAIT_S)))
            if left_s <= 0 and covered:
                return []
            if not any(place in self._arrived for place in wanted):
                await self._wait(wanted, left_s)

    async def close(self) -> None:
        """Give up what is on its way."""
        self._closed = True
        tasks = [flight.task for flight in self._flights if flight.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._arrived.clear()

    # what has arrived

    def _forget_others(self, wanted: set[_Place], max_bytes: int) -> None:
        """Drop what arrived for other positions; what nobody asks for now stays while there is room."""
        tps = {place.tp for place in wanted}
        room = max_bytes
        for place in list(self._arrived):
            if place in wanted:
                continue
            brought = self._arrived[place]
            size = len(brought.data) if isinstance(brought, Fetched) else 0
            room -= size
            if place.tp in tps or room < 0 or not isinstance(brought, Fetched):
                del self._arrived[place]

    def _deliver(self, wanted: Sequence[_Place], max_bytes: int) -> list[Fetched]:
        ready = [place for place in wanted if place in self._arrived]
        ready.sort(key=lambda place: self._served.get(place.tp, 0))
        found: list[Fetched] = []
        total = 0
        for place in ready:
            brought = self._arrived[place]
            if isinstance(brought, Exception):
                del self._arrived[place]
                raise brought
            if found and brought.data and total + len(brought.data) > max_bytes:
                continue
            del self._arrived[place]
            total += len(brought.data)
            found.append(brought)
            if brought.data:
                self._serial += 1
                self._served[place.tp] = self._serial
        return found

    def _raise_if_unavailable(self, wanted: Sequence[_Place], now: float) -> None:
        for tp, _ in wanted:
            trouble = self._trouble.get(tp)
            if trouble is not None and now - trouble.since > UNAVAILABLE_S:
                del self._trouble[tp]
                raise LogUnavailableError(
                    f"{tp} cannot be read for {UNAVAILABLE_S:g} s: {trouble.why}"
                )

    # what is on its way

    def _launch(self, wanted: Sequence[_Place], max_bytes: int, wait_s: float) -> bool:
        """Send requests for what is not on its way.

        Returns:
            Whether nothing that is wanted could be answered soon: each was answered since the call began,
            or waits at the broker, or is out of reach.
        """
        now = asyncio.get_running_loop().time()
        flying = {place for flight in self._flights for place in flight.places}
        near = {
            place for flight in self._flights if flight.may_bring(now) for place in flight.places
        }
        covered = True
        by_node: dict[int, list[tuple[_Place, Leader]]] = {}
        lost: list[_Place] = []
        for place in wanted:
            if place in flying:
                covered = covered and place not in near
                continue
            if wait_s <= 0 and place in self._answered:
                continue
            trouble = self._trouble.get(place.tp)
            if trouble is not None and trouble.until > now:
                continue
            covered = False
            if self._is_another(place):
                continue
            leader = self._cluster.known_leader(place.tp)
            if leader is None or leader.node < 0:
                lost.append(place)
            else:
                by_node.setdefault(leader.node, []).append((place, leader))
        if lost and not any(flight.node < 0 for flight in self._flights):
            self._fly(-1, lost, 0.0, self._find_leaders([place.tp for place in lost]))
        for node, places in by_node.items():
            if self._room(node, wanted, places, now):
                places.sort(key=lambda found: self._served.get(found[0].tp, 0))
                self._fly(
                    node,
                    [place for place, _ in places],
                    wait_s,
                    self._fetch(node, places, max(1, max_bytes // len(by_node)), wait_s),
                )
        return covered

    def _is_another(self, place: _Place) -> bool:
        """Whether its topic was removed and made again: positions of the old one mean nothing in it."""
        topic = self._cluster.topics.get(place.tp.topic)
        if topic is None:
            return False
        if self._topic_ids.setdefault(topic.name, topic.topic_id) == topic.topic_id:
            return False
        where = f"{self._cluster.url} any more: another one was made under its name"
        self._arrived[place] = UnknownTopicError(topic.name, where=where)
        return True

    def _room(
        self,
        node: int,
        wanted: Sequence[_Place],
        places: list[tuple[_Place, Leader]],
        now: float,
    ) -> bool:
        """Whether one more request may go there.

        Where there are enough, one is given up: that brings nothing that is wanted, or that has waited for
        a while without bringing anything, and then the new request is for its partitions as well.
        """
        flights = [flight for flight in self._flights if flight.node == node]
        if len(flights) < FLIGHTS:
            return True
        for flight in sorted(flights, key=lambda flight: len(flight.places)):
            still = flight.places.intersection(wanted)
            if (not still or not flight.may_bring(now)) and flight.task is not None:
                flight.task.cancel()
                self._flights.discard(flight)
                for place in still:
                    leader = self._cluster.known_leader(place.tp)
                    if leader is not None and leader.node == node:
                        places.append((place, leader))
                return True
        return False

    def _fly(
        self,
        node: int,
        places: Sequence[_Place],
        wait_s: float,
        work: Coroutine[Any, Any, None],
    ) -> None:
        now = asyncio.get_running_loop().time()
        flight = _Flight(node, set(places), now, now + wait_s)
        flight.task = asyncio.ensure_future(work)
        flight.task.add_done_callback(lambda task: self._landed(flight, task))
        self._flights.add(flight)

    def _landed(self, flight: _Flight, task: asyncio.Task[None]) -> None:
        self._flights.discard(flight)
        if task.cancelled():
            return
        error = task.exception()
        self._answered |= flight.places
        for place in flight.places:
            if error is None:
                continue
            if isinstance(error, (LogUnavailableError, AnswerLostError)):
                self._failed(place.tp, str(error))
            elif isinstance(error, Exception):
                self._arrived[place] = error

    def _failed(self, tp: TopicPartition, why: str) -> None:
        now = asyncio.get_running_loop().time()
        known = self._trouble.get(tp)
        if known is None:
            logger.info("%s cannot be read now: %s", tp, why)
        pause_s = PAUSE_FIRST_S if known is None else min(2 * known.pause_s, PAUSE_LONGEST_S)
        since = now if known is None else known.since
        self._trouble[tp] = _Trouble(since, now + pause_s, pause_s, why)

    async def _wait(self, wanted: Sequence[_Place], left_s: float) -> None:
        """Until something lands, or a pause is over, or the time."""
        now = asyncio.get_running_loop().time()
        pauses = [self._trouble[tp].until - now for tp, _ in wanted if tp in self._trouble]
        timeout_s = min([GRACE_S if left_s <= 0 else left_s, *(p for p in pauses if p > 0)])
        tasks = [flight.task for flight in self._flights if flight.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(timeout_s)

    # in flight

    async def _find_leaders(self, tps: Sequence[TopicPartition]) -> None:
        await self._cluster.leaders(tps)

    async def _fetch(
        self,
        node: int,
        places: Sequence[tuple[_Place, Leader]],
        max_bytes: int,
        wait_s: float,
    ) -> None:
        share = max_bytes if len(places) == 1 else max(1, max_bytes // 2)
        topics: dict[str, list[FetchPartition]] = {}
        for place, leader in places:
            topics.setdefault(place.tp.topic, []).append(
                FetchPartition(
                    partition=i32(place.tp.partition),
                    current_leader_epoch=i32(leader.epoch),
                    fetch_offset=i64(place.position),
                    last_fetched_epoch=i32(self._epoch_before(place)),
                    partition_max_bytes=i32(share),
                )
            )
        request = FetchRequest(
            max_wait=duration(wait_s),
            min_bytes=i32(1),
            max_bytes=i32(max_bytes),
            isolation_level=READ_COMMITTED,
            topics=tuple(
                FetchTopic(topic=TopicName(name), partitions=tuple(found))
                for name, found in topics.items()
            ),
            forgotten_topics_data=(),
        )
        try:
            answer = await self._cluster.send(
                node, request, FetchResponse, timeout_s=wait_s + ANSWER_TIMEOUT_S, alone=True
            )
        except (LogUnavailableError, AnswerLostError):
            for place, leader in places:
                self._cluster.forget_leader(place.tp, leader.epoch)
            raise
        if answer.error_code:
            raise refusal(answer.error_code, "fetch", where=self._cluster.url)
        parts = {
            TopicPartition(topic.topic, part.partition_index): part
            for topic in answer.responses
            for part in topic.partitions
        }
        for place, leader in places:
            part = parts.get(place.tp)
            if part is None:
                self._failed(place.tp, "the broker did not answer for it")
                continue
            try:
                await self._take(place, leader, part)
            except MillstreamError as exc:
                self._arrived[place] = exc

    def _epoch_before(self, place: _Place) -> int:
        position, epoch = self._epochs.get(place.tp, (-1, -1))
        return epoch if position == place.position else -1

    async def _take(self, place: _Place, leader: Leader, part: PartitionData) -> None:
        tp, position = place
        code = part.error_code
        if code is ErrorCode.offset_out_of_range:
            await self._out_of_range(place)
            return
        if code in LEADER_MOVED or code is ErrorCode.unknown_topic_or_partition:
            self._cluster.forget_leader(tp, leader.epoch)
            self._failed(tp, code.name)
            return
        if code:
            error = refusal(code, f"fetch {tp}", where=self._cluster.url)
            if isinstance(error, LogUnavailableError):
                self._failed(tp, str(error))
                return
            raise error
        self._trouble.pop(tp, None)
        if part.diverging_epoch.end_offset >= 0:
            raise LogDamagedError(
                f"{tp}: what was read from offset {part.diverging_epoch.end_offset} to"
                f" {position - 1} is not in the log any more: a broker without it became the leader"
                f" (an unclean election). What was made of it has to be checked."
            )
        aborted = [
            (int(each.producer_id), int(each.first_offset))
            for each in part.aborted_transactions or ()
        ]
        found = committed_data(part.records or b"", aborted, position=position, where=str(tp))
        if found.next_offset > position:
            self._epochs[tp] = (found.next_offset, found.leader_epoch)
        # behind an open transaction there is nothing to wait for: it may stay open for long
        end = max(int(part.last_stable_offset), found.next_offset)
        if end > position:
            self._arrived[place] = Fetched(tp, found.data, found.next_offset, end)

    async def _out_of_range(self, place: _Place) -> None:
        tp, position = place
        start = (await self._offsets.starts([tp]))[tp]
        end = (await self._offsets.ends([tp]))[tp]
        if not start <= position <= end:
            raise OffsetOutOfRangeError(str(tp), position=position, start=start, end=end)
