"""Key rings: files that open only whole and with the passphrase, and keys that never show."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
from pathlib import Path

import pytest
from coffre.client.keys import KeyRing, WrappedKey
from coffre.cluster.errors import ConfigurationError, IntegrityError, InvalidArgument, KeyUnavailable

PASSPHRASE = b"correct horse"
VECTOR = Path(__file__).parent / "vectors" / "keyring.json"


@pytest.fixture(autouse=True)
def _cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file says its cost, so reading honours a cheap one; 32768 would take 0.1 s for each flipped byte."""
    monkeypatch.setattr("coffre.client.keys._SCRYPT_N", 2)


@pytest.fixture
def ring() -> KeyRing:
    return KeyRing.generate()


@pytest.fixture
def saved(ring: KeyRing, tmp_path: Path) -> Path:
    path = tmp_path / "ring"
    ring.save(path, PASSPHRASE)
    return path


async def test_a_ring_survives_its_file(ring: KeyRing, saved: Path) -> None:
    loaded = KeyRing.load(saved, PASSPHRASE)
    assert (loaded.key_ids, loaded.current) == (ring.key_ids, ring.current)
    wrapped = await ring.wrap(bytes(32), b"context")
    assert await loaded.unwrap(wrapped, b"context") == bytes(32)


async def test_rotation_keeps_old_keys(ring: KeyRing) -> None:
    old = await ring.wrap(b"\1" * 32, b"c")
    rotated = ring.rotated()
    assert len(rotated.key_ids) == 2
    extended = ring.extended()
    assert (len(extended.key_ids), extended.current) == (2, ring.current)
    third = extended.switched().extended()
    assert third.switched().current not in extended.key_ids
    with pytest.raises(InvalidArgument, match="add a key first"):
        extended.switched().switched()
    assert rotated.current != ring.current
    assert await rotated.unwrap(old, b"c") == b"\1" * 32
    new = await rotated.wrap(b"\2" * 32, b"c")
    with pytest.raises(KeyUnavailable):
        await ring.unwrap(new, b"c")


async def test_a_wrapped_key_opens_for_its_own_context_alone(ring: KeyRing) -> None:
    wrapped = await ring.wrap(b"\1" * 32, b"context")
    for context in (b"", b"Context", b"context\0", b"contex"):
        with pytest.raises(IntegrityError):
            await ring.unwrap(wrapped, context)
    for position in range(len(wrapped.wrapped)):
        flipped = bytearray(wrapped.wrapped)
        flipped[position] ^= 1
        with pytest.raises(IntegrityError):
            await ring.unwrap(WrappedKey(wrapped.key_id, bytes(flipped)), b"context")
    for size in (0, 1, 15, 16, 47):
        with pytest.raises(IntegrityError):
            await ring.unwrap(WrappedKey(wrapped.key_id, wrapped.wrapped[:size]), b"context")


def test_the_file_is_private_and_never_replaced(ring: KeyRing, saved: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    before = saved.read_bytes()
    with pytest.raises(ConfigurationError, match="cannot write"):
        KeyRing.generate().save(saved, PASSPHRASE)
    assert saved.read_bytes() == before
    with pytest.raises(ConfigurationError, match="cannot write"):
        ring.save(tmp_path / "no" / "folder", PASSPHRASE)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError):
        ring.save(tmp_path / "link", PASSPHRASE)
    assert not (tmp_path / "elsewhere").exists()


def test_another_passphrase_does_not_open(saved: Path) -> None:
    for wrong in (b"", b"correct hors", b"correct horse ", b"\0" * 1000):
        with pytest.raises(ConfigurationError, match="does not open"):
            KeyRing.load(saved, wrong)


def test_every_flipped_byte_is_a_configuration_error(saved: Path) -> None:
    raw = saved.read_bytes()
    before = json.loads(raw)
    for position in range(len(raw)):
        for flip in (0x01, 0x80):
            changed = bytearray(raw)
            changed[position] ^= flip
            saved.write_bytes(changed)
            try:
                same = json.loads(changed) == before
            except ValueError:
                same = False
            if same:
                continue  # white space that JSON does not mind
            with pytest.raises(ConfigurationError):
                KeyRing.load(saved, PASSPHRASE)


def test_every_truncation_is_a_configuration_error(saved: Path) -> None:
    raw = saved.read_bytes()
    for size in range(len(raw)):
        saved.write_bytes(raw[:size])
        with pytest.raises(ConfigurationError):
            KeyRing.load(saved, PASSPHRASE)


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1 << 21},
        {"n": 1 << 62},
        {"n": 10**400},
        {"n": 3},
        {"n": 0},
        {"n": -2},
        {"n": 1},
        {"n": True},
        {"n": 2.5},
        {"n": "x"},
        {"n": None},
        {"n": float("inf")},
        {"n": [2]},
        {"r": 1 << 30},
        {"p": 1 << 30},
        {"r": 0},
        {"kdf": "argon2"},
        {"kdf": 1},
        {"format": 2},
        {"format": "1"},
        {"salt": "***"},
        {"salt": 5},
        {"salt": ""},
        {"nonce": ""},
        {"nonce": "AAAA"},
        {"nonce": 7},
        {"nonce": "é"},
        {"sealed": ""},
        {"sealed": None},
        {"extra": 1},
    ],
    ids=str,
)
def test_hostile_parameters_cost_nothing(saved: Path, change: dict[str, object]) -> None:
    content = json.loads(saved.read_bytes())
    content.update(change)
    saved.write_text(json.dumps(content))
    with pytest.raises(ConfigurationError):
        KeyRing.load(saved, PASSPHRASE)


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"1", b"{}", b"\xff", b"[" * 100_000, b"0" * (2 << 20)])
def test_what_is_no_key_ring_is_a_configuration_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "ring"
    path.write_bytes(raw)
    for place in (path, tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigurationError):
            KeyRing.load(place, PASSPHRASE)


def test_a_ring_must_have_its_current_key_and_whole_keys() -> None:
    for keys, current in (({}, "a"), ({"b": bytes(64)}, "a"), ({"a": bytes(63)}, "a")):
        with pytest.raises(ConfigurationError):
            KeyRing(keys, current)


def test_keys_never_show(ring: KeyRing, saved: Path) -> None:
    key = next(iter(ring._keys.values()))
    spellings = (key.hex(), base64.b64encode(key).decode(), repr(key), str(list(key)))
    content = saved.read_text()
    with pytest.raises(ConfigurationError) as caught:
        KeyRing.load(saved, b"hunter2")
    assert caught.value.__cause__ is None
    assert "hunter2" not in repr(caught.value)
    for shown in (repr(ring), str(ring), content):
        assert not any(spelling in shown for spelling in spellings)
        assert PASSPHRASE.decode() not in shown


async def test_the_frozen_ring_opens(tmp_path: Path) -> None:
    """docs/formats/keyring.md as bytes: this file must open for ever."""
    vector = json.loads(VECTOR.read_text())
    path = tmp_path / "ring"
    path.write_text(json.dumps(vector["file"]))
    ring = KeyRing.load(path, vector["passphrase"].encode())
    assert (list(ring.key_ids), ring.current) == (vector["key_ids"], vector["current"])
    wrapped = WrappedKey(ring.current, bytes.fromhex(vector["wrapped"]))
    assert await ring.unwrap(wrapped, bytes.fromhex(vector["context"])) == bytes.fromhex(vector["data_key"])
    again = await ring.wrap(bytes.fromhex(vector["data_key"]), bytes.fromhex(vector["context"]))
    assert again == wrapped


def test_the_name_of_the_file_is_synced_too(
    ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is gone after a power cut, and with it what was sealed with its new key."""
    synced: list[os.stat_result] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.fstat(descriptor))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    ring.save(tmp_path / "ring", PASSPHRASE)
    assert [
        os.path.samestat(one, path.stat())
        for one, path in zip(synced, (tmp_path / "ring", tmp_path), strict=True)
    ] == [True, True]


def test_a_ring_that_cannot_be_written_whole_is_none(
    ring: KeyRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(ConfigurationError, match="No space left"):
            ring.save(tmp_path / "ring", PASSPHRASE)
    assert list(tmp_path.iterdir()) == []
    ring.save(tmp_path / "ring", PASSPHRASE)
