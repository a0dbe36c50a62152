"""What answers to a Read allow to conclude, and what not (docs/consistency.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from coffre.client._streams import SEGMENT_BYTES
from coffre.client.reading._replies import Replies, aborting, holding, shards_of
from coffre.client.sealing import OpenManifest
from coffre.cluster.errors import (
    CoffreError,
    DeadlineExceeded,
    IntegrityError,
    PermissionDenied,
    PolicyViolation,
    StaleMap,
    Unavailable,
    details_of,
)
from coffre.cluster.map import Electorate, Placement
from coffre.cluster.names import ObjectName
from coffre.cluster.transport import pieces_of_range
from coffre.proto import coffre_pb2 as pb

__all__ = [
    "alike",
    "expected_cells",
    "is_kept",
    "is_lost",
    "is_unlocked_recoding",
    "lawful",
    "may_turn_on_shards",
    "never_acknowledged",
    "require_quorum",
    "unreadable",
]


def require_quorum(electorate: Electorate, replies: Replies, errors: Sequence[CoffreError] = ()) -> None:
    """Raises `Unavailable` when too few nodes have answered to say anything, with what they said instead."""
    if electorate.is_heard_from(replies):
        return
    kinds = Counter(type(error) for error in errors)
    kind: type[CoffreError] = Unavailable
    if StaleMap in kinds:
        kind = StaleMap
    elif len(kinds) == 1 or kinds[PermissionDenied] > len(electorate.everyone) - electorate.read:
        kind = kinds.most_common(1)[0][0]  # it would not help if the others answered
    if issubclass(kind, (DeadlineExceeded, Unavailable)):
        kind = Unavailable  # whether they hang or are gone
    why = f" ({errors[0]})" if errors else ""
    raise kind(
        f"{len(replies)} of the object's {len(electorate.everyone)} nodes answer; "
        f"{electorate.read} are needed{why}",
        details=details_of(errors),
    )


def alike(copies: Mapping[int, pb.Version]) -> dict[int, pb.Version]:
    """Those nodes whose copy of a version's manifest, and seal, most of them have."""
    sealed = {node: (copy.sealed.manifest, copy.sealed.mac) for node, copy in copies.items()}
    ((most, _),) = Counter(sealed.values()).most_common(1)
    return {node: copies[node] for node, copy in sealed.items() if copy == most}


def unreadable(name: ObjectName, refusals: Sequence[CoffreError]) -> CoffreError:
    """Why no copy of a manifest can be opened: what the first was refused with, or else all are damaged."""
    damaged = f"{name.bucket}/{name.key}: every copy of the newest version's manifest is damaged"
    return refusals[0] if refusals else IntegrityError(damaged)


def lawful(
    rules: Placement | None,
    primaries: Sequence[int],
    holders: Mapping[int, pb.Version],
    *,
    staged: bool = False,
) -> list[int]:
    """Where the shards of a version are to be: the placement with most of them in place that keeps the policy that it
    is coded by, if there still is one. `primaries`: where they belong. `staged`: of two that are as good, one of its
    writer, who may have staged shards there.

    A node that answered too late holds its shard as well as its substitute does, so what all hold together
    may be more than the policy allows, though every placement that the writer chose was lawful.
    """
    n = len(primaries)
    held = {node: version.shard_index for node, version in holders.items() if version.HasField("shard_index")}
    everywhere = list(primaries)
    for node, index in held.items():
        everywhere[index] = node
    choices = [everywhere]
    for version in holders.values():
        placement = list(version.sealed.placement)
        if len(placement) == n and placement not in choices:
            choices.append(placement)
    if staged:
        choices.append(choices.pop(0))
    choices.sort(key=lambda places: -sum(held.get(node) == index for index, node in enumerate(places)))
    if rules is None:
        return choices[0]
    for placement in choices:
        try:
            rules.check(placement)
        except PolicyViolation:
            continue
        return placement
    return list(primaries)


def expected_cells(want_range: range, k: int) -> set[int]:
    """The data cells that a range lies in, if the object is as this client writes them and goes on behind.

    What is expected decides only who is asked first, and for whose answer there is a short wait.
    """
    end = (want_range.stop // SEGMENT_BYTES + 1) * SEGMENT_BYTES
    pieces = pieces_of_range(end, SEGMENT_BYTES, k, want_range.start, len(want_range))
    return {piece.shard_index for piece in pieces}


def is_lost(opened: OpenManifest, replies: Replies, asked: Collection[int]) -> bool:
    """Whether fewer than k shards of a version can be had, whoever holds its manifest.

    `asked`: all nodes that may hold one. The object's own k counts, whatever codes its bucket now.
    """
    if opened.tombstone:
        return False
    silent = len(set(asked) - replies.keys())
    return len(shards_of(opened.stamp.to_bytes(), replies)) + silent < opened.manifest.k


def is_unlocked_recoding(electorate: Electorate, opened: OpenManifest, replies: Replies) -> bool:
    """Whether this is a version coded anew of which it is certain that it is not established: those are by LOCKED votes
    alone (docs/recoding.md), and too few may have locked it."""
    if not opened.manifest.recodes:
        return False
    held = holding(opened.stamp.to_bytes(), replies)
    locked = {node for node, version in held.items() if version.state >= pb.STATE_LOCKED}
    return not electorate.may_be_established(electorate.everyone - replies.keys() | locked)


def may_turn_on_shards(
    electorate: Electorate, opened: OpenManifest, replies: Replies, beyond: Replies
) -> bool:
    """Whether W may hold a version of which so few shards, whole or damaged, are known that it may never have been
    acknowledged: fewer than D, or while the map changes fewer than k."""
    if opened.tombstone:
        return False
    holders = holding(opened.stamp.to_bytes(), replies)
    if not electorate.may_be_established((electorate.everyone - replies.keys()).union(holders)):
        return False
    bar = opened.manifest.k + (not electorate.is_moving)
    return len(_shards(opened, replies, beyond)) < bar


def never_acknowledged(
    electorate: Electorate,
    opened: OpenManifest,
    replies: Replies,
    beyond: Replies,
    others: Collection[int],
    departed: int,
    *,
    refused: bool = False,
) -> bool:
    """Whether neither its writer nor a reader can have seen the version at the bar.

    A damaged copy counts as what it was: rot must not make an acknowledged version look like none. `others`: nodes that
    decide nothing and may hold a shard; `beyond`: what they answered. Where it `may_turn_on_shards`, `others` are all
    nodes that the map consults. `departed`: how many nodes were taken out before, each of which may have had one.

    `refused`: by somebody, and it is not dead by that. Then it is not counted how many shards an acknowledgement takes,
    since silence may hide one from one reader and not from the next, and all are to decide alike.
    """
    stamp = opened.stamp.to_bytes()
    silent = electorate.everyone - replies.keys()
    holders = holding(stamp, replies)
    if not electorate.may_be_established(silent.union(holders)):
        return True
    if not may_turn_on_shards(electorate, opened, replies, beyond):
        return False
    k = opened.manifest.k
    held = (*holders.values(), *holding(stamp, beyond).values())
    unknown = sum(version.damaged and not version.HasField("shard_index") for version in held)
    may_hold = silent.union(others)
    may_hold = may_hold.union(*(version.sealed.placement for version in held))
    possible = (
        len(_shards(opened, replies, beyond)) + unknown + len(may_hold - replies.keys() - beyond.keys())
    )
    locked = {node for node, version in holders.items() if version.state == pb.STATE_LOCKED}
    unlocked = not electorate.may_be_established(silent | locked)
    few = possible + departed < k + 1 and not refused
    if electorate.is_moving:  # of k shards on locked nodes one may have gone with a node that was taken out
        return possible + departed < k or (unlocked and (possible < k or few))
    return possible < k or (unlocked and few)


def is_kept(
    electorate: Electorate, lost: Collection[int], opened: OpenManifest, replies: Replies, beyond: Replies
) -> bool:
    """Whether, while the map changes, a version can never be dead, and locked nodes have k shards of it."""
    stamp = opened.stamp.to_bytes()
    held = (*holding(stamp, replies).items(), *holding(stamp, beyond).items())
    locked = {node: version for node, version in held if version.state == pb.STATE_LOCKED}
    shards = {v.shard_index for v in locked.values() if v.HasField("shard_index") and not v.damaged}
    if not opened.tombstone and len(shards) < opened.manifest.k:
        return False
    aborted = aborting(stamp, replies)
    return electorate.is_moving and electorate.is_kept(lost, locked, aborted)


def _shards(opened: OpenManifest, replies: Replies, beyond: Replies) -> set[int]:
    """The distinct shards of a version that nodes say they hold, damaged ones too."""
    stamp = opened.stamp.to_bytes()
    held = (*holding(stamp, replies).values(), *holding(stamp, beyond).values())
    return {version.shard_index for version in held if version.HasField("shard_index")}
