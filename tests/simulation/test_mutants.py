"""Bugs on purpose are caught: those that few seeds show, in the default run; `make test-mutants` runs all of them."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.amounts import amount
from tests.simulation.bugs import Mutant
from tests.simulation.mutants import MUTANTS, hunt

SEEDS_MAX = 100
QUICK = [mutant for mutant in MUTANTS if mutant.quick]
TOLD = [mutant for mutant in MUTANTS if mutant.story][:: amount(5, 1)]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_what_is_there(mutant: Mutant) -> None:
    for edit in mutant.edits:
        spec = importlib.util.find_spec(edit.module)
        assert spec is not None
        assert spec.origin is not None
        assert Path(spec.origin).read_text("utf-8").count(edit.text) == 1


@pytest.mark.parametrize("mutant", [*QUICK, *TOLD], ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        verdict = pool.submit(hunt, mutant, None if mutant.story else SEEDS_MAX).result()
    assert verdict.caught_by, "a bug of the protocol passed every seed"
    assert not verdict.failure.startswith("the weather broke")


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 10
    assert len(QUICK) >= 6
