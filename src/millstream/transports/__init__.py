"""The log behind an app: Kafka, one SQLite file, or memory, all of them one contract.

The implementations are imported by whoever chooses one; this package loads the contract alone.
"""

from millstream.transports.base import (
    AssignFunction,
    Assignment,
    CommitResult,
    Epoch,
    Fetched,
    GroupDescription,
    Membership,
    OffsetAndMetadata,
    Reader,
    TopicInfo,
    TopicSpec,
    Transport,
)

__all__ = [
    "AssignFunction",
    "Assignment",
    "CommitResult",
    "Epoch",
    "Fetched",
    "GroupDescription",
    "Membership",
    "OffsetAndMetadata",
    "Reader",
    "TopicInfo",
    "TopicSpec",
    "Transport",
]
