"""Objects that are coded otherwise than their bucket's policy says now are repaired, moved and handed over, too."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress

import pytest
from coffre.client import AsyncClient
from coffre.client.writing import Issuer, Writer
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import IntegrityError
from coffre.cluster.map import ClusterMap, Electorates, Policy
from coffre.cluster.membership import Move, MoveReport, drain_node, set_policy
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.following import MapHolder
from coffre.node.repair import Repairer, RepairOptions
from coffre.node.serving import Handler
from coffre.node.store import QueueRepair, Settle, State

AT_ONCE = RepairOptions(
    settling_seconds=-5.0, bytes_per_second=1 << 40, retention_seconds=-5.0, unfinished_seconds=-5.0
)
SMALL = {f"small-{number}": os.urandom(700) for number in range(12)}
LARGE = {f"large-{number}": os.urandom(1_500_000) for number in range(3)}
OBJECTS = SMALL | LARGE
NODES = 9
GROWING, SHRINKING = ((3, 1), (4, 2)), ((4, 2), (3, 1))
THROUGH = (
    (4, 2),
    (2, 1),
    (3, 1),
)  # the last is the default policy: nobody but homes has to do with 4+2 any more
Coding = tuple[int, int]


class Course:
    """A cluster whose bucket `b` gets another policy, map by map. `others` has objects that nothing changes for."""

    def __init__(self, before: Coding, after: Coding, default: Coding | None = None) -> None:
        self.cluster: InProcessCluster = in_process_cluster(*(default or before), nodes=NODES)
        self.before, self.after = before, after
        self.map = self.cluster.cluster_map
        self.repairers: dict[int, Repairer] = {}
        self.adopt(self.map if default is None else finish_move(self.with_policy(before)))

    def adopt(self, cluster_map: ClusterMap) -> None:
        self.map = cluster_map
        for node in cluster_map.nodes:
            store, holder = self.cluster.stores[node.number], MapHolder(cluster_map, b"")
            self.cluster.handlers[node.number] = Handler(
                node.number, node.node_id, store, holder, SystemClock()
            )
            self.repairers[node.number] = self.cluster.repairer(node.number, AT_ONCE)

    def client(self) -> AsyncClient:
        return self.cluster.client(cluster_map=self.map)

    async def fill(self) -> None:
        client = self.client()
        for key, value in OBJECTS.items():
            await client.put("b", key, value)
        await client.put("others", "key", b"value")
        await client.flush()

    def recoded(self) -> ClusterMap:
        return self.with_policy(self.after)

    def with_policy(self, coding: Coding) -> ClusterMap:
        k, m = coding
        return set_policy(self.map, "clinic", "b", f"{k}+{m}", Policy(f"{k}+{m}", k, m, ("FR",)))

    async def move(self) -> None:
        """Let all nodes work until the move has ended, which it must; then end it."""
        move = Move(self.map)
        for _ in range(4):
            for repairer in self.repairers.values():
                await repairer.round()
            reports = {
                n: MoveReport(self.map.epoch, r.moved(self.map.epoch)) for n, r in self.repairers.items()
            }
            if move.is_finished(reports):
                break
        parked = {n: r.status().parked for n, r in self.repairers.items() if r.status().parked}
        assert move.is_finished(reports), parked
        self.adopt(finish_move(self.map))

    async def settle_down(self) -> None:
        for _ in range(3):
            for repairer in self.repairers.values():
                await repairer.round()
                await repairer.walk()

    def homes(self, key: str) -> tuple[int, ...]:
        partition = partition_of(ObjectName("clinic", "b", key), self.map.partitions)
        return Electorates(self.map).homes(*self.before, partition)

    async def shards(self, key: str) -> dict[int, int]:
        """Shard index by node, of what verifies to its end."""
        name = ObjectName("clinic", "b", key)
        found = {}
        for number, store in self.cluster.stores.items():
            for version in await store.read(name, want_cell=True):
                if version.state is State.ABORTED or version.shard_index is None or version.damaged:
                    continue
                with suppress(IntegrityError):
                    async for _ in store.read_cells(name, version.stamp, version.shard_index, 0, 0):
                        pass
                    found[number] = version.shard_index
        return found

    async def check(self, objects: Mapping[str, bytes] = OBJECTS) -> None:
        """Everything can be read, and each home has a shard of its own."""
        client = self.client()
        for key, value in objects.items():
            assert await client.get("b", key) == value
            found = await self.shards(key)
            assert set(self.homes(key)) <= found.keys(), key
            assert {found[node] for node in self.homes(key)} == set(range(sum(self.before)))
            assert [v.version for v in await client.versions("b", key)] == [
                (await client.head("b", key)).version
            ]
        assert await client.get("others", "key") == b"value"


@pytest.fixture(params=[GROWING, SHRINKING, THROUGH], ids=["growing", "shrinking", "through"])
async def course(request: pytest.FixtureRequest) -> AsyncIterator[Course]:
    made = Course(*request.param)
    await made.fill()
    yield made
    await made.cluster.aclose()


async def test_the_move_after_a_change_of_policy_ends(course: Course) -> None:
    course.adopt(course.recoded())
    await course.check()
    await course.move()
    await course.check()
    await course.settle_down()
    await course.check()


async def test_no_shard_moves_because_of_another_policy(course: Course) -> None:
    before = {key: await course.shards(key) for key in OBJECTS}
    course.adopt(course.recoded())
    await course.move()
    await course.settle_down()
    assert {key: await course.shards(key) for key in OBJECTS} == before


async def test_what_is_coded_otherwise_is_looked_at_once(course: Course) -> None:
    """Rows do not say how an object is coded: a node that has no shard by right does not ask again in every round."""
    course.adopt(course.recoded())
    await course.move()
    await course.settle_down()
    asked: list[int] = []

    async def count(node: int, request: object) -> None:
        asked.extend(1 for _ in getattr(request, "operations", ()))

    course.cluster.network.before = count
    for repairer in course.repairers.values():
        await repairer.round()
    assert not asked


async def test_shards_coded_otherwise_are_rebuilt(course: Course) -> None:
    course.adopt(course.recoded())
    await course.move()
    await course.settle_down()
    for place, key in enumerate(OBJECTS):
        number = course.homes(key)[place % sum(course.before)]
        store, name = course.cluster.stores[number], ObjectName("clinic", "b", key)
        (version,) = await store.read(name, every=True)
        store.flip_cell(name, version.stamp)
        partition = partition_of(name, course.map.partitions)
        await store.apply([QueueRepair(name, partition, version.stamp, version.shard_index)])
        with pytest.raises(AssertionError):
            await course.check({key: OBJECTS[key]})
    await course.settle_down()
    await course.check()


@pytest.mark.parametrize("finished", [True, False], ids=["homes alone", "primaries of before"])
async def test_a_move_does_not_wait_for_what_was_overwritten_and_lies_with_nodes_that_are_no_primaries(
    finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells a node that only has shards of the older coding what became of it; one that knows is no help."""
    course, name = Course((4, 2), (2, 1)), ObjectName("clinic", "b", "left")
    partition = partition_of(name, course.map.partitions)
    with monkeypatch.context() as dying:
        dying.setattr(Issuer, "marks", lambda self: ())
        dying.setattr(Writer, "settle", lambda *args, **options: None)
        await course.client().put("b", "left", b"old")
    course.adopt(finish_move(course.recoded()) if finished else course.recoded())
    first = Electorates(course.map).of("clinic", "b", partition).primaries[0]
    after = drain_node(course.map, f"n{first}")
    deciding = {first, *Electorates(after).of("clinic", "b", partition).primaries}
    outside = [node for node in course.homes("left") if node not in deciding]
    assert len(outside) == 2
    client = course.client()
    course.cluster.network.down = set(outside)
    await client.put("b", "left", b"new")
    await client.flush()
    course.cluster.network.heal()
    for node in outside:
        (held,) = await course.cluster.stores[node].read(name)
        assert held.state is State.ACCEPTED
    await course.cluster.stores[outside[0]].apply([Settle(name, partition, held.stamp)])
    course.adopt(after)
    await course.move()
    await course.settle_down()
    assert await course.client().get("b", "left") == b"new"
    for node in outside:
        left = await course.cluster.stores[node].read(name, every=True)
        assert [v.shard_index for v in left if v.stamp == held.stamp] in ([], [None])
    await course.cluster.aclose()


async def test_a_drained_node_hands_over_what_is_coded_otherwise(course: Course) -> None:
    course.adopt(course.recoded())
    await course.move()
    course.adopt(drain_node(course.map, "n3"))
    for key, value in OBJECTS.items():
        assert await course.client().get("b", key) == value
    await course.move()
    await course.settle_down()
    assert not (await course.cluster.stores[3].status()).shards
    course.cluster.network.down.add(3)
    await course.check()
