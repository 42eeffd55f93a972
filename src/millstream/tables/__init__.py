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
from millstream.tables._ttl import TIME_BYTES, TtlPart, TtlTable

__all__ = [
    "DELETED",
    "MISSING",
    "POSITION_KEY",
    "TIME_BYTES",
    "RecoveryPlan",
    "SetTable",
    "StorePosition",
    "Table",
    "TablePart",
    "TtlPart",
    "TtlTable",
    "decode_position",
    "encode_position",
    "plan_recovery",
    "require_scope",
]
