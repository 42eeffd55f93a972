"""The streams DSL: what is done to records on their way, and tables that streams make."""

from millstream.streams._compat import store_retention_ms
from millstream.streams._derived import DerivedTable, DerivedWindowedTable
from millstream.streams._grouped import (
    CogroupedStream,
    GroupedStream,
    WindowedCogroup,
    WindowedStream,
)
from millstream.streams._grouped_table import CogroupedTable, GroupedTable
from millstream.streams._home import Compat, StreamHome
from millstream.streams._operator import Operator, Windowed
from millstream.streams._pipeline import pipeline_agent
from millstream.streams._plan import Pipeline, Plan
from millstream.streams._process import ProcessContext, Processor
from millstream.streams._shapes import Emit
from millstream.streams._stream import DeclaredStream
from millstream.streams._suppress import Suppress
from millstream.streams._tables import (
    Table,
    TableChanges,
    TableStream,
    WindowedTable,
)
from millstream.streams._versioned import VersionedPart, VersionedSource, VersionedTable
from millstream.streams._windowed_changes import WindowedChanges, WindowedTableStream

__all__ = [
    "CogroupedStream",
    "CogroupedTable",
    "Compat",
    "DeclaredStream",
    "DerivedTable",
    "DerivedWindowedTable",
    "Emit",
    "GroupedStream",
    "GroupedTable",
    "Operator",
    "Pipeline",
    "Plan",
    "ProcessContext",
    "Processor",
    "StreamHome",
    "Suppress",
    "Table",
    "TableChanges",
    "TableStream",
    "VersionedPart",
    "VersionedSource",
    "VersionedTable",
    "Windowed",
    "WindowedChanges",
    "WindowedCogroup",
    "WindowedStream",
    "WindowedTable",
    "WindowedTableStream",
    "pipeline_agent",
    "store_retention_ms",
]
