"""Objects of a bucket coded anew, as its policy says now, by who has the keys: docs/recoding.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from hashlib import sha256
from typing import Protocol

from coffre.client._began import Began
from coffre.client._ground import Ground
from coffre.client._streams import each
from coffre.client.model import RecodeReport
from coffre.client.nodes import View
from coffre.client.puts._conditions import Untouched
from coffre.client.puts._puts import Putter
from coffre.client.reading import Downloader, Found, Lister, Lookup, RangeReader, Reader
from coffre.client.sealing import Draft, OpenManifest
from coffre.client.writing import Shards, Verify
from coffre.cluster.clock import Clock
from coffre.cluster.coordination import KeyLocks
from coffre.cluster.errors import (
    CoffreError,
    Conflict,
    DeadlineExceeded,
    IntegrityError,
    InvalidArgument,
    NotFound,
    PreconditionFailed,
    StaleMap,
    Unavailable,
)
from coffre.cluster.manifest import named_hash
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.codec import ShardHash, blake3_128
from coffre.proto import coffre_pb2 as pb

__all__ = ["Pace", "Recoder"]

SMALL_AT_ONCE = 16
LARGE_AT_ONCE = 2
PAGE_KEYS = 500
ATTEMPTS_MAX = 3
FAILED_MAX = 100
LOCK_KEY = "\0recode"  # one client codes a bucket anew at a time
LOCK_SECONDS = 1.0
_VERIFY_MAX = 4  # shards that are read back at once


class Digest(Protocol):
    def update(self, data: bytes | bytearray | memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


class Pace:
    """Spreads bytes over time; without a rate it never waits."""

    def __init__(self, clock: Clock, bytes_per_second: float | None) -> None:
        self._clock = clock
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0

    async def spend(self, size_bytes: int) -> None:
        """Wait until these bytes of plaintext may be spent."""
        if not self._bytes_per_second:
            return
        now = self._clock.monotonic()
        start = max(self._free_at, now)
        self._free_at = start + size_bytes / self._bytes_per_second
        if start > now:
            await self._clock.sleep(start - now)


class Recoder:
    """Codes objects anew, one bucket at a time."""

    def __init__(
        self,
        ground: Ground,
        reader: Reader,
        lookup: Lookup,
        lister: Lister,
        downloader: Downloader,
        putter: Putter,
        locks: KeyLocks | None,
    ) -> None:
        self._views = ground.views
        self._clock = ground.clock
        self._sealer = ground.sealer
        self._reader = reader
        self._lookup = lookup
        self._lister = lister
        self._downloader = downloader
        self._ranges = RangeReader(downloader)
        self._putter = putter
        self._locks = locks

    # ---------------------------------------------------------------- a bucket

    async def survey(self, tenant: str, bucket: str) -> RecodeReport:
        """How much is coded otherwise than the bucket's policy says. Changes nothing."""
        report = RecodeReport(self._views.current.map.policy_of(tenant, bucket).name)
        async with aclosing(self._otherwise(tenant, bucket)) as pages:
            async for page in pages:
                size_bytes = sum(opened.manifest.size_bytes for opened in page)
                report = replace(
                    report, objects=report.objects + len(page), size_bytes=report.size_bytes + size_bytes
                )
        return report

    async def run(
        self,
        tenant: str,
        bucket: str,
        *,
        bytes_per_second: float | None,
        progress: Callable[[RecodeReport], None],
    ) -> RecodeReport:
        """Code everything anew that is coded otherwise. Raises `Conflict` when another client is at it.

        What one object cannot be coded anew for is in the report; the others go on.
        """
        if self._locks is None:
            raise Unavailable("re-coding needs coordination, and this client has none")
        keeping = [p.name for p in self._views.current.map.policies if p.versions_kept > 1]
        if keeping:
            raise InvalidArgument(
                f"policy {keeping[0]} keeps several versions, and a version that is coded anew would push out an "
                "older one: objects of this cluster get another coding when they are written again"
            )
        try:
            async with self._locks.hold(ObjectName(tenant, bucket, LOCK_KEY), LOCK_SECONDS) as lock:
                work = _Work(self, await self.survey(tenant, bucket), bytes_per_second, progress)
                async with aclosing(self._otherwise(tenant, bucket)) as pages:
                    async for page in pages:
                        lock.check()
                        await work.do(page)
        except DeadlineExceeded:
            raise Conflict(f"another client codes bucket {bucket} anew") from None
        return work.report

    async def _otherwise(self, tenant: str, bucket: str) -> AsyncGenerator[list[OpenManifest]]:
        """Objects that are coded otherwise than their policy says, page by page."""
        after, after_prefix = b"", False
        while True:

            def listed(after: bytes = after, after_prefix: bool = after_prefix):  # type: ignore[no-untyped-def]
                return self._lister.page(
                    tenant,
                    bucket,
                    "",
                    after=after,
                    after_prefix=after_prefix,
                    delimiter="",
                    limit=PAGE_KEYS,
                )

            page = await self._lookup.patiently(listed)
            view = self._views.current
            yield [opened for opened in page.objects if not _is_as_it_should_be(view, opened)]
            if page.after is None:
                return
            after, after_prefix = page.after, page.after_prefix

    # ---------------------------------------------------------------- an object

    async def recode(self, name: ObjectName, pace: Pace) -> int | None:
        """Code an object anew, and return its size; None when that is not needed (any more). Raises `CoffreError`."""
        for attempt in range(ATTEMPTS_MAX):
            try:
                found = await self._lookup.found(name, None, want_cell=True)
            except NotFound:
                return None
            if _is_as_it_should_be(self._views.current, found.opened):
                return None
            try:
                await self._replace(found, pace)
                return found.opened.manifest.size_bytes
            except (PreconditionFailed, StaleMap, Unavailable):
                # Somebody wrote it meanwhile, or the map changed, or both: see what is there now.
                if attempt == ATTEMPTS_MAX - 1:
                    raise
        return None

    async def _replace(self, found: Found, pace: Pace) -> None:
        opened = found.opened
        if self._views.current.electorate(opened.name).is_moving:
            # Votes of two sets may be split, so that an unfinished version is neither established nor dead for long.
            raise Unavailable(
                "data is moving: objects are coded anew when that has ended (coffre cluster status)"
            )
        metadata = opened.metadata()
        draft = await self._sealer.draft(
            opened.name, pb.KIND_OBJECT, content_type=metadata.content_type, metadata=dict(metadata.user)
        )
        draft.manifest.recodes = opened.identity.to_bytes()
        digest = sha256()

        def verify(shards: Shards) -> Verify:
            async def read_back(stamp: Stamp) -> Began:
                if draft.manifest.size_bytes != opened.manifest.size_bytes:
                    raise IntegrityError("an object was read in another length than its manifest says")
                return await self._read_back(draft, shards, stamp, digest.digest())

            return read_back

        async with aclosing(self._plain(found, digest, pace)) as pieces:
            await self._putter.put(draft, pieces, Untouched(opened.stamp), verify)

    async def _plain(self, found: Found, digest: Digest, pace: Pace) -> AsyncGenerator[bytes]:
        async with aclosing(self._ranges.pieces(found, 0, None)) as pieces:
            async for piece in pieces:
                await pace.spend(len(piece))
                digest.update(piece)
                yield bytes(piece)

    # ---------------------------------------------------------------- reading back

    async def _read_back(self, draft: Draft, shards: Shards, stamp: Stamp, digest: bytes) -> Began:
        """Raise `CoffreError` unless D shards are on the nodes as coded, and say what the old version says. Returns
        since when it is known that they are there."""
        began = Began.now(self._clock)
        raw = draft.manifest.SerializeToString()
        opened = OpenManifest(draft.name, pb.Manifest.FromString(raw), draft.data_key, stamp)
        answers = await self._reader.holders(draft.name, stamp, dict.fromkeys(shards.placement))
        held = {
            node: version
            for node, version in answers.items()
            if version is not None and version.sealed.manifest == raw
        }
        found = Found(opened, pb.SealedManifest(manifest=raw), held)
        found.cells.add_versions(opened, held.values())
        good = set(found.cells.good) if opened.segments == 1 else await self._whole_shards(opened, held)
        if len(good) < opened.manifest.k + 1:
            raise Unavailable(f"{len(good)} shards of {opened.manifest.k + 1} could be read back")
        said = sha256()
        async with aclosing(self._ranges.pieces(found, 0, None)) as pieces:
            async for piece in pieces:
                said.update(piece)
        if said.digest() != digest:
            raise IntegrityError("what was read back is not what was written")
        return await self._still_there(opened, shards) if began.is_stale(self._clock) else began

    async def _still_there(self, opened: OpenManifest, shards: Shards) -> Began:
        """After a while: a large object takes its time, and a process that stood still may have been told long ago that
        nodes have what is deleted since, and forgotten. Raises `Unavailable` unless D shards are there."""
        began = Began.now(self._clock)
        answers = await self._reader.holders(opened.name, opened.stamp, dict.fromkeys(shards.placement))
        there = {
            held.shard_index for held in answers.values() if held is not None and held.HasField("shard_index")
        }
        if len(there) < opened.manifest.k + 1:
            raise Unavailable("the shards that were read back are not there any more")
        return began

    async def _whole_shards(self, opened: OpenManifest, held: dict[int, pb.Version]) -> set[int]:
        """The indexes of those shards whose nodes send every cell as it was coded."""

        async def one(item: tuple[int, pb.Version]) -> int | None:
            node, version = item
            whole = version.HasField("shard_index") and await self._is_whole(
                opened, node, version.shard_index
            )
            return version.shard_index if whole else None

        answers = await each(held.items(), one, _VERIFY_MAX)
        return {index for index in answers if isinstance(index, int)}

    async def _is_whole(self, opened: OpenManifest, node: int, index: int) -> bool:
        shard = ShardHash()
        chunks = self._downloader.read_shard(opened, node, index, 0, 0)
        async with aclosing(chunks) as stream:  # type: ignore[type-var]  # an async generator
            async for chunk in stream:
                for cell in chunk.cells:
                    if cell.segment != shard.cell_count or shard.cell_count == opened.segments:
                        return False
                    shard.add(blake3_128(cell.data))
        whole = shard.cell_count == opened.segments
        return whole and shard.digest() == named_hash(opened.manifest, index)


class _Work:
    """A run over a bucket: what is done, and what went wrong."""

    def __init__(
        self,
        recoder: Recoder,
        report: RecodeReport,
        bytes_per_second: float | None,
        progress: Callable[[RecodeReport], None],
    ) -> None:
        self._recoder = recoder
        self._pace = Pace(recoder._clock, bytes_per_second)
        self._progress = progress
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)
        self.report = report
        progress(report)

    async def do(self, page: list[OpenManifest]) -> None:
        await each(page, self._one, SMALL_AT_ONCE)

    async def _one(self, opened: OpenManifest) -> None:
        try:
            if opened.segments == 1:
                done = await self._recoder.recode(opened.name, self._pace)
            else:
                async with self._large:
                    done = await self._recoder.recode(opened.name, self._pace)
        except CoffreError as error:
            self._note_failure(opened.name.key, error)
        else:
            report = self.report
            if done is None:
                self.report = replace(report, overtaken=report.overtaken + 1)
            else:
                self.report = replace(
                    report, done_objects=report.done_objects + 1, done_bytes=report.done_bytes + done
                )
        self._progress(self.report)

    def _note_failure(self, key: str, error: CoffreError) -> None:
        failed = dict(self.report.failed)
        if len(failed) < FAILED_MAX:
            failed[key] = str(error)
        self.report = replace(self.report, failed=failed, failures=self.report.failures + 1)


def _is_as_it_should_be(view: View, opened: OpenManifest) -> bool:
    electorate = view.electorate(opened.name)
    return (opened.manifest.k, opened.manifest.m) == (electorate.k, electorate.m)
