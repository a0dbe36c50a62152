"""The parts of a client, put together: each stands on the same ground and on the parts above it here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from coffre.client._ground import Ground
from coffre.client.nodes import Peers
from coffre.client.puts import ConditionalWriter, Putter, Recoder
from coffre.client.reading import Downloader, Lister, Lookup, RangeReader, Reader
from coffre.client.writing import Issuer, Uploader, Writer
from coffre.cluster.clock import Clock
from coffre.cluster.coordination import Coordination, KeyLocks, Session
from coffre.cluster.map import SHARDS_MAX, ClusterMap
from coffre.cluster.transport import Transport

__all__ = ["Parts", "assemble", "locks_of", "peers_of"]


@dataclass(frozen=True)
class Parts:
    """What the methods of `AsyncClient` call."""

    writer: Writer
    reader: Reader
    lookup: Lookup
    lister: Lister
    ranges: RangeReader
    conditional: ConditionalWriter
    putter: Putter
    recoder: Recoder


def assemble(ground: Ground, issuer: Issuer, locks: KeyLocks | None) -> Parts:
    """`issuer`: of this client's stamps. `locks`: for conditional writes and recoding; None without coordination."""
    writer = Writer(ground, issuer)
    reader = Reader(ground, writer)
    lookup = Lookup(ground, reader)
    lister = Lister(ground, reader)
    downloader = Downloader(ground, reader)
    conditional = ConditionalWriter(ground, writer, reader, lookup, locks)
    putter = Putter(ground, writer, conditional, Uploader(ground), reader)
    recoder = Recoder(ground, reader, lookup, lister, downloader, putter, locks)
    return Parts(writer, reader, lookup, lister, RangeReader(downloader), conditional, putter, recoder)


def peers_of(
    transport: Transport, clock: Clock, tenant: str, timeout: float, issuer: Issuer
) -> Callable[[ClusterMap], Peers]:
    """How the lanes to all nodes of a map are made."""

    def of_map(cluster_map: ClusterMap) -> Peers:
        return Peers(
            cluster_map.consulted,
            transport,
            clock,
            epoch=cluster_map.epoch,
            tenant=tenant,
            timeout=timeout,
            shards=SHARDS_MAX,
            marks=issuer.marks,
            names={node.number: node.node_id for node in cluster_map.nodes},
        )

    return of_map


def locks_of(
    coordination: Coordination | None, session: Session | None, clock: Clock, entropy: Callable[[int], bytes]
) -> KeyLocks | None:
    """Locks of keys; None without coordination."""
    return KeyLocks(coordination, session, clock, entropy) if coordination and session else None
