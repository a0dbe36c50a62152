"""Run seeds: `python -m tests.simulation 0..299`. Prints one line a seed, and what broke with how to run it again."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.run import Result, run_seed
from tests.simulation.stories import STORIES, tell

__all__ = ["main", "parse_seeds"]


def parse_seeds(text: str) -> range:
    """`a..b` with both ends, or one seed. Raises `ValueError`."""
    first, dots, last = text.partition("..")
    begin = int(first)
    end = int(last) if dots else begin
    if not 0 <= begin <= end:
        raise ValueError(f"{text!r} is not a range of seeds")
    return range(begin, end + 1)


def report(result: Result, story: str = "") -> str:
    """What went wrong with a seed, and how to see it again."""
    again = f"make sim SEEDS={result.seed}"
    again += f" ARGS='--story \"{story}\"'" if story else f"; make it smaller: make shrink SEED={result.seed}"
    return "\n".join(
        [
            f"seed {result.seed} FAILED:",
            *(f"  {failure}" for failure in result.failures),
            "  before that:",
            *(f"  {line}" for line in result.trace),
            f"  run it again: {again}",
        ]
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests.simulation", description=__doc__)
    parser.add_argument("seeds", help="a..b, or one")
    parser.add_argument("--workers", type=int, default=2, help="processes at once")
    parser.add_argument("--quiet", action="store_true", help="print what failed, and the sum, alone")
    parser.add_argument("--story", choices=STORIES, help="tell this one instead of drawing work and faults")
    options = parser.parse_args(arguments)
    run = partial(tell, options.story) if options.story else run_seed
    seeds = parse_seeds(options.seeds)
    logging.disable(logging.CRITICAL)  # nodes write down what they meet, which is nothing unusual here
    failed: list[int] = []
    operations, events, begun = 0, 0, time.monotonic()
    with ProcessPoolExecutor(min(options.workers, len(seeds))) as pool:
        for result in pool.map(run, seeds, chunksize=4 if len(seeds) > 16 else 1):
            operations, events = operations + result.operations, events + result.events
            if not options.quiet:
                print(result, flush=True)
            if result.failures:
                failed.append(result.seed)
                print(report(result, options.story or ""), flush=True)
    took = f"{len(seeds)} seeds in {time.monotonic() - begun:.0f} s"
    print(f"{took}, {operations} operations, {events} events; failed: {failed or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
