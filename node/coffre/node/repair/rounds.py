"""One comparison of a node with the other primaries of its partitions: where digests differ, rows tell what."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from coffre.cluster.errors import CoffreError, Unavailable
from coffre.cluster.names import ObjectName, partition_of
from coffre.cluster.versions import unixtime_ms_of
from coffre.node.following import AHEAD_MS_MAX
from coffre.node.repair.asking import slots_of
from coffre.node.repair.census import count_name
from coffre.node.repair.decide import is_pending, needs_look
from coffre.node.repair.electorate import Electorate
from coffre.node.repair.options import RepairOptions
from coffre.node.repair.scene import Scene, Task
from coffre.node.store import ABORTED, SETTLED, PartitionDigest, ShardStore, StoredVersion

__all__ = ["Difference", "compare", "differing"]

_log = logging.getLogger(__name__)
_FEWER = 8  # so many times fewer versions than its share are still believed of a slot
_NOTHING = PartitionDigest()
_Rows = dict[ObjectName, Sequence[StoredVersion]]


@dataclass(slots=True)
class Difference:
    """A partition of which not all primaries hold the same. `others`: nodes that hold the same among themselves, and
    not what this node does. `empty`: those that hold nothing, while this node does: they have nothing to tell.
    `complete`: R nodes of every set answered, so nothing that was complete is missed.
    `pending`: something in it is not decided yet. `own_versions`: how many this node holds."""

    partition: int
    own_versions: int = 0
    others: list[tuple[PartitionDigest, list[int]]] = field(default_factory=list)
    like_own: list[int] = field(default_factory=list)
    empty: list[int] = field(default_factory=list)
    complete: bool = False
    pending: bool = False
    counts: Counter[int] = field(
        default_factory=Counter
    )  # names by shards beyond k, as far as rows were compared

    @property
    def deviating(self) -> int:
        """How many nodes have another digest than this one, or nothing."""
        return sum(len(nodes) for _, nodes in self.others) + len(self.empty)

    @property
    def in_step(self) -> bool:
        """Whether all that answered have the same."""
        return not self.others and not self.empty


def differing(scene: Scene, own: dict[int, PartitionDigest], partition: int) -> Difference:
    """Compare a partition's digests with those of the primaries that answered.

    While the map changes every node counts as deviating, unless nobody holds anything: votes on versions matter then,
    and digests leave them out.
    """
    electorates = scene.electorates.in_partition(partition)
    members = frozenset(node for electorate in electorates for node in electorate.everyone)
    members |= scene.electorates.homes_in_partition(partition)
    mine = own.get(partition, _NOTHING)
    theirs = {
        node: scene.digests[node].get(partition, _NOTHING)
        for node in sorted(members - {scene.me})
        if node in scene.digests
    }
    moving = any(electorate.is_moving for electorate in electorates)
    by_rows = moving and any(digest.versions for digest in (mine, *theirs.values()))
    difference = Difference(partition, mine.versions)
    groups: dict[tuple[bytes, int], tuple[PartitionDigest, list[int]]] = {}
    for node, digest in theirs.items():
        if not by_rows and digest.digest == mine.digest:
            difference.like_own.append(node)
        elif not by_rows and not digest.versions:
            difference.empty.append(node)
        else:
            group = groups.setdefault((digest.digest, node if by_rows else 0), (digest, []))
            group[1].append(node)
    difference.others = list(groups.values())
    answered = scene.digests.keys() | {scene.me}
    difference.complete = all(electorate.is_heard_from(answered) for electorate in electorates)
    return difference


async def compare(
    store: ShardStore, scene: Scene, options: RepairOptions, difference: Difference, now_ms: int
) -> AsyncIterator[Task]:
    """The names of a partition that this node has to look at; one may come twice.

    When a node that says it holds the most does not show it, the partition is compared anew without that node. Raises
    `Unavailable` when nobody is left, `CoffreError` when no row can be had.
    """
    while difference.others:
        slots = slots_of(max(difference.own_versions, *(digest.versions for digest, _ in difference.others)))
        for slot in range(slots):
            own: _Rows = {
                row.name: row.versions
                async for rows in store.partition_rows(difference.partition, slot=slot, slots=slots)
                for row in rows
            }
            theirs = await _rows_of_others(scene, difference, slot, slots)
            if theirs is None:
                break
            names = own.keys() | {name for _, rows in theirs for name in rows}
            for name in sorted(names, key=ObjectName.context):
                _count(scene, difference, name, own.get(name, ()), theirs)
                task = _task(scene, options, difference, name, own.get(name, ()), theirs, now_ms)
                if task is not None:
                    yield task
        else:
            return
        if difference.counts is not None:
            difference.counts = Counter()
    raise Unavailable("nobody shows what it holds of a partition")


async def _rows_of_others(
    scene: Scene, difference: Difference, slot: int, slots: int
) -> list[tuple[list[int], _Rows]] | None:
    """The rows of everybody who differs and answers.

    None: a node for whose sake there are so many slots has far too few rows in this one, and was left out. Else it
    could keep this node busy for ever with what it does not have, and then nothing is repaired.
    """
    asked = list(difference.others)
    answers = await asyncio.gather(
        *(_rows_of_any(scene, nodes, difference.partition, slot, slots) for _, nodes in asked)
    )
    found: list[tuple[list[int], _Rows]] = []
    for group, rows in zip(asked, answers, strict=True):
        digest, nodes = group
        if rows is None:
            difference.complete = False
        else:
            found.append((nodes, rows))
        shown = 0 if rows is None else sum(map(len, rows.values()))
        if slots_of(difference.own_versions) < slots_of(digest.versions) == slots and (
            shown * slots * _FEWER < digest.versions
        ):
            peers = [scene.asking.called(node) for node in nodes]
            _log.warning("a node does not show what its digest says", extra={"peers": peers})
            difference.others.remove(group)
            difference.complete = False
            return None
    return found


def _count(
    scene: Scene,
    difference: Difference,
    name: ObjectName,
    own: Sequence[StoredVersion],
    theirs: Sequence[tuple[list[int], _Rows]],
) -> None:
    if difference.counts is None:
        return
    held = [(nodes, rows.get(name, ())) for nodes, rows in theirs]
    held.append((difference.like_own, own))
    spare = count_name(scene, name, difference.partition, own, held)
    if spare is not None:
        difference.counts[spare] += 1


async def _rows_of_any(
    scene: Scene, nodes: Sequence[int], partition: int, slot: int, slots: int
) -> _Rows | None:
    """The rows of one of several nodes that hold the same."""
    for node in nodes:
        try:
            rows = scene.asking.rows(node, partition, slot, slots)
            return {row.name: row.versions async for row in rows}
        except CoffreError as error:
            about = {"peer": scene.asking.called(node), "error": type(error).__name__, "reason": str(error)}
            _log.info("no rows of a node", extra=about)
    return None


def _task(
    scene: Scene,
    options: RepairOptions,
    difference: Difference,
    name: ObjectName,
    own: Sequence[StoredVersion],
    theirs: Sequence[tuple[list[int], _Rows]],
    now_ms: int,
) -> Task | None:
    old_ms, ahead_ms = now_ms - int(options.unfinished_seconds * 1000), now_ms + AHEAD_MS_MAX
    electorate = scene.electorate(name, difference.partition)
    is_primary = scene.me in electorate.primaries
    keeps = is_primary or scene.electorates.is_home(scene.me, name.tenant, name.bucket, difference.partition)
    if not keeps and scene.me not in electorate.everyone:
        return None
    answers = [(nodes, rows.get(name, ())) for nodes, rows in theirs]
    fresh_ms = scene.fresh_ms
    told = () if is_primary else answers
    undecided = _is_undecided(electorate, fresh_ms, own, [([scene.me], own), *answers], told)
    difference.pending |= undecided
    if not keeps and not undecided:
        return None  # a primary of before has votes to give, and nothing to take
    if not any(
        needs_look(own, other, old_ms, ahead_ms=ahead_ms, changing=electorate.is_moving, complete=scene.bare)
        for _, other in answers
    ):
        return None
    if partition_of(name, scene.electorates.map.partitions) != difference.partition:
        _log.warning("another node names an object in a partition that is not its own")
        return None
    newest = max(
        (v.stamp for _, rows in theirs for v in rows.get(name, ()) if v.state == SETTLED), default=b""
    )
    if newest and unixtime_ms_of(newest) > now_ms - int(options.settling_seconds * 1000):
        difference.pending |= fresh_ms is None or unixtime_ms_of(newest) <= fresh_ms
        return None  # it may be on its way here
    sources: list[int] = []
    for nodes, rows in theirs:
        if _has_shard(rows.get(name, ()), newest):
            sources += nodes
    if _has_shard(own, newest):
        sources += difference.like_own
    quick = sources if newest and len(sources) >= electorate.k else []
    copy_of = None
    if quick and electorate.is_moving:
        held = {node: _shard_index(rows.get(name, ()), newest) for nodes, rows in theirs for node in nodes}
        copy_of = _holder_of_own(scene.me, electorate.primaries, held)
    return Task(name, difference.partition, len(sources), tuple(quick), copy_of=copy_of)


def _is_undecided(
    electorate: Electorate,
    fresh_ms: int | None,
    own: Sequence[StoredVersion],
    answers: Sequence[tuple[Sequence[int], Sequence[StoredVersion]]],
    told: Sequence[tuple[Sequence[int], Sequence[StoredVersion]]],
) -> bool:
    """Whether a version that does not come after `fresh_ms` is not decided yet. `answers`: this node's, too.

    What this node has as settled is decided, and so is what it refuses itself and is dead by the votes of others:
    whoever is no primary any more may have missed either, and nobody tells it again. `told`: the answers of others, for
    a node that is no primary any more and need not hold anything newer: it goes by what those who decide have as
    settled.
    """
    settled = max((v.stamp for v in own if v.state == SETTLED), default=b"")
    for nodes, versions in told:
        if electorate.everyone.intersection(nodes):
            settled = max([settled, *(v.stamp for v in versions if v.state == SETTLED)])
    left = [
        [
            v
            for v in versions
            if v.stamp > settled and (fresh_ms is None or unixtime_ms_of(v.stamp) <= fresh_ms)
        ]
        for _, versions in answers
    ]
    if not any(map(is_pending, left)):
        return False
    refused: dict[bytes, set[int]] = {v.stamp: set() for v in own if v.state == ABORTED}
    for nodes, versions in answers:
        for version in versions:
            if version.state == ABORTED and version.stamp in refused:
                refused[version.stamp].update(nodes)
    dead = {stamp for stamp, nodes in refused.items() if electorate.is_dead_by(nodes)}
    return any(is_pending([v for v in versions if v.stamp not in dead]) for versions in left)


def _holder_of_own(me: int, primaries: Sequence[int], held: Mapping[int, int | None]) -> int | None:
    """The node whose shard is the one that this node will take, where it is the only primary without one.

    `held`: shard index by node that answered.
    """
    if any(held.get(node) is None for node in primaries if node != me):
        return None
    free = set(range(len(primaries))) - {held[node] for node in primaries if node != me}
    return next((node for node, index in held.items() if free == {index}), None)


def _shard_index(versions: Collection[StoredVersion], stamp: bytes) -> int | None:
    return next((v.shard_index for v in versions if v.stamp == stamp and v.state != ABORTED), None)


def _has_shard(versions: Collection[StoredVersion], stamp: bytes) -> bool:
    return any(
        v.stamp == stamp and v.state != ABORTED and (v.shard_index is not None or v.tombstone)
        for v in versions
    )
