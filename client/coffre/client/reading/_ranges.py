"""Ranges of objects: the segments that they lie in, and the bytes of those that are wanted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import groupby

from coffre.client.reading._download import Downloader
from coffre.client.reading._found import Found
from coffre.client.sealing import CellCipher, OpenManifest, segment_count
from coffre.cluster.errors import IntegrityError, InvalidArgument
from coffre.cluster.transport import Piece, part_bytes, pieces_of_range
from coffre.proto import coffre_pb2 as pb

__all__ = ["RangeReader", "short_range"]

SHORT_BYTES_MAX = 1 << 20  # of a range whose cells are worth sending along with the version
START_MAX = 1 << 63  # far behind the end of any object; what travels has 64 bits


def short_range(start: int, length: int | None) -> range:
    """The bytes whose cells should come along with the version; none for what takes long anyway."""
    if length is None or not 0 <= start < START_MAX or not 0 < length <= SHORT_BYTES_MAX:
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
        short = pieces_of_range(
            size_bytes, opened.manifest.segment_bytes, opened.manifest.k, start, max(end - start, 0)
        )
        if short and end - start <= SHORT_BYTES_MAX and opened.manifest.sealing == pb.SEALING_CELL:
            for segment, pieces in groupby(short, key=lambda piece: piece.segment):
                yield await self._short(found, segment, list(pieces))
            return
        wanted = _segments(opened, start, end)
        position = wanted.start * opened.manifest.segment_bytes
        async with aclosing(self._downloader.segments(found, wanted)) as plains:
            async for plain in plains:
                yield plain[max(start - position, 0) : end - position]
                position += len(plain)

    async def _short(self, found: Found, segment: int, pieces: list[Piece]) -> bytes | memoryview:
        """A short range of one segment: from its data cells alone when the segment is raw and they are good."""
        opened = found.opened
        plain_bytes = opened.plain_bytes(segment)
        wanted = {piece.shard_index for piece in pieces}
        cells = await self._downloader.data_cells(found, segment, wanted)
        if wanted <= cells.keys():
            cipher = CellCipher(opened.data_key, opened.manifest.data_id, opened.manifest.k)
            try:
                parts = [
                    cipher.open_raw(segment, index, cells[index], plain_bytes) for index in sorted(wanted)
                ]
            except IntegrityError:
                pass  # compressed, or a cell lies: it takes k cells
            else:
                return b"".join(
                    part[piece.start : piece.end] for part, piece in zip(parts, pieces, strict=True)
                )
        part_size = part_bytes(plain_bytes, opened.manifest.k)
        start = pieces[0].shard_index * part_size + pieces[0].start
        end = pieces[-1].shard_index * part_size + pieces[-1].end
        async with aclosing(self._downloader.segments(found, range(segment, segment + 1))) as plains:
            return (await anext(plains))[start:end]


def _segments(opened: OpenManifest, start: int, end: int) -> range:
    """The segments that a range lies in."""
    if start >= end:
        return range(0)
    segment_bytes = opened.manifest.segment_bytes
    return range(start // segment_bytes, (end - 1) // segment_bytes + 1)
