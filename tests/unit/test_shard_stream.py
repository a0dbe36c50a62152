"""The hand-written codecs of cell messages write what protobuf writes, and read what it reads."""

from __future__ import annotations

from io import BytesIO

import pytest
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import (
    CellMessage,
    ShardChunk,
    WireCell,
    decode_read,
    decode_write,
    encode_read,
    encode_write,
)
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

U32 = st.integers(0, 2**32 - 1)
CELLS = st.lists(st.builds(WireCell, U32 | st.just(0), U32 | st.just(0), st.binary(max_size=300)), max_size=5)
HEADERS = st.none() | st.builds(
    pb.ShardHeader,
    epoch=st.integers(0, 2**64 - 1),
    tenant=st.text(max_size=10),
    data_id=st.binary(max_size=16),
    shard_index=U32,
)


def as_write(chunk: ShardChunk) -> pb.WriteShardRequest:
    cells = [pb.Cell(segment=c.segment, crc=c.crc, data=bytes(c.data)) for c in chunk.cells]
    return pb.WriteShardRequest(header=chunk.header, cells=cells)


def as_read(chunk: ShardChunk) -> pb.ReadShardReply:
    return pb.ReadShardReply(cells=as_write(chunk).cells)


def same(one: ShardChunk, other: ShardChunk) -> bool:
    return as_write(one) == as_write(other)


@settings(derandomize=True, max_examples=300)
@given(CELLS, HEADERS)
def test_the_bytes_are_those_of_protobuf(cells: list[WireCell], header: pb.ShardHeader | None) -> None:
    chunk = ShardChunk(cells, header)
    assert encode_write(chunk) == as_write(chunk).SerializeToString()
    assert encode_read(chunk) == as_read(chunk).SerializeToString()
    assert same(decode_write(encode_write(chunk)), chunk)
    assert same(decode_read(encode_read(chunk)), ShardChunk(cells))


@settings(derandomize=True, max_examples=1000)
@given(CELLS, st.data())
def test_any_bytes_read_as_protobuf_reads_them(cells: list[WireCell], data: st.DataObject) -> None:
    """Also when something was changed, cut off or put in: the same message, or the same refusal."""
    raw = bytearray(encode_write(ShardChunk(cells)))
    place = data.draw(st.integers(0, len(raw)))
    raw[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    for decode, message in ((decode_write, pb.WriteShardRequest), (decode_read, pb.ReadShardReply)):
        try:
            expected = message.FromString(bytes(raw))
        except DecodeError:
            with pytest.raises(DecodeError):
                decode(bytes(raw))
            continue
        found = decode(bytes(raw))
        assert [(c.segment, c.crc, bytes(c.data)) for c in found.cells] == [
            (c.segment, c.crc, c.data) for c in expected.cells
        ]


MESSAGES = st.lists(
    st.lists(st.tuples(U32, st.integers(1, 2**32 - 1), st.binary(min_size=1, max_size=300)), max_size=5),
    max_size=6,
)


@settings(derandomize=True, max_examples=300)
@given(MESSAGES)
def test_cells_written_in_place_are_those_of_protobuf(
    messages: list[list[tuple[int, int, bytes]]],
) -> None:
    """One memory serves for all, and those who still have an earlier message, or a view of it, see it unchanged."""
    memory = BytesIO()
    made: list[tuple[ShardChunk, ShardChunk]] = []
    for cells in messages:
        message = CellMessage(memory)
        for segment, crc, data in cells:
            place = message.reserve(segment, len(data))
            place[:] = data
            place.release()
            message.set_crc(crc)
        made.append((message.finish(), ShardChunk([WireCell(*cell) for cell in cells])))
        for found, expected in made:
            assert encode_write(found) == encode_write(expected)
            assert same(found, expected)


def test_a_checksum_of_zero_is_written_out_and_read_alike() -> None:
    message = CellMessage(BytesIO())
    message.reserve(7, 3)[:] = b"abc"
    message.set_crc(0)
    chunk = message.finish()
    assert same(chunk, ShardChunk([WireCell(7, 0, b"abc")]))
    assert pb.WriteShardRequest.FromString(encode_write(chunk)) == as_write(chunk)


def test_cells_are_views_into_the_message() -> None:
    chunk = decode_read(encode_read(ShardChunk([WireCell(3, 7, bytes(1000))])))
    assert isinstance(chunk.cells[0].data, memoryview)
