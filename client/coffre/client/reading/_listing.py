"""Listing: pages of many nodes merged in key order, each key decided as a head would (docs/consistency.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from coffre.client._ground import Ground
from coffre.client._streams import GETS_IN_FLIGHT, each
from coffre.client.nodes import View
from coffre.client.reading._reads import Reader
from coffre.client.reading._replies import HELD, newest_stamp
from coffre.client.sealing import OpenManifest
from coffre.cluster.errors import (
    CoffreError,
    DeadlineExceeded,
    IntegrityError,
    InvalidArgument,
    KeyUnavailable,
    RetryableError,
    StaleMap,
    Unavailable,
    Unsupported,
    details_of,
)
from coffre.cluster.names import KEY_BYTES_MAX, ObjectName, is_bucket
from coffre.cluster.versions import STAMP_BYTES, Stamp
from coffre.proto import coffre_pb2 as pb

__all__ = ["Lister", "Page", "parse_token"]

SLOW_SECONDS = 0.5  # after which all the other nodes are asked, too
COVER_NODES_MAX = 64  # in larger clusters finding few nodes to ask costs more than asking all
COVERS_KEPT = 64
LIMIT_MAX = 1000  # of one round; nodes send no more
GROWTH = 8  # how many times as much is asked for after a round that showed nothing
ROUNDS_MAX = 16
ANY_LIMIT = 100  # of a page in which any live object will do
# What one object is refused with, and nothing but it: it would be refused again.
_CANNOT_TELL = (IntegrityError, KeyUnavailable, Unsupported)


@dataclass(frozen=True, slots=True)
class Page:
    """Live objects and common prefixes in key order; `after` starts the next page, None when this is the last."""

    objects: tuple[OpenManifest, ...]
    prefixes: tuple[str, ...]
    after: bytes | None
    after_prefix: bool = False

    @property
    def token(self) -> str | None:
        """What `parse_token` reads: where the next page starts."""
        return None if self.after is None else ("p" if self.after_prefix else "k") + self.after.hex()


@dataclass(slots=True)
class _Merged:
    """What the nodes say of one key or prefix."""

    entry: pb.ListEntry
    by_node: dict[int, Sequence[pb.Version]]


class Lister:
    """Lists one bucket."""

    def __init__(self, ground: Ground, reader: Reader) -> None:
        self._views = ground.views
        self._reader = reader
        self._covers_found: dict[tuple[int, str, str, frozenset[int]], frozenset[int]] = {}

    async def page(
        self,
        tenant: str,
        bucket: str,
        prefix: str,
        *,
        after: bytes,
        after_prefix: bool,
        delimiter: str,
        limit: int,
    ) -> Page:
        """Return up to `limit` entries behind `after`. A page may be short, or empty, and not be the last."""
        view, asked = self._views.current, limit
        end, end_is_prefix = after, after_prefix
        for _ in range(ROUNDS_MAX):
            request = pb.ListRequest(
                epoch=view.map.epoch,
                tenant=tenant,
                bucket=bucket,
                prefix=prefix,
                after=end,
                after_prefix=end_is_prefix,
                delimiter=delimiter,
                limit=asked,
            )
            shown, end_or_none, end_is_prefix = await self._shown(view, request, limit)
            if shown or end_or_none is None:
                return _page(shown, end_or_none, end_is_prefix)
            # All of it fell away: undecided deletes, or what somebody claims who missed them.
            end, asked = end_or_none, min(asked * GROWTH, LIMIT_MAX)
        return _page([], end, end_is_prefix)

    async def _shown(
        self, view: View, request: pb.ListRequest, limit: int
    ) -> tuple[list[OpenManifest | str], bytes | None, bool]:
        """One round: at most `limit` entries, and where the next one starts, None at the end of the list."""
        replies = await self._ask(view, request)
        merged, end, end_is_prefix = _merge(replies, request.limit)
        shown: list[OpenManifest | str] = []
        positions = sorted(merged)
        while positions:
            # No more are decided than are missing, so that what was asked for in vain costs nothing.
            some, positions = positions[: limit - len(shown)], positions[limit - len(shown) :]
            decided = await each(
                some,
                lambda place: self._decide(view, request.tenant, request.bucket, merged[place], replies),
                min(len(some), GETS_IN_FLIGHT),
            )
            for entry in decided:
                if isinstance(entry, CoffreError):
                    raise entry
                if entry is not None:
                    shown.append(entry)
            if len(shown) == limit:
                if positions:
                    end, end_is_prefix = some[-1], bool(merged[some[-1]].entry.common_prefix)
                break
        return shown, end, end_is_prefix

    async def holds_any(self, tenant: str, bucket: str) -> bool:
        """Whether a live object is in a bucket. Raises as `page`."""
        after: bytes | None = b""
        while after is not None:
            page = await self.page(
                tenant, bucket, "", after=after, after_prefix=False, delimiter="", limit=ANY_LIMIT
            )
            if page.objects:
                return True
            after = page.after
        return False

    async def buckets(self, tenant: str) -> list[str]:
        """The buckets that hold a live object, in order. Raises as `page`."""
        view = self._views.current
        found: set[str] = set()
        after: bytes | None = b""
        while after is not None:
            request = pb.ListRequest(epoch=view.map.epoch, tenant=tenant, after=after, limit=LIMIT_MAX)
            replies = await self._ask(view, request)
            ends = [_start_of_bucket(reply) for reply in replies.values() if reply.more]
            after = min(ends, default=None)
            names = {entry.common_prefix for reply in replies.values() for entry in reply.entries}
            found |= {name for name in names if after is None or name.encode() <= after}
        some = await each(sorted(found), lambda bucket: self._in_use(tenant, bucket))
        for one in some:
            if isinstance(one, CoffreError):
                raise one
        return [bucket for bucket in some if isinstance(bucket, str)]

    async def _in_use(self, tenant: str, bucket: str) -> str | None:
        return bucket if await self.holds_any(tenant, bucket) else None

    async def _ask(self, view: View, request: pb.ListRequest) -> dict[int, pb.ListReply]:
        """Pages of so many nodes that each partition has R answering primaries; of all, when some fail or are slow."""
        everyone = view.peers.all()
        first = frozenset(peer.number for peer in everyone)
        if request.bucket:
            first = self._cover(view, request.tenant, request.bucket)
        spare = [peer.number for peer in everyone if peer.number not in first]
        replies: dict[int, pb.ListReply] = {}
        errors: list[CoffreError] = []
        asking = {_asked(view, node, request): node for node in first}
        try:
            while asking:
                timeout = SLOW_SECONDS if spare else None
                done, _ = await asyncio.wait(asking, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    node = asking.pop(task)
                    try:
                        replies[node] = task.result()
                    except CoffreError as error:
                        errors.append(error)
                if spare and (errors or not done):
                    asking.update({_asked(view, node, request): node for node in spare})
                    spare = []
                if replies.keys() >= first or (not spare and _covers(view, request, replies)):
                    return replies
        finally:
            for task in asking:
                task.cancel()
        for failure in errors:
            if isinstance(failure, StaleMap):
                raise failure
        if errors and len({type(error) for error in errors}) == 1 and not replies:
            if isinstance(errors[0], (DeadlineExceeded, Unavailable)):  # whether they hang or are gone
                raise Unavailable(f"no node answers: {errors[0]}", details=details_of(errors))
            raise errors[0]
        raise Unavailable(f"{len(replies)} of {len(everyone)} nodes answer: too few for a complete list")

    def _cover(self, view: View, tenant: str, bucket: str) -> frozenset[int]:
        """Few nodes among which every partition has R primaries; suspects only where it takes them."""
        suspects = frozenset(
            peer.number for peer in view.peers.all() if peer.is_set_aside or peer.reads.lags(SLOW_SECONDS)
        )
        wanted = (view.map.epoch, tenant, bucket, suspects)
        found = self._covers_found.get(wanted)
        if found is None:
            if len(self._covers_found) >= COVERS_KEPT:
                self._covers_found.clear()
            found = self._covers_found[wanted] = _find_cover(view, tenant, bucket, suspects)
        return found

    async def _decide(
        self, view: View, tenant: str, bucket: str, merged: _Merged, replies: dict[int, pb.ListReply]
    ) -> OpenManifest | str | None:
        """The live object or the confirmed prefix, or None for what is deleted or was never acknowledged.

        One object that cannot be told does not end the list of the others: it is in the list, closed.
        """
        entry = merged.entry
        name = ObjectName(tenant, bucket, entry.key)
        if entry.common_prefix:
            return await self._decide_prefix(name, entry.common_prefix)
        try:
            opened = await self._decide_key(view, name, merged.by_node, replies)
        except _CANNOT_TELL as error:
            return _untold(name, merged.by_node, error)
        except Unavailable as error:
            # Until somebody writes it again, perhaps: what a lost node had decides it (docs/repair.md).
            if not view.map.lost:
                raise
            return _untold(name, merged.by_node, error)
        return None if opened is None or opened.tombstone else opened

    async def _decide_key(
        self,
        view: View,
        name: ObjectName,
        by_node: dict[int, Sequence[pb.Version]],
        replies: dict[int, pb.ListReply],
    ) -> OpenManifest | None:
        held = [v for versions in by_node.values() for v in versions if v.state in HELD]
        newest = max(held, key=lambda version: version.stamp, default=None)
        electorate, found = view.electorate(name), None
        if newest is not None and electorate.is_heard_from(replies):
            said = dict(by_node)
            found = await self._reader.settled(view, name, newest.stamp, said)
            # Who says nothing of it may know it as deleted since (docs/consistency.md, "List").
            silent = electorate.everyone.intersection(replies).difference(by_node)
            if found is not None and silent and not found.opened.tombstone:
                found = await self._reader.confirmed(view, found, said, silent)
        if found is None:
            found = await self._reader.resolve(name)
        return found.opened if found else None

    async def _decide_prefix(self, witness: ObjectName, prefix: str) -> str | None:
        """A prefix shows when a live key is below it: the witness of the nodes, or else any."""
        try:
            found = await self._reader.resolve(witness)
        except _CANNOT_TELL:
            return prefix  # a list of what is below shows this key
        if found is not None and not found.opened.tombstone:
            return prefix
        after: bytes | None = b""
        while after is not None:
            page = await self.page(
                witness.tenant,
                witness.bucket,
                prefix,
                after=after,
                after_prefix=False,
                delimiter="",
                limit=100,
            )
            if page.objects:
                return prefix
            after = page.after
        return None


def _page(shown: Sequence[OpenManifest | str], end: bytes | None, end_is_prefix: bool) -> Page:
    return Page(
        tuple(entry for entry in shown if isinstance(entry, OpenManifest)),
        tuple(entry for entry in shown if isinstance(entry, str)),
        end,
        end_is_prefix,
    )


def _untold(name: ObjectName, by_node: Mapping[int, Sequence[pb.Version]], why: CoffreError) -> OpenManifest:
    """What a list shows of a key of which it cannot be told what its newest version is."""
    stamp = newest_stamp(by_node.values()) or bytes(STAMP_BYTES)
    return OpenManifest(name, pb.Manifest(stamp=stamp), b"", Stamp.from_bytes(stamp), why)


def _start_of_bucket(reply: pb.ListReply) -> bytes:
    return reply.entries[-1].common_prefix.encode()


def _asked(view: View, node: int, request: pb.ListRequest) -> asyncio.Task[pb.ListReply]:
    async def ask() -> pb.ListReply:
        peer = view.peers[node]
        try:
            reply = await view.peers.transport.list(node, request, view.peers.timeout)
        except RetryableError as error:
            if not isinstance(error, StaleMap):
                peer.note_failure()
            raise
        if not _is_sound(reply, request):
            raise IntegrityError(f"node {peer.name} lists what was not asked for", node=peer.name)
        return reply

    return asyncio.create_task(ask())


def _covers(view: View, request: pb.ListRequest, nodes: Collection[int]) -> bool:
    """Whether every partition has R primaries among `nodes`, in each of its sets."""
    buckets = [request.bucket]
    if not request.bucket:  # all of them: those with a policy of their own, too
        buckets += [one.bucket for one in view.map.bucket_policies if one.tenant == request.tenant]
    if len(view.peers.all()) > COVER_NODES_MAX:
        silent = len(view.peers.all()) - len(nodes)
        return all(silent <= view.silent_max(request.tenant, bucket) for bucket in buckets)
    return all(
        view.partition_electorate(request.tenant, bucket, partition).is_heard_from(nodes)
        for bucket in buckets
        for partition in range(view.map.partitions)
    )


def _find_cover(view: View, tenant: str, bucket: str, suspects: frozenset[int]) -> frozenset[int]:
    everyone = frozenset(peer.number for peer in view.peers.all())
    electorates = [
        view.partition_electorate(tenant, bucket, partition) for partition in range(view.map.partitions)
    ]
    if len(everyone) > COVER_NODES_MAX or any(electorate.is_moving for electorate in electorates):
        return everyone
    partitions: dict[int, list[int]] = {node: [] for node in everyone}
    for partition, electorate in enumerate(electorates):
        for node in electorate.primaries:
            partitions[node].append(partition)
    # How many primaries of each partition need not be asked.
    spare = [len(electorate.primaries) - electorate.read for electorate in electorates]
    cover = set(everyone)
    for node in sorted(partitions, key=lambda node: (node not in suspects, len(partitions[node]))):
        if all(spare[partition] for partition in partitions[node]):
            cover.remove(node)
            for partition in partitions[node]:
                spare[partition] -= 1
    return frozenset(cover)


def _is_sound(reply: pb.ListReply, request: pb.ListRequest) -> bool:
    """Whether a page has entries of this listing alone, and lets it go on."""
    if reply.more and not reply.entries:
        return False
    if not request.bucket:
        names = [entry.common_prefix for entry in reply.entries]
        new = all(is_bucket(name) and name.encode() > request.after for name in names)
        return new and names == sorted(set(names))
    return all(
        (entry.common_prefix or entry.key).startswith(request.prefix)
        and (not entry.common_prefix or entry.key.startswith(entry.common_prefix))
        and 1 <= len(entry.key.encode()) <= KEY_BYTES_MAX
        and all(len(version.stamp) == STAMP_BYTES for version in entry.versions)
        for entry in reply.entries
    ) and (not reply.more or _start(reply.entries[-1]) > request.after)


def _start(entry: pb.ListEntry) -> bytes:
    """Where a listing goes on after `entry`: behind everything below a common prefix."""
    return (entry.common_prefix + "\U0010ffff" if entry.common_prefix else entry.key).encode()


def _merge(replies: dict[int, pb.ListReply], limit: int) -> tuple[dict[bytes, _Merged], bytes | None, bool]:
    """Merge pages up to where every node's page reaches; return the entries, and where the next page starts."""
    ends = [reply.entries[-1] for reply in replies.values() if reply.more and reply.entries]
    horizon = min((_position(entry) for entry in ends), default=None)
    merged: dict[bytes, _Merged] = {}
    for node, reply in replies.items():
        for entry in reply.entries:
            position = _position(entry)
            if horizon is None or position <= horizon:
                merged.setdefault(position, _Merged(entry, {})).by_node[node] = entry.versions
    positions = sorted(merged)
    if len(positions) > limit:
        horizon = positions[limit - 1]
        for position in positions[limit:]:
            del merged[position]
    if horizon is None:
        return merged, None, False
    last = merged[horizon].entry
    return merged, horizon, bool(last.common_prefix)


def _position(entry: pb.ListEntry) -> bytes:
    return (entry.common_prefix or entry.key).encode()


def parse_token(token: str | None) -> tuple[bytes, bool]:
    """Where a page starts, and whether behind a whole common prefix. Raises `InvalidArgument`."""
    if token is None:
        return b"", False
    try:
        after = bytes.fromhex(token[1:])
    except ValueError:
        after = b""
    if token[:1] not in {"k", "p"} or not after:
        raise InvalidArgument("that token is not from a list of this cluster")
    return after, token[0] == "p"
