"""Where a fetched object goes: a regular file that appears whole, or what is no regular file and is written into."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

__all__ = ["Write", "open_in_folder", "open_target", "unjoined"]

Write = Callable[[bytes | memoryview], Awaitable[None]]
_T = TypeVar("_T")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
# What this process has open already is written on with, as it stands: it may be a file that others append to.
_OWN = re.compile(r"(/dev|/proc/self)/fd/(?P<number>[0-9]+)|/dev/(?P<name>stdout|stderr)")
_STANDARD = {"stdout": 1, "stderr": 2}
_INTO = os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC


async def unjoined(call: Callable[[], _T]) -> _T:
    """Run what may block for ever (a pipe without a reader) in a thread that keeps no interpreter from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_T] = loop.create_future()

    def tell(result: _T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # it is a _T where there is no error
        else:
            done.set_exception(error)

    def work() -> None:
        result: _T | None = None
        failure: BaseException | None = None
        try:
            result = call()
        except OSError as error:
            failure = error
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=work, name="coffre-blocking", daemon=True).start()
    return await done


@asynccontextmanager
async def open_target(path: Path, tag: str) -> AsyncIterator[Write]:
    """`path`, to be written: links are followed, and what is no regular file is written into.

    A regular file, or one that is not there yet, appears when the block ends well, whole and synced, in the mode of the
    one that it replaces; until then its bytes are beside it under a name that has `tag`. Raises `OSError`.
    """
    if own := _OWN.fullmatch(str(path)):
        async with _write_into(os.dup(int(own["number"] or _STANDARD[own["name"]]))) as write:
            yield write
        return
    found = _look(path)
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    if found is not None and (not stat.S_ISREG(found.st_mode) or not _is_same(place, found)):
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        # Opening a pipe waits for its reader. A regular file that has lost its name is written from its beginning.
        flags = _INTO | (os.O_TRUNC if stat.S_ISREG(found.st_mode) else 0)
        async with _write_into(await unjoined(lambda: os.open(path, flags))) as write:
            yield write
        return
    async with _open_part(place.parent, None, place.name, tag, found) as write:
        yield write


@asynccontextmanager
async def open_in_folder(folder: int, name: str, tag: str) -> AsyncIterator[Write]:
    """The file `name` of an open folder, as `open_target` has it; but a link or what is no regular file is refused.

    Raises `OSError`.
    """
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        found = None
    if found is not None and not stat.S_ISREG(found.st_mode):
        what = "a link" if stat.S_ISLNK(found.st_mode) else "no regular file"
        raise FileExistsError(errno.EEXIST, f"there is something of that name, {what}", name)
    async with _open_part(None, folder, name, tag, found) as write:
        yield write


def _look(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None  # or a link that leads to where nothing is yet


def _is_same(place: Path, found: os.stat_result) -> bool:
    """Whether the file of that name is the one that was found: what /dev/fd leads to may have lost its name."""
    with suppress(OSError):
        return os.path.samestat(place.lstat(), found)
    return False


@asynccontextmanager
async def _open_part(
    parent: Path | None, folder: int | None, name: str, tag: str, replaced: os.stat_result | None
) -> AsyncIterator[Write]:
    """A file that is renamed to `name` when the block ends well, and removed when it does not."""
    part, last = f".coffre-{tag}.part", name  # short: `name` may be as long as names get
    if parent is not None:
        part, last = str(parent / part), str(parent / name)
    loop = asyncio.get_running_loop()
    descriptor = os.open(part, _NEW, 0o666 if replaced is None else 0o600, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:

            async def write(piece: bytes | memoryview) -> None:
                await loop.run_in_executor(None, file.write, piece)

            yield write
            file.flush()
            if replaced is not None:
                _be_like(file.fileno(), replaced)
            await loop.run_in_executor(None, os.fsync, file.fileno())
        os.replace(part, last, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(part, dir_fd=folder)
        raise


def _be_like(descriptor: int, replaced: os.stat_result) -> None:
    """Give a file the mode of the one that it replaces, and its owner where this user may."""
    mode = stat.S_IMODE(replaced.st_mode)
    try:
        os.fchown(descriptor, replaced.st_uid, replaced.st_gid)
    except PermissionError:
        mode &= 0o777  # the special bits were meant for another owner
    os.fchmod(descriptor, mode)


@asynccontextmanager
async def _write_into(descriptor: int) -> AsyncIterator[Write]:
    """A device, a pipe, a terminal, a socket. It is closed."""
    writing = False

    def write_all(piece: bytes | memoryview) -> None:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    async def write(piece: bytes | memoryview) -> None:
        nonlocal writing
        writing = True
        try:
            await unjoined(lambda: write_all(piece))
        except OSError:
            writing = False
            raise
        writing = False

    try:
        yield write
        with suppress(OSError):  # a pipe cannot be synced
            os.fsync(descriptor)
    finally:
        if not writing:  # else a thread is still at it, and another file must not get its number
            os.close(descriptor)
