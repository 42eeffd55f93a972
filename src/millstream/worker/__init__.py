"""What runs a program: shards, epochs, the group, recovery."""

from millstream.worker._assign import (
    MemberMetadata,
    ShardAssignment,
    ShardId,
    assign_shards,
    decode_assignment,
    decode_metadata,
    encode_metadata,
)
from millstream.worker._commit import CommitStats, Committer
from millstream.worker._garbage import tune_garbage_collector
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
    "ShardAssignment",
    "ShardCut",
    "ShardId",
    "ShardOptions",
    "TableSpec",
    "Worker",
    "WorkerPlan",
    "WorkerReport",
    "assign_shards",
    "decode_assignment",
    "decode_metadata",
    "encode_metadata",
    "prepare_topics",
    "tune_garbage_collector",
]
