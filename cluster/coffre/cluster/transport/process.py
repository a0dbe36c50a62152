"""What a fork leaves behind: gRPC works in the process that it was first used in, and in none that is forked from it.

gRPC's threads and locks are not there after a fork. A call would wait for ever, and the end of a connection, or of the
process, may end in an abort. So whatever has to do with gRPC remembers its process, is refused in every other one, and
is never freed there.
"""

from __future__ import annotations

import ctypes
import gc
import os
import weakref

from coffre.cluster.errors import InvalidArgument

__all__ = ["OwnProcess", "begin_use", "check_fork"]

_HOW = (
    "import before a fork and connect after it, in each process; or start processes by 'spawn' or 'forkserver' "
    '(docs/client.md, "Processes")'
)
_kept: weakref.WeakSet[object] = weakref.WeakSet()
_begun_in: int | None = None  # the process in which gRPC was first used


class OwnProcess:
    """The process that something belongs to. `kept`: is not freed in a process that is forked from it."""

    def __init__(self, what: str, kept: object) -> None:
        self._what = what
        self._pid = os.getpid()
        _kept.add(kept)

    @property
    def is_this(self) -> bool:
        """False after a fork."""
        return self._pid == os.getpid()

    def check(self) -> None:
        """Raise `InvalidArgument` in any process but its own."""
        if self._pid != os.getpid():
            raise InvalidArgument(
                f"{self._what} belongs to process {self._pid}, and this is process {os.getpid()}: {_HOW}"
            )


def check_fork() -> None:
    """Raise `InvalidArgument` where gRPC was in use before this process was forked: no call of it would return."""
    if _begun_in not in (None, os.getpid()):
        raise InvalidArgument(
            f"this process ({os.getpid()}) was forked from one ({_begun_in}) that had used a client already, and gRPC "
            f"does not survive that: {_HOW}"
        )


def begin_use() -> None:
    """Before a connection is opened. Raises as `check_fork`."""
    global _begun_in  # gRPC's own state is one for the whole process, too
    check_fork()
    _begun_in = os.getpid()


def _keep() -> None:
    """In a new child: nothing that has to do with gRPC is freed here, neither what is in use nor what lies about."""
    if _begun_in is None:
        return
    gc.freeze()
    for each in list(_kept):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))


os.register_at_fork(after_in_child=_keep)
