"""How many seeds: a few in the default run, as many as COFFRE_FUZZ_SEEDS says (first, or first..last) otherwise."""

from __future__ import annotations

import os

import pytest

_DEFAULT = "0..11"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        first, _, last = os.environ.get("COFFRE_FUZZ_SEEDS", _DEFAULT).partition("..")
        metafunc.parametrize("seed", range(int(first), int(last or first) + 1))
