"""A tenant's machine in the simulated world: it codes objects anew when their bucket has got another policy.

A run of `coffre bucket recode` is a process of its own, which may die at any moment. It is repeated until one finds
nothing that is left to do.
"""

from __future__ import annotations

import asyncio

from coffre.client.model import RecodeReport
from coffre.cluster.errors import CoffreError, InternalError

from tests.simulation.world import BUCKET, TENANT, World

__all__ = ["Recoding"]

RETRY_SECONDS = 2.0
LIFE_SECONDS = 2.0  # of a run that dies, at most


class Recoding:
    """Runs of one bucket, one after the other."""

    def __init__(self, world: World, deaths: float) -> None:
        """`deaths`: part of the runs that die."""
        self._world = world
        self._rng = world.chance("coding anew")
        self._deaths = deaths

    def be_calm(self) -> None:
        """From now on no run dies."""
        self._deaths = 0.0

    async def until_done(self) -> None:
        """Repeat it until everything is coded as the newest map says."""
        while True:
            report = await self._run()
            wanted = self._world.cluster_map.policy_of(TENANT, BUCKET).name
            if report is not None and (report.policy, report.objects) == (wanted, 0):
                return
            await self._world.sleep(RETRY_SECONDS)

    async def _run(self) -> RecodeReport | None:
        """One run from its start to its end. None when it failed, or died: nobody knows then what it did."""
        member = self._world.member(works=False)
        task = member.actor.spawn(member.client.recode(BUCKET))
        dies = self._rng.random() < self._deaths
        try:
            await asyncio.wait({task}, timeout=LIFE_SECONDS * self._rng.random() if dies else None)
            if not member.alive or not task.done():
                self._note(member.name, "dies, which coded anew")
                return None
            report = task.result()
            self._note(member.name, "coded anew", report.done_objects, "of", report.objects, *report.failed)
            self._world.faults["coded anew"] += report.done_objects
            return report
        except InternalError as error:
            self._world.fail(f"{member.name} met a bug: {error!r}")
            return None
        except CoffreError as error:
            self._note(member.name, "codes nothing anew:", repr(error))
            return None
        finally:
            member.kill()
            await asyncio.gather(task, return_exceptions=True)

    def _note(self, *what: object) -> None:
        self._world.journal.note("weather:", *what)
