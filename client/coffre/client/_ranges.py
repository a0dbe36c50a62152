"""Ranges of objects: which segments they need, and asking for them early.

A reader that takes one range of a large object mostly takes more. So the segments of the next one are asked for on the
strength of the version that was read last, while the nodes are still asked which version is the newest. When that is
another one, what came early is thrown away: nothing is ever read from a version that was not found anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from coffre.client._download import Assembly, Downloader
from coffre.client._reads import Found
from coffre.client._sealing import OpenManifest, segment_count
from coffre.cluster.errors import InvalidArgument
from coffre.cluster.names import ObjectName

__all__ = ["RangeReader"]

RECENT_MAX = 256
EARLY_SEGMENTS_MAX = 2  # more of them take so long that a round trip does not matter


class RangeReader:
    """Reads ranges of versions that were found. `primaries` gives the nodes of a name, in shard order."""

    def __init__(self, downloader: Downloader, primaries: Callable[[ObjectName], tuple[int, ...]]) -> None:
        self._downloader = downloader
        self._primaries = primaries
        self._recent: OrderedDict[ObjectName, Found] = OrderedDict()

    def begin_early(self, name: ObjectName, start: int, length: int | None) -> Assembly | None:
        """Ask for a short range of the version that was read last. The caller closes it in any case."""
        recent = self._recent.get(name)
        if recent is None or start < 0:
            return None
        segments = _segments(recent.opened, start, _end(recent.opened, start, length))
        if not 0 < len(segments) <= EARLY_SEGMENTS_MAX:
            return None
        return self._downloader.begin(recent, self._primaries(name), segments.start, len(segments))

    async def pieces(
        self, found: Found, start: int, length: int | None, early: Assembly | None = None
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield a range in pieces of about a segment, from what was begun early if that is the same version."""
        if start < 0 or (length is not None and length < 0):
            raise InvalidArgument("a range starts at 0 or later and has no negative length")
        opened = found.opened
        end = _end(opened, start, length)
        primaries = self._primaries(opened.name)
        if segment_count(opened.manifest.size_bytes, opened.manifest.segment_bytes) == 1:
            whole = await self._downloader.one_segment(found, primaries)
            yield whole if start == 0 and end == len(whole) else whole[start:end]
            return
        segments = _segments(opened, start, end)
        if not segments:
            return
        self._note(found, len(segments))
        if early is None or not early.serves(found, primaries):
            early = self._downloader.begin(found, primaries, segments.start, len(segments))
        position = segments.start * opened.manifest.segment_bytes
        async with aclosing(self._downloader.segments(early, primaries)) as plains:
            async for plain in plains:
                yield plain[max(start - position, 0) : end - position]
                position += len(plain)

    def _note(self, found: Found, segments: int) -> None:
        if segments > EARLY_SEGMENTS_MAX:
            return
        self._recent[found.opened.name] = found
        self._recent.move_to_end(found.opened.name)
        if len(self._recent) > RECENT_MAX:
            self._recent.popitem(last=False)


def _end(opened: OpenManifest, start: int, length: int | None) -> int:
    size_bytes: int = opened.manifest.size_bytes
    return size_bytes if length is None else min(start + length, size_bytes)


def _segments(opened: OpenManifest, start: int, end: int) -> range:
    """The segments that a range lies in."""
    if start >= end:
        return range(0)
    segment_bytes = opened.manifest.segment_bytes
    return range(start // segment_bytes, (end - 1) // segment_bytes + 1)
