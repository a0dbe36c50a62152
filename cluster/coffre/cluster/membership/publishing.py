"""Publishing maps through coordination: every member takes a new one within a second."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import Coordination, newest_map, publish_map
from coffre.cluster.errors import (
    AlreadyExists,
    ConfigurationError,
    Conflict,
    RetryableError,
    Unavailable,
)
from coffre.cluster.health import present_nodes
from coffre.cluster.map import ClusterMap, newer_map, verify_map
from coffre.cluster.membership.map_source import VerifiedMap, newest_of_nodes
from coffre.cluster.transport import Transport
from cryptography import x509

__all__ = ["CoordinatedMapPublisher", "Restored", "restore_newest_map"]

_HAND_OVER_SECONDS = 20.0
_PAUSE_SECONDS = 0.2


class CoordinatedMapPublisher:
    """`MapPublisher` over coordination. `known` is the map in the operator's own file, of any epoch.

    `keep`: puts a signed map into that file, whole or not at all.
    """

    def __init__(
        self,
        coordination: Coordination,
        transport: Transport,
        known: ClusterMap,
        authority: x509.Certificate,
        keep: Callable[[bytes], None],
        clock: Clock,
    ) -> None:
        self._coordination = coordination
        self._transport = transport
        self._known = known
        self._authority = authority
        self._keep = keep
        self._clock = clock
        self._published: VerifiedMap | None = None

    async def current(self) -> ClusterMap:
        while True:
            asked = self._known.coordinators
            try:
                newest = await newest_map(self._coordination)
            except RetryableError:
                if not await self._others_coordinate():
                    raise
                continue
            if newest is None:
                self._known = await self._unpublished()
            else:
                before = self._known
                self._known = newer_map(before, verify_map(newest.signed, self._authority))
                if self._known is not before:
                    self._keep_where_allowed(newest.signed)
            await self._transport.update_map(self._known)  # nodes that joined meanwhile are reached, too
            if newest is None or self._known.coordinators == asked:
                return self._known
            # Others are the coordinators by now: what they have may be newer still.

    async def _others_coordinate(self) -> bool:
        """Whether nodes have a newer map than the operator's file, by which others coordinate; it is known from now on.

        The ones that the file names may be gone for good.
        """
        found, _ = await newest_of_nodes(self._transport, self._known, self._authority)
        if found is None or found.map.epoch <= self._known.epoch:
            return False
        if found.map.coordinators == self._known.coordinators:
            return False
        self._known = found.map
        self._keep_where_allowed(found.signed)
        await self._transport.update_map(found.map)
        return True

    def _keep_where_allowed(self, signed: bytes) -> None:
        with suppress(ConfigurationError):  # who may not write the file goes on all the same
            self._keep(signed)

    async def _unpublished(self) -> ClusterMap:
        """The map that came with the nodes' files, while none was ever published.

        Or coordination was lost: so every node must say which map it has. Another one of the epoch that the newest of
        them has would be refused by it for ever.
        """
        newest, answered = await newest_of_nodes(self._transport, self._known, self._authority)
        if newest is None or answered < len(present_nodes(newest.map)):
            raise Unavailable(
                "coordination has no map, and not all nodes say which one they have: start them, or make the newest "
                "known with coffre cluster restore-coordination"
            )
        if newest.map.epoch < self._known.epoch:
            await self._publish_again()
            return self._known
        return newer_map(self._known, newest.map)

    async def _publish_again(self) -> None:
        """What this command has published was lost before any node took it, and nobody else may have used its epoch.

        Another command's last map is for `restore_newest_map`: an operator has to say which file is the newest.
        """
        if self._published is None or self._published.map != self._known:
            raise Unavailable(
                f"coordination has no map, and only your file has the one of epoch {self._known.epoch}: make it known "
                "with coffre cluster restore-coordination"
            )
        await publish_map(
            self._coordination, self._published.signed, self._authority, self._clock.unixtime_ms()
        )

    async def publish(self, signed: bytes, expected_epoch: int) -> None:
        newest = await newest_map(self._coordination)
        epoch = self._known.epoch if newest is None else newest.epoch
        if epoch != expected_epoch:
            raise Conflict(
                f"the newest map has epoch {epoch}, not {expected_epoch}; look at it, then try again"
            )
        published = await publish_map(self._coordination, signed, self._authority, self._clock.unixtime_ms())
        self._published = VerifiedMap(published, signed)
        self._keep(signed)  # so that the next command finds the cluster where it is now
        handed_over = published.coordinators != self._known.coordinators
        self._known = published  # whatever becomes of the store: what was published is never planned on again
        if handed_over:
            await self._transport.update_map(published)
            await self._hand_over(signed)

    async def _hand_over(self, signed: bytes) -> None:
        """Give the map to its coordinators, which may have an empty store and serve it once they have taken the map."""
        deadline = self._clock.monotonic() + _HAND_OVER_SECONDS
        while True:
            try:
                await publish_map(self._coordination, signed, self._authority, None)
                return
            except RetryableError as error:
                if self._clock.monotonic() > deadline:
                    raise Unavailable(
                        "the map is published, and its coordinators do not have it yet; when they answer, say coffre "
                        f"cluster restore-coordination: {error}"
                    ) from None
            await self._clock.sleep(_PAUSE_SECONDS)


@dataclass(frozen=True, slots=True)
class Restored:
    """The map that a store was filled with, and whose word that is."""

    map: ClusterMap
    answered: int  # nodes that said which map they keep
    newest_of_nodes: (
        int  # the highest epoch among them; below the map's when only the operator's file has that one
    )


async def restore_newest_map(
    coordination: Coordination,
    transport: Transport,
    kept: VerifiedMap,
    authority: x509.Certificate,
    clock: Clock,
) -> Restored:
    """Make the newest of `kept`, which is the operator's own file, and the maps that its nodes keep, the current one.

    For a store that lost it. A map that was published an instant before may be in the operator's file alone. It must
    be able to follow every node's, and since nodes have yet to adopt it, its signer's certificate must be valid now.

    Raises `AlreadyExists` when coordination has a map, `Unavailable` when no node answers, `IntegrityError` when two
    different maps have one epoch or one cannot come before the newest, `Unauthenticated` when nodes would refuse the
    file's signer; else as `publish_map`.
    """
    held = await newest_map(coordination)
    if held is not None:
        raise AlreadyExists(_nothing_to_restore(held.epoch, kept.map.epoch))
    newest, answered = await newest_of_nodes(transport, kept.map, authority)
    if newest is None:
        raise Unavailable("no node answers: start the nodes first")
    if newest.map.epoch >= kept.map.epoch:  # a node took it while its signer's certificate was valid
        await publish_map(coordination, newest.signed, authority, None)
        return Restored(newest.map, answered, newest.map.epoch)
    await publish_map(coordination, kept.signed, authority, clock.unixtime_ms())
    return Restored(kept.map, answered, newest.map.epoch)


def _nothing_to_restore(held: int, kept: int) -> str:
    if held >= kept:
        return "coordination has a map; there is nothing to restore"
    return (
        f"coordination has a map, of epoch {held}; your file has the one of epoch {kept}. If no other was published in "
        "its place, make it known with coffre cluster publish"
    )
