"""The tight loop: Reed-Solomon coding, CRC32C and BLAKE3, in C, or on zfec where no compiler was at hand.

The code is zfec's, byte for byte, for every (k, m); docs/formats/coding.md defines it. The fastest
instruction set of the CPU is chosen at import; the environment variable COFFRE_CODEC_TIER forces another one
of `Tier`.
"""

from coffre.codec._codec import Codec, codec
from coffre.codec._shard_hash import GROUP_CELLS, HASH_BYTES, ShardHash, hash_of_shard
from coffre.codec._tier import CodecFallbackWarning, Tier, active_tier, available_tiers, blake3_128, crc32c

__all__ = [
    "GROUP_CELLS",
    "HASH_BYTES",
    "Codec",
    "CodecFallbackWarning",
    "ShardHash",
    "Tier",
    "active_tier",
    "available_tiers",
    "blake3_128",
    "codec",
    "crc32c",
    "hash_of_shard",
]
