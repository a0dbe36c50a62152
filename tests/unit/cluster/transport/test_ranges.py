"""Where a short range lies: held against a byte by byte walk through cells."""

from __future__ import annotations

import itertools

import pytest
from coffre.cluster.transport import part_bytes, pieces_of_range
from coffre.cluster.transport.ranges import RANGE_SEGMENTS_MAX


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_pieces_are_the_bytes_of_the_range(k: int) -> None:
    segment_bytes, size_bytes = 11, 37  # four segments, the last of four bytes
    places = []
    for byte in range(size_bytes):
        segment, inside = divmod(byte, segment_bytes)
        size = part_bytes(min(segment_bytes, size_bytes - segment * segment_bytes), k)
        places.append((segment, inside // size, inside % size))
    for start, length in itertools.product(range(size_bytes + 2), range(size_bytes + 2)):
        expected = places[start : start + length]
        pieces = pieces_of_range(size_bytes, segment_bytes, k, start, length)
        if len({segment for segment, _, _ in expected}) > RANGE_SEGMENTS_MAX:
            assert pieces == []
            continue
        assert expected == [
            (piece.segment, piece.shard_index, place)
            for piece in pieces
            for place in range(piece.start, piece.end)
        ]
        assert len({piece[:2] for piece in pieces}) == len(pieces)


def test_numbers_from_outside_cost_nothing() -> None:
    """A node takes them from a manifest that it cannot verify, and from a request."""
    assert pieces_of_range(1 << 63, 1 << 31, 1 << 31, 0, 1 << 62) == []
    assert pieces_of_range(1 << 63, 1 << 31, 1 << 31, 0, 1 << 31) == []
    assert pieces_of_range(1 << 63, 1, 4, 0, 1 << 62) == []
    assert len(pieces_of_range(1 << 63, (1 << 32) - 1, 255, 0, 1 << 32)) == 256
    for size_bytes, segment_bytes, k in ((10, 0, 4), (10, 5, 0), (0, 5, 4)):
        assert pieces_of_range(size_bytes, segment_bytes, k, 0, 10) == []
    assert pieces_of_range(10, 5, 4, -1, 5) == []
    assert pieces_of_range(10, 5, 4, 10, 5) == []
