"""What a node's configuration says of coordination, opened."""

from __future__ import annotations

from collections.abc import Callable

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import Coordination, EmbeddedCoordination, EtcdCoordination
from coffre.node.config import CoordinationConfig, EmbeddedConfig

__all__ = ["open_coordination"]


async def open_coordination(
    config: CoordinationConfig | None, clock: Clock, entropy: Callable[[int], bytes], cluster_id: str
) -> Coordination | None:
    """The store that this node serves, None when it serves none. Raises `ConfigurationError`."""
    if config is None:
        return None
    if isinstance(config, EmbeddedConfig):
        return await EmbeddedCoordination.open(config.folder, clock, entropy)
    return EtcdCoordination(config.endpoints, config.tls, cluster_id, entropy)
