"""What members agree on beyond one object: the seam, its implementations, and what is kept in it.

It decides how agreement is kept and asked for (docs/decisions/coordination.md); consensus is etcd's.
May import: identity, map, transport.
"""

from __future__ import annotations

from coffre.cluster.coordination.buckets import Bucket, create_bucket, delete_bucket, list_buckets
from coffre.cluster.coordination.embedded import EmbeddedCoordination
from coffre.cluster.coordination.etcd import EtcdCoordination
from coffre.cluster.coordination.liveness import NodeStatus, alive_nodes, announce, node_key
from coffre.cluster.coordination.locks import KeyLocks
from coffre.cluster.coordination.maps import CURRENT, MAPS, newest_map, publish_map, watch_maps
from coffre.cluster.coordination.memory import MemoryCoordination
from coffre.cluster.coordination.remote import Coordinators, RemoteCoordination
from coffre.cluster.coordination.seam import (
    RANGE_LIMIT_MAX,
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
from coffre.cluster.coordination.sessions import Session
from coffre.cluster.coordination.tenants import (
    Tenant,
    create_tenant,
    list_tenants,
    suspend_tenant,
    watch_tenants,
)

__all__ = [
    "CURRENT",
    "MAPS",
    "RANGE_LIMIT_MAX",
    "Bucket",
    "Change",
    "Changes",
    "Commit",
    "Compare",
    "Coordination",
    "Coordinators",
    "EmbeddedCoordination",
    "Entry",
    "EtcdCoordination",
    "KeyLocks",
    "Lease",
    "MemoryCoordination",
    "NodeStatus",
    "Page",
    "Put",
    "RemoteCoordination",
    "Session",
    "Tenant",
    "alive_nodes",
    "announce",
    "create_bucket",
    "create_tenant",
    "delete_bucket",
    "list_buckets",
    "list_tenants",
    "newest_map",
    "node_key",
    "publish_map",
    "suspend_tenant",
    "watch_maps",
    "watch_tenants",
]
