"""Make a failing seed smaller: `make shrink SEED=4711` takes faults, changes, clients and work away while it fails.

Each thing taken away is a cut with a name, such as `without=crash` or `clients=1`. What is printed at the end runs the
least that fails again, with its trace, as often as it takes to understand it.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tests.simulation.__main__ import report
from tests.simulation.plan import Plan, draw_plan
from tests.simulation.run import run_plan

__all__ = ["cut", "cuts_of", "kind_of", "shrink"]

_COUNTS = ("clients", "workers", "operations", "keys")
_PARTS = ("large", "offset", "drift")
_OF_THE_NETWORK = ("loss", "breaks", "duplication", "spread")


def cut(plan: Plan, what: str) -> Plan:
    """The plan without something, or with less of it. Raises `ValueError` when that is the same."""
    smaller = _cut(plan, what)
    if smaller == plan:
        raise ValueError(f"{what!r} takes nothing away")
    return smaller


def _cut(plan: Plan, what: str) -> Plan:
    name, _, value = what.partition("=")
    if name == "without":
        troubles = {kind: pace for kind, pace in plan.agreement.troubles.items() if kind.value != value}
        faults = {kind: pace for kind, pace in plan.faults.items() if kind.value != value}
        return replace(plan, faults=faults, agreement=replace(plan.agreement, troubles=troubles))
    if what == "changes=none":
        return replace(plan, changes=None)
    if what == "repair=none":  # nobody moves what a change of the map is to move
        return replace(plan, repair=None, changes=None)
    if what == "conditional=none":
        return replace(plan, agreement=replace(plan.agreement, share=0.0))
    if name in _COUNTS:
        return replace(plan, **{name: int(value)})  # type: ignore[arg-type]  # all of them are whole numbers
    if name in _PARTS and value == "0":
        return replace(plan, **{name: 0.0})  # type: ignore[arg-type]  # all of them are floats
    if name in _OF_THE_NETWORK and value == "0":
        return replace(plan, quality=replace(plan.quality, **{name: 0.0}))
    raise ValueError(f"{what!r} is no cut")


def cuts_of(plan: Plan) -> Iterator[str]:
    """What can be taken away from it, the most first."""
    if plan.repair is not None:
        yield "repair=none"
    if plan.changes is not None:
        yield "changes=none"
    for kind in (*plan.agreement.troubles, *plan.faults):
        yield f"without={kind.value}"
    if plan.agreement.share:
        yield "conditional=none"
    for name in _COUNTS:
        count: int = getattr(plan, name)
        yield from (f"{name}={less}" for less in sorted({1, count // 2, count - 1}) if 0 < less < count)
    yield from (f"{name}=0" for name in _PARTS if getattr(plan, name))
    yield from (f"{name}=0" for name in _OF_THE_NETWORK if getattr(plan.quality, name))


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> Iterator[str]:
    """Yield the cuts that may all be made, one after the other, so that the plan still fails."""
    while True:
        for what in cuts_of(plan):
            smaller = cut(plan, what)
            if fails(smaller):
                plan = smaller
                yield what
                break
        else:
            return


def kind_of(failure: str) -> str:
    """What a failure is about, without its numbers: another kind of failure is another fault."""
    return re.sub(r"[\d.]+", "", failure.partition("\n")[0])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make shrink", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("cuts", nargs="*", help="made already")
    parser.add_argument(
        "--replay", action="store_true", help="make these cuts, run it once, and show what breaks"
    )
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # nodes write down what they meet, which is nothing unusual here
    plan, cuts = draw_plan(options.seed), list(options.cuts)
    for what in cuts:
        plan = cut(plan, what)
    result = run_plan(plan)
    if not result.failures:
        print(f"{result}\nnothing fails")
        return 0
    if options.replay:
        print(report(result))
        return 1
    kind = kind_of(result.failures[0])
    print(f"seed {options.seed} fails: {kind}", flush=True)
    for what in shrink(
        plan, lambda smaller: any(kind_of(each) == kind for each in run_plan(smaller).failures)
    ):
        print(f"  still with {what}", flush=True)
        cuts.append(what)
        plan = cut(plan, what)
    print(f"the least that fails: {plan.summary()}")
    print(f'  see it: make shrink SEED={options.seed} ARGS="{" ".join([*cuts, "--replay"])}"')
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
