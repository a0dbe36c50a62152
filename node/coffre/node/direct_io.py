"""Files that are written once, in order, and read at random, past the page cache: their data goes between disk and
an aligned buffer, and memory stays with the index. Where a filesystem does not do that, the page cache serves.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

__all__ = ["DirectReader", "DirectWriter", "FileHandle"]

_BLOCK_BYTES = 4096  # no disk in use asks for more, and every page is a whole number of them
_BUFFER_BYTES = 1 << 20
_DIRECT: int = getattr(os, "O_DIRECT", 0)


class FileHandle:
    """A file descriptor that closes when its last user lets go: a read under way outlives eviction and
    unlink."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


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
    """Appends to a new file. Methods block; one thread at a time. Raises `OSError`."""

    def __init__(self, path: Path) -> None:
        """Raises `FileExistsError`, too."""
        self._handle = _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))
        self._buffered_bytes = 0
        self._written_bytes = 0  # always a whole number of blocks before the end

    def append(self, parts: Iterable[bytes | memoryview]) -> None:
        """Take bytes; whole buffers of them go to the disk."""
        for part in parts:
            rest = memoryview(part)
            while rest:
                count = min(len(rest), _BUFFER_BYTES - self._buffered_bytes)
                self._buffer[self._buffered_bytes : self._buffered_bytes + count] = rest[:count]
                self._buffered_bytes += count
                rest = rest[count:]
                if self._buffered_bytes == _BUFFER_BYTES:
                    self._write(_BUFFER_BYTES)
                    self._buffered_bytes = 0

    def finish(self) -> None:
        """Write what is left, and sync the file. Its directory is the caller's."""
        whole = self._buffered_bytes - self._buffered_bytes % _BLOCK_BYTES
        if whole:
            self._write(whole)
        if whole < self._buffered_bytes:
            _use_page_cache(self._handle.fd)  # the end of a file is no whole block
            self._write_all(self._buffer[whole : self._buffered_bytes])
        os.fsync(self._handle.fd)

    def _write(self, size_bytes: int) -> None:
        try:
            self._write_all(self._buffer[:size_bytes])
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _use_page_cache(self._handle.fd)  # it took the flag, and now wants larger blocks than ours
            self._write_all(self._buffer[:size_bytes])

    def _write_all(self, rest: memoryview) -> None:
        while rest:
            written = os.pwrite(self._handle.fd, rest, self._written_bytes)
            self._written_bytes += written
            rest = rest[written:]


class DirectReader:
    """Reads anywhere in a file. Methods block; any thread. Raises `OSError`."""

    def __init__(self, path: Path) -> None:
        self._handle = _open(path, os.O_RDONLY)

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
