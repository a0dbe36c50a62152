"""What a disk may hold after a loss of power: the files of a recorded process, with what was not synced there or not.

The rules are those that POSIX promises, not those of a kind filesystem:

- What was written to a file is there when a sync of that file, begun after the write, has ended. Before that each
  block of it may be there or not, whatever came before or after it.
- A file has its name when a sync of its directory has ended, and so has a directory; before that the name may be there
  or not, whatever was synced of the content. The same holds of a name that was taken away.
- A block of 4 KiB is written whole or not at all.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from struct import Struct

__all__ = ["BLOCK_BYTES", "Disk", "Entry", "Kind", "read_entries"]

BLOCK_BYTES = 4096
_HEAD = Struct("=IiIIqq")  # kind, descriptor, flags, bytes that follow, offset, reserved
_REMADE = ("lock.mdb",)  # LMDB's table of readers, which is made anew by whoever opens it first


class Kind(IntEnum):
    """What an entry of the record is about: recorder.c."""

    OPEN = 1
    MKDIR = 2
    UNLINK = 3
    WRITE = 4
    TRUNCATE = 5
    TRUNCATE_PATH = 6
    SYNC_BEGIN = 7
    SYNC_END = 8
    ACK = 9
    MAPPED = 10
    UNKNOWN = 11


@dataclass(frozen=True, slots=True)
class Entry:
    """One call. `body`: the path, or what was written."""

    kind: Kind
    fd: int
    flags: int
    offset: int
    body: bytes


def read_entries(path: Path) -> Iterator[Entry]:
    """The record of one process or of several, one after the other. What a kill cut off at its end is left out."""
    raw = path.read_bytes()
    place = 0
    while place + _HEAD.size <= len(raw):
        kind, fd, flags, size_bytes, offset, _ = _HEAD.unpack_from(raw, place)
        place += _HEAD.size
        if place + size_bytes > len(raw):
            return
        yield Entry(Kind(kind), fd, flags, offset, raw[place : place + size_bytes])
        place += size_bytes


@dataclass(slots=True, eq=False)
class _Change:
    """One change of a file or of a directory that a sync has yet to cover."""

    number: int  # of its entry
    offset: int = 0
    data: bytes = b""
    size_bytes: int | None = None  # the file is cut, or extended, to that
    name: str = ""
    node: _Node | None = None  # what has that name from now on; none: nothing
    synced: bool = False


@dataclass(slots=True, eq=False)
class _Node:
    """A file, or a directory: what is on the disk for sure, and what came after it."""

    is_directory: bool
    name: str = ""
    content: bytearray = field(default_factory=bytearray)
    names: dict[str, _Node] = field(default_factory=dict)
    live: dict[str, _Node] = field(default_factory=dict)  # names as the process sees them
    changes: list[_Change] = field(default_factory=list)

    def settle(self) -> None:
        """Do what is sure, as far as nothing uncertain precedes it."""
        done = 0
        for change in self.changes:
            if not change.synced:
                break
            _do(change, self.content, self.names)
            done += 1
        del self.changes[:done]


class Disk:
    """The tree below `root` as entries change it, beginning with nothing."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = _Node(True)
        self._open: dict[int, _Node] = {}
        self._syncs: dict[int, int] = {}  # by descriptor: the number of the entry that began it
        self._number = 0

    def apply(self, entry: Entry) -> None:
        """Let one more call happen. Raises `NotImplementedError` for one that has no rule here."""
        self._number += 1
        match entry.kind:
            case Kind.OPEN:
                self._opened(entry)
            case Kind.MKDIR:
                parent, name = self._parent(entry.body)
                self._link(parent, name, _Node(True, name))
            case Kind.UNLINK:
                parent, name = self._parent(entry.body)
                self._link(parent, name, None)
            case Kind.WRITE:
                node = self._open[entry.fd]
                synced = bool(entry.flags & (os.O_SYNC | os.O_DSYNC))
                node.changes.append(_Change(self._number, entry.offset, entry.body, synced=synced))
                node.settle()
            case Kind.TRUNCATE:
                self._open[entry.fd].changes.append(_Change(self._number, size_bytes=entry.offset))
            case Kind.TRUNCATE_PATH:
                parent, name = self._parent(entry.body)
                parent.live[name].changes.append(_Change(self._number, size_bytes=entry.offset))
            case Kind.SYNC_BEGIN:
                self._syncs[entry.fd] = self._number
            case Kind.SYNC_END:
                begun = self._syncs.pop(entry.fd)
                node = self._open[entry.fd]
                for change in node.changes:
                    change.synced |= change.number < begun
                node.settle()
            case Kind.MAPPED:
                if self._open[entry.fd].name not in _REMADE:
                    raise NotImplementedError("a file is written through a mapping")
            case Kind.UNKNOWN:
                raise NotImplementedError(entry.body.decode())
            case Kind.ACK:
                pass

    def restart(self) -> None:
        """The process is gone, and a new one begins; the machine has lost nothing."""
        self._open.clear()
        self._syncs.clear()

    # ---------------------------------------------------------------- after the loss of power

    def write_out(self, target: Path, rng: random.Random, chance: float) -> None:
        """Make the tree that the disk holds if the power fails now; what is not sure is there with this chance."""
        target.mkdir()
        self._write_out(self._top, target, rng, chance)

    def _write_out(self, node: _Node, path: Path, rng: random.Random, chance: float) -> None:
        content, names = bytearray(node.content), dict(node.names)
        for change in node.changes:
            for part in _parts(change):
                if change.synced or rng.random() < chance:
                    _do(part, content, names)
        if not node.is_directory:
            path.write_bytes(content)
            return
        path.mkdir(exist_ok=True)
        for name, child in names.items():
            self._write_out(child, path / name, rng, chance)

    # ---------------------------------------------------------------- names

    def _opened(self, entry: Entry) -> None:
        path = Path(os.fsdecode(entry.body))
        if path == self._root:
            self._open[entry.fd] = self._top
            return
        parent, name = self._parent(entry.body)
        node = parent.live.get(name)
        if node is None:
            node = self._link(parent, name, _Node(False, name))
        elif entry.flags & os.O_TRUNC:
            node.changes.append(_Change(self._number, size_bytes=0))
        assert node is not None
        self._open[entry.fd] = node

    def _link(self, parent: _Node, name: str, node: _Node | None) -> _Node | None:
        parent.changes.append(_Change(self._number, name=name, node=node))
        if node is None:
            del parent.live[name]
        else:
            parent.live[name] = node
        return node

    def _parent(self, raw: bytes) -> tuple[_Node, str]:
        *directories, name = Path(os.fsdecode(raw)).relative_to(self._root).parts
        node = self._top
        for directory in directories:
            node = node.live[directory]
        return node, name


def _parts(change: _Change) -> Iterator[_Change]:
    """The blocks of a change, which go to the disk each on its own."""
    if not change.data:
        yield change
        return
    place = 0
    while place < len(change.data):
        offset = change.offset + place
        size_bytes = BLOCK_BYTES - offset % BLOCK_BYTES
        yield _Change(change.number, offset, change.data[place : place + size_bytes])
        place += size_bytes


def _do(change: _Change, content: bytearray, names: dict[str, _Node]) -> None:
    if change.name:
        if change.node is None:
            names.pop(change.name, None)
        else:
            names[change.name] = change.node
    elif change.size_bytes is not None:
        content[change.size_bytes :] = b""
        content.extend(bytes(change.size_bytes - len(content)))
    else:
        end = change.offset + len(change.data)
        if change.data:
            content.extend(bytes(max(end - len(content), 0)))
            content[change.offset : end] = change.data
