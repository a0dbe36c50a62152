"""Where a short range of plaintext lies in the data cells of raw segments (docs/formats/segment.md, sealing 1)."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["RANGE_SEGMENTS_MAX", "Piece", "part_bytes", "pieces_of_range"]

RANGE_SEGMENTS_MAX = 2
_K_MAX = 255


class Piece(NamedTuple):
    """Bytes `start` to `end` of what data cell `shard_index` of one segment has."""

    segment: int
    shard_index: int
    start: int
    end: int


def part_bytes(size_bytes: int, k: int) -> int:
    """The size of each of the k equal parts of so many bytes; zeros fill up the last ones."""
    return -(-size_bytes // k)


def pieces_of_range(size_bytes: int, segment_bytes: int, k: int, start: int, length: int) -> list[Piece]:
    """The pieces of a range of an object of `size_bytes`, in order.

    None when the range is empty or lies behind the object's end, and none when it lies in more than two segments.
    """
    end = min(start + length, size_bytes)
    if segment_bytes < 1 or not 1 <= k <= _K_MAX or not 0 <= start < end:
        return []
    segments = range(start // segment_bytes, (end - 1) // segment_bytes + 1)
    if len(segments) > RANGE_SEGMENTS_MAX:
        return []
    pieces = []
    for segment in segments:
        begin = segment * segment_bytes
        size = part_bytes(min(segment_bytes, size_bytes - begin), k)
        first, last = max(start - begin, 0), min(end - begin, segment_bytes)
        for shard_index in range(first // size, (last - 1) // size + 1):
            place = shard_index * size
            pieces.append(Piece(segment, shard_index, max(first - place, 0), min(last - place, size)))
    return pieces
