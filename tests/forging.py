"""What a liar makes: bytes that an accident would not."""

from __future__ import annotations

from collections.abc import Callable

from coffre.codec import codec, crc32c

__all__ = ["same_crc", "same_crc_and_rebuilt"]

_Linear = Callable[[bytes], int]  # of bytes; the effect of two changes is the xor of theirs


def same_crc(data: bytes) -> bytes:
    """Other bytes of the same length and CRC32C."""
    return _changed(data, lambda change: crc32c(change) ^ crc32c(bytes(len(data))), 33)


def same_crc_and_rebuilt(
    data: bytes, index: int, k: int, m: int, sources: tuple[int, ...], target: int
) -> bytes:
    """Other bytes for shard `index`, with the CRC32C of `data`; shard `target` has its own, too, when it is made from
    `sources`."""
    zeros = bytes(len(data))

    def effect(change: bytes) -> int:
        made = bytearray(len(data))
        given = {source: change if source == index else zeros for source in sources}
        codec(k, m).reconstruct_into(given, {target: made})
        return (crc32c(change) ^ crc32c(zeros)) << 32 | crc32c(made) ^ crc32c(zeros)

    return _changed(data, effect, 65)


def _changed(data: bytes, effect: _Linear, bits: int) -> bytes:
    """Change some of the first `bits` bits so that it has no effect: there is a bit more than effects have."""
    seen: dict[int, tuple[int, int]] = {}  # by its highest bit: an effect, and the change that has it
    for bit in range(bits):
        change = 1 << bit
        left = effect(change.to_bytes(len(data), "little"))
        while left and left.bit_length() in seen:
            other, used = seen[left.bit_length()]
            left, change = left ^ other, change ^ used
        if not left:
            forged = int.from_bytes(data, "little") ^ change
            return forged.to_bytes(len(data), "little")
        seen[left.bit_length()] = (left, change)
    raise AssertionError("fewer effects than bits, and none is without")
