"""What a node may say to nonsense."""

from __future__ import annotations

from collections.abc import Awaitable

from coffre.cluster.errors import CoffreError, InternalError

__all__ = ["is_refused"]


async def is_refused(call: Awaitable[object]) -> bool:
    """Whether a call is refused in the project's own words. Raises everything else, which would be a bug."""
    try:
        await call
    except InternalError:
        raise
    except CoffreError:
        return True
    return False
