"""The bytes of docs/formats/node.md, frozen: a change here is a new format."""

from __future__ import annotations

import pytest
from coffre.cluster.errors import IntegrityError
from coffre.node.disk import records, rows
from coffre.node.disk.records import LargeShard, decode_record, encode_record
from coffre.node.disk.rows import LargeFile, LargeState, Location
from coffre.node.store import Entry, QueueRepair, State

from tests.unit.node.store.store_cases import accept, adopt, name, stamp

DATA_ID = bytes(range(16))
LARGE = LargeShard(9, DATA_ID, 3, 3000, bytes(range(16, 32)))
KEY = b"\1\1key"
ROW = (
    Entry(stamp(7), State.ABORTED),
    Entry(stamp(6), State.LOCKED, False, 2, 0, Location(1, 36, 500, 9, DATA_ID)),
    Entry(stamp(5), State.SETTLED, True, None, 0, Location(1, 536, 100), (4, 5)),
)
CONDITIONAL = (Entry(stamp(6), State.ACCEPTED, False, 2, 0, Location(1, 36, 500), conditional=True),)
CONDEMNED = (Entry(stamp(6), State.SETTLED, True, None, 0, Location(1, 36, 100), condemned=True),)
SINGLE = (Entry(stamp(6), State.ACCEPTED, False, 2, 0, Location(1, 36, 500)),)
VOTES = (
    Entry(stamp(6), State.SETTLED, False, 2, 0, Location(1, 36, 500), was_locked=True),
    Entry(stamp(5), State.ABORTED, was_locked=True),
)
RECORDS = {
    "shard": (
        "437202a6702d6f0201060610020003000a00070000000434ff1feb74656e616e74006275636b6574006b65"
        "796d616e696665737420356d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d00010002abcd93ea4c60b4208ebb1229"
        "59d0a10c63656c6c"
    ),
    "tombstone": (
        "437202b9ec19810100060610020003000a0007000000000000000074656e616e74006275636b6574006b65"
        "796d616e696665737420356d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d00010002"
    ),
    "large": (
        "437202a5bc02e4060106061002000300080007000000000000000074656e616e74006275636b6574006b65"
        "796d616e69666573746d6d6d6d6d6d6d6d6d6d6d6d6d6d6d6d000100020000000000000009000102030405"
        "060708090a0b0c0d0e0f000000030000000000000bb8101112131415161718191a1b1c1d1e1f"
    ),
}
ROWS = {
    "three": (
        "0100070000000000000000000000000000000704ff0000000000000000000000000000000000000000000000"
        "000000000622020000000100000024000001f40000000000000009000102030405060708090a0b0c0d0e0f00"
        "0000000000000000000000000000051bff000000010000021800000064020004000520e7550a"
    ),
    "conditional": ("0100070000000000000000000000000000000641020000000100000024000001f49dbbdc42"),
    "condemned": "010007000000000000000000000000000000060dff000000010000002400000064ced79b45",
    "single": ("0100070000000000000000000000000000000601020000000100000024000001f4d0f44fe7"),
    "votes": (
        "0100070000000000000000000000000000000683020000000100000024000001f40000000000000000000000"
        "000000000584ff000000000000000000000000da963627"
    ),
    "single, locked once": "0100070000000000000000000000000000000683020000000100000024000001f4e265c221",
}


def test_records() -> None:
    context = name().context()
    assert encode_record(accept(5), context, 1, None).hex() == RECORDS["shard"]
    assert encode_record(accept(5, tombstone=True), context, None, None).hex() == RECORDS["tombstone"]
    assert encode_record(adopt(5), context, 1, LARGE).hex() == RECORDS["large"]


def test_records_read_back() -> None:
    raw = bytes.fromhex(RECORDS["large"])
    record = decode_record(raw, len(raw))
    assert (record.context, record.partition, record.shard_index) == (name().context(), 7, 1)
    assert (record.manifest, record.mac, record.placement) == (b"manifest", b"m" * 16, (1, 2))
    assert record.large == LARGE
    for text in RECORDS.values():
        raw = bytes.fromhex(text)
        assert records.record_bytes_at(raw, 0) == len(raw)
        whole = decode_record(raw, len(raw))
        assert records.head_bytes(raw) == whole.cell_offset == len(raw) - whole.cell_bytes
        assert decode_record(raw[: whole.cell_offset], len(raw)) == whole  # without its cell
        for data, size_bytes in ((raw, len(raw) + 1), (raw[: whole.cell_offset - 1], len(raw)), (b"", 0)):
            with pytest.raises(IntegrityError):
                decode_record(data, size_bytes)
    assert records.head_bytes(b"Cr\1") == records.head_bytes(bytes(100)) == 0


def test_rows() -> None:
    for entries, which in (
        (ROW, "three"),
        (SINGLE, "single"),
        (CONDITIONAL, "conditional"),
        (CONDEMNED, "condemned"),
        (VOTES, "votes"),
        (VOTES[:1], "single, locked once"),
    ):
        text = ROWS[which]
        assert rows.encode_row(KEY, 7, entries).hex() == text
        assert rows.decode_row(KEY, bytes.fromhex(text)) == (7, entries)
        with pytest.raises(IntegrityError):
            rows.decode_row(b"\1\1kez", bytes.fromhex(text))


@pytest.mark.parametrize("which", ROWS)
def test_no_flipped_bit_of_a_row_is_believed(which: str) -> None:
    raw = bytearray.fromhex(ROWS[which])
    for bit in range(len(raw) * 8):
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            rows.decode_row(KEY, bytes(raw))
        raw[bit // 8] ^= 1 << bit % 8


def test_other_rows() -> None:
    large = LargeFile(LargeState.STAGED, 1000, 3, 3000, 4000, bytes(range(16, 32)), b"owner")
    number = (9).to_bytes(8, "big")
    expected = (
        "0100000000000003e8000000030000000000000bb80000000000000fa0101112131415161718191a1b1c1d"
        "1e1f6f776e65720ba23640"
    )
    assert rows.encode_large(number, large).hex() == expected
    assert rows.decode_large(number, bytes.fromhex(expected)) == large
    repair = QueueRepair(name(), 7, stamp(5), None)
    expected = "010007ff00000000000000000000000000000005060674656e616e746275636b65746b6579930efcf7"
    assert rows.encode_repair(b"r" * 17, repair, found_here=True).hex() == expected
    assert rows.decode_repair(b"r" * 17, bytes.fromhex(expected)) == (repair, True)
    assert rows.encode_directory(b"\0tenant\0bucket", 300).hex() == "000000000000012ca854d619"
    assert rows.directory_code(300).hex() == "02012c"
    assert rows.directory_code(1).hex() == "0101"


def test_marks() -> None:
    key = rows.mark_key("tenant", b"\1\2\3\4\5\6\7\x08")
    assert key.hex() == "74656e616e74000102030405060708"
    value = rows.encode_mark(key, bytes(7) + b"\x2a\1\2\3\4\5\6\7\x08")
    assert value.hex() == "000000000000002a0102030405060708d26eabf3"
    assert rows.decode_mark(key, value) == value[:16]
    raw = bytearray(value)
    for bit in range(len(raw) * 8):
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            rows.decode_mark(key, bytes(raw))
        raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(IntegrityError):
        rows.decode_mark(rows.mark_key("tenans", key[-8:]), value)
