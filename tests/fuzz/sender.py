"""Who sends nonsense, and what may be said to it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from coffre.cluster.errors import CoffreError, InternalError
from google.protobuf.message import Message

from tests.fuzz.mangle import mangle

__all__ = ["Sender"]

_SECONDS = 20.0


class Sender:
    """Sends requests of several kinds; those who make them have them mangled, mostly."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._kinds: Sequence[Callable[[], Awaitable[object]]] = ()

    async def is_refused(self) -> bool:
        """Send one: whether it is refused in the project's own words. Raises everything else, which would be a bug."""
        try:
            async with asyncio.timeout(_SECONDS):
                await self._rng.choice(self._kinds)()
        except InternalError:
            raise
        except CoffreError:
            return True
        return False

    def _mangled(self, request: Message) -> None:
        for _ in range(self._rng.choice([0, 1, 1, 2, 4])):
            mangle(self._rng, request)
