"""After the faults: repair works undisturbed, for as long as it needs, and then nothing is missing or left over.

Hours pass in leaps, as if every machine had slept, and rounds are made step by step: so a run that waits for a day
costs no more than one that does not.
"""

from __future__ import annotations

from coffre.cluster.errors import CoffreError
from coffre.node.store import StoreOptions

from tests.simulation.redundancy import left_staged, shortcomings, uncollected
from tests.simulation.world import RECLAIM_SECONDS, World

__all__ = ["make_whole"]

ROUNDS_MAX = 6
WALKS_MAX = 4  # condemn, collect, and one more for those whose digests still showed rows
CLOCKS_APART_SECONDS = 300.0  # stamps may lie so far ahead of the right time
PARKED_SECONDS = 3700.0  # after which everything that could not be done is tried again


async def make_whole(world: World) -> None:
    """Let repair end, and fail the run for whatever it leaves."""
    plan = world.plan.repair
    assert plan is not None
    for host in world.hosts.values():
        assert host.repair is not None
        host.repair.rest()
        host.repair.options.scrub_seconds = 1e-9  # each pass reads everything at once
    _pass(world, plan.unfinished_seconds + CLOCKS_APART_SECONDS)
    found: list[str] = []
    for _ in range(ROUNDS_MAX):
        await _round(world)
        found = await shortcomings(world)
        if not found:
            break
        _pass(world, PARKED_SECONDS)
    else:
        for shortcoming in found:
            world.fail(f"after {ROUNDS_MAX} rounds of repair {shortcoming}")
        return
    # What is staged goes after a day, whatever the retention is.
    await _collect(world, max(plan.retention_seconds, StoreOptions().staging_expiry) + CLOCKS_APART_SECONDS)


async def _collect(world: World, seconds: float) -> None:
    _pass(world, seconds)
    await world.sleep(2 * RECLAIM_SECONDS)
    found: list[str] = []
    for _ in range(WALKS_MAX):
        await _walk(world)
        found = uncollected(world)
        if not found:
            break
    for shortcoming in (*found, *(await shortcomings(world)), *left_staged(world)):
        world.fail(f"after {WALKS_MAX} walks {shortcoming}")


def _pass(world: World, seconds: float) -> None:
    """Let time pass in which nothing happens, and set the clocks, which have drifted apart."""
    world.loop.leap(seconds)
    world.set_clocks()


async def _round(world: World) -> None:
    for host in world.hosts.values():
        assert host.repair is not None
        repairer = host.repair.repairer
        try:
            await repairer.scrub.one_pass()
            while await repairer.round():
                pass
        except CoffreError as error:
            world.fail(f"node {host.number} cannot repair although everything answers: {error!r}")
    await _walk(world)


async def _walk(world: World) -> None:
    for host in world.hosts.values():
        assert host.repair is not None
        await host.repair.repairer.walk()
