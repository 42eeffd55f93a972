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
from millstream.worker._calls import Call, call_error, log_passed, run_call
from millstream.worker._closing import Closing, window_position
from millstream.worker._commit import CommitStats, Committer
from millstream.worker._garbage import tune_garbage_collector
from millstream.worker._notes import (
    NOTES,
    NotesPart,
    encode_note,
    notes_table,
    notes_topic,
    passed_note,
    timer_note,
)
from millstream.worker._orphans import find_orphans, refuse_orphans
from millstream.worker._prepare import prepare_topics
from millstream.worker._queries import GroupQueries, LocalQueries
from millstream.worker._recovery import RecoveryProgress
from millstream.worker._report import WorkerReport
from millstream.worker._shard import Shard, ShardCut
from millstream.worker._specs import AgentSpec, ShardOptions, Stage, TableSpec
from millstream.worker._worker import Worker, WorkerPlan

__all__ = [
    "NOTES",
    "AgentSpec",
    "Call",
    "Closing",
    "CommitStats",
    "Committer",
    "GroupQueries",
    "LocalQueries",
    "MemberMetadata",
    "NotesPart",
    "RecoveryProgress",
    "Shard",
    "ShardAssignment",
    "ShardCut",
    "ShardId",
    "ShardOptions",
    "Stage",
    "TableSpec",
    "Worker",
    "WorkerPlan",
    "WorkerReport",
    "assign_shards",
    "call_error",
    "decode_assignment",
    "decode_metadata",
    "encode_metadata",
    "encode_note",
    "find_orphans",
    "log_passed",
    "notes_table",
    "notes_topic",
    "passed_note",
    "prepare_topics",
    "refuse_orphans",
    "run_call",
    "timer_note",
    "tune_garbage_collector",
    "window_position",
]
