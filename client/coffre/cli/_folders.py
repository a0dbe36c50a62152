"""Folders on this machine: what is in one that is stored, and one that is filled and never left."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coffre.client._targets import Write, open_in_folder

__all__ = ["FoundFile", "Tree", "parts_of", "walk"]

LeaveOut = Callable[[str, str], None]
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file, or a link to one, in a folder that is walked."""

    path: Path
    relative: str  # its name from the folder on, with /
    size_bytes: int


def walk(folder: Path, leave_out: LeaveOut) -> Iterator[FoundFile]:
    """Every file below a folder, in the order of names; links to files are followed, links to folders are not.

    What is passed over is told to `leave_out`, by name and with the reason.
    """
    waiting = [(folder, "")]
    while waiting:
        place, prefix = waiting.pop()
        try:
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            leave_out(str(place), error.strerror or str(error))
            continue
        below = []
        for entry in found:
            path, relative = place / entry.name, prefix + entry.name
            reason = _reason(entry)
            if reason is None:
                yield FoundFile(path, relative, entry.stat().st_size)
            elif reason:
                leave_out(str(path), reason)
            else:
                below.append((path, relative + "/"))
        waiting += reversed(below)


def _reason(entry: os.DirEntry[str]) -> str | None:
    """Why an entry is no file to store; empty for a folder to go into, None for a file."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    try:
        if entry.is_dir(follow_symlinks=False):
            return ""
        mode = entry.stat().st_mode  # kept by the entry: asked once
    except OSError as error:
        if entry.is_symlink():
            return f"a link that leads nowhere: {error.strerror}"
        return error.strerror or str(error)
    if stat.S_ISDIR(mode):
        return "a link to a folder"
    return (
        None if stat.S_ISREG(mode) else f"{_KINDS.get(stat.S_IFMT(mode), 'no regular file')}, no regular file"
    )


class Tree:
    """A folder to be filled. Whatever names say, and whatever links lie in it, nothing is written outside of it."""

    def __init__(self, root: Path) -> None:
        """Makes the folder where there is none. Raises `OSError`."""
        root.mkdir(parents=True, exist_ok=True)
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give the folder back."""
        os.close(self._root)

    def make_folder(self, parts: tuple[str, ...]) -> None:
        """Make a folder and those above it. Raises `OSError`."""
        os.close(self._open_folder(parts))

    def _open_folder(self, parts: tuple[str, ...]) -> int:
        """Go down one name at a time, so that no link leads out; what is missing is made. Raises `OSError`."""
        here = os.dup(self._root)
        for part in parts:
            try:
                with suppress(FileExistsError):  # a folder, or what the next line says
                    os.mkdir(part, dir_fd=here)
                below = os.open(part, _FOLDER, dir_fd=here)
            finally:
                os.close(here)
            here = below
        return here

    async def write(self, parts: tuple[str, ...], tag: str, fill: Callable[[Write], Awaitable[int]]) -> int:
        """Fill the file of that name; it appears when it is whole. Returns what `fill` does. Raises `OSError`."""
        folder = self._open_folder(parts[:-1])
        try:
            async with open_in_folder(folder, parts[-1], tag) as write:
                return await fill(write)
        finally:
            os.close(folder)


def parts_of(relative: str) -> tuple[str, ...] | None:
    """The names on the way to a file; None where a key has such as no file can have (empty, `.`, `..`, with NUL)."""
    parts = tuple(relative.split("/"))
    return None if any(part in {"", ".", ".."} or "\0" in part for part in parts) else parts
