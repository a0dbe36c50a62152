"""What nodes answer to a Read: who holds which version, and answers gathered as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from coffre.client._peers import Peers
from coffre.client._writes import Quorum
from coffre.cluster.errors import CoffreError, error_of_status
from coffre.cluster.names import ObjectName
from coffre.proto import coffre_pb2 as pb

__all__ = ["HELD", "Gather", "Replies", "holding", "newest_stamp", "read_operation", "shards_of"]

HELD = (pb.STATE_ACCEPTED, pb.STATE_LOCKED, pb.STATE_SETTLED)

Replies = dict[int, Sequence[pb.Version]]  # by node number


class Gather:
    """Answers to one Read, as they come."""

    def __init__(self, peers: Peers, operation: pb.Operation) -> None:
        self._peers = peers
        self._operation = operation
        self._changed: asyncio.Future[None] | None = None
        self.replies: Replies = {}
        self.error: CoffreError | None = None
        self.failures = 0
        self.pending = 0

    def ask(self, nodes: Iterable[int]) -> None:
        for node in nodes:
            self.pending += 1
            future = self._peers[node].reads.submit(self._operation)
            future.add_done_callback(lambda done, node=node: self._take(node, done))  # type: ignore[misc]

    def _take(self, node: int, done: asyncio.Future[pb.Outcome]) -> None:
        self.pending -= 1
        error = done.exception()
        if error is not None:
            self.failures += 1
        else:
            outcome = done.result()
            if outcome.code:
                self.failures += 1
                self.error = error_of_status(outcome.code, outcome.detail)
            else:
                self.replies[node] = outcome.versions
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def wait(self, timeout: float | None) -> bool:
        """Wait for the next answer; False when `timeout` seconds pass without one."""
        self._changed = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait([self._changed], timeout=timeout)
        return bool(done)

    def answered(self, quorum: Quorum, want_cell: bool) -> bool:
        if len(self.replies) < quorum.read:
            return False
        if not want_cell or not self.pending:
            return True
        newest = newest_stamp(self.replies.values())
        if newest is None:
            return True
        held = holding(newest, self.replies).values()
        with_cells = sum(bool(version.cell) for version in held)
        return with_cells >= quorum.k or not with_cells


def read_operation(
    name: ObjectName, *, want_cell: bool = False, stamp: bytes = b"", every: bool = False
) -> pb.Operation:
    return pb.Operation(
        read=pb.Read(bucket=name.bucket, key=name.key, want_cell=want_cell, stamp=stamp, all=every)
    )


def newest_stamp(replies: Iterable[Sequence[pb.Version]], dead: Iterable[bytes] = ()) -> bytes | None:
    """The newest stamp that some node holds."""
    dead = set(dead)
    stamps = (v.stamp for versions in replies for v in versions if v.state in HELD)
    return max((stamp for stamp in stamps if stamp not in dead), default=None)


def holding(stamp: bytes, replies: Replies) -> dict[int, pb.Version]:
    return {
        node: version
        for node, versions in replies.items()
        for version in versions
        if version.stamp == stamp and version.state in HELD
    }


def shards_of(stamp: bytes, replies: Replies) -> set[int]:
    held = holding(stamp, replies).values()
    return {v.shard_index for v in held if v.HasField("shard_index") and not v.damaged}
