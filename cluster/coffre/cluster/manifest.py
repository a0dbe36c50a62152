"""What client and node both read from a manifest: docs/formats/manifest.md."""

from __future__ import annotations

from coffre.codec import HASH_BYTES
from coffre.proto import coffre_pb2 as pb

__all__ = ["MANIFEST_FORMAT", "named_hash"]

MANIFEST_FORMAT = 3


def named_hash(manifest: pb.Manifest, shard_index: int) -> bytes:
    """The hash of a shard, 16 bytes, as the manifest names it; fewer bytes when it names none."""
    return manifest.shard_hashes[HASH_BYTES * shard_index : HASH_BYTES * (shard_index + 1)]
