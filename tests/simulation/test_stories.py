"""Each story ends well, as every run does; mutants.py has the bugs that make them end badly."""

from __future__ import annotations

import pytest

from tests.amounts import amount
from tests.simulation.__main__ import report
from tests.simulation.mutants import MUTANTS
from tests.simulation.stories import STORIES, tell

SEEDS = amount(2, 30)


@pytest.mark.parametrize("name", STORIES)
def test_it_ends_well(name: str) -> None:
    for seed in range(SEEDS):
        result = tell(name, seed)
        assert not result.failures, report(result, name)


def test_every_story_shows_some_mutant() -> None:
    assert {mutant.story for mutant in MUTANTS if mutant.story} == set(STORIES)
