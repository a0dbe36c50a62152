"""What a store takes: sizes are checked before memory or disk is given, whatever the caller checked
before."""

from __future__ import annotations

from hashlib import blake2b

from coffre.cluster.errors import CoffreError, IntegrityError, InvalidArgument
from coffre.cluster.names import check_tenant
from coffre.codec import crc32c
from coffre.node.store import Abort, Accept, DropRepair, Mark, Mutation, QueueRepair, Settle

__all__ = [
    "CELL_BYTES_MAX",
    "CHUNK_BYTES",
    "DATA_ID_BYTES",
    "RETRY_SECONDS",
    "STAMP_BYTES",
    "check",
    "check_stage",
    "digest_of",
    "digest_xor",
]

STAMP_BYTES = 16
DATA_ID_BYTES = 16
MAC_BYTES_MAX = 255
MANIFEST_BYTES_MAX = 0xFFFF
CELL_BYTES_MAX = 8 << 20
SHARDS_MAX = 255
NUMBER_MAX = 0xFFFF  # node numbers and partitions
CHUNK_BYTES = 1 << 20
RETRY_SECONDS = 600.0  # how long a shard that a version gave back waits for its writer's next stamp


def check(mutation: Mutation) -> CoffreError | None:
    """The error in a mutation that no store can take, or None."""
    if len(mutation.stamp) != STAMP_BYTES:
        return InvalidArgument(f"a stamp has {STAMP_BYTES} bytes, not {len(mutation.stamp)}")
    if isinstance(mutation, Mark):
        return _check_tenant(mutation.tenant)
    if not 0 <= mutation.partition <= NUMBER_MAX:
        return InvalidArgument(f"a partition is between 0 and {NUMBER_MAX}, not {mutation.partition}")
    if isinstance(mutation, Accept):
        return _check_accept(mutation)
    if isinstance(mutation, Settle):
        return _check_placement(mutation.placement)
    if isinstance(mutation, Abort):
        return None
    if isinstance(mutation, (QueueRepair, DropRepair)):
        return _check_shard_index(mutation.shard_index)
    return InvalidArgument(f"{type(mutation).__name__} is not a mutation")


def _check_tenant(tenant: str) -> CoffreError | None:
    try:
        check_tenant(tenant)
    except InvalidArgument as error:
        return error
    return None


def _check_accept(accept: Accept) -> CoffreError | None:
    if not 0 < len(accept.manifest) <= MANIFEST_BYTES_MAX or len(accept.mac) > MAC_BYTES_MAX:
        return InvalidArgument(f"a manifest has 1 to {MANIFEST_BYTES_MAX} bytes")
    if len(accept.data_id) != DATA_ID_BYTES:
        return InvalidArgument(f"a data id has {DATA_ID_BYTES} bytes, not {len(accept.data_id)}")
    if accept.shard_index is None:
        if accept.cell or accept.staged:
            return InvalidArgument("a shard needs an index")
        return _check_placement(accept.placement)
    if accept.tombstone:
        return InvalidArgument("a tombstone has no shard")
    if len(accept.cell) > CELL_BYTES_MAX:
        return InvalidArgument(f"a cell has at most {CELL_BYTES_MAX} bytes")
    if accept.staged:
        if accept.cell:
            return InvalidArgument("a staged shard brings no cell")
    elif crc32c(accept.cell) != accept.cell_crc:
        return IntegrityError("the cell does not have its checksum: damaged on the way")
    return _check_shard_index(accept.shard_index) or _check_placement(accept.placement)


def _check_shard_index(shard_index: int | None) -> CoffreError | None:
    if shard_index is None or 0 <= shard_index < SHARDS_MAX:
        return None
    return InvalidArgument(f"a shard index is below {SHARDS_MAX}, not {shard_index}")


def _check_placement(placement: tuple[int, ...]) -> CoffreError | None:
    if not placement:
        return None
    if len(placement) > SHARDS_MAX or min(placement) < 0 or max(placement) > NUMBER_MAX:
        return InvalidArgument(f"a placement has at most {SHARDS_MAX} node numbers up to {NUMBER_MAX}")
    return None


def check_stage(data_id: bytes, shard_index: int) -> None:
    """Raise `InvalidArgument` for a shard that cannot be staged."""
    if len(data_id) != DATA_ID_BYTES:
        raise InvalidArgument(f"a data id has {DATA_ID_BYTES} bytes, not {len(data_id)}")
    error = _check_shard_index(shard_index)
    if error is not None:
        raise error


def digest_of(context: bytes, stamp: bytes, tombstone: bool) -> int:
    """What one version adds (by XOR) to its partition's digest: BLAKE2b-128 over name, stamp and kind."""
    kind = b"\2" if tombstone else b"\1"
    return int.from_bytes(blake2b(context + b"\0" + stamp + kind, digest_size=16).digest(), "big")


def digest_xor(digest: bytes, delta: int) -> bytes:
    """`digest` (16 bytes) with `delta` XORed in."""
    return (int.from_bytes(digest, "big") ^ delta).to_bytes(16, "big")
