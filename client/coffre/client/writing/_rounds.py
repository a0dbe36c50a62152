"""One round of Accepts: who was asked, who took the version, and when the outcome is certain (docs/consistency.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coffre.cluster.errors import (
    ClockSkew,
    CoffreError,
    Conflict,
    InvalidArgument,
    NotSent,
    PermissionDenied,
    StaleMap,
    Unauthenticated,
    Unavailable,
    Unsupported,
    details_of,
    error_of_status,
)
from coffre.cluster.map import Electorate
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import VOTE_REPLACES, VOTE_SHARD, vote_of

__all__ = ["Part", "Round"]

ABORTED_CODE = Conflict.code
# What a node says of a whole message before it looks into it, so nothing of it was carried out.
# Or there was no connection, and nothing left.
PLAIN_REFUSALS = (InvalidArgument, NotSent, PermissionDenied, StaleMap, Unauthenticated, Unsupported)


# What a node has said of the version; a node that was asked again may have said several.
_TOOK, _REFUSED, _AMBIGUOUS = 1, 2, 4


class Round:
    """One round of Accepts: counts answers and decides as soon as the outcome is certain."""

    def __init__(
        self,
        electorate: Electorate,
        needs_shards: bool,
        loop: asyncio.AbstractEventLoop,
        too_far: Callable[[bytes], str] = lambda stamp: "",
        name_of: Callable[[int], str] = str,
    ) -> None:
        """`too_far`: what is wrong with a stamp that somebody calls newer; empty when it may be believed. `name_of`:
        the id of a node."""
        self._name_of = name_of
        self.electorate = electorate
        self._too_far = too_far
        self._needs_shards = needs_shards
        self._loop = loop
        self._said: dict[int, int] = {}  # by node
        self._awaited: dict[int, int] = {}  # by node: answers to come, for it may be asked again
        self._holders: set[int] = set()  # nodes that hold the manifest
        self._shards = 0  # a bit for each shard that is stored
        self.pending = 0
        self.newest = b""
        self._far: dict[int, bytes] = {}  # what nodes call newer, and is from the future
        self.aborted = False
        self.errors: dict[int, CoffreError] = {}
        self.replacing: list[int] = []  # nodes that hold other versions, which a Settle would trim
        self.on_late_replace: Callable[[int], None] | None = None
        self.on_failure: Callable[[int, int | None], None] | None = None
        self.decided: asyncio.Future[None] = loop.create_future()
        self._finished: asyncio.Future[None] | None = None

    @property
    def enough(self) -> bool:
        """Whether the bar is reached: enough shards, and a quorum of each set of primaries."""
        if self._needs_shards and self._shards.bit_count() < self.electorate.shards:
            return False
        return self.electorate.is_established_by(self._holders)

    @property
    def is_stale(self) -> bool:
        """Whether a node serves another epoch than the one that this round counts on."""
        return any(isinstance(error, StaleMap) for error in self.errors.values())

    @property
    def possible_holders(self) -> set[int]:
        """Nodes that have the version, or may: everyone who was asked and did not plainly say no each time."""
        awaited = self._awaited
        return {node for node, said in self._said.items() if said != _REFUSED or awaited.get(node)}

    def add_holders(self, other: Round) -> None:
        """Whoever may hold the version by another round may do so by this one."""
        for node in other.possible_holders:
            self._said[node] = self._said.get(node, 0) | _TOOK

    @property
    def in_the_way(self) -> bytes:
        """A stamp from the future, when so many nodes hold one that W cannot be had without them: then it is this
        machine's clock that is late, or there is no way around it. Empty: there is none."""
        others = self.electorate.everyone - self._far.keys()
        return b"" if self.electorate.is_established_by(others) else min(self._far.values())

    @property
    def fails_by_clocks(self) -> bool:
        """Whether so many nodes say that clocks differ that W of some set cannot be had for that alone."""
        skewed = {node for node, error in self.errors.items() if isinstance(error, ClockSkew)}
        return bool(skewed) and not self.electorate.is_established_by(self.electorate.everyone - skewed)

    @property
    def comes_late(self) -> bool:
        """Whether nobody says that it took the version, and somebody has a newer map: what that map ended had ended
        before the Accepts came."""
        return self.is_stale and not self._holders

    @property
    def unanswered(self) -> list[int]:
        """Nodes that were asked and have said nothing yet."""
        return [node for node, said in self._said.items() if not said]

    def summary(self) -> str:
        """For people: what the nodes said that refused or failed."""
        failures = "; ".join(self._said_by(node, error) for node, error in sorted(self.errors.items()))
        want = f"{self.electorate.shards} shards and " if self._needs_shards else ""
        manifests = len(self._holders & self.electorate.everyone)
        return (
            f"{want}{self.electorate.write} manifests are needed, "
            f"{self._shards.bit_count()} and {manifests} were stored ({failures})"
        )

    def _said_by(self, node: int, error: CoffreError) -> str:
        who = f"node {self._name_of(node)}"
        return str(error) if str(error).startswith(who) else f"{who}: {error}"

    @property
    def details(self) -> str:
        """The same for administrators: who that was, and where."""
        return details_of(self.errors.values())

    def expect(self, node: int) -> None:
        """One more answer is to come."""
        self.pending += 1
        self._said.setdefault(node, 0)
        self._awaited[node] = self._awaited.get(node, 0) + 1

    async def finish(self, timeout: float | None = None) -> None:
        """Wait for every answer, for `timeout` seconds at most."""
        if not self.pending:
            return
        finished = self._finished = self._loop.create_future()
        timer = None if timeout is None else self._loop.call_later(timeout, _resolve, finished)
        try:
            await finished
        finally:
            if timer is not None:
                timer.cancel()

    def took(self, node: int, shard_index: int | None, vote: int) -> None:
        """Count a node that has the version, and the shard that came with it."""
        said = self._said[node]
        self._awaited[node] -= 1
        if not said & _TOOK:
            self._said[node] = said | _TOOK
            self._holders.add(node)
        if shard_index is not None and vote & VOTE_SHARD:
            self._shards |= 1 << shard_index
        if vote & VOTE_REPLACES:
            self.replacing.append(node)
            if self.on_late_replace is not None:
                self.on_late_replace(node)
        self._count()

    def heard(self, node: int, shard_index: int | None, outcome: pb.Outcome) -> None:
        """Count a node's outcome."""
        if not outcome.code:
            vote = vote_of(outcome.state, outcome.has_shard, outcome.replaces)
            self.took(node, shard_index, vote)
            return
        self._awaited[node] -= 1
        if outcome.code == ABORTED_CODE:
            self._said[node] |= _REFUSED
            future = self._too_far(outcome.newest_stamp) if outcome.newest_stamp else ""
            if future:  # the others may do without this node
                self._far[node] = outcome.newest_stamp
                self._fail(node, shard_index, ClockSkew(future))
            else:
                self.newest = max(self.newest, outcome.newest_stamp)
                self.aborted = True
        else:
            # What a node says when it does not know whether it did it.
            self._said[node] |= _AMBIGUOUS if outcome.code == Unavailable.code else _REFUSED
            self._fail(
                node, shard_index, error_of_status(outcome.code, outcome.detail, node=self._name_of(node))
            )
        self._count()

    def failed(self, node: int, shard_index: int | None, error: CoffreError) -> None:
        self._awaited[node] -= 1
        self._said[node] |= _REFUSED if isinstance(error, PLAIN_REFUSALS) else _AMBIGUOUS
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
        if not self.pending and self._finished is not None:
            _resolve(self._finished)

    def reopen(self) -> None:
        """Nodes are asked once more: a new chance to be decided."""
        self.decided = self._loop.create_future()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


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
        """Hand the node's outcome to the round."""
        self.round.heard(self.node, self.shard_index, outcome)

    def failed(self, error: CoffreError) -> None:
        self.round.failed(self.node, self.shard_index, error)
