"""Which implementation this process runs on: the kernel's CPU tiers, or zfec."""

from __future__ import annotations

import enum
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from coffre.codec import _fallback

try:
    from coffre.codec import _kernel
except ImportError as error:
    _kernel_error: ImportError | None = error
else:
    _kernel_error = None

if TYPE_CHECKING:
    from typing_extensions import Buffer

TIER_VARIABLE = "COFFRE_CODEC_TIER"


class CodecFallbackWarning(RuntimeWarning):
    """The C kernel is missing from this installation; coding runs on zfec, at a small part of the speed."""


class Tier(enum.Enum):
    """An implementation of the code, fastest first; all give the same bytes. Values are the outside names."""

    GFNI_AVX512 = "gfni-avx512"
    GFNI_AVX2 = "gfni-avx2"
    AVX2 = "avx2"
    SSSE3 = "ssse3"
    NEON = "neon"
    SCALAR = "scalar"
    ZFEC = "zfec"


class Transform(Protocol):
    """The linear map from some shards to others, prepared for one tier."""

    def apply(
        self, sources: Sequence[Buffer], targets: Sequence[Buffer], checks: bool = ..., /
    ) -> tuple[tuple[int, ...], bytes]:
        """Compute every target from equally long sources; return the CRC32C of each shard, and all hashes in one, or
        neither."""

    def apply_segment(
        self, segment: Buffer, parity: Buffer, checks: bool = ..., /
    ) -> tuple[tuple[int, ...], bytes]:
        """The same on sources that lie one after the other in one buffer, and targets in another."""


def available_tiers() -> tuple[Tier, ...]:
    """The tiers this machine and installation can run, fastest first; zfec is always among them."""
    compiled = () if _kernel_error is not None else tuple(Tier(name) for name in _kernel.tiers())
    return (*compiled, Tier.ZFEC)


def active_tier() -> Tier:
    """The tier chosen at import, used wherever no other one is asked for."""
    return _active


def transform(tier: Tier, sources: bytes, targets: bytes) -> Transform:
    """The map from shard indexes `sources` to `targets`. Raises ValueError when the tier cannot run here."""
    if tier not in available_tiers():
        raise ValueError(f"the codec tier {tier.value!r} is not available here; available: {_names()}")
    if tier is Tier.ZFEC:
        return _fallback.Transform(sources, targets)
    return _kernel.Transform(sources, targets, tier.value)


def _names() -> str:
    return ", ".join(tier.value for tier in available_tiers())


def _choose() -> Tier:
    name = os.environ.get(TIER_VARIABLE, "")
    if not name:
        if _kernel_error is not None:
            warnings.warn(
                f"coffre.codec runs on zfec, which is much slower: its C kernel is not usable "
                f"({_kernel_error}). Reinstall with a C compiler and Python.h present, or set "
                f"{TIER_VARIABLE}=zfec to accept it.",
                CodecFallbackWarning,
                stacklevel=2,
            )
        return available_tiers()[0]
    for tier in available_tiers():
        if tier.value == name:
            return tier
    raise ValueError(f"{TIER_VARIABLE}={name} names no codec tier available here; available: {_names()}")


_active = _choose()
if _active is not Tier.ZFEC:
    _kernel.set_active_tier(_active.value)

if TYPE_CHECKING:

    def crc32c(data: Buffer, value: int = 0) -> int:
        """CRC32C (Castagnoli; RFC 3720) of `data`; `value` is the CRC of what precedes it, 0 at the start.

        Raises TypeError when `data` is not a buffer, ValueError when it is not contiguous or `value` is not a
        32-bit unsigned number.
        """

    def blake3_128(data: Buffer, /) -> bytes:
        """The first 16 bytes of BLAKE3 of `data`: what a shard is known by (docs/formats/manifest.md).

        Raises TypeError when `data` is not a buffer, ValueError when it is not contiguous.
        """
else:
    # The implementations themselves, not wrappers: a call on a few kilobytes costs little more than the call.
    crc32c = _fallback.crc32c if _active is Tier.ZFEC else _kernel.crc32c
    blake3_128 = _fallback.blake3_128 if _active is Tier.ZFEC else _kernel.blake3_128
