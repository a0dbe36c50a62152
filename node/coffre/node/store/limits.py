"""What a store takes: sizes are checked before memory or disk is given, whatever the caller checked
before."""

from __future__ import annotations

import struct
from functools import lru_cache
from hashlib import blake2b

from coffre.cluster.errors import CoffreError, IntegrityError, InvalidArgument
from coffre.cluster.names import check_tenant
from coffre.codec import blake3_128, crc32c
from coffre.node.store.seam import (
    Abort,
    Accept,
    Collect,
    Condemn,
    Drop,
    DropRepair,
    Forget,
    Lock,
    Mark,
    Mutation,
    QueueRepair,
    Refuse,
    Restore,
    Settle,
)

__all__ = [
    "CELL_BYTES_MAX",
    "CHUNK_BYTES",
    "DATA_ID_BYTES",
    "RETRY_SECONDS",
    "ROWS_AT_ONCE",
    "STAMP_BYTES",
    "check",
    "check_stage",
    "digest_of",
    "digest_xor",
    "kind_of",
    "placement_bytes",
    "placement_of",
    "slot_of",
]

STAMP_BYTES = 16
DATA_ID_BYTES = 16
MAC_BYTES_MAX = 255
MANIFEST_BYTES_MAX = 0xFFFF
CELL_BYTES_MAX = 8 << 20
SHARDS_MAX = 255
NUMBER_MAX = 0xFFFF  # node numbers and partitions
CHUNK_BYTES = 1 << 20
ROWS_AT_ONCE = 256  # of a partition, in one piece
OBJECT, TOMBSTONE, OBJECT_WITHOUT_SHARD = 1, 2, 3  # kinds, as digests count them
RETRY_SECONDS = 600.0  # how long a shard that a version gave back waits for its writer's next stamp


def check(mutation: Mutation) -> CoffreError | None:
    """The error in a mutation that no store can take, or None."""
    if type(mutation) is Accept:
        return _check_accept(mutation)
    if isinstance(mutation, Restore):
        return _check_accept(mutation.accept)
    if isinstance(mutation, Forget):
        bad = next((stamp for stamp in mutation.stamps if len(stamp) != STAMP_BYTES), None)
        return None if bad is None else _bad_stamp(bad)
    if len(mutation.stamp) != STAMP_BYTES:
        return _bad_stamp(mutation.stamp)
    if isinstance(mutation, Mark):
        return _check_tenant(mutation.tenant)
    if not 0 <= mutation.partition <= NUMBER_MAX:
        return _bad_partition(mutation.partition)
    if isinstance(mutation, Settle):
        return _check_placement(mutation.placement)
    if isinstance(mutation, (Abort, Refuse, Lock, Drop, Condemn, Collect)):
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


def _bad_stamp(stamp: bytes) -> CoffreError:
    return InvalidArgument(f"a stamp has {STAMP_BYTES} bytes, not {len(stamp)}")


def _bad_partition(partition: int) -> CoffreError:
    return InvalidArgument(f"a partition is between 0 and {NUMBER_MAX}, not {partition}")


def _check_accept(accept: Accept) -> CoffreError | None:
    if len(accept.stamp) != STAMP_BYTES:
        return _bad_stamp(accept.stamp)
    if not 0 <= accept.partition <= NUMBER_MAX:
        return _bad_partition(accept.partition)
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
    elif blake3_128(accept.cell) != accept.shard_hash:
        return IntegrityError("the cell is not the one that the manifest names")
    return _check_shard_index(accept.shard_index) or _check_placement(accept.placement)


def _check_shard_index(shard_index: int | None) -> CoffreError | None:
    if shard_index is None or 0 <= shard_index < SHARDS_MAX:
        return None
    return InvalidArgument(f"a shard index is below {SHARDS_MAX}, not {shard_index}")


def _check_placement(placement: tuple[int, ...]) -> CoffreError | None:
    if placement:
        try:
            placement_bytes(placement)
        except InvalidArgument as error:
            return error
    return None


@lru_cache(maxsize=4096)
def placement_bytes(placement: tuple[int, ...]) -> bytes:
    """The nodes as records keep them, u16 each. Raises `InvalidArgument`. Few placements make up a partition's
    objects, hence the cache."""
    if placement and (len(placement) > SHARDS_MAX or min(placement) < 0 or max(placement) > NUMBER_MAX):
        raise InvalidArgument(f"a placement has at most {SHARDS_MAX} node numbers up to {NUMBER_MAX}")
    return struct.pack(f">{len(placement)}H", *placement)


@lru_cache(maxsize=4096)
def placement_of(raw: bytes) -> tuple[int, ...]:
    """The way back of `placement_bytes`."""
    return struct.unpack(f">{len(raw) // 2}H", raw)


def check_stage(data_id: bytes, shard_index: int) -> None:
    """Raise `InvalidArgument` for a shard that cannot be staged."""
    if len(data_id) != DATA_ID_BYTES:
        raise InvalidArgument(f"a data id has {DATA_ID_BYTES} bytes, not {len(data_id)}")
    error = _check_shard_index(shard_index)
    if error is not None:
        raise error


def digest_of(context: bytes, stamp: bytes, kind: int = OBJECT) -> int:
    """What one version adds (by XOR) to its partition's digest: BLAKE2b-128 over name, stamp and kind."""
    return int.from_bytes(blake2b(b"%b\0%b%c" % (context, stamp, kind), digest_size=16).digest(), "big")


def kind_of(tombstone: bool, has_shard: bool) -> int:
    """The kind of a version as digests count it."""
    return TOMBSTONE if tombstone else OBJECT if has_shard else OBJECT_WITHOUT_SHARD


def slot_of(context: bytes, slots: int) -> int:
    """Which of `slots` parts of its partition a name is in."""
    return crc32c(context) % slots


def digest_xor(digest: bytes, delta: int) -> bytes:
    """`digest` (16 bytes) with `delta` XORed in."""
    return (int.from_bytes(digest, "big") ^ delta).to_bytes(16, "big")
