"""What a node answers: outcomes of operations and versions, as messages."""

from __future__ import annotations

from collections.abc import Sequence

from coffre.cluster.errors import CoffreError, IntegrityError, InternalError, NotFound
from coffre.cluster.names import ObjectName
from coffre.cluster.transport import pieces_of_range
from coffre.node.store import Outcome, ShardStore, StoredCell, StoredVersion
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import vote_of

__all__ = ["batch_reply", "cells_of_range", "put_version", "refuse"]

RANGE_BYTES_MAX = 2 << 20  # of the cells of one range: so a full reply stays below what may be sent
_VERSION_BYTES = 64  # of what a version says of itself, beside manifest and cell


def batch_reply(
    reply: pb.BatchReply, found: Sequence[pb.Outcome | None], results: Sequence[Outcome]
) -> pb.BatchReply:
    """One byte for each change that was done, a whole outcome for everything else.

    `found`: an outcome of `reply` for each operation, or None for one of `results`. Without results the reply is
    complete as it is, and nothing is copied.
    """
    if not results:
        reply.votes = bytes(len(found))
        return reply
    votes = bytearray()
    outcomes: list[pb.Outcome] = []
    following = iter(results)
    for outcome in found:
        if outcome is None:
            result = next(following)
            if result.error is None:
                votes.append(vote_of(result.state or 0, result.has_shard, result.replaces))
                continue
            outcome = pb.Outcome()
            refuse(outcome, result.error)
            outcome.newest_stamp = result.newest_stamp
            if result.state is not None:
                outcome.state = pb.State.ValueType(result.state)
        votes.append(0)
        outcomes.append(outcome)
    return pb.BatchReply(outcomes=outcomes, votes=bytes(votes))


def refuse(outcome: pb.Outcome, error: CoffreError) -> None:
    """Make an error of an outcome, whatever it was."""
    outcome.Clear()
    outcome.code = error.code or InternalError.code  # code 0 would say that it was done
    outcome.detail = str(error)


def put_version(target: pb.Version, version: StoredVersion) -> int:
    """Fill in a version; about how many bytes that are."""
    target.state = pb.State.ValueType(version.state)
    target.stamp = version.stamp
    if not version.manifest:
        target.damaged = version.damaged
        return _VERSION_BYTES
    target.sealed.manifest = version.manifest
    target.sealed.mac = version.mac
    target.sealed.placement.extend(version.placement)
    target.shard_bytes = version.shard_bytes
    target.damaged = version.damaged
    if version.condemned:
        target.condemned = True
    if version.shard_index is not None:
        target.shard_index = version.shard_index
    if version.cell is not None:
        target.cell = bytes(version.cell.data)
        target.cell_crc = version.cell.crc
        return _VERSION_BYTES + len(version.manifest) + len(version.cell.data)
    return _VERSION_BYTES + len(version.manifest)


async def cells_of_range(
    store: ShardStore, name: ObjectName, version: StoredVersion, read: pb.Read
) -> list[StoredCell]:
    """Those cells of a larger shard that a short range lies in; none where there are none to be had."""
    if version.shard_index is None or version.cell is not None or version.damaged or not version.manifest:
        return []
    manifest = pb.Manifest.FromString(version.manifest)
    if manifest.sealing != pb.SEALING_CELL:
        return []
    cells: list[StoredCell] = []
    pieces = pieces_of_range(
        manifest.size_bytes, manifest.segment_bytes, manifest.k, read.range_start, read.range_bytes
    )
    try:
        for piece in pieces:
            if piece.shard_index == version.shard_index:
                async for chunk in store.read_cells(name, version.stamp, piece.shard_index, piece.segment, 1):
                    cells += chunk
    except (IntegrityError, NotFound):
        return []  # the store has noted the damage
    return cells if sum(len(cell.data) for cell in cells) <= RANGE_BYTES_MAX else []
