"""What all parts of one client stand on: the cluster as it is seen, time, the keys' sealer, and the options."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from coffre.client.model import ClientOptions
from coffre.client.nodes import Views
from coffre.client.sealing import Sealer
from coffre.cluster.clock import Clock

__all__ = ["Ground"]


@dataclass(frozen=True)
class Ground:
    """Made once for a client, and handed to each of its parts."""

    views: Views
    clock: Clock
    sealer: Sealer
    pool: Executor  # for coding that takes long
    options: ClientOptions
    entropy: Callable[[int], bytes]
