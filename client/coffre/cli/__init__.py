"""The `coffre` command: objects here, and the branches that the other rooms bring (`coffre.commands` entry points)."""

from __future__ import annotations

import ctypes
import gc
import os
import sys

__all__ = ["main"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 32 << 20
_MAPPED_BYTES = 8 << 20


def _keep_freed_memory() -> None:
    """Let malloc keep a little of what is freed: messages of a megabyte come and go, and each would otherwise be
    mapped, faulted in page by page and given back. glibc; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _collect_seldom() -> None:
    """Look for cycles of objects less often: operations make thousands of objects, and hardly a cycle."""
    gc.set_threshold(10_000, 20, 20)


def main() -> None:
    """Entry point of the `coffre` command."""
    # gRPC's own lines are neither JSON nor for users, and it reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _keep_freed_memory()
    _collect_seldom()
    from coffre.cli._tree import tree

    sys.exit(tree(prog_name="coffre"))
