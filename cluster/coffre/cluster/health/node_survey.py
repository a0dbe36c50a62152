"""Asking every node how it is, for an administrator: who answers, how full it is, whose clock is off."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError
from coffre.cluster.health.detection import Health, HealthLimits, HealthTracker
from coffre.cluster.map import ClusterMap, MapNode, NodeState
from coffre.cluster.transport import Transport
from coffre.proto import coffre_pb2 as pb

__all__ = ["SurveyedNode", "live_bytes", "present_nodes", "survey_nodes"]

ASK_TIMEOUT_SECONDS = 3.0
_ROUNDS = 3  # the first answer pays for the connection


@dataclass(frozen=True, slots=True)
class SurveyedNode:
    """One node, as it looks from here now."""

    node: MapNode
    health: Health
    status: pb.StatusReply | None  # None: it did not answer
    error: str  # why not
    latency_seconds: float | None
    clock_ahead_seconds: float | None  # of this machine's clock, to half a round trip

    @property
    def node_id(self) -> str:
        """The name that the map gives the node."""
        return self.node.node_id


def present_nodes(cluster_map: ClusterMap) -> tuple[MapNode, ...]:
    """The nodes of a map that were not removed."""
    return tuple(node for node in cluster_map.nodes if node.state is not NodeState.REMOVED)


async def survey_nodes(transport: Transport, nodes: Iterable[MapNode], clock: Clock) -> list[SurveyedNode]:
    """Ask each node for its status, all at once, a few times."""
    nodes = list(nodes)
    tracker = HealthTracker(clock, HealthLimits(failures=1))
    answers: dict[int, tuple[pb.StatusReply, float]] = {}
    errors: dict[int, str] = {}

    async def ask(number: int) -> None:
        asked, asked_unixtime_ms = clock.monotonic(), clock.unixtime_ms()
        try:
            reply = await transport.status(number, ASK_TIMEOUT_SECONDS)
        except CoffreError as error:
            tracker.failed(number)
            errors[number] = str(error)
            return
        latency = clock.monotonic() - asked
        tracker.answered(number, latency)
        ahead_ms = reply.unixtime_ms - (asked_unixtime_ms + latency * 500)
        answers[number] = reply, ahead_ms / 1000
        errors.pop(number, None)

    pending = [node.number for node in nodes]
    for _ in range(_ROUNDS):
        await asyncio.gather(*(ask(number) for number in pending))
        pending = [number for number in pending if number not in errors]  # who is down is asked once
    return [
        SurveyedNode(
            node,
            tracker.health(node.number),
            answers[node.number][0] if node.number in answers and node.number not in errors else None,
            errors.get(node.number, ""),
            tracker.latency_seconds(node.number),
            answers[node.number][1] if node.number in answers else None,
        )
        for node in nodes
    ]


def live_bytes(reports: Iterable[SurveyedNode]) -> dict[int, int]:
    """What the nodes that answer hold, by number."""
    return {report.node.number: report.status.live_bytes for report in reports if report.status is not None}
