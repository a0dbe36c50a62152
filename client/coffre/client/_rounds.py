"""One round of Accepts: who was asked, who took the version, and when the outcome is certain (docs/consistency.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from coffre.cluster.errors import (
    CoffreError,
    Conflict,
    InvalidArgument,
    PermissionDenied,
    StaleMap,
    Unauthenticated,
    Unsupported,
    error_of_status,
)
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import VOTE_REPLACES, VOTE_SHARD, vote_of

__all__ = ["Part", "Quorum", "Round"]

ABORTED_CODE = Conflict.code
# What a node says of a whole message before it looks into it, so nothing of it was carried out.
PLAIN_REFUSALS = (InvalidArgument, PermissionDenied, StaleMap, Unauthenticated, Unsupported)


@dataclass(frozen=True, slots=True)
class Quorum:
    """The arithmetic of docs/consistency.md for one policy."""

    k: int
    m: int

    @property
    def n(self) -> int:
        return self.k + self.m

    @property
    def write(self) -> int:
        """W: manifests on primaries."""
        return self.n // 2 + 1

    @property
    def read(self) -> int:
        """R: answers that meet every W."""
        return self.n - self.write + 1

    @property
    def shards(self) -> int:
        """D: synced shards."""
        return self.k + 1


class Round:
    """One round of Accepts: counts answers and decides as soon as the outcome is certain."""

    def __init__(
        self, quorum: Quorum, primaries: Sequence[int], needs_shards: bool, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.quorum = quorum
        self._primaries = primaries
        self._needs_shards = needs_shards
        self._loop = loop
        self._manifests: set[int] = set()
        self._shards: set[int] = set()
        self._took: set[int] = set()
        self._asked: set[int] = set()
        self._refused: set[int] = set()
        self.pending = 0
        self.newest = b""
        self.aborted = False
        self.errors: dict[int, CoffreError] = {}
        self._ambiguous: set[int] = set()
        self.replacing: set[int] = set()  # nodes that hold other versions, which a Settle would trim
        self.on_late_replace: Callable[[int], None] | None = None
        self.on_failure: Callable[[int, int | None], None] | None = None
        self.decided: asyncio.Future[None] = loop.create_future()
        self._finished: asyncio.Future[None] | None = None

    @property
    def enough(self) -> bool:
        if self._needs_shards and len(self._shards) < self.quorum.shards:
            return False
        return len(self._manifests) >= self.quorum.write

    @property
    def possible_holders(self) -> set[int]:
        """Nodes that have the version, or may: everyone who was asked and did not plainly say no."""
        return self._asked - (self._refused - self._ambiguous - self._took)

    @property
    def unanswered(self) -> set[int]:
        """Nodes that were asked and have said nothing yet."""
        return self._asked - self._refused - self._ambiguous - self._manifests - self._took

    def summary(self) -> str:
        failures = "; ".join(f"node {node}: {error}" for node, error in sorted(self.errors.items()))
        want = f"{self.quorum.shards} shards and " if self._needs_shards else ""
        return (
            f"{want}{self.quorum.write} manifests are needed, "
            f"{len(self._shards)} and {len(self._manifests)} were stored ({failures})"
        )

    def expect(self, node: int) -> None:
        """One more answer is to come."""
        self.pending += 1
        self._asked.add(node)

    async def finish(self, timeout: float | None = None) -> None:
        """Wait for every answer, for `timeout` seconds at most."""
        if self.pending:
            self._finished = self._loop.create_future()
            await asyncio.wait([self._finished], timeout=timeout)

    def took(self, node: int, shard_index: int | None, vote: int) -> None:
        self._took.add(node)
        if node in self._primaries:
            self._manifests.add(node)
        if shard_index is not None and vote & VOTE_SHARD:
            self._shards.add(shard_index)
        if vote & VOTE_REPLACES:
            self.replacing.add(node)
            if self.on_late_replace is not None:
                self.on_late_replace(node)
        self._count()

    def heard(self, node: int, shard_index: int | None, outcome: pb.Outcome) -> None:
        if outcome.code == ABORTED_CODE:
            self.newest = max(self.newest, outcome.newest_stamp)
            self.aborted = True
            self._refused.add(node)
        elif outcome.code:
            self._refused.add(node)
            self._fail(node, shard_index, error_of_status(outcome.code, outcome.detail))
        else:
            vote = vote_of(outcome.state, has_shard=outcome.has_shard, replaces=outcome.replaces)
            self.took(node, shard_index, vote)
            return
        self._count()

    def failed(self, node: int, shard_index: int | None, error: CoffreError) -> None:
        (self._refused if isinstance(error, PLAIN_REFUSALS) else self._ambiguous).add(node)
        self._fail(node, shard_index, error)
        self._count()

    def _fail(self, node: int, shard_index: int | None, error: CoffreError) -> None:
        self.errors[node] = error
        if not self.decided.done() and self.on_failure is not None:
            self.on_failure(node, shard_index)

    def _count(self) -> None:
        self.pending -= 1
        if not self.decided.done() and (not self.pending or self.aborted or self.enough):
            self.decided.set_result(None)
        if not self.pending and self._finished is not None and not self._finished.done():
            self._finished.set_result(None)

    def reopen(self) -> None:
        """Nodes are asked once more: a new chance to be decided."""
        self.decided = self._loop.create_future()


class Part:
    """What one node was asked to take: tells its round what became of it."""

    __slots__ = ("node", "round", "shard_index")

    def __init__(self, round_: Round, node: int, shard_index: int | None) -> None:
        self.round = round_
        self.node = node
        self.shard_index = shard_index

    def voted(self, vote: int) -> None:
        self.round.took(self.node, self.shard_index, vote)

    def answered(self, outcome: pb.Outcome) -> None:
        self.round.heard(self.node, self.shard_index, outcome)

    def failed(self, error: CoffreError) -> None:
        self.round.failed(self.node, self.shard_index, error)
