"""What a node checks before it touches its disk: that the disk is there, and that a first start is one."""

from __future__ import annotations

import os

from coffre.cluster.errors import ConfigurationError
from coffre.cluster.map import ClusterMap, MapNode, NodeState
from coffre.cluster.transport import GrpcTransport
from coffre.node.config import NodeConfig
from coffre.node.repair import check_unknown

__all__ = ["check_beginnings", "others_of"]


def others_of(cluster_map: ClusterMap, entry: MapNode) -> list[int]:
    """The numbers of all nodes but this one that were not removed."""
    return [
        node.number
        for node in cluster_map.nodes
        if node.number != entry.number and node.state is not NodeState.REMOVED
    ]


async def check_beginnings(
    config: NodeConfig, cluster_map: ClusterMap, entry: MapNode, *, new_cluster: bool
) -> None:
    """Raise `ConfigurationError` unless the data directory is a mount point where it has to be, and `new_cluster`,
    which lets a node serve before the others have said what they have seen of it, is said at the first start of a new
    cluster and never again. Nothing is written."""
    if config.require_mount and not os.path.ismount(config.data):
        raise ConfigurationError(
            f"nothing is mounted at {config.data}, and node.toml says require_mount: mount its disk there"
        )
    if not new_cluster:
        return
    if (config.data / "index" / "data.mdb").exists():
        raise ConfigurationError(
            f"{config.data} holds a store already: --new-cluster is for the first start alone, so leave it out"
        )
    if cluster_map.epoch > 1:
        raise ConfigurationError(
            f"the cluster is not new, its map has epoch {cluster_map.epoch}: start this node without --new-cluster"
        )
    others = others_of(cluster_map, entry)
    if not others:
        return
    transport = GrpcTransport(cluster_map, config.tls)
    try:
        await check_unknown(transport, cluster_map, others)
    finally:
        await transport.close()
