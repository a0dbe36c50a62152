"""The checks of what repair must bring back see what is missing."""

from __future__ import annotations

import random
from dataclasses import replace

from coffre.cluster.membership import VerifiedMap, set_policy
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.names import ObjectName

from tests.simulation.redundancy import left_staged, shortcomings
from tests.simulation.test_world import in_calm
from tests.simulation.world import BUCKET, TENANT, World

NAME = ObjectName(TENANT, "records", "k")


async def written(world: World) -> None:
    client = world.member().client
    for size_bytes in (10, 5000, 20):
        await client.put("records", "k", bytes(size_bytes))
        await client.flush()
    await client.delete("records", "other")
    await client.flush()
    await world.sleep(1)


def test_a_cluster_without_faults_lacks_nothing() -> None:
    async def work(world: World) -> list[str]:
        await written(world)
        return await shortcomings(world)

    assert in_calm(work) == []


def test_damage_is_seen() -> None:
    async def work(world: World) -> list[str]:
        await written(world)
        host = next(host for host in world.hosts.values() if host.store.versions(NAME))
        host.store.rot(random.Random(1), [entry.stamp for entry in host.store.versions(NAME)])
        return await shortcomings(world)

    (found,) = in_calm(work)
    assert "are whole" in found


def test_what_was_not_coded_anew_is_seen() -> None:
    async def work(world: World) -> list[str]:
        await written(world)
        policy = replace(world.policy, name="other", k=world.policy.k - 1, m=world.policy.m + 1)
        changed = finish_move(set_policy(world.cluster_map, TENANT, BUCKET, policy.name, policy))
        world.maps.take(VerifiedMap(changed, b""))
        return await shortcomings(world)

    found = in_calm(work)
    assert found
    assert all("otherwise than in other" in line for line in found)


def test_a_node_that_missed_a_write_is_seen_and_so_is_what_was_left_over() -> None:
    async def work(world: World) -> list[str]:
        await written(world)
        host = next(host for host in world.hosts.values() if host.store.versions(NAME))
        host.crash()
        client = world.member().client
        await client.put("records", "k", bytes(30))
        await client.flush()
        host.restart()
        staged = await host.store.stage(TENANT, bytes(16), 0)
        await staged.commit()
        return [*(await shortcomings(world)), *left_staged(world)]

    found = in_calm(work)
    assert any("does not have the newest version" in line for line in found)
    assert any("digests" in line for line in found)
    assert any("staged shards of nothing" in line for line in found)
