"""A walk over a node's own rows: what equal digests do not show, and what it holds for others (docs/repair.md)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from coffre.cluster.clock import Clock
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import unixtime_ms_of
from coffre.node.following import AHEAD_MS_MAX
from coffre.node.repair.decide import is_pending
from coffre.node.repair.duplicates import report_duplicates
from coffre.node.repair.handoff import releasable
from coffre.node.repair.options import RepairOptions
from coffre.node.repair.queue import RepairQueue
from coffre.node.repair.scene import Scene, Task
from coffre.node.repair.tombstones import ripe
from coffre.node.store import ABORTED, SETTLED, Mutation, PartitionRow, ShardStore, StoredVersion

__all__ = ["DUPLICATES_WALKS", "Sweep", "Swept"]

_log = logging.getLogger(__name__)
DUPLICATES_WALKS = (
    8  # in so many walks every partition is looked through once for shards that are there twice
)


@dataclass(slots=True)
class Swept:
    """What a walk found and did."""

    held_for_others: int = 0  # names, after it
    forgotten: int = 0
    condemned: int = 0
    collected: int = 0
    # What it holds for others against the policy, by reason.
    breaches: Counter[str] = field(default_factory=Counter)


class Sweep:
    """Changes this node alone, and only after everybody who must has answered."""

    def __init__(self, store: ShardStore, options: RepairOptions, queue: RepairQueue, clock: Clock) -> None:
        self._store = store
        self._options = options
        self._queue = queue
        self._clock = clock
        self._walks = 0

    async def walk(self, scene: Scene) -> Swept:
        """Walk over the next rows and do what is due. Raises as the store."""
        swept = Swept()
        digests = await self._store.digests()
        self._walks += 1
        for partition in sorted(digests):
            if (partition + self._walks) % DUPLICATES_WALKS == 0:
                await report_duplicates(self._store, scene, partition, digests[partition])
            async for rows in self._store.partition_rows(partition):
                own = [r for r in rows if scene.me in scene.electorate(r.name, partition).primaries]
                others = [r for r in rows if scene.me not in scene.electorate(r.name, partition).primaries]
                if own:
                    await self._own_rows(scene, partition, own, swept)
                if others:
                    await self._rows_of_others(scene, partition, others, swept)
        return swept

    async def _own_rows(
        self, scene: Scene, partition: int, rows: Sequence[PartitionRow], swept: Swept
    ) -> None:
        trusted_ms = scene.now_ms(self._clock)
        now_ms = self._clock.unixtime_ms()
        old_ms = now_ms - int(self._options.unfinished_seconds * 1000)
        ripe_ms = -1 if trusted_ms is None else trusted_ms - int(self._options.retention_seconds * 1000)
        tombstones: dict[ObjectName, StoredVersion] = {}
        for row in rows:
            versions = row.versions
            if len(versions) == 1 and versions[0].tombstone and versions[0].state == SETTLED:
                if unixtime_ms_of(versions[0].stamp) <= ripe_ms:
                    tombstones[row.name] = versions[0]
            elif _is_unfinished(
                versions,
                scene.electorates.versions_kept(row.name.tenant, row.name.bucket),
                old_ms,
                now_ms + AHEAD_MS_MAX,
            ) or _lacks_shard(versions, scene, now_ms - int(self._options.settling_seconds * 1000)):
                self._queue.push(Task(row.name, partition, scene.electorate(row.name, partition).k))
        if not tombstones:
            return
        found = await ripe(scene, partition, tombstones)
        if not scene.is_current():
            return  # who has to know of a deletion is another question now
        await self._store.apply([*found.condemn, *found.collect])
        swept.condemned += len(found.condemn)
        swept.collected += len(found.collect)

    async def _rows_of_others(
        self, scene: Scene, partition: int, rows: Sequence[PartitionRow], swept: Swept
    ) -> None:
        for row in rows:
            electorate = scene.electorate(row.name, partition)
            # A primary of before has a vote, too.
            if scene.me in electorate.everyone and is_pending(row.versions):
                self._queue.push(Task(row.name, partition, electorate.k))
        now_ms = scene.now_ms(self._clock)
        forget, promises = await releasable(
            self._store, scene, self._options, partition, rows, now_ms, swept.breaches
        )
        # By another map this node may have to keep what is not its own by this one.
        mutations: list[Mutation] = [*forget, *promises] if scene.is_current() else []
        outcomes = await self._store.apply(mutations) if mutations else []
        gone = sum(outcome.error is None for outcome in outcomes[: len(forget)])
        swept.forgotten += gone
        swept.held_for_others += len(rows) - gone


def _lacks_shard(versions: Sequence[StoredVersion], scene: Scene, settled_ms: int) -> bool:
    """Whether this primary has no shard of what is settled for a while, and should. Digests do not tell when no primary
    has one: they were all down when it was written, and substitutes hold its shards."""
    return any(
        v.state == SETTLED
        and not v.tombstone
        and v.shard_index is None
        and v.stamp not in scene.bare
        and unixtime_ms_of(v.stamp) <= settled_ms
        for v in versions
    )


def _is_unfinished(versions: Sequence[StoredVersion], versions_kept: int, old_ms: int, ahead_ms: int) -> bool:
    """Whether something about a name was never decided, or what it replaced never trimmed."""
    held = [v for v in versions if v.state != ABORTED]
    if any(v.state != SETTLED and not old_ms < unixtime_ms_of(v.stamp) <= ahead_ms for v in held):
        return True
    settled = [v for v in held if v.state == SETTLED]
    return len(settled) > versions_kept or any(v.tombstone for v in settled[:-1])
