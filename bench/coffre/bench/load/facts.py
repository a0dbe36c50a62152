"""What a cluster is, and what a run has cost it: from the nodes' own counters, and from /proc where they are local."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from coffre.bench.processes import cpu_s
from coffre.cluster.errors import CoffreError
from coffre.cluster.identity import TlsFiles
from coffre.cluster.map import ClusterMap, NodeState
from coffre.cluster.transport import GrpcTransport

__all__ = ["ClusterFacts", "Counters", "Observer"]

STATUS_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """The cluster map, in short."""

    cluster_id: str
    epoch: int
    nodes: int
    sites: int
    operators: int
    policy: str
    k: int
    m: int

    @classmethod
    def of(cls, cluster_map: ClusterMap) -> ClusterFacts:
        nodes = [node for node in cluster_map.nodes if node.state is not NodeState.REMOVED]
        policy = cluster_map.policy()
        return cls(
            cluster_map.cluster_id,
            cluster_map.epoch,
            len(nodes),
            len({node.site for node in nodes}),
            len({node.operator for node in nodes}),
            policy.name,
            policy.k,
            policy.m,
        )


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over the nodes that answered. None: nobody could be asked."""

    answering: int | None = None
    syncs: int | None = None
    objects: int | None = None
    live_bytes: int | None = None
    disk_bytes: int | None = None
    cpu_s: float | None = None  # of the node processes on this machine


class Observer:
    """Reads the counters. Without an operator's certificate or local processes, it has less to say."""

    def __init__(
        self,
        cluster_map: ClusterMap,
        operator: TlsFiles | None,
        pids: Callable[[], Iterable[int]] | None = None,
    ) -> None:
        self._numbers = [node.number for node in cluster_map.nodes if node.state is not NodeState.REMOVED]
        self._transport = None if operator is None else GrpcTransport(cluster_map, operator)
        self._pids = pids

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transport is not None:
            await self._transport.close()

    async def counters(self) -> Counters:
        """The counters now. A node that does not answer is left out, and `answering` says so."""
        used_s = None if self._pids is None else sum(cpu_s(pid) for pid in self._pids())
        transport = self._transport
        if transport is None:
            return Counters(cpu_s=used_s)
        replies = await asyncio.gather(
            *(transport.status(number, STATUS_TIMEOUT_S) for number in self._numbers), return_exceptions=True
        )
        found = []
        for reply in replies:
            if not isinstance(reply, BaseException):
                found.append(reply)
            elif not isinstance(reply, CoffreError):
                raise reply
        return Counters(
            len(found),
            sum(reply.syncs for reply in found),
            sum(reply.objects for reply in found),
            sum(reply.live_bytes for reply in found),
            sum(reply.disk_bytes for reply in found),
            used_s,
        )
