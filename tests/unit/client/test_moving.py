"""Clients while the map changes: what was written at one epoch is there at the next, whoever is down or gone."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from coffre.client import AsyncClient
from coffre.client.writing import Fate, Issuer, Writer
from coffre.cluster.errors import NotFound, OutcomeUnknown, StaleMap, Unavailable
from coffre.cluster.map import ClusterMap, Electorates, Policy
from coffre.cluster.membership import VerifiedMap, add_node, drain_node, remove_node, set_policy
from coffre.cluster.membership.next_map import finish_move
from coffre.cluster.names import ObjectName, partition_of
from coffre.dev.in_process import InProcessCluster, in_process_cluster
from coffre.node.store import Abort, Settle

KEYS = [f"record-{number}" for number in range(24)]


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    """Eight nodes of which a partition has four."""
    made = in_process_cluster(3, 1, nodes=8)
    yield made
    await made.aclose()


def move(cluster: InProcessCluster, cluster_map: ClusterMap) -> AsyncClient:
    """Let all nodes work on a map, as if it had been published; return a client of it."""
    cluster.adopt(cluster_map)
    return cluster.client(cluster_map=cluster_map)


def drained(cluster: InProcessCluster) -> ClusterMap:
    return drain_node(cluster.cluster_map, "n8")


def drained_twice(cluster: InProcessCluster) -> ClusterMap:
    """Some partitions get two primaries that have nothing: as many as answer a read of one set."""
    return drain_node(drained(cluster), "n7")


def lost(cluster: InProcessCluster) -> ClusterMap:
    return remove_node(cluster.cluster_map, "n8", shards_held=None, lost=True)


def coded_anew(cluster: InProcessCluster) -> ClusterMap:
    return set_policy(cluster.cluster_map, "clinic", "notes", "4+2", Policy("4+2", 4, 2, ("FR",)))


@pytest.mark.parametrize("change", [drained, drained_twice, lost, coded_anew])
async def test_what_was_written_before_a_move_is_read_during_it(
    cluster: InProcessCluster, change: Callable[[InProcessCluster], ClusterMap]
) -> None:
    before = cluster.client()
    for key in KEYS:
        await before.put("notes", key, key.encode())
    await before.flush()
    during = move(cluster, change(cluster))
    if change is lost:
        cluster.network.down.add(8)
    for key in KEYS:
        assert await during.get("notes", key) == key.encode()
    assert [entry.key async for entry in during.list("notes") if not isinstance(entry, str)] == sorted(KEYS)
    for key in KEYS[:12]:
        await during.put("notes", key, b"new")
    for key in KEYS[12:]:
        await during.delete("notes", key)
    await during.flush()
    again = cluster.client(cluster_map=change(cluster))
    assert [await again.get("notes", key) for key in KEYS[:12]] == [b"new"] * 12
    for key in KEYS[12:]:
        with pytest.raises(NotFound):
            await again.get("notes", key)


@pytest.mark.parametrize("change", [drained, drained_twice, coded_anew])
async def test_what_was_acknowledged_but_not_settled_before_a_move_is_read_during_it(
    cluster: InProcessCluster,
    change: Callable[[InProcessCluster], ClusterMap],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its writer died before it could say so: new primaries that lack it prove nothing."""
    with monkeypatch.context() as dying:
        dying.setattr(Issuer, "marks", lambda self: ())
        dying.setattr(Writer, "settle", lambda *args, **options: None)
        before = cluster.client()
        for key in KEYS:
            await before.put("notes", key, key.encode())
        await before.flush()
    during = move(cluster, change(cluster))
    for key in KEYS:
        assert await during.get("notes", key) == key.encode()
    assert [entry.key async for entry in during.list("notes") if not isinstance(entry, str)] == sorted(KEYS)


@pytest.mark.parametrize("size_bytes", [1000, 3 << 20])
async def test_what_is_coded_otherwise_is_completed_in_a_placement_of_its_own_policy(
    cluster: InProcessCluster, size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A substitute holds one shard, and became a home for another: together they are no placement at all."""
    view, data = cluster.client()._views.current, os.urandom(size_bytes)
    key, primaries = next(
        (key, places)
        for key in KEYS
        if 8 in (places := view.electorate(ObjectName("clinic", "notes", key)).primaries)[1:]
    )
    cluster.network.down.add(primaries[0])
    with monkeypatch.context() as dying:
        dying.setattr(Issuer, "marks", lambda self: ())
        dying.setattr(Writer, "settle", lambda *args, **options: None)
        writer = cluster.client()
        await writer.put("notes", key, data)
        await writer.flush()
    cluster.network.down = {8}
    during = move(cluster, remove_node(coded_anew(cluster), "n8", shards_held=None, lost=True))
    assert await during.get("notes", key) == data


@contextmanager
def dying_writers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Writers die meanwhile after their Accepts: they tell nobody what stands, and give nothing up."""

    async def die(*args: object, **options: object) -> Fate:
        return Fate.UNKNOWN

    with monkeypatch.context() as dying:
        dying.setattr(Issuer, "marks", lambda self: ())
        dying.setattr(Writer, "settle", lambda *args, **options: None)
        dying.setattr(Writer, "give_up", die)
        yield


async def test_a_conditional_put_is_completed_past_one_that_it_was_not_decided_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two writers had the same lock, and died. One has W of the old set, but not of the new one, which is smaller."""
    cluster = in_process_cluster(4, 3, nodes=8)
    name = ObjectName("clinic", "notes", "record")
    changed = set_policy(cluster.cluster_map, "clinic", "notes", "4+2", Policy("4+2", 4, 2, ("FR",)))
    old = cluster.client()._views.current.electorate(name).primaries
    new = cluster.client(cluster_map=changed)._views.current.electorate(name).primaries
    (leaving,) = set(old) - set(new)

    establish = Writer.establish_once

    async def cut_off(*args: Any, **options: Any) -> Any:
        cluster.network.down = {*new[3:], leaving}
        return await establish(*args, **options)

    with dying_writers(monkeypatch):
        with monkeypatch.context() as cutting:
            cutting.setattr(Writer, "establish_once", cut_off)
            with pytest.raises(OutcomeUnknown):
                await cluster.client().put("notes", name.key, b"one", if_absent=True)
        cluster.network.down = set(new[:3])
        with pytest.raises(OutcomeUnknown):
            await cluster.client().put("notes", name.key, b"two", if_absent=True)
    cluster.network.down = set()
    assert await move(cluster, changed).get("notes", name.key) == b"two"
    await cluster.aclose()


async def test_what_was_acknowledged_is_not_given_up_for_a_conditional_put_that_may_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A put was acknowledged after a conditional one was decided; that one reached the others, and a node is silent."""
    cluster = in_process_cluster(4, 3, nodes=8)
    name = ObjectName("clinic", "notes", "record")
    changed = set_policy(cluster.cluster_map, "clinic", "notes", "4+2", Policy("4+2", 4, 2, ("FR",)))
    old = cluster.client()._views.current.electorate(name).primaries
    establish, other = Writer.establish_once, cluster.client()

    async def be_overtaken(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(Writer, "establish_once", establish)
        cluster.network.down = set(old[:3])
        await other.put("notes", name.key, b"acknowledged")
        cluster.network.down = set(cluster.stores) - set(old[:3])
        return await establish(*args, **options)

    with dying_writers(monkeypatch):
        monkeypatch.setattr(Writer, "establish_once", be_overtaken)
        with pytest.raises(OutcomeUnknown):
            await cluster.client().put("notes", name.key, b"too late", if_absent=True)
    reader = move(cluster, changed)
    cluster.network.down = {old[3]}
    with pytest.raises(Unavailable):
        await reader.get("notes", name.key)
    cluster.network.down = set()
    assert await reader.get("notes", name.key) == b"acknowledged"
    await cluster.aclose()


async def test_what_was_written_during_a_move_is_read_after_it(cluster: InProcessCluster) -> None:
    begun = drained(cluster)
    during = move(cluster, begun)
    await asyncio.gather(*(during.put("notes", key, key.encode()) for key in KEYS))
    await during.flush()
    after = move(cluster, finish_move(begun))
    cluster.network.down.add(8)
    for key in KEYS:
        assert await after.get("notes", key) == key.encode()


class Published:
    """Nodes that have a newer map, for who asks them."""

    def __init__(self, newest: ClusterMap) -> None:
        self._newest = newest

    async def newer(self, than: ClusterMap) -> VerifiedMap | None:
        return VerifiedMap(self._newest, b"") if than.epoch < self._newest.epoch else None


@pytest.mark.parametrize("size_bytes", [1000, 3 << 20])
async def test_a_policy_that_changes_while_a_put_waits_for_its_data(
    cluster: InProcessCluster, size_bytes: int
) -> None:
    """Coding and places are those of one map, whichever that is when the data comes."""
    changed = coded_anew(cluster)
    client = cluster.client()
    data = os.urandom(size_bytes)

    async def slowly() -> AsyncIterator[bytes]:
        move(cluster, changed)
        await client._views.adopt(changed)
        yield data

    await client.put("notes", "late", slowly())
    assert await client.get("notes", "late") == data
    found = await client._parts.lookup.found(ObjectName("clinic", "notes", "late"), None)
    assert (found.opened.manifest.k, found.opened.manifest.m) == (4, 2)


async def test_a_put_that_was_staged_where_the_map_forbids_it_by_now_may_be_put_again(
    cluster: InProcessCluster,
) -> None:
    """A node was removed while the data came; nothing is wrong with the put, so it may be tried again."""
    client, data = cluster.client(), os.urandom(3 << 20)
    view = client._views.current
    key = next(key for key in KEYS if 8 in view.electorate(ObjectName("clinic", "notes", key)).primaries)
    changed = finish_move(lost(cluster))

    async def slowly() -> AsyncIterator[bytes]:
        yield data[: 2 << 20]
        move(cluster, changed)
        client._views._maps = Published(changed)  # type: ignore[assignment]  # nobody watches here
        yield data[2 << 20 :]

    with pytest.raises(StaleMap, match="put the object again"):
        await client.put("notes", key, slowly())
    await client.put("notes", key, data)
    assert await client.get("notes", key) == data


async def test_a_large_put_that_fails_where_the_map_has_changed_says_so(cluster: InProcessCluster) -> None:
    """Nodes take shards at any epoch, so none says that the client is behind."""
    client, data = cluster.client(), os.urandom(3 << 20)
    changed = finish_move(lost(cluster))

    async def slowly() -> AsyncIterator[bytes]:
        yield data[: 2 << 20]
        move(cluster, changed)
        client._views._maps = Published(changed)  # type: ignore[assignment]  # nobody watches here
        cluster.network.down |= {1, 2, 3, 4, 8}
        yield data[2 << 20 :]

    with pytest.raises(StaleMap, match=r"could be stored.*put the object again"):
        await client.put("notes", "k", slowly())
    with pytest.raises(Unavailable):
        await client.put("notes", "k", data)
    cluster.network.down = {8}
    await client.put("notes", "k", data)
    assert await client.get("notes", "k") == data


async def test_a_stream_of_a_node_that_was_removed_may_fail_late(cluster: InProcessCluster) -> None:
    """What is noted of a node is noted where the newest map has it, or not at all."""
    client = cluster.client()
    assert not client._parts.ranges._downloader.is_suspect(8)
    client._parts.ranges._downloader.note_failure(8)
    assert client._parts.ranges._downloader.is_suspect(8)
    await client._views.adopt(finish_move(lost(cluster)))
    client._parts.ranges._downloader.note_failure(8)


async def test_a_map_that_is_found_while_a_newer_one_comes_by_itself_fails_nothing(
    cluster: InProcessCluster,
) -> None:
    """A node says that the client is behind, another one has the map, and meanwhile the next one is published."""
    client, begun = cluster.client(), drained(cluster)
    after = finish_move(begun)

    class Overtaken(Published):
        async def newer(self, than: ClusterMap) -> VerifiedMap | None:
            move(cluster, after)
            await client._views.adopt(after)
            return VerifiedMap(begun, b"")

    client._views._maps = Overtaken(begun)  # type: ignore[assignment]  # nobody watches here
    move(cluster, begun)
    for key in KEYS:
        await client.put("notes", key, key.encode())
        assert await client.get("notes", key) == key.encode()
    assert client._views.current.map is after


async def test_a_node_that_fails_and_is_removed_while_the_data_comes_is_a_failure_like_any_other(
    cluster: InProcessCluster,
) -> None:
    client, data = cluster.client(), os.urandom(3 << 20)
    view = client._views.current
    key = next(key for key in KEYS if 8 in view.electorate(ObjectName("clinic", "notes", key)).primaries)
    changed = finish_move(lost(cluster))

    async def slowly() -> AsyncIterator[bytes]:
        yield data[: 2 << 20]
        move(cluster, changed)
        await client._views.adopt(changed)
        cluster.network.down.add(8)
        yield data[2 << 20 :]

    await client.put("notes", key, slowly())
    assert await client.get("notes", key) == data


def key_of_leaving(cluster: InProcessCluster) -> tuple[str, tuple[int, ...]]:
    """A key, and its primaries, of which two are drained by `drained_twice`."""
    electorates = Electorates(cluster.cluster_map)
    for key in KEYS:
        partition = partition_of(ObjectName("clinic", "notes", key), cluster.cluster_map.partitions)
        primaries = electorates.of("clinic", "notes", partition).primaries
        if {7, 8} <= set(primaries):
            return key, primaries
    raise AssertionError("no partition has both")


async def overtake(cluster: InProcessCluster, key: str, client: AsyncClient) -> None:
    """A whole move: it begins, somebody overwrites the object, and it ends; the client knows."""
    begun = drained_twice(cluster)
    during = move(cluster, begun)
    await during.put("notes", key, b"second")
    await during.flush()
    after = finish_move(begun)
    move(cluster, after)
    await client._views.adopt(after)


async def test_a_put_that_a_whole_move_overtakes_does_not_say_that_it_was_not_written(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader has returned it, and somebody overwritten it; those who decide today never voted on it."""
    client, reader = cluster.client(), cluster.client()
    key, primaries = key_of_leaving(cluster)
    give_up = client._parts.writer.give_up

    async def late(*arguments: Any, **options: Any) -> Fate:
        cluster.network.down = {primaries[0]}
        assert await reader.get("notes", key) == b"first"
        cluster.network.down.clear()
        await overtake(cluster, key, client)
        return await give_up(*arguments, **options)

    monkeypatch.setattr(client._parts.writer, "give_up", late)
    cluster.network.down = {*cluster.stores} - {*primaries[1:]}  # a shard is missing
    with pytest.raises(OutcomeUnknown):
        await client.put("notes", key, b"first")
    assert await client.get("notes", key) == b"second"


async def test_a_put_that_a_reader_completed_while_the_policy_changed_does_not_wait_for_ever(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands, but its writer cannot bring its shards: the newest map has no places for shards coded so."""
    client, reader = cluster.client(), cluster.client()
    key, primaries = key_of_leaving(cluster)
    name, store = ObjectName("clinic", "notes", key), cluster.stores[primaries[1]]
    give_up, fates = client._parts.writer.give_up, list[Fate]()

    async def late(*arguments: Any, **options: Any) -> Fate:
        cluster.network.down = {primaries[0]}
        assert await reader.get("notes", key) == b"first"
        (held,) = await store.read(name)
        await store.apply([Settle(name, partition_of(name, cluster.cluster_map.partitions), held.stamp)])
        changed = coded_anew(cluster)
        move(cluster, changed)
        await client._views.adopt(changed)
        fates.append(await give_up(*arguments, **options))
        return fates[-1]

    with monkeypatch.context() as slow:
        slow.setattr(client._parts.writer, "give_up", late)
        cluster.network.down = {*cluster.stores} - {*primaries[1:]}
        async with asyncio.timeout(20):
            with pytest.raises(OutcomeUnknown, match="stands, but may lack"):
                await client.put("notes", key, b"first")
    assert fates == [Fate.ESTABLISHED]
    assert await client.get("notes", key) == b"first"


async def test_a_read_that_a_whole_move_overtakes_looks_again(
    cluster: InProcessCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It met a version that one node had given up, completes it, and those that it asks are at another map by then."""
    reader = cluster.client()
    key, primaries = key_of_leaving(cluster)
    name = ObjectName("clinic", "notes", key)

    with monkeypatch.context() as dying:
        dying.setattr(Issuer, "marks", lambda self: ())
        dying.setattr(Writer, "settle", lambda *args, **options: None)
        writer = cluster.client()
        await writer.put("notes", key, b"first")
        await writer.flush()
    store, partition = cluster.stores[primaries[1]], partition_of(name, cluster.cluster_map.partitions)
    (held,) = await store.read(name)
    await store.apply([Abort(name, partition, held.stamp)])
    complete = reader._parts.reader._completer.complete
    begun: list[bool] = []

    async def late(*arguments: Any, **options: Any) -> None:
        if not begun:
            begun.append(True)
            await overtake(cluster, key, reader)
        await complete(*arguments, **options)

    monkeypatch.setattr(reader._parts.reader._completer, "complete", late)
    assert await reader.get("notes", key) == b"second"
    assert begun


@pytest.mark.parametrize("gone", [{8}, {6, 7, 8}])
async def test_a_client_with_an_old_map_writes_although_nodes_of_it_are_gone(
    cluster: InProcessCluster, gone: set[int]
) -> None:
    """Everything has moved since, and those nodes may have taken the first try: nobody can have seen that."""
    client, changed = cluster.client(), cluster.cluster_map
    for node in sorted(gone):
        changed = finish_move(drain_node(changed, f"n{node}"))
    view = client._views.current
    key = next(
        key
        for key in map(str, range(1000))
        if gone <= set(view.electorate(ObjectName("clinic", "notes", key)).primaries)
    )
    client._views._maps = Published(changed)  # type: ignore[assignment]  # nobody watches here
    move(cluster, changed)
    cluster.network.down |= gone
    await client.put("notes", key, b"x")
    assert await client.get("notes", key) == b"x"


async def test_a_put_is_on_a_majority_of_every_set(cluster: InProcessCluster) -> None:
    cluster_map = drained_twice(cluster)
    client = move(cluster, cluster_map)
    electorates = Electorates(cluster_map)
    moving = 0
    for key in KEYS:
        await client.put("notes", key, key.encode())
        name = ObjectName("clinic", "notes", key)
        holders = {number for number, store in cluster.stores.items() if await store.read(name)}
        electorate = electorates.of("clinic", "notes", partition_of(name, cluster_map.partitions))
        assert electorate.is_established_by(holders)
        moving += electorate.is_moving
    assert moving


async def test_a_put_that_misses_the_majority_of_an_older_set_fails(cluster: InProcessCluster) -> None:
    """Nobody would see it who still works at an epoch before."""
    cluster_map = drained_twice(cluster)
    client = move(cluster, cluster_map)
    electorates = Electorates(cluster_map)
    refused = taken = 0
    cluster.network.down.update({7, 8})
    for key in KEYS:
        partition = partition_of(ObjectName("clinic", "notes", key), cluster_map.partitions)
        electorate = electorates.of("clinic", "notes", partition)
        if electorate.is_established_by(set(range(1, 7))):
            await client.put("notes", key, b"x")
            taken += 1
        else:
            with pytest.raises(Unavailable):
                await client.put("notes", key, b"x")
            refused += 1
    assert refused
    assert taken


async def test_while_a_new_primary_is_down_its_shard_goes_to_the_one_before() -> None:
    """Five nodes of which a partition has four: whoever is no primary any more is the only other node there is."""
    cluster = in_process_cluster(3, 1, nodes=5)
    without = finish_move(drain_node(cluster.cluster_map, "n5"))
    joining = cluster.cluster_map.node(5)
    with_it = add_node(without, joining.attributes, joining.address, joining.capacity_bytes)
    client = move(cluster, with_it)
    cluster.network.down.add(5)
    large = bytes(range(256)) * 16_384  # several segments
    for key in KEYS:
        await client.put("notes", key, key.encode())
        await client.put("images", key, large)
    for key in KEYS:
        assert await client.get("notes", key) == key.encode()
        assert await client.get("images", key) == large
        for bucket in ("notes", "images"):
            places = await client.locate(bucket, key)
            assert [place.state for place in places] == ["ok"] * 4, places
    await cluster.aclose()
