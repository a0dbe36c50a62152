"""Messages: a batch of 64 small puts and its reply, beside interpreted Python; streams of cells beside a copy."""

from __future__ import annotations

from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, WireCell, decode_read, decode_write, encode_write
from micro_references import INTERPRETER, Beside, Reference

OPERATIONS = 64
CALLS = 4
CELL = bytes(range(256)) * 4
STREAM_CALLS = 8
CHUNK = ShardChunk([WireCell(segment, 1 + segment, bytes(256 << 10)) for segment in range(4)])


def request() -> pb.BatchRequest:
    batch = pb.BatchRequest(epoch=1, tenant="tenant")
    for number in range(OPERATIONS):
        sealed = pb.SealedManifest(manifest=bytes(160), mac=bytes(16), placement=range(1, 7))
        accept = pb.Accept(
            bucket="records", key=f"patient/{number}/observation", sealed=sealed, shard_index=1, cell=CELL
        )
        batch.operations.add(accept=accept)
    return batch


def copy_1m() -> Reference:
    source, target = bytearray(1 << 20), bytearray(1 << 20)

    def copy() -> None:
        for _ in range(STREAM_CALLS):
            target[:] = source

    return Reference("memcpy_8x1m", copy)


def bench_batch_build_and_encode(beside: Beside) -> None:
    def encode() -> None:
        for _ in range(CALLS):
            request().SerializeToString()

    beside(INTERPRETER, encode)


def bench_batch_decode(beside: Beside) -> None:
    raw = request().SerializeToString()

    def decode() -> None:
        for _ in range(CALLS):
            for operation in pb.BatchRequest.FromString(raw).operations:
                operation.accept.sealed.manifest  # noqa: B018 - fields are made when they are read
                operation.accept.cell  # noqa: B018

    beside(INTERPRETER, decode)


def bench_shard_encode_write(beside: Beside) -> None:
    """One mebibyte in four cells: one copy, if it is done well."""

    def encode() -> None:
        for _ in range(STREAM_CALLS):
            encode_write(CHUNK)

    beside(copy_1m(), encode)


def bench_shard_decode_write(beside: Beside) -> None:
    """No copy at all: the cells are views."""
    raw = encode_write(CHUNK)

    def decode() -> None:
        for _ in range(10 * STREAM_CALLS):
            decode_write(raw)

    beside(copy_1m(), decode)


def bench_shard_decode_by_protobuf(beside: Beside) -> None:
    """What the hand-written decoder leaves to protobuf: a message that also has a header."""
    header = pb.ShardHeader(epoch=1, tenant="tenant", data_id=bytes(16), shard_index=1)
    raw = encode_write(ShardChunk(CHUNK.cells, header))

    def decode() -> None:
        for _ in range(STREAM_CALLS):
            decode_write(raw)

    beside(copy_1m(), decode)


def bench_shard_decode_read_4k(beside: Beside) -> None:
    """Many small cells: what the interpreter pays per cell."""
    cells = [WireCell(segment, 1, bytes(1024)) for segment in range(16)]
    raw = b"".join(_read_cell(cell) for cell in cells)

    def decode() -> None:
        for _ in range(CALLS):
            decode_read(raw)

    beside(INTERPRETER, decode)


def _read_cell(cell: WireCell) -> bytes:
    return pb.ReadShardReply(
        cells=[pb.Cell(segment=cell.segment, crc=cell.crc, data=bytes(cell.data))]
    ).SerializeToString()
