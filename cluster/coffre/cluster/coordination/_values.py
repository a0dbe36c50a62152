"""How values of coordination are written and read: messages with a format number in front."""

from __future__ import annotations

from typing import TypeVar

from coffre.cluster.coordination.seam import Coordination, Entry
from coffre.cluster.errors import IntegrityError, Unsupported
from coffre.proto import coordination_pb2 as pb
from google.protobuf.message import DecodeError

__all__ = ["FORMAT", "decode", "encode", "read_all"]

FORMAT = 1
Value = TypeVar("Value", pb.Bucket, pb.Tenant, pb.LockClaim, pb.RepairClaim, pb.NodeStatus)


def encode(value: Value) -> bytes:
    """A value as it is kept: deterministic bytes, with the number of the format in it."""
    value.format = FORMAT
    return value.SerializeToString(deterministic=True)


def decode(kind: type[Value], raw: bytes) -> Value:
    """Raises `IntegrityError` for what is no such message, `Unsupported` for a later format."""
    try:
        value = kind.FromString(raw)
    except DecodeError:
        raise IntegrityError(f"a {kind.__name__} in coordination cannot be read") from None
    if value.format != FORMAT:
        raise Unsupported(f"{kind.__name__} format {value.format} is not known to this release")
    return value


async def read_all(coordination: Coordination, prefix: str) -> list[Entry]:
    """Every entry below `prefix`, page after page. What changes meanwhile may or may not show."""
    found: list[Entry] = []
    after, more = "", True
    while more:
        page = await coordination.range(prefix, after=after)
        found += page.entries
        more = page.more
        after = page.entries[-1].key if page.entries else after
    return found
