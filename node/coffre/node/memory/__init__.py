"""The store of one node in memory: the twin of the one on disk, for tests and simulation.

May import: store.
"""

from coffre.node.memory.store import MemoryStore

__all__ = [
    "MemoryStore",
]
