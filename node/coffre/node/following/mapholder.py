"""The signed cluster map that a node works on, the placements that follow from it, and who is suspended."""

from __future__ import annotations

import asyncio

from coffre.cluster.errors import PermissionDenied, PolicyViolation, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.cluster.map import ClusterMap, Electorates, NodeState, Placement
from coffre.cluster.names import ObjectName

__all__ = ["MapHolder"]


class MapHolder:
    """Holds the current map, verified, with its signed bytes.

    `behind`: somebody seems to have a newer one. `suspended`: tenants whose certificates are refused; None: it
    is not known, so all are.
    """

    def __init__(self, cluster_map: ClusterMap, signed: bytes) -> None:
        self.behind = asyncio.Event()
        self.suspended: frozenset[str] | None = frozenset()
        self.adopt(cluster_map, signed)

    def adopt(self, cluster_map: ClusterMap, signed: bytes) -> None:
        """Work on this map from now on; that it is newer, and whole, is the caller's to see."""
        placements = {(policy.k, policy.m): Placement(cluster_map, policy) for policy in cluster_map.policies}
        self.map = cluster_map
        self.signed = signed
        self._members = {node.node_id: node for node in cluster_map.nodes}
        self._placements = placements
        self._electorates = Electorates(cluster_map)
        codings = {policy.name: (policy.k, policy.m) for policy in cluster_map.policies}
        self._coding = codings[cluster_map.default_policy]
        self._own_codings = {
            (one.tenant, one.bucket): codings[one.policy] for one in cluster_map.bucket_policies
        }

    def number_of_peer(self, peer: Identity) -> int | None:
        """The number of the node that shows this certificate; None when the map has none that says all of it."""
        entry = self._members.get(peer.name)
        if entry is None or entry.state is NodeState.REMOVED or entry.attributes != peer.attributes:
            return None
        return entry.number

    def check_member(self, peer: Identity) -> None:
        """Raise `PermissionDenied` unless a node is in the map, not removed, and as its certificate says."""
        if self.number_of_peer(peer) is None:
            raise PermissionDenied(f"{peer.name} is no node of the map of epoch {self.map.epoch}")

    def check_not_suspended(self, peer: Identity) -> None:
        """Raise `PermissionDenied` for a tenant that an operator has suspended, `Unavailable` where nobody knows."""
        if peer.role is not Role.TENANT:
            return
        if self.suspended is None:
            raise Unavailable(
                "this node lost its record of suspended tenants, and serves them again once coordination has told it"
            )
        if peer.name in self.suspended:
            raise PermissionDenied(f"tenant {peer.name} is suspended")

    def votes_may_change(self, name: ObjectName, partition: int) -> bool:
        """Whether votes ABORTED may prove nothing: the map changes, and others may keep a version for ever."""
        return self._electorates.of(name.tenant, name.bucket, partition).is_moving

    def placement_for(self, k: int, m: int) -> Placement:
        """The placement rules of the policy with this k and m; `PolicyViolation` when the map has none."""
        try:
            return self._placements[k, m]
        except KeyError:
            raise PolicyViolation(f"no storage policy of this cluster codes {k}+{m}") from None

    def check_coding(self, tenant: str, bucket: str, k: int, m: int) -> None:
        """Raise `PolicyViolation` unless new objects of the bucket are coded so."""
        coding = self._own_codings.get((tenant, bucket), self._coding)
        if coding != (k, m):
            raise PolicyViolation(
                f"objects of bucket {bucket} are coded {coding[0]}+{coding[1]} by its storage policy, not {k}+{m}"
            )
