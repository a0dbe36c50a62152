"""How the commands of an operator reach a cluster, and publish its maps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from coffre.cluster.admin.operator import OperatorConfig, find_operator_config, load_operator_config
from coffre.cluster.clock import SystemClock
from coffre.cluster.coordination import RemoteCoordination
from coffre.cluster.errors import RetryableError
from coffre.cluster.health import SurveyedNode, present_nodes, survey_nodes
from coffre.cluster.identity import read_certificate
from coffre.cluster.map import ClusterMap, MapNode, write_map
from coffre.cluster.membership import (
    CoordinatedMapPublisher,
    FileMapPublisher,
    LostCoordinationPublisher,
    MapPublisher,
    MapSigner,
    MoveReports,
    RepairReports,
    begin_change,
    learn_map,
)
from coffre.cluster.transport import GrpcTransport

__all__ = ["Access", "open_access"]


@dataclass(frozen=True, slots=True)
class Access:
    """How the commands of an operator reach the cluster."""

    config: OperatorConfig
    clock: SystemClock
    transport: GrpcTransport
    publisher: MapPublisher
    reports: MoveReports
    reaches_members: bool  # whether who publishes a map need not carry it to the members

    async def known(self) -> tuple[ClusterMap, str]:
        """The newest map that can be had to look at, and what is wrong when that may not be the newest one."""
        try:
            return await self.publisher.current(), ""
        except RetryableError as error:
            # The file's map may be newer than what nodes have, if coordination was lost.
            authority = read_certificate(self.config.tls.authority)
            found = await learn_map(self.transport, self.config.cluster_map, self.config.map_path, authority)
            return found, str(error)

    async def publish(self, planned: ClusterMap) -> ClusterMap:
        """Sign and publish a map that was planned."""
        await begin_change(self.publisher, MapSigner.load(self.config.tls, self.clock), planned)
        await self.transport.update_map(planned)
        return planned

    async def survey(self, cluster_map: ClusterMap, node_ids: tuple[str, ...] = ()) -> list[SurveyedNode]:
        """Ask nodes how they are (default: all that were not removed)."""
        nodes = [node for node in present_nodes(cluster_map) if not node_ids or node.node_id in node_ids]
        return await self.survey_of(nodes)

    async def survey_of(self, nodes: Iterable[MapNode]) -> list[SurveyedNode]:
        """Ask these nodes how they are."""
        return await survey_nodes(self.transport, nodes, self.clock)


@asynccontextmanager
async def open_access(config: Path | None, *, coordination_lost: bool = False) -> AsyncIterator[Access]:
    """What operator.toml describes. Maps go through coordination when the map names coordinators, else to the file.

    `coordination_lost`: what the map says of coordinators is over; the newest map is the one that the nodes have.
    """
    clock = SystemClock()
    found = load_operator_config(find_operator_config(config), clock)
    transport = GrpcTransport(found.cluster_map, found.tls)
    publisher: MapPublisher = FileMapPublisher(found.map_path, found.tls.authority, clock)
    coordinated = bool(found.cluster_map.coordinators) and not coordination_lost
    if coordination_lost:
        publisher = LostCoordinationPublisher(publisher, transport, found.cluster_map, found.tls.authority)
    if coordinated:
        publisher = CoordinatedMapPublisher(
            RemoteCoordination(transport),
            transport,
            found.cluster_map,
            read_certificate(found.tls.authority),
            partial(write_map, found.map_path),
            clock,
        )
    try:
        yield Access(found, clock, transport, publisher, RepairReports(transport), coordinated)
    finally:
        await transport.close()
