"""A coordination store in etcd, over its v3 API: three or five members, TLS with a certificate of our own.

Why no client library: docs/decisions/coordination.md. Nothing is sent twice by itself but what may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from itertools import groupby
from typing import TypeVar

import grpc
from coffre.cluster._files import read_file
from coffre.cluster.coordination.maps import CURRENT
from coffre.cluster.coordination.seam import (
    RANGE_LIMIT_MAX,
    Change,
    Changes,
    Commit,
    Compare,
    Entry,
    Lease,
    Page,
    Put,
    check_commit,
    check_key,
    check_lease_seconds,
    check_prefix,
    check_range,
    prefix_end,
)
from coffre.cluster.errors import (
    AlreadyExists,
    CoffreError,
    ConfigurationError,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    ReadAgain,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from coffre.cluster.identity import TlsFiles
from coffre.proto import etcd_pb2 as pb
from google.protobuf.message import Message
from grpc import aio

__all__ = ["EtcdCoordination"]

TIMEOUT_SECONDS = 5.0
CONNECT_SECONDS = 1.0
MESSAGE_BYTES_MAX = 4 << 20
GRANT_ATTEMPTS = 3
_EQUAL, _MOD = 0, 2  # etcdserverpb.Compare
_DELETE = 1  # mvccpb.Event
_Reply = TypeVar("_Reply", bound=Message)
_BY_STATUS: dict[grpc.StatusCode, type[CoffreError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,  # of a lease: nothing else here has it
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.FAILED_PRECONDITION: AlreadyExists,  # a lease of that number
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}


class EtcdCoordination:
    """`Coordination` in etcd. Keys stand below `coffre/<cluster id>/`, so several clusters can share one etcd.

    One member is used until it fails, then the next. A call is only begun on a connection that is there, so that a
    member that is down leaves no doubt about what was done.
    """

    def __init__(
        self, endpoints: Sequence[str], tls: TlsFiles, cluster_id: str, entropy: Callable[[int], bytes]
    ) -> None:
        """`endpoints`: host:port of each member. Raises `ConfigurationError` when a file cannot be read."""
        if not endpoints:
            raise ConfigurationError("etcd needs at least one endpoint")
        credentials = grpc.ssl_channel_credentials(
            read_file(tls.authority), read_file(tls.key), read_file(tls.certificate)
        )
        self._members = [_Member(endpoint, credentials) for endpoint in endpoints]
        self._root = f"coffre/{cluster_id}/"
        self._entropy = entropy
        self._turn = 0
        self._closed = False

    # ---------------------------------------------------------------- keys

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        reply = await self._anywhere(lambda member: member.range(pb.RangeRequest(key=self._name(key))))
        return self._entry(reply.kvs[0]) if reply.kvs else None

    async def range(self, prefix: str, *, limit: int = RANGE_LIMIT_MAX, after: str = "") -> Page:
        check_range(prefix, limit, after)
        start = self._name(after) + b"\0" if after > prefix else self._name(prefix)
        request = pb.RangeRequest(key=start, range_end=self._name(prefix_end(prefix)), limit=limit)
        while True:
            try:
                reply = await self._anywhere(lambda member: member.range(request))
            except ResourceExhausted:
                if request.limit == 1:
                    raise
                request.limit //= 2  # the values are large: fewer of them on this page
                continue
            entries = tuple(self._entry(each) for each in reply.kvs)
            return Page(entries, reply.more, reply.header.revision)

    async def commit(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> Commit:
        check_commit(compares, puts, deletes)
        request = pb.TxnRequest()
        for each in compares:
            request.compare.add(
                result=_EQUAL, target=_MOD, key=self._name(each.key), mod_revision=each.modified
            )
        for put in puts:
            change = pb.PutRequest(key=self._name(put.key), value=put.value, lease=put.lease)
            request.success.add(request_put=change)
        for key in deletes:
            request.success.add(request_delete_range=pb.DeleteRangeRequest(key=self._name(key)))
        member = await self._connected()
        try:
            reply = await member.txn(request)
        except Unavailable as error:
            self._leave(member)
            raise OutcomeUnknown(f"it is not known whether that was agreed: {error}") from None
        return Commit(reply.succeeded, reply.header.revision)

    async def cluster(self) -> int:
        """Which etcd this is: a number that all its members share. Raises `Unavailable` when none can tell."""
        reply = await self._anywhere(lambda member: member.range(pb.RangeRequest(key=self._name(CURRENT))))
        return reply.header.cluster_id

    def _name(self, key: str) -> bytes:
        return (self._root + key).encode()

    def _entry(self, found: pb.KeyValue) -> Entry:
        key = found.key.decode().removeprefix(self._root)
        return Entry(key, found.value, found.create_revision, found.mod_revision)

    # ---------------------------------------------------------------- leases

    async def grant(self, seconds: int) -> Lease:
        check_lease_seconds(seconds)
        for _ in range(GRANT_ATTEMPTS):
            number = max(int.from_bytes(self._entropy(8), "big") >> 1, 1)
            request = pb.LeaseGrantRequest(TTL=seconds, ID=number)
            try:
                reply = await self._anywhere(lambda member, request=request: member.grant(request))  # type: ignore[misc]
            except AlreadyExists:
                continue  # perhaps granted by a call whose answer was lost; that one runs out
            return Lease(reply.ID, reply.TTL)
        raise Unavailable("etcd grants no lease")

    async def keep_alive(self, lease: int) -> None:
        reply = await self._anywhere(lambda member: member.keep_alive(pb.LeaseKeepAliveRequest(ID=lease)))
        if reply.TTL <= 0:
            raise NotFound("that lease has ended")

    async def revoke(self, lease: int) -> None:
        try:
            await self._anywhere(lambda member: member.revoke(pb.LeaseRevokeRequest(ID=lease)))
        except NotFound:
            return  # it has ended

    # ---------------------------------------------------------------- watching

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes]:
        check_prefix(prefix)
        create = pb.WatchCreateRequest(
            key=self._name(prefix), range_end=self._name(prefix_end(prefix)), start_revision=revision + 1
        )
        member = await self._connected()
        call = member.watch()
        try:
            await call.write(pb.WatchRequest(create_request=create))
            async for reply in call:
                if reply.compact_revision:
                    raise ReadAgain("etcd does not remember what this watch missed")
                if reply.canceled:
                    break
                for at, events in groupby(reply.events, lambda event: event.kv.mod_revision):
                    yield Changes(at, tuple(self._change(event) for event in events))
        except aio.AioRpcError as error:
            self._leave(member)
            raise Unavailable(f"the watch ended: {member.translate(error)}") from None
        except asyncio.CancelledError:
            _check_cancelled()
            raise
        finally:
            call.cancel()
        self._leave(member)
        raise Unavailable("etcd ended the watch")

    def _change(self, event: pb.Event) -> Change:
        key = event.kv.key.decode().removeprefix(self._root)
        return Change(key, None if event.type == _DELETE else event.kv.value)

    # ---------------------------------------------------------------- members

    async def _connected(self) -> _Member:
        """A member that a connection is open to. Raises `Unavailable`."""
        begun = self._turn
        for turn in range(begun, begun + len(self._members)):
            if self._closed:
                break
            member = self._members[turn % len(self._members)]
            if await member.connect():
                self._turn = turn
                return member
        raise Unavailable("coordination is closed" if self._closed else "no member of etcd can be reached")

    def _leave(self, member: _Member) -> None:
        """Begin with the next member from now on, unless another call has seen to that."""
        if self._members[self._turn % len(self._members)] is member:
            self._turn += 1

    async def _anywhere(self, call: Callable[[_Member], Awaitable[_Reply]]) -> _Reply:
        """A call that may be made twice, to one member after the other."""
        for _ in self._members[1:]:
            member = await self._connected()
            try:
                return await call(member)
            except Unavailable:
                self._leave(member)
        return await call(await self._connected())

    async def close(self) -> None:
        self._closed = True
        await asyncio.gather(*(member.channel.close() for member in self._members))


class _Member:
    """One member of etcd, and the calls to it that are used here."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials) -> None:
        self._endpoint = endpoint
        self.channel = aio.secure_channel(
            f"dns:///{endpoint}",
            credentials,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 1_000),
                ("grpc.enable_http_proxy", 0),
                ("grpc.enable_retries", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )

    async def connect(self) -> bool:
        """Whether a connection is open now, or within a second."""
        try:
            await asyncio.wait_for(self.channel.channel_ready(), CONNECT_SECONDS)
        except TimeoutError:
            return False
        return True

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        return await self._unary("KV/Range", request, pb.RangeResponse)

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        return await self._unary("KV/Txn", request, pb.TxnResponse)

    async def grant(self, request: pb.LeaseGrantRequest) -> pb.LeaseGrantResponse:
        return await self._unary("Lease/LeaseGrant", request, pb.LeaseGrantResponse)

    async def revoke(self, request: pb.LeaseRevokeRequest) -> pb.LeaseRevokeResponse:
        return await self._unary("Lease/LeaseRevoke", request, pb.LeaseRevokeResponse)

    async def keep_alive(self, request: pb.LeaseKeepAliveRequest) -> pb.LeaseKeepAliveResponse:
        """A stream in etcd, of which one question and one answer are used."""
        method = self.channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            pb.LeaseKeepAliveRequest.SerializeToString,
            pb.LeaseKeepAliveResponse.FromString,
        )
        call = method(timeout=TIMEOUT_SECONDS)
        try:
            await call.write(request)
            reply = await call.read()
        except aio.AioRpcError as error:
            raise self.translate(error) from None
        except asyncio.InvalidStateError:
            raise Unavailable(f"etcd ({self._endpoint}) ended the call") from None
        finally:
            call.cancel()
        if not isinstance(reply, pb.LeaseKeepAliveResponse):
            raise Unavailable(f"etcd ({self._endpoint}) ended the call")
        return reply

    def watch(self) -> aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]:
        method: aio.StreamStreamMultiCallable[pb.WatchRequest, pb.WatchResponse] = self.channel.stream_stream(
            "/etcdserverpb.Watch/Watch", pb.WatchRequest.SerializeToString, pb.WatchResponse.FromString
        )
        return method()

    async def _unary(self, method: str, request: Message, reply: type[_Reply]) -> _Reply:
        call: aio.UnaryUnaryMultiCallable[Message, _Reply] = self.channel.unary_unary(
            f"/etcdserverpb.{method}", lambda message: message.SerializeToString(), reply.FromString
        )
        try:
            return await call(request, timeout=TIMEOUT_SECONDS)
        except aio.AioRpcError as error:
            raise self.translate(error) from None
        except asyncio.CancelledError:
            _check_cancelled()
            raise

    def translate(self, error: aio.AioRpcError) -> CoffreError:
        """The status alone decides the class; the text is for people."""
        kind = _BY_STATUS.get(error.code(), Unavailable)
        return kind(f"etcd ({self._endpoint}): {' '.join((error.details() or '').split())}")


def _check_cancelled() -> None:
    """gRPC ends the calls of a closing channel as if the caller had been cancelled: tell them apart."""
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise Unavailable("the connection to etcd was closed during the call") from None
