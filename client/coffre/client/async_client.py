"""`AsyncClient`: put, get, head, list, delete and versions of health records. The sync `Client` wraps this class."""

from __future__ import annotations

import asyncio
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from coffre.client._ground import Ground
from coffre.client._parts import assemble
from coffre.client._sources import ObjectData, StrPath, file_chunks, source_of
from coffre.client._streams import (
    PUTS_IN_FLIGHT,
    SEGMENT_BYTES,
    each,
)
from coffre.client._targets import open_target
from coffre.client.keys import KeyProvider
from coffre.client.model import (
    ClientOptions,
    ListPage,
    ObjectInfo,
    RecodeReport,
    ShardPlace,
    check_metadata,
    check_text,
)
from coffre.client.nodes import Background, MapSource, Peers, Views
from coffre.client.puts import condition_of
from coffre.client.reading import Found, parse_token, short_range
from coffre.client.sealing import Sealer
from coffre.client.writing import Issuer
from coffre.cluster.clock import Clock, SystemClock
from coffre.cluster.coordination import (
    Bucket,
    Coordination,
    KeyLocks,
    Session,
    create_bucket,
    delete_bucket,
    list_buckets,
)
from coffre.cluster.errors import (
    CoffreError,
    IntegrityError,
    InvalidArgument,
    Unavailable,
)
from coffre.cluster.map import SHARDS_MAX, ClusterMap
from coffre.cluster.names import ObjectName, check_bucket, check_tenant
from coffre.cluster.transport import Transport
from coffre.proto import coffre_pb2 as pb

__all__ = ["AsyncClient"]

MAPS_PAUSE_SECONDS = 0.5  # before coordination is asked for maps again
LARGE_AT_ONCE = 8  # whole objects of several segments, so that many of them do not fill the memory
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
        coordination: Coordination | None = None,
        maps: MapSource | None = None,
    ) -> None:
        """`coordination`: for conditional writes and buckets. `maps`: where newer maps come from."""
        check_tenant(tenant)
        options, clock = options or ClientOptions(), clock or SystemClock()
        issuer = Issuer(clock, entropy)
        peers_of = _peers_of(transport, clock, tenant, options.timeout, issuer)
        self._tenant = tenant
        self._transport = transport
        self._maps = maps
        self._coordination = coordination
        self._session = Session(coordination, clock) if coordination is not None else None
        self._background = Background()
        self._following = False
        self._views = Views(cluster_map, peers_of, transport, maps)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="coffre-coding")
        self._ground = Ground(self._views, clock, Sealer(keys, entropy), self._pool, options, entropy)
        self._parts = assemble(self._ground, issuer, _locks(coordination, self._session, clock, entropy))
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    @property
    def tenant(self) -> str:
        """The tenant whose objects these are, from the client's certificate."""
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
        await self._background.stop()
        await self.flush()
        if self._session is not None:
            await self._session.close()
        await self._transport.close()
        self._pool.shutdown(wait=False)

    # ---------------------------------------------------------------- the map

    async def _follow(self, maps: MapSource) -> None:
        """Adopt maps as they are published, until this client is closed."""
        while True:
            with suppress(CoffreError):  # no coordination now, or a map of no use here: what there is goes on
                async with aclosing(maps.watch()) as published:
                    async for found in published:
                        await self._views.adopt(found.map)
            await self._ground.clock.sleep(MAPS_PAUSE_SECONDS)

    def _follow_maps(self) -> None:
        """With the first operation, begin to adopt maps as they are published."""
        if self._maps is not None and not self._following:
            self._following = True
            self._background.start(self._follow(self._maps))

    # ---------------------------------------------------------------- writing

    async def put(
        self,
        bucket: str,
        key: str,
        data: ObjectData,
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
    ) -> ObjectInfo:
        """Store an object: bytes, what has `read(n)` (a file, an upload) or what yields bytes, in constant memory.

        Returns once k+1 shards are synced on distinct nodes and the manifest on a majority. Raises `Unavailable` when
        that cannot be reached; the object is then what it was. With `if_absent` or `if_version` it is stored only when
        there is no object, or its newest version is that one, else `AlreadyExists` or `PreconditionFailed` (of many
        that race, one wins).
        """
        name = ObjectName(self._tenant, bucket, key)
        check_metadata(content_type, metadata or {})
        condition = condition_of(if_absent, if_version)
        source = source_of(data)
        self._follow_maps()
        if condition is not None:
            await self._parts.conditional.check(name, condition)
        draft = await self._ground.sealer.draft(
            name, pb.KIND_OBJECT, content_type=content_type, metadata=metadata
        )
        async with _closing(source):
            stamp = await self._parts.putter.put(draft, source, condition)
        size_bytes, user = draft.manifest.size_bytes, dict(metadata or {})
        return ObjectInfo(bucket, key, str(stamp), size_bytes, stamp.unixtime_ms, content_type, user)

    async def put_file(
        self,
        bucket: str,
        key: str,
        path: StrPath,
        *,
        content_type: str = "",
        metadata: Mapping[str, str] | None = None,
        if_absent: bool = False,
        if_version: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ObjectInfo:
        """Store a file, as `put` does. `progress` gets the number of bytes read, again and again.

        Raises `InvalidArgument`, and stores nothing, when it cannot be read, or was written to meanwhile.
        """
        async with aclosing(file_chunks(path, progress)) as chunks:
            return await self.put(
                bucket,
                key,
                chunks,
                content_type=content_type,
                metadata=metadata,
                if_absent=if_absent,
                if_version=if_version,
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

    async def delete(self, bucket: str, key: str, *, if_version: str | None = None) -> ObjectInfo:
        """Delete an object: every later get and list sees it gone. Deleting what does not exist is no error.

        With `if_version` only if that is its newest version, else `PreconditionFailed`.
        """
        name = ObjectName(self._tenant, bucket, key)
        condition = condition_of(False, if_version)
        self._follow_maps()
        draft = await self._ground.sealer.draft(name, pb.KIND_TOMBSTONE)
        stamp = await self._parts.putter.establish(draft, None, condition)
        return ObjectInfo(bucket, key, str(stamp), 0, stamp.unixtime_ms, deleted=True)

    # ---------------------------------------------------------------- buckets

    async def create_bucket(self, bucket: str, *, policy: str = "") -> None:
        """Enter a bucket, with a storage policy of the map (empty: the default one). Raises `AlreadyExists`.

        Objects can also be put into a bucket that was never created.
        """
        if policy:
            self.cluster_map.policy(policy)
        entered = Bucket(self._tenant, bucket, policy, self._ground.clock.unixtime_ms())
        await create_bucket(self._agreed(), entered)

    async def list_buckets(self) -> list[str]:
        """The names of the buckets that were created, in order."""
        return [bucket.name for bucket in await list_buckets(self._agreed(), self._tenant)]

    async def delete_bucket(self, bucket: str) -> None:
        """Forget that a bucket was created; objects in it are not touched. Raises `NotFound`."""
        await delete_bucket(self._agreed(), self._tenant, bucket)

    async def recode(
        self,
        bucket: str,
        *,
        dry_run: bool = False,
        bytes_per_second: float | None = None,
        progress: Callable[[RecodeReport], None] | None = None,
    ) -> RecodeReport:
        """Code objects anew that have another k and m than the bucket's policy says now (docs/recoding.md).

        May be interrupted anywhere and repeated. `dry_run`: only say how much there is. `bytes_per_second`: of
        plaintext, at most. `progress` hears of every object. Raises `Conflict` while another client is at it.
        """
        check_bucket(bucket)
        self._follow_maps()
        if dry_run:
            return await self._parts.recoder.survey(self._tenant, bucket)
        return await self._parts.recoder.run(
            self._tenant,
            bucket,
            bytes_per_second=bytes_per_second,
            progress=progress or (lambda report: None),
        )

    def _agreed(self) -> Coordination:
        if self._coordination is None:
            raise Unavailable("buckets need coordination, and this client has none")
        return self._coordination

    # ---------------------------------------------------------------- reading

    async def get(
        self, bucket: str, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> bytes:
        """Return an object, or `length` bytes of it from `start` on (fewer at its end). Raises `NotFound`."""
        name = ObjectName(self._tenant, bucket, key)
        self._follow_maps()
        deadline = self._ground.clock.monotonic() + self._ground.options.patience
        lookup, wanted = self._parts.lookup, short_range(start, length)
        found = await lookup.found(name, version, want_cell=True, want_range=wanted)
        while True:
            try:
                if found.opened.segments == 1:
                    return await self._whole(found, start, length)
                async with self._large:
                    return await self._whole(found, start, length)
            except (IntegrityError, Unavailable) as error:
                found = await lookup.successor(found, version, error, deadline)

    async def _whole(self, found: Found, start: int, length: int | None) -> bytes:
        pieces = [piece async for piece in self._parts.ranges.pieces(found, start, length)]
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    async def get_stream(
        self, bucket: str, key: str, *, start: int = 0, length: int | None = None, version: str | None = None
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield an object, or a range of it, in pieces of about 1 MiB, in constant memory. Raises `NotFound`."""
        deadline = self._ground.clock.monotonic() + self._ground.options.patience
        name = ObjectName(self._tenant, bucket, key)
        self._follow_maps()
        found = await self._parts.lookup.found(name, version, want_cell=True)
        begun = False
        while True:
            try:
                async with aclosing(self._parts.ranges.pieces(found, start, length)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                return
            except (IntegrityError, Unavailable) as error:
                until = 0.0 if begun else deadline
                found = await self._parts.lookup.successor(found, version, error, until)
                if begun:
                    raise Unavailable("the object was overwritten while it was read; read it again") from None

    async def get_file(
        self,
        bucket: str,
        key: str,
        path: Path,
        *,
        start: int = 0,
        length: int | None = None,
        version: str | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write an object, or a range of it, to a file; return the number of bytes. Raises `NotFound`.

        A regular file appears only when it is whole and synced, in the mode of one that it replaces. Links are
        followed, and what is no regular file (a device, a pipe) is written into. `progress` gets numbers of bytes.
        """
        if "\0" in str(path):
            raise InvalidArgument("the name of a file has no NUL")
        pieces = self.get_stream(bucket, key, start=start, length=length, version=version)
        size_bytes = 0
        try:
            async with aclosing(pieces):
                piece = await anext(pieces, None)  # what does not exist touches no file
                async with open_target(path, self._ground.entropy(4).hex()) as write:
                    while piece is not None:
                        await write(piece)
                        size_bytes += len(piece)
                        if progress is not None:
                            progress(len(piece))
                        piece = await anext(pieces, None)
        except OSError as error:
            raise InvalidArgument(f"cannot write {path}: {error.strerror}") from None
        return size_bytes

    async def get_many(self, bucket: str, keys: Iterable[str]) -> list[bytes | CoffreError]:
        """Return many objects, 256 at a time (large ones 8); each one's bytes or error is in its place."""
        return await each(keys, lambda key: self.get(bucket, key))

    async def head(self, bucket: str, key: str, *, version: str | None = None) -> ObjectInfo:
        """Return what is known of an object without reading its data. Raises `NotFound`."""
        name = ObjectName(self._tenant, bucket, key)
        self._follow_maps()
        found = await self._parts.lookup.found(name, version)
        return found.opened.info()

    async def versions(self, bucket: str, key: str) -> list[ObjectInfo]:
        """Return every version that is still kept, newest first, tombstones too; empty when there never was one."""
        name = ObjectName(self._tenant, bucket, key)
        self._follow_maps()
        found = await self._parts.lookup.patiently(lambda: self._parts.reader.history(name))
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
        """Return one page of live objects in key order. A short page need not be the last: follow `next_token`.

        What this client cannot open, most often since its key ring lacks the key, is listed as well, and is marked:
        `ObjectInfo.unreadable` says why.
        """
        check_bucket(bucket)
        check_text("prefix", prefix)
        check_text("delimiter", delimiter)
        if not 1 <= limit <= 1000:
            raise InvalidArgument("limit is 1 to 1000")
        after, after_prefix = parse_token(token)
        self._follow_maps()
        page = await self._parts.lookup.patiently(
            lambda: self._parts.lister.page(
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
        found = await self._parts.lookup.found(name, version, may_be_closed=True)
        return await self._parts.lookup.places(name, found)


# -------------------------------------------------------------------- small things


def _closing(source: object) -> AbstractAsyncContextManager[object]:
    """Closes a stream at the end, whether it was read to its own end or not."""
    return aclosing(source) if isinstance(source, AsyncGenerator) else nullcontext()


def _peers_of(
    transport: Transport, clock: Clock, tenant: str, timeout: float, issuer: Issuer
) -> Callable[[ClusterMap], Peers]:
    """How the lanes to all nodes of a map are made."""

    def peers_of(cluster_map: ClusterMap) -> Peers:
        return Peers(
            cluster_map.consulted,
            transport,
            clock,
            epoch=cluster_map.epoch,
            tenant=tenant,
            timeout=timeout,
            shards=SHARDS_MAX,
            marks=issuer.marks,
        )

    return peers_of


def _locks(
    coordination: Coordination | None, session: Session | None, clock: Clock, entropy: Callable[[int], bytes]
) -> KeyLocks | None:
    return KeyLocks(coordination, session, clock, entropy) if coordination and session else None


def _listing_position(entry: ObjectInfo | str) -> bytes:
    return (entry if isinstance(entry, str) else entry.key).encode()
