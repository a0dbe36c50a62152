"""The implementations of `Coordination` that the contract suite runs against."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import Coordination, EmbeddedCoordination, MemoryCoordination

__all__ = ["STORES", "Store", "seeded_entropy"]


def seeded_entropy(seed: str) -> Callable[[int], bytes]:
    """Bytes that are the same in every run."""
    drawn = 0

    def draw(count: int) -> bytes:
        nonlocal drawn
        drawn += 1
        return blake2b(f"{seed}/{drawn}".encode(), digest_size=count).digest()

    return draw


@dataclass(frozen=True, slots=True)
class Store:
    """One implementation. `clock` runs its leases; None: they take real seconds."""

    coordination: Coordination
    clock: ManualClock | None


@asynccontextmanager
async def memory(_: Path) -> AsyncGenerator[Store]:
    clock = ManualClock()
    store = MemoryCoordination(clock, seeded_entropy("memory"))
    yield Store(store, clock)
    await store.close()


@asynccontextmanager
async def embedded(directory: Path) -> AsyncGenerator[Store]:
    clock = ManualClock()
    store = await EmbeddedCoordination.open(directory / "coordination", clock, seeded_entropy("embedded"))
    yield Store(store, clock)
    await store.close()


STORES = {"memory": memory, "embedded": embedded}
