"""Administrators of the simulated world: they change the map by commands, die in the middle, others follow them.

A command is a process of its own, with the code that `coffre cluster ...` runs: the wish makes the next map of the
current one, it is signed and published, and another map ends the move when every node says that it has everything. All
that one command leaves to the next is the operator's file. What runs beside it is what docs/operations.md asks of an
administrator: a new node is started before it is added, one that was removed is switched off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial

from coffre.cluster.coordination import RemoteCoordination, newest_map
from coffre.cluster.errors import CoffreError, Conflict, InvalidArgument, PolicyViolation, RetryableError
from coffre.cluster.health import present_nodes, survey_nodes
from coffre.cluster.identity import Identity, NodeAttributes, Role
from coffre.cluster.map import ClusterMap, NodeState, verify_map
from coffre.cluster.membership import (
    CoordinatedMapPublisher,
    RepairReports,
    VerifiedMap,
    add_node,
    begin_change,
    drain_node,
    follow_move,
    remove_node,
    replace_node,
    restore_newest_map,
    set_capacity,
    set_policy,
)
from coffre.cluster.membership.map_source import maps_of_nodes

from tests.simulation.maps import OPERATOR, Change, ChangePlan, authority
from tests.simulation.plan import CODINGS
from tests.simulation.recoding import Recoding
from tests.simulation.virtual_time import Actor
from tests.simulation.weather import spare_without
from tests.simulation.world import BUCKET, TENANT, World

__all__ = ["Administration"]

RETRY_SECONDS = 2.0
LIFE_SECONDS = 4.0  # of a command that dies, at most
SPARE_SECONDS = 1.0  # between two looks whether a node may be lost
SPARE_LOOKS = 30
RESTORE_AFTER = 3  # failures in a row, then somebody looks whether coordination has lost its maps

Wish = Callable[[ClusterMap, "Command"], Awaitable[ClusterMap]]


class Command:
    """One process of an administrator, from its start to its end."""

    def __init__(self, world: World, kept: VerifiedMap, keep: Callable[[bytes], None], name: str) -> None:
        self._world = world
        self.actor = Actor(world.loop, name)
        self.clock = world.clock(name)
        self._kept = kept
        identity = Identity(kept.map.cluster_id, Role.OPERATOR, OPERATOR)
        self.transport = world.transport(identity, name, kept.map)
        self.coordination = RemoteCoordination(self.transport)
        self._publisher = CoordinatedMapPublisher(
            self.coordination, self.transport, kept.map, authority().certificate, keep, self.clock
        )

    async def carry_out(self, wish: Wish, *, waits: bool) -> ClusterMap:
        """As `coffre cluster ...` does, `--no-wait` unless it `waits`."""
        signer = authority().signer
        current = await self._publisher.current()
        proposed = await wish(current, self)
        if proposed is not current:
            current = await begin_change(self._publisher, signer, proposed)
            await self.transport.update_map(current)
        if waits and current.prior:
            reports = RepairReports(self.transport)
            current = await follow_move(self._publisher, signer, reports, self.clock, lambda _: None)
        return current

    async def shards_held(self, current: ClusterMap, node_id: str) -> int | None:
        """What a node says that it holds; None when it does not answer."""
        nodes = [node for node in present_nodes(current) if node.node_id == node_id]
        reports = await survey_nodes(self.transport, nodes, self.clock)
        return reports[0].status.shards if reports and reports[0].status is not None else None

    async def restore(self) -> None:
        """`coffre cluster restore-coordination`, by who has made sure that every node that is left answers."""
        if await newest_map(self.coordination) is None:
            known = self._world.maps.newest.map
            answers = await maps_of_nodes(self.transport, known, authority().certificate)
            if set(self._world.hosts) <= answers.keys():
                certificate = authority().certificate
                await restore_newest_map(
                    self.coordination, self.transport, self._kept, certificate, self.clock
                )

    def end(self) -> None:
        """The process ends at once, whatever it was doing."""
        self.transport.die()
        self.actor.kill()
        self._world.network.detach(self.transport)


class Administration:
    """Carries out the changes of a plan."""

    def __init__(self, world: World, plan: ChangePlan) -> None:
        self._world = world
        self._plan = plan
        self._rng = world.chance("changes")
        self._doubts = world.chance("second thoughts")
        self._kept = world.maps.newest  # the operator's file
        self._map = self._kept.map  # what the last command left: nobody else publishes any
        self._commands = 0
        self._offers = max(world.hosts)
        self._leaving: list[str] = []  # drained, and to be removed and switched off
        self._recoding: Recoding | None = None  # once the policy has changed
        self._calm = False
        self._task: asyncio.Task[None] | None = None
        self.at = "nothing yet"  # what is being done, for who waits in vain

    # ---------------------------------------------------------------- the order of things

    def begin(self, kinds: Sequence[Change]) -> None:
        self._task = self._world.loop.create_task(self._carry_out(kinds))

    @property
    def busy(self) -> bool:
        """Whether what was begun has not come to its end yet."""
        if self._task is None or self._task.done():
            assert (
                self._task is None or self._task.result() is None
            )  # raises what is a bug of the world itself
            return False
        return True

    def be_calm(self) -> None:
        """From now on no command dies, and nothing waits for long."""
        self._calm = True
        if self._recoding is not None:
            self._recoding.be_calm()

    async def _carry_out(self, kinds: Sequence[Change]) -> None:
        for kind in kinds:
            if not self._calm:
                await self._world.sleep(self._rng.expovariate(1 / self._plan.pause))
            waits = self._rng.random() < self._plan.patience
            await _MAKERS[kind](self, waits)
            self._world.faults[kind.value] += 1
            if waits and self._rng.random() < 0.5:
                await self._finish()
        await self._finish()

    async def _finish(self) -> None:
        """Let what was begun end, and take away who was drained."""
        await self._until_done("apply", _nothing, waits=True)
        self.at = "recode"
        await self.code_anew()
        while self._leaving:
            name = self._leaving.pop()
            number = next(node.number for node in self._map.nodes if node.node_id == name)
            if number not in self._map.coordinators:
                await self._until_done(f"remove {name}", _removed(name), waits=True)
                self._world.bury(number)

    # ---------------------------------------------------------------- changes

    async def join(self, waits: bool) -> None:
        site = self._rng.choice(sorted({node.site for node in self._map.nodes}))
        operator = self._rng.choice(sorted({node.operator for node in self._map.nodes}))
        await self._add(self._offer(site, operator), waits)

    async def _add(self, offer: _Offer, waits: bool) -> None:
        if self._plan_of(lambda current: offer.added(current)) is not None:
            self._start(offer)
            await self._until_done(f"add {offer.attributes.node_id}", _pure(offer.added), waits=waits)

    async def drain(self, waits: bool) -> None:
        """One that the others can do without; else one more joins first."""
        for name in self._shuffled():
            drained = partial(drain_node, node_id=name)
            if self._plan_of(drained) is not None:
                await self._until_done(f"drain {name}", _pure(drained), waits=waits)
                await self._let_go(name, waits)
                return
        await self.join(waits)

    async def replace(self, waits: bool) -> None:
        name = self._shuffled()[0]
        offer = self._offer_like(name)
        if self._plan_of(lambda current: offer.instead_of(current, name, lost=False)) is not None:
            self._start(offer)
            wish = _pure(lambda current: offer.instead_of(current, name, lost=False))
            await self._until_done(f"replace {name}", wish, waits=waits)
            await self._let_go(name, waits)

    async def _let_go(self, name: str, waits: bool) -> None:
        """A node leaves; or it stays after all, with what it has and what moved to others meanwhile."""
        self._leaving.append(name)
        if self._doubts.random() < self._plan.second_thoughts:
            await self._world.sleep(self._doubts.expovariate(1 / self._plan.pause))
            entry = next(node for node in self._map.nodes if node.node_id == name)
            stays = partial(
                add_node,
                attributes=entry.attributes,
                address=entry.address,
                capacity_bytes=entry.capacity_bytes,
            )
            if self._plan_of(stays) is not None:
                self._leaving.remove(name)
                await self._until_done(f"take {name} back", _pure(stays), waits=waits)
                self._world.faults["taken back"] += 1

    async def lose(self, waits: bool) -> None:
        """A node dies for good, with its disk: the one that rots, since no second one may be at risk."""
        name = self._doomed()
        if name is None:
            return
        number = next(node.number for node in self._map.nodes if node.node_id == name)
        offer = self._offer_like(name)
        removed = self._rng.random() < 0.3 and self._plan_of(lambda now: _lost(now, name)) is not None
        change = (
            (lambda now: _lost(now, name))
            if removed
            else (lambda now: offer.instead_of(now, name, lost=True))
        )
        if self._plan_of(change) is None:
            return
        for _ in range(SPARE_LOOKS):
            if spare_without(self._world, number):
                break
            await self._world.sleep(SPARE_SECONDS)
        else:
            return
        self._note(name, "is lost")
        self._world.bury(number)
        if name in self._leaving:
            self._leaving.remove(name)
        if not removed:
            self._start(offer)
        await self._until_done(
            f"{'remove' if removed else 'replace'} {name} --lost", _pure(change), waits=waits
        )

    async def resize(self, waits: bool) -> None:
        name, size = self._shuffled()[0], self._rng.choice([1, 2, 3]) << 40
        if self._plan_of(lambda current: set_capacity(current, name, size)) is not None:
            wish = _pure(lambda current: set_capacity(current, name, size))
            await self._until_done(f"set-capacity {name}", wish, waits=waits)

    async def recode(self, waits: bool) -> None:
        """The bucket gets another policy, with the first k and m that the nodes allow."""
        tenant_policy = self._map.policy_of(TENANT, BUCKET)
        codings = [coding for coding in CODINGS if coding != (tenant_policy.k, tenant_policy.m)]
        for k, m in self._world.chance("coding").sample(codings, len(codings)):
            policy = replace(tenant_policy, name=f"{k}+{m}", k=k, m=m)
            change = partial(set_policy, tenant=TENANT, bucket=BUCKET, name=policy.name, new_policy=policy)
            if self._plan_of(change) is not None:
                await self._until_done(f"set-policy {policy.name}", _pure(change), waits=waits)
                self._recoding = Recoding(self._world, 0.0 if self._calm else self._plan.deaths)
                if waits:
                    await self.code_anew()
                return

    async def code_anew(self) -> None:
        """Let the tenant do its part, if the policy changed."""
        if self._recoding is not None:
            await self._recoding.until_done()

    # ---------------------------------------------------------------- who and what

    def _plan_of(self, change: Callable[[ClusterMap], ClusterMap]) -> ClusterMap | None:
        """`--dry-run`: what would become of the map; None when the policy cannot be kept, or something forbids it."""
        try:
            return change(self._map)
        except (InvalidArgument, Conflict) as error:
            self._note("does not do it:", type(error).__name__)
            return None

    def _shuffled(self) -> list[str]:
        names = [node.node_id for node in self._map.nodes if node.state is NodeState.ACTIVE]
        self._rng.shuffle(names)
        return names

    def _doomed(self) -> str | None:
        world = self._world
        if world.rotten is not None:
            number = world.rotten
            return self._map.node(number).node_id if number in world.hosts else None
        present = [node for node in self._map.nodes if node.number in world.hosts]
        names = [node.node_id for node in present if node.number not in self._map.coordinators]
        return self._rng.choice(names) if names else None

    def _offer(self, site: str, operator: str) -> _Offer:
        self._offers += 1
        attributes = NodeAttributes(f"n{self._offers}", f"server{self._offers}.new", site, operator, "FR")
        return _Offer(attributes, f"127.0.0.1:{7000 + self._offers}", self._rng.choice([1, 1, 2, 4]) << 40)

    def _offer_like(self, name: str) -> _Offer:
        old = next(node for node in self._map.nodes if node.node_id == name)
        return self._offer(old.site, old.operator)

    def _start(self, offer: _Offer) -> None:
        self._world.newcomer(offer.attributes, self._kept)

    # ---------------------------------------------------------------- commands

    async def _until_done(self, what: str, wish: Wish, *, waits: bool) -> None:
        """Say it until it is so, whatever becomes of the commands."""
        failures = 0
        self.at = what
        while True:
            try:
                if await self._run(what, wish, waits=waits):
                    return
            except (RetryableError, Conflict, PolicyViolation) as error:
                self._note(what, "failed:", repr(error))
                failures += 1
                if failures % RESTORE_AFTER == 0:
                    await self.restore()
                await self._world.sleep(RETRY_SECONDS)

    async def _run(self, what: str, wish: Wish, *, waits: bool) -> bool:
        """One command. False when it died; nobody knows then what it did."""
        command = self._command()
        self._note(command.actor.name, "begins to", what)
        task = command.actor.spawn(command.carry_out(wish, waits=waits))
        dies = not self._calm and self._rng.random() < self._plan.deaths
        try:
            await asyncio.wait({task}, timeout=LIFE_SECONDS * self._rng.random() if dies else None)
            if not task.done():
                self._note(command.actor.name, "dies")
                self._world.faults["command"] += 1
                command.end()
                await asyncio.gather(task, return_exceptions=True)
                return False
            self._map = task.result()
            self._note(command.actor.name, "has done it, at epoch", self._map.epoch)
            return True
        finally:
            command.end()

    async def restore(self) -> None:
        """Fill a store of coordination that lost its maps, if it did, and if every node that is left answers."""
        command = self._command()
        try:
            await command.actor.spawn(command.restore())
        except CoffreError as error:
            self._note("cannot restore coordination:", repr(error))
        finally:
            command.end()

    def _command(self) -> Command:
        self._commands += 1
        return Command(self._world, self._kept, self._keep, f"administrator {self._commands}")

    def _keep(self, signed: bytes) -> None:
        """Each command writes the map that it published into the operator's file."""
        self._kept = VerifiedMap(verify_map(signed, authority().certificate), signed)
        self._world.maps.take(self._kept)

    def _note(self, *what: object) -> None:
        self._world.journal.note("weather:", *what)


class _Offer:
    """A node that is to join: its certificate, its address, its capacity."""

    def __init__(self, attributes: NodeAttributes, address: str, capacity_bytes: int) -> None:
        self.attributes = attributes
        self._place = address, capacity_bytes

    def added(self, current: ClusterMap) -> ClusterMap:
        return add_node(current, self.attributes, *self._place)

    def instead_of(self, current: ClusterMap, name: str, *, lost: bool) -> ClusterMap:
        return replace_node(current, name, self.attributes, *self._place, lost=lost)


async def _nothing(current: ClusterMap, _: Command) -> ClusterMap:
    return current


def _pure(change: Callable[[ClusterMap], ClusterMap]) -> Wish:
    async def wish(current: ClusterMap, _: Command) -> ClusterMap:
        return change(current)

    return wish


def _removed(name: str) -> Wish:
    async def wish(current: ClusterMap, command: Command) -> ClusterMap:
        return remove_node(current, name, shards_held=await command.shards_held(current, name))

    return wish


def _lost(current: ClusterMap, name: str) -> ClusterMap:
    return remove_node(current, name, shards_held=None, lost=True)


_MAKERS: dict[Change, Callable[[Administration, bool], Awaitable[None]]] = {
    Change.JOIN: Administration.join,
    Change.DRAIN: Administration.drain,
    Change.REPLACE: Administration.replace,
    Change.LOSE: Administration.lose,
    Change.RESIZE: Administration.resize,
    Change.RECODE: Administration.recode,
}
