"""How much a test does: enough to keep its promise in `make test`, more of the same in `make test-all`.

A test that repeats something (rounds, seeds, moments, seconds) asks `amount` how often. What has no short form is
marked `long`, beside tests of the same file that are not (tests/test_tidy.py looks).
"""

from __future__ import annotations

import os

__all__ = ["LONG", "amount"]

LONG = os.environ.get("COFFRE_LONG_TESTS") == "1"  # set by `make test-all`


def amount(short: int, long: int) -> int:
    """`short` in the default run, `long` in that of everything."""
    return long if LONG else short
