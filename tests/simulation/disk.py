"""The store of a simulated node: the one in memory, behind a disk that takes its time, fills up, rots, and dies."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence

from coffre.cluster.clock import Clock
from coffre.cluster.names import ObjectName
from coffre.node.memory import MemoryStore
from coffre.node.memory.rows import record_of
from coffre.node.store import (
    Abort,
    Entry,
    Mark,
    Mutation,
    Outcome,
    Settle,
    State,
    StoredVersion,
    StoreOptions,
)

from tests.simulation.epochs import EpochWitness

__all__ = ["SimulatedStore"]

STALL_SECONDS = (0.5, 5.0)  # longer than a map takes to all nodes
Watcher = Callable[[Sequence[Mutation], Sequence[Outcome]], None]


class SimulatedStore(MemoryStore):
    """Commits one call after the other, each whole or not at all: a crash before the end of its sync undoes it, a crash
    after that loses the answer alone.

    `watch` is told of every commit. `slowness` multiplies `sync_seconds`, the mean time of a sync; `stalls` is the part
    of the syncs that last for seconds, and `chance` says which; while it hangs nothing is committed. `epochs` sees at
    which epoch each commit was asked for.
    """

    def __init__(
        self,
        clock: Clock,
        options: StoreOptions,
        rng: random.Random,
        sync_seconds: float,
        watch: Watcher,
        *,
        store_id: bytes = bytes(16),
        stalls: float = 0.0,
        chance: random.Random | None = None,
    ) -> None:
        super().__init__(clock, options, store_id=store_id)
        self._chance = chance or random.Random(0)
        self._rng = rng
        self._sync_seconds = sync_seconds
        self._watch = watch
        self._committing = asyncio.Lock()
        self.slowness = 1.0
        self.stalls = stalls
        self._hangs: asyncio.Event | None = None
        self.epochs: EpochWitness | None = None

    def crash(self) -> None:
        super().crash()
        self._committing = asyncio.Lock()  # whoever held it died with the node

    async def apply(self, mutations: Sequence[Mutation]) -> list[Outcome]:
        epochs = self.epochs
        epoch = 0 if epochs is None else epochs.asked()
        async with self._committing:
            if any(not isinstance(mutation, (Settle, Mark)) for mutation in mutations):
                await self._pause()
                await self._stall()
                if self._hangs is not None:
                    await self._hangs.wait()
            outcomes = await super().apply(mutations)
            self._watch(mutations, outcomes)
            if epochs is not None and not all(isinstance(mutation, Abort) for mutation in mutations):
                epochs.committed(epoch)  # a vote to give up is taken at any
        if self._rng.random() < 0.2:
            await self._pause()  # synced, and not answered yet
        return outcomes

    def hang(self) -> None:
        """The disk takes nothing until `go_on`, and says nothing of it; what it holds can be read."""
        self._hangs = asyncio.Event()

    def go_on(self) -> None:
        if self._hangs is not None:
            self._hangs.set()
            self._hangs = None

    async def drain(self) -> None:
        async with self._committing:
            await super().drain()

    async def read(
        self, name: ObjectName, *, stamp: bytes = b"", every: bool = False, want_cell: bool = False
    ) -> tuple[StoredVersion, ...]:
        if self.slowness > 1:
            await self._pause()
        return await super().read(name, stamp=stamp, every=every, want_cell=want_cell)

    async def _pause(self) -> None:
        pace = self.slowness * self._rng.expovariate(1 / self._sync_seconds)
        await asyncio.sleep(pace)

    async def _stall(self) -> None:
        if self.stalls and self._chance.random() < self.stalls:
            pace = self._chance.uniform(*STALL_SECONDS)
            await asyncio.sleep(pace)

    # ---------------------------------------------------------------- what a disk does to what it keeps

    def rot(self, rng: random.Random, spare: Collection[bytes]) -> str:
        """Flip a bit of a cell, or of a manifest, of a version in `spare`. Says of what; empty when none is here."""
        held = [
            (name, entry)
            for name, row in self._rows.items()
            for entry in row.entries
            if entry.state != State.ABORTED and entry.stamp in spare
        ]
        if not held:
            return ""
        name, entry = rng.choice(held)
        shard = record_of(entry).shard
        if shard is None or not shard.size_bytes or rng.random() < 0.3:
            self.rot_manifest(name, entry.stamp)
            return f"the manifest of {name.key}"
        segment = rng.randrange(len(shard.cells))
        self.flip_cell(name, entry.stamp, rng.randrange(len(shard.cells[segment][1])), segment)
        return f"segment {segment} of {name.key}"

    def holdings(self) -> list[Entry]:
        """Every version here, with what marks say about it."""
        return [entry for name in self._rows for entry in self._entries(name) if entry.state != State.ABORTED]

    def names(self) -> list[ObjectName]:
        return list(self._rows)

    def versions(self, name: ObjectName) -> tuple[Entry, ...]:
        return self._entries(name)

    @property
    def staged(self) -> int:
        """How many shards belong to no version."""
        return len(self._staging)
