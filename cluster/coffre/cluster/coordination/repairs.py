"""Who repairs a partition: one node at a time, with a small note of how far it came."""

from __future__ import annotations

from dataclasses import dataclass, replace

from coffre.cluster.coordination._values import decode, encode, read_all
from coffre.cluster.coordination.seam import Compare, Coordination, Entry, Put
from coffre.cluster.coordination.sessions import Session
from coffre.cluster.errors import InvalidArgument, NotFound, Unavailable
from coffre.proto import coordination_pb2 as pb

__all__ = ["PROGRESS_BYTES_MAX", "RepairLease", "claim_repair", "release_repair", "repairs", "report_repair"]

PROGRESS_BYTES_MAX = 1024
REPAIRS = "repair/"


@dataclass(frozen=True, slots=True)
class RepairLease:
    """`token`: higher than that of every earlier holder. `revision`: of the last report."""

    partition: int
    node: int
    progress: bytes
    token: int
    revision: int


def _key(partition: int) -> str:
    return f"{REPAIRS}{partition:05}"


def _value(node: int, progress: bytes) -> bytes:
    if len(progress) > PROGRESS_BYTES_MAX:
        raise InvalidArgument(f"progress has at most {PROGRESS_BYTES_MAX} bytes")
    return encode(pb.RepairClaim(node=node, progress=progress))


async def claim_repair(
    coordination: Coordination, session: Session, partition: int, node: int
) -> RepairLease | None:
    """Become the one who repairs `partition`; None when another does. It ends with the session."""
    key, lease = _key(partition), await session.lease()
    try:
        done = await coordination.commit([Compare(key, 0)], [Put(key, _value(node, b""), lease)])
    except NotFound:
        session.drop()
        raise Unavailable("the session of this node ended: claim again") from None
    return RepairLease(partition, node, b"", done.revision, done.revision) if done.succeeded else None


async def report_repair(
    coordination: Coordination, session: Session, held: RepairLease, progress: bytes
) -> RepairLease:
    """Note how far it came. Raises `Unavailable` when the lease was lost: stop, another may be at work."""
    key, lease = _key(held.partition), await session.lease()
    done = await coordination.commit(
        [Compare(key, held.revision)], [Put(key, _value(held.node, progress), lease)]
    )
    if not done.succeeded:
        raise Unavailable(f"the repair of partition {held.partition} is not this node's any more")
    return replace(held, progress=progress, revision=done.revision)


async def release_repair(coordination: Coordination, held: RepairLease) -> None:
    """Let others have it. What was lost already is left alone."""
    await coordination.commit([Compare(_key(held.partition), held.revision)], deletes=[_key(held.partition)])


async def repairs(coordination: Coordination) -> list[RepairLease]:
    """All repairs under way, by partition."""
    return [_read(entry) for entry in await read_all(coordination, REPAIRS)]


def _read(entry: Entry) -> RepairLease:
    value = decode(pb.RepairClaim, entry.value)
    partition = int(entry.key.removeprefix(REPAIRS))
    return RepairLease(partition, value.node, value.progress, entry.created, entry.modified)
