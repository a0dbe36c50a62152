"""Some dozens of seeds, or hundreds, and that a seed is one run and no other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.amounts import amount
from tests.simulation.__main__ import parse_seeds, report
from tests.simulation.agreement import Trouble
from tests.simulation.maps import Change
from tests.simulation.plan import Fault, draw_plan
from tests.simulation.run import run_seed

SEEDS = amount(40, 100)
BATCH = 10
ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_no_promise_is_broken(first: int) -> None:
    for seed in range(first, first + BATCH):
        result = run_seed(seed)
        print(result)
        assert not result.failures, report(result)


@pytest.mark.long
def test_every_fault_happens_and_work_gets_done() -> None:
    changing = [seed for seed in range(1015, 1080) if draw_plan(seed).changes is not None][:6]
    results = [run_seed(seed) for seed in (*range(1000, 1015), *changing)]
    faults = sum((result.faults for result in results), Counter[str]())
    drawn = {kind.value for kind in (*Fault, *Trouble, *Change)}
    assert set(faults) == drawn | {"command", "taken back", "coded anew", "wrong", "still"}
    assert sum(result.operations for result in results) > 60 * len(results)


def test_a_seed_is_the_same_run_again_in_any_process() -> None:
    """The digest is over every message, commit, fault and outcome."""
    assert draw_plan(2016).changes is not None
    seeds = range(2016, 2016 + amount(2, 4))
    here = [run_seed(seed).digest for seed in seeds]
    assert len(set(here)) == len(here)
    assert [run_seed(seed).digest for seed in reversed(seeds)] == here[::-1]
    for hash_seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-m", "tests.simulation", f"{seeds[0]}..{seeds[-1]}", "--workers", "1"],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert [line.split()[2] for line in run.stdout.splitlines()[: len(seeds)]] == here


def test_ranges_of_seeds() -> None:
    assert parse_seeds("3..5") == range(3, 6)
    assert parse_seeds("7") == range(7, 8)
    for text in ("", "5..3", "-1..2", "a"):
        with pytest.raises(ValueError, match=r"invalid literal|not a range"):
            parse_seeds(text)
