"""Tables: partitioned maps whose truth is a changelog and whose cache is the local store."""

from millstream.tables._part import DELETED, MISSING, TablePart
from millstream.tables._position import (
    POSITION_KEY,
    RecoveryPlan,
    StorePosition,
    decode_position,
    encode_position,
    plan_recovery,
)
from millstream.tables._table import SetTable, Table, require_scope

__all__ = [
    "DELETED",
    "MISSING",
    "POSITION_KEY",
    "RecoveryPlan",
    "SetTable",
    "StorePosition",
    "Table",
    "TablePart",
    "decode_position",
    "encode_position",
    "plan_recovery",
    "require_scope",
]
