"""The reader's half of the register protocol (docs/consistency.md): find the newest version, complete it if needed."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable

from coffre.client._began import Began
from coffre.client._ground import Ground
from coffre.client._streams import SEGMENT_BYTES
from coffre.client.nodes import View
from coffre.client.reading._completion import SILENCE_SECONDS, Completer
from coffre.client.reading._evidence import (
    alike,
    expected_cells,
    is_kept,
    is_lost,
    is_unlocked_recoding,
    may_turn_on_shards,
    never_acknowledged,
    require_quorum,
    unreadable,
)
from coffre.client.reading._found import Found
from coffre.client.reading._replies import (
    HELD,
    Gather,
    Replies,
    aborting,
    holding,
    newest_stamp,
    read_operation,
    undecided,
)
from coffre.client.sealing import OpenManifest
from coffre.client.writing import Writer
from coffre.cluster.errors import (
    CoffreError,
    Conflict,
    IntegrityError,
    KeyUnavailable,
    Unavailable,
    Unsupported,
    error_of_status,
)
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.proto import coffre_pb2 as pb

__all__ = ["Reader"]

KNOWN_MAX = 65_536
RESTARTS_MAX = 20
YOUNG_MS = 10_000  # a version may be on its way to a node for so long


class Reader:
    """Resolves names to established versions."""

    def __init__(self, ground: Ground, writer: Writer) -> None:
        self._views = ground.views
        self._sealer = ground.sealer
        self._writer = writer
        self._clock = ground.clock
        self._hedge_delay = ground.options.hedge_delay
        self._known: OrderedDict[ObjectName, bytes] = OrderedDict()
        self._completer = Completer(self._ask, writer, ground.clock)

    def note_established(self, name: ObjectName, stamp: Stamp) -> None:
        """Remember that this client saw `stamp` established; bounded memory."""
        self._known[name] = max(self._known.pop(name, b""), stamp.to_bytes())
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    async def resolve(
        self,
        name: ObjectName,
        *,
        want_cell: bool = False,
        want_range: range = range(0),
        thorough: bool = False,
    ) -> Found | None:
        """Return the newest established version, a tombstone too, or None when there is none.

        With `want_cell` the cell of a one-segment object comes along, of a larger one those that a short `want_range`
        of bytes lies in, unless something is in the way. Raises `Unavailable` when the nodes that answer cannot show
        which version is the newest, `StaleMap` when that is since the cluster moved to another map. `thorough`: ask all
        nodes, and end what was given up on those that missed it.
        """
        view = self._views.current
        replies: Replies = {}
        if not thorough:
            replies = await self._collect(view, name, want_cell=want_cell, want_range=want_range)
        if view.electorate(name).is_heard_from(replies):
            newest = newest_stamp(replies.values())
            if newest is None:
                return None
            if self._is_established(name, newest, replies):
                found = await self._open(view, name, newest, replies)
                if found is not None:
                    if len(found.versions) < len(replies):
                        self._note_behind(view, found, replies)
                    return found
        grace: float | None = SILENCE_SECONDS
        for _ in range(RESTARTS_MAX):
            try:
                return await self._resolve_slowly(
                    view, name, want_cell=want_cell, grace=grace, thorough=thorough
                )
            except Conflict:
                continue  # something newer was settled meanwhile
            except Unavailable:
                if grace is None:
                    raise
                grace = None  # it takes the answers of those that are slow, too
        raise Unavailable("the object changes faster than it can be read")

    async def find(self, name: ObjectName, stamp: Stamp, *, want_cell: bool = False) -> Found | None:
        """Return one given version, or what it was coded anew as, when it is established, still kept and not deleted
        since, else None."""
        for found in await self.history(name, down_to=stamp):
            if found.opened.identity == stamp:
                return found
        return None

    async def history(self, name: ObjectName, *, down_to: Stamp | None = None) -> list[Found]:
        """The established versions that are kept, newest first; a tombstone ends them.

        A node that missed a delete still holds what was deleted; that is never shown.
        """
        newest = await self.resolve(name)
        if newest is None:
            return []
        history = [newest]
        if newest.opened.tombstone or newest.opened.identity == down_to:
            return history
        view = self._views.current
        electorate = view.electorate(name)
        nodes = electorate.everyone.union(view.elsewhere(name))
        replies = await self._ask(view, nodes, name, every=True)
        require_quorum(electorate, replies)
        top = newest.opened.stamp.to_bytes()
        stamps = {
            v.stamp for versions in replies.values() for v in versions if v.state in HELD and v.stamp < top
        }
        for stamp in sorted(stamps, reverse=True):
            if len(history) == view.placement(name).policy.versions_kept:
                break
            if self._is_established(name, stamp, replies) or electorate.is_established_by(
                holding(stamp, replies)
            ):
                found = await self._open(view, name, stamp, replies)
                if found is not None and not is_lost(found.opened, replies, nodes):
                    if found.opened.tombstone:
                        break
                    history.append(found)
        return history

    async def settled(self, view: View, name: ObjectName, newest: bytes, replies: Replies) -> Found | None:
        """The newest version that any of these answers has, when it is established by one of them; None when it takes a
        full read to tell."""
        return (
            await self._open(view, name, newest, replies)
            if self._is_established(name, newest, replies)
            else None
        )

    async def confirmed(
        self, view: View, found: Found, replies: Replies, silent: Collection[int]
    ) -> Found | None:
        """What is `found` by `replies`, or something newer and established, now that `silent` nodes, which had not
        listed it, were asked too; None when it takes a full read to tell."""
        name = found.opened.name
        answers = await self._ask(view, silent, name, grace=SILENCE_SECONDS)
        if len(answers) < len(silent):
            return None
        replies = {**replies, **answers}
        newest = newest_stamp(replies.values()) or b""
        newer = await self.settled(view, name, newest, replies)
        if newer is not None:
            self._note_behind(view, newer, replies)
        return newer

    # ---------------------------------------------------------------- the fast path

    async def _collect(self, view: View, name: ObjectName, *, want_cell: bool, want_range: range) -> Replies:
        """Ask enough primaries, more when some fail or are slow; return who answered."""
        electorate = view.electorate(name)
        holding_range = [electorate.primaries[index] for index in expected_cells(want_range, electorate.k)]
        aside = view.peers.aside

        def lateness(node: int) -> tuple[bool, bool, bool]:
            """Asked last is who failed lately, or keeps others waiting longer than a hedge would; before them, who has
            been slow for a while, kept going away or lacks what it should have."""
            peer = view.peers[node]
            late = peer.suspect or peer.reads.lags(self._hedge_delay)
            return late, node in aside or peer.is_behind, node not in holding_range

        order = sorted(electorate.everyone if electorate.is_moving else electorate.primaries, key=lateness)
        if electorate.is_moving:
            first = len(order)
        else:
            wants_small = want_cell and want_range.start < SEGMENT_BYTES
            first = max(electorate.k, electorate.read) if wants_small else electorate.read
            first = max(first, len(holding_range))
        for node in order[first:] if aside else ():
            if view.peers[node].takes_trial():
                view.peers[node].reads.submit_lazily(read_operation(name))
        gather = Gather(
            view.peers,
            read_operation(name, want_cell=want_cell, want_range=want_range).SerializeToString(),
            electorate,
            order[first:],
            want_cell=want_cell,
            hedge_delay=self._hedge_delay,
            awaited=set(holding_range).intersection(order[:first]),
        )
        return await gather.run(order[:first])

    def _note_behind(self, view: View, found: Found, replies: Replies) -> None:
        """Who lacks an established version is behind, unless that may just be on its way to it."""
        stamp = found.opened.stamp
        if self._clock.unixtime_ms() - stamp.unixtime_ms < YOUNG_MS:
            return
        for node in replies.keys() - holding(stamp.to_bytes(), replies).keys():
            view.peers[node].note_behind()

    def _is_established(self, name: ObjectName, stamp: bytes, replies: Replies) -> bool:
        if self._known.get(name, b"") == stamp:
            return True
        return any(
            v.stamp == stamp and v.state == pb.STATE_SETTLED
            for versions in replies.values()
            for v in versions
        )

    async def _open(
        self,
        view: View,
        name: ObjectName,
        stamp: bytes,
        replies: Replies,
        refusals: list[CoffreError] | None = None,
    ) -> Found | None:
        """Open the manifest of `stamp`; replies whose copy does not verify are dropped.

        What this client cannot open (`KeyUnavailable`, `Unsupported`) is found closed when more than m nodes have it
        alike, so not a few liars; else None, and why goes to `refusals`.
        """
        refused: dict[int, CoffreError] = {}
        opened: OpenManifest | None = None
        versions: dict[int, pb.Version] = {}
        genuine: pb.SealedManifest | None = None
        for node, held in holding(stamp, replies).items():
            if not held.sealed.manifest:
                continue  # the node's own copy is damaged
            if genuine is None or held.sealed.manifest != genuine.manifest:
                try:
                    candidate = await self._sealer.open(name, held.sealed)
                except IntegrityError:
                    replies.pop(node)
                    continue
                except (KeyUnavailable, Unsupported) as error:
                    refused[node] = error
                    continue
                if candidate.stamp.to_bytes() != stamp:
                    replies.pop(node)
                    continue
                opened, genuine = candidate, held.sealed
            versions[node] = held
        if opened is None and refused:
            versions = alike({n: v for n, v in holding(stamp, replies).items() if n in refused})
            if len(versions) > view.electorate(name).m:
                node, held = next(iter(versions.items()))
                opened, genuine = (
                    self._sealer.left_closed(name, held.sealed.manifest, refused[node]),
                    held.sealed,
                )
            elif refusals is not None:
                refusals.extend(refused.values())
        for node in refused.keys() - versions.keys():
            replies.pop(node)
        if opened is None or genuine is None or opened.stamp.to_bytes() != stamp:
            return None
        found = Found(opened, genuine, versions)
        found.cells.add_versions(opened, versions.values())
        return found

    # ---------------------------------------------------------------- the slow path

    async def _resolve_slowly(
        self, view: View, name: ObjectName, *, want_cell: bool, grace: float | None, thorough: bool
    ) -> Found | None:
        electorate = view.electorate(name)
        others = view.elsewhere(name)
        began = Began.now(self._clock)
        errors: list[CoffreError] = []
        replies, beyond = await asyncio.gather(
            self._ask(view, electorate.everyone, name, want_cell=want_cell, errors=errors, grace=grace),
            self._ask(view, others, name, grace=grace),
        )
        refusals, dead = list[CoffreError](), set[bytes]()
        while True:
            require_quorum(electorate, replies, errors)
            stamp = newest_stamp(replies.values(), dead)
            if stamp is None:
                return None
            found = await self._open(view, name, stamp, replies, refusals)
            if found is None:
                silent = electorate.everyone - replies.keys()
                if electorate.may_be_established(silent.union(holding(stamp, replies))):
                    raise unreadable(name, refusals)
                dead.add(stamp)  # too few to have been acknowledged, whatever it was
                continue
            found.versions = {**holding(stamp, beyond), **found.versions}
            if self._is_established(name, stamp, replies):
                return found
            if is_unlocked_recoding(electorate, found.opened, replies):
                # What it was made from is below it, and says the same; nobody was told of it.
                if thorough:
                    await self._writer.give_up(
                        name,
                        found.opened.stamp,
                        electorate.everyone,
                        k=found.opened.manifest.k,
                        elsewhere=holding(stamp, beyond).keys() | set(others) - beyond.keys(),
                    )
                dead.add(stamp)
                continue
            aborted = aborting(stamp, replies)
            if electorate.is_dead_by(aborted):
                if thorough:  # who missed that still stands in the way of conditional writes
                    self._writer.drop_dead(name, found.opened.stamp)
                dead.add(stamp)
                continue
            departed = len(view.map.departed)
            if may_turn_on_shards(electorate, found.opened, replies, beyond):
                # Shards may lie with substitutes of any map: who was behind the primaries then may not be now.
                others = tuple(view.everywhere(name).union(others))
                beyond |= await self._ask(view, set(others) - beyond.keys(), name, grace=grace)
                found.versions = {**holding(stamp, beyond), **found.versions}
            if never_acknowledged(
                electorate, found.opened, replies, beyond, others, departed, refused=bool(aborted)
            ):
                if (
                    thorough and aborted
                ):  # its writer gave it up, and could not tell everybody, or never got far
                    await self._writer.refuse(
                        name, found.opened.stamp, replies.keys() - holding(stamp, replies).keys()
                    )
                dead.add(stamp)
                continue
            if electorate.is_moving:
                await self._clear_the_way(view, name, found, replies)
            if aborted:
                await self._complete_against_votes(view, name, found, replies, beyond, others, began)
            else:
                await self._completer.complete(view, name, found, replies, beyond, began)
            self.note_established(name, found.opened.stamp)
            return found

    async def _clear_the_way(self, view: View, name: ObjectName, found: Found, replies: Replies) -> None:
        """Give up the versions because of which nodes of newer sets refuse this one.

        Of a conditional version and one between it and its base a node holds one, and refuses the other. So when W of
        the oldest set have locked this one, for ever, nobody was or will be told of the other.
        """
        electorate, stamp = view.electorate(name), found.opened.stamp.to_bytes()
        locked = {node for node, v in holding(stamp, replies).items() if v.state == pb.STATE_LOCKED}
        if not electorate.is_locked_for_ever(locked):
            return
        for other in sorted(undecided(replies) - {stamp}):
            in_the_way = await self._open(view, name, other, dict(replies))
            if in_the_way is None:
                continue
            newer = max(in_the_way.opened, found.opened, key=lambda opened: opened.stamp).manifest
            if not newer.conditional or newer.base >= min(stamp, other):
                continue
            await self._writer.give_up(
                name,
                in_the_way.opened.stamp,
                electorate.everyone,
                k=in_the_way.opened.manifest.k,
                elsewhere=None if in_the_way.opened.tombstone else view.elsewhere(name),
                begun=electorate,
                every=True,
            )

    async def _complete_against_votes(
        self,
        view: View,
        name: ObjectName,
        found: Found,
        replies: Replies,
        beyond: Replies,
        others: Collection[int],
        began: Began,
    ) -> None:
        """Complete what somebody refused: such a vote may be of a node that never had it. Raises `Unavailable` when
        that cannot be done now. While the map changes it asks again then, now that everybody has voted: what the oldest
        set keeps for ever is completed against the votes of newer ones."""
        electorate, stamp = view.electorate(name), found.opened.stamp.to_bytes()
        if electorate.may_be_established(replies.keys() - aborting(stamp, replies)):
            try:
                await self._completer.complete(view, name, found, replies, beyond, began)
            except Unavailable:
                if not electorate.is_moving:
                    raise
            else:
                return
        if electorate.is_moving:
            replies = await self._ask(view, electorate.everyone, name)
            beyond = await self._ask(view, {*others, *holding(stamp, replies)} - replies.keys(), name)
            found.versions = {**holding(stamp, beyond), **holding(stamp, replies)}
            if is_kept(electorate, view.map.lost, found.opened, replies, beyond):
                await self._completer.overrule(view, name, found, replies, beyond, began)
                return
        raise Unavailable("too few nodes answer to tell whether the newest version stands")

    # ---------------------------------------------------------------- asking

    async def holders(
        self, name: ObjectName, stamp: Stamp, nodes: Iterable[int]
    ) -> dict[int, pb.Version | None]:
        """What each answering node of `nodes` says of one version, None when it does not hold it."""
        raw = stamp.to_bytes()
        view = self._views.current
        replies = await self._ask(
            view, [node for node in nodes if node in view.peers], name, want_cell=True, stamp=raw
        )
        held = holding(raw, replies)
        return {node: held.get(node) for node in replies}

    async def places(self, found: Found) -> tuple[int, ...]:
        """The node of each shard of a version.

        What the writer noted is believed while it names nobody but nodes at which shards of it belong; when nodes have
        come or gone since, or stood in for others, they are asked: repair has moved shards to where they belong now.
        """
        view, name = self._views.current, found.opened.name
        electorate = view.electorate(name)
        places = list(found.placement(view))
        homes = view.homes(name, found.opened.manifest.k, found.opened.manifest.m)
        sound = set(homes).issuperset(places) and len(set(places)) == len(places)
        if found.hint and sound and not electorate.is_moving:
            return tuple(places)
        nodes = electorate.everyone.union(places, homes, view.elsewhere(name))
        answers = await self.holders(name, found.opened.stamp, nodes)
        for node in sorted(answers, key=lambda node: node in homes):
            held = answers[node]
            if held is not None and held.HasField("shard_index") and held.shard_index < len(places):
                places[held.shard_index] = node
        return tuple(places)

    async def fetch_cells(self, name: ObjectName, found: Found, nodes: Iterable[int]) -> None:
        """Add the cells of a one-segment object that `nodes` hold to `found`."""
        view = self._views.current
        replies = await self._ask(
            view,
            [node for node in nodes if node in view.peers],
            name,
            want_cell=True,
            stamp=found.opened.stamp.to_bytes(),
        )
        found.cells.add_versions(found.opened, (v for held in replies.values() for v in held))

    async def _ask(
        self,
        view: View,
        nodes: Collection[int],
        name: ObjectName,
        *,
        want_cell: bool = False,
        stamp: bytes = b"",
        every: bool = False,
        errors: list[CoffreError] | None = None,
        grace: float | None = None,
    ) -> Replies:
        """Ask all of `nodes` and return those that answered; what the others said goes to `errors`.

        With `grace`, a node that has not answered after so many seconds counts as silent.
        """
        operation = read_operation(name, want_cell=want_cell, stamp=stamp, every=every)
        futures = [view.peers[node].reads.submit(operation) for node in nodes]
        if futures:
            await asyncio.wait(futures, timeout=grace)
        replies: Replies = {}
        for node, future in zip(nodes, futures, strict=True):
            who = view.peers.name_of(node)
            error: BaseException | None = Unavailable(f"node {who} does not answer", node=who)
            if future.done():
                error = future.exception()
                if error is None and future.result().code:
                    error = error_of_status(future.result().code, future.result().detail, node=who)
            if error is None:
                replies[node] = future.result().versions
            elif errors is not None and isinstance(error, CoffreError):
                errors.append(error)
        return replies
