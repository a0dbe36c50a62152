"""Codec: encode, decode and repair for one (k, m)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from coffre.codec._tier import Tier, Transform, active_tier, transform

if TYPE_CHECKING:
    from typing_extensions import Buffer

SHARDS_MAX = 256
"""Points of GF(2^8), hence the most shards one object can have."""

# One entry per (survivors, wanted) pair in recent use. A miss costs microseconds for common k, so a small
# cache is enough.
_RECONSTRUCTIONS_CACHED = 128
_CODECS_CACHED = 64


class Codec:
    """Systematic Reed-Solomon code over GF(2^8): k data and m parity shards, any k of which give the rest.

    Shards 0..k-1 are the data, k..k+m-1 the parity; docs/formats/coding.md defines every byte. An instance is
    immutable and may be used by any number of threads. The interpreter lock is released during long calls:
    the caller must not write to the buffers of a call until it returns.
    """

    __slots__ = ("_encoder", "_k", "_m", "_tier")

    def __init__(self, k: int, m: int, *, tier: Tier | None = None) -> None:
        """Prepare the code for `k` data and `m` parity shards, on `tier` or the active one.

        Raises ValueError unless k >= 1, m >= 0, k + m <= 256 and the tier can run here.
        """
        k, m = operator.index(k), operator.index(m)
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        if m < 0:
            raise ValueError(f"m must be at least 0, not {m}")
        if k + m > SHARDS_MAX:
            raise ValueError(f"k + m must be at most {SHARDS_MAX}, not {k + m}")
        self._k = k
        self._m = m
        self._tier = active_tier() if tier is None else tier
        self._encoder = transform(self._tier, bytes(range(k)), bytes(range(k, k + m)))

    def __repr__(self) -> str:
        return f"Codec({self._k}, {self._m}, tier={self._tier})"

    @property
    def k(self) -> int:
        """Data shards."""
        return self._k

    @property
    def m(self) -> int:
        """Parity shards."""
        return self._m

    @property
    def n(self) -> int:
        """All shards, k + m."""
        return self._k + self._m

    @property
    def tier(self) -> Tier:
        """The implementation this codec runs on."""
        return self._tier

    def encode_into(
        self, data: Sequence[Buffer], parity: Sequence[Buffer], *, checks: bool = True
    ) -> tuple[tuple[int, ...], bytes]:
        """Fill `parity` (m writable buffers) from `data` (k buffers), all of one length in bytes.

        Returns the CRC32C of each of the n shards, data first, and their BLAKE3 hashes, 16 bytes each, one after the
        other; neither when `checks` is false. Raises TypeError for what is no buffer, ValueError for a wrong count or
        length, a buffer that is not contiguous, a read-only output, and an output that overlaps any other buffer.
        Nothing is written then.
        """
        return self._encoder.apply(data, parity, checks)

    def encode_segment(
        self, segment: Buffer, parity: Buffer, *, checks: bool = True
    ) -> tuple[tuple[int, ...], bytes]:
        """Fill `parity` (m cells, one after the other) from `segment` (k cells, one after the other).

        A cell is len(segment) / k bytes, so `parity` has m * len(segment) / k. Returns and raises as
        `encode_into` does; a segment that is no whole number of cells is a ValueError.
        """
        return self._encoder.apply_segment(segment, parity, checks)

    def reconstruct_into(self, shards: Mapping[int, Buffer], wanted: Mapping[int, Buffer]) -> None:
        """Fill the writable buffers of `wanted` from `shards`; both are keyed by shard index 0..n-1.

        Any k shards or more do, all of one length in bytes; the k lowest indexes, so data shards first, are
        read and the others ignored. Any shard can be wanted, data or parity. Raises as `encode_into` does,
        and ValueError for too few shards or an index out of range. Nothing is written then.
        """
        sources = self._indexes(shards)[: self._k]
        targets = self._indexes(wanted)
        if len(sources) < self._k:
            raise ValueError(f"{self._k} shards are needed to reconstruct, but {len(sources)} were given")
        prepared = _reconstruction(self._tier, sources, targets)
        prepared.apply([shards[i] for i in sources], [wanted[i] for i in targets], False)

    def _indexes(self, given: Iterable[int]) -> bytes:
        indexes = sorted(operator.index(index) for index in given)
        for index in indexes[:1] + indexes[-1:]:
            if not 0 <= index < self.n:
                raise ValueError(f"shard index {index} is out of range; there are {self.n} shards")
        return bytes(indexes)


@lru_cache(maxsize=_RECONSTRUCTIONS_CACHED)
def _reconstruction(tier: Tier, sources: bytes, targets: bytes) -> Transform:
    return transform(tier, sources, targets)


@lru_cache(maxsize=_CODECS_CACHED)
def codec(k: int, m: int) -> Codec:
    """The codec of (k, m) on the active tier, shared by all callers. Raises as `Codec` does."""
    return Codec(k, m)
