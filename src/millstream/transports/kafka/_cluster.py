"""The brokers of a cluster: who leads what, who coordinates what, and a connection to each where one is needed.

A cluster's connections belong to one event loop. Another thread makes a `Cluster` of its own from the same
`Access`.

Requests that are answered at once share one connection to each broker. What waits at the broker (a fetch, a
join) takes a connection for itself, because a broker answers the requests of a connection in their order.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from kio.schema.errors import ErrorCode
from kio.schema.find_coordinator.v3 import FindCoordinatorRequest, FindCoordinatorResponse
from kio.schema.metadata.v11 import MetadataRequest, MetadataResponse
from kio.schema.metadata.v11.request import MetadataRequestTopic
from kio.schema.types import TopicName
from kio.static.primitive import i8

from millstream.errors import InternalError, LogUnavailableError, UnknownTopicError
from millstream.records import TopicPartition
from millstream.transports.kafka._address import Address, url_of
from millstream.transports.kafka._connection import Connection
from millstream.transports.kafka._errors import (
    COORDINATOR_MOVED,
    AnswerLostError,
    Patience,
    refusal,
)
from millstream.transports.kafka._security import Security

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection, Iterable, Mapping

    from kio.static.protocol import Payload

__all__ = ["GROUP", "TRANSACTION", "Access", "Cluster", "Leader", "Topic"]

R = TypeVar("R", bound="Payload")

GROUP = 0
"""`Cluster.coordinator` of a group."""
TRANSACTION = 1
"""`Cluster.coordinator` of a transactional id."""

ANSWER_TIMEOUT_S = 10.0
"""How long a broker may take to answer."""
ASK_TIMEOUT_S = 5.0
"""The same for a question that another broker can answer as well."""
SEARCH_TIMEOUT_S = 30.0
"""How long to look for a leader or a coordinator."""
ASKED_MIN = 3
"""How often a topic is not there until we believe it: brokers hear of a new one one after the other."""
IDLE_CONNECTIONS = 4
"""Connections to one broker that are kept for the next request that waits there."""
RECONNECT_FIRST_S = 0.05
RECONNECT_LONGEST_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """All it takes to reach a cluster; may be used from any thread."""

    addresses: tuple[Address, ...]
    security: Security = field(default_factory=Security)
    client_id: str = "millstream"

    @property
    def url(self) -> str:
        """``kafka://host:port,…``"""
        return url_of(self.addresses)


class Leader(NamedTuple):
    """Who leads a partition; ``node`` is -1 while nobody does."""

    node: int
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A topic as the cluster's metadata has it."""

    name: str
    topic_id: str
    internal: bool
    leaders: Mapping[int, Leader]
    replication: int
    operations: int | None = None
    """What we may do with it, a bit for each of Kafka's operations; None where it was not asked for."""


class Cluster:
    """A view of a cluster. An async context manager; everything else only inside it."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.topics: dict[str, Topic] = {}
        """What was last heard of each topic that was asked for."""
        self._context: ssl.SSLContext | None = None
        self._nodes: dict[int, _Node] = {}
        self._bootstrap: list[_Node] = []
        self._coordinators: dict[tuple[int, str], int] = {}
        self._refreshing: dict[str, asyncio.Task[dict[str, Topic]]] = {}
        self._open = False

    @property
    def url(self) -> str:
        """The cluster's url."""
        return self.access.url

    async def __aenter__(self) -> Cluster:
        """Find the brokers.

        Raises:
            LogUnavailableError: none of the addresses answers.
            ConfigurationError: encryption or login do not fit.
        """
        self._context = self.access.security.context()
        self._bootstrap = [_Node(address, self) for address in self.access.addresses]
        random.shuffle(self._bootstrap)
        self._open = True
        try:
            await self._learn(())
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._open = False
        refreshing = set(self._refreshing.values())
        for task in refreshing:
            task.cancel()
        for node in (*self._bootstrap, *self._nodes.values()):
            node.close()
        if refreshing:
            await asyncio.wait(refreshing)
        await asyncio.sleep(0)  # sockets are closed in the loop's next turn

    # brokers

    @property
    def nodes(self) -> dict[int, Address]:
        """Every broker by its id."""
        return {number: node.address for number, node in self._nodes.items()}

    async def send(
        self,
        node: int,
        request: Payload,
        response: type[R],
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
        alone: bool = False,
    ) -> R:
        """Send a request to a broker and return its answer; connects where there is no connection.

        Args:
            alone: on a connection that nobody else uses meanwhile; closed if this is cancelled.

        Raises:
            LogUnavailableError: it was not sent.
            AnswerLostError: it was sent, and no answer came.
            ConfigurationError: the broker does not speak this version, or refuses us.
        """
        found = self._nodes.get(node)
        if found is None:
            raise LogUnavailableError(f"{self.url} has no broker {node} now")
        return await found.send(request, response, timeout_s=timeout_s, alone=alone)

    async def ask(
        self, request: Payload, response: type[R], *, timeout_s: float = ASK_TIMEOUT_S
    ) -> R:
        """Send a question to any broker; asks others where one does not answer.

        Raises:
            LogUnavailableError: no broker answers.
        """
        errors: list[Exception] = []
        hint = ""
        for node in self._by_preference():
            try:
                return await node.send(request, response, timeout_s=timeout_s)
            except (LogUnavailableError, AnswerLostError) as exc:
                errors.append(exc)
                if not self._nodes and isinstance(exc, AnswerLostError):
                    hint = " Does this listener want a login (sasl_mechanism)?"
        told = "; ".join(dict.fromkeys(map(str, errors)))
        hint = hint or " Is it running, and does the setting broker name it?"
        raise LogUnavailableError(f"no broker of {self.url} answers: {told}.{hint}")

    async def features(self) -> Mapping[str, int]:
        """The cluster's finalized features with their levels, as a broker told when it was connected."""
        problem: LogUnavailableError | None = None
        for node in self._by_preference():
            try:
                return (await node.connection()).features
            except LogUnavailableError as exc:
                problem = exc
        raise LogUnavailableError(f"no broker of {self.url} can be reached: {problem}")

    async def connection(self, node: int) -> Connection:
        """The shared connection to a broker, for its versions and features."""
        found = self._nodes.get(node)
        if found is None:
            raise LogUnavailableError(f"{self.url} has no broker {node} now")
        return await found.connection()

    # topics

    async def describe(self, names: Collection[str] | None = None) -> dict[str, Topic]:
        """Topics by name as they are now, all of them where ``names`` is None.

        Those that do not exist, or that we may not describe, are left out.

        Raises:
            LogUnavailableError: no broker answers.
        """
        return await self._learn(names, strict=False)

    async def leaders(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, Leader]:
        """Who leads each partition; asks where something is missing, and waits while there is no leader.

        Raises:
            UnknownTopicError: a topic or partition does not exist.
            LogUnavailableError: a partition has had no leader for a while.
        """
        wanted = list(tps)
        patience = Patience(SEARCH_TIMEOUT_S, first_s=0.02)
        asked = 0
        while True:
            found = {tp: self._leader(tp) for tp in wanted}
            if all(leader is not None and leader.node >= 0 for leader in found.values()):
                return {tp: leader for tp, leader in found.items() if leader is not None}
            missing = [tp for tp, leader in found.items() if leader is None or leader.node < 0]
            if asked:
                if asked >= ASKED_MIN:
                    self._check_existence(missing)
                await patience.pause(
                    LogUnavailableError(
                        f"{self.url}: {', '.join(str(TopicPartition(*tp)) for tp in missing)}"
                        f" {'has' if len(missing) == 1 else 'have'} no leader now: a broker is down"
                    )
                )
            await self._refresh({tp[0] for tp in missing})
            asked += 1

    def known_leader(self, tp: TopicPartition) -> Leader | None:
        """Who led it when we last heard; None where we have not asked, or it does not exist."""
        return self._leader(tp)

    def forget_leader(self, tp: TopicPartition, epoch: int | None = None) -> None:
        """Ask again who leads it, unless something newer than ``epoch`` is known by now."""
        topic = self.topics.get(tp[0])
        leader = self._leader(tp)
        if topic is not None and leader is not None and (epoch is None or leader.epoch <= epoch):
            self.topics[tp[0]] = Topic(
                name=topic.name,
                topic_id=topic.topic_id,
                internal=topic.internal,
                leaders={**topic.leaders, tp[1]: Leader(-1, leader.epoch)},
                replication=topic.replication,
            )

    # coordinators

    async def coordinator(self, kind: int, key: str) -> int:
        """The broker that coordinates a group or a transactional id; waits while there is none.

        Raises:
            LogUnavailableError: there has been none for a while.
            ConfigurationError: we may not ask.
        """
        known = self._coordinators.get((kind, key))
        if known is not None and known in self._nodes:
            return known
        patience = Patience(SEARCH_TIMEOUT_S, first_s=0.02)
        what = f"find the coordinator of {'group' if kind == GROUP else 'transactional id'} {key!r}"
        while True:
            answer = await self.ask(
                FindCoordinatorRequest(key=key, key_type=i8(kind)), FindCoordinatorResponse
            )
            code = answer.error_code
            if not code:
                self._coordinators[kind, key] = answer.node_id
                self._place(answer.node_id, Address(answer.host, answer.port))
                return answer.node_id
            error = refusal(code, what, where=self.url, message=answer.error_message)
            if code not in COORDINATOR_MOVED and not isinstance(error, LogUnavailableError):
                raise error
            await patience.pause(error)

    def forget_coordinator(self, kind: int, key: str) -> None:
        """Ask again who it is."""
        self._coordinators.pop((kind, key), None)

    # inside

    def _check_existence(self, tps: Iterable[TopicPartition]) -> None:
        for tp in tps:
            if tp[0] not in self.topics:
                raise UnknownTopicError(tp[0], where=self.url)
            if tp[1] not in self.topics[tp[0]].leaders:
                raise UnknownTopicError(str(TopicPartition(*tp)), where=self.url)

    def _leader(self, tp: TopicPartition) -> Leader | None:
        topic = self.topics.get(tp[0])
        return None if topic is None else topic.leaders.get(tp[1])

    def _by_preference(self) -> list[_Node]:
        """Those with a connection first, then the others, then the addresses that we were given."""
        nodes = list(self._nodes.values())
        random.shuffle(nodes)
        nodes.sort(key=lambda node: not node.connected)
        return [*nodes, *self._bootstrap]

    def _place(self, number: int, address: Address) -> None:
        known = self._nodes.get(number)
        if known is not None and known.address == address:
            return
        if known is not None:
            known.close()
        for at, node in enumerate(self._bootstrap):
            if node.address == address and node.connected:
                self._nodes[number], self._bootstrap[at] = node, _Node(address, self)
                return
        self._nodes[number] = _Node(address, self)

    async def _refresh(self, names: set[str]) -> None:
        """Ask about topics, together with whoever is asking about them already."""
        new = names - self._refreshing.keys()
        if new:
            task = asyncio.ensure_future(self._learn(new))
            self._refreshing.update(dict.fromkeys(new, task))
            task.add_done_callback(lambda done: self._refreshed(new, done))
        for task in {self._refreshing[name] for name in names}:
            await asyncio.shield(task)

    def _refreshed(self, names: set[str], task: asyncio.Task[dict[str, Topic]]) -> None:
        for name in names:
            del self._refreshing[name]
        if not task.cancelled():
            task.exception()  # who waited for it may be gone

    async def _learn(
        self, names: Collection[str] | None, *, strict: bool = True
    ) -> dict[str, Topic]:
        if not self._open:
            raise InternalError(f"{self.url} was used while it was not open")
        request = MetadataRequest(
            topics=None
            if names is None
            else tuple(MetadataRequestTopic(topic_id=None, name=TopicName(name)) for name in names),
            allow_auto_topic_creation=False,
            include_topic_authorized_operations=names is None,
        )
        answer = await self.ask(request, MetadataResponse)
        seen = {broker.node_id for broker in answer.brokers}
        for broker in answer.brokers:
            self._place(broker.node_id, Address(broker.host, broker.port))
        for number in self._nodes.keys() - seen if seen else ():
            self._nodes.pop(number).close()
        if seen:
            for at, node in enumerate(self._bootstrap):
                if node.connected:
                    node.close()
                    self._bootstrap[at] = _Node(node.address, self)
        found: dict[str, Topic] = {}
        for topic in answer.topics:
            if topic.error_code in (
                ErrorCode.unknown_topic_or_partition,
                ErrorCode.invalid_topic_exception,
            ):
                self.topics.pop(topic.name, None)
                continue
            if topic.error_code and topic.error_code is not ErrorCode.leader_not_available:
                if not strict:
                    continue
                raise refusal(topic.error_code, f"describe topic {topic.name!r}", where=self.url)
            known = self.topics.get(topic.name)
            same = known is not None and known.topic_id == str(topic.topic_id)
            leaders = {}
            for partition in topic.partitions:
                leader = Leader(partition.leader_id, partition.leader_epoch)
                older = known.leaders.get(partition.partition_index) if known and same else None
                # brokers hear of a change one after the other: never go back to an older leader
                stale = older is not None and older.epoch > leader.epoch >= 0
                leaders[int(partition.partition_index)] = (
                    older if stale and older is not None else leader
                )
            found[topic.name] = self.topics[topic.name] = Topic(
                name=topic.name,
                topic_id=str(topic.topic_id),
                internal=topic.is_internal,
                leaders=leaders,
                replication=max((len(p.replica_nodes) for p in topic.partitions), default=0),
                operations=int(topic.topic_authorized_operations) if names is None else None,
            )
        return found


class _Node:
    """One broker: the shared connection, and those that wait for the next long request."""

    def __init__(self, address: Address, cluster: Cluster) -> None:
        self.address = address
        self._cluster = cluster
        self._shared: Connection | None = None
        self._opening = asyncio.Lock()
        self._all: set[Connection] = set()
        self._idle: list[Connection] = []
        self._closed = False
        self._pause_s = 0.0
        self._not_before = 0.0

    @property
    def connected(self) -> bool:
        return self._shared is not None and self._shared.usable

    async def connection(self) -> Connection:
        """The shared connection; one attempt at a time."""
        if self._shared is not None and self._shared.usable:
            return self._shared
        async with self._opening:
            if self._shared is None or not self._shared.usable:
                old = self._shared
                self._shared = await self._connect()
                if old is not None:
                    old.retire()
            return self._shared

    async def send(
        self, request: Payload, response: type[R], *, timeout_s: float, alone: bool = False
    ) -> R:
        if not alone:
            return await (await self.connection()).send(request, response, timeout_s=timeout_s)
        connection = await self._take()
        try:
            answer = await connection.send(request, response, timeout_s=timeout_s)
        except BaseException:
            connection.close()
            self._all.discard(connection)
            raise
        if len(self._idle) < IDLE_CONNECTIONS and connection.usable and not self._closed:
            self._idle.append(connection)
        else:
            connection.close()
            self._all.discard(connection)
        return answer

    def close(self) -> None:
        self._closed = True
        for connection in self._all:
            connection.close()
        self._all.clear()
        self._idle.clear()
        self._shared = None

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
            self._all.discard(connection)
        return await self._connect()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        if self._not_before > loop.time():
            await asyncio.sleep(self._not_before - loop.time())
        access = self._cluster.access
        try:
            connection = await Connection.open(
                self.address,
                access.security,
                client_id=access.client_id,
                context=self._cluster._context,
            )
        except LogUnavailableError:
            self._pause_s = min(max(2 * self._pause_s, RECONNECT_FIRST_S), RECONNECT_LONGEST_S)
            self._not_before = loop.time() + self._pause_s * random.uniform(0.8, 1.2)
            raise
        self._pause_s = 0.0
        if self._closed:
            connection.close()
            raise LogUnavailableError(f"broker {self.address} is not used any more")
        self._all = {each for each in self._all if not each.closed} | {connection}
        return connection
