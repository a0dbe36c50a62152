"""Small operations written by hand: what all nodes get alike is serialized once, and most outcomes are one byte.

The bytes are those of coffre.proto: `PackedBatchRequest` takes operations that are serialized already, and the tests
hold both equal. A vote is one byte of `BatchReply.votes`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from coffre.proto import coffre_pb2 as pb

__all__ = [
    "VOTES",
    "VOTE_REPLACES",
    "VOTE_SHARD",
    "VOTE_STATE",
    "accept_operation",
    "accept_operations",
    "expanded",
    "outcome_of",
    "outcomes_of",
    "varint",
    "vote_of",
]

VOTE_STATE = 0x07
VOTE_SHARD = 0x08
VOTE_REPLACES = 0x10
_DONE = 0x80
VOTES = bytes(vote for vote in range(256) if vote == 0 or (vote & 0xE0 == _DONE and vote & VOTE_STATE <= 4))
"""Every byte that a node may send."""

_ACCEPT = 0x0A  # tags: Operation.accept, then fields of Accept
_SHARD_INDEX, _CELL, _CELL_CRC = 0x20, 0x2A, 0x35
_STAGED = b"\x38\x01"
_FIXED32 = struct.Struct("<I")


def accept_operation(
    common: bytes,
    shard_index: int | None = None,
    cell: bytes | memoryview = b"",
    cell_crc: int = 0,
    *,
    staged: bool = False,
) -> bytes:
    """A serialized `Operation` with an Accept: `common` is an Accept without what differs from node to node."""
    if shard_index is None:
        return b"%c%b%b" % (_ACCEPT, varint(len(common)), common)
    if not staged:
        return _with_cell(common, shard_index, cell, cell_crc, _field(cell))
    head = b"%c%b%b" % (_SHARD_INDEX, varint(shard_index), _STAGED)
    return b"".join((b"\x0a", varint(len(common) + len(head)), common, head))


def accept_operations(
    common: bytes, cells: Sequence[bytes | memoryview], cell_crcs: Sequence[int]
) -> list[bytes]:
    """`accept_operation` for each of the cells of one object, which have one size: shard indexes count from 0."""
    field = _field(cells[0])
    return [
        _with_cell(common, index, cell, crc, field)
        for index, (cell, crc) in enumerate(zip(cells, cell_crcs, strict=True))
    ]


def _field(cell: bytes | memoryview) -> bytes:
    """What comes before a cell of this size; nothing before none."""
    return b"%c%b" % (_CELL, varint(len(cell))) if cell else b""


def _with_cell(common: bytes, index: int, cell: bytes | memoryview, crc: int, field: bytes) -> bytes:
    head = _HEADS[index]
    size_bytes = len(common) + len(head) + 4 + len(field) + len(cell)
    return b"".join((b"\x0a", varint(size_bytes), common, head, _FIXED32.pack(crc), field, cell))


def vote_of(state: int, has_shard: bool, replaces: bool) -> int:
    """The byte of a change that was done; `state` 0: the node keeps no state of that version."""
    return _DONE | state | (VOTE_SHARD if has_shard else 0) | (VOTE_REPLACES if replaces else 0)


def outcome_of(vote: int) -> pb.Outcome:
    """The outcome that a byte stands for."""
    return pb.Outcome(
        state=pb.State.ValueType(vote & VOTE_STATE),
        has_shard=bool(vote & VOTE_SHARD),
        replaces=bool(vote & VOTE_REPLACES),
    )


def outcomes_of(reply: pb.BatchReply) -> Iterator[int | pb.Outcome]:
    """The outcomes of a reply in order: a vote's byte, or a whole outcome. Ends early when some are missing."""
    outcomes = iter(reply.outcomes)
    for vote in reply.votes:
        if vote:
            yield vote
            continue
        outcome = next(outcomes, None)
        if outcome is None:
            return
        yield outcome
    yield from outcomes


def expanded(reply: pb.BatchReply) -> pb.BatchReply:
    """The same reply with every outcome in full."""
    outcomes = [outcome_of(found) if isinstance(found, int) else found for found in outcomes_of(reply)]
    return pb.BatchReply(outcomes=outcomes, number=reply.number, code=reply.code, detail=reply.detail)


def varint(number: int) -> bytes:
    """A number as protobuf writes it, seven bits a byte."""
    if number < 0x80:
        return bytes((number,))
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_HEADS = [b"%c%b%c" % (_SHARD_INDEX, varint(index), _CELL_CRC) for index in range(256)]
"""What the part of an Accept that is one node's begins with, by shard index."""
