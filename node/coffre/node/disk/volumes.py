"""Volume files: append-only, read at random, cut back to what the index knows. docs/formats/node.md,
"Volumes"."""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from coffre.codec import crc32c

__all__ = ["FILE_HEADER_BYTES", "FileHandle", "VolumeState", "Volumes", "sync_directory"]

_log = logging.getLogger(__name__)
_MAGIC = b"coffrevo"
_FORMAT = 1
_HEADER = struct.Struct(">8sII16s")
FILE_HEADER_BYTES = _HEADER.size + 4
_HANDLES_MAX = 128
_BUFFERS_MAX = 512  # below IOV_MAX
_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)


class FileHandle:
    """A file descriptor that closes when its last user lets go: a read under way outlives eviction and
    unlink."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


@dataclass(slots=True)
class VolumeState:
    """What the index knows of a volume. `sound` is False when the file is shorter than that."""

    length: int
    live_bytes: int
    sound: bool = True


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Volumes:
    """The volume files of one store. Appending is for the committer's thread alone; reading is for any."""

    def __init__(self, directory: Path, store_id: bytes) -> None:
        self._directory = directory
        self._store_id = store_id
        self._handles: dict[int, FileHandle] = {}
        self._nowait = bool(_NOWAIT)
        self.table: dict[int, VolumeState] = {}

    def path(self, number: int) -> Path:
        """Where the volume of this number lies."""
        return self._directory / f"{number:08d}.vol"

    # ---------------------------------------------------------------- start

    def check(self) -> int:
        """Cut torn tails, remove files that the index does not know; return how many volumes lost bytes."""
        damaged = 0
        for number, state in self.table.items():
            path = self.path(number)
            length = path.stat().st_size if path.exists() else -1
            if length < state.length:
                state.sound = False
                damaged += 1
                _log.error(
                    "volume %s has %d of %d bytes; what it lost will be repaired", path, length, state.length
                )
            elif length > state.length:
                os.truncate(path, state.length)
        for path in self._directory.iterdir():
            if not path.stem.isdigit() or int(path.stem) not in self.table:
                path.unlink()
        sync_directory(self._directory)
        return damaged

    # ---------------------------------------------------------------- appending

    def header(self, number: int) -> bytes:
        """The first bytes of a volume file."""
        head = _HEADER.pack(_MAGIC, _FORMAT, number, self._store_id)
        return head + crc32c(head).to_bytes(4, "big")

    def append(self, number: int, offset: int, buffers: Sequence[bytes]) -> None:
        """Write and sync `buffers` at `offset`, the committed end; offset 0 makes the file. Raises
        `OSError`."""
        handle = self._create(number) if offset == 0 else self.handle(number)
        for start in range(0, len(buffers), _BUFFERS_MAX):
            part = list(buffers[start : start + _BUFFERS_MAX])
            size_bytes = sum(map(len, part))
            written = os.pwritev(handle.fd, part, offset)
            if written < size_bytes:
                # Usually a full disk: the rest of the bytes says which error it is.
                rest = memoryview(b"".join(part))[written:]
                while rest:
                    written = os.pwrite(handle.fd, rest, offset + size_bytes - len(rest))
                    rest = rest[written:]
            offset += size_bytes
        os.fdatasync(handle.fd)

    def _create(self, number: int) -> FileHandle:
        # Left over from a batch that failed half-way, perhaps: nothing refers to it.
        fd = os.open(self.path(number), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o640)
        handle = self._handles[number] = FileHandle(fd)
        sync_directory(self._directory)
        return handle

    def cut(self, number: int) -> None:
        """Undo an append whose batch failed."""
        state = self.table.get(number)
        if state is None:
            self.forget(number)
            self.path(number).unlink(missing_ok=True)
        else:
            os.truncate(self.path(number), state.length)

    def forget(self, number: int) -> None:
        """Let go of a volume's descriptor."""
        self._handles.pop(number, None)

    # ---------------------------------------------------------------- reading

    def handle(self, number: int) -> FileHandle:
        """The open file of a volume. Raises `OSError`."""
        handle = self._handles.get(number)
        if handle is None:
            if len(self._handles) >= _HANDLES_MAX:
                self._handles.clear()
            handle = FileHandle(os.open(self.path(number), os.O_RDWR))
            self._handles[number] = handle
        return handle

    def read(self, number: int, offset: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` from the disk, fewer at the end of the file. Raises `OSError`."""
        return os.pread(self.handle(number).fd, size_bytes, offset)

    def read_cached(self, number: int, offset: int, size_bytes: int) -> bytes | None:
        """The bytes when memory has all of them, else None: then `read` them in a thread. Raises
        `OSError`."""
        if not self._nowait:
            return None
        buffer = bytearray(size_bytes)
        try:
            count = os.preadv(self.handle(number).fd, (buffer,), offset, _NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._nowait = False
            return None
        return bytes(buffer) if count == size_bytes else None

    def close(self) -> None:
        self._handles.clear()
