"""Work in the background outlives what it meets, or says that it has ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from coffre.cluster.clock import ManualClock
from coffre.cluster.errors import CoffreError, IntegrityError, ResourceExhausted, Unavailable
from coffre.node.following import PeerClocks
from coffre.node.memory import MemoryStore
from coffre.node.server import _reclaim_forever, _watched


class Failing(MemoryStore):
    """A store that cannot reclaim, for one reason after the other, and then can."""

    def __init__(self, errors: Iterator[CoffreError]) -> None:
        super().__init__(ManualClock())
        self._errors = errors
        self.done = asyncio.Event()

    async def reclaim(self, *, expire: bool = True) -> int:
        for error in self._errors:
            raise error
        self.done.set()
        return 0


async def test_reclaiming_goes_on_whatever_the_store_says(caplog: pytest.LogCaptureFixture) -> None:
    """A rotten row of the index, too: else nothing that is deleted would ever be freed."""
    errors = [Unavailable("x"), IntegrityError("a row"), IntegrityError("a row"), ResourceExhausted("full")]
    store, clock = Failing(iter(errors)), ManualClock()
    with caplog.at_level(logging.WARNING):
        task = asyncio.create_task(_reclaim_forever(store, PeerClocks(clock)))
        for _ in range(8):
            for _ in range(10):
                await asyncio.sleep(0)
            clock.advance(1)
        await asyncio.wait_for(store.done.wait(), 5)
        task.cancel()
    said = [(record.levelno, record.error) for record in caplog.records]  # type: ignore[attr-defined]
    assert said == [
        (logging.WARNING, "Unavailable"),
        (logging.ERROR, "IntegrityError"),
        (logging.WARNING, "ResourceExhausted"),
    ]


async def test_a_bug_that_ends_work_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def buggy() -> None:
        raise ZeroDivisionError("names/of/somebody")

    async def forever() -> None:
        await asyncio.Event().wait()

    tasks = [asyncio.create_task(buggy()), asyncio.create_task(forever())]
    _watched(tasks)
    await asyncio.wait(tasks[:1])
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    (record,) = caplog.records
    assert (record.levelname, record.error) == ("CRITICAL", "ZeroDivisionError")  # type: ignore[attr-defined]
    assert "somebody" not in record.getMessage()
