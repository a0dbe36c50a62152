"""What a node answers: outcomes of operations and versions, as messages."""

from __future__ import annotations

from collections.abc import Sequence

from coffre.cluster.errors import CoffreError, InternalError
from coffre.node.store import Outcome, StoredVersion
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import vote_of

__all__ = ["batch_reply", "put_version", "refusal"]


def batch_reply(found: Sequence[pb.Outcome | None], results: Sequence[Outcome]) -> pb.BatchReply:
    """One byte for each change that was done, a whole outcome for everything else."""
    votes = bytearray()
    outcomes: list[pb.Outcome] = []
    following = iter(results)
    for outcome in found:
        if outcome is None:
            result = next(following)
            if result.error is None:
                votes.append(vote_of(result.state or 0, result.has_shard, result.replaces))
                continue
            outcome = refusal(result.error)
            outcome.newest_stamp = result.newest_stamp
            if result.state is not None:
                outcome.state = pb.State.ValueType(result.state)
        votes.append(0)
        outcomes.append(outcome)
    return pb.BatchReply(outcomes=outcomes, votes=bytes(votes))


def refusal(error: CoffreError) -> pb.Outcome:
    return pb.Outcome(
        code=error.code or InternalError.code, detail=str(error)
    )  # code 0 would say that it was done


def put_version(target: pb.Version, version: StoredVersion) -> None:
    target.state = pb.State.ValueType(version.state)
    target.stamp = version.stamp
    if not version.manifest:
        target.damaged = version.damaged
        return
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
