"""The store of one node on a disk: LMDB index, volumes, large shards, group commit (docs/formats/node.md).

It decides when something is durable, and where its bytes lie.
May import: store.
"""

from coffre.node.disk.lmdb_store import LmdbStore
from coffre.node.disk.opening import StoreOwner

__all__ = [
    "LmdbStore",
    "StoreOwner",
]
