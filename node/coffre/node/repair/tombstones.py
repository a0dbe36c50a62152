"""Which tombstones may be condemned, and which collected: docs/repair.md, "Tombstones"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coffre.cluster.names import ObjectName
from coffre.node.repair.scene import Scene
from coffre.node.store import SETTLED, Collect, Condemn, StoredVersion

__all__ = ["Ripe", "is_over", "ripe"]


@dataclass(slots=True)
class Ripe:
    """The next step of tombstones that are old enough."""

    condemn: list[Condemn] = field(default_factory=list)
    collect: list[Collect] = field(default_factory=list)


async def ripe(scene: Scene, partition: int, tombstones: Mapping[ObjectName, StoredVersion]) -> Ripe:
    """Decide about this node's tombstones, each the only version of its name here, settled and old enough.

    Nothing while prior placements are consulted, or unless every primary answers. Other nodes that hold rows of the
    partition are asked, too: they may have condemned it when they were primaries, and while one of them holds anything
    of the name, or a node of the map does not answer, nothing is collected.
    """
    found = Ripe()
    electorates = scene.electorates.in_partition(partition)
    if any(electorate.is_moving for electorate in electorates):
        return found
    wanted: dict[int, list[ObjectName]] = {}
    holders = {node for node, held in scene.digests.items() if partition in held}
    for name in tombstones:
        for node in holders.union(scene.electorate(name, partition).primaries) - {scene.me}:
            wanted.setdefault(node, []).append(name)
    answers, _ = await scene.asking.versions(wanted, want_cells=False)
    all_answer = set(scene.electorates.nodes()) - {scene.me} <= scene.digests.keys()
    for name, own in tombstones.items():
        others = set(scene.electorate(name, partition).primaries) - {scene.me}
        if not answers[name].keys() >= others:
            continue
        said = [answers[name][node] for node in others]
        nobody_else = all_answer and all(
            node in answers[name] and not answers[name][node] for node in holders - others - {scene.me}
        )
        if not own.condemned:
            begun = any(versions and is_over(versions, own) for versions in answers[name].values())
            if all(_holds_alone(versions, own) or (begun and not versions) for versions in said):
                found.condemn.append(Condemn(name, partition, own.stamp))
        elif nobody_else and all(is_over(versions, own) for versions in said):
            found.collect.append(Collect(name, partition, own.stamp))
    return found


def _holds_alone(versions: Sequence[StoredVersion], own: StoredVersion) -> bool:
    """The tombstone, settled, and nothing else of the name."""
    return (
        len(versions) == 1
        and versions[0].stamp == own.stamp
        and versions[0].state == SETTLED
        and versions[0].tombstone
    )


def is_over(versions: Sequence[StoredVersion], own: StoredVersion) -> bool:
    """Whether a node condemned a tombstone, too, or holds nothing of the name, as when it has collected it."""
    return not versions or (_holds_alone(versions, own) and versions[0].condemned)
