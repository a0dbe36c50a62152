"""Steps of the data path: from plaintext to cells, messages, and placement."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, product

from coffre.bench.scale import JURISDICTION, Layout, synthetic_map
from coffre.bench.timing import INTERPRETER, Operation, Reference, Work
from coffre.client.sealing import Draft
from coffre.client.writing import CellCoder, SegmentCoder
from coffre.cluster.map import Placement, Policy
from coffre.cluster.names import ObjectName, partition_of
from coffre.proto import coffre_pb2 as pb
from coffre.proto.shard_stream import ShardChunk, WireCell, decode_read, decode_write, encode_write
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["operations"]

_SMALL_OBJECTS = 32  # in a round; of large ones it has one
_KEY = bytes(range(32))
_BATCH_OPERATIONS = 64
_CELL = bytes(range(256)) * 4
_CHUNK = ShardChunk([WireCell(segment, 1 + segment, bytes(256 << 10)) for segment in range(4)])
_POLICY = Policy("4+2", 4, 2, (JURISDICTION,))


def operations() -> Iterator[Operation]:
    """All of them."""
    yield from _segments()
    yield from _messages()
    yield from _placements()


# ------------------------------------------------------------------ compress, encrypt, code: beside AES-256-GCM


def _segments() -> Iterator[Operation]:
    """Small objects and segments of large ones, that compress and that do not, beside encrypting as many bytes."""
    kinds = {"random": random.Random(1).randbytes, "text": _text}
    sizes = {"4k": (4096, _SMALL_OBJECTS), "1m": (1 << 20, 1)}
    for (k, m), kind, size in product(((4, 2), (8, 3)), kinds, sizes):
        size_bytes, calls = sizes[size]
        nonces, cipher, zeros = count(), AESGCM(_KEY), bytes(size_bytes)

        def encrypt(nonces: Iterator[int] = nonces, cipher: AESGCM = cipher, zeros: bytes = zeros) -> None:
            cipher.encrypt(next(nonces).to_bytes(12, "big"), zeros, None)

        reference = Reference(f"aes_gcm_{size_bytes >> 10}k", Work(encrypt, calls))
        code = _coding(k, m, kinds[kind](size_bytes), calls)
        yield Operation(f"segment[{k}-{m}-{kind}-{size}]", reference, code)


def _text(size_bytes: int) -> bytes:
    """Compresses about as health records do: words of a small vocabulary."""
    source = random.Random(1)
    words = [source.randbytes(source.randrange(3, 12)).hex().encode() for _ in range(2000)]
    return b" ".join(source.choices(words, k=size_bytes // 8))[:size_bytes]


def _coding(k: int, m: int, plain: bytes, calls: int) -> Callable[[], object]:
    draft = Draft(ObjectName("tenant", "records", "patient/1"), _KEY, pb.Manifest(data_id=bytes(16)))

    def code() -> None:
        coder = SegmentCoder(draft, k, m, 3)
        for segment in range(calls):
            coder.code(segment, plain)

    def code_large() -> None:
        coder = CellCoder(draft, k, m, 3)
        coder.add(0, coder.cut(plain))
        coder.finish()

    return code if calls > 1 else code_large


# ------------------------------------------------------------------ messages: beside interpreted Python, or a copy


def _messages() -> Iterator[Operation]:
    """A batch of 64 small puts, and streams of one mebibyte in four cells."""
    source, target = bytearray(1 << 20), memoryview(bytearray(1 << 20))
    copy = Reference("memcpy_8x1m", Work(partial(target.__setitem__, slice(None), source), 8))
    raw_batch, raw = _batch().SerializeToString(), encode_write(_CHUNK)
    yield Operation("batch_build_and_encode", INTERPRETER, lambda: _batch().SerializeToString(), 4)
    yield Operation("batch_decode", INTERPRETER, lambda: _decode_batch(raw_batch), 4)
    # One copy, if it is done well; and none at all the other way: the cells are views.
    yield Operation("shard_encode_write", copy, lambda: encode_write(_CHUNK), 8)
    yield Operation("shard_decode_write", copy, lambda: decode_write(raw), 80)
    # What the hand-written decoder leaves to protobuf: a message that also has a header.
    header = pb.ShardHeader(epoch=1, tenant="tenant", data_id=bytes(16), shard_index=1)
    with_header = encode_write(ShardChunk(_CHUNK.cells, header))
    yield Operation("shard_decode_by_protobuf", copy, lambda: decode_write(with_header), 8)
    # Many small cells: what the interpreter pays per cell.
    small = [pb.Cell(segment=segment, crc=1, data=bytes(1024)) for segment in range(16)]
    raw_small = b"".join(pb.ReadShardReply(cells=[cell]).SerializeToString() for cell in small)
    yield Operation("shard_decode_read_4k", INTERPRETER, lambda: decode_read(raw_small), 4)


def _batch() -> pb.BatchRequest:
    batch = pb.BatchRequest(epoch=1, tenant="tenant")
    for number in range(_BATCH_OPERATIONS):
        sealed = pb.SealedManifest(manifest=bytes(160), mac=bytes(16), placement=range(1, 7))
        key = f"patient/{number}/observation"
        accept = pb.Accept(bucket="records", key=key, sealed=sealed, shard_index=1, cell=_CELL)
        batch.operations.add(accept=accept)
    return batch


def _decode_batch(raw: bytes) -> None:
    for operation in pb.BatchRequest.FromString(raw).operations:
        operation.accept.sealed.manifest  # noqa: B018 - fields are made when they are read
        operation.accept.cell  # noqa: B018


# ------------------------------------------------------------------ placement: beside interpreted Python


def _placements() -> Iterator[Operation]:
    """Of primaries that nobody asked for before, of checks, and of names."""
    for nodes, calls in ((6, 50), (100, 8), (1000, 1)):
        yield Operation(f"primaries[{nodes}-{calls}]", INTERPRETER, _placing(nodes, calls))
    cluster_map = synthetic_map(Layout(100, 6, 3, 4096), _POLICY)
    placements = [Placement(cluster_map, _POLICY).primaries(partition) for partition in range(100)]
    names = [ObjectName("tenant", "records", f"patient/{number}/observation") for number in range(500)]

    def check() -> None:
        placement = Placement(cluster_map, _POLICY)
        for primaries in placements:
            placement.check(primaries)

    def hash_names() -> None:
        for name in names:
            partition_of(name, 4096)

    yield Operation("check", INTERPRETER, check)
    yield Operation("partition_of", INTERPRETER, hash_names)


def _placing(nodes: int, calls: int) -> Callable[[], object]:
    cluster_map = synthetic_map(Layout(nodes, 6 if nodes > 6 else 3, 3, 4096), _POLICY)
    numbers = count()

    def place() -> None:
        placement = Placement(cluster_map, _POLICY)
        for _ in range(calls):
            placement.primaries(next(numbers) % cluster_map.partitions)

    return place
