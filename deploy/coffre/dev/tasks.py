"""Tasks that belong together: the first error ends them all and is raised as it is, not inside a group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

__all__ = ["for_each", "together"]

_Item = TypeVar("_Item")


@asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """An `asyncio.TaskGroup` that raises the first of its errors."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def for_each(
    items: Iterable[_Item], one: Callable[[_Item], Awaitable[object]], *, at_once: int
) -> None:
    """Do it for every item, so many at a time, in order. The first error ends it and is raised."""
    source = iter(items)

    async def work() -> None:
        for item in source:
            await one(item)

    async with together() as group:
        for _ in range(at_once):
            group.create_task(work())
