"""Publishing maps through coordination: every member takes a new one within a second."""

from __future__ import annotations

from pathlib import Path

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import Coordination
from coffre.cluster.coordination.maps import newest_map, publish_map
from coffre.cluster.errors import Conflict, Unavailable
from coffre.cluster.map import ClusterMap, newer_map, read_certificate, verify_map, write_map
from coffre.cluster.map_source import newest_of_nodes
from coffre.cluster.node_survey import present_nodes
from coffre.cluster.transport import Transport

__all__ = ["CoordinatedMapPublisher"]


class CoordinatedMapPublisher:
    """`MapPublisher` over coordination. `known` is the map in the operator's own file, of any epoch."""

    def __init__(
        self,
        coordination: Coordination,
        transport: Transport,
        known: ClusterMap,
        authority: Path,
        map_path: Path,
        clock: Clock,
    ) -> None:
        self._coordination = coordination
        self._transport = transport
        self._known = known
        self._authority = read_certificate(authority)
        self._map_path = map_path
        self._clock = clock

    async def current(self) -> ClusterMap:
        newest = await newest_map(self._coordination)
        if newest is None:
            self._known = await self._unpublished()
        else:
            self._known = newer_map(self._known, verify_map(newest.signed, self._authority))
        await self._transport.update_map(self._known)  # nodes that joined meanwhile are reached, too
        return self._known

    async def _unpublished(self) -> ClusterMap:
        """The map that came with the nodes' files, while none was ever published.

        Or coordination was lost: so every node must say which map it has. Another one of the epoch that the newest of
        them has would be refused by it for ever.
        """
        newest, answered = await newest_of_nodes(self._transport, self._known, self._authority)
        if newest is None or answered < len(present_nodes(newest.map)):
            raise Unavailable(
                "coordination has no map, and not all nodes say which one they have: start them, or make the newest "
                "known with coffre cluster restore-coordination"
            )
        return newer_map(self._known, newest.map)

    async def publish(self, signed: bytes, expected_epoch: int) -> None:
        newest = await newest_map(self._coordination)
        epoch = self._known.epoch if newest is None else newest.epoch
        if epoch != expected_epoch:
            raise Conflict(
                f"the newest map has epoch {epoch}, not {expected_epoch}; look at it, then try again"
            )
        await publish_map(self._coordination, signed, self._authority, self._clock.unixtime_ms())
        write_map(self._map_path, signed)  # so that the next command finds the cluster where it is now
