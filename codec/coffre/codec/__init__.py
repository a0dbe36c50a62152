"""The tight loop: Reed-Solomon coding and CRC32C checksums, in C, or on zfec where no compiler was at hand.

The code is zfec's, byte for byte, for every (k, m); docs/formats/coding.md defines it. The fastest
instruction set of the CPU is chosen at import; the environment variable COFFRE_CODEC_TIER forces another one
of `Tier`.
"""

from coffre.codec._codec import Codec, codec
from coffre.codec._tier import CodecFallbackWarning, Tier, active_tier, available_tiers, crc32c

__all__ = [
    "Codec",
    "CodecFallbackWarning",
    "Tier",
    "active_tier",
    "available_tiers",
    "codec",
    "crc32c",
]
