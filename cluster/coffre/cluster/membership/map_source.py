"""How a member comes to a newer map: told by coordination, or asked of any node. Nobody is believed unsigned."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import Coordination, watch_maps
from coffre.cluster.errors import CoffreError
from coffre.cluster.map import (
    ClusterMap,
    NodeState,
    newer_map,
    read_unverified_map,
    verify_map,
    write_map,
)
from coffre.cluster.transport import Transport
from coffre.proto import coffre_pb2 as pb
from cryptography import x509

__all__ = [
    "ClusterMaps",
    "KeptMaps",
    "VerifiedMap",
    "keep_map",
    "keep_where_allowed",
    "learn_map",
    "maps_of_nodes",
    "newest_of",
    "newest_of_nodes",
]

ASK_SECONDS = 2.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VerifiedMap:
    """A map that an operator of this cluster has signed, and the bytes that were signed."""

    map: ClusterMap
    signed: bytes


class ClusterMaps:
    """Where newer maps come from, for one member."""

    def __init__(
        self, transport: Transport, coordination: Coordination, authority: x509.Certificate, clock: Clock
    ) -> None:
        self._transport = transport
        self._coordination = coordination
        self._authority = authority
        self._clock = clock

    async def newer(self, than: ClusterMap, *, but: Collection[int] = ()) -> VerifiedMap | None:
        """The first newer map that a node answers with, `but` for some; None when none of them has one."""
        nodes = [
            node.number
            for node in than.nodes
            if node.state is not NodeState.REMOVED and node.number not in but
        ]
        asking = [asyncio.ensure_future(self._ask(node, than)) for node in nodes]
        try:
            for answer in asyncio.as_completed(asking):
                if (found := await answer) is not None:
                    return found
            return None
        finally:
            for task in asking:
                task.cancel()

    async def _ask(self, node: int, than: ClusterMap) -> VerifiedMap | None:
        try:
            request = pb.GetMapRequest(known_epoch=than.epoch)
            reply = await self._transport.get_map(node, request, ASK_SECONDS)
            if not reply.signed_map:
                return None
            found = self._verified(reply.signed_map)
            return None if newer_map(than, found.map) is than else found
        except CoffreError:
            return None  # it does not answer, or not with a map of this cluster: the others are asked too

    def _verified(self, signed: bytes) -> VerifiedMap:
        return VerifiedMap(verify_map(signed, self._authority, self._clock.unixtime_ms()), signed)

    async def watch(self) -> AsyncGenerator[VerifiedMap]:
        """Yield the newest map of coordination, and each that becomes it. Raises as `watch_maps` and `verify_map`."""
        async with aclosing(watch_maps(self._coordination)) as watching:
            async for published in watching:
                yield self._verified(published.signed)


class KeptMaps:
    """Maps of a source; one that is newer than a file's goes into that file, where this process may write it.

    So who starts next begins with the newest map that anybody here has seen. As with every map file, it is replaced
    whole; a link is followed.
    """

    def __init__(self, maps: ClusterMaps, path: Path, known: ClusterMap) -> None:
        """`known`: what the file says."""
        self._maps = maps
        self._path = path
        self._known = known

    async def newer(self, than: ClusterMap) -> VerifiedMap | None:
        """As `ClusterMaps.newer`."""
        found = await self._maps.newer(than)
        if found is not None:
            await self._keep(found)
        return found

    async def watch(self) -> AsyncGenerator[VerifiedMap]:
        """As `ClusterMaps.watch`."""
        async with aclosing(self._maps.watch()) as watching:
            async for found in watching:
                await self._keep(found)
                yield found

    async def _keep(self, found: VerifiedMap) -> None:
        if found.map.epoch <= self._known.epoch:
            return
        try:
            newer_map(self._known, found.map)
        except CoffreError as error:
            _log.info("a newer map is used, and not kept: %s", error)
        else:
            await keep_where_allowed(self._path, found)
        self._known = found.map


async def keep_where_allowed(path: Path, found: VerifiedMap) -> None:
    """`keep_map`; who may not write the file goes on all the same."""
    try:
        await asyncio.to_thread(keep_map, path, found)
    except CoffreError as error:
        _log.info("a newer map is used, and not kept: %s", error)


async def learn_map(
    transport: Transport, known: ClusterMap, path: Path, authority: x509.Certificate
) -> ClusterMap:
    """The newest of `known`, which a file says, and the maps of its nodes. From now on `transport` works on it, and the
    file has it where this process may write it. Raises as `newest_of`.

    For commands, so that an operator's old file is no map of nodes and coordinators that are gone.
    """
    newest, _ = await newest_of_nodes(transport, known, authority)
    if newest is None or newest.map.epoch <= known.epoch:
        return known
    await keep_where_allowed(path, newest)
    await transport.update_map(newest.map)
    return newest.map


def keep_map(path: Path, found: VerifiedMap) -> None:
    """Replace the map in a file by a newer one; nothing when it is as new by now. Raises `ConfigurationError`."""
    if read_unverified_map(path).epoch < found.map.epoch:
        write_map(path.resolve(), found.signed)


async def newest_of_nodes(
    transport: Transport, known: ClusterMap, authority: x509.Certificate
) -> tuple[VerifiedMap | None, int]:
    """The newest signed map that any node of `known` keeps, and how many nodes answered. Raises as `newest_of`."""
    found = await maps_of_nodes(transport, known, authority)
    return newest_of(known, found), len(found)


async def maps_of_nodes(
    transport: Transport, known: ClusterMap, authority: x509.Certificate
) -> dict[int, VerifiedMap]:
    """The signed maps that the nodes of `known` keep, of those that answer, by number.

    For when coordination was lost: the dates of the signer's certificate do not matter, since nodes took the map while
    it was valid.
    """

    async def ask(node: int) -> VerifiedMap | None:
        reply = await transport.get_map(node, pb.GetMapRequest(), ASK_SECONDS)
        return VerifiedMap(verify_map(reply.signed_map, authority), reply.signed_map)

    nodes = [node.number for node in known.nodes if node.state is not NodeState.REMOVED]
    answers = await asyncio.gather(*(ask(node) for node in nodes), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, CoffreError):
            raise answer
    return {
        node: answer for node, answer in zip(nodes, answers, strict=True) if isinstance(answer, VerifiedMap)
    }


def newest_of(known: ClusterMap, found: Mapping[int, VerifiedMap]) -> VerifiedMap | None:
    """The newest of these maps, None when there is none. It is older than `known` when no node has that one yet.

    Raises as `newer_map` when another of them, or of them and `known`, cannot come before the newest of all.
    """
    newest = max(found.values(), key=lambda each: each.map.epoch, default=None)
    if newest is None:
        return None
    last = newest.map if newest.map.epoch >= known.epoch else known
    for other in (known, *(each.map for each in found.values())):
        newer_map(other, last)  # two maps of one epoch: an operator must decide
    return newest
