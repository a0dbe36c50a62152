"""What members agree on beyond one object: the seam, its implementations, and what is kept in it."""

from __future__ import annotations

from coffre.cluster.coordination.embedded import EmbeddedCoordination
from coffre.cluster.coordination.etcd import EtcdCoordination
from coffre.cluster.coordination.memory import MemoryCoordination
from coffre.cluster.coordination.remote import RemoteCoordination
from coffre.cluster.coordination.seam import (
    Change,
    Changes,
    Commit,
    Compare,
    Coordination,
    Entry,
    Lease,
    Page,
    Put,
)

__all__ = [
    "Change",
    "Changes",
    "Commit",
    "Compare",
    "Coordination",
    "EmbeddedCoordination",
    "Entry",
    "EtcdCoordination",
    "Lease",
    "MemoryCoordination",
    "Page",
    "Put",
    "RemoteCoordination",
]
