"""`AsyncClient`: put, get, head, list, delete and versions of health records. The sync `Client` wraps this class."""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from coffre.client._download import Downloader
from coffre.client._listing import Lister, parse_token
from coffre.client._peers import Peers
from coffre.client._ranges import RangeReader, short_range
from coffre.client._reads import Found, Reader
from coffre.client._sealing import Draft, Sealer
from coffre.client._stamps import Issuer
from coffre.client._streams import (
    PUTS_IN_FLIGHT,
    SEGMENT_BYTES,
    ByteBudget,
    chain,
    cut,
    each,
    file_chunks,
    regroup,
)
from coffre.client._upload import SegmentCoder, Uploader
from coffre.client._view import MapSource, Views
from coffre.client._writes import Shards, Writer
from coffre.client.keys import KeyProvider
from coffre.client.model import ClientOptions, ListPage, ObjectInfo, ShardPlace, check_metadata, check_text
from coffre.cluster.clock import Clock, SystemClock
from coffre.cluster.electorate import SHARDS_MAX
from coffre.cluster.errors import (
    CoffreError,
    IntegrityError,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    StaleMap,
    Unavailable,
)
from coffre.cluster.map import ClusterMap
from coffre.cluster.names import ObjectName, check_bucket, check_tenant
from coffre.cluster.transport import Transport
from coffre.cluster.versions import Stamp
from coffre.codec import crc32c
from coffre.proto import coffre_pb2 as pb

__all__ = ["AsyncClient"]

SMALL_BYTES_IN_FLIGHT = 32 << 20
LARGE_AT_ONCE = 8  # whole objects of several segments, so that many of them do not fill the memory
RETRY_SECONDS = 0.05
_T = TypeVar("_T")


class AsyncClient:
    """Reads and writes objects of one tenant.

    Methods raise `CoffreError`: `RetryableError`s may be tried again, `PermanentError`s not. All methods may be called
    concurrently from one event loop; `flush` and `aclose` wait for writes that go on after a put returned.
    """

    def __init__(
        self,
        cluster_map: ClusterMap,
        transport: Transport,
        keys: KeyProvider,
        tenant: str,
        *,
        options: ClientOptions | None = None,
        clock: Clock | None = None,
        entropy: Callable[[int], bytes] = os.urandom,
        verify: Callable[[bytes], ClusterMap] | None = None,
    ) -> None:
        """`verify` opens newer signed maps that nodes offer, or raises; without it the client stays with its map."""
        check_tenant(tenant)
        options = options or ClientOptions()
        clock = clock or SystemClock()
        self._transport = transport
        self._tenant = tenant
        self._options = options
        self._clock = clock
        self._entropy = entropy
        issuer = Issuer(clock, entropy)

        def peers_of(cluster_map: ClusterMap) -> Peers:
            return Peers(
                cluster_map.consulted,
                transport,
                clock,
                epoch=cluster_map.epoch,
                tenant=tenant,
                timeout=options.timeout,
                shards=SHARDS_MAX,
                marks=issuer.marks,
            )

        source = MapSource(transport, verify, options.timeout) if verify is not None else None
        self._views = views = Views(cluster_map, peers_of, source)
        self._budget = ByteBudget(SMALL_BYTES_IN_FLIGHT)
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="coffre-coding")
        self._sealer = Sealer(keys, entropy)
        grace, patience = options.straggler_grace, options.patience
        self._writer = Writer(views, issuer, clock, straggler_grace=grace, patience=patience)
        self._reader = Reader(views, self._sealer, self._writer, clock, hedge_delay=options.hedge_delay)
        self._uploader = Uploader(
            views,
            clock,
            self._pool,
            compress_level=options.compress_level,
            stall_timeout=options.stall_timeout,
        )
        self._downloader = Downloader(views, self._reader, self._pool, hedge_delay=options.hedge_delay)
        self._ranges = RangeReader(self._downloader)
        self._lister = Lister(views, self._reader, self._sealer)

    @property
    def tenant(self) -> str:
        return self._tenant

    @property
    def cluster_map(self) -> ClusterMap:
        return self._views.current.map

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def flush(self) -> None:
        """Wait until every node has answered every write begun so far, those beyond the bar too."""
        await self._views.drain()

    async def aclose(self) -> None:
        """Finish what is under way and close the connections."""
        await self.flush()
        await self._transport.close()
        self._pool.shutdown(wait=False)

    # ---------------------------------------------------------------- writing

    async def put(
        self,
        bucket: str,
        key: str,
        data: bytes | bytearray | memoryview | AsyncIterable[bytes],
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store an object, from bytes or from a stream of any size in constant memory.

        Returns once k+1 shards are synced on distinct nodes and the manifest on a majority. Raises `Unavailable` when
        that cannot be reached; the object is then what it was.
        """
        name = ObjectName(self._tenant, bucket, key)
        check_metadata(content_type, metadata or {})
        draft = await self._sealer.draft(name, pb.KIND_OBJECT, content_type=content_type, metadata=metadata)
        electorate = self._views.current.electorate(name)
        draft.manifest.segment_bytes = SEGMENT_BYTES
        draft.manifest.k, draft.manifest.m = electorate.k, electorate.m
        if isinstance(data, bytes | bytearray | memoryview):
            view = memoryview(data).cast("B") if isinstance(data, memoryview) else memoryview(data)
            segments = cut(view) if len(view) > SEGMENT_BYTES else None
            first: bytes | memoryview = view
        else:
            source = regroup(data)
            first = await anext(source, b"")
            second = await anext(source, None) if len(first) == SEGMENT_BYTES else None
            segments = None if second is None else chain((bytes(first), second), source)
        if segments is not None:
            shards = await self._uploader.stage(draft, segments)
            stamp = await self._establish_staged(draft, shards)
        else:
            await self._budget.take(len(first))
            try:
                stamp = await self._writer.establish(draft, self._one_segment(draft, first))
            finally:
                self._budget.give_back(len(first))
        self._reader.note_established(name, stamp)
        return ObjectInfo(
            bucket,
            key,
            str(stamp),
            draft.manifest.size_bytes,
            stamp.unixtime_ms,
            content_type,
            dict(metadata or {}),
        )

    async def _establish_staged(self, draft: Draft, shards: Shards) -> Stamp:
        try:
            return await self._writer.establish(draft, shards)
        except OutcomeUnknown:
            raise  # it may stand, and then needs every shard
        except CoffreError:
            await self._uploader.drop(draft, shards.placement)
            raise

    def _one_segment(self, draft: Draft, plain: bytes | bytearray | memoryview) -> Shards:
        """Seal and code an object of one segment; fill in the draft's size and checksums."""
        manifest = draft.manifest
        manifest.size_bytes = len(plain)
        coded = SegmentCoder(draft, manifest.k, manifest.m, self._options.compress_level).code(0, plain)
        manifest.shard_crcs = b"".join(
            [crc32c(crc.to_bytes(4, "little")).to_bytes(4, "little") for crc in coded.crcs]
        )
        return Shards([], coded.cells, coded.crcs)

    async def put_file(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ObjectInfo:
        """Store a file. `progress` gets the number of bytes read, again and again."""
        return await self.put(
            bucket, key, file_chunks(path, progress), content_type=content_type, metadata=metadata
        )

    async def put_many(
        self, bucket: str, items: Iterable[tuple[str, bytes]]
    ) -> list[ObjectInfo | CoffreError]:
        """Store many objects, 64 at a time (large ones 8); each one's outcome is in its place of the result."""

        async def put(item: tuple[str, bytes]) -> ObjectInfo:
            key, data = item
            if len(data) <= SEGMENT_BYTES:
                return await self.put(bucket, key, data)
            async with self._large:
                return await self.put(bucket, key, data)

        return await each(items, put, PUTS_IN_FLIGHT)

    async def delete(self, bucket: str, key: str) -> ObjectInfo:
        """Delete an object: every later get and list sees it gone. Deleting what does not exist is no error."""
        name = ObjectName(self._tenant, bucket, key)
        draft = await self._sealer.draft(name, pb.KIND_TOMBSTONE)
        stamp = await self._writer.establish(draft, None)
        self._reader.note_established(name, stamp)
        return ObjectInfo(bucket, key, str(stamp), 0, stamp.unixtime_ms, deleted=True)

    # ---------------------------------------------------------------- reading

    async def get(
        self, bucket: str, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> bytes:
        """Return an object, or `length` bytes of it from `start` on (fewer at its end). Raises `NotFound`."""
        name = ObjectName(self._tenant, bucket, key)
        deadline = self._clock.monotonic() + self._options.patience
        found = await self._found(name, version, want_cell=True, want_range=short_range(start, length))
        while True:
            try:
                if found.opened.segments == 1:
                    return await self._whole(found, start, length)
                async with self._large:
                    return await self._whole(found, start, length)
            except (IntegrityError, Unavailable) as error:
                found = await self._successor(found, version, error, deadline)

    async def _whole(self, found: Found, start: int, length: int | None) -> bytes:
        pieces = [piece async for piece in self._ranges.pieces(found, start, length)]
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    async def get_stream(
        self, bucket: str, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield an object, or a range of it, in pieces of about 1 MiB, in constant memory. Raises `NotFound`."""
        deadline = self._clock.monotonic() + self._options.patience
        found = await self._found(ObjectName(self._tenant, bucket, key), version, want_cell=True)
        begun = False
        while True:
            try:
                async with aclosing(self._ranges.pieces(found, start, length)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except (IntegrityError, Unavailable) as error:
                found = await self._successor(found, version, error, 0.0 if begun else deadline)
                if begun:
                    raise Unavailable("the object was overwritten while it was read; read it again") from None

    async def get_file(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        version: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write an object to a file, which appears only when it is whole and synced; return its size."""
        partial = path.with_name(f"{path.name}.{self._entropy(4).hex()}.part")
        size_bytes = 0
        loop = asyncio.get_running_loop()
        try:
            with partial.open("wb") as file:
                async with aclosing(self.get_stream(bucket, key, version=version)) as pieces:
                    async for piece in pieces:
                        await loop.run_in_executor(None, file.write, piece)
                        size_bytes += len(piece)
                        if progress is not None:
                            progress(len(piece))
                file.flush()
                await loop.run_in_executor(None, os.fsync, file.fileno())
            partial.replace(path)
        except OSError as error:
            raise InvalidArgument(f"cannot write {path}: {error.strerror}") from None
        finally:
            partial.unlink(missing_ok=True)
        return size_bytes

    async def get_many(self, bucket: str, keys: Iterable[str]) -> list[bytes | CoffreError]:
        """Return many objects, 256 at a time (large ones 8); each one's bytes or error is in its place."""
        return await each(keys, lambda key: self.get(bucket, key))

    async def head(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        """Return what is known of an object without reading its data. Raises `NotFound`."""
        found = await self._found(ObjectName(self._tenant, bucket, key), version)
        return found.opened.info()

    async def versions(self, bucket: str, key: str) -> list[ObjectInfo]:
        """Return every version that is still kept, newest first, tombstones too; empty when there never was one."""
        name = ObjectName(self._tenant, bucket, key)
        found = await self._patiently(lambda: self._reader.history(name))
        return [version.opened.info() for version in found]

    async def list_page(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        token: str | None = None,
        limit: int = 1000,
    ) -> ListPage:
        """Return one page of live objects in key order. A short page need not be the last: follow `next_token`."""
        check_bucket(bucket)
        check_text("prefix", prefix)
        check_text("delimiter", delimiter)
        if not 1 <= limit <= 1000:
            raise InvalidArgument("limit is 1 to 1000")
        after, after_prefix = parse_token(token)
        page = await self._patiently(
            lambda: self._lister.page(
                self._tenant,
                bucket,
                prefix,
                after=after,
                after_prefix=after_prefix,
                delimiter=delimiter,
                limit=limit,
            )
        )
        return ListPage(tuple(opened.info() for opened in page.objects), page.prefixes, page.token)

    async def list(
        self, bucket: str, *, prefix: str = "", delimiter: str = "", page_size: int = 1000
    ) -> AsyncIterator[ObjectInfo | str]:
        """Yield live objects, and common prefixes as text, in key order."""
        token: str | None = None
        while True:
            page = await self.list_page(
                bucket, prefix=prefix, delimiter=delimiter, token=token, limit=page_size
            )
            merged: Sequence[ObjectInfo | str] = (*page.objects, *page.prefixes)
            for entry in sorted(merged, key=_listing_position):
                yield entry
            if page.next_token is None:
                return
            token = page.next_token

    async def locate(self, bucket: str, key: str, *, version: str | None = None) -> Sequence[ShardPlace]:
        """Return where each shard of an object lies, and its state. Raises `NotFound`."""
        name = ObjectName(self._tenant, bucket, key)
        found = await self._found(name, version)
        return await self._places(name, found)

    async def _places(self, name: ObjectName, found: Found) -> Sequence[ShardPlace]:
        places = found.placement(self._views.current.electorate(name))
        answers = await self._reader.holders(name, found.opened.stamp, places)
        nodes = {node.number: node for node in self.cluster_map.nodes}
        result = []
        for index, number in enumerate(places):
            held = answers.get(number)
            if number not in answers:
                state = "unreachable"
            elif held is None or not held.HasField("shard_index") or held.shard_index != index:
                state = "missing"
            else:
                state = "damaged" if held.damaged else "ok"
            entry = nodes[number]
            size_bytes = held.shard_bytes if held is not None else 0
            parity = index >= found.opened.manifest.k
            result.append(
                ShardPlace(index, parity, entry.node_id, entry.site, entry.operator, state, size_bytes)
            )
        return result

    async def _patiently(self, read: Callable[[], Awaitable[_T]]) -> _T:
        """Read again for a while when too few nodes answer: one that restarts is back in a second."""
        deadline = self._clock.monotonic() + self._options.patience
        while True:
            view = self._views.current
            try:
                return await read()
            except (Unavailable, StaleMap) as error:
                if self._clock.monotonic() >= deadline:
                    raise
                if not (isinstance(error, StaleMap) and await self._views.renew(view)):
                    await self._clock.sleep(RETRY_SECONDS)

    async def _found(
        self,
        name: ObjectName,
        version: str | None,
        *,
        want_cell: bool = False,
        want_range: range = range(0),
    ) -> Found:
        if version is None:
            found = await self._patiently(
                lambda: self._reader.resolve(name, want_cell=want_cell, want_range=want_range)
            )
        else:
            stamp = Stamp.parse(version)
            found = await self._patiently(lambda: self._reader.find(name, stamp, want_cell=want_cell))
        if found is None or found.opened.tombstone:
            raise NotFound(
                f"{name.bucket}/{name.key} does not exist" + (f" as version {version}" if version else "")
            )
        return found

    async def _successor(
        self, found: Found, version: str | None, error: CoffreError, deadline: float
    ) -> Found:
        """After a version could not be read for `error`: the one that overwrote it, or itself to be tried again.

        A version that was replaced or deleted between finding and reading is no damage, and must not look like it.
        Raises `error` when there is no newer one, and trying again is no use or the deadline has passed.
        """
        newer = await self._found(found.opened.name, version, want_cell=True)
        if newer.opened.stamp == found.opened.stamp:
            if isinstance(error, IntegrityError) or self._clock.monotonic() >= deadline:
                raise error
            await self._clock.sleep(RETRY_SECONDS)
        return newer


# -------------------------------------------------------------------- small things


def _listing_position(entry: ObjectInfo | str) -> bytes:
    return (entry if isinstance(entry, str) else entry.key).encode()
