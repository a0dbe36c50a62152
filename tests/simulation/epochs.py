"""What a node answers at one epoch, and what it still commits of an earlier one: nothing, says docs/consistency.md.

Whether a client is ever told something wrong by it takes a whole move between the two; this sees it in every run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from coffre.cluster.clock import Clock
from coffre.cluster.identity import Identity
from coffre.node.following import MapHolder
from coffre.node.serving import Handler
from coffre.node.store import ShardStore
from coffre.proto import coffre_pb2 as pb

__all__ = ["EpochWitness", "WitnessedHandler"]


class EpochWitness:
    """Of one node, from one start to the next."""

    def __init__(self, maps: MapHolder, fail: Callable[[str], None]) -> None:
        self._maps = maps
        self._fail = fail
        self._messages: dict[asyncio.Task[Any] | None, int] = {}  # epochs of those that are worked on
        self._answered = 0  # the newest epoch of which anybody has been told what this node holds

    def asked(self) -> int:
        """The epoch at which the store is asked for something now: of the message, or of this node's own repair."""
        return self._messages.get(asyncio.current_task(), self._maps.map.epoch)

    async def worked_on(self, epoch: int, work: Coroutine[Any, Any, pb.BatchReply]) -> pb.BatchReply:
        """Work on a message, in the task of the caller."""
        task = asyncio.current_task()
        before = self._messages.get(task)
        self._messages[task] = epoch
        try:
            return await work
        finally:
            del self._messages[task]
            if before is not None:
                self._messages[task] = before

    def answered(self, epoch: int) -> None:
        self._answered = max(self._answered, epoch)

    def committed(self, epoch: int) -> None:
        """Something that the store was asked for at an epoch is done now."""
        if epoch < self._answered:
            self._fail(
                f"a node took something of epoch {epoch} when it had answered at epoch {self._answered}"
            )


class WitnessedHandler(Handler):
    """Notes at which epochs it answers."""

    def __init__(
        self,
        number: int,
        node_id: str,
        store: ShardStore,
        maps: MapHolder,
        clock: Clock,
        witness: EpochWitness,
    ) -> None:
        super().__init__(number, node_id, store, maps, clock)
        self._witness = witness

    async def batch(self, peer: Identity, request: pb.BatchRequest) -> pb.BatchReply:
        reply = await self._witness.worked_on(request.epoch, super().batch(peer, request))
        reads = any(operation.WhichOneof("operation") == "read" for operation in request.operations)
        if reads and request.epoch <= self.maps.map.epoch:
            self._witness.answered(request.epoch)
        return reply

    async def list(self, peer: Identity, request: pb.ListRequest) -> pb.ListReply:
        reply = await super().list(peer, request)
        self._witness.answered(request.epoch)
        return reply

    async def digests(self, peer: Identity, request: pb.DigestsRequest) -> pb.DigestsReply:
        reply = await super().digests(peer, request)
        if not reply.starting:
            self._witness.answered(reply.epoch)
        return reply

    async def partition_rows(
        self, peer: Identity, request: pb.PartitionRowsRequest
    ) -> AsyncIterator[pb.PartitionRowsReply]:
        async for reply in super().partition_rows(peer, request):
            self._witness.answered(request.epoch)
            yield reply
