"""Ranges of objects: the segments that they lie in, and the bytes of those that are wanted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from coffre.client._download import Downloader
from coffre.client._reads import Found
from coffre.client._sealing import OpenManifest, segment_count
from coffre.cluster.errors import InvalidArgument

__all__ = ["RangeReader", "short_range"]

SHORT_BYTES_MAX = 1 << 20  # of a range whose cells are worth sending along with the version


def short_range(start: int, length: int | None) -> range:
    """The bytes whose cells should come along with the version; none for what takes long anyway."""
    if length is None or start < 0 or not 0 < length <= SHORT_BYTES_MAX:
        return range(0)
    return range(start, start + length)


class RangeReader:
    """Reads ranges of versions that were found."""

    def __init__(self, downloader: Downloader) -> None:
        self._downloader = downloader

    async def pieces(
        self, found: Found, start: int, length: int | None
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield a range in pieces of about a segment."""
        if start < 0 or (length is not None and length < 0):
            raise InvalidArgument("a range starts at 0 or later and has no negative length")
        opened = found.opened
        size_bytes: int = opened.manifest.size_bytes
        end = size_bytes if length is None else min(start + length, size_bytes)
        if segment_count(size_bytes, opened.manifest.segment_bytes) == 1:
            whole = await self._downloader.one_segment(found)
            yield whole if start == 0 and end == len(whole) else whole[start:end]
            return
        wanted = _segments(opened, start, end)
        position = wanted.start * opened.manifest.segment_bytes
        async with aclosing(self._downloader.segments(found, wanted)) as plains:
            async for plain in plains:
                yield plain[max(start - position, 0) : end - position]
                position += len(plain)


def _segments(opened: OpenManifest, start: int, end: int) -> range:
    """The segments that a range lies in."""
    if start >= end:
        return range(0)
    segment_bytes = opened.manifest.segment_bytes
    return range(start // segment_bytes, (end - 1) // segment_bytes + 1)
