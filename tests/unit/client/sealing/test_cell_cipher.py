"""Data cells that are sealed on their own: of every size, exchanged, changed, and read alone."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from coffre.client.keys import KeyRing
from coffre.client.sealing import CellCipher, Draft, OpenManifest, Sealer, _cell_cipher, open_segment
from coffre.client.sealing._cell_cipher import Way
from coffre.client.writing import CellCoder
from coffre.cluster.errors import IntegrityError, Unsupported
from coffre.cluster.names import ObjectName
from coffre.cluster.transport import part_bytes
from coffre.cluster.versions import Stamp
from coffre.proto import coffre_pb2 as pb
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MIB = 1 << 20
VECTORS = Path(__file__).parents[1] / "vectors"
NAME = ObjectName("clinic", "b", "k")
KEY, DATA_ID = bytes(range(32)), bytes(range(16))
STAMP = Stamp(1 << 60, 1)
TEXT = b"Coffre keeps what it was given. "


def cipher(k: int = 4, level: int | None = None, key: bytes = KEY, data_id: bytes = DATA_ID) -> CellCipher:
    return CellCipher(key, data_id, k, compress_level=level)


def sealed(sealer: CellCipher, k: int, segment: int, plain: bytes) -> tuple[Way, list[bytes]]:
    parts = sealer.cut(plain)
    cells = [bytearray(parts.cell_bytes) for _ in range(k)]
    sealer.seal_into(segment, parts, [memoryview(cell) for cell in cells])
    return parts.way, [bytes(cell) for cell in cells]


def coded(plain: bytes, segment: int = 0, level: int | None = None) -> tuple[OpenManifest, dict[int, bytes]]:
    """A segment of an object that is long enough, as 4+2."""
    manifest = pb.Manifest(
        stamp=STAMP.to_bytes(), data_id=DATA_ID, k=4, m=2, segment_bytes=len(plain),
        size_bytes=len(plain) * (segment + 1), sealing=pb.SEALING_CELL,
    )  # fmt: skip
    coder = CellCoder(Draft(NAME, KEY, manifest), 4, 2, level)
    return OpenManifest(NAME, manifest, KEY, STAMP), cells_of(coder, segment, plain)


def cells_of(coder: CellCoder, segment: int, plain: bytes) -> dict[int, bytes]:
    coder.add(segment, coder.cut(plain))
    return {index: bytes(chunk.cells[0].data) for index, chunk in enumerate(coder.finish())}


@pytest.mark.parametrize("k", [1, 2, 4, 10, 13])
@pytest.mark.parametrize("size", [0, 1, 3, 63, 64, 1000, MIB - 1, MIB])
@pytest.mark.parametrize("level", [None, 3])
def test_segments_of_every_size(k: int, size: int, level: int | None) -> None:
    for plain in (bytes(size), random.Random(size).randbytes(size), (TEXT * (size // 32 + 1))[:size]):
        way, cells = sealed(cipher(k, level), k, 3, plain)
        raw_bytes = part_bytes(size, k) + 16
        assert (way is Way.RAW) == (len(cells[0]) == raw_bytes)
        assert len(cells[0]) <= raw_bytes
        assert {len(cell) for cell in cells} == {len(cells[0])}
        assert cipher(k).open(3, cells, size) == plain
        if way is Way.RAW:
            whole = b"".join(cipher(k).open_raw(3, i, cell, size) for i, cell in enumerate(cells))
            assert whole[:size] == plain
            assert not any(whole[size:])
        else:
            with pytest.raises(IntegrityError, match="not raw"):
                cipher(k).open_raw(3, 0, cells[0], size)


def test_what_shrinks_too_little_for_smaller_cells_goes_raw() -> None:
    """Or a reader could not tell from the size of a cell which way its segment went."""
    for size in range(64, 400):
        plain = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
        for k in (4, 30, 64, 200):
            _, cells = sealed(cipher(k, 3), k, 0, plain)
            assert cipher(k).open(0, cells, size) == plain


@pytest.mark.parametrize("level", [None, 3])
def test_cells_neither_swap_nor_change_nor_move(level: int | None) -> None:
    plain = (TEXT * 32)[:1000]
    way, cells = sealed(cipher(level=level), 4, 7, plain)
    assert way is (Way.RAW if level is None else Way.FRAMED)
    for order in itertools.permutations(range(4)):
        if order != (0, 1, 2, 3):
            with pytest.raises(IntegrityError):
                cipher().open(7, [cells[i] for i in order], 1000)
    longer = [cell + b"\0" for cell in cells]
    shorter = [[cell[:size] for cell in cells] for size in range(len(cells[0]))]
    uneven = [*cells[:3], cells[3][:-1]]
    for wrong in ([], cells[:3], [*cells, cells[0]], longer, uneven, *shorter):
        with pytest.raises(IntegrityError):
            cipher().open(7, wrong, 1000)
    for opener, segment, size in (
        (cipher(), 6, 1000),
        (cipher(), 7, 996),
        (cipher(), 7, 1004),
        (cipher(key=bytes(32)), 7, 1000),
        (cipher(data_id=bytes(16)), 7, 1000),
    ):
        with pytest.raises(IntegrityError):
            opener.open(segment, cells, size)
        if size == 1000:
            assert not opener.is_genuine(segment, 0, cells[0], size)
    for index, position in itertools.product(range(4), range(len(cells[0]))):
        flipped = bytearray(cells[index])
        flipped[position] ^= 0x20
        assert not cipher().is_genuine(7, index, flipped, 1000)
        assert not cipher().is_genuine(7, (index + 1) % 4, cells[index], 1000)
        with pytest.raises(IntegrityError):
            cipher().open(7, [*cells[:index], flipped, *cells[index + 1 :]], 1000)
    assert all(cipher().is_genuine(7, index, cell, 1000) for index, cell in enumerate(cells))


def test_no_nonce_serves_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that a whole segment or the metadata has, though those never share a key with sealed cells."""
    nonces: list[bytes] = []

    class Noting:
        def __init__(self, key: bytes) -> None:
            self._cipher = AESGCM(key)

        def encrypt_into(self, nonce: bytes, data: bytes, more: bytes, target: memoryview) -> int:
            nonces.append(nonce)
            return self._cipher.encrypt_into(nonce, data, more, target)

    monkeypatch.setattr(_cell_cipher, "AESGCM", Noting)
    sealer = cipher(5, 3)
    segments = [*range(40), 255, 256, 65_535, 65_536, (1 << 20) - 1]
    ways = [
        sealed(sealer, 5, n, TEXT * 40 if n % 2 else random.Random(n).randbytes(999))[0] for n in segments
    ]
    assert set(ways) == set(Way)
    assert len(set(nonces)) == len(nonces) == 5 * len(segments)
    assert {len(nonce) for nonce in nonces} == {12}
    assert {nonce[0] for nonce in nonces} == {1, 2}


@pytest.mark.parametrize("level", [None, 3])
def test_any_k_cells_open_and_liars_are_found(level: int | None) -> None:
    plain = (TEXT * 32)[:999]
    opened, cells = coded(plain, 2, level)
    for chosen in itertools.combinations(range(6), 4):
        some = {index: cells[index] for index in chosen}
        assert open_segment(opened, cipher(), 2, some) == plain
    for liars in itertools.combinations(range(6), 2):
        lying = cells | {index: bytes(len(cells[index])) for index in liars}
        assert open_segment(opened, cipher(), 2, lying) == plain
        short = cells | {index: cells[index][:-1] for index in liars}
        assert open_segment(opened, cipher(), 2, short) == plain
    for three in itertools.combinations(range(6), 3):
        with pytest.raises(IntegrityError):
            open_segment(opened, cipher(), 2, cells | {i: bytes(len(cells[i])) for i in three})


def test_lying_data_cells_cost_no_combinations(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 16+4 there are 4,845 ways to leave four cells out, more than are tried."""
    manifest = pb.Manifest(
        data_id=DATA_ID, k=16, m=4, segment_bytes=5000, size_bytes=5000, sealing=pb.SEALING_CELL
    )
    plain = random.Random(4).randbytes(5000)
    cells = cells_of(CellCoder(Draft(NAME, KEY, manifest), 16, 4, None), 0, plain)
    opened = OpenManifest(NAME, manifest, KEY, STAMP)
    tries = 0
    open_cells = CellCipher.open

    def counted(self: CellCipher, segment: int, pieces: list[bytes], size: int) -> bytes | memoryview:
        nonlocal tries
        tries += 1
        return open_cells(self, segment, pieces, size)

    monkeypatch.setattr(CellCipher, "open", counted)
    lying = cells | {index: bytes(len(cells[index])) for index in (0, 1, 2, 3)}
    assert open_segment(opened, cipher(16), 0, lying) == plain
    assert tries == 2


async def test_manifests_with_a_sealing_of_the_future_are_not_read() -> None:
    sealer = Sealer(KeyRing.generate(), random.Random(1).randbytes)
    draft = await sealer.draft(NAME, pb.KIND_OBJECT)
    assert (draft.manifest.format, draft.manifest.sealing) == (3, pb.SEALING_SEGMENT)
    draft.set_sealing(pb.SEALING_CELL)
    opened = await sealer.open(NAME, draft.seal(STAMP, ()))
    assert (opened.manifest.format, opened.manifest.sealing) == (3, pb.SEALING_CELL)
    for form, sealing in ((2, 0), (2, 1), (3, 2), (4, 0), (4, 1)):
        draft.manifest.format, draft.manifest.sealing = form, sealing  # type: ignore[assignment]  # of the future
        with pytest.raises(Unsupported):
            await sealer.open(NAME, draft.seal(STAMP, ()))


def test_the_frozen_cells() -> None:
    vectors = json.loads((VECTORS / "cells.json").read_text())
    for vector in vectors["segments"]:
        plain = (TEXT * 200)[: vector["size_bytes"]]
        cells = [bytes.fromhex(cell) for cell in vector["cells"]]
        sealer = cipher(vector["k"], key=bytes.fromhex(vectors["data_key"]))
        assert sealer.open(vector["segment"], cells, len(plain)) == plain
        if vector["way"] == "RAW":
            assert sealed(sealer, vector["k"], vector["segment"], plain) == (Way.RAW, cells)
            one = AESGCM(KEY).decrypt(
                bytes.fromhex("02000000" + "00000001") + vector["segment"].to_bytes(4, "big"),
                cells[1],
                DATA_ID,
            )
            assert one.rstrip(b"\0") == plain[len(one) : 2 * len(one)]
