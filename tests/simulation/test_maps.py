"""Changes of the map: what seeds draw, who signs, and what becomes of nodes that leave."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

from coffre.cluster.map import verify_map
from coffre.cluster.membership import VerifiedMap, drain_node, set_capacity

from tests.simulation.administration import Administration
from tests.simulation.maps import (
    Change,
    MapBook,
    authority,
    draw_changes,
    same_signatures,
    with_recoding,
)
from tests.simulation.network import Quality
from tests.simulation.plan import draw_plan
from tests.simulation.repairers import message_age
from tests.simulation.restoration import make_known
from tests.simulation.segments import tiny_segments
from tests.simulation.test_world import in_calm
from tests.simulation.virtual_time import VirtualLoop, run_virtually
from tests.simulation.world import World

FIRST = draw_plan(1).cluster_map


def test_every_change_is_drawn_and_at_most_one_node_is_lost() -> None:
    plans = [plan for seed in range(400) if (plan := draw_changes(seed, 1.0)) is not None]
    assert 100 < len(plans) < 250
    drawn = Counter(kind for plan in plans for kind in plan.storm)
    assert set(drawn) == set(Change) - {Change.RECODE}
    recoding = [with_recoding(plan, seed) for seed, plan in enumerate(plans)]
    assert 20 < sum(Change.RECODE in plan.storm for plan in recoding) < len(plans) / 2
    assert any(plan.second_thoughts for plan in plans)
    assert all(plan.storm.count(Change.LOSE) <= 1 and plan.calm.count(Change.LOSE) <= 1 for plan in plans)


def test_only_runs_in_which_somebody_repairs_change_their_map() -> None:
    plans = [draw_plan(seed) for seed in range(200)]
    assert all(plan.repair is not None for plan in plans if plan.changes is not None)
    assert any(plan.changes is None for plan in plans if plan.repair is not None)


def test_a_map_has_one_signature_that_verifies() -> None:
    with same_signatures():
        first, second = authority().signer.sign(FIRST), authority().signer.sign(FIRST)
    assert first == second
    assert verify_map(first, authority().certificate) == FIRST


def test_two_maps_of_one_epoch_fail_a_run() -> None:
    failures: list[str] = []
    book = MapBook(VerifiedMap(FIRST, b""), failures.append)
    drained = VerifiedMap(drain_node(FIRST, FIRST.nodes[0].node_id), b"")
    book.take(drained)
    book.take(drained)
    assert book.newest is drained
    assert not failures
    book.take(VerifiedMap(set_capacity(FIRST, FIRST.nodes[0].node_id, 1 << 30), b""))
    assert failures == ["there are two maps of epoch 2"]


def test_a_node_that_is_gone_stays_away() -> None:
    async def work(world: World) -> None:
        host = world.hosts[2]
        world.bury(2)
        world.heal()
        host.restart()
        assert not host.up
        assert 2 not in world.hosts
        assert not world.network.nodes[2].up

    in_calm(work)


def after_a_loss(prepare: Callable[[World], None]) -> list[str]:
    """A map that is in the operator's file alone is made known. Returns what failed, and who has it in the end."""
    changing = next(plan for plan in map(draw_plan, range(100)) if plan.changes is not None)
    plan = dataclasses.replace(changing, quality=Quality(0.001), faults={}, drift=0.0, offset=0.0)

    async def main(loop: VirtualLoop) -> list[str]:
        world = World(plan, loop)
        assert plan.changes is not None
        changes = Administration(world, plan.changes)
        bigger = set_capacity(world.cluster_map, world.cluster_map.nodes[0].node_id, 7 << 40)
        changes._keep(authority().signer.sign(bigger))
        prepare(world)
        await make_known(world, changes)
        having = sum(host.maps.map == bigger for host in world.hosts.values())
        return [*(failure.what for failure in world.failures), f"{len(world.hosts) - having} lack it"]

    with tiny_segments(), message_age(plan.repair), same_signatures():
        return run_virtually(main)


def test_a_map_that_coordination_lost_is_made_known_before_anybody_counts_on_it() -> None:
    assert after_a_loss(lambda _: None) == ["0 lack it"]


def test_a_node_that_does_not_take_it_fails_a_run() -> None:
    lonely = 0

    def isolate(world: World) -> None:
        nonlocal lonely
        lonely = next(number for number in world.hosts if number not in world.cluster_map.coordinators)
        for other in world.hosts:
            world.network.cut(f"node {lonely}", f"node {other}", 1e6)

    assert after_a_loss(isolate) == [f"node {lonely} is at epoch 1 of 2", "1 lack it"]


def test_a_summary_names_the_changes() -> None:
    changing = next(plan for plan in map(draw_plan, range(100)) if plan.changes is not None)
    assert "map:" in changing.summary()
    assert "map:" not in dataclasses.replace(changing, changes=None).summary()
