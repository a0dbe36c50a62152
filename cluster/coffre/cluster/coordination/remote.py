"""A coordination store behind a node: what clients, operators and nodes without etcd of their own use."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol, TypeVar

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
)
from coffre.cluster.errors import (
    IntegrityError,
    NotSent,
    OutcomeUnknown,
    ReadAgain,
    ResourceExhausted,
    RetryableError,
    Unavailable,
)
from coffre.cluster.map import ClusterMap
from coffre.proto import coordination_pb2 as pb

if TYPE_CHECKING:
    from coffre.proto.coordination_pb2_grpc import CoordinationAsyncStub

__all__ = ["Coordinators", "RemoteCoordination"]

TIMEOUT_SECONDS = 2.0
_Reply = TypeVar("_Reply")
_Call = Callable[["CoordinationAsyncStub", bool], Awaitable[_Reply]]


class Coordinators(Protocol):
    """The way to the coordinators: `GrpcTransport`, or its twin in the simulator."""

    @property
    def cluster_map(self) -> ClusterMap:
        """The map that names them."""

    async def coordinate(
        self,
        node: int,
        call: Callable[[CoordinationAsyncStub], Awaitable[_Reply]],
        timeout: float,
        *,
        wait: bool = True,
    ) -> _Reply:
        """One call to the coordination service of a node. `call` sets the timeout itself. Raises `NotSent` when there
        is no connection; without `wait`, at once when it is refused."""

    def watch(self, node: int, request: pb.WatchRequest) -> AsyncGenerator[pb.WatchReply]:
        """What the coordination service of a node tells, for as long as the connection lasts."""


class RemoteCoordination:
    """`Coordination` through the nodes that the transport's map names as coordinators.

    One is used until it fails; then the next one. Only what may be done twice is tried again.
    """

    def __init__(self, transport: Coordinators, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._transport = transport
        self._timeout = timeout
        self._turn = 0
        self._closed = False

    def _coordinator(self) -> int:
        if self._closed:
            raise Unavailable("this coordination client is closed")
        coordinators = self._transport.cluster_map.coordinators
        if not coordinators:
            raise Unavailable(
                "the cluster map names no coordinators, so nothing that needs agreement can be done"
            )
        return coordinators[self._turn % len(coordinators)]

    def _leave(self, node: int) -> None:
        """Begin with the next coordinator from now on, unless another call has seen to that."""
        if self._coordinator() == node:
            self._turn += 1

    async def _once(self, call: _Call[_Reply], *, wait: bool = True) -> _Reply:
        """With `wait`, a coordinator that is just starting again is waited for, as long as the timeout allows."""
        node = self._coordinator()
        try:
            return await self._transport.coordinate(
                node, lambda stub: call(stub, wait), self._timeout, wait=wait
            )
        except ResourceExhausted:
            raise
        except NotSent as error:
            self._leave(node)
            raise NotSent(
                f"coordination cannot be reached: {error}", node=error.node, details=error.details
            ) from None
        except RetryableError as error:
            self._leave(node)
            raise Unavailable(
                f"coordination cannot be reached: {error}", node=error.node, details=error.details
            ) from None

    async def _anywhere(self, call: _Call[_Reply]) -> _Reply:
        """A call that may be made twice, to one coordinator after the other."""
        for _ in self._transport.cluster_map.coordinators[1:]:
            try:
                return await self._once(call, wait=False)
            except Unavailable:
                continue
        return await self._once(call)

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        request = pb.CoordinationGetRequest(key=key)
        reply = await self._anywhere(
            lambda stub, wait: stub.Get(request, timeout=self._timeout, wait_for_ready=wait)
        )
        return _entry(reply.entry) if reply.HasField("entry") else None

    async def range(self, prefix: str, *, limit: int = RANGE_LIMIT_MAX, after: str = "") -> Page:
        check_range(prefix, limit, after)
        request = pb.CoordinationRangeRequest(prefix=prefix, limit=limit, after=after)
        reply = await self._anywhere(
            lambda stub, wait: stub.Range(request, timeout=self._timeout, wait_for_ready=wait)
        )
        if reply.more and not reply.entries:
            raise IntegrityError("a coordinator says that there is more, and shows nothing")
        return Page(tuple(_entry(entry) for entry in reply.entries), reply.more, reply.revision)

    async def commit(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> Commit:
        check_commit(compares, puts, deletes)
        request = pb.CoordinationCommitRequest(
            compares=[pb.CoordinationCompare(key=each.key, modified=each.modified) for each in compares],
            puts=[pb.CoordinationPut(key=put.key, value=put.value, lease=put.lease) for put in puts],
            deletes=deletes,
        )
        refused = Unavailable("")
        coordinators = self._transport.cluster_map.coordinators
        for turn, _ in enumerate(coordinators or (0,), 1):
            self._coordinator()  # nobody to ask is no doubt about the outcome
            try:
                reply = await self._once(
                    lambda stub, wait: stub.Commit(request, timeout=self._timeout, wait_for_ready=wait),
                    wait=turn >= len(coordinators),
                )
            except NotSent as error:  # the next one may be there
                refused = error
                continue
            except Unavailable as error:
                raise OutcomeUnknown(
                    f"it is not known whether that was agreed: {error}",
                    node=error.node,
                    details=error.details,
                ) from None
            if not reply.refused:
                return Commit(reply.succeeded, reply.revision)
            refused = Unavailable(f"coordination cannot be reached: {reply.refused}")
            self._turn += 1
        raise Unavailable(f"{refused}; nothing was changed", node=refused.node, details=refused.details)

    async def grant(self, seconds: int) -> Lease:
        check_lease_seconds(seconds)
        request = pb.LeaseGrantRequest(seconds=seconds)
        # A second lease, where the answer about the first was lost, is used by nobody and runs out.
        reply = await self._anywhere(
            lambda stub, wait: stub.Grant(request, timeout=self._timeout, wait_for_ready=wait)
        )
        return Lease(reply.lease, reply.seconds)

    async def keep_alive(self, lease: int) -> None:
        request = pb.LeaseKeepAliveRequest(lease=lease)
        await self._anywhere(
            lambda stub, wait: stub.KeepAlive(request, timeout=self._timeout, wait_for_ready=wait)
        )

    async def revoke(self, lease: int) -> None:
        request = pb.LeaseRevokeRequest(lease=lease)
        await self._anywhere(
            lambda stub, wait: stub.Revoke(request, timeout=self._timeout, wait_for_ready=wait)
        )

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes]:
        check_prefix(prefix)
        request = pb.WatchRequest(prefix=prefix, revision=revision)
        node = self._coordinator()
        try:
            async with aclosing(self._transport.watch(node, request)) as watching:
                async for reply in watching:
                    if reply.read_again:
                        raise ReadAgain("the coordinator does not remember what this watch missed")
                    yield Changes(
                        reply.revision,
                        tuple(
                            Change(change.key, change.value if change.HasField("value") else None)
                            for change in reply.changes
                        ),
                    )
        except (ReadAgain, ResourceExhausted):
            raise
        except RetryableError as error:
            self._leave(node)
            raise Unavailable(f"the watch ended: {error}", node=error.node, details=error.details) from None
        self._leave(node)
        raise Unavailable("the coordinator ended the watch")

    async def close(self) -> None:
        """Use it no more. The transport is its owner's."""
        self._closed = True


def _entry(entry: pb.CoordinationEntry) -> Entry:
    return Entry(entry.key, entry.value, entry.created, entry.modified)
