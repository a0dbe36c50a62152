"""What nodes tell each other for repair, to and from the wire: docs/formats/wire.md, "Between nodes"."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Protocol

from coffre.cluster.errors import CoffreError, IntegrityError
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import STAMP_BYTES
from coffre.node.store import PartitionDigest, PartitionRow, State, StoredVersion
from coffre.proto import coffre_pb2 as pb

__all__ = ["RepairSwitch", "pack_digests", "row_message", "row_of_message", "unpack_digests"]

_STATES = frozenset(map(int, State))
_DIGEST = struct.Struct(">H16sQ")  # partition, digest, versions
_VERSIONS_MAX = 1 << 28  # of one partition on one node


class RepairSwitch(Protocol):
    """What an operator sees and does of a node's repair."""

    def status(self) -> pb.RepairStatusReply:
        """How repair and scrub are doing, as the wire says it."""

    def control(self, request: pb.RepairControlRequest) -> None:
        """Start, pause, or set the rate. Raises `InvalidArgument`."""


def pack_digests(digests: Mapping[int, PartitionDigest]) -> bytes:
    """26 bytes a partition."""
    return b"".join(_DIGEST.pack(number, held.digest, held.versions) for number, held in digests.items())


def unpack_digests(raw: bytes) -> dict[int, PartitionDigest]:
    """Raises `IntegrityError` for what `pack_digests` did not write."""
    if len(raw) % _DIGEST.size:
        raise IntegrityError("another node's digests cannot be read")
    digests = {
        number: PartitionDigest(digest, versions)
        for number, digest, versions in _DIGEST.iter_unpack(raw)
        if versions
    }
    if any(held.versions > _VERSIONS_MAX for held in digests.values()):
        raise IntegrityError("another node says that it holds more than a node can")
    return digests


def row_message(row: PartitionRow) -> pb.NameRow:
    """A row of a partition as it travels; votes without shards."""
    name = row.name
    message = pb.NameRow(tenant=name.tenant, bucket=name.bucket, key=name.key)
    for version in row.versions:
        message.versions.add(
            stamp=version.stamp,
            state=pb.State.ValueType(version.state),
            tombstone=version.tombstone,
            shard_index=version.shard_index,
            condemned=version.condemned,
        )
    return message


def row_of_message(message: pb.NameRow) -> PartitionRow:
    """Raises `IntegrityError` for what no node can mean."""
    versions = []
    for version in message.versions:
        if len(version.stamp) != STAMP_BYTES or int(version.state) not in _STATES:
            raise IntegrityError("another node's row cannot be read")
        shard_index = version.shard_index if version.HasField("shard_index") else None
        versions.append(
            StoredVersion(
                State(version.state),
                version.stamp,
                version.tombstone,
                shard_index=shard_index,
                condemned=version.condemned,
            )
        )
    try:
        name = ObjectName(message.tenant, message.bucket, message.key)
    except CoffreError:
        raise IntegrityError("another node's row has no name that can be") from None
    return PartitionRow(name, tuple(versions))
