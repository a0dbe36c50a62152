"""Messages: a batch of 64 small puts and its reply, beside interpreted Python; streams of cells beside a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from coffre.bench.micro import INTERPRETER, Micro, Reference
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, WireCell, decode_read, decode_write, encode_write

__all__ = ["benchmarks"]

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


def decode_batch(raw: bytes) -> None:
    for operation in pb.BatchRequest.FromString(raw).operations:
        operation.accept.sealed.manifest  # noqa: B018 - fields are made when they are read
        operation.accept.cell  # noqa: B018


def copy_1m() -> Reference:
    source, target = bytearray(1 << 20), bytearray(1 << 20)

    def copy() -> None:
        for _ in range(STREAM_CALLS):
            target[:] = source

    return Reference("memcpy_8x1m", copy)


def benchmarks() -> Iterator[Micro]:
    """Batches, and streams of one mebibyte in four cells."""

    def micro(name: str, reference: Reference, calls: int, work: Callable[[], object]) -> Micro:
        def run() -> None:
            for _ in range(calls):
                work()

        return Micro(name, reference, run)

    raw_batch, raw = request().SerializeToString(), encode_write(CHUNK)
    yield micro("batch_build_and_encode", INTERPRETER, CALLS, lambda: request().SerializeToString())
    yield micro("batch_decode", INTERPRETER, CALLS, lambda: decode_batch(raw_batch))
    # One copy, if it is done well; and none at all the other way: the cells are views.
    yield micro("shard_encode_write", copy_1m(), STREAM_CALLS, lambda: encode_write(CHUNK))
    yield micro("shard_decode_write", copy_1m(), 10 * STREAM_CALLS, lambda: decode_write(raw))
    # What the hand-written decoder leaves to protobuf: a message that also has a header.
    header = pb.ShardHeader(epoch=1, tenant="tenant", data_id=bytes(16), shard_index=1)
    with_header = encode_write(ShardChunk(CHUNK.cells, header))
    yield micro("shard_decode_by_protobuf", copy_1m(), STREAM_CALLS, lambda: decode_write(with_header))
    # Many small cells: what the interpreter pays per cell.
    small = [pb.Cell(segment=segment, crc=1, data=bytes(1024)) for segment in range(16)]
    raw_small = b"".join(pb.ReadShardReply(cells=[cell]).SerializeToString() for cell in small)
    yield micro("shard_decode_read_4k", INTERPRETER, CALLS, lambda: decode_read(raw_small))
