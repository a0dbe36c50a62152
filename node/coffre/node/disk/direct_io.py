"""Files that are written once, in order, and read at random, past the page cache: their data goes between disk and
an aligned buffer, and memory stays with the index. Where a filesystem does not do that, the page cache serves.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from coffre.node.disk.volumes import FileHandle

__all__ = ["DirectReader", "DirectWriter"]

_BLOCK_BYTES = 4096  # no disk in use asks for more, and every page is a whole number of them
_BUFFER_BYTES = 1 << 20
_DIRECT: int = getattr(os, "O_DIRECT", 0)


def _open(path: Path, flags: int) -> FileHandle:
    try:
        return FileHandle(os.open(path, flags | _DIRECT, 0o640))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return FileHandle(os.open(path, flags & ~os.O_EXCL, 0o640))  # the refused call may have made the file


def _use_page_cache(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~_DIRECT)


class DirectWriter:
    """Appends to a new file by way of two buffers: one fills while the other is written. Raises `OSError`.

    `fill` does not block. What it yields has to be given to `write`, which does, in another thread if need be; one
    write has to be over before the next begins, and so before its buffer is filled again.
    """

    def __init__(self, path: Path) -> None:
        """Blocks. Raises `FileExistsError`, too."""
        self._handle = _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._filling, self._resting = (memoryview(mmap.mmap(-1, _BUFFER_BYTES)) for _ in range(2))
        self._filled_bytes = 0
        self.written_bytes = 0  # always a whole number of blocks before the end

    def fill(self, parts: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
        """Copy bytes into the buffer, and yield it each time it is full."""
        for part in parts:
            rest = memoryview(part)
            while rest:
                count = min(len(rest), _BUFFER_BYTES - self._filled_bytes)
                self._filling[self._filled_bytes : self._filled_bytes + count] = rest[:count]
                self._filled_bytes += count
                rest = rest[count:]
                if self._filled_bytes == _BUFFER_BYTES:
                    self._filling, self._resting = self._resting, self._filling
                    self._filled_bytes = 0
                    yield self._resting

    def finish(self) -> None:
        """Write what is left, and sync the file. Its directory is the caller's. Blocks."""
        whole = self._filled_bytes - self._filled_bytes % _BLOCK_BYTES
        if whole:
            self.write(self._filling[:whole])
        if whole < self._filled_bytes:
            _use_page_cache(self._handle.fd)  # the end of a file is no whole block
            self.write(self._filling[whole : self._filled_bytes])
        os.fsync(self._handle.fd)

    def write(self, rest: memoryview) -> None:
        """Append to the file. Blocks."""
        while rest:
            try:
                count = os.pwrite(self._handle.fd, rest, self.written_bytes)
            except OSError as error:
                if error.errno != errno.EINVAL or not _is_direct(self._handle.fd):
                    raise
                _use_page_cache(self._handle.fd)  # it took the flag, and now wants larger blocks than ours
                continue
            self.written_bytes += count
            rest = rest[count:]


class DirectReader:
    """Reads anywhere in a file. Methods block; any thread. Raises `OSError`."""

    def __init__(self, path: Path) -> None:
        self._handle = _open(path, os.O_RDONLY)
        self.size_bytes = os.fstat(self._handle.fd).st_size  # when it was opened

    @property
    def linked(self) -> bool:
        """Whether the file still has a name."""
        return os.fstat(self._handle.fd).st_nlink > 0

    def read(self, offset: int, size_bytes: int) -> memoryview:
        """Up to `size_bytes` from the disk, fewer at the end of the file, in memory of their own."""
        before = offset % _BLOCK_BYTES
        wanted = before + size_bytes
        blocks_bytes = -(-wanted // _BLOCK_BYTES) * _BLOCK_BYTES
        buffer = _aligned(blocks_bytes)
        found = self._read_into(buffer, offset - before, wanted)
        return buffer[before : max(min(found, wanted), before)].toreadonly()

    def _read_into(self, buffer: memoryview, offset: int, wanted: int) -> int:
        found = 0
        while found < wanted:
            try:
                count = os.preadv(self._handle.fd, [buffer[found:]], offset + found)
            except OSError as error:
                if error.errno != errno.EINVAL or not _is_direct(self._handle.fd):
                    raise
                _use_page_cache(self._handle.fd)  # as in `DirectWriter`
                continue
            if not count:
                break
            found += count
        return found


def _aligned(size_bytes: int) -> memoryview:
    memory = bytearray(size_bytes + _BLOCK_BYTES)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % _BLOCK_BYTES
    return memoryview(memory)[start : start + size_bytes]


def _is_direct(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & _DIRECT)
