"""Histories that chance hardly ever draws, told step by step on a cluster that a seed draws, and checked as any run.

Each is one that happens: a clock set to local time, a machine that was suspended, a disk whose path is lost for hours.
`make sim SEEDS=0..9 ARGS="--story NAME"` tells one, mutants.py says which bug each of them shows.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.simulation import stories_of_time, stories_of_votes
from tests.simulation.plan import draw_calm
from tests.simulation.run import Result, Story, run_plan
from tests.simulation.stage import NOT_TOLD
from tests.simulation.world import World

__all__ = ["NOT_TOLD", "STORIES", "tell"]

STORIES: Mapping[str, Story] = {**stories_of_time.STORIES, **stories_of_votes.STORIES}


def tell(name: str, seed: int) -> Result:
    """Tell a story on the cluster of a seed. Raises `KeyError` when there is none of that name."""
    story = STORIES[name]

    async def rested(world: World) -> None:
        for host in world.hosts.values():
            assert host.repair is not None
            host.repair.rest()
        await story(world)

    return run_plan(draw_calm(seed, nodes=stories_of_votes.NODES.get(name, 6)), rested)
