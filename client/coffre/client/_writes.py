"""The writer's half of the register protocol (docs/consistency.md): accept on enough nodes, or give up for good."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from coffre.client._peers import Peers
from coffre.client._rounds import Part, Quorum, Round
from coffre.client._sealing import Draft
from coffre.client._stamps import Issuer
from coffre.cluster.clock import Clock
from coffre.cluster.errors import (
    CoffreError,
    OutcomeUnknown,
    PermanentError,
    RetryableError,
    StaleMap,
    Unavailable,
)
from coffre.cluster.names import ObjectName, partition_of
from coffre.cluster.placement import Placement
from coffre.cluster.versions import Stamp
from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import accept_operation

__all__ = ["Fate", "Shards", "Writer"]

ATTEMPTS_MAX = 100


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
    cells: Sequence[bytes | memoryview] = ()
    cell_crcs: Sequence[int] = ()
    staged: frozenset[int] = (
        frozenset()
    )  # indexes that are staged and synced; the others were lost on the way

    @property
    def is_staged(self) -> bool:
        return not self.cells


class Writer:
    """Establishes versions."""

    def __init__(
        self,
        peers: Peers,
        placement: Placement,
        quorum: Quorum,
        partitions: int,
        issuer: Issuer,
        clock: Clock,
        *,
        straggler_grace: float,
        patience: float,
    ) -> None:
        self._peers = peers
        self._placement = placement
        self._quorum = quorum
        self._partitions = partitions
        self._issuer = issuer
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
            stamp = await self.establish_once(draft, shards)
            if stamp is not None:
                return stamp
            if attempt > 4:
                await self._clock.sleep(0.001 * min(attempt, 50))
        raise Unavailable(f"{ATTEMPTS_MAX} attempts to write above other writers of this object failed")

    async def establish_once(self, draft: Draft, shards: Shards | None) -> Stamp | None:
        """Write a version under one stamp, above the draft's base; None when another version stood in the way, and
        this one is dead. Raises as `establish`."""
        if draft.manifest.base:
            self._issuer.observe(Stamp.from_bytes(draft.manifest.base))
        stamp = self._issuer.issue()
        stands = False
        try:
            stands = await self._try(draft, shards, stamp)
        finally:
            if not stands:
                self._issuer.given_up(stamp)
        return stamp if stands else None

    async def _try(self, draft: Draft, shards: Shards | None, stamp: Stamp) -> bool:
        """Write a version under one stamp; False when a newer one stood in the way. Raises as `establish`."""
        round_ = await self._accept(draft, shards, stamp)
        conditional = draft.manifest.conditional
        if conditional and round_.aborted and not round_.enough:
            await round_.finish(self._patience)  # leftovers on a few nodes do not matter
        if round_.enough and (conditional or not round_.aborted):
            self._established(draft.name, stamp, shards, round_)
            return True
        holders = round_.possible_holders
        elsewhere = None if shards is None else len(holders - set(round_.primaries))
        staged = shards is not None and shards.is_staged
        fate = await self.give_up(draft.name, stamp, holders, elsewhere=elsewhere, every=staged)
        if fate is Fate.ESTABLISHED:
            await self._confirm(draft, shards, stamp)
            self._issuer.established(stamp, lambda: self.settle(draft.name, stamp, shards))
            return True
        if fate is Fate.UNKNOWN:
            raise OutcomeUnknown(f"it is not known whether the write stands: {round_.summary()}")
        if not round_.aborted:
            raise _refusal(round_)
        if round_.newest:
            self._issuer.observe(Stamp.from_bytes(round_.newest))
        return False

    def _established(self, name: ObjectName, stamp: Stamp, shards: Shards | None, round_: Round) -> None:
        """Let the nodes know: by the next mark, and explicitly where there is something to trim or to move."""
        primaries = round_.primaries
        self._issuer.established(stamp, lambda: self.settle(name, stamp, shards))
        if shards is not None and tuple(shards.placement) != primaries:
            self.settle(name, stamp, shards)
            return
        for node in round_.replacing:
            self.settle(name, stamp, shards, (node,))
        if round_.pending:
            round_.on_late_replace = lambda node: self.settle(name, stamp, shards, (node,))
        for node in primaries:
            self._peers[node].writes.remind()

    async def _confirm(self, draft: Draft, shards: Shards | None, stamp: Stamp) -> None:
        """A reader locked the version that was given up: bring it to the bar before it counts as written.

        Votes say that it stands, not that enough shards are there; the writer still has them all.
        """
        round_ = await self._accept(draft, shards, stamp, lock=True)
        if not round_.enough:
            await round_.finish()
        if round_.newest > stamp.to_bytes():
            return  # settled, and overwritten since
        if not round_.enough:
            raise OutcomeUnknown(f"the write stands, but lacks shards: {round_.summary()}")
        self.settle(draft.name, stamp, shards)

    async def _accept(
        self, draft: Draft, shards: Shards | None, stamp: Stamp, *, lock: bool = False
    ) -> Round:
        partition = partition_of(draft.name, self._partitions)
        primaries = self._placement.primaries(partition)
        loop = asyncio.get_running_loop()
        round_ = Round(self._quorum, primaries, shards is not None, loop)
        deadline = self._clock.monotonic() + self._patience
        sender = _Sender(
            self._peers, self._placement, round_, draft, shards, stamp, partition, primaries, lock=lock
        )
        sender.send_all()
        await round_.decided
        while (
            not round_.enough and not round_.aborted and round_.errors and self._clock.monotonic() < deadline
        ):
            if not sender.can_retry() or round_.stale:
                break
            await self._clock.sleep(0.1)
            sender.retry()
            await round_.decided
        if round_.pending and round_.enough and not sender.waits_for_suspects():
            await round_.finish(self._straggler_grace)
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

    def settle(
        self, name: ObjectName, stamp: Stamp, shards: Shards | None, nodes: Collection[int] = ()
    ) -> None:
        """Let the nodes (by default all that may hold it) know, lazily, that the version is established."""
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
        for node in nodes or {*primaries, *(shards.placement if shards is not None else ())}:
            self._peers[node].writes.submit_lazily(operation)


class _Sender:
    """Sends the Accepts of one round, to substitutes too."""

    def __init__(
        self,
        peers: Peers,
        placement: Placement,
        round_: Round,
        draft: Draft,
        shards: Shards | None,
        stamp: Stamp,
        partition: int,
        primaries: tuple[int, ...],
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
        self._primaries = primaries
        self._lock = lock
        self._tried: set[int] = set()
        self._to_retry: list[tuple[int, int | None]] = []
        round_.on_failure = self._on_failure

    def send_all(self) -> None:
        shards, primaries = self._shards, self._primaries
        common = self._common()
        if shards is None:
            self._tried.update(primaries)
            for node in primaries:
                self._send(node, None, common)
            return
        self._tried.update(primaries, shards.placement)
        for index, node in enumerate(shards.placement):
            self._send(node, index if not shards.is_staged or index in shards.staged else None, common)
        for node in primaries:
            if node not in shards.placement:
                self._send(node, None, common)

    def _common(self) -> bytes:
        """What every node gets: an Accept without a shard."""
        name, shards = self._draft.name, self._shards
        sealed = self._draft.seal(self._stamp, shards.placement if shards is not None else ())
        return pb.Accept(bucket=name.bucket, key=name.key, sealed=sealed, lock=self._lock).SerializeToString()

    def _send(self, node: int, index: int | None, common: bytes) -> None:
        shards = self._shards
        if index is None or shards is None:
            operation = accept_operation(common)
        elif shards.is_staged:
            operation = accept_operation(common, index, staged=True)
        else:
            operation = accept_operation(common, index, shards.cells[index], shards.cell_crcs[index])
        self._round.expect(node)
        self._peers[node].writes.post(operation, Part(self._round, node, index))

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
                self._send(substitute, index, self._common())
                return

    def can_retry(self) -> bool:
        return bool(self._to_retry)

    def retry(self) -> None:
        """Ask the nodes that failed once more, with a new chance for the round to be decided."""
        again, self._to_retry = self._to_retry, []
        self._round.reopen()
        placement = self._shards.placement if self._shards else ()
        common = self._common()
        for node, index in again:
            moved = index is not None and placement[index] != node
            self._send(node, None if moved else index, common)

    def waits_for_suspects(self) -> bool:
        """True when every node still to answer failed recently, so that waiting for it is no use."""
        return all(self._peers[node].suspect for node in self._round.unanswered)


def _refusal(round_: Round) -> CoffreError:
    """The error that says best why a round failed."""
    errors = list(round_.errors.values())
    if round_.stale:
        return StaleMap(round_.summary())
    for error in errors:
        if isinstance(error, PermanentError):
            return error
    kinds = {type(error) for error in errors}
    if len(kinds) == 1:
        kind = kinds.pop()
        if kind is not Unavailable:
            return kind(round_.summary())
    return Unavailable(f"nothing was written: {round_.summary()}")
