"""What is left of a seed that fails is what it takes to fail."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.simulation.agreement import Trouble
from tests.simulation.plan import Fault, Plan, draw_plan
from tests.simulation.shrink import cut, cuts_of, kind_of, main, shrink


def rich() -> Plan:
    """A plan that has something of everything."""
    plan = next(plan for plan in map(draw_plan, range(100)) if plan.changes is not None)
    return replace(
        plan,
        faults=dict.fromkeys(Fault, 1.0),
        agreement=replace(plan.agreement, troubles=dict.fromkeys(Trouble, 1.0), share=0.5),
        quality=replace(plan.quality, loss=0.1, breaks=0.1, duplication=0.1),
        clients=4,
        operations=15,
        keys=5,
        drift=0.1,
        offset=1.0,
        large=0.3,
    )


def test_what_a_failure_takes_stays_and_the_rest_goes() -> None:
    plan = rich()

    def fails(smaller: Plan) -> bool:
        return Fault.CRASH in smaller.faults and smaller.clients >= 2 and smaller.operations >= 5

    for what in shrink(plan, fails):
        plan = cut(plan, what)
    assert list(plan.faults) == [Fault.CRASH]
    assert not plan.agreement.troubles
    assert (plan.clients, plan.operations, plan.workers, plan.keys) == (2, 5, 1, 1)
    assert plan.changes is None
    assert plan.repair is None
    assert (plan.quality.loss, plan.drift, plan.offset, plan.large) == (0.0, 0.0, 0.0, 0.0)


def test_every_cut_takes_something_away() -> None:
    plan = rich()
    for what in cuts_of(plan):
        assert cut(plan, what) != plan, what
    for nonsense in ("without", "clients", "changes=all", "moon=0"):
        with pytest.raises(ValueError, match=r"no cut|nothing away|invalid literal"):
            cut(plan, nonsense)


def test_failures_are_alike_whatever_their_numbers() -> None:
    assert kind_of("seed 4 took 3.5 s\nx") == kind_of("seed 17 took 22 s\ny")
    assert kind_of("one thing") != kind_of("another thing")


def test_a_seed_that_passes_has_nothing_to_shrink(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["3", "operations=2", "clients=1"]) == 0
    assert "nothing fails" in capsys.readouterr().out
