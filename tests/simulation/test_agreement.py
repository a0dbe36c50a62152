"""Coordination of a simulated world: what its troubles do, and that their witnesses see what they are for."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from coffre.cluster.coordination import Compare, Put, RemoteCoordination
from coffre.cluster.coordination.sessions import SESSION_SECONDS
from coffre.cluster.errors import NotFound, OutcomeUnknown, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.cluster.names import ObjectName

from tests.simulation.agreement import Trouble, Witness, draw_agreement
from tests.simulation.conditional import ConditionalWorker, Must
from tests.simulation.linearizability import is_linearizable
from tests.simulation.network import Quality
from tests.simulation.plan import draw_plan
from tests.simulation.segments import tiny_segments
from tests.simulation.virtual_time import VirtualLoop, run_virtually
from tests.simulation.world import TENANT, World

_Result = TypeVar("_Result")
KEY = f"locks/{TENANT}/k/1"
NAME = ObjectName(TENANT, "records", "k")


def in_calm(work: Callable[[World], Awaitable[_Result]], *, embedded: bool = False) -> _Result:
    """Run something in a world where nothing happens by itself, with one coordinator: node 1."""
    plan = draw_plan(1)
    agreement = dataclasses.replace(
        plan.agreement, coordinators=(1,), embedded=embedded, troubles={}, drift=0.0, sync_seconds=0.001
    )
    plan = dataclasses.replace(
        plan,
        cluster_map=dataclasses.replace(plan.cluster_map, coordinators=(1,)),
        quality=Quality(0.001),
        faults={},
        drift=0.0,
        offset=0.0,
        agreement=agreement,
    )

    async def main(loop: VirtualLoop) -> _Result:
        return await work(World(plan, loop))

    with tiny_segments():
        return run_virtually(main)


def coordination_of(world: World) -> RemoteCoordination:
    identity = Identity(world.cluster_map.cluster_id, Role.TENANT, TENANT)
    return RemoteCoordination(world.transport(identity, "somebody"))


def test_a_refusal_is_told_at_once_and_silence_after_the_timeout() -> None:
    async def work(world: World) -> tuple[float, float]:
        coordination, store = coordination_of(world), world.agreement.store
        store.refuse(1)
        begun = world.loop.time()
        with pytest.raises(Unavailable):
            await coordination.get(KEY)
        refused = world.loop.time() - begun
        store.refuse(-1)
        store.silence(1)
        begun = world.loop.time()
        with pytest.raises(OutcomeUnknown):
            await coordination.commit([Compare(KEY, 0)], [Put(KEY, b"late", (await lease(world)))])
        store.silence(-1)
        await world.sleep(1)
        assert await coordination.get(KEY) is not None, "what waited in the silence is done after it"
        return refused, world.loop.time() - begun

    async def lease(world: World) -> int:
        world.agreement.store.silence(-1)
        number = (await coordination_of(world).grant(60)).number
        world.agreement.store.silence(1)
        return number

    refused, silent = in_calm(work)
    assert refused < 0.1
    assert silent > 2


def test_a_restart_keeps_keys_and_lets_leases_begin_anew() -> None:
    async def work(world: World) -> None:
        coordination, store = coordination_of(world), world.agreement.store
        lease = await coordination.grant(10)
        await coordination.commit([], [Put(KEY, b"v", lease.number)])
        await world.sleep(8)
        store.restart()
        await world.sleep(8)
        assert await coordination.get(KEY) is not None
        await world.sleep(3)
        assert await coordination.get(KEY) is None

    in_calm(work)


def test_a_lost_store_forgets_all_and_its_revisions_still_rise() -> None:
    async def work(world: World) -> None:
        coordination, store = coordination_of(world), world.agreement.store
        lease = await coordination.grant(10)
        before = await coordination.commit([], [Put(KEY, b"v", lease.number)])
        store.restart(forget=True)
        assert await coordination.get(KEY) is None
        with pytest.raises(NotFound):
            await coordination.keep_alive(lease.number)
        lease = await coordination.grant(10)
        after = await coordination.commit([], [Put(KEY, b"v", lease.number)])
        assert after.revision > before.revision

    in_calm(work)


def test_a_commit_under_way_in_a_restart_has_an_unknown_outcome() -> None:
    async def work(world: World) -> None:
        coordination, store = coordination_of(world), world.agreement.store
        lease = await coordination.grant(10)
        task = asyncio.ensure_future(coordination.commit([], [Put(KEY, b"v", lease.number)]))
        await world.sleep(0.0010001)  # it has arrived, and nothing is written that quickly
        store.restart()
        with pytest.raises(OutcomeUnknown):
            await task
        assert await coordination.get(KEY) is None

    in_calm(work)


@pytest.mark.parametrize(("jump", "slowness", "alive"), [(0, 1, True), (9, 1, False), (0, 10, True)])
def test_leases_end_by_the_clock_of_the_store(jump: float, slowness: float, alive: bool) -> None:
    async def work(world: World) -> bool:
        coordination = coordination_of(world)
        lease = await coordination.grant(10)
        await coordination.commit([], [Put(KEY, b"v", lease.number)])
        world.lease_clock.jump(jump)
        world.lease_clock.set_slowness(slowness)
        await world.sleep(5 * slowness)
        return await coordination.get(KEY) is not None

    assert in_calm(work) is alive


@pytest.mark.parametrize("embedded", [False, True])
def test_a_coordinator_dies_with_its_node_and_watches_with_it(embedded: bool) -> None:
    async def work(world: World) -> None:
        coordination, host = coordination_of(world), world.hosts[1]
        page = await coordination.range(KEY)
        watching = coordination.watch(KEY, page.revision)
        waiting = asyncio.ensure_future(anext(watching))
        await world.sleep(0.1)
        host.crash()
        with pytest.raises(Unavailable):
            await waiting
        await watching.aclose()
        begun = world.loop.time()
        with pytest.raises(Unavailable):
            await coordination.get(KEY)
        assert world.loop.time() - begun > 1, "one that starts again is waited for"
        host.restart()
        incarnation = world.agreement.store.incarnation
        assert await coordination.get(KEY) is None
        assert (world.agreement.store.incarnation > incarnation) is embedded

    in_calm(work, embedded=embedded)


def test_a_watch_hears_of_commits_in_order() -> None:
    async def work(world: World) -> None:
        coordination = coordination_of(world)
        lease = await coordination.grant(60)
        page = await coordination.range(KEY)
        watching = coordination.watch(KEY, page.revision)
        for number in range(5):
            await coordination.commit([], [Put(KEY, b"%d" % number, lease.number)])
        seen = [(await anext(watching)).changes[0].value for _ in range(5)]
        await watching.aclose()
        assert seen == [b"0", b"1", b"2", b"3", b"4"]

    in_calm(work)


def test_conditional_writes_of_a_world_are_swaps_of_its_history() -> None:
    async def work(world: World) -> None:
        worker = ConditionalWorker(world, world.member(), "worker")
        assert await worker.create("k", Must.HAPPEN)
        assert not await worker.create("k", Must.BE_REFUSED)
        first = await worker.newest("k")
        assert first is not None
        assert await worker.replace("k", first, Must.HAPPEN)
        assert not await worker.remove("k", first, Must.BE_REFUSED)
        second = await worker.newest("k")
        assert second is not None
        assert await worker.remove("k", second, Must.HAPPEN)
        assert not await worker.replace("k", worker._known["k"][-1], Must.BE_REFUSED), "of a tombstone"
        world.agreement.store.refuse(1)
        assert not await worker.create("k", Must.FAIL)
        assert not world.failures
        [(_, operations)] = world.history.by_key()
        assert is_linearizable(operations)
        assert sum(operation.refused for operation in operations) == 3

    in_calm(work)


def test_what_must_not_come_of_a_conditional_write_fails_the_run() -> None:
    async def work(world: World) -> list[str]:
        worker = ConditionalWorker(world, world.member(), "worker")
        await worker.create("k", Must.FAIL)
        await worker.create("k", Must.HAPPEN)
        world.agreement.store.refuse(1)
        client = world.member().client
        locks, client._parts.conditional._locks = client._parts.conditional._locks, None
        assert locks is not None
        worker.member.client = client
        await client.delete("records", "k")
        await worker.create("k", Must.BE_DECIDED)
        return [failure.what for failure in world.failures]

    failures = in_calm(work)
    assert [what.split(" was to ")[1].split(",")[0] for what in failures] == ["fail", "happen", "be decided"]


def test_success_during_an_outage_fails_the_run() -> None:
    async def work(world: World) -> list[str]:
        worker = ConditionalWorker(world, world.member(), "worker")
        put = worker.member.client.put("records", "k", b"")  # as if it had gone without a lock
        world.agreement.store.silence(1)
        operation = worker._begin("k", 7, None, "")
        await worker._swap(operation, put, Must.HAPPEN)
        return [failure.what for failure in world.failures]

    [failure] = in_calm(work)
    assert "while coordination was out" in failure


def test_the_witness_sees_two_holders_and_one_that_is_wrong() -> None:
    async def work(world: World) -> list[str]:
        failures: list[str] = []
        store = world.agreement.store
        locks = [world.member().client._parts.conditional._locks for _ in range(2)]
        witness = Witness(store, failures.append, strict=True)
        assert locks[0] is not None
        assert locks[1] is not None
        async with locks[0].hold(NAME, 1.0) as first:
            witness.taken(NAME, first.token, "one")
            witness.believed(NAME, first.token, "one")
            assert not failures
            world.lease_clock.jump(SESSION_SECONDS)
            async with locks[1].hold(NAME, 1.0) as second:
                witness.taken(NAME, second.token, "two")  # the first has ended: no fault
                assert not failures
                assert second.token > first.token
                first.check()  # it does not know yet
                witness.believed(NAME, first.token, "one")
                witness.taken(NAME, second.token, "three")
        return failures

    wrong, two = in_calm(work)
    assert wrong == "one is sure of the lock of k, which has ended"
    assert two == "three takes the lock of k while ['two'] have it"


def test_the_lock_lets_one_in_after_the_other() -> None:
    async def work(world: World) -> int:
        workers = [ConditionalWorker(world, world.member(), f"worker {number}") for number in range(4)]
        created = await asyncio.gather(*(worker.create("k", Must.BE_DECIDED) for worker in workers))
        assert not world.failures
        return sum(created)

    assert in_calm(work) == 1


def test_troubles_are_drawn_by_the_seed() -> None:
    plan = draw_plan(3)
    assert plan.agreement == draw_plan(3).agreement
    assert plan.cluster_map.coordinators == plan.agreement.coordinators
    drawn = [draw_agreement(seed, plan.cluster_map, 1.0) for seed in range(40)]
    assert set().union(*(one.troubles for one in drawn)) == set(Trouble)
    assert {one.embedded for one in drawn} == {True, False}
    assert any(one.keeps_leases for one in drawn)
