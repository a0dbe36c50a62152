"""The way of one version's data: sealed and coded whole, or streamed to the nodes, then established."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable

from coffre.client._ground import Ground
from coffre.client._sources import ReadableSource
from coffre.client._streams import SEGMENT_BYTES, ByteBudget, segmented
from coffre.client.puts._conditions import Condition, ConditionalWriter
from coffre.client.reading import Reader
from coffre.client.sealing import Draft
from coffre.client.writing import Shards, Uploader, Verify, Writer, code_whole
from coffre.cluster.errors import CoffreError, OutcomeUnknown, StaleMap
from coffre.cluster.versions import Stamp

__all__ = ["Putter"]

SMALL_BYTES_IN_FLIGHT = 32 << 20
VerifyShards = Callable[[Shards], Verify]
Data = bytes | bytearray | memoryview | AsyncIterable[bytes]


class Putter:
    """Writes drafts."""

    def __init__(
        self,
        ground: Ground,
        writer: Writer,
        conditional: ConditionalWriter,
        uploader: Uploader,
        reader: Reader,
    ) -> None:
        self._views = ground.views
        self._sealer = ground.sealer
        self._writer = writer
        self._conditional = conditional
        self._uploader = uploader
        self._reader = reader
        self._compress_level = ground.options.compress_level
        self._budget = ByteBudget(SMALL_BYTES_IN_FLIGHT)

    async def put(
        self,
        draft: Draft,
        data: Data,
        condition: Condition | None,
        verify: VerifyShards | None = None,
    ) -> Stamp:
        """Write an object; fill in the draft. Raises as `Writer.establish` and `ConditionalWriter.establish`.

        `verify`: with a condition only; says how to read back the shards (`ConditionalWriter.establish`). A map that
        comes in between, by which it would be coded or placed otherwise, ends it with `StaleMap` when the data cannot
        be read again; else it goes on by that map.
        """
        while True:
            view = self._views.current
            draft.manifest.segment_bytes = SEGMENT_BYTES
            first, segments = await segmented(data)
            try:
                if segments is not None:
                    return await self._put_segments(draft, segments, condition, verify)
                data = first
                return await self._put_one_segment(draft, first, condition, verify)
            except StaleMap:
                if self._views.current is view or verify is not None or not await _can_be_read_again(data):
                    raise
                await self._sealer.renew(draft)

    async def _put_segments(
        self,
        draft: Draft,
        segments: AsyncIterator[bytes],
        condition: Condition | None,
        verify: VerifyShards | None,
    ) -> Stamp:
        """Stream an object to the nodes, and write it."""
        await self._views.confirm()  # nodes take shards at any epoch, so an old map would show at the end
        shards = await self._uploader.stage(draft, segments)
        try:
            return await self.establish(draft, shards, condition, verify)
        except CoffreError as error:
            if not isinstance(error, OutcomeUnknown):  # else it may stand, and then needs every shard
                await self._uploader.drop(draft, shards.placement)
            raise

    async def establish(
        self,
        draft: Draft,
        shards: Shards | None,
        condition: Condition | None,
        verify: VerifyShards | None = None,
    ) -> Stamp:
        """Write what is coded, or a tombstone when `shards` is None."""
        if condition is None:
            stamp = await self._writer.establish(draft, shards)
        else:
            reading = verify(shards) if verify is not None and shards is not None else None
            stamp = await self._conditional.establish(draft, shards, condition, reading)
        self._reader.note_established(draft.name, stamp)
        return stamp

    async def _put_one_segment(
        self,
        draft: Draft,
        plain: bytes | bytearray | memoryview,
        condition: Condition | None,
        verify: VerifyShards | None,
    ) -> Stamp:
        """Seal and code an object of one segment, and write it."""
        await self._budget.take(len(plain))
        try:
            # Coding and places are those of one view (`Writer` finds the places again).
            electorate = self._views.current.electorate(draft.name)
            draft.manifest.k, draft.manifest.m = electorate.k, electorate.m
            coded = code_whole(draft, plain, self._compress_level)
            return await self.establish(draft, Shards([], coded.cells, coded.crcs), condition, verify)
        finally:
            self._budget.give_back(len(plain))


async def _can_be_read_again(data: Data) -> bool:
    """Whether what is read next is all of it; a stream of a file goes back to where it began."""
    if isinstance(data, ReadableSource):
        return await data.rewind()
    return isinstance(data, bytes | bytearray | memoryview)
