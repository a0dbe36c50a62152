"""What a node holds for others goes only when every primary has it, and the shard was read back from one of them. Where
they cannot get it without that shard, it is promised first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing

from coffre.cluster.errors import CoffreError
from coffre.cluster.names import ObjectName
from coffre.codec import ShardHash, blake3_128
from coffre.node.repair.asking import Answers
from coffre.node.repair.decide import Step, decide, is_dead, is_never_acknowledged, other_indexes
from coffre.node.repair.options import RepairOptions
from coffre.node.repair.rebuild import Sealed, best_manifest, small_shard
from coffre.node.repair.scene import Scene
from coffre.node.repair.tombstones import is_over
from coffre.node.repair.view import View
from coffre.node.store import ABORTED, SETTLED, Forget, Lock, PartitionRow, ShardStore, StoredVersion

__all__ = ["releasable"]

_log = logging.getLogger(__name__)


async def releasable(
    store: ShardStore,
    scene: Scene,
    options: RepairOptions,
    partition: int,
    rows: Sequence[PartitionRow],
    now_ms: int | None,
    breaches: Counter[str],
) -> tuple[list[Forget], list[Lock]]:
    """Of rows of a partition that this node is no primary of: those that may be forgotten, with all that they had, and
    promises. W primaries may have locked an older version that is kept, and lack shards without this node's: they bring
    it to all when k shards of it are on nodes that locked it.

    Of those that stay, `breaches` counts the ones whose shards lie, with this node's, where the policy forbids it.
    """
    if any(electorate.is_moving for electorate in scene.electorates.in_partition(partition)):
        return [], []
    own = {row.name: await store.read(row.name, every=True) for row in rows}
    homes = {name: _homes(scene, partition, versions) for name, versions in own.items()}
    wanted: dict[int, list[ObjectName]] = {}
    for row in rows:
        for node in {*scene.electorate(row.name, partition).primaries, *homes[row.name]} - {scene.me}:
            wanted.setdefault(node, []).append(row.name)
    answers, _ = await scene.asking.versions(wanted, want_cells=True)
    forget: list[Forget] = []
    promises: list[Lock] = []
    for row in rows:
        electorate = scene.electorate(row.name, partition)
        said = answers[row.name]
        if not said.keys() >= set(electorate.primaries):
            _note_breach(scene, row.name, own[row.name], said, breaches)
            continue
        view = View(
            scene.me,
            electorate,
            {**said, scene.me: own[row.name]},
            now_ms,
            scene.electorates.versions_kept(row.name.tenant, row.name.bucket),
            # Only primaries were asked: any understudy may hold a shard.
            silent_elsewhere=len(electorate.primaries),
            unfinished_seconds=options.unfinished_seconds,
            homes=scene.homes(partition),
            punctual=scene.punctual,
        )
        if await _all_safe(scene, options, row.name, view, said) or await _is_over(scene, row.name, view):
            forget.append(Forget(row.name, partition, tuple(version.stamp for version in view.own)))
        else:
            promises += [Lock(row.name, partition, a.stamp) for a in decide(view) if a.step is Step.LOCK]
            _note_breach(scene, row.name, own[row.name], said, breaches)
            await _tell_of_repeated(scene, row.name, view)
    return forget, promises


def _homes(scene: Scene, partition: int, versions: Sequence[StoredVersion]) -> set[int]:
    """The nodes to which shards of these versions belong, by their k and m."""
    found: set[int] = set()
    for version in versions:
        sealed = best_manifest([version], version.stamp)
        if sealed is not None and not sealed.tombstone:
            found.update(scene.electorates.homes(sealed.manifest.k, sealed.manifest.m, partition))
    return found


def _note_breach(
    scene: Scene,
    name: ObjectName,
    versions: Sequence[StoredVersion],
    said: Answers,
    breaches: Counter[str],
) -> None:
    """What is against the bucket's policy in where the newest version lies that this node holds a shard of."""
    own = [v for v in versions if v.state != ABORTED and v.shard_index is not None]
    newest = max(own, key=lambda version: version.stamp, default=None)
    sealed = None if newest is None else best_manifest([newest], newest.stamp)
    placement = scene.electorates.placement(name.tenant, name.bucket)
    coding = placement.policy.k, placement.policy.m
    if newest is None or sealed is None or (sealed.manifest.k, sealed.manifest.m) != coding:
        return  # coded by another policy, it lies by that one
    held = {
        node: version.shard_index
        for node, some in {**said, scene.me: own}.items()
        for version in some
        if version.stamp == newest.stamp and version.state != ABORTED and version.shard_index is not None
    }
    breach = placement.breach(held)
    if breach is not None:
        breaches[breach] += 1


async def _tell_of_repeated(scene: Scene, name: ObjectName, view: View) -> None:
    """Where no primary has the shard that is held here, since two of them have another one: tell the later one to look
    for itself (duplicates.py), rather than wait until the first primary finds it."""
    for version in view.own:
        sealed = best_manifest([version], version.stamp)
        if sealed is None or (sealed.manifest.k, sealed.manifest.m) != (view.electorate.k, view.electorate.m):
            continue
        instead = other_indexes(view, version.stamp)
        if version.shard_index not in instead.values():
            continue
        held = view.held(version.stamp)
        for node in instead:
            repeated = held[node].shard_index
            assert repeated is not None
            try:
                await scene.asking.report(node, name, version.stamp, repeated)
            except CoffreError as error:
                _log.info("a repeated shard is told of later", extra={"error": type(error).__name__})


async def _all_safe(
    scene: Scene, options: RepairOptions, name: ObjectName, view: View, said: Answers
) -> bool:
    primaries = [said[node] for node in view.electorate.primaries]
    for version in view.own:
        if version.state == ABORTED or is_dead(view, version.stamp):
            continue
        if all(_overtaken(versions, version.stamp) for versions in primaries):
            continue
        if view.me in view.homes_of(view.coding_of(version.stamp)):
            return False  # it is at its place, though this node is no primary of the name
        if all(_settled(versions, version.stamp) for versions in primaries):
            if await _read_back(scene, options, name, version, said):
                continue
            return False
        if (
            version.state != SETTLED
            and view.is_old(version.stamp)
            and is_never_acknowledged(view, version.stamp)
        ):
            continue
        return False
    return True


async def _is_over(scene: Scene, name: ObjectName, view: View) -> bool:
    """Whether a tombstone, all that is held here of a name, was condemned, and no node of the map could bring back what
    it deleted: each answers that it holds nothing of the name, or the condemned tombstone alone."""
    tombstone = view.own[0]
    others = {node: versions for node, versions in view.answers.items() if node != scene.me}
    begun = tombstone.condemned or any(v.condemned for versions in others.values() for v in versions)
    if len(view.own) > 1 or not tombstone.tombstone or not begun:
        return False
    if not all(is_over(versions, tombstone) for versions in others.values()):
        return False
    rest = set(scene.electorates.nodes()) - view.answers.keys()
    answers, _ = await scene.asking.versions({node: [name] for node in rest}, want_cells=False)
    said = answers[name] if rest else {}
    return said.keys() == rest and all(is_over(versions, tombstone) for versions in said.values())


def _settled(versions: Sequence[StoredVersion], stamp: bytes) -> bool:
    return any(v.stamp == stamp and v.state == SETTLED for v in versions)


def _overtaken(versions: Sequence[StoredVersion], stamp: bytes) -> bool:
    """Trimmed below a newer settled version, or never taken: a vote against it may outlive both."""
    newer = any(v.stamp > stamp and v.state == SETTLED for v in versions)
    return newer and not any(v.stamp == stamp and v.state != ABORTED for v in versions)


async def _read_back(
    scene: Scene, options: RepairOptions, name: ObjectName, own: StoredVersion, said: Answers
) -> bool:
    """Whether the shard that this node holds can be read from a primary, bytes and checksum."""
    if own.shard_index is None:
        return True
    every = [v for versions in said.values() for v in versions]
    sealed = best_manifest(every, own.stamp)
    if sealed is None:
        return False
    if sealed.one_cell:
        held = [v for v in every if v.stamp == own.stamp and v.shard_index == own.shard_index]
        return small_shard(sealed, own.shard_index, held) is not None
    for node, versions in said.items():
        if any(v.stamp == own.stamp and v.shard_index == own.shard_index for v in versions) and (
            await _large_is_whole(scene, options, node, name, sealed, own.shard_index)
        ):
            return True
    return False


async def _large_is_whole(
    scene: Scene, options: RepairOptions, node: int, name: ObjectName, sealed: Sealed, index: int
) -> bool:
    shard = ShardHash()
    chunks = scene.asking.cells(node, name, sealed.manifest.stamp, index, 0)
    try:
        async with aclosing(chunks) as stream:  # type: ignore[type-var]  # an async generator
            while True:
                async with asyncio.timeout(options.timeout):
                    cells = await anext(stream, None)
                if not cells:
                    break
                for cell in cells:
                    if cell.segment != shard.cell_count or shard.cell_count == sealed.segments:
                        return False
                    shard.add(blake3_128(cell.data))
    except (CoffreError, TimeoutError) as error:
        _log.info("a shard cannot be read back", extra={"error": type(error).__name__})
        return False
    return shard.cell_count == sealed.segments and shard.digest() == sealed.shard_hash(index)
