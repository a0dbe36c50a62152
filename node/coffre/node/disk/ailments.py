"""What is wrong with the disk of a store: what has ended its writing for good, and what passes when somebody helps."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import lmdb
from coffre.cluster.errors import CoffreError, ResourceExhausted, Unavailable

__all__ = ["FULL", "Ailments", "is_passing"]

_log = logging.getLogger(__name__)
FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
# What LMDB raises when a page is not what it should be. Other errors are of the disk, or of how it is used.
_DAMAGE = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.ProblemError,
    lmdb.BadTxnError,  # an earlier call in the transaction met one of these
)
_DESCRIPTORS_TEXT = (
    "it has no file descriptors left: look at what its process has open, "
    "raise LimitNOFILE of its service, restart it"
)


class Ailments:
    """Of one store. For any thread."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.failure = ""  # why nothing is written any more until the node is restarted, or replaced
        self.index_damaged = False

    # ---------------------------------------------------------------- what was met

    def disk_failed(self, error: Exception) -> None:
        """After a failed sync nobody knows what the disk holds: writing on could lose what was acknowledged."""
        self._fail(f"this node's disk failed ({_words(error)}); it writes nothing more until it is restarted")

    def index_failed(self, error: lmdb.Error) -> None:
        """LMDB met what it cannot work with: of damage or of the disk."""
        if not isinstance(error, _DAMAGE):
            self.disk_failed(error)
            return
        self.index_damaged = True
        self._fail(f"this node's index is damaged ({error}); it writes nothing more: replace this node")

    def index_read_badly(self, error: lmdb.Error) -> None:
        """The same while reading, where not every error says something of the disk."""
        if isinstance(error, _DAMAGE):
            self.index_failed(error)

    def row_damaged(self) -> None:
        """A row of the index does not verify. Everything else is served."""
        if not self.index_damaged:
            _log.critical("a row of this node's index does not verify: replace this node")
        self.index_damaged = True

    def _fail(self, text: str) -> None:
        if not self.failure:
            _log.critical("%s", text)
            self.failure = text

    def refusal(self, error: OSError) -> CoffreError:
        """What callers are told of an error in writing. The store is broken by it, unless it passes."""
        if error.errno in FULL:
            passing = self._passing()
            return ResourceExhausted(
                f"this node cannot write: {passing}" if passing else "the disk of this node is full"
            )
        if is_passing(error):
            return ResourceExhausted(f"this node cannot write: {_DESCRIPTORS_TEXT}")
        self.disk_failed(error)
        return Unavailable(self.failure)

    # ---------------------------------------------------------------- how it is now

    def cannot_write(self) -> str:
        """Why this store takes no writes now; empty while it does, or is merely full."""
        return self.failure or self._passing()

    def _passing(self) -> str:
        """What somebody can help without a restart."""
        try:
            stat = os.statvfs(self._root)
            os.close(os.open(self._root, os.O_RDONLY | os.O_DIRECTORY))
        except OSError as error:
            return (
                _DESCRIPTORS_TEXT if is_passing(error) else f"its disk cannot be looked at ({_words(error)})"
            )
        if stat.f_flag & os.ST_RDONLY:
            return "its file system is mounted read-only, as the kernel does when a disk fails: look at its log (dmesg)"
        if stat.f_files and not stat.f_favail:
            return "its file system has no inodes left: remove files that are not Coffre's"
        return ""


def is_passing(error: OSError) -> bool:
    """Whether an error says nothing of the disk: there were no file descriptors."""
    return error.errno in _NO_DESCRIPTORS


def _words(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
