"""Tables: partitioned maps whose truth is a changelog and whose cache is the local store."""

from millstream.errors import (
    BadQueryError,
    NotHereError,
    QueryError,
    UnavailableError,
    UnknownTableError,
)
from millstream.tables._expiry import Expiry
from millstream.tables._part import DELETED, MISSING, TablePart
from millstream.tables._position import (
    POSITION_KEY,
    RecoveryPlan,
    StorePosition,
    decode_position,
    encode_position,
    plan_recovery,
)
from millstream.tables._query import Queries, TableInfo
from millstream.tables._stamped import PackedPart, StampedPart, stamp
from millstream.tables._table import NO_DEFAULT, SetTable, Table, no_part, require_scope
from millstream.tables._timed_part import NEVER, Due, DueError, DueFirstError, DueRow, TimedPart
from millstream.tables._ttl import TIME_BYTES, TtlPart, TtlTable
from millstream.tables._view import View, ViewChange
from millstream.tables._windowed import WindowedTable, WindowView, windowed
from millstream.tables._windowed_base import WAITS, advance
from millstream.tables._windowed_part import WindowedPart, index_key_of

__all__ = [
    "DELETED",
    "MISSING",
    "NEVER",
    "NO_DEFAULT",
    "POSITION_KEY",
    "TIME_BYTES",
    "WAITS",
    "BadQueryError",
    "Due",
    "DueError",
    "DueFirstError",
    "DueRow",
    "Expiry",
    "NotHereError",
    "PackedPart",
    "Queries",
    "QueryError",
    "RecoveryPlan",
    "SetTable",
    "StampedPart",
    "StorePosition",
    "Table",
    "TableInfo",
    "TablePart",
    "TimedPart",
    "TtlPart",
    "TtlTable",
    "UnavailableError",
    "UnknownTableError",
    "View",
    "ViewChange",
    "WindowView",
    "WindowedPart",
    "WindowedTable",
    "advance",
    "decode_position",
    "encode_position",
    "index_key_of",
    "no_part",
    "plan_recovery",
    "require_scope",
    "stamp",
    "windowed",
]
