"""Large objects on their way in: segments are sealed, coded and streamed to all nodes at once, in constant memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass

from coffre.client._ground import Ground
from coffre.client.nodes import STUCK_SECONDS, Peers, View
from coffre.client.sealing import CellCipher, Draft, MessageMemory, Parts, SegmentCipher
from coffre.client.writing._writes import Shards
from coffre.cluster.errors import (
    ClockSkew,
    CoffreError,
    DeadlineExceeded,
    IntegrityError,
    InvalidArgument,
    PermanentError,
    ResourceExhausted,
    RetryableError,
    StaleMap,
    Unavailable,
    details_of,
)
from coffre.cluster.names import partition_of
from coffre.codec import HASH_BYTES, ShardHash, Tier, codec
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import CellMessage, ShardChunk

__all__ = ["CellCoder", "CodedSegment", "SegmentCoder", "Uploader", "code_whole"]

MESSAGE_BYTES = 1 << 20  # cells travel together until a node gets about this many bytes at once
MESSAGE_SEGMENTS_MAX = 16
QUEUED_MESSAGES_MAX = 2
MESSAGES_KEPT = QUEUED_MESSAGES_MAX + 2  # of each shard: those that wait, one being sent, one being filled
RETAINED_MESSAGES = 2  # so that a shard may still move to a substitute at the start
CUTTING_SEGMENTS = 2
SEGMENTS_MAX = 1 << 20
_SLOW_TIERS = (Tier.SCALAR, Tier.ZFEC)
STREAM_TIMEOUT_SECONDS = 24 * 3600.0
SYNC_TIMEOUTS = 6  # how many stall timeouts the sync of the first D shards may take


@dataclass(frozen=True, slots=True)
class CodedSegment:
    """The n cells of one segment, with their CRC32Cs, and their hashes one after the other."""

    segment: int
    cells: tuple[bytes | memoryview, ...]
    crcs: tuple[int, ...]
    hashes: bytes


class SegmentCoder:
    """The plaintext of a one-segment object in, n cells out."""

    def __init__(self, draft: Draft, k: int, m: int, compress_level: int | None) -> None:
        self._cipher = SegmentCipher(draft.data_key, draft.manifest.data_id, k, compress_level=compress_level)
        self._codec = codec(k, m)
        self._k, self._m = k, m

    def code(self, segment: int, plain: bytes | bytearray | memoryview) -> CodedSegment:
        """Compress, encrypt and code one segment of at most 1 MiB; cells in the order of their indexes."""
        frame = self._cipher.frame(plain)
        cell_bytes = frame.sealed_bytes // self._k
        whole = memoryview(bytearray(cell_bytes * (self._k + self._m)))
        sealed, parity = whole[: frame.sealed_bytes], whole[frame.sealed_bytes :]
        self._cipher.seal_into(segment, frame, sealed)
        crcs, hashes = self._codec.encode_segment(sealed, parity)
        views = [whole[start : start + cell_bytes] for start in range(0, len(whole), cell_bytes)]
        return CodedSegment(segment, tuple(views), crcs, hashes)


def code_whole(
    draft: Draft, plain: bytes | bytearray | memoryview, compress_level: int | None
) -> CodedSegment:
    """Seal and code an object of one segment; fill in the draft's size and hashes."""
    manifest = draft.manifest
    manifest.size_bytes = len(plain)
    coded = SegmentCoder(draft, manifest.k, manifest.m, compress_level).code(0, plain)
    manifest.shard_hashes = coded.hashes  # each shard is one cell
    return coded


class CellCoder:
    """Plaintext segments of a larger object in, their cells out where they will travel: in messages of each shard."""

    def __init__(self, draft: Draft, k: int, m: int, compress_level: int | None) -> None:
        self._cipher = CellCipher(draft.data_key, draft.manifest.data_id, k, compress_level=compress_level)
        self._codec = codec(k, m)
        self._k = k
        self._memories = [MessageMemory(MESSAGES_KEPT) for _ in range(k + m)]
        self._messages: list[CellMessage] = []
        self._segments = 0
        self._cell_bytes = 0

    @property
    def compresses_next(self) -> bool:
        """Whether `cut` takes longer for the next segment than to hand it to another thread and back would."""
        return self._cipher.compresses_next

    @property
    def is_slow(self) -> bool:
        """Whether `add` takes longer than that."""
        return self._codec.tier in _SLOW_TIERS

    @property
    def is_full(self) -> bool:
        """Whether the next message should be sent now."""
        return self._segments == MESSAGE_SEGMENTS_MAX or self._cell_bytes >= MESSAGE_BYTES

    @property
    def shards(self) -> int:
        """How many shards there are: k + m."""
        return len(self._memories)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be sent."""
        return not self._segments

    def cut(self, plain: bytes | bytearray | memoryview) -> Parts:
        """Compress a segment where that helps; threads may do so for several at once."""
        return self._cipher.cut(plain)

    def add(self, segment: int, parts: Parts) -> bytes:
        """Encrypt and code the next segment into the messages under way; return its cells' hashes in one."""
        if not self._messages:
            self._messages = [CellMessage(memory.take()) for memory in self._memories]
        cells = [message.reserve(segment, parts.cell_bytes) for message in self._messages]
        self._cipher.seal_into(segment, parts, cells[: self._k])
        crcs, hashes = self._codec.encode_into(cells[: self._k], cells[self._k :])
        for message, cell, crc in zip(self._messages, cells, crcs, strict=True):
            cell.release()
            message.set_crc(crc)
        self._segments += 1
        self._cell_bytes += parts.cell_bytes
        return hashes

    def finish(self) -> list[ShardChunk]:
        """The messages with all that was added since the last ones, in shard order."""
        chunks = [message.finish() for message in self._messages]
        self._messages = []
        self._segments = self._cell_bytes = 0
        return chunks


class _ShardStream:
    """One shard on its way to one node; to another when the first fails before much was sent."""

    def __init__(self, uploader: Uploader, draft: Draft, index: int, node: int) -> None:
        self._uploader = uploader
        self._draft = draft
        self.index = index
        self.node = node
        self._queue: asyncio.Queue[ShardChunk | None] = asyncio.Queue(QUEUED_MESSAGES_MAX)
        self._retained: list[ShardChunk] | None = []
        self._ended = False
        self.error: CoffreError | None = None
        self.reply: pb.WriteShardReply | None = None
        self._call = asyncio.create_task(self._run())

    @property
    def failed(self) -> bool:
        return self.error is not None

    def put_at_once(self, chunk: ShardChunk | None) -> bool:
        """Hand on a message, or the end, when there is room for it now."""
        if self._queue.full():
            return False
        self._queue.put_nowait(chunk)
        return True

    async def put(self, chunk: ShardChunk | None) -> None:
        """Hand on a message, or the end; returns at once when the stream has failed."""
        if self.failed:
            return
        putting = asyncio.ensure_future(self._queue.put(chunk))
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
        self._retained = None
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
                    # By the map that chose it: the newest may have taken it out meanwhile.
                    self._uploader.view(self._draft).peers[self.node].note_failure()
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
        for chunk in list(self._retained or ()):
            yield chunk
        while not self._ended:
            chunk_or_end = await self._queue.get()
            if chunk_or_end is None:
                self._ended = True  # a substitute that takes over from here must not wait for another end
                return
            if self._retained is not None:
                self._retained.append(chunk_or_end)
                if len(self._retained) > RETAINED_MESSAGES:
                    self._retained = None
            yield chunk_or_end


@dataclass(frozen=True, slots=True)
class _Staging:
    """An upload under way: where its shards go, and which nodes were tried."""

    view: View
    places: list[int]
    tried: set[int]


class Uploader:
    """Stages the shards of large objects."""

    def __init__(self, ground: Ground) -> None:
        self._views = ground.views
        self._clock = ground.clock
        self._pool = ground.pool
        self._compress_level = ground.options.compress_level
        self._stall_timeout = ground.options.stall_timeout
        self._under_way: dict[bytes, _Staging] = {}  # by data id

    @property
    def peers(self) -> Peers:
        """The lanes to the nodes, at the newest map."""
        return self._views.current.peers

    def view(self, draft: Draft) -> View:
        """What an upload that is under way was begun with."""
        return self._under_way[draft.manifest.data_id].view

    def substitute(self, draft: Draft, index: int) -> int | None:
        """Reserve a node that may take shard `index` instead of the one that failed."""
        staging = self._under_way[draft.manifest.data_id]
        view, places = staging.view, staging.places
        allowed = view.substitutes(draft.name)
        partition = partition_of(draft.name, view.map.partitions)
        for node in view.placement(draft.name).substitutes(partition, places, index):
            if node not in staging.tried and node in allowed:
                staging.tried.add(node)
                places[index] = node
                return node
        return None

    async def stage(self, draft: Draft, segments: AsyncIterator[bytes]) -> Shards:
        """Stream the object; fill in the draft's coding, size and checksums; return where the shards are.

        Coding and places are those of one view: another map that comes meanwhile changes neither.
        Raises the nodes' error when fewer than D shards are synced, or `StaleMap` if there is a newer map by then:
        nodes take shards at any epoch, and say nothing. What was staged is then dropped.
        """
        view = self._views.current
        electorate = view.electorate(draft.name)
        draft.manifest.k, draft.manifest.m = electorate.k, electorate.m
        places = list(electorate.primaries)
        self._under_way[draft.manifest.data_id] = _Staging(view, places, set(places))
        streams: list[_ShardStream] = []
        try:
            for index in range(len(places)):
                streams.append(_ShardStream(self, draft, index, self._place(draft, index)))
            self._spare(view, streams, needed=electorate.k + 1)
            await self._stream(draft, segments, streams)
            good = frozenset(stream.index for stream in streams if not stream.failed)
            return Shards(places, staged=good)
        except BaseException as error:
            for stream in streams:
                stream.fail(Unavailable("the upload was given up"))
            await asyncio.gather(*(stream.finish() for stream in streams), return_exceptions=True)
            await self.drop(draft, places)
            if isinstance(error, RetryableError) and await self._views.renew(view):
                raise StaleMap(f"{error}; the map has changed meanwhile: put the object again") from None
            raise
        finally:
            del self._under_way[draft.manifest.data_id]

    def _place(self, draft: Draft, index: int) -> int:
        """The node for shard `index`: its primary, or a substitute where much was left behind there already."""
        staging = self._under_way[draft.manifest.data_id]
        primary = staging.places[index]
        if staging.view.peers[primary].takes_streams:
            return primary
        substitute = self.substitute(draft, index)
        return primary if substitute is None else substitute

    def _spare(self, view: View, streams: Sequence[_ShardStream], needed: int) -> None:
        """Begin nothing with nodes that hang, unless they are needed: each would keep some megabytes for a while."""
        stuck = [stream for stream in streams if not view.peers[stream.node].takes_streams]
        if len(streams) - len(stuck) >= needed:
            for stream in stuck:
                name = view.peers.name_of(stream.node)
                stream.fail(Unavailable(f"node {name} hangs", node=name))

    async def _stream(
        self, draft: Draft, segments: AsyncIterator[bytes], streams: list[_ShardStream]
    ) -> None:
        draft.set_sealing(pb.SEALING_CELL)
        coder = CellCoder(draft, draft.manifest.k, draft.manifest.m, self._compress_level)
        assert len(streams) == coder.shards
        shards = [ShardHash() for _ in streams]
        needed = draft.manifest.k + 1
        size_bytes = 0
        cells = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size_bytes
            async for plain in segments:
                size_bytes += len(plain)
                yield plain

        async with aclosing(_cut(counted(), coder, self._pool)) as every:
            async for parts in every:
                if coder.is_slow:
                    loop = asyncio.get_running_loop()
                    hashes = await loop.run_in_executor(self._pool, coder.add, cells, parts)
                else:
                    hashes = coder.add(cells, parts)
                cells += 1
                for index, shard in enumerate(shards):
                    shard.add(hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)])
                if coder.is_full:
                    await self._distribute(needed, coder.finish(), streams)
        if not coder.is_empty:
            await self._distribute(needed, coder.finish(), streams)
        await self._distribute(needed, [None] * len(streams), streams)
        await self._finish(needed, streams)
        digests = [shard.digest() for shard in shards]
        for stream in streams:
            reply = stream.reply
            if reply is not None and (reply.cell_count != cells or reply.shard_hash != digests[stream.index]):
                name = self.peers.name_of(stream.node)
                stream.error = IntegrityError(f"node {name} stored something else than was sent", node=name)
        _require(needed, streams)
        draft.manifest.size_bytes = size_bytes
        draft.manifest.shard_hashes = b"".join(digests)

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
                    name = self.peers.name_of(stream.node)
                    stream.fail(DeadlineExceeded(f"node {name} did not confirm its shard", node=name))
                break
            synced += sum(not calls[call].failed for call in done)
            if synced >= needed:
                patience = self._stall_timeout
        await asyncio.gather(*(stream.finish() for stream in streams))

    async def _distribute(
        self, needed: int, chunks: Sequence[ShardChunk | None], streams: Sequence[_ShardStream]
    ) -> None:
        """Hand each stream its message, or the end; a node that alone holds up the others is left behind."""
        _require(needed, streams)
        full = [
            (stream, chunk)
            for stream, chunk in zip(streams, chunks, strict=True)
            if not stream.failed and not stream.put_at_once(chunk)
        ]
        if not full:
            return
        tasks = {asyncio.ensure_future(stream.put(chunk)): stream for stream, chunk in full}
        patience = self._stall_timeout
        others = sum(not stream.failed for stream in streams) - len(full)
        if others >= needed and all(self._hung_before(stream.node) for stream, _ in full):
            patience = min(patience, STUCK_SECONDS)
        _, slow = await asyncio.wait(tasks, timeout=patience)
        for task in slow:
            node = tasks[task].node
            name = self.peers.name_of(node)
            tasks[task].fail(DeadlineExceeded(f"node {name} took nothing for {patience:g} s", node=name))
            if node in self.peers:
                self.peers[node].note_failure()
                self.peers[node].note_left_behind(MESSAGES_KEPT * MESSAGE_BYTES)
        if slow:
            await asyncio.wait(slow)
        _require(needed, streams)

    def _hung_before(self, node: int) -> bool:
        """Whether a node failed lately, or keeps a message of somebody else: it may hang still."""
        return node in self.peers and (
            self.peers[node].suspect or self.peers[node].writes.lags(STUCK_SECONDS)
        )

    async def drop(self, draft: Draft, places: list[int]) -> None:
        """Free what was staged, as far as nodes answer; the rest expires there."""
        calls = []
        for index, node in enumerate(places):
            request = pb.DropShardRequest(
                tenant=self.peers.tenant, data_id=draft.manifest.data_id, shard_index=index
            )
            calls.append(self.peers.transport.drop_shard(node, request, self.peers.timeout))
        await asyncio.gather(*calls, return_exceptions=True)


def _require(needed: int, streams: Sequence[_ShardStream]) -> None:
    alive = sum(not stream.failed for stream in streams)
    if alive >= needed:
        return
    errors = [stream.error for stream in streams if stream.error is not None]
    for error in errors:
        if isinstance(error, PermanentError):
            raise error
    kinds = {type(error) for error in errors}
    kind = kinds.pop() if len(kinds) == 1 else Unavailable
    if kind not in (
        ResourceExhausted,
        StaleMap,
        ClockSkew,
    ):  # whether they hang or are gone, too few are there
        kind = Unavailable
    text = "; ".join(str(error) for error in errors)
    raise kind(
        f"nothing was written: {alive} of {needed} shards could be stored ({text})",
        details=details_of(errors),
    )


async def _cut(segments: AsyncIterator[bytes], coder: CellCoder, pool: Executor) -> AsyncGenerator[Parts]:
    """Cut segments in order; those that are to be compressed in worker threads, one ahead of what is being sent."""
    loop = asyncio.get_running_loop()
    cutting: list[asyncio.Future[Parts]] = []
    count = 0
    try:
        async for plain in segments:
            if count >= SEGMENTS_MAX:
                raise InvalidArgument(f"an object has at most {SEGMENTS_MAX} segments (1 TiB)")
            count += 1
            if coder.compresses_next:
                cutting.append(loop.run_in_executor(pool, coder.cut, plain))
            else:
                while cutting:
                    yield await cutting.pop(0)
                yield coder.cut(plain)
            if len(cutting) >= CUTTING_SEGMENTS:
                yield await cutting.pop(0)
        while cutting:
            yield await cutting.pop(0)
    finally:
        for future in cutting:
            future.cancel()
