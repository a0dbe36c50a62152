"""The writer's half of the register protocol (docs/consistency.md): accept on enough nodes, or give up for good."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from coffre.client._peers import Peers
from coffre.client._sealing import Draft
from coffre.cluster.clock import Clock
from coffre.cluster.errors import (
    CoffreError,
    Conflict,
    InvalidArgument,
    OutcomeUnknown,
    PermanentError,
    PermissionDenied,
    RetryableError,
    StaleMap,
    Unauthenticated,
    Unavailable,
    Unsupported,
    error_of_status,
)
from coffre.cluster.names import ObjectName, partition_of
from coffre.cluster.placement import Placement
from coffre.cluster.versions import HybridClock, Stamp
from coffre.proto import coffre_pb2 as pb

__all__ = ["Fate", "Quorum", "Shards", "Writer"]

ATTEMPTS_MAX = 100
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


def understudies(placement: Placement, quorum: Quorum, partition: int) -> tuple[int, ...]:
    """The n nodes after the primaries in a partition's order: who may stand in for a primary."""
    primaries = placement.primaries(partition)
    return tuple(node for node in placement.order(partition) if node not in primaries)[: quorum.n]


class Fate(enum.Enum):
    """What became of a version that its writer gave up."""

    DEAD = "dead"
    ESTABLISHED = "established"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Shards:
    """The data of a version: one cell for each node, or shards that were staged there before."""

    placement: list[int]  # node number by shard index
    cells: Sequence[bytes] = ()
    cell_crcs: Sequence[int] = ()
    staged: frozenset[int] = (
        frozenset()
    )  # indexes that are staged and synced; the others were lost on the way

    @property
    def is_staged(self) -> bool:
        return not self.cells


class _Round:
    """One round of Accepts: counts answers and decides as soon as the outcome is certain."""

    def __init__(self, quorum: Quorum, primaries: Sequence[int], needs_shards: bool) -> None:
        self.quorum = quorum
        self._primaries = frozenset(primaries)
        self._needs_shards = needs_shards
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
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def enough(self) -> bool:
        shards = not self._needs_shards or len(self._shards) >= self.quorum.shards
        return shards and len(self._manifests) >= self.quorum.write

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

    def expect(
        self,
        node: int,
        shard_index: int | None,
        future: asyncio.Future[pb.Outcome],
        on_failure: Callable[[int, int | None], None],
    ) -> None:
        """Count the answer of `node` when it comes."""
        self.pending += 1
        self._asked.add(node)

        def answered(done: asyncio.Future[pb.Outcome]) -> None:
            self.pending -= 1
            error = done.exception()
            if error is not None:
                (self._refused if isinstance(error, PLAIN_REFUSALS) else self._ambiguous).add(node)
                self._fail(node, shard_index, error, on_failure)
            else:
                self._take(node, shard_index, done.result(), on_failure)
            self._decide()

        future.add_done_callback(answered)

    def _fail(
        self,
        node: int,
        shard_index: int | None,
        error: BaseException,
        on_failure: Callable[[int, int | None], None],
    ) -> None:
        self.errors[node] = error if isinstance(error, CoffreError) else Unavailable("the call was cancelled")
        if not self.decided.done():
            on_failure(node, shard_index)

    def _take(
        self,
        node: int,
        shard_index: int | None,
        outcome: pb.Outcome,
        on_failure: Callable[[int, int | None], None],
    ) -> None:
        if outcome.code == ABORTED_CODE:
            self.newest = max(self.newest, outcome.newest_stamp)
            self.aborted = True
            self._refused.add(node)
        elif outcome.code:
            self._refused.add(node)
            self._fail(node, shard_index, error_of_status(outcome.code, outcome.detail), on_failure)
        else:
            self._took.add(node)
            if node in self._primaries:
                self._manifests.add(node)
            if shard_index is not None and outcome.has_shard:
                self._shards.add(shard_index)

    def _decide(self) -> None:
        if (self.enough or self.aborted or not self.pending) and not self.decided.done():
            self.decided.set_result(None)
        if not self.pending and not self.finished.done():
            self.finished.set_result(None)


class Writer:
    """Establishes versions."""

    def __init__(
        self,
        peers: Peers,
        placement: Placement,
        quorum: Quorum,
        partitions: int,
        hybrid: HybridClock,
        clock: Clock,
        *,
        straggler_grace: float,
        patience: float,
    ) -> None:
        self._peers = peers
        self._placement = placement
        self._quorum = quorum
        self._partitions = partitions
        self._hybrid = hybrid
        self._clock = clock
        self._straggler_grace = straggler_grace
        self._patience = patience

    def primaries(self, name: ObjectName) -> tuple[int, ...]:
        return self._placement.primaries(partition_of(name, self._partitions))

    def understudies(self, name: ObjectName) -> tuple[int, ...]:
        """The n nodes after the primaries: shards go nowhere else, so readers need to ask nobody else."""
        partition = partition_of(name, self._partitions)
        return understudies(self._placement, self._quorum, partition)

    async def establish(self, draft: Draft, shards: Shards | None) -> Stamp:
        """Write a version (a tombstone when `shards` is None) and return its stamp once it is established.

        Raises `Unavailable` when too few nodes took it and it is dead, `OutcomeUnknown` when that cannot be shown,
        or the nodes' own error when they refused.
        """
        for attempt in range(ATTEMPTS_MAX):
            stamp = self._hybrid.issue()
            round_ = await self._accept(draft, shards, stamp)
            if round_.enough and not round_.aborted:
                self.settle(draft.name, stamp, shards)
                return stamp
            holders = round_.possible_holders
            elsewhere = None if shards is None else len(holders - set(self.primaries(draft.name)))
            staged = shards is not None and shards.is_staged
            fate = await self.give_up(draft.name, stamp, holders, elsewhere=elsewhere, every=staged)
            if fate is Fate.ESTABLISHED:
                await self._confirm(draft, shards, stamp)
                return stamp
            if fate is Fate.UNKNOWN:
                raise OutcomeUnknown(f"it is not known whether the write stands: {round_.summary()}")
            if not round_.aborted:
                raise _refusal(round_)
            if round_.newest:
                self._hybrid.observe(Stamp.from_bytes(round_.newest))
            if attempt > 4:
                await self._clock.sleep(0.001 * min(attempt, 50))
        raise Unavailable(f"{ATTEMPTS_MAX} attempts to write above other writers of this object failed")

    async def _confirm(self, draft: Draft, shards: Shards | None, stamp: Stamp) -> None:
        """A reader locked the version that was given up: bring it to the bar before it counts as written.

        Votes say that it stands, not that enough shards are there; the writer still has them all.
        """
        round_ = await self._accept(draft, shards, stamp, lock=True)
        if not round_.enough and not round_.finished.done():
            await asyncio.shield(round_.finished)
        if round_.newest > stamp.to_bytes():
            return  # settled, and overwritten since
        if not round_.enough:
            raise OutcomeUnknown(f"the write stands, but lacks shards: {round_.summary()}")
        self.settle(draft.name, stamp, shards)

    async def _accept(
        self, draft: Draft, shards: Shards | None, stamp: Stamp, *, lock: bool = False
    ) -> _Round:
        primaries = self.primaries(draft.name)
        round_ = _Round(self._quorum, primaries, shards is not None)
        deadline = self._clock.monotonic() + self._patience
        sender = _Sender(
            self._peers,
            self._placement,
            round_,
            draft,
            shards,
            stamp,
            partition_of(draft.name, self._partitions),
            lock=lock,
        )
        sender.send_all(primaries)
        await asyncio.shield(round_.decided)
        while (
            not round_.enough and not round_.aborted and round_.errors and self._clock.monotonic() < deadline
        ):
            if not sender.can_retry():
                break
            await self._clock.sleep(0.1)
            sender.retry()
            await asyncio.shield(round_.decided)
        if round_.enough and not round_.finished.done() and not sender.waits_for_suspects():
            await asyncio.wait([round_.finished], timeout=self._straggler_grace)
        return round_

    async def give_up(
        self,
        name: ObjectName,
        stamp: Stamp,
        holders: Iterable[int],
        *,
        elsewhere: int | None,
        every: bool = False,
    ) -> Fate:
        """Collect ABORTED votes until the version is dead, or turns out to be established.

        `elsewhere`: how many shards may lie on substitutes; None for a tombstone, which has none. Votes are final, so
        a version is dead too when too few nodes are left that could ever hold k shards of it. `every`: hear all
        nodes that answer, since the next stamp needs the staged shards that an Abort gives back.
        """
        primaries = self.primaries(name)
        operation = pb.Operation(abort=pb.Abort(bucket=name.bucket, key=name.key, stamp=stamp.to_bytes()))
        votes: dict[int, int] = {}
        if not set(holders):
            return Fate.DEAD  # every node said no: nothing was stored anywhere
        for node in set(holders) - set(primaries):
            self._peers[node].writes.submit_lazily(operation)
        deadline = self._clock.monotonic() + self._patience
        while True:
            asked = [node for node in primaries if node not in votes]
            waiting = {self._peers[node].writes.submit(operation): node for node in asked}
            while waiting:
                answered, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for future in answered:
                    node = waiting.pop(future)
                    if future.exception() is None and not future.result().code:
                        votes[node] = future.result().state
                fate = self._fate(votes.values(), elsewhere)
                if fate is not Fate.UNKNOWN and not (every and waiting):
                    return fate
            if self._clock.monotonic() >= deadline or len(votes) == len(primaries):
                return Fate.UNKNOWN
            await self._clock.sleep(0.1)

    def _fate(self, votes: Collection[int], elsewhere: int | None) -> Fate:
        """What the votes of the primaries decide, whatever the others say."""
        aborted = sum(state == pb.STATE_ABORTED for state in votes)
        kept = sum(state in (pb.STATE_LOCKED, pb.STATE_SETTLED) for state in votes)
        if pb.STATE_SETTLED in votes:
            return Fate.ESTABLISHED
        if aborted >= self._quorum.read or (
            elsewhere is not None and self._quorum.n - aborted + elsewhere < self._quorum.k
        ):
            return Fate.DEAD
        return Fate.ESTABLISHED if kept >= self._quorum.write else Fate.UNKNOWN

    def settle(self, name: ObjectName, stamp: Stamp, shards: Shards | None) -> None:
        """Let the nodes know, lazily, that the version is established."""
        primaries = self.primaries(name)
        moved = shards is not None and tuple(shards.placement) != primaries
        operation = pb.Operation(
            settle=pb.Settle(
                bucket=name.bucket,
                key=name.key,
                stamp=stamp.to_bytes(),
                placement=shards.placement if moved and shards is not None else (),
            )
        )
        nodes = {*primaries, *shards.placement} if shards is not None else set(primaries)
        for node in nodes:
            self._peers[node].writes.submit_lazily(operation)


class _Sender:
    """Sends the Accepts of one round, to substitutes too."""

    def __init__(
        self,
        peers: Peers,
        placement: Placement,
        round_: _Round,
        draft: Draft,
        shards: Shards | None,
        stamp: Stamp,
        partition: int,
        *,
        lock: bool,
    ) -> None:
        self._peers = peers
        self._placement = placement
        self._round = round_
        self._draft = draft
        self._shards = shards
        self._stamp = stamp
        self._partition = partition
        self._lock = lock
        self._tried: set[int] = set()
        self._to_retry: list[tuple[int, int | None]] = []

    def send_all(self, primaries: Sequence[int]) -> None:
        shards = self._shards
        sealed = self._draft.seal(self._stamp, tuple(shards.placement) if shards else ())
        self._tried = {*primaries, *(shards.placement if shards else ())}
        if shards is None:
            for node in primaries:
                self._send(node, None, sealed)
            return
        for index, node in enumerate(shards.placement):
            self._send(node, index if not shards.is_staged or index in shards.staged else None, sealed)
        for node in set(primaries) - set(shards.placement):
            self._send(node, None, sealed)

    def _send(self, node: int, index: int | None, sealed: pb.SealedManifest) -> None:
        name, shards = self._draft.name, self._shards
        accept = pb.Accept(bucket=name.bucket, key=name.key, sealed=sealed, lock=self._lock)
        if index is not None and shards is not None:
            accept.shard_index = index
            if shards.is_staged:
                accept.staged = True
            else:
                accept.cell = shards.cells[index]
                accept.cell_crc = shards.cell_crcs[index]
        future = self._peers[node].writes.submit(pb.Operation(accept=accept))
        self._round.expect(node, index, future, self._on_failure)

    def _on_failure(self, node: int, index: int | None) -> None:
        """A node did not take its part: a substitute takes the shard, and the node may be asked again."""
        if isinstance(self._round.errors[node], RetryableError):
            self._to_retry.append((node, index))
        shards = self._shards
        if index is None or shards is None or shards.is_staged:
            return
        allowed = understudies(self._placement, self._round.quorum, self._partition)
        for substitute in self._placement.substitutes(self._partition, shards.placement, index):
            if substitute not in self._tried and substitute in allowed:
                self._tried.add(substitute)
                shards.placement[index] = substitute
                self._send(substitute, index, self._draft.seal(self._stamp, tuple(shards.placement)))
                return

    def can_retry(self) -> bool:
        return bool(self._to_retry)

    def retry(self) -> None:
        """Ask the nodes that failed once more, with a new chance for the round to be decided."""
        again, self._to_retry = self._to_retry, []
        self._round.decided = asyncio.get_running_loop().create_future()
        self._round.finished = asyncio.get_running_loop().create_future()
        placement = tuple(self._shards.placement) if self._shards else ()
        sealed = self._draft.seal(self._stamp, placement)
        for node, index in again:
            moved = index is not None and placement[index] != node
            self._send(node, None if moved else index, sealed)

    def waits_for_suspects(self) -> bool:
        """True when every node still to answer failed recently, so that waiting for it is no use."""
        return all(self._peers[node].suspect for node in self._round.unanswered)


def _refusal(round_: _Round) -> CoffreError:
    """The error that says best why a round failed."""
    errors = list(round_.errors.values())
    for error in errors:
        if isinstance(error, PermanentError):
            return error
    kinds = {type(error) for error in errors}
    if len(kinds) == 1:
        kind = kinds.pop()
        if kind is not Unavailable:
            return kind(round_.summary())
    return Unavailable(f"nothing was written: {round_.summary()}")
