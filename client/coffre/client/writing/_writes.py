"""The writer's half of the register protocol (docs/consistency.md): accept on enough nodes, or give up for good."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from coffre.client._began import Began
from coffre.client._ground import Ground
from coffre.client.nodes import View
from coffre.client.sealing import Draft
from coffre.client.writing._rounds import Round
from coffre.client.writing._sending import Sender, Shards
from coffre.client.writing._stamps import Issuer, too_far_ahead
from coffre.cluster.errors import (
    ClockSkew,
    CoffreError,
    NotFound,
    OutcomeUnknown,
    PermanentError,
    PolicyViolation,
    ResourceExhausted,
    StaleMap,
    Unavailable,
)
from coffre.cluster.map import Electorate
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.proto import coffre_pb2 as pb

__all__ = ["Fate", "Shards", "Verify", "Writer"]

ATTEMPTS_MAX = 100
STALE_SECONDS = 0.1
FORGOTTEN_MS = 3_000_000  # for an hour, by their clocks, nodes remember deletions, and their votes
STAMP_STALE_MS = 600_000  # well below what nodes call old, and above what anybody's patience should be

Verify = Callable[[Stamp], Awaitable[Began]]
"""Reads back what was written under a stamp, and returns since when nodes are known to hold it; or raises
`CoffreError`: then it does not stand."""


class Fate(enum.Enum):
    """What became of a version that its writer gave up."""

    DEAD = "dead"
    ESTABLISHED = "established"
    UNKNOWN = "unknown"


class Writer:
    """Establishes versions."""

    def __init__(self, ground: Ground, issuer: Issuer) -> None:
        self._views = ground.views
        self._issuer = issuer
        self._clock = ground.clock
        self._straggler_grace = ground.options.straggler_grace
        self._patience = ground.options.patience

    async def establish(self, draft: Draft, shards: Shards | None) -> Stamp:
        """Write a version (a tombstone when `shards` is None) and return its stamp once it is established.

        Raises `Unavailable` when too few nodes took it and it is dead, `OutcomeUnknown` when that cannot be shown,
        `StaleMap` when a newer map codes the bucket in another way than the draft, or forbids a node on which shards
        were staged, or the nodes' own error when they refused.
        """
        deadline = self._clock.monotonic() + self._patience
        for attempt in range(ATTEMPTS_MAX):
            stamp = await self.establish_once(draft, shards, deadline)
            if stamp is not None:
                return stamp
            if attempt > 4:
                await self._clock.sleep(0.001 * min(attempt, 50))
        raise Unavailable(f"{ATTEMPTS_MAX} attempts to write above other writers of this object failed")

    async def establish_once(
        self, draft: Draft, shards: Shards | None, deadline: float, verify: Verify | None = None
    ) -> Stamp | None:
        """Write a version under one stamp, above the draft's base; None when another version, or a newer map, stood
        in the way, and this one is dead. Raises as `establish`.

        With `verify`, it is established once that has returned and W primaries have locked it, not before: the rule of
        re-codings (docs/recoding.md).
        """
        stamp = self._issuer.issue(max(draft.manifest.base, draft.above))
        stands = False
        try:
            stands = await self._try(draft, shards, stamp, deadline, verify)
        finally:
            if not stands:
                self._issuer.given_up(stamp)
        return stamp if stands else None

    async def _try(
        self, draft: Draft, shards: Shards | None, stamp: Stamp, deadline: float, verify: Verify | None
    ) -> bool:
        """Write a version under one stamp; False when a newer one, or a newer map, stood in the way. Raises as
        `establish`."""
        view = self._views.current
        if shards is not None:
            self._check_map(draft, shards, view)
            if not shards.is_staged:
                shards.placement = list(view.electorate(draft.name).primaries)
        round_ = await self._accept(view, draft, shards, stamp)
        conditional = draft.manifest.conditional
        if conditional and round_.aborted and not round_.enough:
            await round_.finish(self._patience)  # leftovers on a few nodes do not matter
        if round_.enough and (conditional or not round_.aborted):
            locking = round_ if verify is None else await self._verified(view, draft, shards, stamp, verify)
            if locking.enough:
                self._established(view, draft.name, stamp, shards, round_)
                return True
            locking.add_holders(round_)
            round_ = locking
        if round_.newest:
            self._issuer.observe(Stamp.from_bytes(round_.newest))
        renewed = round_.is_stale and await self._views.renew(view)
        holders = round_.possible_holders
        staged = shards is not None and shards.is_staged
        elsewhere = None if shards is None else holders
        began = Began.now(self._clock)
        fate = await self.give_up(
            draft.name,
            stamp,
            holders,
            k=draft.manifest.k,
            elsewhere=elsewhere,
            begun=None if round_.comes_late else view.electorate(draft.name),
            every=staged,
        )
        if fate is Fate.DEAD and self._may_be_forgotten(view.electorate(draft.name), stamp, holders):
            fate = Fate.UNKNOWN
        if fate is Fate.ESTABLISHED:
            await self._confirm(draft, shards, stamp, began)
            placement = _placement_of(shards)
            self._issuer.established(stamp, lambda: self.settle(draft.name, stamp, placement))
            return True
        if fate is Fate.UNKNOWN and round_.aborted:
            # A node may have forgotten a vote on a version so old; what it said of the Accept counts, too.
            await round_.finish(max(0.0, deadline - self._clock.monotonic()))
            fate = Fate.UNKNOWN if round_.possible_holders else Fate.DEAD
        if fate is Fate.UNKNOWN:
            raise OutcomeUnknown(
                f"it is not known whether the write stands: {round_.summary()}", details=round_.details
            )
        if not round_.aborted and not renewed:
            if self._clock.monotonic() < deadline and not round_.is_stale:
                if self._is_stale(stamp):
                    return False  # this process stood still: again, with a new stamp
                if round_.in_the_way > draft.above:
                    draft.above = round_.in_the_way
                    return False
            if not round_.is_stale or self._clock.monotonic() >= deadline:
                raise _refusal(round_)
            await self._clock.sleep(
                STALE_SECONDS
            )  # the nodes, or this client, will have the newest map in a moment
        return False

    def _too_far(self, stamp: bytes) -> str:
        return "" if self._issuer.is_believable(stamp) else too_far_ahead(stamp, self._clock)

    def _is_stale(self, stamp: Stamp, after_ms: int = STAMP_STALE_MS) -> bool:
        """Whether so much time has passed since a stamp was issued that nodes may call it old."""
        return self._clock.unixtime_ms() - stamp.unixtime_ms > after_ms

    def _may_be_forgotten(self, electorate: Electorate, stamp: Stamp, holders: Collection[int]) -> bool:
        """Whether a reader may have completed a version, and others deleted it, so long ago that nodes have forgotten
        both: then their votes against it do not show that it never stood. `holders`: who may have taken it."""
        return self._is_stale(stamp, FORGOTTEN_MS) and electorate.may_be_established(holders)

    async def _verified(
        self, view: View, draft: Draft, shards: Shards | None, stamp: Stamp, verify: Verify
    ) -> Round:
        """Let it be read back, then have it locked. When it is not right, it is given up, and the error is raised."""
        try:
            began = await verify(stamp)
        except CoffreError:
            holders = view.electorate(draft.name).everyone.union(shards.placement if shards else ())
            staged = shards is not None and shards.is_staged
            await self.give_up(
                draft.name, stamp, holders, k=draft.manifest.k, elsewhere=holders, every=staged
            )
            raise
        locking = await self._accept(view, draft, shards, stamp, lock=began)
        if not locking.enough:
            await locking.finish(self._patience)
        return locking

    def _check_map(self, draft: Draft, shards: Shards, view: View) -> None:
        """Raise `StaleMap` when a newer map codes the bucket otherwise, or forbids a place of what was staged."""
        if not _is_coded_for(view, draft):
            raise StaleMap("the bucket's storage policy has changed: put the object again")
        if shards.is_staged:
            try:
                view.placement(draft.name).check(shards.placement)
            except PolicyViolation as error:
                raise StaleMap(f"the map has changed meanwhile ({error}): put the object again") from None

    def _established(
        self, view: View, name: ObjectName, stamp: Stamp, shards: Shards | None, round_: Round
    ) -> None:
        """Let the nodes know: by the next mark, and explicitly where there is something to trim or to move."""
        electorate = round_.electorate
        placement = _placement_of(shards)  # what is called later must not keep the cells in memory
        self._issuer.established(stamp, lambda: self.settle(name, stamp, placement))
        if placement and placement != electorate.primaries:
            self.settle(name, stamp, placement)
            return
        for node in round_.replacing:
            self.settle(name, stamp, placement, (node,))
        if round_.pending:
            round_.on_late_replace = lambda node: self.settle(name, stamp, placement, (node,))
        for node in electorate.everyone:
            view.peers[node].writes.remind()

    async def _confirm(self, draft: Draft, shards: Shards | None, stamp: Stamp, began: Began) -> None:
        """A reader locked the version that was given up: bring it to the bar before it counts as written.

        Votes say that it stands, not that enough shards are there; the writer still has them all.
        """
        view = self._views.current
        if shards is not None and not _is_coded_for(view, draft):
            raise OutcomeUnknown(
                "the write stands, but may lack shards: the bucket's policy has changed meanwhile"
            )
        round_ = await self._accept(view, draft, shards, stamp, lock=began)
        if not round_.enough:
            await round_.finish()
        if round_.newest > stamp.to_bytes():
            return  # settled, and overwritten since
        if not round_.enough:
            raise OutcomeUnknown(
                f"the write stands, but lacks shards: {round_.summary()}", details=round_.details
            )
        self.settle(draft.name, stamp, _placement_of(shards))

    async def _accept(
        self, view: View, draft: Draft, shards: Shards | None, stamp: Stamp, *, lock: Began | None = None
    ) -> Round:
        """`lock`: it is known, by what was read since then, that it stands or may."""
        round_ = Round(
            view.electorate(draft.name),
            shards is not None,
            view.peers.loop,
            self._too_far,
            view.peers.name_of,
        )
        deadline = self._clock.monotonic() + self._patience
        sender = Sender(view, round_, draft, shards, stamp, lock=lock)
        sender.send_all()
        await round_.decided
        while (
            not round_.enough and not round_.aborted and round_.errors and self._clock.monotonic() < deadline
        ):
            if round_.is_stale or round_.in_the_way or not sender.can_retry():
                break
            if lock is None and self._is_stale(stamp):
                break
            await self._clock.sleep(0.1)
            sender.retry()
            await round_.decided
        round_.on_failure = None  # nothing is tried any more; and no cycle keeps the cells in memory
        if round_.pending and round_.enough and not sender.waits_in_vain(self._straggler_grace):
            await round_.finish(self._straggler_grace)
        return round_

    async def give_up(
        self,
        name: ObjectName,
        stamp: Stamp,
        holders: Iterable[int],
        *,
        k: int,
        elsewhere: Collection[int] | None,
        begun: Electorate | None = None,
        every: bool = False,
    ) -> Fate:
        """Collect ABORTED votes until the version is dead, or turns out to be established.

        `k`: of the version, whatever codes its bucket by now. `elsewhere`: nodes that may hold a shard, beside the
        electorate; None for a tombstone, which has none. Votes are final, so a version is dead too when too few nodes
        are left that could ever hold k shards of it. `begun`: who decided when it was written, or read; when everything
        has moved since, those who decide now cannot tell what readers may have seen. `every`: hear all nodes that
        answer, since the next stamp needs the staged shards that an Abort gives back.
        """
        operation = pb.Operation(abort=pb.Abort(bucket=name.bucket, key=name.key, stamp=stamp.to_bytes()))
        votes: dict[int, int] = {}
        holders = set(holders)
        if not holders:
            return Fate.DEAD  # every node said no: nothing was stored anywhere
        if begun is not None and not begun.may_be_established(holders):
            begun = None  # too few took it for any reader to return it
        view = self._views.current
        beyond = [node for node in holders - view.electorate(name).everyone if node in view.peers]
        for node in beyond if not every else ():
            view.peers[node].writes.submit_lazily(operation)
        # Substitutes have no vote, but the next stamp needs what they give back.
        freed = asyncio.gather(
            *(view.peers[node].writes.submit(operation) for node in beyond if every), return_exceptions=True
        )
        deadline = self._clock.monotonic() + self._patience
        while True:
            view = self._views.current
            electorate = view.electorate(name)
            asked = [node for node in electorate.everyone if node not in votes]
            waiting = {view.peers[node].writes.submit(operation): node for node in asked}
            stale = False
            while waiting:
                answered, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for future in answered:
                    node = waiting.pop(future)
                    error = future.exception()
                    stale = stale or isinstance(error, StaleMap)
                    if error is None and not future.result().code:
                        votes[node] = future.result().state
                fate = _fate(electorate, votes, k, elsewhere)
                if fate is Fate.DEAD and begun is not None and not electorate.decides_since(begun):
                    fate = Fate.UNKNOWN
                if fate is not Fate.UNKNOWN and not (every and waiting):
                    await freed
                    return fate
            if self._clock.monotonic() >= deadline or len(votes) >= len(electorate.everyone):
                return Fate.UNKNOWN
            if not (stale and await self._views.renew(view)):
                await self._clock.sleep(0.1)

    def drop_dead(self, name: ObjectName, stamp: Stamp) -> None:
        """Let whoever still holds a version that is dead know, lazily."""
        view = self._views.current
        operation = pb.Operation(abort=pb.Abort(bucket=name.bucket, key=name.key, stamp=stamp.to_bytes()))
        for node in view.electorate(name).everyone:
            view.peers[node].writes.submit_lazily(operation)

    async def refuse(self, name: ObjectName, stamp: Stamp, nodes: Collection[int]) -> None:
        """Ask those that do not hold another writer's version to refuse it for ever, which takes it from nobody; when
        it is dead by that, the others are told to drop it."""
        view = self._views.current
        electorate = view.electorate(name)
        abort = pb.Abort(bucket=name.bucket, key=name.key, stamp=stamp.to_bytes(), unless_held=True)
        asked = {node: view.peers[node].writes.submit(pb.Operation(abort=abort)) for node in nodes}
        if asked:
            await asyncio.wait(asked.values())
        aborted = {
            node
            for node, future in asked.items()
            if future.exception() is None
            and not future.result().code
            and future.result().state == pb.STATE_ABORTED
        }
        if electorate.is_dead_by(aborted):
            self.drop_dead(name, stamp)

    def settle(
        self, name: ObjectName, stamp: Stamp, placement: tuple[int, ...], nodes: Collection[int] = ()
    ) -> None:
        """Let the nodes (by default all that may hold it) know, lazily, that the version is established.

        `placement`: node number by shard index; empty for a tombstone.
        """
        view = self._views.current
        electorate = view.electorate(name)
        moved = placement != electorate.primaries
        operation = pb.Operation(
            settle=pb.Settle(
                bucket=name.bucket,
                key=name.key,
                stamp=stamp.to_bytes(),
                placement=placement if moved else (),
            )
        )
        for node in nodes or {*electorate.everyone, *placement}:
            if node in view.peers:
                view.peers[node].writes.submit_lazily(operation)


def _placement_of(shards: Shards | None) -> tuple[int, ...]:
    return () if shards is None else tuple(shards.placement)


def _is_coded_for(view: View, draft: Draft) -> bool:
    """Whether a bucket's policy still has the k and m that a draft is coded with."""
    electorate, manifest = view.electorate(draft.name), draft.manifest
    return (manifest.k, manifest.m) == (electorate.k, electorate.m)


def _fate(
    electorate: Electorate, votes: Mapping[int, int], k: int, elsewhere: Collection[int] | None
) -> Fate:
    """What the votes of an electorate decide, whatever the others say."""
    if pb.STATE_SETTLED in votes.values():
        return Fate.ESTABLISHED
    aborted = {node for node, state in votes.items() if state == pb.STATE_ABORTED}
    if electorate.is_dead_by(aborted) or (
        elsewhere is not None
        and not electorate.is_moving  # or shards may lie with substitutes of an earlier epoch
        and len(electorate.everyone.union(elsewhere) - aborted) < k
    ):
        return Fate.DEAD
    kept = {node for node, state in votes.items() if state == pb.STATE_LOCKED}
    return Fate.ESTABLISHED if electorate.is_established_by(kept) else Fate.UNKNOWN


def _refusal(round_: Round) -> CoffreError:
    """The error that says best why a round failed."""
    errors = list(round_.errors.values())
    for error in errors:
        # That a shard is not staged there any more is nothing of the caller's: from the start it would be.
        if isinstance(error, PermanentError) and not isinstance(error, NotFound):
            return error
    if round_.fails_by_clocks:
        return ClockSkew(f"nothing was written: {round_.summary()}", details=round_.details)
    kinds = {type(error) for error in errors}
    if len(kinds) == 1:
        kind = kinds.pop()
        if kind in (ResourceExhausted, StaleMap, ClockSkew):
            return kind(f"nothing was written: {round_.summary()}", details=round_.details)
    return Unavailable(f"nothing was written: {round_.summary()}", details=round_.details)
