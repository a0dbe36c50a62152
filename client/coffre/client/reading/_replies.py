"""What nodes answer to a Read: who holds which version, and answers gathered as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence

from coffre.client.nodes import Peers
from coffre.cluster.errors import CoffreError
from coffre.cluster.map import Electorate
from coffre.cluster.names import ObjectName
from coffre.proto import coffre_pb2 as pb

__all__ = [
    "HELD",
    "Gather",
    "Replies",
    "aborting",
    "holding",
    "newest_stamp",
    "read_operation",
    "shards_of",
    "undecided",
]

HELD = (pb.STATE_ACCEPTED, pb.STATE_LOCKED, pb.STATE_SETTLED)

Replies = dict[int, Sequence[pb.Version]]  # by node number


class Gather:
    """Answers to one Read: enough of them, from spare nodes when some fail or are slow.

    `first` nodes are asked at once, `spare` ones one by one: after a failure, or when `hedge_delay` seconds passed. So
    long the answers of `awaited` nodes, which should have the cells of a short range, are waited for as well.
    """

    def __init__(
        self,
        peers: Peers,
        operation: bytes,
        electorate: Electorate,
        spare: list[int],
        *,
        want_cell: bool,
        hedge_delay: float,
        awaited: Iterable[int] = (),
    ) -> None:
        self._peers = peers
        self._operation = operation
        self._electorate = electorate
        self._spare = spare
        self._want_cell = want_cell
        self._hedge_delay = hedge_delay
        self._awaited = set(awaited)
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._pending = 0
        self._newest = b""
        self._cells = 0
        self.replies: Replies = {}

    async def run(self, first: Iterable[int]) -> Replies:
        for node in first:
            self._ask(node)
        if self._spare or self._awaited:
            self._timer = self._loop.call_later(self._hedge_delay, self._hedge)
        try:
            await self._done
        finally:
            if self._timer is not None:
                self._timer.cancel()
        return self.replies

    def _ask(self, node: int) -> None:
        self._pending += 1
        self._peers[node].reads.post(self._operation, _Asked(self, node))

    def _hedge(self) -> None:
        """Nothing came for a while, or too little: ask one node more."""
        self._timer = None
        if self._done.done():
            return
        self._awaited.clear()
        if self._answered():
            self._done.set_result(None)
            return
        if not self._spare:
            return
        self._ask(self._spare.pop(0))
        if self._spare:
            self._timer = self._loop.call_later(self._hedge_delay, self._hedge)

    def take(self, node: int, versions: Sequence[pb.Version] | None) -> None:
        """The answer of a node; None when it failed."""
        self._pending -= 1
        self._awaited.discard(node)
        if self._done.done():
            return
        if versions is not None:
            self.replies[node] = versions
            self._note(versions)
        elif self._spare:
            self._ask(self._spare.pop(0))
        if self._answered():
            self._done.set_result(None)
        elif not self._pending:
            if self._spare:
                self._ask(self._spare.pop(0))
            else:
                self._done.set_result(None)

    def _answered(self) -> bool:
        electorate = self._electorate
        if not electorate.is_heard_from(self.replies):
            return False
        if not self._want_cell or not self._pending:
            return True
        return self._cells >= electorate.k or not (self._cells or self._awaited)

    def _note(self, versions: Sequence[pb.Version]) -> None:
        """Keep count of the cells of the newest version that any node holds."""
        for version in versions:
            if version.state not in HELD:
                continue
            stamp = version.stamp
            if stamp > self._newest:
                self._newest, self._cells = stamp, 0
            if stamp == self._newest and version.cell:
                self._cells += 1


class _Asked:
    """One node's part of a `Gather`."""

    __slots__ = ("_gather", "_node")

    def __init__(self, gather: Gather, node: int) -> None:
        self._gather = gather
        self._node = node

    def voted(self, vote: int) -> None:
        self._gather.take(self._node, None)  # no answer to a Read

    def answered(self, outcome: pb.Outcome) -> None:
        self._gather.take(self._node, None if outcome.code else outcome.versions)

    def failed(self, error: CoffreError) -> None:
        self._gather.take(self._node, None)


def read_operation(
    name: ObjectName,
    *,
    want_cell: bool = False,
    want_range: range = range(0),
    stamp: bytes = b"",
    every: bool = False,
) -> pb.Operation:
    """`want_range`: bytes of plaintext; the cells that they lie in should come along, when they are few."""
    return pb.Operation(
        read=pb.Read(
            bucket=name.bucket,
            key=name.key,
            want_cell=want_cell,
            stamp=stamp,
            all=every,
            range_start=want_range.start,
            range_bytes=len(want_range),
        )
    )


def newest_stamp(replies: Iterable[Sequence[pb.Version]], dead: Collection[bytes] = ()) -> bytes | None:
    """The newest stamp that some node holds."""
    newest: bytes | None = None
    for versions in replies:
        for version in versions:
            stamp = version.stamp
            if (newest is None or stamp > newest) and version.state in HELD and stamp not in dead:
                newest = stamp
    return newest


def holding(stamp: bytes, replies: Replies) -> dict[int, pb.Version]:
    """What each node says of the version of that stamp, of those that have it."""
    return {
        node: version
        for node, versions in replies.items()
        for version in versions
        if version.stamp == stamp and version.state in HELD
    }


def aborting(stamp: bytes, replies: Replies) -> set[int]:
    """Who voted against a version."""
    return {
        node
        for node, versions in replies.items()
        if any(v.stamp == stamp and v.state == pb.STATE_ABORTED for v in versions)
    }


def shards_of(stamp: bytes, replies: Replies) -> set[int]:
    """Indexes of the shards of that version that were seen, damaged ones left out."""
    held = holding(stamp, replies).values()
    return {v.shard_index for v in held if v.HasField("shard_index") and not v.damaged}


def undecided(replies: Replies) -> set[bytes]:
    """Stamps of versions that some node holds, and nobody knows to be established."""
    held = [v for versions in replies.values() for v in versions if v.state in HELD]
    return {v.stamp for v in held} - {v.stamp for v in held if v.state == pb.STATE_SETTLED}
