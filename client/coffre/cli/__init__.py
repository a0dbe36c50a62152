"""The `coffre` command: objects here, and the branches that the other rooms bring (`coffre.commands` entry points)."""

from __future__ import annotations

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point of the `coffre` command."""
    # gRPC's own lines are neither JSON nor for users, and it reads this when it is imported.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from coffre.cli._tree import tree

    sys.exit(tree(prog_name="coffre"))
