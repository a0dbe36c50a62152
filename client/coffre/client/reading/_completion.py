"""Completing a write that its writer left undecided: docs/consistency.md, "Get"."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from coffre.client._began import Began
from coffre.client.nodes import View
from coffre.client.reading._evidence import lawful
from coffre.client.reading._found import Found
from coffre.client.reading._replies import Replies, aborting, holding
from coffre.client.sealing import rebuild_cells
from coffre.client.writing import Writer
from coffre.cluster.clock import Clock
from coffre.cluster.errors import ClockSkew, Conflict, Unavailable
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.proto import coffre_pb2 as pb

__all__ = ["SILENCE_SECONDS", "Completer"]

SILENCE_SECONDS = 0.5  # after which the slow path first tries to decide without the silent nodes


class Ask(Protocol):
    """Ask all of some nodes what they hold of a version; `Reader` does."""

    async def __call__(
        self, view: View, nodes: Sequence[int], name: ObjectName, *, want_cell: bool, stamp: bytes
    ) -> Replies: ...


class Completer:
    """Establishes versions for readers."""

    def __init__(self, ask: Ask, writer: Writer, clock: Clock) -> None:
        self._ask = ask
        self._writer = writer
        self._clock = clock

    async def complete(
        self, view: View, name: ObjectName, found: Found, replies: Replies, beyond: Replies, began: Began
    ) -> None:
        """Lock the version on a majority, with k shards on locked nodes, or raise `Unavailable`, or `ClockSkew`.

        Raises `Conflict` when it was overtaken or given up meanwhile, or the answers have grown old.
        """
        completion = self._begin(view, name, found, replies, beyond, began)
        if _is_staged(found):
            await completion.bring_in()
        elif not found.opened.tombstone:
            completion.cells = await self._missing_cells(view, name, found, completion.nodes)
        await completion.lock()
        if completion.missed and completion.aborted - aborting(found.opened.stamp.to_bytes(), replies):
            raise Conflict("the version was given up meanwhile")
        self._end(name, completion)

    async def overrule(
        self, view: View, name: ObjectName, found: Found, replies: Replies, beyond: Replies, began: Began
    ) -> None:
        """Complete a version that can never be dead against the votes of newer sets, or raise as `complete`.

        Locked nodes have k shards of it already: others are asked for their promise alone.
        """
        completion = self._begin(view, name, found, replies, beyond, began)
        completion.overrule(n for n, version in found.versions.items() if version.state == pb.STATE_LOCKED)
        await completion.lock()
        self._end(name, completion)

    def _begin(
        self, view: View, name: ObjectName, found: Found, replies: Replies, beyond: Replies, began: Began
    ) -> _Completion:
        if began.is_stale(self._clock):
            raise Conflict("this process stood still since it read: it reads again")
        opened, stamp = found.opened, found.opened.stamp.to_bytes()
        holders = {**holding(stamp, beyond), **holding(stamp, replies)}
        homes = view.homes(name, opened.manifest.k, opened.manifest.m)
        rules, staged = view.rules(opened.manifest.k, opened.manifest.m), _is_staged(found)
        placement = () if opened.tombstone else lawful(rules, homes, holders, staged=staged)
        # Substitutes lock too: a vote to abort must not take away a shard that counts here.
        nodes = (*view.electorate(name).everyone, *holding(stamp, beyond), *placement)
        return _Completion(view, name, found, placement, tuple(dict.fromkeys(nodes)), began)

    def _end(self, name: ObjectName, completion: _Completion) -> None:
        if completion.missed:
            completion.check_clocks()
            raise Unavailable(
                "the newest version is not established, and too few nodes answer to complete it"
            )
        if completion.short:
            return  # readable; what it replaces is kept until as many shards are there as a put would need
        places = list(completion.placement)
        self._writer.settle(name, completion.stamp, tuple(places))

    async def _missing_cells(
        self, view: View, name: ObjectName, found: Found, nodes: Sequence[int]
    ) -> Mapping[int, tuple[bytes, int]]:
        """Rebuild the cells that no node reports, for one-segment objects.

        Raises `Unavailable` when too few cells can be had: what cannot be read must not be locked.
        """
        opened = found.opened
        have = {v.shard_index for v in found.versions.values() if v.HasField("shard_index") and not v.damaged}
        k = opened.manifest.k
        missing = set(range(k + opened.manifest.m)) - have
        if not missing:
            return {}
        if opened.closed is not None:
            raise opened.closed  # what cannot be decrypted is not rebuilt, so that nothing wrong is spread
        versions = await self._ask(view, nodes, name, want_cell=True, stamp=opened.stamp.to_bytes())
        found.cells.add_versions(opened, (v for held in versions.values() for v in held))
        held_now = holding(opened.stamp.to_bytes(), versions)
        if any(node in versions and node not in held_now for node in found.versions):
            raise Conflict("the version was given up or overwritten meanwhile")
        if len(found.cells.good) < k:
            raise Unavailable("the newest version is not established, and too few of its shards answer")
        return rebuild_cells(opened, found.cells, missing)


def _is_staged(found: Found) -> bool:
    return not found.opened.tombstone and found.opened.segments > 1


class _Completion:
    """One version that is being completed."""

    def __init__(
        self,
        view: View,
        name: ObjectName,
        found: Found,
        placement: Sequence[int],
        nodes: tuple[int, ...],
        began: Began,
    ) -> None:
        self.nodes = tuple(node for node in nodes if node in view.peers)
        self.cells: Mapping[int, tuple[bytes, int]] = {}  # to send, by shard index
        self.aborted = set[int]()
        self.overrules = False  # votes of newer sets: the oldest keeps the version, for ever
        self._overruled = frozenset[int]()  # whose votes against it prove nothing
        self.placement = placement
        self._view = view
        self._electorate = view.electorate(name)
        self._opened = found.opened
        self._k = 0 if found.opened.tombstone else found.opened.manifest.k
        self._index = {node: index for index, node in enumerate(placement) if node in view.peers}
        self._holds = {
            node: version.shard_index
            for node, version in found.versions.items()
            if version.HasField("shard_index") and not version.damaged
        }
        self._hidden = set[int]()  # nodes that show only with `lock` whether a shard is staged there
        self._skewed = dict[int, str]()  # what nodes said whose clock differs from this one
        self._locked = set[int]()
        self._shards = set[int]()  # on locked nodes
        sealed = pb.SealedManifest()
        sealed.CopyFrom(found.sealed)
        sealed.placement[:] = placement
        self._accept = pb.Accept(
            bucket=name.bucket, key=name.key, sealed=sealed, read_unixtime_ms=began.unixtime_ms
        )

    @property
    def stamp(self) -> Stamp:
        return self._opened.stamp

    @property
    def missed(self) -> bool:
        """Whether it is not established."""
        electorate, lost = self._electorate, self._view.map.lost
        by_votes = electorate.is_established_by(self._locked) or (
            self.overrules and electorate.stands(lost, self._locked, self.aborted)
        )
        return not by_votes or len(self._shards) < self._k

    @property
    def short(self) -> bool:
        """Whether fewer shards are there than a put needs."""
        return self._k > 0 and len(self._shards) < self._k + 1

    def overrule(self, locked: Iterable[int]) -> None:
        """Count no votes against the version but of the oldest set, and none of that if W of it have `locked` it."""
        self.overrules = True
        electorate = self._electorate
        everyone = electorate.is_locked_for_ever(set(locked))
        self._overruled = electorate.everyone if everyone else electorate.everyone - electorate.decisive

    async def bring_in(self) -> None:
        """Let nodes adopt what the writer of a larger object staged there.

        Raises `Unavailable` or `ClockSkew` when too few shards can be had: what cannot be read must not be locked. D of
        them were synced before the first Accept, but some of those nodes may be silent, or have voted against it.
        """
        waiting = {
            self._send(node, lock=False, staged=True): node for node in self._index if node not in self._holds
        }
        held = set(self._holds.values())
        while waiting and len(held) < self._k + 1:
            patience = SILENCE_SECONDS if len(held) >= self._k else None
            answered, _ = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not answered:
                break
            for future in answered:
                node = waiting.pop(future)
                if future.exception() is not None:
                    continue
                outcome = future.result()
                if not outcome.code and outcome.has_shard:
                    self._holds[node] = self._index[node]
                    held.add(self._index[node])
                elif outcome.code == Conflict.code:  # something newer is there, which need not mean anything
                    self._hidden.add(node)
                elif outcome.code == ClockSkew.code:
                    self._skewed[node] = outcome.detail
        if len(held) + len(self._hidden) < self._k:
            self.check_clocks()
            raise Unavailable("the newest version is not established, and too few of its shards answer")

    async def lock(self) -> None:
        """Ask for promises: first of those who have shards. Without k of these the others' are worth nothing, and could
        not be taken back."""
        later = [node for node in self.nodes if not self._has_part(node)]
        waiting = {self._send(node, lock=True): node for node in self.nodes if self._has_part(node)}
        while self.missed or self.short:
            if later and len(self._shards) >= self._k:
                waiting |= {self._send(node, lock=True): node for node in later}
                later = []
            if not waiting:
                return
            # Enough to read is enough to answer; for a full set of shards only nodes that do answer are waited for.
            patience = None if self.missed else SILENCE_SECONDS
            answered, _ = await asyncio.wait(waiting, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            if not answered:
                return
            for future in answered:
                node = waiting.pop(future)
                if future.exception() is None:
                    self._note(node, future.result())

    def _has_part(self, node: int) -> bool:
        known = not self._k or node in self._holds or node in self._hidden
        return known or self._index.get(node) in self.cells

    def _send(self, node: int, *, lock: bool, staged: bool = False) -> asyncio.Future[pb.Outcome]:
        accept = pb.Accept()
        accept.CopyFrom(self._accept)
        accept.lock, accept.overrule = lock, node in self._overruled
        index = self._index.get(node)
        if index is not None and node not in self._holds:
            if staged or node in self._hidden:
                accept.shard_index, accept.staged = index, True
            elif index in self.cells:
                accept.shard_index = index
                accept.cell, accept.cell_crc = self.cells[index]
        return self._view.peers[node].writes.submit(pb.Operation(accept=accept))

    def _note(self, node: int, outcome: pb.Outcome) -> None:
        """Raises `Conflict` when the version was overtaken."""
        if outcome.code == Conflict.code:
            if outcome.newest_stamp > self._opened.stamp.to_bytes():
                raise Conflict("a newer version was settled")
            self.aborted.add(node)
        elif not outcome.code and outcome.state in (pb.STATE_LOCKED, pb.STATE_SETTLED):
            self._locked.add(node)
            index = self._holds.get(node, self._index.get(node) if self._has_part(node) else None)
            if outcome.has_shard and index is not None:
                self._shards.add(index)
        elif outcome.code == ClockSkew.code:
            self._skewed[node] = outcome.detail

    def check_clocks(self) -> None:
        """Raise `ClockSkew` when so many nodes say that clocks differ that it cannot be completed for that alone."""
        others = self._electorate.everyone - self._skewed.keys()
        if self._skewed and not self._electorate.is_established_by(others):
            said = self._skewed[min(self._skewed)]
            raise ClockSkew(f"the newest version is not established, and cannot be completed: {said}")
