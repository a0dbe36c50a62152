"""What gRPC reads from the environment when it is imported; the first import of this room, so that it is in time.

It writes lines of its own to standard error, which are neither logs nor for users. And its handlers of forks begin
threads anew in a child, which then abort it: clients are not for use after a fork (transport/process.py).
"""

from __future__ import annotations

import os

__all__ = ["SETTINGS"]

SETTINGS = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
