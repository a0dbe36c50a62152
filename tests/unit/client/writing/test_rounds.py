"""Who may hold a version after one round of Accepts, and how a refusal is told."""

from __future__ import annotations

import asyncio

import pytest
from coffre.client.writing._rounds import Round
from coffre.client.writing._writes import _refusal
from coffre.cluster.errors import (
    ClockSkew,
    CoffreError,
    DeadlineExceeded,
    NotSent,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)
from coffre.cluster.map import ClusterMap, Domain, Electorates, MapNode, Policy
from coffre.proto import coffre_pb2 as pb

NODES = tuple(
    MapNode(i, f"n{i}", f"127.0.0.1:{7000 + i}", f"s{i}", "x", "o", "FR", 1 << 40) for i in range(1, 4)
)
MAP = ClusterMap("test", 1, 16, NODES, (Policy("2+1", 2, 1, ("FR",), Domain.NODE),), "2+1")
FULL = pb.Outcome(code=ResourceExhausted.code, detail="full")


@pytest.fixture
async def round_() -> Round:
    electorate = Electorates(MAP).of("clinic", "b", 0)
    made = Round(electorate, True, asyncio.get_running_loop())
    for number in (1, 2, 3):
        made.expect(number)
    return made


async def test_what_never_left_is_held_by_nobody(round_: Round) -> None:
    for number in (1, 2):
        round_.failed(number, number - 1, NotSent("the connection was refused"))
    round_.failed(3, 2, Unavailable("the connection broke"))
    assert round_.possible_holders == {3}


async def test_who_is_asked_again_may_hold_it_until_the_last_answer(round_: Round) -> None:
    round_.failed(1, 0, NotSent("the connection was refused"))
    round_.heard(2, 1, FULL)
    round_.heard(3, 2, FULL)
    assert round_.possible_holders == set()
    round_.expect(1)
    round_.expect(2)
    assert round_.possible_holders == {1, 2}
    round_.failed(1, 0, NotSent("the connection was refused"))
    assert round_.possible_holders == {2}
    round_.took(2, 1, 0)
    assert round_.possible_holders == {2}


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([DeadlineExceeded("late")] * 2, Unavailable),
        ([NotSent("refused")] * 3, Unavailable),
        ([NotSent("refused"), DeadlineExceeded("late")], Unavailable),
        ([ResourceExhausted("full")] * 2, ResourceExhausted),
        ([ClockSkew("ahead")] * 2, ClockSkew),
    ],
)
async def test_a_refusal_says_that_nothing_was_written(
    round_: Round, errors: list[CoffreError], kind: type[CoffreError]
) -> None:
    for number, error in enumerate(errors, 1):
        round_.failed(number, number - 1, error)
    refusal = _refusal(round_)
    assert type(refusal) is kind
    assert str(refusal).startswith("nothing was written: ")


async def test_what_no_repetition_mends_is_told_as_it_is(round_: Round) -> None:
    round_.failed(1, 0, PermissionDenied("not you"))
    assert type(_refusal(round_)) is PermissionDenied
