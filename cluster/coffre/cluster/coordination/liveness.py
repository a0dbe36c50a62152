"""Which nodes are alive: each announces itself under a lease."""

from __future__ import annotations

from dataclasses import dataclass

from coffre.cluster.coordination._values import decode, encode, read_all
from coffre.cluster.coordination.seam import Coordination, Put
from coffre.cluster.coordination.sessions import Session
from coffre.cluster.errors import NotFound, Unavailable
from coffre.proto import coordination_pb2 as pb

__all__ = ["NodeStatus", "alive_nodes", "announce", "node_key"]

NODES = "nodes/"


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a node says of itself. `since_unixtime_ms`: when it began to serve, by its own clock."""

    number: int
    node_id: str
    epoch: int
    version: str
    since_unixtime_ms: int


def node_key(number: int) -> str:
    """The key under which a node announces itself; numbers sort as text."""
    return f"{NODES}{number:010}"


async def announce(coordination: Coordination, session: Session, status: NodeStatus) -> int:
    """Say that a node is alive, until its session ends; return the lease that it is said under."""
    value = pb.NodeStatus(
        number=status.number,
        node_id=status.node_id,
        epoch=status.epoch,
        version=status.version,
        since_unixtime_ms=status.since_unixtime_ms,
    )
    lease = await session.lease()
    try:
        await coordination.commit([], [Put(node_key(status.number), encode(value), lease)])
    except NotFound:
        session.drop()
        raise Unavailable("the session of this node ended: announce again") from None
    return lease


async def alive_nodes(coordination: Coordination) -> dict[int, NodeStatus]:
    """The nodes that are alive, by number."""
    values = [decode(pb.NodeStatus, entry.value) for entry in await read_all(coordination, NODES)]
    return {
        value.number: NodeStatus(
            value.number, value.node_id, value.epoch, value.version, value.since_unixtime_ms
        )
        for value in values
    }
