"""Who is known to be a tenant, and which nodes have taken a decision about one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import Coordination, list_tenants
from coffre.cluster.errors import CoffreError, NotFound
from coffre.cluster.map import MapNode
from coffre.cluster.names import check_tenant
from coffre.cluster.transport import Transport
from coffre.proto import coffre_pb2 as pb

__all__ = ["Taken", "await_taken", "check_known"]

PATIENCE_SECONDS = 5.0  # nodes that reach coordination take it within one
PAUSE_SECONDS = 0.1
ASK_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Taken:
    """By id, the nodes that act by a decision, and why the others do not yet."""

    nodes: tuple[str, ...]
    waiting: dict[str, str]


async def check_known(
    coordination: Coordination, transport: Transport, nodes: Sequence[MapNode], name: str
) -> None:
    """Raise `NotFound` unless a tenant is in the list of tenants, or has shown its certificate to a node lately."""
    check_tenant(name)
    known = {tenant.name for tenant in await list_tenants(coordination)}
    if name in known:
        return
    for answer in await _ask(transport, nodes):
        if isinstance(answer, pb.StatusReply):
            known |= {seen.name for seen in answer.tenants}
    if name not in known:
        close = get_close_matches(name, sorted(known))
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise NotFound(f"nobody knows a tenant {name}{hint} (--force: do it all the same)")


async def await_taken(
    transport: Transport, nodes: Sequence[MapNode], name: str, *, suspended: bool, clock: Clock
) -> Taken:
    """Wait a few seconds until every node acts by the decision, and say which do."""
    until = clock.monotonic() + PATIENCE_SECONDS
    while True:
        taken: list[str] = []
        waiting: dict[str, str] = {}
        for node, answer in zip(nodes, await _ask(transport, nodes), strict=True):
            if isinstance(answer, CoffreError):
                waiting[node.node_id] = "does not answer"
            elif (name in answer.suspended_tenants or answer.serves_no_tenant) is not suspended:
                waiting[node.node_id] = "has not heard of it"
            else:
                taken.append(node.node_id)
        if not waiting or clock.monotonic() >= until:
            return Taken(tuple(taken), waiting)
        await clock.sleep(PAUSE_SECONDS)


async def _ask(transport: Transport, nodes: Sequence[MapNode]) -> list[pb.StatusReply | CoffreError]:
    async def one(node: MapNode) -> pb.StatusReply | CoffreError:
        try:
            return await transport.status(node.number, ASK_TIMEOUT_SECONDS)
        except CoffreError as error:
            return error

    return await asyncio.gather(*map(one, nodes))
