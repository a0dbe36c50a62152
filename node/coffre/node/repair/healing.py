"""A batch of names made whole on this node: look at what others hold, decide, rebuild, one group commit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from coffre.cluster.clock import Clock
from coffre.cluster.errors import CoffreError, IntegrityError, ResourceExhausted
from coffre.cluster.names import ObjectName
from coffre.node.repair.asking import Answers, bytes_of
from coffre.node.repair.decide import (
    Action,
    Step,
    bare_stamps,
    choose_index,
    decide,
    is_lost,
    is_pending,
    other_indexes,
    wants_everyone,
)
from coffre.node.repair.options import RepairOptions
from coffre.node.repair.pace import Pace
from coffre.node.repair.rebuild import Sealed, best_manifest, rebuild_large, small_shard
from coffre.node.repair.scene import Scene, Task
from coffre.node.repair.view import View
from coffre.node.store import (
    ABORTED,
    Abort,
    Accept,
    Drop,
    DropRepair,
    Lock,
    Mutation,
    Refuse,
    Restore,
    Settle,
    ShardStore,
    StoredVersion,
)

__all__ = ["OBJECT_BYTES", "Healer", "Outcome"]

_log = logging.getLogger(__name__)
_LARGE_AT_ONCE = 4  # each has k streams open, and a chunk of each in memory
_WITNESSES = 2  # who tell their manifest beside a node that a shard is copied from
_RECORD_BYTES = 512  # what a manifest and its rows come to
# What the pace counts for an object at least: small ones take little of disks and network, and much of the CPU.
OBJECT_BYTES = 64 << 10


@dataclass(slots=True)
class Outcome:
    """What became of a task. `reason`: why it is not done; empty when there is nothing more to do for now."""

    task: Task
    reason: str = ""
    restored: int = 0
    bytes: int = 0
    again: bool = False  # the replies had no room for it


@dataclass(frozen=True, slots=True)
class _Large:
    """A large shard to rebuild. `holders`: by node, the shard that it has."""

    sealed: Sealed
    index: int
    placement: tuple[int, ...]
    holders: Mapping[int, int]
    step: Step


@dataclass(slots=True)
class _Plan:
    """What to do about one name."""

    mutations: list[Mutation] = field(default_factory=list)
    large: list[_Large] = field(default_factory=list)
    restored: int = 0
    bytes: int = 0  # of small shards
    received: int = 0  # bytes of manifests and cells from others
    reason: str = ""
    again: bool = False
    pending: bool = False  # something newer than what is settled is not decided, as far as few nodes say

    @property
    def is_enough(self) -> bool:
        """Whether what few nodes said of the name is all that there is to know."""
        return self.again or (bool(self.mutations) and not self.reason and not self.pending)


class Healer:
    """`heal` changes this node alone."""

    def __init__(self, store: ShardStore, options: RepairOptions, pace: Pace, clock: Clock) -> None:
        self._store = store
        self._options = options
        self._pace = pace
        self._clock = clock
        self._places = asyncio.Semaphore(_LARGE_AT_ONCE)

    async def heal(self, scene: Scene, tasks: Sequence[Task]) -> list[Outcome]:
        """Raises what the store raises when it is closed or its disk failed."""
        quick = [task for task in tasks if task.sources]
        first = await self._plans(scene, quick, quickly=True)
        rest = [task for task in tasks if task.name not in first or not first[task.name].is_enough]
        second = await self._plans(scene, rest, quickly=False)
        plans = first | second
        outcomes = [
            Outcome(task, plan.reason, plan.restored, plan.bytes, plan.again)
            for task in tasks
            for plan in (plans[task.name],)
        ]
        await self._apply(scene, [(outcome, plans[outcome.task.name].mutations) for outcome in outcomes])
        await asyncio.gather(
            *(self._bring_large(scene, outcome, plans[outcome.task.name]) for outcome in outcomes)
        )
        await self._drop_reports(outcomes)
        received = sum(plan.received for plan in (*first.values(), *second.values()))
        done = received + sum(plan.bytes for plan in plans.values())
        await self._pace.spend(max(done, OBJECT_BYTES * len(tasks)))
        return outcomes

    # ---------------------------------------------------------------- looking

    async def _plans(self, scene: Scene, tasks: Sequence[Task], *, quickly: bool) -> dict[ObjectName, _Plan]:
        shards: dict[int, list[ObjectName]] = {}  # whom to ask for all of it, and whom for manifests alone
        manifests: dict[int, list[ObjectName]] = {}
        elsewhere: dict[ObjectName, frozenset[int]] = {}
        for task in tasks:
            electorate = scene.electorate(task.name, task.partition)
            nodes, elsewhere[task.name] = scene.nodes_for(task.name, task.partition)
            if quickly:
                nodes = _some_of(task.sources, electorate.k, task.name)
                if task.copy_of is not None:
                    for node in [node for node in nodes if node != task.copy_of][:_WITNESSES]:
                        manifests.setdefault(node, []).append(task.name)
                    nodes = [task.copy_of]
            for node in nodes:
                shards.setdefault(node, []).append(task.name)
        found, again = await scene.asking.versions(shards, want_cells=True)
        if manifests:
            others, _ = await scene.asking.versions(manifests, want_cells=False)
            for name, said in others.items():
                found[name].update(said)
        views = {
            task.name: await self._view(scene, task, found.get(task.name, {}), elsewhere[task.name], quickly)
            for task in tasks
            if task.name not in again
        }
        if not quickly:
            again |= await self._hear_everyone(scene, views)
        plans: dict[ObjectName, _Plan] = {}
        for task in tasks:
            if task.name in again:
                plans[task.name] = _Plan(again=True)
                continue
            view = views[task.name]
            plans[task.name] = plan = self._plan(task, view)
            plan.received = sum(bytes_of(said) for node, said in view.answers.items() if node != scene.me)
            plan.pending = any(map(is_pending, view.answers.values()))
            if not plan.large and not plan.reason:
                for stamp in bare_stamps(view):
                    scene.bare.add(stamp)
        return plans

    async def _view(
        self, scene: Scene, task: Task, answers: Answers, elsewhere: frozenset[int], quickly: bool
    ) -> View:
        """What is known of a name. `quickly`: few were asked, so any understudy may hold a shard."""
        electorate = scene.electorate(task.name, task.partition)
        cluster_map = scene.electorates.map
        heard = answers.keys() if scene.punctual is None else answers.keys() & scene.punctual
        view = View(
            scene.me,
            electorate,
            {**answers, scene.me: await self._own(task)},
            scene.now_ms(self._clock),
            scene.electorates.versions_kept(task.name.tenant, task.name.bucket),
            # Who answered the digests, and then not this, is silent, too.
            len(electorate.primaries) if quickly else len(elsewhere - heard),
            self._options.unfinished_seconds,
            scene.homes(task.partition),
            cluster_map.consulted if electorate.is_moving else frozenset(),
            len(cluster_map.departed),
            cluster_map.lost,
            scene.punctual,
            scene.ahead,
        )
        for stamp in {v.stamp for versions in view.answers.values() for v in versions}:
            if view.is_ahead(stamp):
                scene.ahead.meet(stamp)
        return view

    async def _hear_everyone(self, scene: Scene, views: dict[ObjectName, View]) -> set[ObjectName]:
        """Ask the other nodes, too, about what only all of them together can decide. Returns names to ask again."""
        wanted: dict[int, list[ObjectName]] = {}
        for name, view in views.items():
            if wants_everyone(view):
                for node in (view.consulted & scene.digests.keys()) - view.answers.keys():
                    wanted.setdefault(node, []).append(name)
        found, again = await scene.asking.versions(wanted, want_cells=True)
        for name, answers in found.items():
            views[name] = replace(views[name], answers={**views[name].answers, **answers})
        return again

    async def _own(self, task: Task) -> Sequence[StoredVersion]:
        versions = await self._store.read(task.name, every=True, want_cell=task.verify)
        if not task.verify:
            return versions
        return [
            version._replace(damaged=True) if await self._is_damaged(task.name, version) else version
            for version in versions
        ]

    async def _is_damaged(self, name: ObjectName, version: StoredVersion) -> bool:
        """Read a shard of this node to its end."""
        if version.damaged or version.state == ABORTED or version.shard_index is None or version.cell:
            return version.damaged
        try:
            async for chunk in self._store.read_cells(name, version.stamp, version.shard_index, 0, 0):
                await self._pace.spend(sum(len(cell.data) for cell in chunk))
        except IntegrityError:
            return True
        return False

    # ---------------------------------------------------------------- planning

    def _plan(self, task: Task, view: View) -> _Plan:
        plan = _Plan()
        for step, stamp in reversed(
            decide(view)
        ):  # the oldest first: a newer settled one trims what is below
            match step:
                case Step.SETTLE:
                    plan.mutations.append(Settle(task.name, task.partition, stamp))
                case Step.LOCK:
                    plan.mutations.append(Lock(task.name, task.partition, stamp))
                case Step.REFUSE:
                    plan.mutations.append(Refuse(task.name, task.partition, stamp))
                case Step.GIVE_UP:
                    plan.mutations.append(Abort(task.name, task.partition, stamp))
                case Step.DROP:
                    plan.mutations.append(Drop(task.name, task.partition, stamp))
                case Step.RESTORE | Step.TAKE | Step.OVERRULE:
                    self._bring(task, view, Action(step, stamp), plan)
        if not plan.reason and is_lost(view):
            plan.reason = (
                "too few shards are left of a version that may have been read: put or delete it again"
            )
        # A Settle, or a vote on another version, is no reason to put it off: there may be one each time.
        if task.report is not None and not plan.restored and not plan.large:
            self._change_index(task, view, task.report[0], plan)
        return plan

    def _bring(self, task: Task, view: View, action: Action, plan: _Plan) -> None:
        """Plan to have a version here, with this node's shard of it."""
        stamp = action.stamp
        held = view.held(stamp)
        own = held.pop(view.me, None)
        sealed = best_manifest([*held.values(), *([own] if own else [])], stamp)
        if sealed is None:
            plan.reason = "no copy of its manifest can be read"
            return
        if sealed.tombstone:
            replace = own is not None and own.damaged
            plan.mutations.append(_brought(_accept(task, sealed, None), action.step, replace=replace))
            plan.restored += 1
            return
        homes = view.homes_of((sealed.manifest.k, sealed.manifest.m))
        if not homes:
            plan.reason = "it is coded as no policy of this map, or too few nodes are left for that policy"
        replace = own is not None and own.damaged
        if view.me not in homes:  # its shards belong elsewhere; who decides about it knows it all the same
            plan.mutations.append(_brought(_accept(task, sealed, None), action.step, replace=replace))
            plan.restored += 1
            return
        index = _index_of(view, homes, sealed, held, own)
        if index is None:
            plan.reason = "every shard of it has a primary already"
            return
        if not self._bring_shard(task, view, sealed, index, action.step, replace, plan):
            self._bring_manifest(task, sealed, own, action, plan)
            plan.reason = "fewer than k good shards answer"

    def _bring_shard(
        self,
        task: Task,
        view: View,
        sealed: Sealed,
        index: int,
        step: Step,
        replace: bool,
        plan: _Plan,
    ) -> bool:
        """Plan to have a shard here. False when too few others answer with one."""
        held = view.held(sealed.manifest.stamp)
        held.pop(view.me, None)
        homes = view.homes_of((sealed.manifest.k, sealed.manifest.m))
        placement = _placed(sealed, view, homes, index)
        if not sealed.one_cell:
            holders = {
                node: v.shard_index
                for node, v in held.items()
                if v.shard_index is not None and not v.damaged and v.manifest == sealed.raw
            }
            shards = set(holders.values())
            if index not in shards and len(shards) < sealed.manifest.k:
                return False
            plan.large.append(_Large(sealed, index, placement, holders, step))
            return True
        made = small_shard(sealed, index, held.values())
        if made is None:
            return False
        accept = _accept(task, sealed, index, placement)
        accept.cell, accept.cell_crc = made
        plan.mutations.append(_brought(accept, step, replace=replace))
        plan.restored += 1
        plan.bytes += len(made[0]) + _RECORD_BYTES
        return True

    def _change_index(self, task: Task, view: View, stamp: bytes, plan: _Plan) -> None:
        """Take another shard instead of one that an earlier primary holds, too, where one is missing."""
        index = other_indexes(view, stamp).get(view.me)
        if index is None:
            return
        sealed = best_manifest(view.held(stamp).values(), stamp)
        if sealed is None or (sealed.manifest.k, sealed.manifest.m) != (view.electorate.k, view.electorate.m):
            return  # its shards lie by another policy, not with all of these primaries
        if not self._bring_shard(task, view, sealed, index, Step.RESTORE, True, plan):
            plan.reason = "fewer than k good shards answer"

    def _bring_manifest(
        self, task: Task, sealed: Sealed, own: StoredVersion | None, action: Action, plan: _Plan
    ) -> None:
        """Without its shard an established version is still known here; what it replaces is kept until the shard
        is here, too."""
        if own is None and action.step is Step.RESTORE:
            plan.mutations.append(_brought(_accept(task, sealed, None), Step.TAKE))

    # ---------------------------------------------------------------- doing

    async def _bring_large(self, scene: Scene, outcome: Outcome, plan: _Plan) -> None:
        """Rebuild large shards, few at a time: those that are small do not wait for them."""
        task = outcome.task
        for large in plan.large:
            sealed, index = large.sealed, large.index
            try:
                async with self._places:
                    size_bytes = await rebuild_large(
                        self._store,
                        scene.asking,
                        self._pace,
                        task.name,
                        sealed,
                        index,
                        large.holders,
                        self._options.timeout,
                    )
                accept = _accept(task, sealed, index, large.placement)
                accept.staged = True
                outcome.restored += 1
                outcome.bytes += size_bytes
                await self._apply(scene, [(outcome, [_brought(accept, large.step, replace=True)])])
                # One that was overtaken meanwhile is wanted no more.
                await self._store.drop_staged(task.name.tenant, sealed.manifest.data_id, index)
            except CoffreError as error:
                why = str(error) if isinstance(error, ResourceExhausted) else type(error).__name__
                outcome.reason = f"a large shard cannot be rebuilt: {why}"
                _log.warning("a large shard cannot be rebuilt: %s", error)

    async def _apply(self, scene: Scene, planned: Sequence[tuple[Outcome, Sequence[Mutation]]]) -> None:
        """Do what was planned by the map of the scene. By another one that came since, other nodes decide, and what was
        proved may prove nothing then: then only what is established is brought here, since it is so for ever."""
        if not scene.is_current():
            planned = [(outcome, _lasting(outcome, several)) for outcome, several in planned]
        mutations = [mutation for _, several in planned for mutation in several]
        results = iter(await self._store.apply(mutations) if mutations else [])
        for outcome, several in planned:
            for _ in several:
                result = next(results)
                if result.error is not None:
                    outcome.reason = f"this node's store refuses it ({type(result.error).__name__})"
                    outcome.restored = 0

    async def _drop_reports(self, outcomes: Sequence[Outcome]) -> None:
        done = [o.task for o in outcomes if o.task.report and not o.reason and not o.again]
        drops = [DropRepair(t.name, t.partition, *t.report) for t in done if t.report is not None]
        if drops:
            await self._store.apply(drops)


def _lasting(outcome: Outcome, planned: Sequence[Mutation]) -> Sequence[Mutation]:
    """What may still be done when another map came."""
    lasting = [mutation for mutation in planned if isinstance(mutation, Restore)]
    if len(lasting) < len(planned):
        outcome.reason = "another map came meanwhile"
    return lasting


def _some_of(nodes: Sequence[int], count: int, name: ObjectName) -> list[int]:
    """`count` of the nodes, others for another name: the load of a rebuild is everybody's."""
    start = len(name.key) + sum(name.context()[-4:])
    return [nodes[(start + place) % len(nodes)] for place in range(min(count, len(nodes)))]


def _index_of(
    view: View,
    homes: tuple[int, ...],
    sealed: Sealed,
    held: Mapping[int, StoredVersion],
    own: StoredVersion | None,
) -> int | None:
    if own is not None and own.shard_index is not None:
        return own.shard_index
    answered: dict[int, int | None] = {
        node: held[node].shard_index if node in held else None for node in homes if node in view.answers
    }
    return choose_index(view.me, homes, sealed.placement, answered)


def _placed(sealed: Sealed, view: View, homes: tuple[int, ...], index: int) -> tuple[int, ...]:
    """Where the shards lie, as far as the answers show, and this node's own."""
    placement = list(sealed.placement)
    for node, version in view.held(sealed.manifest.stamp).items():
        held = version.shard_index
        if held is not None and held < len(placement) and (node in homes or not placement[held]):
            placement[held] = node
    placement[index] = view.me
    return tuple(placement)


def _accept(
    task: Task, sealed: Sealed, index: int | None, placement: tuple[int, ...] | None = None
) -> Accept:
    manifest = sealed.manifest
    return Accept(
        task.name,
        task.partition,
        manifest.stamp,
        sealed.tombstone,
        manifest.data_id,
        sealed.raw,
        sealed.mac,
        sealed.placement if placement is None else placement,
        index,
        shard_hash=b"" if index is None else sealed.shard_hash(index),
        base=manifest.base if manifest.conditional else None,
    )


def _brought(accept: Accept, step: Step, *, replace: bool = False) -> Mutation:
    """What brings a version here: as settled, or with this node's promise."""
    if step is Step.RESTORE:
        return Restore(accept, replace)
    accept.lock, accept.overrule = True, step is Step.OVERRULE
    return accept
