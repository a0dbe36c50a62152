"""What goes on behind a client's calls, and where its newer maps come from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Protocol

from coffre.cluster.map import ClusterMap
from coffre.cluster.membership import VerifiedMap

__all__ = ["Background", "MapSource"]


class Background:
    """Tasks that go on behind the calls of a client, and end with it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run this beside the client's calls until `stop`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Cancel what runs, and wait until it has ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class MapSource(Protocol):
    """Where newer maps come from, verified (`coffre.cluster.membership.map_source.ClusterMaps`)."""

    async def newer(self, than: ClusterMap) -> VerifiedMap | None:
        """A newer map, None when no node that answers has one."""

    def watch(self) -> AsyncGenerator[VerifiedMap]:
        """Maps as they are published. Raises `RetryableError` when that cannot be known any more."""
