"""Which store a node uses: its own only while the map names it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.coordination import EmbeddedCoordination, MemoryCoordination, Put
from coffre.cluster.errors import Unavailable
from coffre.cluster.map import ClusterMap, Domain, MapNode, Policy
from coffre.node.following import MapHolder
from coffre.node.serving.coordinator import NearestCoordination

from tests.contract.coordination_stores import seeded_entropy

NODES = tuple(
    MapNode(i, f"a{i}", f"127.0.0.1:740{i}", f"server-{i}", "rennes", "ovh", "FR", 1 << 40) for i in (1, 2)
)
MAP = ClusterMap("test", 1, 16, NODES, (Policy("1-1", 1, 1, ("FR",), Domain.NODE),), "1-1", (1,))
ELSEWHERE = replace(MAP, epoch=2, coordinators=(2,))


@pytest.fixture
async def stores() -> AsyncGenerator[tuple[MemoryCoordination, MemoryCoordination]]:
    opened = tuple(MemoryCoordination(ManualClock(), seeded_entropy(name)) for name in ("own", "other"))
    yield opened[0], opened[1]
    for store in opened:
        await store.close()


async def test_the_map_says_which(stores: tuple[MemoryCoordination, MemoryCoordination]) -> None:
    own, other = stores
    maps = MapHolder(MAP, b"")
    nearest = NearestCoordination(1, maps, own, other)
    await nearest.commit([], [Put("maps/x", b"first")])
    assert await own.get("maps/x") is not None
    maps.adopt(ELSEWHERE, b"")
    nearest.map_changed()
    assert await nearest.get("maps/x") is None
    lease = await nearest.grant(10)
    await nearest.commit([], [Put("maps/x", b"second", lease.number)])
    entry = await other.get("maps/x")
    assert entry is not None
    assert entry.value == b"second"


async def test_a_watch_on_a_store_that_is_left_ends(
    stores: tuple[MemoryCoordination, MemoryCoordination],
) -> None:
    own, other = stores
    maps = MapHolder(MAP, b"")
    nearest = NearestCoordination(1, maps, own, other)
    revision = (await own.range("maps/")).revision
    watching = nearest.watch("maps/", revision)
    await own.commit([], [Put("maps/x", b"1")])
    assert (await anext(watching)).changes[0].key == "maps/x"
    waiting = asyncio.ensure_future(anext(watching))
    maps.adopt(replace(MAP, epoch=2), b"")
    nearest.map_changed()
    await asyncio.sleep(0)
    assert not waiting.done()  # it is a coordinator still
    maps.adopt(replace(ELSEWHERE, epoch=3), b"")
    nearest.map_changed()
    async with asyncio.timeout(5):
        with pytest.raises(Unavailable, match="no coordinator any more"):
            await waiting
    again = nearest.watch("maps/", (await other.range("maps/")).revision)
    await other.commit([], [Put("maps/y", b"1")])
    assert (await anext(again)).changes[0].key == "maps/y"
    await again.aclose()


async def test_own_stores_of_several_are_asked_for_maps_alone(
    stores: tuple[MemoryCoordination, MemoryCoordination], tmp_path: Path
) -> None:
    """The map that ends this may be published in either, and who looks at the other one does not hear of it."""
    _, other = stores
    own = await EmbeddedCoordination.open(tmp_path / "own", ManualClock(), seeded_entropy("embedded"))
    nearest = NearestCoordination(1, MapHolder(replace(MAP, coordinators=(1, 2)), b""), own, other)
    await own.commit([], [Put("maps/x", b"own"), Put("tenants/x", b"own")])
    await other.commit([], [Put("maps/x", b"other"), Put("tenants/x", b"other")])
    entry, tenant = await nearest.get("maps/x"), await nearest.get("tenants/x")
    assert entry is not None
    assert tenant is not None
    assert (entry.value, tenant.value) == (b"own", b"other")
    watching = nearest.watch("maps/", (await nearest.range("maps/")).revision)
    await own.commit([], [Put("maps/y", b"own")])
    assert (await anext(watching)).changes[0].value == b"own"
    await watching.aclose()
    await own.close()
