"""One page of a bucket's keys, rolled up at a delimiter: the walk that every store shares.

Keys whose newest version is a settled tombstone are left out (docs/consistency.md, "List"). Stores keep their rows
apart, so that the walk does not even meet them, but for those that only a mark has settled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from coffre.cluster.errors import InvalidArgument
from coffre.node.store.seam import ABORTED, SETTLED
from coffre.node.store.votes import Entry, down_to_settled

__all__ = ["LIMIT_MAX", "Page", "PageRow", "is_buried", "list_page", "successor"]

LIMIT_MAX = 1000
SCAN_MAX = 20_000  # rows looked at for one page: keys that show nothing cost work but fill no page

# The keys of a bucket from a given one on, in byte order, with their entries.
Scan = Callable[[bytes], Iterator[tuple[bytes, tuple[Entry, ...]]]]


class PageRow(NamedTuple):
    """A key with its entries down to the newest settled one; `common_prefix` is empty for a plain key."""

    key: bytes
    entries: tuple[Entry, ...]
    common_prefix: bytes = b""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of names in key order, and where the next one begins."""

    rows: tuple[PageRow, ...]
    more: bool


def successor(prefix: bytes) -> bytes | None:
    """The smallest byte string above everything that starts with `prefix`; None when there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes((stem[-1] + 1,)) if stem else None


def list_page(
    scan: Scan,
    prefix: bytes,
    *,
    after: bytes,
    after_prefix: bool,
    delimiter: bytes,
    limit: int,
) -> Page:
    """Walk one page. When `SCAN_MAX` rows were looked at, the page ends with the last of them even where
    a full page would leave it out (deleted, below a common prefix): the caller goes on after it."""
    if limit < 1:
        raise InvalidArgument("a page has at least one entry")
    start = _start(prefix, after, after_prefix)
    if start is None:
        return Page((), more=False)
    limit = min(limit, LIMIT_MAX)
    rows: list[PageRow] = []
    cursor = scan(start)
    scanned = 0
    while True:
        item = next(cursor, None)
        if item is None or not item[0].startswith(prefix):
            return Page(tuple(rows), more=False)
        key, entries = item
        scanned += 1
        rolled_up = _common_prefix(key, prefix, delimiter)
        row = _row(key, entries, rolled_up)
        if len(rows) == limit:
            if row is not None or scanned >= SCAN_MAX:
                return Page(tuple(rows), more=True)
            continue
        if row is not None:
            rows.append(row)
            if rolled_up:
                beyond = successor(rolled_up)
                if beyond is None:
                    return Page(tuple(rows), more=False)
                cursor = scan(beyond)
        if scanned >= SCAN_MAX:
            if row is None and len(rows) < limit:
                rows.append(PageRow(key, down_to_settled(entries)))
            return Page(tuple(rows), more=True)


def _start(prefix: bytes, after: bytes, after_prefix: bool) -> bytes | None:
    if not after:
        return prefix
    beyond = successor(after) if after_prefix else after + b"\0"
    return None if beyond is None else max(prefix, beyond)


def _common_prefix(key: bytes, prefix: bytes, delimiter: bytes) -> bytes:
    if not delimiter:
        return b""
    place = key.find(delimiter, len(prefix))
    return b"" if place < 0 else key[: place + len(delimiter)]


def is_buried(entries: tuple[Entry, ...]) -> bool:
    """Whether the newest version, given-up ones aside, is a settled tombstone: the key is deleted for certain."""
    for entry in entries:
        if entry.state != ABORTED:
            return entry.tombstone and entry.state == SETTLED
    return False


def _row(key: bytes, entries: tuple[Entry, ...], common_prefix: bytes) -> PageRow | None:
    if is_buried(entries):
        return None
    shown = down_to_settled(entries)
    for entry in shown:
        if entry.state != ABORTED and not (common_prefix and entry.tombstone):
            return PageRow(key, shown, common_prefix)
    return None
