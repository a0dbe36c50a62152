"""A node that is to join waits until the cluster's map has it, and finds itself in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from coffre.cluster.clock import Clock
from coffre.cluster.errors import ConfigurationError
from coffre.cluster.identity import Identity
from coffre.cluster.map import ClusterMap, MapNode, NodeState
from coffre.cluster.membership import ClusterMaps, VerifiedMap

__all__ = ["await_admission", "is_ahead", "own_entry"]

ADMISSION_SECONDS = 0.5  # between two questions whether this node was added


def is_ahead(identity: Identity, cluster_map: ClusterMap) -> bool:
    """Whether a newer map is needed: this one has no such node yet, or an earlier generation of its certificate."""
    assert identity.attributes is not None
    entry = next((node for node in cluster_map.nodes if node.node_id == identity.name), None)
    return entry is None or entry.generation < identity.attributes.generation


async def await_admission(
    identity: Identity,
    cluster_map: ClusterMap,
    source: ClusterMaps,
    clock: Clock,
    learn: Callable[[VerifiedMap], Awaitable[None]],
) -> None:
    """Return when the map has this node: the others are asked until they know it. `learn` is told of each newer map."""
    while is_ahead(identity, cluster_map):
        found = await source.newer(cluster_map)
        if found is None:
            await clock.sleep(ADMISSION_SECONDS)
            continue
        cluster_map = found.map
        await learn(found)


def own_entry(identity: Identity, cluster_map: ClusterMap) -> MapNode:
    """Find this node in the map by its certificate.

    Raises `ConfigurationError` when the two disagree, or the node was removed: it must not serve.
    """
    for entry in cluster_map.nodes:
        if entry.node_id == identity.name:
            if identity.attributes is not None and entry.generation > identity.attributes.generation:
                raise ConfigurationError(
                    f"the map has shut out this certificate of {entry.node_id}: its generation is "
                    f"{identity.attributes.generation}, the map's {entry.generation}"
                )
            if entry.attributes != identity.attributes:
                raise ConfigurationError(
                    f"the map says another server, site, operator or jurisdiction of {entry.node_id} than its "
                    "certificate: ask for a certificate anew or sign a corrected map"
                )
            if entry.state is NodeState.REMOVED:
                raise ConfigurationError(f"{entry.node_id} was removed from the cluster; join as a new node")
            return entry
    raise ConfigurationError(f"{identity.name} is not in the cluster map")
