"""What runs a program: shards, epochs, the group, recovery."""

from millstream.worker._assign import MemberMetadata, ShardId, assign_shards, decode_assignment
from millstream.worker._commit import CommitStats, Committer
from millstream.worker._garbage import tune_garbage_collector
from millstream.worker._orphans import find_orphans, refuse_orphans
from millstream.worker._prepare import prepare_topics
from millstream.worker._queries import GroupQueries, LocalQueries
from millstream.worker._recovery import RecoveryProgress
from millstream.worker._report import WorkerReport
from millstream.worker._shard import AgentSpec, Shard, ShardCut, ShardOptions, TableSpec
from millstream.worker._worker import Worker, WorkerPlan

__all__ = [
    "AgentSpec",
    "CommitStats",
    "Committer",
    "GroupQueries",
    "LocalQueries",
    "MemberMetadata",
    "RecoveryProgress",
    "Shard",
    "ShardCut",
    "ShardId",
    "ShardOptions",
    "TableSpec",
    "Worker",
    "WorkerPlan",
    "WorkerReport",
    "assign_shards",
    "decode_assignment",
    "find_orphans",
    "prepare_topics",
    "refuse_orphans",
    "tune_garbage_collector",
]
