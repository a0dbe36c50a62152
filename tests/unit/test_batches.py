"""Operations written by hand are those that protobuf writes, and a vote's byte says what an outcome would."""

from __future__ import annotations

import random

from coffre.proto import coffre_pb2 as pb
from coffre.proto.batches import (
    VOTES,
    accept_operation,
    accept_operations,
    expanded,
    outcome_of,
    outcomes_of,
    varint,
    vote_of,
)
from hypothesis import given
from hypothesis import strategies as st

U32 = st.integers(0, 2**32 - 1)
COMMON = st.builds(
    pb.Accept,
    bucket=st.text(max_size=5),
    key=st.text(max_size=200),
    sealed=st.builds(
        pb.SealedManifest, manifest=st.binary(max_size=300), placement=st.lists(U32, max_size=6)
    ),
    lock=st.booleans(),
)


@given(COMMON, st.none() | st.integers(0, 254), st.binary(max_size=300), U32, st.booleans())
def test_an_accept_written_by_hand(
    common: pb.Accept, shard_index: int | None, cell: bytes, cell_crc: int, staged: bool
) -> None:
    written = accept_operation(common.SerializeToString(), shard_index, cell, cell_crc, staged=staged)
    if shard_index is not None:
        common.shard_index = shard_index
        if staged:
            common.staged = True
        else:
            common.cell, common.cell_crc = cell, cell_crc
    assert pb.Operation.FromString(written) == pb.Operation(accept=common)


@given(COMMON, st.integers(0, 300), st.integers(1, 200), st.randoms())
def test_the_accepts_of_all_cells_of_an_object(
    common: pb.Accept, cell_bytes: int, count: int, source: random.Random
) -> None:
    cells = [memoryview(source.randbytes(cell_bytes)) for _ in range(count)]
    crcs = [source.getrandbits(32) for _ in cells]
    raw = common.SerializeToString()
    assert accept_operations(raw, cells, crcs) == [
        accept_operation(raw, index, cell, crc)
        for index, (cell, crc) in enumerate(zip(cells, crcs, strict=True))
    ]


@given(st.integers(0, 2**35))
def test_varints(number: int) -> None:
    assert pb.StatusReply.FromString(b"\x18" + varint(number)).epoch == number


def test_a_packed_request_is_the_same_bytes() -> None:
    operations = [pb.Operation(read=pb.Read(bucket="b", key=f"k{i}")) for i in range(3)]
    plain = pb.BatchRequest(epoch=3, tenant="t", operations=operations, settled=[bytes(16)], number=9)
    packed = pb.PackedBatchRequest(
        epoch=3,
        tenant="t",
        operations=[operation.SerializeToString() for operation in operations],
        settled=[bytes(16)],
        number=9,
    )
    assert packed.SerializeToString() == plain.SerializeToString()


def test_every_vote_says_what_an_outcome_would() -> None:
    seen = set()
    for state in range(5):
        for has_shard in (False, True):
            for replaces in (False, True):
                vote = vote_of(state, has_shard, replaces)
                state_of = pb.State.ValueType(state)
                assert outcome_of(vote) == pb.Outcome(state=state_of, has_shard=has_shard, replaces=replaces)
                seen.add(vote)
    assert {0, *seen} == set(VOTES)


def test_outcomes_come_in_the_order_of_the_operations() -> None:
    vote = vote_of(pb.STATE_ACCEPTED, True, False)
    reply = pb.BatchReply(
        votes=bytes((0, vote, 0)), outcomes=[pb.Outcome(detail="a"), pb.Outcome(detail="b")], number=4
    )
    assert [found if isinstance(found, int) else found.detail for found in outcomes_of(reply)] == [
        "a",
        vote,
        "b",
    ]
    whole = expanded(reply)
    assert [outcome.detail for outcome in whole.outcomes] == ["a", "", "b"]
    assert (whole.number, whole.votes) == (4, b"")
    assert expanded(whole) == whole
