"""After the faults: repair works undisturbed, for as long as it needs, and then nothing is missing or left over.

Hours pass in leaps, as if every machine had slept, and rounds are made step by step: so a run that waits for a day
costs no more than one that does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from coffre.cluster.errors import CoffreError
from coffre.cluster.map import NodeState
from coffre.node.store import StoreOptions

from tests.simulation.administration import Administration
from tests.simulation.host import RECLAIM_SECONDS, Host
from tests.simulation.maps import Change
from tests.simulation.redundancy import left_staged, shortcomings, uncollected
from tests.simulation.workload import Worker, keys_of
from tests.simulation.world import World

__all__ = ["make_known", "make_whole"]

ROUNDS_MAX = 6
MOVE_ROUNDS_MAX = 12  # of one change, from its command to the end of its move and the removal of who left
MEMBERS_SECONDS = 3.0  # for administrators to look, and for members to take a new map
RESTORES_MAX = 10  # tries to fill coordination, while nodes that start do not answer yet
WALKS_MAX = 4  # condemn, collect, and one more for those whose digests still showed rows
CLOCKS_APART_SECONDS = 300.0  # stamps may lie so far ahead of the right time
PARKED_SECONDS = 3700.0  # after which everything that could not be done is tried again


async def make_known(world: World, changes: Administration) -> None:
    """Let an operator end the last fault, and fail the run for each node that does not take the newest map then.

    What coordination has lost before any node took it is in the operator's file alone. Clients that start with that
    file count on it, and nobody but the operator can make it known again (docs/consistency.md, "Who coordinates").
    """
    epoch = world.cluster_map.epoch
    for _ in range(RESTORES_MAX):
        if not _behind(world, epoch):
            return
        await changes.restore()
        await world.sleep(MEMBERS_SECONDS)
    for host in _behind(world, epoch):
        world.fail(f"node {host.number} is at epoch {host.maps.map.epoch} of {epoch}")


def _behind(world: World, epoch: int) -> list[Host]:
    """The nodes of the cluster that serve with an older map."""
    removed = {node.number for node in world.cluster_map.nodes if node.state is NodeState.REMOVED}
    return [
        host
        for number, host in world.hosts.items()
        if number not in removed and host.serving and host.maps.map.epoch < epoch
    ]


async def make_whole(world: World, changes: Administration | None) -> None:
    """Let changes of the map and repair end, and fail the run for whatever they leave."""
    plan = world.plan.repair
    assert plan is not None
    _resting(world)
    _pass(world, plan.unfinished_seconds + CLOCKS_APART_SECONDS)
    if changes is not None and world.plan.changes is not None:
        if not await _moved(world, changes, world.plan.changes.storm):
            return
        if world.plan.changes.calm:
            changes.begin(world.plan.changes.calm)
            if not await _moved(world, changes, world.plan.changes.calm):
                return
    if not await _repaired(world, changes):
        return
    # What is staged goes after a day, whatever the retention is.
    await _collect(world, max(plan.retention_seconds, StoreOptions().staging_expiry) + CLOCKS_APART_SECONDS)


async def _write_again(world: World) -> None:
    """Do what docs/repair.md asks for under "What stays undecided": an object that holds a move up is written again."""
    member = world.member()
    name = f"{member.name} (again)"
    worker = Worker(world, member, name, world.chance(name))
    for key in keys_of(world):
        await worker.put(key)


async def _moved(world: World, changes: Administration, kinds: Sequence[Change]) -> bool:
    """Let changes end, round after round. False when they do not."""
    plan = world.plan.changes
    assert plan is not None
    moves = len(kinds) * (2 if plan.second_thoughts or Change.RECODE in kinds else 1)
    rounds = MOVE_ROUNDS_MAX * moves
    for number in range(2 * rounds):
        if not changes.busy:
            break
        if number == rounds:
            await _write_again(world)
        await _compare(world, scrubs=False)
        if not world.cluster_map.prior:
            await _walk(world)  # only now may a node hand over what it holds for others
        await world.sleep(MEMBERS_SECONDS)
    else:
        world.fail(f"after {2 * rounds} rounds of repair an administrator still waits for this: {changes.at}")
        return False
    if any(host.maps.map.epoch < world.cluster_map.epoch for host in world.hosts.values()):
        await world.sleep(MEMBERS_SECONDS)  # the last map may have been published an instant ago
    for host in world.hosts.values():
        if host.maps.map is not world.cluster_map and host.maps.map != world.cluster_map:
            world.fail(f"node {host.number} is at epoch {host.maps.map.epoch} of {world.cluster_map.epoch}")
    return True


async def _repaired(world: World, changes: Administration | None) -> bool:
    found: list[str] = []
    for _ in range(ROUNDS_MAX):
        await _round(world)
        if changes is not None:
            await changes.code_anew()  # what was begun before the policy changed, and stands since
        found = await shortcomings(world)
        if not found:
            return True
        _pass(world, PARKED_SECONDS)
    for shortcoming in found:
        world.fail(f"after {ROUNDS_MAX} rounds of repair {shortcoming}")
    return False


async def _collect(world: World, seconds: float) -> None:
    _pass(world, seconds)
    await _walk(world)  # clocks are compared, and then what is staged may grow old
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


def _resting(world: World) -> list[Host]:
    """The nodes that serve; they repair no more by themselves."""
    resting = [host for host in world.hosts.values() if host.serving]
    for host in resting:
        assert host.repair is not None
        host.repair.rest()
        host.repair.options.scrub_seconds = 1e-9  # each pass reads everything at once
    return resting


async def _round(world: World) -> None:
    await _compare(world, scrubs=True)
    await _walk(world)


async def _compare(world: World, *, scrubs: bool) -> None:
    for host in _resting(world):
        assert host.repair is not None
        repairer = host.repair.repairer
        try:
            if scrubs:
                await repairer.scrub.one_pass()
            while await repairer.round():
                pass
        except CoffreError as error:
            world.fail(f"node {host.number} cannot repair although everything answers: {error!r}")


async def _walk(world: World) -> None:
    for host in _resting(world):
        assert host.repair is not None
        await host.repair.repairer.walk()
