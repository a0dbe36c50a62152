"""Nodes as processes of the simulated world: they live, die, come back with what their disk kept, follow the map."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from coffre.cluster.clock import DriftingClock
from coffre.cluster.coordination import Coordination, RemoteCoordination
from coffre.cluster.errors import ConfigurationError
from coffre.cluster.identity import Identity, NodeAttributes, Role
from coffre.cluster.map import ClusterMap, MapNode, NodeState, verify_map
from coffre.cluster.membership import ClusterMaps, VerifiedMap
from coffre.node.following import MapFollower, MapHolder, await_admission, own_entry
from coffre.node.repair import Repairer
from coffre.node.serving.coordinator import NearestCoordination

from tests.simulation.coordinators import MemberTransport
from tests.simulation.disk import SimulatedStore
from tests.simulation.epochs import EpochWitness, WitnessedHandler
from tests.simulation.maps import authority
from tests.simulation.repairers import NodeRepair
from tests.simulation.virtual_time import Actor

if TYPE_CHECKING:
    from tests.simulation.world import World

__all__ = ["RECLAIM_SECONDS", "Host", "await_map"]

RECLAIM_SECONDS = 5.0


class Host:
    """A node: a real handler over the store that its crashes leave behind."""

    def __init__(
        self,
        world: World,
        entry: MapNode,
        store: SimulatedStore,
        clock: DriftingClock,
        found: VerifiedMap,
        *,
        new: bool = False,
    ) -> None:
        """`found`: the map on its disk. `new`: it joins a cluster that is at work."""
        self.number = entry.number
        self.store = store
        self.clock = clock
        self.up = True
        self.gone = False  # for good, with its disk
        self.incarnation = 0
        self._entry = entry
        self._world = world
        self._identity = Identity(found.map.cluster_id, Role.NODE, entry.node_id, entry.attributes)
        self._kept = found
        self._new = new
        self._start()

    def _start(self) -> None:
        self._actor = Actor(self._world.loop, f"node {self.number}.{self.incarnation}")
        self.maps = MapHolder(self._kept.map, self._kept.signed)
        epochs = self.store.epochs = EpochWitness(self.maps, self._world.fail)
        self.handler = WitnessedHandler(
            self.number, self._entry.node_id, self.store, self.maps, self.clock, epochs
        )
        self._actor.spawn(self._reclaim())
        self.repair = self._repair()

    def _repair(self) -> NodeRepair | None:
        world, plan, name = self._world, self._world.plan.repair, f"node {self.number}"
        if plan is None:
            return None
        transport, options = world.transport(self._identity, name, self._kept.map), plan.options()
        clocks = self.handler.clocks
        repairer = Repairer(self.number, self.store, self.maps, transport, self.clock, options, clocks)
        repair = NodeRepair(world.loop, name, self.handler, repairer, options, transport)
        rng = world.chance(f"repair of {name}, start {self.incarnation}")
        wait_seconds = rng.random() * options.round_seconds

        def served() -> None:
            if world.plan.changes is not None:
                self._actor.spawn(self._follow(transport))

        if self.incarnation or self._new:
            others = [
                entry.number
                for entry in self.maps.map.nodes
                if entry.number != self.number and entry.state is not NodeState.REMOVED
            ]
            repair.start_again(self.clock, wait_seconds, self.store, others, new=self._new, served=served)
            self._new = False  # from now on there is a store that remembers
        else:
            served()
            repair.start(self.clock, wait_seconds)
        return repair

    # ---------------------------------------------------------------- the map

    async def _follow(self, transport: MemberTransport) -> None:
        """As `coffre.node.serving.membership` lets a node follow the map."""
        used: Coordination = RemoteCoordination(transport)
        if self.number in self.maps.map.coordinators:
            self._world.agreement.handler(self.number)  # a store that lives in this node begins anew with it
            used = NearestCoordination(self.number, self.maps, self._world.agreement.store, used)

        def keep(signed: bytes) -> None:
            self._kept = VerifiedMap(self._kept.map, signed)

        def adopted(cluster_map: ClusterMap) -> None:
            self._kept = VerifiedMap(cluster_map, self._kept.signed)
            self._world.maps.take(self._kept)
            self._actor.spawn(transport.update_map(cluster_map))

        source = ClusterMaps(transport, used, authority().certificate, self.clock)
        await MapFollower(self.maps, source, keep, self.clock, own=self._entry, on_change=adopted).run()

    # ---------------------------------------------------------------- the process

    @property
    def actors(self) -> list[Actor]:
        """What stands still together."""
        return [self._actor] if self.repair is None else [self._actor, self.repair.actor]

    @property
    def serving(self) -> bool:
        return self.up and self.handler.serving

    @property
    def slowness(self) -> float:
        return self.store.slowness

    def spawn(self, work: Coroutine[Any, Any, None]) -> object:
        return self._actor.spawn(work)

    def crash(self) -> None:
        """Everything under way ends, and what was not synced is gone."""
        self.up = False
        self._actor.kill()
        if self.repair is not None:
            self.repair.kill()
        self.store.crash()
        self._world.network.reset(self.number)

    def restart(self) -> None:
        """Nothing happens to a node that is gone, and one that the map has removed refuses to start."""
        if self.gone or not self._is_wanted():
            return
        self.up = True
        self.incarnation += 1
        self._start()

    def _is_wanted(self) -> bool:
        if self._world.plan.changes is None:
            return True
        try:
            own_entry(self._identity, verify_map(self._kept.signed, authority().certificate))
        except ConfigurationError as refusal:
            self._world.journal.note("node", self.number, "does not start:", refusal)
            return False
        return True

    async def _reclaim(self) -> None:
        while True:
            await self.clock.sleep(RECLAIM_SECONDS)
            await self.store.reclaim(expire=self.handler.clocks.now_ms() is not None)


async def await_map(
    attributes: NodeAttributes, found: VerifiedMap, transport: MemberTransport, clock: DriftingClock
) -> tuple[MapNode, VerifiedMap]:
    """Wait as a node does that was started before it was added; return its entry, and the map that has it."""
    identity = Identity(found.map.cluster_id, Role.NODE, attributes.node_id, attributes)
    source = ClusterMaps(transport, RemoteCoordination(transport), authority().certificate, clock)
    newest = found

    async def learn(newer: VerifiedMap) -> None:
        nonlocal newest
        newest = newer
        await transport.update_map(newer.map)

    await await_admission(identity, found.map, source, clock, learn)
    return own_entry(identity, newest.map), newest
