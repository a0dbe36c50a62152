"""`AsyncClient`: put, get, head, list, delete and versions of health records. The sync `Client` wraps this class."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Literal, overload

from coffre.client._checks import (
    bucket_of,
    call_of,
    check_listing,
    check_metadata,
    check_range,
    flag_of,
    items_of,
    kind_of,
    name_of,
    seconds_of,
    text_of,
    version_of,
)
from coffre.client._life import ClientLife
from coffre.client._sources import ObjectData, StrPath, closing, file_chunks, path_of, source_of
from coffre.client._streams import PUTS_IN_FLIGHT, SEGMENT_BYTES, each
from coffre.client._targets import open_target
from coffre.client.model import ListPage, ObjectInfo, RecodeReport, ShardPlace
from coffre.client.puts import condition_of
from coffre.client.reading import parse_token
from coffre.cluster.coordination import Bucket, Coordination, create_bucket, delete_bucket, list_buckets
from coffre.cluster.errors import CoffreError, InvalidArgument, NotEmpty, StaleMap, Unavailable
from coffre.proto import coffre_pb2 as pb

__all__ = ["AsyncClient"]


class AsyncClient(ClientLife):
    """Reads and writes objects of one tenant.

    Methods raise `CoffreError`: `RetryableError`s may be tried again, `PermanentError`s not. All methods may be called
    concurrently from one event loop; `flush` and `aclose` wait for writes that go on after a put returned.
    """

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
        timeout: float | None = None,
    ) -> ObjectInfo:
        """Store an object: bytes, what has `read(n)` (a file, an upload) or what yields bytes, in constant memory.

        Returns once k+1 shards are synced on distinct nodes and the manifest on a majority. Raises `Unavailable` when
        that cannot be reached; the object is then what it was. With `if_absent` or `if_version` it is stored only when
        there is no object, or its newest version is that one, else `AlreadyExists` or `PreconditionFailed` (of many
        that race, one wins).
        """
        name = name_of(self._tenant, bucket, key)
        check_metadata(content_type, metadata)
        condition = condition_of(flag_of("if_absent", if_absent), version_of(if_version))
        source = source_of(data)
        with self._call(timeout, name, if_version, writes=True):
            if condition is not None:
                await self._parts.conditional.check(name, condition)
            draft = await self._ground.sealer.draft(
                name, pb.KIND_OBJECT, content_type=content_type, metadata=metadata
            )
            async with closing(source):
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
        timeout: float | None = None,
    ) -> ObjectInfo:
        """Store a file, as `put` does. `progress` gets the number of bytes read, again and again.

        Raises `InvalidArgument`, and stores nothing, when it cannot be read, or was written to meanwhile.
        """
        call_of("progress", progress)
        left = self._door.time_left(timeout)
        while True:
            epoch = self.cluster_map.epoch
            async with aclosing(file_chunks(path_of(path), progress)) as chunks:
                try:
                    return await self.put(
                        bucket,
                        key,
                        chunks,
                        content_type=content_type,
                        metadata=metadata,
                        if_absent=if_absent,
                        if_version=if_version,
                        timeout=left(),
                    )
                except StaleMap:
                    if self.cluster_map.epoch == epoch:
                        raise
            progress = (
                None  # the file is read again, by the map that came meanwhile; nothing is counted twice
            )

    async def put_many(
        self, bucket: str, items: Iterable[tuple[str, bytes]], *, timeout: float | None = None
    ) -> list[ObjectInfo | CoffreError]:
        """Store many objects, 64 at a time (large ones 8); each one's outcome is in its place of the result.

        What is not stored within `timeout` has an error there, `WriteTimedOut` most often.
        """
        bucket_of(bucket)
        items_of("items are pairs of a key and bytes", items)
        left = self._door.time_left(timeout)

        async def put(item: tuple[str, bytes]) -> ObjectInfo:
            if not isinstance(item, Sequence) or len(item) != 2 or isinstance(item, str | bytes):
                raise InvalidArgument(f"an item is a pair of a key and bytes, not {kind_of(item)}")
            key, data = item
            if isinstance(data, bytes | bytearray) and len(data) <= SEGMENT_BYTES:
                return await self.put(bucket, key, data, timeout=left())
            async with self._large:
                return await self.put(bucket, key, data, timeout=left())

        return await each(items, put, PUTS_IN_FLIGHT)

    async def delete(
        self, bucket: str, key: str, *, if_version: str | None = None, timeout: float | None = None
    ) -> ObjectInfo:
        """Delete an object: every later get and list sees it gone. Deleting what does not exist is no error.

        With `if_version` only if that is its newest version, else `PreconditionFailed`.
        """
        name = name_of(self._tenant, bucket, key)
        condition = condition_of(False, version_of(if_version))
        with self._call(timeout, name, if_version, writes=True):
            draft = await self._ground.sealer.draft(name, pb.KIND_TOMBSTONE)
            stamp = await self._parts.putter.establish(draft, None, condition)
        return ObjectInfo(bucket, key, str(stamp), 0, stamp.unixtime_ms, deleted=True)

    # ---------------------------------------------------------------- buckets

    async def create_bucket(self, bucket: str, *, policy: str = "", timeout: float | None = None) -> None:
        """Enter a bucket, with a storage policy of the map (empty: the default one). Raises `AlreadyExists`.

        Objects can also be put into a bucket that was never created.
        """
        if text_of("a policy", policy):
            self.cluster_map.policy(policy)
        entered = Bucket(self._tenant, bucket_of(bucket), policy, self._ground.clock.unixtime_ms())
        with self._door.call(timeout, bucket=bucket, writes=True):
            await create_bucket(self._agreed(), entered)

    async def list_buckets(self, *, timeout: float | None = None) -> list[str]:
        """The names of the buckets that were created, in order."""
        with self._door.call(timeout):
            return [bucket.name for bucket in await list_buckets(self._agreed(), self._tenant)]

    async def used_buckets(self, *, timeout: float | None = None) -> list[str]:
        """The names of the buckets that hold objects, whether they were created or not, in order."""
        self._follow_maps()
        with self._door.call(timeout):
            return await self._parts.lookup.patiently(lambda: self._parts.lister.buckets(self._tenant))

    async def delete_bucket(self, bucket: str, *, timeout: float | None = None) -> None:
        """Forget that a bucket was created. Raises `NotEmpty` when it holds objects, and `NotFound`."""
        bucket_of(bucket)
        self._follow_maps()
        with self._door.call(timeout, bucket=bucket, writes=True):
            if await self._parts.lister.holds_any(self._tenant, bucket):
                raise NotEmpty(f"bucket {bucket} holds objects: delete them first")
            await delete_bucket(self._agreed(), self._tenant, bucket)

    async def recode(
        self,
        bucket: str,
        *,
        dry_run: bool = False,
        bytes_per_second: float | None = None,
        progress: Callable[[RecodeReport], None] | None = None,
        timeout: float | None = None,
    ) -> RecodeReport:
        """Code objects anew that have another k and m than the bucket's policy says now (docs/recoding.md).

        May be interrupted anywhere and repeated. `dry_run`: only say how much there is. `bytes_per_second`: of
        plaintext, at most. `progress` hears of every object. Raises `Conflict` while another client is at it.
        """
        bucket_of(bucket)
        call_of("progress", progress)
        rate = seconds_of("bytes_per_second", bytes_per_second)
        survey = flag_of("dry_run", dry_run)
        self._follow_maps()
        with self._door.call(timeout, bucket=bucket):
            if survey:
                return await self._parts.recoder.survey(self._tenant, bucket)
            return await self._parts.recoder.run(
                self._tenant, bucket, bytes_per_second=rate, progress=progress or (lambda report: None)
            )

    def _agreed(self) -> Coordination:
        if self._coordination is None:
            raise Unavailable("buckets need coordination, and this client has none")
        return self._coordination

    # ---------------------------------------------------------------- reading

    async def get(
        self,
        bucket: str,
        key: str,
        *,
        start: int = 0,
        length: int | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """Return an object, or `length` bytes of it from `start` on (fewer at its end). Raises `NotFound`."""
        name = name_of(self._tenant, bucket, key)
        check_range(start, length)
        with self._call(timeout, name, version_of(version)):
            return await self._fetcher.whole(name, version, start, length)

    def get_stream(
        self,
        bucket: str,
        key: str,
        *,
        start: int = 0,
        length: int | None = None,
        version: str | None = None,
        timeout: float | None = None,
    ) -> AsyncGenerator[bytes | memoryview]:
        """Yield an object, or a range of it, in pieces of about 1 MiB, in constant memory. Raises `NotFound`.

        `timeout`: of each piece.
        """
        name = name_of(self._tenant, bucket, key)
        check_range(start, length)
        self._door.check()
        source = self._fetcher.stream(name, version_of(version), start, length)
        return self._door.stream(source, lambda: self._call(timeout, name, version))

    async def get_file(
        self,
        bucket: str,
        key: str,
        path: StrPath,
        *,
        start: int = 0,
        length: int | None = None,
        version: str | None = None,
        progress: Callable[[int], None] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Write an object, or a range of it, to a file; return the number of bytes. Raises `NotFound`.

        A regular file appears only when it is whole and synced, in the mode of one that it replaces. Links are
        followed, and what is no regular file (a device, a pipe) is written into. `progress` gets numbers of bytes.
        """
        name, target = name_of(self._tenant, bucket, key), path_of(path)
        call_of("progress", progress)
        check_range(start, length)
        try:
            with self._call(timeout, name, version_of(version)):
                pieces = self._fetcher.stream(name, version, start, length)
                return await self._written(pieces, target, progress)
        except OSError as error:
            raise InvalidArgument(f"cannot write {path}: {error.strerror}") from None

    async def _written(
        self,
        pieces: AsyncGenerator[bytes | memoryview],
        target: Path,
        progress: Callable[[int], None] | None,
    ) -> int:
        size_bytes = 0
        async with aclosing(pieces):
            piece = await anext(pieces, None)  # what does not exist touches no file
            async with open_target(target, self._ground.entropy(4).hex()) as write:
                while piece is not None:
                    await write(piece)
                    size_bytes += len(piece)
                    if progress is not None:
                        progress(len(piece))
                    piece = await anext(pieces, None)
        return size_bytes

    async def get_many(
        self, bucket: str, keys: Iterable[str], *, timeout: float | None = None
    ) -> list[bytes | CoffreError]:
        """Return many objects, 256 at a time (large ones 8); each one's bytes or error is in its place.

        What has not come within `timeout` has `DeadlineExceeded` there.
        """
        bucket_of(bucket)
        items_of("keys are several texts", keys)
        left = self._door.time_left(timeout)
        return await each(keys, lambda key: self.get(bucket, key, timeout=left()))

    async def head(
        self, bucket: str, key: str, *, version: str | None = None, timeout: float | None = None
    ) -> ObjectInfo:
        """Return what is known of an object without reading its data. Raises `NotFound`."""
        name = name_of(self._tenant, bucket, key)
        with self._call(timeout, name, version_of(version)):
            return (await self._parts.lookup.found(name, version)).opened.info()

    async def versions(self, bucket: str, key: str, *, timeout: float | None = None) -> list[ObjectInfo]:
        """Return every version that is still kept, newest first, tombstones too; empty when there never was one."""
        name = name_of(self._tenant, bucket, key)
        with self._call(timeout, name):
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
        timeout: float | None = None,
    ) -> ListPage:
        """Return one page of live objects in key order. A short page need not be the last: follow `next_token`.

        What this client cannot open, most often since its key ring lacks the key, is listed as well, and is marked:
        `ObjectInfo.unreadable` says why.
        """
        check_listing(bucket, prefix, delimiter, limit, timeout)
        after, after_prefix = parse_token(None if token is None else text_of("a token", token))
        self._follow_maps()
        with self._door.call(timeout, bucket=bucket):
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

    @overload
    def list(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: Literal[""] = "",
        page_size: int = 1000,
        timeout: float | None = None,
    ) -> AsyncGenerator[ObjectInfo]: ...

    @overload
    def list(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str,
        page_size: int = 1000,
        timeout: float | None = None,
    ) -> AsyncGenerator[ObjectInfo | str]: ...

    def list(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        page_size: int = 1000,
        timeout: float | None = None,
    ) -> AsyncGenerator[ObjectInfo] | AsyncGenerator[ObjectInfo | str]:
        """Yield live objects in key order; with a `delimiter` common prefixes too, as text. `timeout`: of each page."""
        self._door.check()
        check_listing(bucket, prefix, delimiter, page_size, timeout)
        return self._entries(bucket, prefix, delimiter, page_size, timeout)

    async def _entries(
        self, bucket: str, prefix: str, delimiter: str, page_size: int, timeout: float | None
    ) -> AsyncGenerator[ObjectInfo | str]:
        token: str | None = None
        while True:
            page = await self.list_page(
                bucket, prefix=prefix, delimiter=delimiter, token=token, limit=page_size, timeout=timeout
            )
            for entry in page.entries:
                self._door.check()
                yield entry
            if page.next_token is None:
                return
            token = page.next_token

    async def locate(
        self, bucket: str, key: str, *, version: str | None = None, timeout: float | None = None
    ) -> Sequence[ShardPlace]:
        """Return where each shard of an object lies, and its state. Raises `NotFound`."""
        name = name_of(self._tenant, bucket, key)
        with self._call(timeout, name, version_of(version)):
            found = await self._parts.lookup.found(name, version, may_be_closed=True)
            return await self._parts.lookup.places(name, found)
