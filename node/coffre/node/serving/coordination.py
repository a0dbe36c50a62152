"""The `Coordination` service of a node: who may touch which keys, then the store behind it.

The table of prefixes by role is in docs/formats/wire.md, and tested call by call.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import (
    MAPS,
    RANGE_LIMIT_MAX,
    Compare,
    Coordination,
    Entry,
    Put,
    node_key,
)
from coffre.cluster.errors import InvalidArgument, PermissionDenied, ReadAgain, ResourceExhausted, Unavailable
from coffre.cluster.identity import Identity, Role
from coffre.node.following import MapHolder
from coffre.node.serving.coordinator import one_of_several
from coffre.proto import coordination_pb2 as pb

__all__ = ["LEASES_PER_MEMBER_MAX", "TENANT_VALUE_BYTES_MAX", "WATCHES_PER_MEMBER_MAX", "CoordinationHandler"]

LEASES_PER_MEMBER_MAX = 1024
WATCHES_PER_MEMBER_MAX = 512
TENANT_VALUE_BYTES_MAX = 4096


def readable(peer: Identity, maps: MapHolder) -> tuple[str, ...]:
    """The prefixes that a member may get, range, compare and watch."""
    if peer.role is Role.TENANT:
        return ("maps/", f"buckets/{peer.name}/", f"locks/{peer.name}/")
    if peer.role is Role.OPERATOR or maps.number_of_peer(peer) is not None:
        return ("maps/", "tenants/", "buckets/", "locks/", "repair/", "nodes/")
    return ("maps/",)  # a node that the map does not have, or not any more


def writable(peer: Identity, maps: MapHolder) -> tuple[str, ...]:
    """The prefixes, or whole keys, that a member may put and delete."""
    if peer.role is Role.TENANT:
        return (f"buckets/{peer.name}/", f"locks/{peer.name}/")
    if peer.role is Role.OPERATOR:
        return ("maps/", "tenants/")
    number = maps.number_of_peer(peer)
    return () if number is None else ("repair/", node_key(number))


@dataclass(slots=True)
class _Granted:
    """A lease that this node gave a member: when it has certainly ended unless it is kept alive."""

    end: float
    seconds: int


class CoordinationHandler:
    """Calls of members whose identity TLS has shown, on the store that this node serves."""

    def __init__(self, own: int, store: Coordination | None, maps: MapHolder, clock: Clock) -> None:
        """`own`: this node's number. `store` is None on a node that serves no coordination: it says so to everybody."""
        self._own = own
        self._backing = store
        self._maps = maps
        self._clock = clock
        self._leases: dict[str, dict[int, _Granted]] = {}  # by member and number
        self._watches: dict[str, int] = {}

    @property
    def _named_store(self) -> Coordination:
        """For all that has to do with maps. Raises `Unavailable` unless the map names this node."""
        if self._own not in self._maps.map.coordinators:
            raise Unavailable("the map does not name this node as a coordinator")
        return self._any_store

    @property
    def _store(self) -> Coordination:
        """For all else. Raises `Unavailable` unless the map names this node, and its store is the only one.

        What two stores decide is not agreed: so a store that the map does not name, or not any more, or along with
        another one, decides nothing.
        """
        store = self._named_store
        if several := one_of_several(store, self._own, self._maps.map):
            raise Unavailable(several)
        return store

    @property
    def _any_store(self) -> Coordination:
        if self._backing is None:
            raise Unavailable("this node does not serve coordination")
        return self._backing

    def _store_with(self, key: str) -> Coordination:
        """To read. Maps may be read on: members with an old map learn here who the coordinators are now."""
        return self._any_store if _is_of_maps(key) else self._store

    async def get(self, peer: Identity, request: pb.CoordinationGetRequest) -> pb.CoordinationGetReply:
        self._admit(peer, readable(peer, self._maps), [request.key])
        entry = await self._store_with(request.key).get(request.key)
        return pb.CoordinationGetReply(entry=None if entry is None else _entry(entry))

    async def range(self, peer: Identity, request: pb.CoordinationRangeRequest) -> pb.CoordinationRangeReply:
        self._admit(peer, readable(peer, self._maps), [request.prefix])
        limit = request.limit or RANGE_LIMIT_MAX
        store = self._store_with(request.prefix)
        page = await store.range(request.prefix, limit=limit, after=request.after)
        return pb.CoordinationRangeReply(
            entries=[_entry(entry) for entry in page.entries], more=page.more, revision=page.revision
        )

    async def commit(
        self, peer: Identity, request: pb.CoordinationCommitRequest
    ) -> pb.CoordinationCommitReply:
        puts = [Put(put.key, put.value, put.lease) for put in request.puts]
        self._admit(peer, readable(peer, self._maps), [compare.key for compare in request.compares])
        self._admit(peer, writable(peer, self._maps), [*(put.key for put in puts), *request.deletes])
        _check_puts(peer, puts)
        compares = [Compare(compare.key, compare.modified) for compare in request.compares]
        changed = [*(put.key for put in puts), *request.deletes]
        store = self._named_store if all(map(_is_of_maps, changed)) else self._store
        done = await store.commit(compares, puts, list(request.deletes))
        return pb.CoordinationCommitReply(succeeded=done.succeeded, revision=done.revision)

    def _admit(self, peer: Identity, allowed: Sequence[str], keys: Sequence[str]) -> None:
        self._maps.check_not_suspended(peer)
        for key in keys:
            if not key.startswith(tuple(allowed)):
                raise PermissionDenied(
                    f"this certificate ({peer.role.value}) does not open that part of coordination"
                )

    # ---------------------------------------------------------------- leases

    async def grant(self, peer: Identity, request: pb.LeaseGrantRequest) -> pb.LeaseGrantReply:
        self._maps.check_not_suspended(peer)
        now = self._clock.monotonic()
        held = self._leases.setdefault(_member(peer), {})
        for number in [number for number, granted in held.items() if granted.end <= now]:
            del held[number]
        if len(held) >= LEASES_PER_MEMBER_MAX:
            raise ResourceExhausted(f"a member has at most {LEASES_PER_MEMBER_MAX} leases")
        reserved = -len(held) - 1  # so that calls side by side count each other
        held[reserved] = _Granted(math.inf, 0)
        try:
            lease = await self._store.grant(request.seconds)
        finally:
            held.pop(reserved, None)
        held[lease.number] = _Granted(self._clock.monotonic() + lease.seconds, lease.seconds)
        return pb.LeaseGrantReply(lease=lease.number, seconds=lease.seconds)

    async def keep_alive(self, peer: Identity, request: pb.LeaseKeepAliveRequest) -> pb.LeaseKeepAliveReply:
        await self._store.keep_alive(request.lease)
        granted = self._leases.get(_member(peer), {}).get(request.lease)
        if granted is not None:
            granted.end = self._clock.monotonic() + granted.seconds
        return pb.LeaseKeepAliveReply()

    async def revoke(self, peer: Identity, request: pb.LeaseRevokeRequest) -> pb.LeaseRevokeReply:
        await self._store.revoke(request.lease)
        self._leases.get(_member(peer), {}).pop(request.lease, None)
        return pb.LeaseRevokeReply()

    # ---------------------------------------------------------------- watching

    async def watch(self, peer: Identity, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchReply]:
        self._admit(peer, readable(peer, self._maps), [request.prefix])
        member = _member(peer)
        if self._watches.get(member, 0) >= WATCHES_PER_MEMBER_MAX:
            raise ResourceExhausted(f"a member has at most {WATCHES_PER_MEMBER_MAX} watches open")
        self._watches[member] = self._watches.get(member, 0) + 1
        try:
            store = self._named_store if _is_of_maps(request.prefix) else self._store
            async with aclosing(store.watch(request.prefix, request.revision)) as watching:
                async for changes in watching:
                    # A node that a newer map has shut out learns nothing more.
                    self._admit(peer, readable(peer, self._maps), [request.prefix])
                    reply = pb.WatchReply(revision=changes.revision)
                    for change in changes.changes:
                        reply.changes.add(key=change.key, value=change.value)
                    yield reply
        except ReadAgain:
            yield pb.WatchReply(read_again=True)
        finally:
            self._watches[member] -= 1
            if not self._watches[member]:
                del self._watches[member]


def _is_of_maps(key: str) -> bool:
    return key.startswith(MAPS)


def _check_puts(peer: Identity, puts: Sequence[Put]) -> None:
    if peer.role is not Role.TENANT:
        return
    for put in puts:
        if len(put.value) > TENANT_VALUE_BYTES_MAX:
            raise InvalidArgument(f"a tenant's values have at most {TENANT_VALUE_BYTES_MAX} bytes")
        if put.key.startswith("locks/") and not put.lease:
            raise InvalidArgument("a claim to a lock hangs on a lease, or it would stay for ever")


def _member(peer: Identity) -> str:
    return f"{peer.role.value}/{peer.name}"


def _entry(entry: Entry) -> pb.CoordinationEntry:
    return pb.CoordinationEntry(
        key=entry.key, value=entry.value, created=entry.created, modified=entry.modified
    )
