"""Operators by name, for the app, which puts them into pipelines."""

from millstream.streams._operator import Operator, is_async
from millstream.streams._stateless import Filter, Map, SourceOperator
from millstream.streams._table_source import TableSource

__all__ = ["Filter", "Map", "Operator", "SourceOperator", "TableSource", "is_async"]
