"""The signed cluster map, and what follows from it: placements, electorates, which map may come next.

It decides where the shards of an object lie, and who decides about it.
May import: identity.
"""

from coffre.cluster.map.electorate import SHARDS_MAX, Electorate, Electorates, Voters
from coffre.cluster.map.placement import Placement
from coffre.cluster.map.signed import (
    MAP_BYTES_MAX,
    NODES_MAX,
    POLICIES_MAX,
    PRIOR_MAX,
    BucketPolicy,
    ClusterMap,
    Domain,
    MapNode,
    NodeState,
    Policy,
    create_map_file,
    read_map,
    read_unverified_map,
    sign_map,
    verify_map,
    write_map,
)
from coffre.cluster.map.succession import newer_map, same_placements

__all__ = [
    "MAP_BYTES_MAX",
    "NODES_MAX",
    "POLICIES_MAX",
    "PRIOR_MAX",
    "SHARDS_MAX",
    "BucketPolicy",
    "ClusterMap",
    "Domain",
    "Electorate",
    "Electorates",
    "MapNode",
    "NodeState",
    "Placement",
    "Policy",
    "Voters",
    "create_map_file",
    "newer_map",
    "read_map",
    "read_unverified_map",
    "same_placements",
    "sign_map",
    "verify_map",
    "write_map",
]
