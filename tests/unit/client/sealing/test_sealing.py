"""Seals, wraps and segments: what a node or a thread might get wrong is never believed."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from coffre.client.keys import KeyRing
from coffre.client.sealing import Draft, Sealer, SegmentCipher, segment_count
from coffre.cluster.errors import CoffreError, IntegrityError
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp
from coffre.proto import coffre_pb2 as pb

MIB = 1 << 20
VECTORS = Path(__file__).parents[1] / "vectors"
NAME = ObjectName("clinic", "records", "patient/1")
STAMP = Stamp(1 << 60, 7)


async def sealed_draft(sealer: Sealer, name: ObjectName = NAME) -> tuple[Draft, pb.SealedManifest]:
    draft = await sealer.draft(name, pb.KIND_OBJECT, content_type="text/plain", metadata={"a": "b"})
    draft.manifest.size_bytes, draft.manifest.segment_bytes = 10, MIB
    draft.manifest.k, draft.manifest.m = 4, 2
    draft.manifest.shard_hashes = bytes(96)
    return draft, draft.seal(STAMP, (1, 2, 3, 4, 5, 6))


@pytest.fixture
def sealer() -> Sealer:
    return Sealer(KeyRing.generate(), random.Random(1).randbytes)


async def test_a_manifest_opens_for_its_name_alone(sealer: Sealer) -> None:
    _, sealed = await sealed_draft(sealer)
    opened = await sealer.open(NAME, sealed)
    assert (opened.stamp, opened.tombstone, opened.segments) == (STAMP, False, 1)
    assert (opened.metadata().content_type, dict(opened.metadata().user)) == ("text/plain", {"a": "b"})
    for other in (
        ObjectName("clinic", "records", "patient/2"),
        ObjectName("clinic", "other", "patient/1"),
        ObjectName("lab", "records", "patient/1"),
    ):
        with pytest.raises(IntegrityError):
            await sealer.open(other, sealed)


async def test_any_flipped_byte_of_a_manifest_is_refused(sealer: Sealer) -> None:
    _, sealed = await sealed_draft(sealer)
    for field in ("manifest", "mac"):
        raw = getattr(sealed, field)
        for position in range(len(raw)):
            for flip in (0x01, 0x80, 0xFF):
                changed = pb.SealedManifest()
                changed.CopyFrom(sealed)
                flipped = bytearray(raw)
                flipped[position] ^= flip
                setattr(changed, field, bytes(flipped))
                with pytest.raises(CoffreError):
                    await sealer.open(NAME, changed)
        for size in range(len(raw)):
            changed = pb.SealedManifest()
            changed.CopyFrom(sealed)
            setattr(changed, field, raw[:size])
            with pytest.raises(CoffreError):
                await sealer.open(NAME, changed)


async def test_a_seal_of_one_stamp_does_not_fit_another(sealer: Sealer) -> None:
    draft, first = await sealed_draft(sealer)
    second = draft.seal(Stamp(2 << 60, 7), ())
    mixed = pb.SealedManifest(manifest=second.manifest, mac=first.mac)
    with pytest.raises(IntegrityError):
        await sealer.open(NAME, mixed)


async def test_a_tombstone_cannot_be_made_of_an_object(sealer: Sealer) -> None:
    _, sealed = await sealed_draft(sealer)
    manifest = pb.Manifest.FromString(sealed.manifest)
    manifest.kind = pb.KIND_TOMBSTONE
    with pytest.raises(IntegrityError):
        await sealer.open(NAME, pb.SealedManifest(manifest=manifest.SerializeToString(), mac=sealed.mac))


async def test_each_write_has_its_own_keys(sealer: Sealer) -> None:
    (one, _), (two, _) = await sealed_draft(sealer), await sealed_draft(sealer)
    assert one.data_key != two.data_key
    assert one.manifest.data_id != two.manifest.data_id
    assert one.data_key not in one.manifest.SerializeToString()


@pytest.mark.parametrize("k", [2, 4, 8, 10, 13])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000, MIB - 1, MIB])
@pytest.mark.parametrize("compress", [None, 3])
def test_segments_of_every_size(k: int, size: int, compress: int | None) -> None:
    cipher = SegmentCipher(bytes(32), bytes(16), k, compress_level=compress)
    for plain in (bytes(size), random.Random(size).randbytes(size)):
        sealed = cipher.seal(3, plain)
        assert len(sealed) % k == 0
        assert len(sealed) <= size + 5 + 16 + k - 1
        assert cipher.open(3, [sealed], size) == plain


DICTIONARY_DIGEST = "aa004ee0c6a7817284e3c9690164dd02402733d522241260dc75c00e35d297fa"


def test_the_dictionary_never_changes_and_the_recovery_script_has_it() -> None:
    """What was compressed with it can be read with exactly it."""
    root = Path(__file__).parents[4]
    text = (root / "client/coffre/client/sealing/dictionary-1.txt").read_bytes()
    assert sha256(text).hexdigest() == DICTIONARY_DIGEST
    assert (root / "docs/recovery/dictionary-1.txt").read_bytes() == text


@pytest.mark.parametrize("start", ["{", "[", " {", "<"])
@pytest.mark.parametrize("size", [64, 1000, 64 << 10, (64 << 10) + 1])
def test_json_of_every_size_comes_back(start: str, size: int) -> None:
    text = start + '"system":"http://loinc.org","code":"' * (size // 36 + 1)
    plain = text.encode()[:size]
    cipher = SegmentCipher(bytes(32), bytes(16), 4)
    sealed = cipher.seal(0, plain)
    assert len(sealed) < size or size == 64
    assert cipher.open(0, [sealed], size) == plain
    with pytest.raises(IntegrityError):
        cipher.open(0, [sealed], size + 1)


@pytest.mark.parametrize("size", [MIB // 16 - 21, MIB // 16, MIB])
def test_segments_open_from_cells_and_not_from_changed_ones(size: int) -> None:
    """On both sides of the size from which cells are decrypted one by one."""
    cipher = SegmentCipher(bytes(32), bytes(16), 4, compress_level=None)
    plain = random.Random(size).randbytes(size)
    sealed = bytes(cipher.seal(5, plain))
    cell_bytes = len(sealed) // 4
    cells = [sealed[start : start + cell_bytes] for start in range(0, len(sealed), cell_bytes)]
    assert cipher.open(5, cells, size) == plain
    for cell in range(4):
        for position in (0, 5, cell_bytes - 17, cell_bytes - 1):
            flipped = bytearray(cells[cell])
            flipped[position] ^= 1
            with pytest.raises(IntegrityError):
                cipher.open(5, [*cells[:cell], flipped, *cells[cell + 1 :]], size)
    for wrong in (cells[::-1], cells[:3], [*cells[:3], cells[3][:10]]):
        with pytest.raises(IntegrityError):
            cipher.open(5, wrong, size)


def test_segments_neither_swap_nor_shrink_nor_move() -> None:
    cipher = SegmentCipher(bytes(32), bytes(16), 4)
    sealed = cipher.seal(0, b"x" * 1000)
    attempts = [
        (cipher, 1, sealed, 1000),
        (cipher, 0, sealed, 999),
        (cipher, 0, sealed, 1001),
        (SegmentCipher(bytes(32), b"\1" + bytes(15), 4), 0, sealed, 1000),
        (SegmentCipher(b"\1" + bytes(31), bytes(16), 4), 0, sealed, 1000),
        *((cipher, 0, sealed[:size], 1000) for size in range(len(sealed))),
    ]
    for opener, segment, piece, size in attempts:
        with pytest.raises(IntegrityError):
            opener.open(segment, [piece], size)
    for position in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[position] ^= 0x10
        with pytest.raises(IntegrityError):
            cipher.open(0, [flipped], 1000)


def test_segment_counts() -> None:
    counts = {0: 1, 1: 1, MIB - 1: 1, MIB: 1, MIB + 1: 2, 2 * MIB: 2, 2 * MIB + 1: 3}
    assert {size: segment_count(size, MIB) for size in counts} == counts


def test_compression_is_tried_ever_less_on_what_does_not_shrink() -> None:
    cipher = SegmentCipher(bytes(32), bytes(16), 4, compress_level=1)
    noise, text = random.Random(1).randbytes(4096), bytes(4096)
    for segment in range(3):
        assert len(cipher.seal(segment, noise)) >= 4096  # tried, let one pass, tried
    assert len(cipher.seal(3, text)) >= 4096  # the second failure lets two pass
    assert len(cipher.seal(4, text)) >= 4096
    assert len(cipher.seal(5, text)) < 200  # tried again, and it shrinks: from now on always
    assert len(cipher.seal(6, text)) < 200
    never = SegmentCipher(bytes(32), bytes(16), 4, compress_level=None)
    assert len(never.seal(0, text)) >= 4096


def test_threads_may_share_a_cipher() -> None:
    """Segments of one object are sealed in several threads at once; one compressor for all corrupts them."""
    cipher = SegmentCipher(bytes(32), bytes(16), 4)
    rng = random.Random(7)
    plains = [b"%d" % rng.randrange(1000) * (MIB // 3) for _ in range(60)]
    with ThreadPoolExecutor(4) as pool:
        sealed = list(pool.map(lambda item: cipher.seal(*item), enumerate(plains)))
    for segment, plain in enumerate(plains):
        assert cipher.open(segment, [sealed[segment]], len(plain)) == plain


async def test_the_frozen_manifest(tmp_path: Path) -> None:
    vector = json.loads((VECTORS / "manifest.json").read_text())
    keyring = json.loads((VECTORS / "keyring.json").read_text())
    (tmp_path / "ring").write_text(json.dumps(keyring["file"]))
    sealer = Sealer(KeyRing.load(tmp_path / "ring", keyring["passphrase"].encode()), bytes)
    name = ObjectName(*vector["name"])
    sealed = pb.SealedManifest(manifest=bytes.fromhex(vector["manifest"]), mac=bytes.fromhex(vector["mac"]))
    opened = await sealer.open(name, sealed)
    assert opened.data_key.hex() == vector["data_key"]
    assert opened.manifest.data_id.hex() == vector["data_id"]
    assert opened.manifest.size_bytes == 1000
    assert opened.metadata().content_type == "application/json"
    # And the other way round: what is written today is what was written then.
    draft = Draft(name, opened.data_key, opened.manifest)
    again = draft.seal(opened.stamp, ())
    assert (again.manifest.hex(), again.mac.hex()) == (vector["manifest"], vector["mac"])


def test_the_frozen_segments() -> None:
    vectors = json.loads((VECTORS / "segments.json").read_text())
    text = b"Coffre keeps what it was given. "
    for vector in vectors["segments"]:
        plain = vector["plain"].encode() if "plain" in vector else (text * 200)[: vector["size_bytes"]]
        cipher = SegmentCipher(
            bytes.fromhex(vectors["data_key"]), bytes(range(16)), vector["k"], compress_level=None
        )
        sealed = bytes.fromhex(vector["sealed"])
        assert cipher.open(vector["segment"], [sealed], len(plain)) == plain
        if "plain" in vector:
            assert sealed[0] != plain[0]
            assert len(sealed) < len(plain) / 2  # without the dictionary it would not shrink by half
        elif not vector.get("compressed"):
            assert cipher.seal(vector["segment"], plain) == sealed
