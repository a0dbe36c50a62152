"""Signed maps in coordination: published one epoch after the other, kept for ever, pushed to who watches."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from coffre.cluster.coordination.seam import VALUE_BYTES_MAX, Compare, Coordination, Entry, Put
from coffre.cluster.errors import (
    Conflict,
    IntegrityError,
    InvalidArgument,
    NotFound,
    ReadAgain,
    Unavailable,
)
from coffre.cluster.map import ClusterMap, newer_map, verify_map
from cryptography import x509

__all__ = ["CURRENT", "MAPS", "Published", "map_of_epoch", "newest_map", "publish_map", "watch_maps"]

MAPS = "maps/"
CURRENT = "maps/current"


@dataclass(frozen=True, slots=True)
class Published:
    """A map as coordination has it. Verified by who reads it (`verify_map`): coordination is not believed."""

    epoch: int
    signed: bytes
    revision: int  # a watch from here misses nothing


def _key(epoch: int) -> str:
    return f"{MAPS}epoch/{epoch:019}"


def _epoch(current: Entry) -> int:
    if not current.value.isdigit() or len(current.value) > 19:
        raise IntegrityError("coordination's current epoch is not a number")
    return int(current.value)


async def newest_map(coordination: Coordination) -> Published | None:
    """The newest map, None when none was ever published.

    Raises `Unavailable` when the store was lost or changed while it was read, `IntegrityError` when it names a map that
    it does not have.
    """
    # By a range, which says what the whole store was at: a watch from the last change of the key alone may be told to
    # read again, for ever.
    page = await coordination.range(CURRENT)
    if not page.entries:
        return None
    current = page.entries[0]
    return Published(_epoch(current), await _map_of(coordination, current), page.revision)


async def _map_of(coordination: Coordination, current: Entry) -> bytes:
    """The signed map that `current` names. Raises as `newest_map`.

    Both are put in one commit and never deleted. So who reads one without the other has read two stores, the lost one
    and the one that took its place; or the store is damaged, and reads the same again.
    """
    epoch = _epoch(current)
    entry = await coordination.get(_key(epoch))
    if entry is not None:
        return entry.value
    again = await coordination.get(CURRENT)
    if again is not None and again.modified == current.modified:
        raise IntegrityError(
            f"coordination names the map of epoch {epoch} as its newest, and does not have it"
        )
    raise Unavailable(
        f"coordination lost the map of epoch {epoch}, its newest, while it was read: its store was set up anew"
    )


async def map_of_epoch(coordination: Coordination, epoch: int) -> bytes:
    """The signed map of an epoch. Raises `NotFound`."""
    entry = await coordination.get(_key(epoch))
    if entry is None:
        raise NotFound(f"no map of epoch {epoch} was published")
    return entry.value


async def publish_map(
    coordination: Coordination, signed: bytes, authority: x509.Certificate, unixtime_ms: int | None
) -> ClusterMap:
    """Make `signed` the newest map; publishing the newest map again does nothing.

    The first map may have any epoch (a store may be filled again after it was lost); any other has the epoch after
    the newest. With a time, the certificate of the signer must be valid then. Raises `Conflict` when the epoch is
    another, or a map was published meanwhile; else as `verify_map`, `newer_map` and `newest_map`.
    """
    candidate = verify_map(signed, authority, unixtime_ms)
    if len(signed) > VALUE_BYTES_MAX:
        raise InvalidArgument(f"a map to be published has at most {VALUE_BYTES_MAX} bytes, not {len(signed)}")
    current = await coordination.get(CURRENT)
    if current is not None:
        held = verify_map(await _map_of(coordination, current), authority)
        if newer_map(held, candidate) is held:
            return held
        if candidate.epoch != held.epoch + 1:
            raise Conflict(f"the newest map has epoch {held.epoch}; the next one has {held.epoch + 1}")
    done = await coordination.commit(
        [Compare(CURRENT, current.modified if current is not None else 0), Compare(_key(candidate.epoch), 0)],
        [Put(_key(candidate.epoch), signed), Put(CURRENT, str(candidate.epoch).encode())],
    )
    if not done.succeeded:
        raise Conflict("another map was published meanwhile")
    return candidate


async def watch_maps(coordination: Coordination) -> AsyncGenerator[Published]:
    """Yield the newest map, and each that becomes it; some may be left out when they follow fast.

    Raises `Unavailable` when coordination cannot be reached any more, or as `newest_map`.
    """
    seen = 0
    while True:
        page = await coordination.range(CURRENT)
        if page.entries and (epoch := _epoch(page.entries[0])) > seen:
            seen = epoch
            yield Published(epoch, await _map_of(coordination, page.entries[0]), page.revision)
        async with aclosing(coordination.watch(CURRENT, page.revision)) as watching:
            try:
                await anext(watching)
            except ReadAgain:
                continue
