"""What a client works with on one cluster map: an operation begins and ends on one view."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from coffre.client._download import Downloader
from coffre.client._listing import Lister
from coffre.client._peers import Peers
from coffre.client._ranges import RangeReader
from coffre.client._reads import Reader
from coffre.client._rounds import Quorum
from coffre.client._sealing import Sealer
from coffre.client._stamps import Issuer
from coffre.client._upload import Uploader
from coffre.client._writes import Writer
from coffre.client.keys import KeyProvider
from coffre.client.model import ClientOptions
from coffre.cluster.clock import Clock
from coffre.cluster.errors import ConfigurationError
from coffre.cluster.map import ClusterMap, NodeState, Policy
from coffre.cluster.placement import Placement
from coffre.cluster.transport import Transport

__all__ = ["Lasting", "View", "open_view", "policy_of"]


class Lasting:
    """What outlives a map: the connections, the keys, and the order of this client's stamps."""

    def __init__(
        self,
        transport: Transport,
        keys: KeyProvider,
        tenant: str,
        options: ClientOptions,
        clock: Clock,
        entropy: Callable[[int], bytes],
    ) -> None:
        self.transport = transport
        self.tenant = tenant
        self.options = options
        self.clock = clock
        self.issuer = Issuer(clock, entropy)
        self.pool = ThreadPoolExecutor(2, thread_name_prefix="coffre-coding")
        self.sealer = Sealer(keys, entropy)


@dataclass(frozen=True, slots=True)
class View:
    """The parts of a client that know where things lie, on one map."""

    map: ClusterMap
    quorum: Quorum
    placement: Placement
    peers: Peers
    writer: Writer
    reader: Reader
    uploader: Uploader
    downloader: Downloader
    ranges: RangeReader
    lister: Lister


def policy_of(cluster_map: ClusterMap, quorum: Quorum) -> Policy:
    """The policy of a newer map that codes as this client does. Raises `ConfigurationError` when there is none."""
    if (cluster_map.policy().k, cluster_map.policy().m) == (quorum.k, quorum.m):
        return cluster_map.policy()
    for policy in cluster_map.policies:
        if (policy.k, policy.m) == (quorum.k, quorum.m):
            return policy
    raise ConfigurationError(
        f"the newest cluster map has no policy {quorum.k}+{quorum.m} any more: connect anew"
    )


def open_view(cluster_map: ClusterMap, policy: Policy, lasting: Lasting) -> View:
    options, clock, pool = lasting.options, lasting.clock, lasting.pool
    quorum = Quorum(policy.k, policy.m)
    placement = Placement(cluster_map, policy)
    partitions = cluster_map.partitions
    peers = Peers(
        [node.number for node in cluster_map.nodes if node.state is not NodeState.REMOVED],
        lasting.transport,
        clock,
        epoch=cluster_map.epoch,
        tenant=lasting.tenant,
        timeout=options.timeout,
        shards=quorum.n,
        marks=lasting.issuer.marks,
    )
    writer = Writer(
        peers,
        placement,
        quorum,
        partitions,
        lasting.issuer,
        clock,
        straggler_grace=options.straggler_grace,
        patience=options.patience,
    )
    reader = Reader(
        peers, placement, quorum, partitions, lasting.sealer, writer, clock, hedge_delay=options.hedge_delay
    )
    uploader = Uploader(
        peers,
        placement,
        quorum,
        clock,
        pool,
        compress_level=options.compress_level,
        stall_timeout=options.stall_timeout,
    )
    downloader = Downloader(peers, reader, pool, hedge_delay=options.hedge_delay)
    ranges = RangeReader(downloader, writer.primaries)
    lister = Lister(peers, placement, quorum, partitions, reader, lasting.sealer)
    return View(cluster_map, quorum, placement, peers, writer, reader, uploader, downloader, ranges, lister)
