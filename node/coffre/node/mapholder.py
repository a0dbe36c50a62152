"""The signed cluster map that a node works on, and the placements that follow from it."""

from __future__ import annotations

from coffre.cluster.errors import PermissionDenied, PolicyViolation
from coffre.cluster.identity import Identity
from coffre.cluster.map import ClusterMap, NodeState
from coffre.cluster.placement import Placement

__all__ = ["MapHolder"]


class MapHolder:
    """Holds the current map, verified, with its signed bytes."""

    def __init__(self, cluster_map: ClusterMap, signed: bytes) -> None:
        self.map = cluster_map
        self.signed = signed
        self._members = {node.node_id: node for node in cluster_map.nodes}
        self._placements = {
            (policy.k, policy.m): Placement(cluster_map, policy) for policy in cluster_map.policies
        }

    def check_member(self, peer: Identity) -> None:
        """Raise `PermissionDenied` unless a node is in the map, not removed, and as its certificate says."""
        entry = self._members.get(peer.name)
        if entry is None or entry.state is NodeState.REMOVED or entry.attributes != peer.attributes:
            raise PermissionDenied(f"{peer.name} is no node of the map of epoch {self.map.epoch}")

    def placement_for(self, k: int, m: int) -> Placement:
        """The placement rules of the policy with this k and m; `PolicyViolation` when the map has none."""
        try:
            return self._placements[k, m]
        except KeyError:
            raise PolicyViolation(f"no storage policy of this cluster codes {k}+{m}") from None
