"""A session: one lease that its holder keeps alive, for everything that must vanish when the holder does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coffre.cluster.clock import Clock
from coffre.cluster.coordination.seam import Coordination
from coffre.cluster.errors import NotFound, RetryableError

__all__ = ["SESSION_SECONDS", "Session"]

SESSION_SECONDS = 15
_RENEWALS = 3  # in the length of the lease
_RETRY_SECONDS = 0.5


class Session:
    """Grants its lease with the first use, keeps it alive, and notices when it is lost.

    The holder's own clock decides: a lease counts as lost once its length has passed since the last renewal that
    succeeded was *begun*. The store lets it live at least that long.
    """

    def __init__(self, coordination: Coordination, clock: Clock, seconds: int = SESSION_SECONDS) -> None:
        self._coordination = coordination
        self._clock = clock
        self._seconds = seconds
        self._lease = 0
        self._good_until = 0.0
        self._granting = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        self.on_loss: Callable[[], None] | None = None

    def holds(self, lease: int) -> bool:
        """Whether everything on `lease` is still this holder's."""
        return lease == self._lease != 0 and self._clock.monotonic() < self._good_until

    async def lease(self) -> int:
        """The number of a lease that is alive. Raises as `Coordination.grant`."""
        async with self._granting:
            if not self.holds(self._lease):
                self.drop()
                begun = self._clock.monotonic()
                granted = await self._coordination.grant(self._seconds)
                self._lease, self._good_until = granted.number, begun + granted.seconds
                self._keeping = asyncio.create_task(self._keep_alive(granted.number, granted.seconds))
            return self._lease

    def drop(self) -> None:
        """Take the lease for lost, and let it run out; the next use begins another."""
        lost, self._lease = self._lease, 0
        if self._keeping is not None:
            self._keeping.cancel()
            self._keeping = None
        if lost and self.on_loss is not None:
            self.on_loss()

    async def _keep_alive(self, lease: int, seconds: int) -> None:
        while True:
            await self._clock.sleep(seconds / _RENEWALS)
            while True:
                begun = self._clock.monotonic()
                try:
                    await self._coordination.keep_alive(lease)
                    self._good_until = begun + seconds
                    break
                except NotFound:
                    break
                except RetryableError:
                    if self._clock.monotonic() >= self._good_until:
                        break
                    await self._clock.sleep(_RETRY_SECONDS)
            if not self.holds(lease):
                self._keeping = None  # this task: it must not cancel itself
                if self._lease == lease:
                    self.drop()
                return

    async def close(self) -> None:
        """End the lease, and with it all that hangs on it. When that cannot be told, it runs out by itself."""
        lease = self._lease
        self.on_loss = None
        self.drop()
        if lease:
            try:
                await self._coordination.revoke(lease)
            except RetryableError:
                return  # it runs out
