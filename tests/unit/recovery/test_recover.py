"""Parsers, checksums and decisions of the recovery script, against what Coffre itself writes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lmdb
import pytest
from coffre.client import KeyRing
from coffre.cluster.clock import ManualClock
from coffre.cluster.names import ObjectName
from coffre.codec import Codec, crc32c
from coffre.node.disk import LmdbStore
from coffre.node.disk.rows import Location, encode_row
from coffre.node.store import Accept, Entry, Mark, State, StoreOptions
from coffre.proto import coffre_pb2 as pb

from tests.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests/unit/codec/vectors/zfec.json").read_text())["vectors"]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coffre_recover", ROOT / "docs/recovery/recover.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["coffre_recover"] = module
    spec.loader.exec_module(module)
    return module


recover = load()


@pytest.mark.parametrize("size", [0, 1, 9, 511, 512, 4095, 4096, 4097, 262_144, 262_149])
def test_crc32c(size: int) -> None:
    data = hashlib.shake_128(b"crc").digest(size)
    assert recover.crc32c(data) == crc32c(data)
    assert recover.crc32c(data, 0x12345678) == crc32c(data, 0x12345678)


def test_crc32c_of_the_format_page() -> None:
    assert recover.crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['k']}+{vector['m']}")
def test_crc32c_of_the_golden_cells(vector: dict[str, str]) -> None:
    name = f"coffre {vector['k']} {vector['m']} 0"
    cell = hashlib.shake_128(name.encode()).digest(int(vector["size"]))
    assert f"{recover.crc32c(cell):08x}" == vector["crc32c_first"]


def test_rows() -> None:
    """Each kind of entry in one row, and the short form of a row of one."""
    data_id = bytes(range(16))
    entries = (
        Entry(b"\5" * 16, State.ACCEPTED, True, None, 0, Location(1, 2, 3)),
        Entry(b"\4" * 16, State.ABORTED),
        Entry(b"\3" * 16, State.LOCKED, False, 5, 0, Location(7, 8, 9, 10, data_id), (1, 2, 300)),
        Entry(b"\2" * 16, State.SETTLED, False, 0, 0, Location(2**32 - 1, 0, 4)),
    )
    expected = [
        recover.Entry(b"\5" * 16, recover.ACCEPTED, True, None, 1, 2, 3),
        recover.Entry(b"\4" * 16, recover.ABORTED),
        recover.Entry(b"\3" * 16, recover.LOCKED, False, 5, 7, 8, 9, 10),
        recover.Entry(b"\2" * 16, recover.SETTLED, False, 0, 2**32 - 1, 0, 4),
    ]
    row = encode_row(b"key", 77, entries)
    assert recover.decode_row(b"key", row) == expected
    assert recover.decode_row(b"key", encode_row(b"key", 77, entries[3:])) == expected[3:]
    for place in range(len(row)):
        with pytest.raises(recover.Damage):
            recover.decode_row(b"key", row[:place] + bytes((row[place] ^ 1,)) + row[place + 1 :])
        with pytest.raises(recover.Damage):
            recover.decode_row(b"key", row[:place])
    with pytest.raises(recover.Damage):
        recover.decode_row(b"kez", row)


def test_the_messages_are_those_of_the_contract() -> None:
    """Field by field: a field that the contract gains must be looked at here too."""
    for ours, theirs in zip(recover._messages(), (pb.Manifest(), pb.Metadata()), strict=True):
        assert {f.name: f.number for f in ours.DESCRIPTOR.fields} == {
            f.name: f.number for f in theirs.DESCRIPTOR.fields
        }
    raw = pb.Metadata(content_type="a/b", user={"é": "ü"}).SerializeToString()
    metadata = recover._messages()[1].FromString(raw)
    assert {pair.key: pair.value for pair in metadata.user} == {"é": "ü"}
    assert (
        recover._messages()[0].FromString(pb.Manifest(kind=pb.KIND_TOMBSTONE).SerializeToString()).kind == 2
    )


@pytest.mark.parametrize("fold", [False, True])
def test_file_names(fold: bool) -> None:
    keys = [
        ".",
        "..",
        "a/b",
        "a%2Fb",
        "~partial",
        "A",
        "a",
        "\0",
        "x" * 200,
        "x" * 201,
        "x" * 1024,
        "/" * 1024,
    ]
    keys += [f"{'/' * 60}{tail}" for tail in ("a", "b", "/", "//")] + ["\N{PILE OF POO}" * 256, "-", " "]
    found = [recover.file_name(key, fold=fold) for key in keys]
    assert len({name.lower() if fold else name for name in found}) == len(keys)
    for name in found:
        assert 1 <= len(name) <= 200
        assert not name.startswith((".", "~"))
        assert "/" not in name
        assert "\0" not in name


class _Cell:
    """A copy of a shard of one segment, in memory."""

    def __init__(self, cell: bytes) -> None:
        self._cell = cell

    def cell(self, segment: int) -> bytes:
        return self._cell


def test_cells_that_do_not_fit_together_are_found_out() -> None:
    """Wrong cells under good checksums: the k that decrypt are found, with m of the others in the way."""
    k, m, data_key, data_id = 4, 2, bytes(32), bytes(16)
    plain = hashlib.shake_128(b"plain").digest(3000)
    cipher = recover.AESGCM(data_key)
    frame = b"\0" + len(plain).to_bytes(4, "little") + plain
    frame += bytes(-(len(frame) + 16) % k)
    sealed = [cipher.encrypt(segment.to_bytes(12, "big"), frame, data_id) for segment in range(2)]
    size = len(sealed[1]) // k
    cells = [sealed[1][index * size : (index + 1) * size] for index in range(k)]
    parity = [bytearray(size) for _ in range(m)]
    Codec(k, m).encode_into(cells, parity)
    shards = [_Cell(cell) for cell in [*cells, *map(bytes, parity)]]
    for wrong in ((0, 1), (2, 5), (4, 5), (0, 3)):
        held = [(i, _Cell(bytes(size)) if i in wrong else shard) for i, shard in enumerate(shards)]
        manifest = pb.Manifest(k=k, m=m, data_id=data_id, size_bytes=6000, segment_bytes=3000)
        version = recover.Version(manifest, cipher, held, [])
        assert version._segment(1)[0] == plain
        with pytest.raises(recover.Damage):
            version._segment(0)  # the cells of another segment


@pytest.mark.parametrize("compressed", [False, True])
def test_cells_that_are_sealed_on_their_own(compressed: bool) -> None:
    """Written here by the page, not by the client: raw, and framed with compression 1."""
    k, m, data_key, data_id = 4, 2, bytes(32), bytes(16)
    plain = b"three thousand bytes of text. " * 100 if compressed else hashlib.shake_128(b"p").digest(2999)
    whole = plain
    if compressed:
        shrunk = recover.zstandard.ZstdCompressor().compress(plain)
        whole = b"\1" + len(shrunk).to_bytes(4, "little") + shrunk
    size = -(-len(whole) // k)
    whole = whole.ljust(k * size, b"\0")
    cipher = recover.AESGCM(data_key)
    cells = []
    for index in range(k):
        nonce = bytes((1 if compressed else 2, 0, 0, 0, 0, 0, 0, index, 0, 0, 0, 1))
        cells.append(cipher.encrypt(nonce, whole[index * size : (index + 1) * size], data_id))
    parity = [bytearray(size + 16) for _ in range(m)]
    Codec(k, m).encode_into(cells, parity)
    shards = [_Cell(cell) for cell in [*cells, *map(bytes, parity)]]
    size_bytes = 2 * len(plain)
    manifest = pb.Manifest(
        k=k, m=m, data_id=data_id, size_bytes=size_bytes, segment_bytes=len(plain), sealing=pb.SEALING_CELL
    )
    for wrong in ((0, 1), (2, 5), (4, 5), (0, 3)):
        held = [(i, _Cell(bytes(size + 16)) if i in wrong else shard) for i, shard in enumerate(shards)]
        version = recover.Version(manifest, cipher, held, [])
        assert version._segment(1)[0] == plain
        with pytest.raises(recover.Damage):
            version._segment(0)  # the cells of another segment
    exchanged = [(i, shards[j]) for i, j in enumerate((1, 0, 2, 3, 4, 5))]
    with pytest.raises(recover.Damage):
        recover.Version(manifest, cipher, exchanged[:4], [])._segment(1)


# ---------------------------------------------------------------- which version is the newest


def held(*states: int) -> list[object]:
    return [recover.Held(None, recover.Entry(b"\1" * 16, state)) for state in states]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((recover.SETTLED, recover.ABORTED), True),
        ((recover.ACCEPTED, recover.ACCEPTED), False),
        ((recover.ACCEPTED, recover.ABORTED), None),
        ((recover.ABORTED,), None),
    ],
)
def test_states(states: tuple[int, ...], expected: bool | None) -> None:
    run = recover.Recovery([], {}, None, False, recover.Problems())
    assert run._settled(b"t\0b\0k", b"\1" * 16, held(*states)) is expected


@pytest.fixture
async def marked(tmp_path: Path) -> Path:
    """A node that holds two versions of one writer as accepted, the first below its mark, and one of another."""
    store = await LmdbStore.open(tmp_path, StoreOptions(map_bytes=1 << 20), ManualClock())
    for key, stamp in (("a", MARKED), ("b", ABOVE), ("c", OTHER)):
        name = ObjectName("t", "b", key)
        (outcome,) = await store.apply([Accept(name, 7, stamp, False, bytes(16), b"m", bytes(16), (), None)])
        assert outcome.error is None
    await store.apply([Mark("t", MARKED)])
    await store.close()
    return tmp_path


MARKED, ABOVE, OTHER = bytes(7) + b"\1" + b"w" * 8, bytes(7) + b"\2" + b"w" * 8, bytes(8) + b"x" * 8


async def test_a_mark_settles_what_is_accepted(marked: Path) -> None:
    accepted, aborted = recover.ACCEPTED, recover.ABORTED
    node = recover.NodeDirectory(marked)
    run = recover.Recovery([node], {}, None, False, recover.Problems())
    assert run._settled(b"t\0b\0a", MARKED, held(accepted, accepted)) is True
    assert run._settled(b"t\0b\0a", MARKED, held(accepted, aborted)) is True
    assert run._settled(b"t\0b\0a", MARKED, held(aborted)) is None
    assert run._settled(b"t\0b\0b", ABOVE, held(accepted)) is False
    assert run._settled(b"t\0b\0c", OTHER, held(accepted)) is False
    assert run._settled(b"u\0b\0a", MARKED, held(accepted)) is False


async def test_a_damaged_mark_settles_nothing_and_is_told(
    marked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lmdb.open(str(marked / "index"), max_dbs=16) as env, env.begin(write=True) as txn:
        table = env.open_db(b"writers", txn=txn, create=False)
        ((key, value),) = [(bytes(key), bytes(value)) for key, value in txn.cursor(db=table)]
        txn.put(key, ABOVE + value[16:], db=table)
    run = recover.Recovery([recover.NodeDirectory(marked)], {}, None, False, recover.Problems())
    assert run._settled(b"t\0b\0a", MARKED, held(recover.ACCEPTED)) is False
    assert "the mark of a writer is damaged" in capsys.readouterr().err


async def test_a_directory_without_marks_is_read(marked: Path) -> None:
    with lmdb.open(str(marked / "index"), max_dbs=16) as env, env.begin(write=True) as txn:
        txn.drop(env.open_db(b"writers", txn=txn, create=False))
    run = recover.Recovery([recover.NodeDirectory(marked)], {}, None, False, recover.Problems())
    assert run._settled(b"t\0b\0a", MARKED, held(recover.ACCEPTED)) is False


def run(*arguments: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """The script by itself, at the head of a session of its own: no terminal."""
    command = [sys.executable, ROOT / "docs/recovery/recover.py", *arguments]
    bare = {name: value for name, value in os.environ.items() if name != "COFFRE_KEYRING_PASSPHRASE"}
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env=bare,
        **how,
    )


def test_where_nobody_can_be_asked_for_the_passphrase_it_says_what_to_give(tmp_path: Path) -> None:
    KeyRing.generate().save(tmp_path / "ring", b"secret")
    done = run("--keyring", tmp_path / "ring", "--list", tmp_path, stdout=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "--passphrase-file F" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_reader_of_the_list_that_has_gone_is_no_error(
    marked: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    KeyRing.generate().save(home / "ring", b"secret")
    (home / "passphrase").write_text("secret")
    secrets = ("--keyring", home / "ring", "--passphrase-file", home / "passphrase")
    assert run(*secrets, "--list", marked, stdout=subprocess.PIPE).stdout.count("\n") == 3
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run(*secrets, "--list", marked, stdout=writing)
    finally:
        os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "roken" not in done.stderr
