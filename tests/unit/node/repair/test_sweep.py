"""Tombstones that go, rows that are held for others, and versions that nobody finished."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncIterator, Callable

import pytest
from coffre.client.writing import Issuer, Writer
from coffre.cluster.errors import CoffreError, NotFound, Unavailable
from coffre.cluster.manifest import named_hash
from coffre.cluster.map import Policy
from coffre.cluster.membership import set_policy
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.names import ObjectName, partition_of
from coffre.codec import blake3_128
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.repair import Repairer, RepairOptions
from coffre.node.repair.sweep import DUPLICATES_WALKS
from coffre.node.store import Abort, Accept, Forget, Lock, QueueRepair, Refuse, Restore, State, StoredVersion
from coffre.proto import coffre_pb2 as pb

from tests.unit.node.repair.test_repairer import in_step, primaries

MIB = 1 << 20
AT_ONCE = RepairOptions(
    settling_seconds=-5.0, bytes_per_second=1 << 40, retention_seconds=-5.0, unfinished_seconds=-5.0
)
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


def repairers(cluster: InProcessCluster, options: RepairOptions = AT_ONCE) -> dict[int, Repairer]:
    return {number: cluster.repairer(number, options) for number in cluster.stores}


def name(key: str) -> ObjectName:
    return ObjectName("clinic", "b", key)


async def holders(cluster: InProcessCluster, key: str) -> set[int]:
    found = set()
    for number, store in cluster.stores.items():
        if await store.read(name(key), every=True):
            found.add(number)
    return found


async def condemned(cluster: InProcessCluster, key: str) -> set[int]:
    found = set()
    for number, store in cluster.stores.items():
        if any(version.condemned for version in await store.read(name(key))):
            found.add(number)
    return found


async def complete(cluster: InProcessCluster, node: int, version: StoredVersion) -> None:
    """Let a node promise a version of k that it lacks, without a shard, as a reader would that completes it."""
    partition = partition_of(name("k"), cluster.cluster_map.partitions)
    promise = Accept(
        name("k"),
        partition,
        version.stamp,
        False,
        bytes(16),
        version.manifest,
        version.mac,
        version.placement,
        None,
        lock=True,
    )
    await cluster.stores[node].apply([promise])


# ------------------------------------------------------------------ tombstones


async def deleted(cluster: InProcessCluster, *keys: str) -> None:
    client = cluster.client()
    for key in keys:
        await client.put("b", key, b"value")
        await client.delete("b", key)
    await client.flush()


async def test_tombstones_are_condemned_by_all_before_any_goes(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await deleted(cluster, "k", "l")
    each = repairers(cluster)
    for number in (1, 2, 3, 4, 5):
        await each[number].walk()
        assert await condemned(cluster, "k") == set(range(1, number + 1))
        await each[1].walk()
        assert len(await holders(cluster, "k")) == 6  # node 6 has not condemned it
    await each[6].walk()
    for number in (1, 2, 3):
        await each[number].walk()
        assert number not in await holders(cluster, "k")
    await each[1].round()  # nobody pulls it back
    assert await holders(cluster, "k") == {4, 5, 6}
    for number in (4, 5, 6):
        await each[number].walk()
    assert await holders(cluster, "k") == await holders(cluster, "l") == set()
    with pytest.raises(NotFound):
        await cluster.client().get("b", "k")
    assert sum(repairer.status().tombstones_collected for repairer in each.values()) == 12
    await cluster.client().put("b", "k", b"again")
    assert await cluster.client().get("b", "k") == b"again"


async def test_no_tombstone_goes_while_a_primary_is_down_or_lacks_it(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.flush()
    cluster.network.down.add(4)
    await client.delete("b", "k")
    await client.flush()
    each = repairers(cluster)
    others = [repairer for number, repairer in each.items() if number != 4]
    for _ in range(2):
        for repairer in others:
            await repairer.walk()
    assert await condemned(cluster, "k") == set()
    cluster.network.down.clear()
    for repairer in others:
        await repairer.walk()
    assert await condemned(cluster, "k") == set()  # node 4 still has the object
    await each[4].round()
    for _ in range(2):
        for repairer in each.values():
            await repairer.walk()
    assert await holders(cluster, "k") == set()


async def test_a_primary_that_stops_answering_in_between_is_not_passed_over(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    await deleted(cluster, "k")

    async def no_reads(node: int, request: object) -> None:
        if node == 4 and isinstance(request, pb.BatchRequest):
            raise Unavailable("gone")

    cluster.network.before = no_reads
    each = repairers(cluster)
    for _ in range(2):
        for repairer in each.values():
            await repairer.walk()
    assert await condemned(cluster, "k") == {4}


async def test_nothing_comes_back_with_a_node_that_was_away_for_longer_than_everything(
    make_cluster: MakeCluster,
) -> None:
    """Longer than tombstones are kept, and than versions may be unfinished: both are over at once here."""
    cluster = make_cluster(4, 2, nodes=7)
    client = cluster.client()
    keys = [f"k{i}" for i in range(12)]
    for key in keys:
        await client.put("b", key, b"value of " + key.encode())
    await client.flush()
    away = 3
    cluster.network.down.add(away)
    for key in keys[:6]:
        await client.delete("b", key)
    for key in keys[6:9]:
        await client.put("b", key, b"overwritten")
    await client.flush()
    each = repairers(cluster)
    for _ in range(4):
        for number in each.keys() - {away}:
            await each[number].round()
            await each[number].walk()
    cluster.network.heal()
    for _ in range(4):
        for number in (away, *sorted(each.keys() - {away})):
            await each[number].round()
            await each[number].walk()
            reader = cluster.client()
            for key in keys[:6]:
                with pytest.raises(NotFound):
                    await reader.get("b", key)
    for key in keys[:6]:
        assert not await holders(cluster, key), "in the end nothing is left of it, nowhere"
    for key in keys[6:9]:
        assert await cluster.client().get("b", key) == b"overwritten"
    assert {e.key async for e in cluster.client().list("b") if not isinstance(e, str)} == set(keys[6:])


async def test_a_tombstone_that_some_have_collected_goes_when_the_object_is_written_again(
    make_cluster: MakeCluster,
) -> None:
    """Where several versions are kept it would stay with the others for ever, and digests would differ."""
    cluster = make_cluster(versions_kept=2)
    await deleted(cluster, "k")
    each = repairers(cluster)
    for number in each:
        await each[number].walk()
    await each[1].walk()
    await each[2].walk()
    assert await holders(cluster, "k") == {3, 4, 5, 6}
    client = cluster.client()
    await client.put("b", "k", b"again")
    await client.flush()
    for number in each:
        await each[number].round()
    for store in cluster.stores.values():
        assert len(await store.read(name("k"), every=True)) == 1
    assert await in_step(cluster)


async def test_a_young_tombstone_stays(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await deleted(cluster, "k")
    for repairer in repairers(cluster, dataclasses.replace(AT_ONCE, retention_seconds=3600.0)).values():
        await repairer.walk()
    assert await condemned(cluster, "k") == set()


async def test_no_tombstone_goes_while_another_node_may_bring_the_object_back(
    make_cluster: MakeCluster,
) -> None:
    """A node that is no primary holds rows of the partition, or does not answer."""
    cluster = make_cluster(nodes=7)
    await deleted(cluster, "k")
    members = primaries(cluster, "k")
    (outsider,) = set(cluster.stores) - set(members)
    each = repairers(cluster)
    for number in members:
        await each[number].walk()
    assert await condemned(cluster, "k") == set(members)
    cluster.network.down.add(outsider)
    await each[members[0]].walk()
    assert await holders(cluster, "k") == set(members)
    cluster.network.down.clear()
    (version,) = await cluster.stores[members[0]].read(name("k"))
    stale = Accept(
        name("k"),
        cluster.stores[members[0]]._rows[name("k")].partition,
        (int.from_bytes(version.stamp, "big") - (1 << 90)).to_bytes(16, "big"),
        False,
        bytes(16),
        b"manifest",
        bytes(16),
        (1,) * 6,
        0,
        shard_hash=blake3_128(b""),
    )
    await cluster.stores[outsider].apply([stale])
    await each[members[0]].walk()
    assert members[0] in await holders(cluster, "k")
    await each[outsider].walk()  # it was overtaken everywhere
    assert await holders(cluster, "k") == set(members)
    await each[members[0]].walk()
    assert members[0] not in await holders(cluster, "k")


# ------------------------------------------------------------------ held for others


async def test_tombstones_go_while_other_nodes_hold_other_names_of_the_partition(
    make_cluster: MakeCluster,
) -> None:
    """Buckets with policies of their own have other primaries of the same partitions."""
    cluster = make_cluster(2, 1, nodes=6)
    wide = Policy("4+2", 4, 2, ("FR",))
    changed = finish_move(set_policy(cluster.cluster_map, "clinic", "images", "4+2", wide))
    cluster.adopt(changed)
    client = cluster.client(cluster_map=changed)
    await client.put("b", "k", b"value")
    await client.delete("b", "k")
    partition = partition_of(name("k"), cluster.cluster_map.partitions)
    key = next(
        f"{number}"
        for number in range(100_000)
        if partition_of(ObjectName("clinic", "images", f"{number}"), cluster.cluster_map.partitions)
        == partition
    )
    await client.put("images", key, b"value")
    await client.flush()
    assert len(await holders(cluster, "k")) == 3
    each = repairers(cluster)
    for _ in range(2):
        for number in each:
            await each[number].walk()
    assert await holders(cluster, "k") == set()
    assert await client.get("images", key) == b"value"


async def test_primaries_that_all_lack_their_shard_take_it_from_the_substitutes(
    make_cluster: MakeCluster,
) -> None:
    """They were down while the shards were written, and up when the manifest came: their digests are equal."""
    cluster = make_cluster(4, 2, nodes=12)
    client, value = cluster.client(), os.urandom(3 * MIB)

    async def slowly() -> AsyncIterator[bytes]:
        cluster.network.down = set(primaries(cluster, "k"))
        yield value[: 2 * MIB]
        yield value[2 * MIB :]
        cluster.network.heal()

    await client.put("b", "k", slowly())
    await client.flush()
    assert set((await indexes(cluster, "k")).values()) == {None}
    each = repairers(cluster)
    for repairer in each.values():
        await repairer.walk()
        await repairer.round()
    assert sorted((await indexes(cluster, "k")).items()) == sorted(
        zip(primaries(cluster, "k"), range(6), strict=True)
    )
    for repairer in each.values():
        await repairer.walk()
    assert await holders(cluster, "k") == set(primaries(cluster, "k"))
    assert await cluster.client().get("b", "k") == value


@pytest.mark.parametrize("size_bytes", [500, 2 * MIB + 3])
async def test_a_substitute_lets_go_once_the_primary_has_its_shard(
    make_cluster: MakeCluster, size_bytes: int
) -> None:
    cluster = make_cluster(nodes=7)
    members = primaries(cluster, "k")
    (outsider,) = set(cluster.stores) - set(members)
    away = members[2]
    cluster.network.down.add(away)
    value = os.urandom(size_bytes)
    client = cluster.client()
    await client.put("b", "k", value)
    await client.flush()
    assert outsider in await holders(cluster, "k")
    each = repairers(cluster)
    await each[outsider].walk()
    cluster.network.down.clear()
    await each[outsider].walk()
    assert outsider in await holders(cluster, "k")  # the primary lacks it
    await each[away].round()
    (version,) = await cluster.stores[away].read(name("k"))
    assert version.shard_index is not None
    stamp = version.stamp
    cluster.stores[away].flip_cell(name("k"), stamp)
    await each[outsider].walk()
    assert outsider in await holders(cluster, "k")  # what the primary has cannot be read back
    assert each[outsider].status().held_for_others == 1
    await each[away].round()
    await each[outsider].walk()
    assert await holders(cluster, "k") == set(members)
    assert each[outsider].status().held_for_others == 0
    assert (await cluster.stores[outsider].status()).live_bytes == 0
    cluster.network.down |= {outsider, members[0], members[1]}
    assert await cluster.client().get("b", "k") == value


async def test_a_substitute_lets_go_of_what_was_overtaken_though_votes_on_it_are_kept(
    make_cluster: MakeCluster,
) -> None:
    """A primary that had locked a version keeps that vote when a newer one replaces it."""
    cluster = make_cluster(nodes=7)
    members = primaries(cluster, "k")
    (outsider,) = set(cluster.stores) - set(members)
    cluster.network.down.add(members[2])
    client = cluster.client()
    await client.put("b", "k", b"old")
    await client.flush()
    assert outsider in await holders(cluster, "k")
    (old,) = await cluster.stores[outsider].read(name("k"))
    cluster.network.down = {outsider}
    await complete(cluster, members[2], old)
    await client.put("b", "k", b"new")
    await client.flush()
    assert old.stamp in {v.stamp for v in await cluster.stores[members[2]].read(name("k"), every=True)}
    cluster.network.down.clear()
    each = repairers(cluster)
    await each[outsider].walk()
    assert await holders(cluster, "k") == set(members)
    assert each[outsider].status().held_for_others == 0


async def test_what_lies_against_the_policy_is_told_until_it_has_moved(make_cluster: MakeCluster) -> None:
    """A substitute whose certificate says another country by now."""
    cluster = make_cluster(nodes=7)
    members = primaries(cluster, "k")
    (outsider,) = set(cluster.stores) - set(members)
    cluster.network.down.add(members[2])
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.flush()
    each = repairers(cluster)
    await each[outsider].walk()
    assert each[outsider].status().held_for_others == 1
    assert not each[outsider].status().violations, "a substitute is lawful"
    before = cluster.cluster_map
    nodes = [
        dataclasses.replace(node, jurisdiction="US") if node.number == outsider else node
        for node in before.nodes
    ]
    cluster.handlers[outsider].maps.adopt(dataclasses.replace(before, nodes=tuple(nodes)), b"")
    await each[outsider].walk()
    (violation,) = each[outsider].status().violations
    assert violation.objects == 1
    assert "in US" in violation.reason
    cluster.network.heal()
    await each[members[2]].round()
    await each[outsider].walk()
    assert not each[outsider].status().violations
    assert outsider not in await holders(cluster, "k")


async def test_a_substitute_lets_go_of_what_newer_versions_replaced_although_votes_stay(
    make_cluster: MakeCluster,
) -> None:
    """A vote to keep a version outlives it, and must not be taken for the version itself."""
    cluster = make_cluster(nodes=7)
    members = primaries(cluster, "k")
    (outsider,) = set(cluster.stores) - set(members)
    cluster.network.down.add(members[2])

    async def no_settles(node: int, request: object) -> None:
        if isinstance(request, pb.BatchRequest) and any(o.HasField("settle") for o in request.operations):
            raise Unavailable("lost")

    cluster.network.before = no_settles
    client = cluster.client()
    await client.put("b", "k", b"old")
    await client.flush()
    (old,) = await cluster.stores[outsider].read(name("k"))
    partition = partition_of(name("k"), cluster.cluster_map.partitions)
    await cluster.stores[members[0]].apply([Lock(name("k"), partition, old.stamp)])
    cluster.network.heal()
    await client.put("b", "k", b"new")
    await client.flush()
    assert len(await cluster.stores[members[0]].read(name("k"), every=True)) == 2  # the vote
    await repairers(cluster)[outsider].walk()
    assert await holders(cluster, "k") == set(members)


async def test_the_only_copy_of_a_settled_version_is_never_forgotten(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=7)
    members = primaries(cluster, "k")
    (outsider,) = set(cluster.stores) - set(members)
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.flush()
    held = await cluster.stores[members[0]].read(name("k"), want_cell=True)
    partition = cluster.stores[members[0]]._rows[name("k")].partition
    store = cluster.stores[outsider]
    version = held[0]
    assert version.cell is not None
    accept = Accept(
        name("k"), partition, version.stamp, False, bytes(16), version.manifest, version.mac,
        version.placement, version.shard_index, bytes(version.cell.data), version.cell.crc,
        blake3_128(version.cell.data),
    )  # fmt: skip
    await store.apply([Restore(accept)])
    for number in members:
        await cluster.stores[number].apply([Forget(name("k"), partition, (version.stamp,))])
    await repairers(cluster)[outsider].walk()
    assert await holders(cluster, "k") == {outsider}


async def test_a_version_that_other_understudies_may_complete_is_not_taken_for_dead(
    make_cluster: MakeCluster,
) -> None:
    """8+3: five primaries refused it, which leaves six, and two understudies hold a shard: k nodes could have it."""
    cluster = make_cluster(8, 3, nodes=13)
    members = primaries(cluster, "k")
    first, second = sorted(set(cluster.stores) - set(members))
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.flush()
    (version,) = await cluster.stores[members[0]].read(name("k"), want_cell=True)
    assert version.cell is not None
    partition = cluster.stores[members[0]]._rows[name("k")].partition
    accept = Accept(
        name("k"), partition, version.stamp, False, bytes(16), version.manifest, version.mac,
        version.placement, version.shard_index, bytes(version.cell.data), version.cell.crc,
        blake3_128(version.cell.data), lock=True,
    )  # fmt: skip
    for number in members:
        await cluster.stores[number].apply([Forget(name("k"), partition, (version.stamp,))])
    for number in members[:5]:  # one vote short of R
        await cluster.stores[number].apply([Abort(name("k"), partition, version.stamp)])
    for number in (first, second):
        await cluster.stores[number].apply([accept])
    young = dataclasses.replace(AT_ONCE, unfinished_seconds=3600.0)
    await repairers(cluster, young)[first].walk()
    assert first in await holders(cluster, "k")


# ------------------------------------------------------------------ unfinished


async def unfinished(cluster: InProcessCluster, nodes: int) -> None:
    """A writer that dies when `nodes` nodes have its version."""
    client = cluster.client()
    reached: set[int] = set()

    async def die(node: int, request: object) -> None:
        if isinstance(request, pb.BatchRequest) and request.operations:
            kind = request.operations[0].WhichOneof("operation")
            if kind != "accept" or (node not in reached and len(reached) >= nodes):
                cluster.network.down.add(node)
            else:
                reached.add(node)

    cluster.network.before = die
    with pytest.raises(CoffreError):
        await client.put("b", "k", b"value" * 100)
    cluster.network.heal()


async def all_states(cluster: InProcessCluster) -> list[State]:
    return [v.state for store in cluster.stores.values() for v in await store.read(name("k"), every=True)]


async def test_a_version_that_too_few_have_dies_everywhere(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await unfinished(cluster, 3)
    assert sorted(await all_states(cluster)) == [State.ACCEPTED] * 3
    each = repairers(cluster)
    for _ in range(2):
        for repairer in each.values():
            await repairer.round()
            await repairer.walk()
    assert set(await all_states(cluster)) == {State.ABORTED}
    assert await in_step(cluster)
    assert all([(await store.status()).live_bytes == 0 for store in cluster.stores.values()])


async def test_a_version_that_w_have_is_finished(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await unfinished(cluster, 4)
    each = repairers(cluster)
    for _ in range(3):
        for repairer in each.values():
            await repairer.round()
            await repairer.walk()
    assert await all_states(cluster) == [State.SETTLED] * 6
    assert await in_step(cluster)
    assert await cluster.client().get("b", "k") == b"value" * 100


async def test_nobody_decides_about_a_young_version(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await unfinished(cluster, 3)
    for repairer in repairers(cluster, dataclasses.replace(AT_ONCE, unfinished_seconds=3600.0)).values():
        await repairer.round()
        await repairer.walk()
    assert await all_states(cluster) == [State.ACCEPTED] * 3


async def test_a_dead_version_on_a_node_that_comes_back_goes(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    await unfinished(cluster, 1)
    (holder,) = await holders(cluster, "k")
    (version,) = await cluster.stores[holder].read(name("k"))
    partition = cluster.stores[holder]._rows[name("k")].partition
    for number in [n for n in cluster.stores if n != holder][:3]:
        await cluster.stores[number].apply([Abort(name("k"), partition, version.stamp)])
    await repairers(cluster)[holder].walk()
    assert (await cluster.stores[holder].read(name("k")))[0].state is State.ABORTED


# ------------------------------------------------------------------ reports


async def test_reports_about_other_nodes_are_passed_on(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    client = cluster.client()
    await client.put("b", "k", b"value")
    await client.flush()
    (version,) = await cluster.stores[1].read(name("k"))
    partition = cluster.stores[1]._rows[name("k")].partition
    other = next(node for node in version.placement if node != 1)
    index = version.placement.index(other)
    report = QueueRepair(name("k"), partition, version.stamp, index)
    await cluster.stores[1].apply([report])
    each = repairers(cluster)
    cluster.network.down.add(other)
    await each[1].round()
    assert [repair async for repair in cluster.stores[1].repair_queue()] == [report]
    cluster.network.down.clear()
    await each[1].round()
    assert [repair async for repair in cluster.stores[1].repair_queue()] == []
    assert [repair async for repair in cluster.stores[other].repair_queue()] == [report]
    await each[other].round()  # it reads its shard, finds it good, and forgets the report
    assert [repair async for repair in cluster.stores[other].repair_queue()] == []
    assert each[other].status().restored_objects == 0


async def indexes(cluster: InProcessCluster, key: str, age: int = 0) -> dict[int, int | None]:
    """By primary, in their order, the shard that it holds of the newest version, or of an older one."""
    return {
        n: (await cluster.stores[n].read(name(key), every=True))[age].shard_index
        for n in primaries(cluster, key)
    }


async def give_shard(cluster: InProcessCluster, key: str, node: int, index: int, age: int = 0) -> None:
    """Let a node hold a shard that another one holds, instead of its own, as if it had chosen so."""
    holder = next(n for n, held in (await indexes(cluster, key, age)).items() if held == index)
    there = (await cluster.stores[holder].read(name(key), every=True, want_cell=True))[age]
    manifest = pb.Manifest.FromString(there.manifest)
    accept = Accept(
        name(key),
        partition_of(name(key), cluster.cluster_map.partitions),
        there.stamp,
        False,
        manifest.data_id,
        there.manifest,
        there.mac,
        there.placement,
        index,
        shard_hash=named_hash(manifest, index),
    )
    if there.cell is not None:
        accept.cell, accept.cell_crc = bytes(there.cell.data), there.cell.crc
    else:
        staged = await cluster.stores[node].stage("clinic", manifest.data_id, index)
        async for cells in cluster.stores[holder].read_cells(name(key), there.stamp, index, 0, 0):
            await staged.write(cells)
        await staged.commit()
        accept.staged = True
    (outcome,) = await cluster.stores[node].apply([Restore(accept, replace=True)])
    assert outcome.error is None


@pytest.mark.parametrize("size_bytes", [500, 2 * MIB + 3])
async def test_a_shard_that_two_primaries_hold_gives_way_to_the_one_that_is_missing(
    make_cluster: MakeCluster, size_bytes: int
) -> None:
    cluster = make_cluster(4, 2, nodes=7)
    client = cluster.client()
    value = os.urandom(size_bytes)
    await client.put("b", "k", value)
    await client.put("b", "other", b"untouched")
    await client.flush()
    before = await indexes(cluster, "k")
    first, *_, later = primaries(cluster, "k")
    await give_shard(cluster, "k", later, 2)
    each = repairers(cluster)
    for number in each:
        await each[number].round()
    assert (await indexes(cluster, "k"))[later] == 2, "equal digests do not show it"
    down = next(node for node in primaries(cluster, "k") if node not in (first, later))
    cluster.network.down.add(down)
    for _ in range(DUPLICATES_WALKS):
        await each[first].walk()
    await each[later].round()
    assert (await indexes(cluster, "k"))[later] == 2, "who is silent may hold what seems to be missing"
    cluster.network.heal()
    for _ in range(DUPLICATES_WALKS):
        await each[first].walk()
    await each[later].round()
    assert await indexes(cluster, "k") == before
    assert [repair async for repair in cluster.stores[later].repair_queue()] == []
    for gone in [node for node in primaries(cluster, "k") if node not in (first, later)][:2]:
        cluster.network.down.add(gone)
    assert await cluster.client().get("b", "k") == value


async def test_a_vote_that_outlived_its_version_does_not_stand_in_the_way_of_it(
    make_cluster: MakeCluster,
) -> None:
    """There seemed to be something to settle, round after round, and that was all that was done."""
    cluster = make_cluster(4, 2)
    first, *_, later = primaries(cluster, "k")
    cluster.network.down.add(later)
    client = cluster.client()
    await client.put("b", "k", b"old")
    await client.flush()
    (old,) = await cluster.stores[first].read(name("k"))
    await complete(cluster, later, old)
    cluster.network.heal()
    await client.put("b", "k", b"new")
    await client.flush()
    assert [v.was_locked for v in await cluster.stores[later].read(name("k"), every=True)] == [False, True]
    before = await indexes(cluster, "k")
    await give_shard(cluster, "k", later, 2)
    each = repairers(cluster)
    for _ in range(DUPLICATES_WALKS):
        await each[first].walk()
    await each[later].round()
    assert await indexes(cluster, "k") == before


async def test_what_the_store_keeps_longer_than_the_bucket_says_does_not_stand_in_the_way_of_it(
    make_cluster: MakeCluster,
) -> None:
    """A node keeps as many versions as any policy says, so a Settle may leave one that this bucket does not want."""
    cluster = make_cluster(4, 2)
    for store in cluster.stores.values():
        store._options.versions_kept = 2
    client = cluster.client()
    await client.put("b", "k", b"old")
    await client.put("b", "k", b"new")
    await client.flush()
    before = await indexes(cluster, "k")
    first, *_, later = primaries(cluster, "k")
    await give_shard(cluster, "k", later, 2)
    assert len(await cluster.stores[later].read(name("k"), every=True)) == 2
    each = repairers(cluster)
    for _ in range(DUPLICATES_WALKS):
        await each[first].walk()
    await each[later].round()
    assert await indexes(cluster, "k") == before


async def two_versions(
    make_cluster: MakeCluster, size_bytes: int
) -> tuple[InProcessCluster, dict[int, int | None]]:
    """A cluster that keeps both versions of k, and who holds which shard of the older one."""
    cluster = make_cluster(4, 2, nodes=7, versions_kept=2)
    client = cluster.client()
    await client.put("b", "k", os.urandom(size_bytes))
    await client.put("b", "k", b"newer")
    await client.flush()
    return cluster, await indexes(cluster, "k", age=1)


@pytest.mark.parametrize("size_bytes", [500, 2 * MIB + 3])
async def test_an_older_version_that_is_kept_is_rebuilt_though_few_of_those_asked_first_have_it(
    make_cluster: MakeCluster, size_bytes: int
) -> None:
    """Whoever has the newest one is asked first, and one of them may lack the older one as well: then all are asked."""

    async def settle_nothing(node: int, message: object) -> None:
        operations = message.operations if isinstance(message, pb.BatchRequest) else ()
        if any(operation.WhichOneof("operation") == "settle" for operation in operations):
            raise Unavailable("lost")

    cluster = make_cluster(4, 2, nodes=8, versions_kept=2)
    calm = cluster.network.before
    client, keys = cluster.client(), [f"k{number}" for number in range(5)]
    for key in keys:
        partition = partition_of(name(key), cluster.cluster_map.partitions)
        vote = Refuse(
            name(key), partition, bytes(15) + b"\1"
        )  # which a Settle takes away: there is something else to do
        for node in primaries(cluster, key)[:2]:
            await cluster.stores[node].apply([vote])
        cluster.network.down = set(primaries(cluster, key)[:2])
        await client.put("b", key, os.urandom(size_bytes))
        await client.flush()
        cluster.network.heal()
        cluster.network.before = settle_nothing
        await client.put("b", key, b"newer")
        await client.flush()
        for node in primaries(cluster, key)[:2]:
            states = [version.state for version in await cluster.stores[node].read(name(key), every=True)]
            assert len(states) == 2, "the newest version and the vote"
            assert State.ABORTED in states
    cluster.network.before = calm
    for repairer in repairers(cluster).values():
        await repairer.round()
    for key in keys:
        for node in primaries(cluster, key):
            states = [version.state for version in await cluster.stores[node].read(name(key), every=True)]
            assert states == [State.SETTLED, State.SETTLED], (key, node)
        assert set((await indexes(cluster, key, age=1)).values()) == set(range(6))


@pytest.mark.parametrize("size_bytes", [500, 2 * MIB + 3])
async def test_of_an_older_version_that_is_kept_every_shard_is_there_once(
    make_cluster: MakeCluster, size_bytes: int
) -> None:
    cluster, before = await two_versions(make_cluster, size_bytes)
    first, *_, later = primaries(cluster, "k")
    await give_shard(cluster, "k", later, 2, age=1)
    assert await indexes(cluster, "k", age=1) != before
    each = repairers(cluster)
    for _ in range(DUPLICATES_WALKS):
        await each[first].walk()
    await each[later].round()
    assert await indexes(cluster, "k", age=1) == before
    assert list((await indexes(cluster, "k")).values()) == list(range(6)), "nor of the newest"


async def test_an_older_version_that_needs_the_shards_of_substitutes_is_brought_to_all(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W primaries have locked it, with one shard less than it takes: substitutes promise, too, and can let go then."""
    cluster = make_cluster(6, 3, nodes=11, versions_kept=2)
    places = primaries(cluster, "k")
    with monkeypatch.context() as dying:
        dying.setattr(Issuer, "marks", lambda self: ())
        dying.setattr(Writer, "settle", lambda *args, **options: None)
        cluster.network.down = set(places[5:])
        await cluster.client().put("b", "k", b"older")
        cluster.network.heal()
    assert len(await holders(cluster, "k") - set(places)) == 2
    client = cluster.client()
    await client.put("b", "k", b"newer")
    await client.flush()
    each = repairers(cluster)
    for _ in range(3):
        for repairer in each.values():
            await repairer.round()
            await repairer.walk()
    for node in places:
        states = [version.state for version in await cluster.stores[node].read(name("k"), every=True)]
        assert states == [State.SETTLED, State.SETTLED], node
    assert await holders(cluster, "k") == set(places)
    assert set((await indexes(cluster, "k", age=1)).values()) == set(range(9))


@pytest.mark.parametrize("age", [0, 1])
async def test_who_holds_the_missing_shard_tells_the_one_that_should_have_it(
    make_cluster: MakeCluster, age: int
) -> None:
    """It could never let go: of what it holds no primary has a shard that can be read back."""
    cluster, _ = await two_versions(make_cluster, 500)
    before = await indexes(cluster, "k", age)
    *_, later = primaries(cluster, "k")
    (outsider,) = set(cluster.stores) - set(before)
    missing = before[later]
    assert missing is not None
    await give_shard(cluster, "k", outsider, missing, age)
    await give_shard(cluster, "k", later, 2, age)
    each = repairers(cluster)
    down = primaries(cluster, "k")[1]
    cluster.network.down.add(down)
    await each[outsider].walk()
    assert [repair async for repair in cluster.stores[later].repair_queue()] == []
    cluster.network.heal()
    await each[outsider].walk()
    assert outsider in await holders(cluster, "k"), "it is the last copy of that shard"
    await each[later].round()
    assert await indexes(cluster, "k", age) == before
    await each[outsider].walk()
    assert outsider not in await holders(cluster, "k")


async def test_reports_of_what_is_gone_are_forgotten(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    report = QueueRepair(name("never"), 3, bytes(16), 1)
    await cluster.stores[1].apply([report])
    await repairers(cluster)[1].round()
    assert [repair async for repair in cluster.stores[1].repair_queue()] == []
