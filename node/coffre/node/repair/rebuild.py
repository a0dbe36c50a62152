"""One shard made from others, without keys: hashes of the manifest tell whether it is the right one.

Small shards are made from the cells that came with answers; large ones segment by segment, in constant memory, staged
and then adopted as a writer's would be.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import combinations, islice

from coffre.cluster.errors import CoffreError, IntegrityError, Unavailable
from coffre.cluster.manifest import named_hash
from coffre.cluster.names import ObjectName
from coffre.codec import HASH_BYTES, ShardHash, blake3_128, codec, crc32c
from coffre.node.repair.asking import Asking
from coffre.node.repair.pace import Pace
from coffre.node.store import ABORTED, ShardStore, StoredCell, StoredVersion
from coffre.proto import coffre_pb2 as pb
from google.protobuf.message import DecodeError

__all__ = ["Sealed", "best_manifest", "rebuild_large", "small_shard"]

_log = logging.getLogger(__name__)
_COMBINATIONS_MAX = 100


@dataclass(frozen=True, slots=True)
class Sealed:
    """A manifest as its writer sealed it, and what it says."""

    raw: bytes
    mac: bytes
    manifest: pb.Manifest
    placement: tuple[int, ...]

    @property
    def tombstone(self) -> bool:
        """Whether the version is a deletion."""
        return self.manifest.kind == pb.KIND_TOMBSTONE

    @property
    def one_cell(self) -> bool:
        """Whether each of its shards is a single cell."""
        return self.manifest.size_bytes <= self.manifest.segment_bytes

    @property
    def segments(self) -> int:
        """How many segments the object has; 0 for a tombstone."""
        manifest = self.manifest
        return max(-(-manifest.size_bytes // manifest.segment_bytes), 1)

    def shard_hash(self, index: int) -> bytes:
        """What the manifest says of a shard: its hash, 16 bytes."""
        return named_hash(self.manifest, index)


def best_manifest(versions: Iterable[StoredVersion], stamp: bytes) -> Sealed | None:
    """The manifest that most nodes hold of a version; None when no copy of it can be read.

    Nobody here can verify its seal; clients do. A copy that is not like the others is not spread.
    """
    held = [v for v in versions if v.stamp == stamp and v.state != ABORTED and v.manifest]
    for (raw, mac), _ in Counter((v.manifest, v.mac) for v in held).most_common():
        try:
            manifest = pb.Manifest.FromString(raw)
        except DecodeError:
            continue
        n = manifest.k + manifest.m
        tombstone = manifest.kind == pb.KIND_TOMBSTONE
        if manifest.stamp != stamp or manifest.kind not in (pb.KIND_OBJECT, pb.KIND_TOMBSTONE):
            continue
        if not tombstone and (len(manifest.shard_hashes) != HASH_BYTES * n or not manifest.segment_bytes):
            continue
        placement = next(v.placement for v in held if (v.manifest, v.mac) == (raw, mac))
        if len(placement) == (0 if tombstone else n):
            return Sealed(raw, mac, manifest, placement)
    return None


def small_shard(sealed: Sealed, index: int, versions: Iterable[StoredVersion]) -> tuple[bytes, int] | None:
    """The cell of shard `index` of a one-segment object, and its CRC32C; None when too few good ones are at hand.

    A cell is good when it has the hash that the manifest names; what is made of them must have so, too.
    """
    stamp, k, m = sealed.manifest.stamp, sealed.manifest.k, sealed.manifest.m
    good: dict[int, bytes | memoryview] = {}
    for version in versions:
        cell, shard_index = version.cell, version.shard_index
        if version.stamp != stamp or version.damaged or cell is None or shard_index is None:
            continue
        if shard_index < k + m and blake3_128(cell.data) == sealed.shard_hash(shard_index):
            good[shard_index] = cell.data
    if index in good:
        data = bytes(good[index])
        return data, crc32c(data)
    for chosen in islice(combinations(sorted(good), k), _COMBINATIONS_MAX):
        size_bytes = len(good[chosen[0]])
        if any(len(good[i]) != size_bytes for i in chosen):
            continue
        made = bytearray(size_bytes)
        codec(k, m).reconstruct_into({i: good[i] for i in chosen}, {index: made})
        if blake3_128(made) == sealed.shard_hash(index):
            return bytes(made), crc32c(made)
        _log.warning("good hashes, and yet not one object: its writer coded it wrong")
    return None


# ------------------------------------------------------------------ large shards


@dataclass(slots=True)
class _Source:
    """One node's shard, read chunk by chunk."""

    node: int
    index: int
    chunks: AsyncIterator[Sequence[StoredCell]] | None = None
    at_hand: deque[StoredCell] = field(default_factory=deque)  # verified, in order; at most one chunk
    hash: ShardHash = field(default_factory=ShardHash)
    whole: bool = True  # from its first segment on

    async def fetch(self, segment: int, timeout: float) -> None:
        """Have at least one cell at hand, the first of which is that of `segment`.

        Raises `CoffreError`, `IntegrityError` for a cell that is not the next one or does not verify.
        """
        if self.at_hand:
            return
        assert self.chunks is not None
        try:
            async with asyncio.timeout(timeout):
                cells = await anext(self.chunks, None)
        except TimeoutError:
            raise Unavailable("a source of a shard has stopped") from None
        if not cells:
            raise IntegrityError("a source of a shard ended early")
        for following, cell in enumerate(cells, segment):
            if cell.segment != following or crc32c(cell.data) != cell.crc:
                raise IntegrityError("a source of a shard sent something else")
            self.hash.add(blake3_128(cell.data))
        self.at_hand.extend(cells)


async def rebuild_large(
    store: ShardStore,
    asking: Asking,
    pace: Pace,
    name: ObjectName,
    sealed: Sealed,
    index: int,
    holders: Mapping[int, int],
    timeout: float,
) -> int:
    """Stage shard `index` of a version here, copied from a node that holds it or made from k others; its bytes.

    `holders`: shard index by node. Raises `IntegrityError` when no combination gives the right shard, or the last error
    of the sources when too few are left; nothing is staged then.
    """
    bad: set[int] = set()
    while True:
        usable = {node: held for node, held in holders.items() if node not in bad}
        copies = [_Source(node, held) for node, held in usable.items() if held == index]
        distinct = {held: node for node, held in usable.items()}
        if copies:
            sources, spare = copies[:1], [_Source(s.node, s.index) for s in copies[1:]]
        else:
            every = [_Source(node, held) for held, node in sorted(distinct.items())]
            k = sealed.manifest.k
            sources, spare = every[:k], every[k:]
            if len(sources) < k:
                raise Unavailable("too few good shards answer")
        build = _Build(store, asking, pace, name, sealed, index, timeout)
        suspects = await build.run(sources, spare)
        if not suspects:
            return build.size_bytes
        bad |= suspects


class _Build:
    """One try."""

    def __init__(
        self,
        store: ShardStore,
        asking: Asking,
        pace: Pace,
        name: ObjectName,
        sealed: Sealed,
        index: int,
        timeout: float,
    ) -> None:
        self._store = store
        self._asking = asking
        self._pace = pace
        self._name = name
        self._sealed = sealed
        self._index = index
        self._timeout = timeout
        self.size_bytes = 0

    async def run(self, sources: list[_Source], spare: list[_Source]) -> set[int]:
        """Stage the shard. Returns the nodes to do without, when it did not work with these."""
        manifest = self._sealed.manifest
        writer = await self._store.stage(self._name.tenant, manifest.data_id, self._index)
        failed: set[int] = set()
        shard, segments, fits = ShardHash(), 0, True
        try:
            for source in sources:
                self._open(source, 0)
            while segments < self._sealed.segments:
                cells = await self._next(sources, spare, failed, segments)
                if not cells:
                    return failed
                segments += len(cells)
                # Cells that differ in size are somebody's lie: the rest is read to see whose.
                fits = fits and all(len({len(cell.data) for cell in each.values()}) == 1 for each in cells)
                made = [self._make(each) for each in cells] if fits else []
                for cell in made:
                    shard.add(blake3_128(cell.data))
                await writer.write(made)
                made_bytes = sum(len(cell.data) for cell in made)
                self.size_bytes += made_bytes
                await self._pace.spend(
                    made_bytes + sum(len(cell.data) for each in cells for cell in each.values())
                )
            if not fits or shard.digest() != self._sealed.shard_hash(self._index):
                return self._liars(sources)
            await writer.commit()
            return set()
        finally:
            await writer.discard()
            for source in sources:
                await self._close(source)

    def _open(self, source: _Source, segment: int) -> None:
        stamp = self._sealed.manifest.stamp
        source.chunks = self._asking.cells(source.node, self._name, stamp, source.index, segment)
        source.whole = segment == 0

    async def _close(self, source: _Source) -> None:
        if source.chunks is not None:
            async with aclosing(source.chunks):  # type: ignore[type-var]  # an async generator
                pass

    async def _next(
        self, sources: list[_Source], spare: list[_Source], failed: set[int], segment: int
    ) -> list[dict[int, StoredCell]]:
        """The cells of the next segments, by shard index, as many as are there of all sources; none when too few
        sources are left. A source that fails gives its place to a spare one."""
        fetches = (source.fetch(segment, self._timeout) for source in sources)
        answers = await asyncio.gather(*fetches, return_exceptions=True)
        for place, error in enumerate(answers):
            while error is not None:
                if not isinstance(error, CoffreError):
                    raise error
                failed.add(sources[place].node)
                await self._close(sources[place])
                if not spare:
                    return []
                sources[place] = spare.pop(0)
                self._open(sources[place], segment)
                (error,) = await asyncio.gather(
                    sources[place].fetch(segment, self._timeout), return_exceptions=True
                )
        count = min(self._sealed.segments - segment, *(len(source.at_hand) for source in sources))
        return [{source.index: source.at_hand.popleft() for source in sources} for _ in range(count)]

    def _make(self, cells: Mapping[int, StoredCell]) -> StoredCell:
        if self._index in cells:
            return cells[self._index]
        segment = next(iter(cells.values())).segment
        made = bytearray(len(next(iter(cells.values())).data))
        manifest = self._sealed.manifest
        codec(manifest.k, manifest.m).reconstruct_into(
            {index: cell.data for index, cell in cells.items()}, {self._index: made}
        )
        return StoredCell(segment, crc32c(made), memoryview(made))

    def _liars(self, sources: list[_Source]) -> set[int]:
        """The sources whose shards are not the ones that the manifest names; all, when that shows of none."""
        liars = {
            source.node
            for source in sources
            if source.whole and source.hash.digest() != self._sealed.shard_hash(source.index)
        }
        _log.warning("a shard that was made of others is not the right one", extra={"sources": len(liars)})
        return liars or {source.node for source in sources}
