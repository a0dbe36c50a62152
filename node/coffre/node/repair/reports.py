"""Damage that was reported to this node, or that it met itself, made into work or passed on."""

from __future__ import annotations

import logging

from coffre.cluster.errors import CoffreError
from coffre.node.repair.queue import RepairQueue
from coffre.node.repair.scene import Scene, Task
from coffre.node.store import ABORTED, DropRepair, QueueRepair, ShardStore

__all__ = ["Reports"]

_log = logging.getLogger(__name__)
_AT_ONCE = 4096


class Reports:
    """Drains the store's queue. A report of this node's own copy stays until it is repaired or found good."""

    def __init__(self, store: ShardStore, queue: RepairQueue) -> None:
        self._store = store
        self._queue = queue

    async def take(self, scene: Scene) -> None:
        """Put what readers reported into the queue, and drop what is dealt with. Raises as the store."""
        dealt_with: list[DropRepair] = []
        taken = 0
        async for repair in self._store.repair_queue():
            taken += 1
            if taken > _AT_ONCE:
                break
            if await self._take_one(scene, repair):
                dealt_with.append(DropRepair(repair.name, repair.partition, repair.stamp, repair.shard_index))
        if dealt_with:
            await self._store.apply(dealt_with)

    async def _take_one(self, scene: Scene, repair: QueueRepair) -> bool:
        """True when there is nothing more to remember of a report."""
        electorate = scene.electorate(repair.name, repair.partition)
        name = repair.name
        if scene.me not in electorate.primaries and not scene.electorates.is_home(
            scene.me, name.tenant, name.bucket, repair.partition
        ):
            return True  # its primaries make themselves whole; what this node holds for them goes by itself
        held = await self._store.read(repair.name, stamp=repair.stamp)
        own = held[0] if held else None
        if own is None or own.state == ABORTED or own.shard_index == repair.shard_index:
            task = Task(
                repair.name,
                repair.partition,
                electorate.k,
                verify=True,
                report=(repair.stamp, repair.shard_index),
            )
            self._queue.push(task)
            return False
        index = repair.shard_index
        if index is None or index >= len(own.placement) or own.placement[index] == scene.me:
            return True
        try:
            await scene.asking.report(own.placement[index], repair.name, repair.stamp, index)
        except CoffreError as error:
            _log.info("a report is passed on later", extra={"error": type(error).__name__})
            return False
        return True
