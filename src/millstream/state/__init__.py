"""Local state: the bytes of a shard's tables.

The contract alone: `millstream.state.memory` and `millstream.state.rocks` implement it, and the app
chooses between them, so that RocksDB is loaded only where it is used.
"""

from millstream.state.base import ShardStore, StateBackend, TableStore

__all__ = ["ShardStore", "StateBackend", "TableStore"]
