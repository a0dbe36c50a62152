"""Large objects on their way in: segments are sealed, coded and streamed to all nodes at once, in constant memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass

from coffre.client._memory import SegmentMemory
from coffre.client._peers import Peers
from coffre.client._sealing import Draft, SegmentCipher
from coffre.client._view import View, Views
from coffre.client._writes import Shards
from coffre.cluster.clock import Clock
from coffre.cluster.errors import (
    CoffreError,
    DeadlineExceeded,
    IntegrityError,
    InvalidArgument,
    PermanentError,
    RetryableError,
    Unavailable,
)
from coffre.cluster.names import partition_of
from coffre.codec import Tier, codec, crc32c
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, WireCell

__all__ = ["CodedSegment", "SegmentCoder", "Uploader"]

MESSAGE_BYTES = 1 << 20  # cells travel together until a node gets about this many bytes at once
MESSAGE_SEGMENTS_MAX = 16
QUEUED_MESSAGES_MAX = 2
RETAINED_MESSAGES = 2  # so that a shard may still move to a substitute at the start
CODING_SEGMENTS = 2
SEGMENTS_MAX = 1 << 20
_SLOW_TIERS = (Tier.SCALAR, Tier.ZFEC)
STREAM_TIMEOUT_SECONDS = 24 * 3600.0
SYNC_TIMEOUTS = 6  # how many stall timeouts the sync of the first D shards may take


@dataclass(frozen=True, slots=True)
class CodedSegment:
    """The n cells of one segment, with their CRC32Cs."""

    segment: int
    cells: tuple[bytes | memoryview, ...]
    crcs: tuple[int, ...]


Group = Sequence[CodedSegment]
"""Segments whose cells travel in one message."""


class SegmentCoder:
    """Plaintext segment in, n cells out."""

    def __init__(self, draft: Draft, k: int, m: int, compress_level: int | None) -> None:
        self._cipher = SegmentCipher(draft.data_key, draft.manifest.data_id, k, compress_level=compress_level)
        self._codec = codec(k, m)
        self._k, self._m = k, m
        self._memory = SegmentMemory()

    @property
    def is_quick(self) -> bool:
        """Whether the next segment takes less time than to hand it to another thread and back would."""
        return not self._cipher.compresses_next and self._codec.tier not in _SLOW_TIERS

    def code(self, segment: int, plain: bytes | bytearray | memoryview) -> CodedSegment:
        frame = self._cipher.frame(plain)
        cell_bytes = frame.sealed_bytes // self._k
        whole = self._memory.take(cell_bytes * (self._k + self._m))
        sealed, parity = whole[: frame.sealed_bytes], whole[frame.sealed_bytes :]
        self._cipher.seal_into(segment, frame, sealed)
        crcs = self._codec.encode_segment(sealed, parity)
        views = [whole[start : start + cell_bytes] for start in range(0, len(whole), cell_bytes)]
        return CodedSegment(segment, tuple(views), crcs)


class _ShardStream:
    """One shard on its way to one node; to another when the first fails before much was sent."""

    def __init__(self, uploader: Uploader, draft: Draft, index: int, node: int) -> None:
        self._uploader = uploader
        self._draft = draft
        self.index = index
        self.node = node
        self._queue: asyncio.Queue[Group | None] = asyncio.Queue(QUEUED_MESSAGES_MAX)
        self._retained: list[Group] | None = []
        self._ended = False
        self.error: CoffreError | None = None
        self.reply: pb.WriteShardReply | None = None
        self._call = asyncio.create_task(self._run())

    @property
    def failed(self) -> bool:
        return self.error is not None

    def put_at_once(self, group: Group | None) -> bool:
        """Hand on segments, or the end, when there is room for them now."""
        if self._queue.full():
            return False
        self._queue.put_nowait(group)
        return True

    async def put(self, group: Group | None) -> None:
        """Hand on segments, or the end; returns at once when the stream has failed."""
        if self.failed:
            return
        putting = asyncio.ensure_future(self._queue.put(group))
        done, _ = await asyncio.wait([putting, self._call], return_when=asyncio.FIRST_COMPLETED)
        if putting not in done:
            putting.cancel()

    @property
    def call(self) -> asyncio.Task[None]:
        """Ends when the node has answered, or the stream has failed."""
        return self._call

    async def finish(self) -> None:
        """Wait for the end; a stream that was left behind is cancelled, and that is no error here."""
        await asyncio.wait([self._call])
        if not self._call.cancelled():
            self._call.result()

    def fail(self, error: CoffreError) -> None:
        self.error = self.error or error
        self._call.cancel()

    async def _run(self) -> None:
        while True:
            try:
                self.reply = await self._uploader.peers.transport.write_shard(
                    self.node, self._requests(), STREAM_TIMEOUT_SECONDS
                )
                return
            except CoffreError as error:
                if isinstance(error, RetryableError):
                    self._uploader.peers[self.node].note_failure()
                substitute = self._uploader.substitute(self._draft, self.index)
                if self._retained is None or substitute is None or isinstance(error, PermanentError):
                    self.error = error
                    return
                self.node = substitute

    async def _requests(self) -> AsyncIterator[ShardChunk]:
        peers = self._uploader.peers
        header = pb.ShardHeader(
            epoch=peers.epoch,
            tenant=peers.tenant,
            data_id=self._draft.manifest.data_id,
            shard_index=self.index,
        )
        yield ShardChunk(header=header)
        for group in list(self._retained or ()):
            yield self._request(group)
        while not self._ended:
            group_or_end = await self._queue.get()
            if group_or_end is None:
                self._ended = True  # a substitute that takes over from here must not wait for another end
                return
            if self._retained is not None:
                self._retained.append(group_or_end)
                if len(self._retained) > RETAINED_MESSAGES:
                    self._retained = None
            yield self._request(group_or_end)

    def _request(self, group: Group) -> ShardChunk:
        index = self.index
        return ShardChunk([WireCell(coded.segment, coded.crcs[index], coded.cells[index]) for coded in group])


@dataclass(frozen=True, slots=True)
class _Staging:
    """An upload under way: where its shards go, and which nodes were tried."""

    view: View
    places: list[int]
    tried: set[int]


class Uploader:
    """Stages the shards of large objects."""

    def __init__(
        self,
        views: Views,
        clock: Clock,
        pool: Executor,
        *,
        compress_level: int | None,
        stall_timeout: float,
    ) -> None:
        self._views = views
        self._clock = clock
        self._pool = pool
        self._compress_level = compress_level
        self._stall_timeout = stall_timeout
        self._under_way: dict[bytes, _Staging] = {}  # by data id

    @property
    def peers(self) -> Peers:
        return self._views.current.peers

    def substitute(self, draft: Draft, index: int) -> int | None:
        """Reserve a node that may take shard `index` instead of the one that failed."""
        staging = self._under_way[draft.manifest.data_id]
        view, places = staging.view, staging.places
        allowed = view.understudies(draft.name)
        partition = partition_of(draft.name, view.map.partitions)
        for node in view.placement(draft.name).substitutes(partition, places, index):
            if node not in staging.tried and node in allowed:
                staging.tried.add(node)
                places[index] = node
                return node
        return None

    async def stage(self, draft: Draft, segments: AsyncIterator[bytes]) -> Shards:
        """Stream the object; fill in the draft's size and checksums; return where the shards are.

        Raises the nodes' error when fewer than D shards are synced; what was staged is then dropped.
        """
        view = self._views.current
        places = list(view.electorate(draft.name).primaries)
        self._under_way[draft.manifest.data_id] = _Staging(view, places, set(places))
        streams = [_ShardStream(self, draft, index, node) for index, node in enumerate(places)]
        try:
            await self._stream(draft, segments, streams)
            good = frozenset(stream.index for stream in streams if not stream.failed)
            return Shards(places, staged=good)
        except BaseException:
            for stream in streams:
                stream.fail(Unavailable("the upload was given up"))
            await asyncio.gather(*(stream.finish() for stream in streams), return_exceptions=True)
            await self.drop(draft, places)
            raise
        finally:
            del self._under_way[draft.manifest.data_id]

    async def _stream(
        self, draft: Draft, segments: AsyncIterator[bytes], streams: list[_ShardStream]
    ) -> None:
        coder = SegmentCoder(draft, draft.manifest.k, draft.manifest.m, self._compress_level)
        shard_crcs = [0] * len(streams)
        needed = draft.manifest.k + 1
        size_bytes = 0
        cells = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size_bytes
            async for plain in segments:
                size_bytes += len(plain)
                yield plain

        group: list[CodedSegment] = []
        async with aclosing(_coded(counted(), coder, self._pool)) as every:
            async for coded in every:
                cells += 1
                for index, crc in enumerate(coded.crcs):
                    shard_crcs[index] = crc32c(crc.to_bytes(4, "little"), shard_crcs[index])
                group.append(coded)
                if _is_full(group):
                    await self._distribute(needed, group, streams)
                    group = []
        if group:
            await self._distribute(needed, group, streams)
        await self._distribute(needed, None, streams)
        await self._finish(needed, streams)
        for stream in streams:
            reply = stream.reply
            if reply is not None and (
                reply.cell_count != cells or reply.shard_crc != shard_crcs[stream.index]
            ):
                stream.error = IntegrityError(f"node {stream.node} stored something else than was sent")
        _require(needed, streams)
        draft.manifest.size_bytes = size_bytes
        draft.manifest.shard_crcs = b"".join(crc.to_bytes(4, "little") for crc in shard_crcs)

    async def _finish(self, needed: int, streams: list[_ShardStream]) -> None:
        """Wait until D shards are synced; nodes that answer much later than those are left behind."""
        calls = {stream.call: stream for stream in streams}
        synced = 0
        patience = SYNC_TIMEOUTS * self._stall_timeout
        pending = set(calls)
        while pending:
            done, pending = await asyncio.wait(pending, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                for call in pending:
                    stream = calls[call]
                    stream.fail(DeadlineExceeded(f"node {stream.node} did not confirm its shard"))
                break
            synced += sum(not calls[call].failed for call in done)
            if synced >= needed:
                patience = self._stall_timeout
        await asyncio.gather(*(stream.finish() for stream in streams))

    async def _distribute(self, needed: int, group: Group | None, streams: list[_ShardStream]) -> None:
        """Hand segments to every stream; a node that alone holds up the others is left behind."""
        _require(needed, streams)
        full = [stream for stream in streams if not stream.failed and not stream.put_at_once(group)]
        if not full:
            return
        tasks = {asyncio.ensure_future(stream.put(group)): stream for stream in full}
        _, slow = await asyncio.wait(tasks, timeout=self._stall_timeout)
        for task in slow:
            tasks[task].fail(
                DeadlineExceeded(f"node {tasks[task].node} took nothing for {self._stall_timeout:.0f} s")
            )
        if slow:
            await asyncio.wait(slow)
        _require(needed, streams)

    async def drop(self, draft: Draft, places: list[int]) -> None:
        """Free what was staged, as far as nodes answer; the rest expires there."""
        calls = []
        for index, node in enumerate(places):
            request = pb.DropShardRequest(
                tenant=self.peers.tenant, data_id=draft.manifest.data_id, shard_index=index
            )
            calls.append(self.peers.transport.drop_shard(node, request, self.peers.timeout))
        await asyncio.gather(*calls, return_exceptions=True)


def _require(needed: int, streams: list[_ShardStream]) -> None:
    alive = sum(not stream.failed for stream in streams)
    if alive >= needed:
        return
    errors = [stream.error for stream in streams if stream.error is not None]
    for error in errors:
        if isinstance(error, PermanentError):
            raise error
    kind = type(errors[0]) if len({type(error) for error in errors}) == 1 else Unavailable
    text = "; ".join(str(error) for error in errors)
    raise kind(f"nothing was written: {alive} of {needed} shards could be stored ({text})")


def _is_full(group: Group) -> bool:
    return len(group) == MESSAGE_SEGMENTS_MAX or sum(len(coded.cells[0]) for coded in group) >= MESSAGE_BYTES


async def _coded(
    segments: AsyncIterator[bytes], coder: SegmentCoder, pool: Executor
) -> AsyncGenerator[CodedSegment]:
    """Code segments in order: quick ones here and now, others in worker threads, one ahead of what is being sent."""
    loop = asyncio.get_running_loop()
    coding: list[asyncio.Future[CodedSegment]] = []
    segment = 0
    try:
        async for plain in segments:
            if segment >= SEGMENTS_MAX:
                raise InvalidArgument(f"an object has at most {SEGMENTS_MAX} segments (1 TiB)")
            if coder.is_quick:
                while coding:
                    yield await coding.pop(0)
                yield coder.code(segment, plain)
            else:
                coding.append(loop.run_in_executor(pool, coder.code, segment, plain))
            segment += 1
            if len(coding) >= CODING_SEGMENTS:
                yield await coding.pop(0)
        while coding:
            yield await coding.pop(0)
    finally:
        for future in coding:
            future.cancel()


def split(data: bytes | memoryview, segment_bytes: int) -> Iterator[memoryview]:
    """Cut bytes into segments without copying."""
    view = memoryview(data)
    for start in range(0, len(view), segment_bytes):
        yield view[start : start + segment_bytes]
