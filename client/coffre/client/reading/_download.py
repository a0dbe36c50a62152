"""Objects on their way out: the k fastest shards, hedged, verified, decoded around what is damaged or missing."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import NamedTuple

from coffre.client._ground import Ground
from coffre.client.nodes import Peers
from coffre.client.reading._found import Found
from coffre.client.reading._reads import Reader
from coffre.client.sealing import CellCipher, OpenManifest, SegmentCipher, cipher_of, open_segment
from coffre.cluster.errors import (
    CoffreError,
    IntegrityError,
    NotFound,
    RetryableError,
    Unavailable,
    details_of,
)
from coffre.codec import crc32c
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk

__all__ = ["Downloader"]

WINDOW_SEGMENTS = 6  # how far a shard may run ahead of the segment that is wanted
OPENING_SEGMENTS = 2
RESTARTS_MAX = 3
STREAM_TIMEOUT_SECONDS = 24 * 3600.0


class Downloader:
    """Reads the bytes of versions that were found."""

    def __init__(self, ground: Ground, reader: Reader) -> None:
        self._views = ground.views
        self._reader = reader
        self._pool = ground.pool
        self._hedge_delay = ground.options.hedge_delay

    async def one_segment(self, found: Found) -> bytes | memoryview:
        """Return a one-segment object from the cells that came with its manifest, or ask for more."""
        opened, cells = found.opened, found.cells
        manifest = opened.manifest
        cipher = cipher_of(opened)
        if len(cells.good) >= manifest.k:
            try:
                return open_segment(opened, cipher, 0, cells.good)
            except IntegrityError:
                pass  # a cell lies: more of them tell which
        view = self._views.current
        places = found.placement(view)
        await self._reader.fetch_cells(
            opened.name, found, view.electorate(opened.name).everyone.union(places)
        )
        missing = set(range(manifest.k + manifest.m)) - set(cells.good)
        self._report(opened, missing & cells.bad, places)
        if len(cells.good) < manifest.k:
            await self._reader.fetch_cells(opened.name, found, [peer.number for peer in self._peers.all()])
        if len(cells.good) < manifest.k:
            raise _too_few(opened, len(cells.good), cells.bad)
        return open_segment(opened, cipher, 0, cells.good)

    async def segments(self, found: Found, wanted: range) -> AsyncGenerator[bytes | memoryview]:
        """Yield the plaintext of the `wanted` segments, in order, in constant memory."""
        places = await self._reader.places(found)
        assembly = _Assembly(self, found, places, wanted)
        opened = found.opened
        cipher = cipher_of(opened)
        opening: deque[_Opening] = deque()

        async def opened_next() -> bytes | memoryview:
            segment, cells, plain = opening.popleft()
            try:
                return await plain
            except IntegrityError:
                # Some cell lies under a matching checksum: all that can be had tell which.
                others = [index for index in range(len(assembly.places)) if index not in cells]
                await assembly.fetch(segment, others, cells)
                return await self._open(opened, cipher, segment, cells)

        try:
            for segment in wanted:
                cells = await assembly.cells(segment)
                opening.append(_Opening(segment, cells, self._open(opened, cipher, segment, cells)))
                if len(opening) >= OPENING_SEGMENTS or opening[0].plain.done():
                    yield await opened_next()
            while opening:
                yield await opened_next()
        finally:
            await assembly.close()
            self._report(opened, assembly.damaged, places)

    async def data_cells(
        self, found: Found, segment: int, indexes: Iterable[int]
    ) -> dict[int, bytes | memoryview]:
        """Those of the data cells `indexes` of one segment that came along, or that their nodes send at once.

        What is missing then is damaged, absent, or later than a hedge would be.
        """
        places = await self._reader.places(found)
        assembly = _Assembly(self, found, places, range(segment, segment + 1))
        cells = assembly.along(segment)
        missing = [i for i in indexes if i not in cells and not self.is_slow(assembly.places[i])]
        if missing:
            try:
                async with asyncio.timeout(self._hedge_delay):
                    await assembly.fetch(segment, missing, cells)
            except TimeoutError:
                pass  # the caller goes on with what there is
        return cells

    def _open(
        self,
        opened: OpenManifest,
        cipher: SegmentCipher | CellCipher,
        segment: int,
        cells: Mapping[int, bytes | memoryview],
    ) -> asyncio.Future[bytes | memoryview]:
        """Decrypt a segment: here and now when that takes less time than a thread's turn, else in a thread."""
        loop = asyncio.get_running_loop()
        compressed = sum(map(len, cells.values())) < opened.plain_bytes(segment)
        if compressed or max(cells) >= opened.manifest.k or len(cells) > opened.manifest.k:
            return loop.run_in_executor(self._pool, open_segment, opened, cipher, segment, cells)
        plain: asyncio.Future[bytes | memoryview] = loop.create_future()
        try:
            plain.set_result(open_segment(opened, cipher, segment, cells))
        except IntegrityError as error:
            plain.set_exception(error)
        return plain

    def read_shard(
        self, opened: OpenManifest, node: int, index: int, first: int, count: int
    ) -> AsyncIterator[ShardChunk]:
        request = pb.ReadShardRequest(
            epoch=self._peers.epoch,
            tenant=self._peers.tenant,
            bucket=opened.name.bucket,
            key=opened.name.key,
            stamp=opened.manifest.stamp,
            shard_index=index,
            first_segment=first,
            segment_count=count,
        )
        return self._peers.transport.read_shard(node, request, STREAM_TIMEOUT_SECONDS)

    @property
    def _peers(self) -> Peers:
        return self._views.current.peers

    @property
    def hedge_delay(self) -> float:
        """Seconds after which one more node is asked."""
        return self._hedge_delay

    def is_suspect(self, node: int) -> bool:
        """Whether a node is not to be asked first: it fails, or the map has it no more."""
        return node not in self._peers or self._peers[node].suspect

    def is_slow(self, node: int) -> bool:
        """Whether a node is to be asked last: it failed lately, has been slow for a while or kept going away, or keeps
        others waiting longer than a hedge would."""
        if node not in self._peers:
            return True
        peer = self._peers[node]
        return peer.is_set_aside or peer.reads.lags(self._hedge_delay)

    def note_failure(self, node: int) -> None:
        """Count a failure of a node."""
        if node in self._peers:  # else a newer map has taken it out meanwhile
            self._peers[node].note_failure()

    def _report(self, opened: OpenManifest, indexes: set[int], places: tuple[int, ...]) -> None:
        """Queue shards for repair on two nodes, lazily."""
        for index in indexes:
            report = pb.Report(
                bucket=opened.name.bucket, key=opened.name.key, stamp=opened.manifest.stamp, shard_index=index
            )
            healthy = [
                node for place, node in enumerate(places) if place != index and not self.is_suspect(node)
            ]
            for node in healthy[:2]:
                self._peers[node].writes.submit_lazily(pb.Operation(report=report))


def _too_few(opened: OpenManifest, good: int, bad: set[int]) -> CoffreError:
    k = opened.manifest.k
    if good + len(bad) >= k:
        return IntegrityError(f"{good} intact shards were found, {k} are needed; {len(bad)} are damaged")
    return Unavailable(f"{good} shards of the object can be reached, {k} are needed")


class _Opening(NamedTuple):
    segment: int
    cells: dict[int, bytes | memoryview]
    plain: asyncio.Future[bytes | memoryview]


class _Assembly:
    """Cells that came with the version, and streams of shards for the others, merged segment by segment."""

    def __init__(self, downloader: Downloader, found: Found, places: tuple[int, ...], wanted: range) -> None:
        self._downloader = downloader
        self.opened = found.opened
        self.wanted = wanted
        self._k = found.opened.manifest.k
        self.places = places
        self._end = wanted.stop
        self._current = wanted.start
        self._cells: dict[int, dict[int, bytes | memoryview]] = {}
        self._moved = asyncio.Event()
        self._arrived = asyncio.Event()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._spare = sorted(range(len(places)), key=lambda index: (downloader.is_slow(places[index]), index))
        self._failed: dict[int, CoffreError] = {}
        self._starts: Counter[int] = Counter()
        self.damaged: set[int] = set()
        for version in found.versions.values():
            if version.cells and version.HasField("shard_index"):
                self._take_all(version.shard_index, version.cells)

    def _take_all(self, index: int, cells: Iterable[pb.Cell]) -> None:
        """Cells of one shard that came along: the good ones of the segments that are wanted."""
        for cell in cells:
            if crc32c(cell.data) != cell.crc:
                self.damaged.add(index)
            elif cell.segment in self.wanted:
                self._cells.setdefault(cell.segment, {})[index] = cell.data

    async def cells(self, segment: int) -> dict[int, bytes | memoryview]:
        """Wait for k cells of `segment`, asking further shards when some fail or lag."""
        self._current = segment
        self._moved.set()
        self._moved = asyncio.Event()
        while len(got := self._cells.setdefault(segment, {})) < self._k:
            self._fill_up()
            reachable = {index for index, task in self._tasks.items() if not task.done()} | set(got)
            if len(reachable) < self._k:
                raise self._too_few(segment)
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._downloader.hedge_delay if self._spare else None):
                    await self._arrived.wait()
            except TimeoutError:
                if self._spare:
                    self._start(self._spare.pop(0))
        self._cells.pop(segment)
        for old in [number for number in self._cells if number < segment]:
            del self._cells[old]
        return dict(sorted(got.items())[: self._k])

    def _fill_up(self) -> None:
        """Keep k streams running: spares first, then those that failed in a way that may pass."""
        running = sum(not task.done() for task in self._tasks.values())
        while running < self._k:
            if not self._spare:
                self._spare = [i for i, error in self._failed.items() if self._may_retry(i, error)]
                for index in self._spare:
                    del self._failed[index]
            if not self._spare:
                return
            self._start(self._spare.pop(0))
            running += 1

    def _may_retry(self, index: int, error: CoffreError) -> bool:
        return isinstance(error, RetryableError) and self._starts[index] <= RESTARTS_MAX

    def along(self, segment: int) -> dict[int, bytes | memoryview]:
        """The good cells of `segment` that came with the version."""
        return dict(self._cells.get(segment, {}))

    async def fetch(self, segment: int, indexes: Iterable[int], cells: dict[int, bytes | memoryview]) -> None:
        """Add those cells of one segment to `cells` that can be had, and pass over the others."""

        async def fetch_one(index: int) -> None:
            await self._read(index, segment, 1, lambda _, cell: cells.__setitem__(index, cell))

        await asyncio.gather(*map(fetch_one, indexes), return_exceptions=True)

    async def close(self) -> None:
        """End all calls."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _too_few(self, segment: int) -> CoffreError:
        if not self._failed:
            return Unavailable(f"segment {segment}: too few shards")
        if all(isinstance(error, (IntegrityError, NotFound)) for error in self._failed.values()):
            return IntegrityError(f"segment {segment}: {len(self._failed)} shards are damaged or missing")
        texts = (f"shard {index}: {error}" for index, error in self._failed.items())
        return Unavailable("; ".join(texts), details=details_of(self._failed.values()))

    def _start(self, index: int) -> None:
        self._starts[index] += 1
        self._tasks[index] = asyncio.create_task(self._run(index, self._current))

    async def _run(self, index: int, first: int) -> None:
        try:
            await self._read(index, first, self._end - first, lambda seg, cell: self._take(index, seg, cell))
        except CoffreError as error:
            self._failed[index] = error
            if isinstance(error, (IntegrityError, NotFound)):
                self.damaged.add(index)
            else:
                self._downloader.note_failure(self.places[index])
        finally:
            self._arrived.set()

    def _take(self, index: int, segment: int, cell: bytes | memoryview) -> None:
        if segment >= self._current:
            self._cells.setdefault(segment, {})[index] = cell
            if segment == self._current:
                self._arrived.set()

    async def _read(
        self, index: int, first: int, count: int, take: Callable[[int, bytes | memoryview], None]
    ) -> None:
        """Read cells of one shard, verify each, hand them on; pause while too far ahead of the reader."""
        expected = first
        replies = self._downloader.read_shard(self.opened, self.places[index], index, first, count)
        async with aclosing(replies) as stream:  # type: ignore[type-var]  # both twins return async generators
            async for reply in stream:
                for cell in reply.cells:
                    if expected == first + count or cell.segment != expected or crc32c(cell.data) != cell.crc:
                        raise IntegrityError(f"shard {index} is damaged at segment {expected}")
                    take(cell.segment, cell.data)
                    expected += 1
                while count > 1 and expected > self._current + WINDOW_SEGMENTS:
                    await self._moved.wait()
        if expected != first + count:
            raise IntegrityError(f"shard {index} ends at segment {expected} instead of {first + count}")
