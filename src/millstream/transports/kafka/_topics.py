"""Topics: what there is, making and removing them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kio.schema.create_topics.v6 import CreateTopicsRequest, CreateTopicsResponse
from kio.schema.create_topics.v6.request import CreatableTopic, CreatableTopicConfig
from kio.schema.delete_topics.v5 import DeleteTopicsRequest, DeleteTopicsResponse
from kio.schema.describe_configs.v3 import DescribeConfigsRequest, DescribeConfigsResponse
from kio.schema.describe_configs.v3.request import DescribeConfigsResource
from kio.schema.errors import ErrorCode
from kio.schema.types import TopicName
from kio.static.primitive import i8, i16, i32

from millstream.errors import ConfigurationError, LogUnavailableError
from millstream.transports.base import TopicInfo
from millstream.transports.kafka._errors import AnswerLostError, Patience, refusal
from millstream.transports.kafka._messages import duration

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from millstream.transports.base import TopicSpec
    from millstream.transports.kafka._cluster import Cluster, Topic

__all__ = ["Topics"]

TOPIC_RESOURCE = i8(2)
TIMEOUT_S = 30.0
"""How long making or removing topics may take until every broker has heard of it."""
_OPERATIONS = {"read": 1 << 3, "write": 1 << 4}
"""Bits of what Kafka calls AclOperation."""
_CONFIGS = ("cleanup.policy", "retention.ms")
_AGAIN = frozenset(
    {
        ErrorCode.not_controller,
        ErrorCode.request_timed_out,
        ErrorCode.throttling_quota_exceeded,
        ErrorCode.coordinator_not_available,
        ErrorCode.reassignment_in_progress,
    }
)


class Topics:
    """The topics of a cluster, without those that Kafka keeps for itself."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def all(self) -> dict[str, TopicInfo]:
        """Every topic by name."""
        found = {
            name: topic
            for name, topic in (await self._cluster.describe()).items()
            if not topic.internal
        }
        configs = await self._configs(found)
        infos = {}
        for name in sorted(found):
            if name not in configs:  # removed meanwhile
                continue
            operations = found[name].operations
            retention = int(configs[name].get("retention.ms") or -1)
            policy = configs[name].get("cleanup.policy") or "delete"
            infos[name] = TopicInfo(
                name=name,
                topic_id=found[name].topic_id,
                partitions=len(found[name].leaders),
                retention_ms=retention if retention >= 0 and "delete" in policy else None,
                compacted="compact" in policy,
                allowed=frozenset(
                    word
                    for word, bit in _OPERATIONS.items()
                    if operations is None or operations & bit
                ),
                settings_shown=bool(configs[name]),
            )
        return infos

    async def config(self, topic: str, name: str) -> str | None:
        """One setting of a topic."""
        return (await self._configs([topic], (name,))).get(topic, {}).get(name)

    async def create(self, specs: Sequence[TopicSpec]) -> list[TopicSpec]:
        """Create those that do not exist, and wait until all have leaders.

        Returns:
            Those that were created.

        Raises:
            ConfigurationError: what no broker takes, or this one does not allow; names the topic.
        """
        there = await self._cluster.describe([spec.name for spec in specs])
        left = {spec.name: spec for spec in specs if spec.name not in there}
        created = list(left.values())
        patience = Patience(TIMEOUT_S)
        while left:
            try:
                answer = await self._cluster.ask(
                    CreateTopicsRequest(
                        topics=tuple(_creatable(spec) for spec in left.values()),
                        timeout=duration(TIMEOUT_S),
                    ),
                    CreateTopicsResponse,
                    timeout_s=TIMEOUT_S + 5,
                )
            except AnswerLostError as exc:
                await patience.pause(LogUnavailableError(str(exc)))
                continue
            problem: Exception | None = None
            for result in answer.topics:
                code = result.error_code
                if code in _AGAIN:
                    problem = refusal(
                        code, f"create topic {result.name!r}", where=self._cluster.url
                    )
                    continue
                spec = left.pop(result.name)
                if code is ErrorCode.topic_already_exists:
                    created.remove(spec)
                elif code:
                    raise self._not_created(code, spec, result.error_message)
            if problem is not None:
                await patience.pause(problem)
        await self._until([spec.name for spec in specs], there=True)
        return created

    async def delete(self, names: Collection[str]) -> None:
        """Remove topics, and wait until they are gone; unknown names are ignored."""
        left = set(await self._cluster.describe(names)) if names else set()
        gone = list(left)
        patience = Patience(TIMEOUT_S)
        while left:
            try:
                answer = await self._cluster.ask(
                    DeleteTopicsRequest(
                        topic_names=tuple(TopicName(name) for name in sorted(left)),
                        timeout=duration(TIMEOUT_S),
                    ),
                    DeleteTopicsResponse,
                    timeout_s=TIMEOUT_S + 5,
                )
            except AnswerLostError as exc:
                await patience.pause(LogUnavailableError(str(exc)))
                continue
            problem: Exception | None = None
            for result in answer.responses:
                code = result.error_code
                error = refusal(
                    code,
                    f"delete topic {result.name!r}",
                    where=self._cluster.url,
                    message=result.error_message,
                )
                if code in _AGAIN:
                    problem = error
                    continue
                left.discard(result.name)
                if code and code is not ErrorCode.unknown_topic_or_partition:
                    raise error
            if problem is not None:
                await patience.pause(problem)
        await self._until(gone, there=False)

    # inside

    async def _until(self, names: Collection[str], *, there: bool) -> None:
        """Wait until a broker tells of all of them what is meant to be."""
        patience = Patience(TIMEOUT_S, longest_s=0.1)
        while names:
            found = await self._cluster.describe(names)
            if there:
                names = [name for name in names if not _usable(found.get(name))]
            else:
                names = list(found)
            if names:
                await patience.pause(
                    LogUnavailableError(
                        f"{self._cluster.url}: {', '.join(names)}"
                        f" {'created, without a leader' if there else 'deleted, and still there'}"
                    )
                )

    async def _configs(
        self, names: Collection[str], keys: tuple[str, ...] = _CONFIGS
    ) -> dict[str, Mapping[str, str | None]]:
        if not names:
            return {}
        answer = await self._cluster.ask(
            DescribeConfigsRequest(
                resources=tuple(
                    DescribeConfigsResource(
                        resource_type=TOPIC_RESOURCE, resource_name=name, configuration_keys=keys
                    )
                    for name in names
                )
            ),
            DescribeConfigsResponse,
        )
        found: dict[str, Mapping[str, str | None]] = {}
        for result in answer.results:
            if result.error_code is ErrorCode.unknown_topic_or_partition:
                continue
            if result.error_code is ErrorCode.topic_authorization_failed:
                found[result.resource_name] = {}
                continue
            if result.error_code:
                raise refusal(
                    result.error_code,
                    f"read the settings of topic {result.resource_name!r} (DescribeConfigs)",
                    where=self._cluster.url,
                    message=result.error_message,
                )
            found[result.resource_name] = {each.name: each.value for each in result.configs}
        return found

    def _not_created(self, code: ErrorCode, spec: TopicSpec, message: str | None) -> Exception:
        said = f": {message}" if message else ""
        if code is ErrorCode.invalid_replication_factor:
            return ConfigurationError(
                f"topic {spec.name!r} cannot have {spec.replication} replicas in {self._cluster.url},"
                f" which has {len(self._cluster.nodes)} brokers{said}. Set replication to what there is."
            )
        if code in (
            ErrorCode.invalid_topic_exception,
            ErrorCode.invalid_partitions,
            ErrorCode.invalid_config,
            ErrorCode.invalid_request,
            ErrorCode.policy_violation,
        ):
            return ConfigurationError(
                f"{self._cluster.url} does not take topic {spec.name!r} ({code.name}){said}"
            )
        doing = f"create topic {spec.name!r} (or, if it exists, to see it)"
        return refusal(code, doing, where=self._cluster.url, message=message)


def _usable(topic: Topic | None) -> bool:
    return topic is not None and all(leader.node >= 0 for leader in topic.leaders.values())


def _creatable(spec: TopicSpec) -> CreatableTopic:
    config = {
        "cleanup.policy": _policy(spec),
        "retention.ms": str(-1 if spec.retention_ms is None else spec.retention_ms),
        **spec.config,
    }
    return CreatableTopic(
        name=TopicName(spec.name),
        num_partitions=i32(spec.partitions),
        replication_factor=i16(spec.replication),
        assignments=(),
        configs=tuple(
            CreatableTopicConfig(name=name, value=value) for name, value in config.items()
        ),
    )


def _policy(spec: TopicSpec) -> str:
    if not spec.compacted:
        return "delete"
    return "compact" if spec.retention_ms is None else "compact,delete"
