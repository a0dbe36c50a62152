"""Whether coordinators have one store to serve, and what to do when others take over, or the old one is gone.

docs/consistency.md, "Who coordinates".
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from coffre.cluster.coordination import CURRENT, Coordinators, Entry, RemoteCoordination
from coffre.cluster.errors import CoffreError, InvalidArgument, RetryableError, Unavailable
from coffre.cluster.health import present_nodes, rival_stores
from coffre.cluster.identity import read_certificate
from coffre.cluster.map import ClusterMap
from coffre.cluster.membership.changes import MapPublisher
from coffre.cluster.membership.map_source import maps_of_nodes, newest_of
from coffre.cluster.transport import Transport
from coffre.proto import coffre_pb2 as spb
from coffre.proto import coordination_pb2 as pb

if TYPE_CHECKING:
    from coffre.proto.coordination_pb2_grpc import CoordinationAsyncStub

__all__ = ["LostCoordinationPublisher", "check_one_store", "check_stores"]

ASK_SECONDS = 2.0

_Reply = TypeVar("_Reply")


class _OneNode:
    """`Coordinators` that is one node, whatever the map says."""

    def __init__(self, coordinators: Coordinators, node: int) -> None:
        self._coordinators = coordinators
        self.cluster_map = replace(coordinators.cluster_map, coordinators=(node,))

    async def coordinate(
        self,
        node: int,
        call: Callable[[CoordinationAsyncStub], Awaitable[_Reply]],
        timeout: float,
        *,
        wait: bool = True,
    ) -> _Reply:
        return await self._coordinators.coordinate(node, call, timeout, wait=wait)

    def watch(self, node: int, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchReply]:
        return self._coordinators.watch(node, request)


async def check_one_store(transport: Transport, cluster_map: ClusterMap) -> None:
    """Raise `InvalidArgument` when coordinators of the map that answer have more than one store between them.

    To be asked before anything is decided that all must hear of. It costs nothing where the map names one alone.
    """
    if len(cluster_map.coordinators) < 2:
        return
    statuses: dict[int, spb.StatusReply] = {}

    async def ask(number: int) -> None:
        try:
            statuses[number] = await transport.status(number, ASK_SECONDS)
        except CoffreError:
            return  # a member of one etcd may be down

    await asyncio.gather(*map(ask, cluster_map.coordinators))
    if rivals := rival_stores(cluster_map, statuses):
        raise InvalidArgument(rivals)


async def check_stores(
    transport: Coordinators, current: ClusterMap, proposed: ClusterMap, *, coordination_lost: bool
) -> None:
    """Raise unless the coordinators of `proposed` serve one store: the present one, or a single empty one.

    Raises `Unavailable` when one of them serves none (yet), `InvalidArgument` when it is another store.
    """
    present: Entry | None = None
    if not coordination_lost and current.coordinators:
        present = await RemoteCoordination(transport).get(CURRENT)
    for number in proposed.coordinators:
        if number in current.coordinators and not coordination_lost:
            continue
        node = proposed.node(number).node_id
        try:
            found = await RemoteCoordination(_OneNode(transport, number)).get(CURRENT)
        except RetryableError as error:
            raise Unavailable(
                f"{node} serves no coordination: give its node.toml a [coordination] section and start it "
                f"again ({error})"
            ) from None
        if found is not None and found != present:
            raise InvalidArgument(
                f"the coordination store of {node} has maps of another time; let it begin with an empty one"
            )
        if found is None and len(proposed.coordinators) > 1:
            raise InvalidArgument(
                f"{node} has an empty store, so nobody can say that the coordinators share one: begin with {node} "
                "alone, and add the others when it has the map"
            )


class LostCoordinationPublisher:
    """`MapPublisher` for when coordination is gone for good: the newest map that nodes have, and a file to carry.

    Every node must say which map it has, but for coordinators, which may be gone: a map that one of the others has
    already would have the epoch of the new one.
    """

    def __init__(self, file: MapPublisher, transport: Transport, known: ClusterMap, authority: Path) -> None:
        self._file = file
        self._transport = transport
        self._known = known
        self._authority = read_certificate(authority)

    async def current(self) -> ClusterMap:
        found = await maps_of_nodes(self._transport, self._known, self._authority)
        if not found:
            raise Unavailable("no node answers: start the nodes first")
        if all(each.map.epoch < self._known.epoch for each in found.values()):
            return self._known  # it was not carried to a node yet
        newest = newest_of(self._known, found)
        assert newest is not None
        silent = [
            node.node_id
            for node in present_nodes(newest.map)
            if node.number not in found and node.number not in newest.map.coordinators
        ]
        if silent:
            raise Unavailable(f"{', '.join(silent)} must say which map they have, and do not answer")
        if newest.map.epoch > self._known.epoch:
            await self._file.publish(newest.signed, self._known.epoch)
            self._known = newest.map
            await self._transport.update_map(newest.map)
        return newest.map

    async def publish(self, signed: bytes, expected_epoch: int) -> None:
        await self._file.publish(signed, expected_epoch)
