"""A node makes itself whole, in a cluster in this process: real handlers, memory stores, a network that can be cut."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
from coffre.client.writing import Issuer, Writer
from coffre.cluster.clock import SystemClock
from coffre.cluster.errors import Unavailable
from coffre.cluster.map import Placement
from coffre.cluster.membership import remove_node
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.repair import Repairer, RepairOptions
from coffre.node.repair.healing import OBJECT_BYTES
from coffre.node.store import WINDOW_MS, Abort, Lock, State
from coffre.proto import coffre_pb2 as pb

MIB = 1 << 20
AT_ONCE = RepairOptions(settling_seconds=-5.0, bytes_per_second=1 << 40)
OLD = replace(AT_ONCE, unfinished_seconds=-5.0)
MakeCluster = Callable[..., InProcessCluster]


@pytest.fixture
async def make_cluster() -> AsyncIterator[MakeCluster]:
    made: list[InProcessCluster] = []

    def make(k: int = 4, m: int = 2, **options: int) -> InProcessCluster:
        made.append(in_process_cluster(k, m, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for cluster in made:
        await cluster.aclose()


def primaries(cluster: InProcessCluster, key: str) -> tuple[int, ...]:
    name = ObjectName("clinic", "b", key)
    placement = Placement(cluster.cluster_map, cluster.cluster_map.policy())
    return placement.primaries(partition_of(name, cluster.cluster_map.partitions))


async def in_step(cluster: InProcessCluster) -> bool:
    digests = [await store.digests() for store in cluster.stores.values()]
    return all(digest == digests[0] for digest in digests)


async def read_with(cluster: InProcessCluster, number: int, key: str) -> bytes:
    """Read an object from exactly k nodes, one of which is `number`."""
    nodes = primaries(cluster, key)
    k = cluster.cluster_map.policy().k
    others = [node for node in nodes if node != number][: len(nodes) - k]
    cluster.network.down |= set(others)
    try:
        return await cluster.client().get("b", key)
    finally:
        cluster.network.down -= set(others)


async def fill(cluster: InProcessCluster, turn: str) -> dict[str, bytes]:
    client = cluster.client()
    values = {f"{turn}-{i}": os.urandom(50 + 37 * i) for i in range(20)}
    values |= {f"{turn}-empty": b"", f"{turn}-large": os.urandom(3 * MIB + 5)}
    for key, value in values.items():
        await client.put("b", key, value)
    await client.flush()
    return values


async def test_a_node_that_was_away_pulls_what_it_missed(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, 2)
    values = await fill(cluster, "before")
    client = cluster.client()
    cluster.network.down.add(3)
    values |= await fill(cluster, "away")
    await client.put("b", "before-1", b"overwritten")
    values["before-1"] = b"overwritten"
    for gone in ("before-2", "before-large"):
        await client.delete("b", gone)
        del values[gone]
    await client.flush()
    cluster.network.down.clear()
    assert not await in_step(cluster)
    repairer = cluster.repairer(3, AT_ONCE)
    assert not await repairer.round()
    assert await in_step(cluster)
    status = repairer.status()
    assert status.restored_objects == 25
    assert not status.parked
    for key, value in values.items():
        assert await read_with(cluster, 3, key) == value, key
    await repairer.round()
    assert repairer.status().partitions_in_step == cluster.cluster_map.partitions


class Later(SystemClock):
    """A wall clock that can be ahead."""

    ahead_ms = 0

    def unixtime_ms(self) -> int:
        return super().unixtime_ms() + self.ahead_ms


async def test_what_is_being_written_costs_no_look_at_rows(make_cluster: MakeCluster) -> None:
    """Digests differ all the time while there are writes; a round compares what is older, and finds it in step."""
    cluster = make_cluster(4, 2)
    client, clock = cluster.client(), Later()
    await fill(cluster, "before")
    cluster.network.down.add(3)
    await client.put("b", "before-1", b"node 3 has not heard of this")
    await client.put("b", "young", b"nor of this")
    await client.flush()
    cluster.network.heal()
    assert not await in_step(cluster)
    repairer = cluster.repairer(3, RepairOptions(settling_seconds=60), clock=clock)
    asked: list[object] = []

    async def note(node: int, request: object) -> None:
        if isinstance(request, pb.PartitionRowsRequest):
            asked.append(request)

    cluster.network.before = note
    await repairer.round()
    assert not asked
    assert repairer.status().partitions_in_step == cluster.cluster_map.partitions
    assert not repairer.status().restored_objects
    assert not repairer.status().caught_up
    clock.ahead_ms = 60_000 + 2 * WINDOW_MS
    await repairer.round()
    assert repairer.status().restored_objects == 2
    assert repairer.status().caught_up
    assert await in_step(cluster)


async def test_a_node_that_holds_nothing_is_asked_for_no_rows(make_cluster: MakeCluster) -> None:
    """It has nothing to tell, and every other node would read its rows in vain for as long as it is rebuilt."""
    cluster = make_cluster(4, 2)
    cluster.network.down.add(3)
    await fill(cluster, "x")
    cluster.network.heal()
    asked: list[object] = []

    async def note(node: int, request: object) -> None:
        if isinstance(request, pb.PartitionRowsRequest):
            asked.append(request)

    cluster.network.before = note
    first = cluster.repairer(1, AT_ONCE)
    await first.round()
    assert not asked
    status = first.status()
    assert status.partitions - status.partitions_in_step == len(await cluster.stores[1].digests())
    assert {need.spare_shards for need in status.census} == {1}
    assert not await cluster.repairer(3, AT_ONCE).round()
    assert asked
    assert await in_step(cluster)


class Hasty(SystemClock):
    """Sleeps take no time; until when the last of them would have lasted is known."""

    until = 0.0

    async def sleep(self, seconds: float) -> None:
        self.until = max(self.until, self.monotonic() + seconds)


async def test_small_objects_are_repaired_at_a_rate_too(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, 2)
    cluster.network.down.add(3)
    client = cluster.client()
    for number in range(50):
        await client.put("b", f"{number}", b"small")
    await client.flush()
    cluster.network.heal()
    clock = Hasty()
    options = RepairOptions(settling_seconds=-5.0, bytes_per_second=10 * OBJECT_BYTES)
    repairer = cluster.repairer(3, options, clock=clock)
    begun = clock.monotonic()
    await repairer.round()
    assert await in_step(cluster)
    assert 4 < clock.until - begun <= 5


async def test_what_was_written_while_another_node_was_away_is_compared_anew(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(4, 2)
    clock = Later()
    repairer = cluster.repairer(3, RepairOptions(settling_seconds=60), clock=clock)
    cluster.network.down.add(4)
    await repairer.round()
    clock.ahead_ms = 60_000 + 2 * WINDOW_MS
    await repairer.round()
    assert repairer.status().caught_up
    cluster.network.heal()
    await repairer.round()
    assert not repairer.status().caught_up
    clock.ahead_ms *= 2
    await repairer.round()
    assert repairer.status().caught_up


async def test_a_manifest_without_its_shard_gains_it(make_cluster: MakeCluster) -> None:
    """The node was down for the upload of shards, and up for the manifests."""
    cluster = make_cluster(4, 2)
    client = cluster.client()
    cut = 2

    async def lose_shards(node: int, request: object) -> None:
        if node == cut and not isinstance(request, pb.BatchRequest):
            cluster.network.down.add(node)
        elif node == cut:
            cluster.network.down.discard(node)

    cluster.network.before = lose_shards
    value = os.urandom(2 * MIB + 1)
    await client.put("b", "k", value)
    await client.flush()
    cluster.network.heal()
    versions = await cluster.stores[cut].read(ObjectName("clinic", "b", "k"))
    assert [version.shard_index for version in versions] == [None]
    await cluster.repairer(cut, AT_ONCE).round()
    assert await in_step(cluster)
    assert await read_with(cluster, cut, "k") == value


@pytest.mark.parametrize("key", ["small", "large"])
async def test_rot_that_a_scrub_finds_is_replaced(make_cluster: MakeCluster, key: str) -> None:
    cluster = make_cluster(4, 2)
    client = cluster.client()
    value = os.urandom(3 * MIB if key == "large" else 300)
    version = (await client.put("b", key, value)).version
    await client.flush()
    name = ObjectName("clinic", "b", key)
    stamp = bytes.fromhex(str(version))
    cluster.stores[5].flip_cell(name, stamp, offset=3)
    repairer = cluster.repairer(5, AT_ONCE)
    repairer.scrub._options = RepairOptions(scrub_seconds=1e-9)
    await repairer.scrub.one_pass()
    assert (await cluster.stores[5].status()).repair_queue == 1
    await repairer.round()
    assert (await cluster.stores[5].status()).repair_queue == 0
    assert await read_with(cluster, 5, key) == value
    assert repairer.status().scrub_damaged == 1


async def test_a_manifest_that_rots_is_replaced(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, 2)
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.put("b", "gone", b"value")
    await client.delete("b", "gone")
    await client.flush()
    for key in ("k", "gone"):
        name = ObjectName("clinic", "b", key)
        (version,) = await cluster.stores[1].read(name)
        cluster.stores[1].rot_manifest(name, version.stamp)
        assert (await cluster.stores[1].read(name))[0].damaged
    await cluster.repairer(1, AT_ONCE).round()
    for key in ("k", "gone"):
        (version,) = await cluster.stores[1].read(ObjectName("clinic", "b", key))
        assert not version.damaged
        assert version.manifest
        assert version.state is State.SETTLED
    assert (await cluster.stores[1].status()).repair_queue == 0


async def test_what_cannot_be_rebuilt_is_parked_and_comes_when_it_can(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, 2)
    cluster.network.down.add(6)
    client = cluster.client()
    await client.put("b", "k", b"v" * 1000)
    await client.flush()
    cluster.network.down |= {1, 2}
    cluster.network.down.discard(6)
    repairer = cluster.repairer(6, AT_ONCE)
    await repairer.round()
    status = repairer.status()
    assert [(parked.reason, parked.objects) for parked in status.parked] == [
        ("fewer than k good shards answer", 1)
    ]
    assert list(status.nodes_down) == [1, 2]
    (held,) = await cluster.stores[6].read(ObjectName("clinic", "b", "k"))
    assert (held.state, held.shard_index) == (State.LOCKED, None)  # its manifest is safer by one
    cluster.network.down.clear()
    await repairer.round()
    assert await in_step(cluster)
    assert not repairer.status().parked


async def test_what_nobody_can_read_nor_give_up_says_what_to_do_about_it(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader completed it with the fewest shards that it can be read from, and one of those nodes is lost."""
    cluster = make_cluster(4, 2, nodes=7)
    with monkeypatch.context() as dying:
        dying.setattr(Issuer, "marks", lambda self: ())
        dying.setattr(Writer, "settle", lambda *args, **options: None)
        client = cluster.client()
        await client.put("b", "k", b"new")
        await client.flush()
    name = ObjectName("clinic", "b", "k")
    partition = partition_of(name, cluster.cluster_map.partitions)
    *lockers, first, second = primaries(cluster, "k")
    for number in (*lockers, first, second):
        (held,) = await cluster.stores[number].read(name)
        vote = Lock if number in lockers else Abort
        (outcome,) = await cluster.stores[number].apply([vote(name, partition, held.stamp)])
        assert outcome.state is (State.LOCKED if number in lockers else State.ABORTED)
    gone = lockers[0]
    cluster.network.down.add(gone)
    changed = remove_node(cluster.cluster_map, f"n{gone}", shards_held=None, lost=True)
    cluster.adopt(changed)
    with pytest.raises(Unavailable):
        await cluster.client(cluster_map=changed).get("b", "k")
    repairer = cluster.repairer(lockers[1], OLD)
    await repairer.round()
    assert [parked.reason for parked in repairer.status().parked] == [
        "too few shards are left of a version that may have been read: put or delete it again"
    ]
    await cluster.client(cluster_map=changed).put("b", "k", b"again")
    assert await cluster.client(cluster_map=changed).get("b", "k") == b"again"


async def test_a_paused_repair_rests(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(2, 1)
    repairer = cluster.repairer(1, AT_ONCE)
    repairer.control(pb.RepairControlRequest(action=pb.REPAIR_ACTION_PAUSE, bytes_per_second=5))
    assert (repairer.status().paused, repairer.status().bytes_per_second) == (True, 5)
    repairer.control(pb.RepairControlRequest(action=pb.REPAIR_ACTION_START))
    assert not repairer.status().paused


async def census(cluster: InProcessCluster, repairers: dict[int, Repairer]) -> tuple[dict[int, int], int]:
    """After a round of each: versions by shards beyond k, summed over all nodes, and the partitions they counted."""
    total: Counter[int] = Counter()
    partitions = 0
    for number, repairer in repairers.items():
        if number not in cluster.network.down:
            await repairer.round()
            status = repairer.status()
            total.update({need.spare_shards: need.objects for need in status.census})
            partitions += status.census_partitions
    return {spare: count for spare, count in total.items() if count}, partitions


async def test_every_version_is_counted_once_by_its_good_shards(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, 2, nodes=8)
    versions = len(await fill(cluster, "k"))
    repairers = {number: cluster.repairer(number, AT_ONCE) for number in cluster.stores}
    partitions = cluster.cluster_map.partitions
    assert await census(cluster, repairers) == ({2: versions}, partitions)
    cluster.network.down |= {1, 2}
    found, counted = await census(cluster, repairers)
    assert counted == partitions
    expected = Counter(
        2 - len(cluster.network.down.intersection(primaries(cluster, f"k-{what}")))
        for what in (*range(20), "empty", "large")
    )
    assert found == expected
    cluster.network.heal()
    assert await census(cluster, repairers) == ({2: versions}, partitions)


async def test_what_one_node_lacks_is_counted_by_rows(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, 2)
    await fill(cluster, "before")
    cluster.network.down.add(6)
    await fill(cluster, "away")
    cluster.network.heal()
    repairers = {number: cluster.repairer(number, AT_ONCE) for number in (1, 2, 3, 4, 5)}
    found, _ = await census(cluster, repairers)
    assert found[1] >= 1, "node 6 has not made itself whole"
    assert 0 not in found
    await cluster.repairer(6, AT_ONCE).round()
    repairers[6] = cluster.repairer(6, AT_ONCE)
    assert (await census(cluster, repairers))[0] == {2: 44}
