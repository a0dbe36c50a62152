#!/usr/bin/env python3
"""Rebuild objects from the directories of stopped nodes and the key ring: no cluster, no network, no Coffre.

Needs Python 3.11, zfec, lmdb, protobuf, zstandard and cryptography; with blake3, too, it is sooner done with cells that
do not fit together. How to use it: docs/recovery.md. The formats that
it reads: docs/formats (manifest, segment, coding, keyring, node). It never writes to a node's directory.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import functools
import getpass
import hashlib
import heapq
import hmac
import itertools
import json
import os
import re
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import lmdb
import zfec
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

ACCEPTED, LOCKED, SETTLED, ABORTED = 1, 2, 3, 4
CELL_BYTES_MAX = 8 << 20
SEGMENT_BYTES_MAX = 16 << 20
COMBINATIONS_MAX = 10_000
SEALED_SEGMENT, SEALED_CELLS = 0, 1
FRAMED, RAW = 1, 2
FILE_NAME_BYTES_MAX = 200
PASSPHRASE_VARIABLE = "COFFRE_KEYRING_PASSPHRASE"


class Damage(Exception):
    """Bytes that are not what was written, or are not there; the text says which."""


class Refusal(Exception):
    """The script cannot do what it was asked; the text says why."""


# ---------------------------------------------------------------- CRC32C (docs/formats/coding.md, "Checksum")

_LANE_BYTES = 512


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


@functools.cache
def _crc_planes() -> list[bytes]:
    """The table, cut into four of one byte each."""
    return [bytes(value >> shift & 0xFF for value in _crc_table()) for shift in (0, 8, 16, 24)]


@functools.cache
def _crc_lane_shift() -> list[list[int]]:
    """What `_LANE_BYTES` zero bytes do to each byte of a register."""
    columns = []
    for bit in range(32):
        register = 1 << bit
        for _ in range(_LANE_BYTES):
            register = register >> 8 ^ _crc_table()[register & 0xFF]
        columns.append(register)
    tables = []
    for byte in range(4):
        table = [0] * 256
        for value in range(1, 256):
            low = value & -value
            table[value] = table[value ^ low] ^ columns[8 * byte + low.bit_length() - 1]
        tables.append(table)
    return tables


def _crc_lanes(data: bytes, register: int, lanes: int) -> int:
    """The register after `lanes * _LANE_BYTES` bytes: all lanes go forward together, one byte column at a time."""
    planes, end = _crc_planes(), lanes * _LANE_BYTES
    states = [int.from_bytes(bytes((register >> shift & 0xFF,)), "little") for shift in (0, 8, 16, 24)]
    for place in range(_LANE_BYTES):
        column = int.from_bytes(data[place:end:_LANE_BYTES], "little")
        lookup = (states[0] ^ column).to_bytes(lanes, "little")
        found = [int.from_bytes(lookup.translate(plane), "little") for plane in planes]
        states = [states[1] ^ found[0], states[2] ^ found[1], states[3] ^ found[2], found[3]]
    rows = [state.to_bytes(lanes, "little") for state in states]
    shift = _crc_lane_shift()
    register = 0
    for a, b, c, d in zip(*rows, strict=True):
        register = (
            shift[0][register & 0xFF]
            ^ shift[1][register >> 8 & 0xFF]
            ^ shift[2][register >> 16 & 0xFF]
            ^ shift[3][register >> 24]
            ^ (a | b << 8 | c << 16 | d << 24)
        )
    return register


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC32C of `data`, going on from `crc`."""
    register = crc ^ 0xFFFFFFFF
    lanes = len(data) // _LANE_BYTES
    if lanes >= 8:
        register = _crc_lanes(data, register, lanes)
        data = data[lanes * _LANE_BYTES :]
    table = _crc_table()
    for byte in data:
        register = register >> 8 ^ table[(register ^ byte) & 0xFF]
    return register ^ 0xFFFFFFFF


# ---------------------------------------------------------------- BLAKE3 (docs/formats/coding.md, "Hash")

_WORD = 0xFFFFFFFF
_INITIAL = (
    *(0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A),
    *(0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19),
)
_ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_QUARTERS = (
    *((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)),
    *((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)),
)
_START, _END, _PARENT, _ROOT = 1, 2, 4, 8


def _compressed(value: tuple[int, ...], block: bytes, counter: int, flags: int) -> tuple[int, ...]:
    words = struct.unpack("<16I", block.ljust(64, b"\0"))
    state = [*value, *_INITIAL[:4], counter & _WORD, counter >> 32, len(block), flags]
    for _ in range(7):
        for place, (a, b, c, d) in enumerate(_QUARTERS):
            for word, right, left in ((words[2 * place], 16, 12), (words[2 * place + 1], 8, 7)):
                state[a] = state[a] + state[b] + word & _WORD
                mixed = state[d] ^ state[a]
                state[d] = (mixed >> right | mixed << 32 - right) & _WORD
                state[c] = state[c] + state[d] & _WORD
                mixed = state[b] ^ state[c]
                state[b] = (mixed >> left | mixed << 32 - left) & _WORD
        words = tuple(words[place] for place in _ORDER)
    return tuple(state[i] ^ state[i + 8] for i in range(8))


def _chunk_value(chunk: bytes, counter: int, root: int) -> tuple[int, ...]:
    value: tuple[int, ...] = _INITIAL
    count = max(-(-len(chunk) // 64), 1)
    for place in range(count):
        flags = (_START if place == 0 else 0) | (_END | root if place == count - 1 else 0)
        value = _compressed(value, chunk[64 * place : 64 * place + 64], counter, flags)
    return value


def plain_blake3_128(data: bytes) -> bytes:
    """The first 16 bytes of BLAKE3 of `data`, without help: some hundred KB a second."""
    only = len(data) <= 1024
    chunks = [data[start : start + 1024] for start in range(0, len(data), 1024)] or [b""]
    values = [_chunk_value(chunk, place, _ROOT if only else 0) for place, chunk in enumerate(chunks)]
    while len(values) > 1:
        flags = _PARENT | (_ROOT if len(values) == 2 else 0)
        pairs = [struct.pack("<16I", *values[i], *values[i + 1]) for i in range(0, len(values) - 1, 2)]
        values = [_compressed(_INITIAL, pair, 0, flags) for pair in pairs] + values[2 * len(pairs) :]
    return struct.pack("<4I", *values[0][:4])


def blake3_128(data: bytes) -> bytes:
    """The first 16 bytes of BLAKE3 of `data`."""
    try:
        import blake3
    except ImportError:
        return plain_blake3_128(data)
    return bytes(blake3.blake3(data).digest(16))


# ---------------------------------------------------------------- protobuf messages (docs/formats/manifest.md)


@functools.cache
def _messages() -> tuple[type[Any], type[Any]]:
    """The classes of Manifest and Metadata. They are made at run time, so no type checker knows their fields."""
    kinds = descriptor_pb2.FieldDescriptorProto
    u32, u64, text, raw = kinds.TYPE_UINT32, kinds.TYPE_UINT64, kinds.TYPE_STRING, kinds.TYPE_BYTES
    file = descriptor_pb2.FileDescriptorProto(name="recovery.proto", package="recovery", syntax="proto3")
    manifest = file.message_type.add(name="Manifest")
    fields = [("format", u32), ("kind", u32), ("stamp", raw), ("data_id", raw), ("size_bytes", u64)]
    fields += [("segment_bytes", u32), ("k", u32), ("m", u32), ("key_id", text), ("wrapped_key", raw)]
    fields += [("shard_hashes", raw), ("sealed_metadata", raw), ("sealing", u32)]
    fields += [("conditional", kinds.TYPE_BOOL), ("base", raw), ("recodes", raw)]
    for number, (name, kind) in enumerate(fields, 1):
        manifest.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    metadata = file.message_type.add(name="Metadata")
    pair = metadata.nested_type.add(name="Pair")  # how a map<string, string> travels
    for number, name in enumerate(("key", "value"), 1):
        pair.field.add(name=name, number=number, type=text, label=kinds.LABEL_OPTIONAL)
    metadata.field.add(name="content_type", number=1, type=text, label=kinds.LABEL_OPTIONAL)
    metadata.field.add(
        name="user",
        number=2,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name=".recovery.Metadata.Pair",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made = message_factory.GetMessages([file], pool=pool)
    return made["recovery.Manifest"], made["recovery.Metadata"]


# ---------------------------------------------------------------- key ring (docs/formats/keyring.md)


def read_keys(path: Path, passphrase: bytes) -> dict[str, AESSIV]:
    """The wrapping keys by id. Raises `Refusal`."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(1 << 20))
        nonce, sealed = (base64.b64decode(header.pop(name), validate=True) for name in ("nonce", "sealed"))
        salt = base64.b64decode(header["salt"], validate=True)
        n, r, p = (int(header[name]) for name in ("n", "r", "p"))
        known = header["format"] == 1 and header["kdf"] == "scrypt" and (r, p) == (8, 1)
        known = known and 2 <= n <= 1 << 20 and n & (n - 1) == 0
    except OSError as error:
        raise Refusal(f"cannot read the key ring {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refusal(f"{path} is not a key ring that this script knows") from None
    if not known:
        raise Refusal(f"{path} is not a key ring that this script knows")
    try:
        key = Scrypt(salt=salt, length=32, n=n, r=r, p=p).derive(passphrase)
        content = json.loads(AESGCM(key).decrypt(nonce, sealed, json.dumps(header, sort_keys=True).encode()))
        return {key_id: AESSIV(base64.b64decode(raw)) for key_id, raw in content["keys"].items()}
    except (InvalidTag, ValueError, KeyError, TypeError):
        raise Refusal(f"the passphrase does not open the key ring {path}") from None


def read_passphrase(path: Path | None) -> bytes:
    """From a file, from the environment, or typed by the administrator. Raises `Refusal`."""
    if path is not None:
        try:
            return path.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise Refusal(f"cannot read {path}: {error.strerror}") from None
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is None:
        try:
            given = getpass.getpass("Passphrase of the key ring: ")
        except EOFError:
            raise Refusal(
                f"nobody can be asked for the passphrase: give --passphrase-file F, or ${PASSPHRASE_VARIABLE}"
            ) from None
    return given.encode()


# ---------------------------------------------------------------- a node's directory (docs/formats/node.md)

_PREFIX = struct.Struct(">3sI")
_BODY = struct.Struct(">BBBBBBHHHII")
_RECORD_HEADER_BYTES = _PREFIX.size + _BODY.size
_LARGE = struct.Struct(">Q16sIQ16s")
_HASH_BYTES = 16
_ENTRY = struct.Struct(">16sBBIII")
_CELL_HEADER = struct.Struct(">IIII")
_TABLE_ROW = struct.Struct(">QII16s")
_TABLE_GROUP = 256
_FOOTER = struct.Struct(">8sIIQ16sI")
_LARGE_HEADER_BYTES = 100
_ANY = "surrogateescape"  # names are believed when the seal over them verifies, not before


@dataclass(frozen=True, slots=True)
class Entry:
    """One version in a row of an index. An aborted one has only stamp and state."""

    stamp: bytes
    state: int
    tombstone: bool = False
    shard_index: int | None = None
    volume: int = 0
    offset: int = 0
    size_bytes: int = 0
    file: int = 0


def decode_row(key: bytes, value: bytes) -> list[Entry]:
    """The versions in a row of the objects table. Raises `Damage`."""
    body = value[:-4]
    if len(value) < 7 or crc32c(key + body).to_bytes(4, "big") != value[-4:]:
        raise Damage("a row of the index does not verify")
    if body[0] != 1:
        raise Damage(f"a row of the index has format {body[0]}; this script knows 1")
    entries, place = [], 3
    try:
        while place < len(body):
            stamp, flags, index, volume, offset, size_bytes = _ENTRY.unpack_from(body, place)
            place += _ENTRY.size
            state, file = flags & 7, 0
            if flags & 0x20:
                file = int.from_bytes(body[place : place + 8], "big")
                place += 24
            if flags & 0x10:
                place += 1 + 2 * body[place]
            shard_index = None if index == 255 else index
            tombstone = flags & 8 != 0
            entries.append(Entry(stamp, state, tombstone, shard_index, volume, offset, size_bytes, file))
    except (struct.error, IndexError):
        raise Damage("a row of the index is cut short") from None
    return entries


class CellSource(Protocol):
    """One copy of one shard."""

    def cell(self, segment: int) -> bytes:
        """Raises `Damage` and `OSError`."""


@dataclass(frozen=True, slots=True)
class PackedCell:
    """A shard of one cell, in a record of a volume."""

    path: Path
    offset: int
    size_bytes: int
    crc: int

    def cell(self, segment: int) -> bytes:
        data = _pread(self.path, self.offset, self.size_bytes)
        if segment or len(data) != self.size_bytes or crc32c(data) != self.crc:
            raise Damage("a cell does not have its checksum")
        return data


class LargeShard:
    """A shard in a file of its own. Cells are found by the table at its end; without it, one after the other."""

    def __init__(self, path: Path, data_id: bytes, shard_index: int, cell_count: int) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        self._seed = crc32c(data_id + bytes((shard_index,)))
        self._next = _LARGE_HEADER_BYTES
        self._cells = 0  # in the table
        end = os.fstat(self._fd).st_size - _FOOTER.size
        raw = os.pread(self._fd, _FOOTER.size, max(end, 0))
        if len(raw) == _FOOTER.size and crc32c(raw[:-4]).to_bytes(4, "big") == raw[-4:]:
            magic, self._cells = _FOOTER.unpack(raw)[:2]
            if magic != b"coffrele" or self._cells != cell_count:
                self._cells = 0
        groups = -(-self._cells // _TABLE_GROUP)
        self._table = end - self._cells * _TABLE_ROW.size - groups * _HASH_BYTES

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def cell(self, segment: int) -> bytes:
        offsets = [self._next]
        if segment < self._cells:
            raw = os.pread(self._fd, 8, max(self._table, 0) + segment * _TABLE_ROW.size)
            offsets.append(int.from_bytes(raw, "big"))
        while offsets:
            offset = offsets.pop()
            raw = os.pread(self._fd, _CELL_HEADER.size, offset) if offset < 1 << 62 else b""
            if len(raw) < _CELL_HEADER.size or crc32c(raw[:-4], self._seed).to_bytes(4, "big") != raw[-4:]:
                continue
            number, size_bytes, crc, _ = _CELL_HEADER.unpack(raw)
            self._next = offset + len(raw) + size_bytes
            if number < segment:
                offsets.append(self._next)
            elif number == segment and size_bytes <= CELL_BYTES_MAX:
                data = os.pread(self._fd, size_bytes, offset + len(raw))
                if len(data) == size_bytes and crc32c(data) == crc:
                    return data
        raise Damage("a cell of a large shard does not verify")


@dataclass(frozen=True, slots=True)
class Record:
    """A record whose checksum verified, without its cell."""

    manifest: bytes
    mac: bytes
    shard: CellSource | None


class NodeDirectory:
    """The data directory of one stopped node, read only."""

    def __init__(self, path: Path) -> None:
        """Raises `Damage` for a directory that is not a node's, or whose index cannot be read."""
        self.path = path
        if not (path / "index" / "data.mdb").is_file():
            raise Damage("not a node's data directory (it has no index/data.mdb)")
        self._check_stopped()
        _survive(path / "index")
        try:
            self._txn, self._tables = _open_index(path / "index")
            self.store_id = self._meta(b"store")
            format_ = int.from_bytes(self._meta(b"format"), "big")
        except lmdb.Error as error:
            raise Damage(f"its index cannot be read ({error})") from None
        if format_ != 1:
            raise Damage(f"it has format {format_}; this script knows 1")

    def _check_stopped(self) -> None:
        try:
            with (self.path / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Damage("a node is running on it: stop the node first") from None
        except OSError:
            return  # no lock file, or a file system without locks: a copy

    def _meta(self, key: bytes) -> bytes:
        return _unseal(key, self._txn.get(key, b"", db=self._tables["meta"]))

    def mark(self, tenant: bytes, writer: bytes) -> bytes:
        """Up to which stamp a writer's versions are known here to be established; empty when nothing is known.
        Raises `Damage`."""
        if "writers" not in self._tables:
            return b""
        key = tenant + b"\0" + writer
        value = self._txn.get(key, db=self._tables["writers"])
        return b"" if value is None else _unseal(key, bytes(value))

    # ------------------------------------------------------------ names

    def buckets(self, problems: Problems) -> Iterator[tuple[str, str, bytes]]:
        """(tenant, bucket, code of its directory)."""
        for key, code in self._directories(b"\0", problems):
            tenant, _, bucket = key.partition(b"\0")
            yield tenant.decode(errors=_ANY), bucket.decode(errors=_ANY), code

    def _directories(self, prefix: bytes, problems: Problems) -> Iterator[tuple[bytes, bytes]]:
        """What follows `prefix` in the keys of the directories table, and the directories' codes."""
        cursor = self._txn.cursor(db=self._tables["directories"])
        found = cursor.set_range(prefix)
        while found and cursor.key().startswith(prefix):
            key, value = bytes(cursor.key()), bytes(cursor.value())
            try:
                number = _unseal(key, value).lstrip(b"\0")
                yield key[len(prefix) :], bytes((len(number),)) + number
            except Damage:
                problems.add(f"{self.path}: names of some objects are unreadable in its index")
            found = cursor.next()

    def keys(self, code: bytes, problems: Problems) -> Iterator[tuple[bytes, NodeDirectory, bytes, bytes]]:
        """(key below a directory, this node, key of the row, row), in the order of keys."""
        deeper = self._directories(b"\1" + code, problems)
        chunk = next(deeper, None)
        for key, row in self._rows(code):
            # The keys of a deeper directory begin with its whole chunk: they follow the row of just that chunk.
            while chunk is not None and chunk[0] < key:
                yield from self._below(chunk, problems)
                chunk = next(deeper, None)
            yield key, self, code + key, row
        while chunk is not None:
            yield from self._below(chunk, problems)
            chunk = next(deeper, None)

    def _below(
        self, chunk: tuple[bytes, bytes], problems: Problems
    ) -> Iterator[tuple[bytes, NodeDirectory, bytes, bytes]]:
        for key, node, row_key, row in self.keys(chunk[1], problems):
            yield chunk[0] + key, node, row_key, row

    def _rows(self, code: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows below a directory, those of deleted keys too; a key has one in either table."""
        tables = [self._tables[name] for name in ("objects", "graves") if name in self._tables]
        return heapq.merge(*(self._rows_of(table, code) for table in tables))

    def _rows_of(self, table: Any, code: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._txn.cursor(db=table)
        found = cursor.set_range(code)
        while found and cursor.key().startswith(code):
            yield bytes(cursor.key())[len(code) :], bytes(cursor.value())
            found = cursor.next()

    # ------------------------------------------------------------ records

    def record(self, entry: Entry, context: bytes) -> Record:
        """The record of an entry, for the name `context` and nothing else. Raises `Damage`."""
        path = self.path / "volumes" / f"{entry.volume:08d}.vol"
        try:
            head = _pread(path, entry.offset, _RECORD_HEADER_BYTES)
            if len(head) < _RECORD_HEADER_BYTES or head[:3] != b"Cr\2":
                raise Damage("a record is missing")
            fields = _BODY.unpack_from(head, _PREFIX.size)
            flags, index, tenant, bucket, mac, count, key, manifest, _, cell_bytes, cell_crc = fields
            name_end = _RECORD_HEADER_BYTES + tenant + bucket + key + 2
            mac_end = name_end + manifest + mac
            end = mac_end + 2 * count + (_LARGE.size if flags & 4 else _HASH_BYTES if flags & 2 else 0)
            raw = _pread(path, entry.offset, end)
        except OSError as error:
            raise Damage(f"a volume cannot be read ({error.strerror})") from None
        if len(raw) < end or crc32c(raw[_PREFIX.size :]) != _PREFIX.unpack_from(raw)[1]:
            raise Damage("a record does not verify")
        shard_index = index if flags & 2 else None
        found = (raw[_RECORD_HEADER_BYTES:name_end], flags & 1 != 0, shard_index, end + cell_bytes)
        if found != (context, entry.tombstone, entry.shard_index, entry.size_bytes):
            raise Damage("a record is not the one that its row names")
        shard: CellSource | None = None
        if flags & 4 and shard_index is not None:
            shard = self._large(raw[-_LARGE.size :], shard_index, entry.file)
        elif shard_index is not None:
            shard = PackedCell(path, entry.offset + end, cell_bytes, cell_crc)
        return Record(raw[name_end : name_end + manifest], raw[name_end + manifest : mac_end], shard)

    def _large(self, raw: bytes, shard_index: int, wanted: int) -> LargeShard | None:
        number, data_id, cell_count, _, _ = _LARGE.unpack(raw)
        if number != wanted:
            raise Damage("a record is not the one that its row names")
        try:
            path = self.path / "large" / f"{number & 0xFF:02x}" / f"{number:016x}"
            return LargeShard(path, data_id, shard_index, cell_count)
        except OSError:
            return None  # the manifest is still good


def _pread(path: Path, offset: int, size_bytes: int) -> bytes:
    with path.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), size_bytes, offset)


def _unseal(key: bytes, value: bytes) -> bytes:
    if len(value) < 4 or crc32c(key + value[:-4]).to_bytes(4, "big") != value[-4:]:
        raise Damage("a row of its index does not verify")
    return value[:-4]


def _open_index(path: Path) -> tuple[Any, dict[str, Any]]:
    """A read transaction and the tables. lmdb's types differ between its releases, hence Any."""
    env = lmdb.open(str(path), readonly=True, lock=False, create=False, max_dbs=16)
    tables = {name: env.open_db(name.encode(), create=False) for name in ("meta", "directories", "objects")}
    for name in ("writers", "graves"):  # not in directories that only older releases wrote
        with contextlib.suppress(lmdb.NotFoundError):
            tables[name] = env.open_db(name.encode(), create=False)
    return env.begin(), tables


def _survive(path: Path) -> None:
    """Walk an index in a child: LMDB has no checksums, and a damaged page may end the process. Raises `Damage`."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            txn, tables = _open_index(path)
            status = 0
            for table in tables.values():
                last, total = b"", 0
                for key, value in txn.cursor(db=table):
                    if bytes(key) <= last:  # a loop, or pages in the wrong place
                        status = 1
                        break
                    last, total = bytes(key), total + sum(value[-1:])
        except Exception:  # noqa: BLE001 - whatever it is, the parent says so
            status = 1
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise Damage("its index cannot be read: it is damaged, or not one")


# ---------------------------------------------------------------- a version (docs/formats/{manifest,segment}.md)


@dataclass(frozen=True, slots=True)
class Held:
    """One version as one node has it."""

    node: NodeDirectory
    entry: Entry


@dataclass(slots=True)
class Version:
    """A version whose seal verified, with every copy of every shard that could be found."""

    manifest: Any  # a Manifest
    cipher: AESGCM
    shards: list[tuple[int, CellSource]]
    damage: list[str]

    @property
    def segments(self) -> int:
        return max(1, -(-int(self.manifest.size_bytes) // int(self.manifest.segment_bytes)))

    def metadata(self) -> tuple[str, dict[str, str]]:
        """Content type and user metadata. Raises `Damage`."""
        if not self.manifest.sealed_metadata:
            return "", {}
        try:
            raw = self.cipher.decrypt(b"\xff" * 12, self.manifest.sealed_metadata, self.manifest.data_id)
            metadata = _messages()[1].FromString(raw)
        except (InvalidTag, DecodeError):
            raise Damage("its metadata does not verify") from None
        return metadata.content_type, {pair.key: pair.value for pair in metadata.user}

    def plaintext(self) -> Iterator[bytes]:
        """Segment after segment. Raises `Damage`."""
        for segment in range(self.segments):
            plain, used = self._segment(segment)
            # Shards that have just fitted together are asked first next time.
            self.shards.sort(key=lambda shard: shard[1] not in used)
            yield plain

    def _segment(self, segment: int) -> tuple[bytes, list[CellSource]]:
        """A segment from the first k cells that decrypt, and the copies that they came from."""
        k, tried, checked = self.manifest.k, 0, False
        found: list[tuple[int, bytes, CellSource]] = []
        for index, source in self.shards:
            try:
                cell = source.cell(segment)
            except (Damage, OSError):
                self.note(f"shard {index} is damaged")
                continue
            if tried and not self._may_be(index, cell):
                continue
            for others in itertools.combinations(found, k - 1):
                chosen = (*others, (index, cell, source))
                plain = self._open(segment, {number: data for number, data, _ in chosen})
                if plain is not None:
                    return plain, [copy for _, _, copy in chosen]
                tried += 1
                if tried >= COMBINATIONS_MAX:
                    raise Damage(f"segment {segment} does not decrypt from {len(found) + 1} cells")
            found.append((index, cell, source))
            if tried and not checked:  # cells that do not fit together: from now on each is looked at
                found = [copy for copy in found if self._may_be(copy[0], copy[1])]
                checked = True
        count = len({index for index, _, _ in found})
        if count < k:
            raise Damage(f"{count} good shards are left of {k} that are needed")
        raise Damage(f"segment {segment} does not decrypt from {count} cells")

    def note(self, text: str) -> None:
        if text not in self.damage:
            self.damage.append(text)

    def _may_be(self, index: int, cell: bytes) -> bool:
        """The manifest names the cells of a one-segment object; of larger ones, decryption tells."""
        named = self.manifest.shard_hashes[_HASH_BYTES * index : _HASH_BYTES * (index + 1)]
        if self.segments > 1 or blake3_128(cell) == named:
            return True
        self.note(f"shard {index} is damaged")
        return False

    def _open(self, segment: int, cells: dict[int, bytes]) -> bytes | None:
        """Decode and decrypt; None when these cells are not k cells of this segment."""
        manifest, indexes = self.manifest, sorted(cells)
        if len(cells) < manifest.k or len({len(cell) for cell in cells.values()}) != 1:
            return None
        data: Iterable[bytes] = [cells[index] for index in indexes]
        if indexes[-1] >= manifest.k:
            data = zfec.Decoder(manifest.k, manifest.k + manifest.m).decode(tuple(data), tuple(indexes))
        size_bytes = min(manifest.segment_bytes, manifest.size_bytes - segment * manifest.segment_bytes)
        try:
            if manifest.sealing == SEALED_CELLS:
                return self._open_cells(segment, list(data), size_bytes)
            frame = self.cipher.decrypt(segment.to_bytes(12, "big"), b"".join(data), manifest.data_id)
        except InvalidTag:
            return None
        return _unframe(frame, size_bytes)

    def _open_cells(self, segment: int, data: list[bytes], size_bytes: int) -> bytes | None:
        """Decrypt data cells that are sealed each on its own. Raises `InvalidTag`."""
        raw_bytes = -(-size_bytes // self.manifest.k) + 16
        if not 16 <= len(data[0]) <= raw_bytes:
            return None
        way = RAW if len(data[0]) == raw_bytes else FRAMED
        parts = []
        for index, cell in enumerate(data):
            nonce = bytes((way, 0, 0, 0)) + index.to_bytes(4, "big") + segment.to_bytes(4, "big")
            parts.append(self.cipher.decrypt(nonce, cell, self.manifest.data_id))
        whole = b"".join(parts)
        return whole[:size_bytes] if way == RAW else _unframe(whole, size_bytes)


@functools.cache
def _dictionary() -> zstandard.ZstdCompressionDict:
    """Dictionary 1 of the format: a text that lies beside this script."""
    path = Path(__file__).with_name("dictionary-1.txt")
    if not path.is_file():
        raise Damage(f"a segment is compressed with the dictionary {path}, which is not there: copy it, too")
    return zstandard.ZstdCompressionDict(path.read_bytes(), zstandard.DICT_TYPE_RAWCONTENT)


def _unframe(frame: bytes, size_bytes: int) -> bytes:
    """The plaintext in a decrypted frame. Raises `Damage`: its writer made it so."""
    if len(frame) < 5:
        raise Damage("a segment is shorter than its frame")
    compression, payload_bytes = struct.unpack_from("<BI", frame)
    plain = frame[5 : 5 + payload_bytes]
    if compression in (1, 2):
        try:
            dictionary = _dictionary() if compression == 2 else None
            decompressor = zstandard.ZstdDecompressor(dict_data=dictionary)
            plain = decompressor.decompress(plain, max_output_size=max(size_bytes, 1))
        except zstandard.ZstdError:
            raise Damage("a segment does not decompress") from None
    elif compression:
        raise Damage(f"a segment has compression {compression}, which this script does not know")
    if len(plain) != size_bytes:
        raise Damage(f"a segment has {len(plain)} bytes instead of {size_bytes}")
    return plain


def open_seal(context: bytes, raw: bytes, mac: bytes, keys: dict[str, AESSIV]) -> tuple[Any, bytes]:
    """A Manifest that was written for the name `context`, and its data key. Raises `Damage`."""
    try:
        manifest = _messages()[0].FromString(raw)
    except DecodeError:
        raise Damage("its manifest is not one") from None
    if manifest.format != 3 or manifest.sealing not in (SEALED_SEGMENT, SEALED_CELLS):
        kind = f"format {manifest.format} and sealing {manifest.sealing}"
        raise Damage(f"its manifest has {kind}; this script does not know that")
    key = keys.get(manifest.key_id)
    if key is None:
        raise Damage(f"its key {manifest.key_id!a} is not in the key ring")
    try:
        data_key = key.decrypt(manifest.wrapped_key, [b"coffre data key v1", manifest.data_id + context])
    except (InvalidTag, ValueError):
        raise Damage("its data key does not open: a manifest of another object, or damaged") from None
    seal_key = hmac.digest(data_key, b"coffre manifest seal v1", "sha256")
    sealed = struct.pack("<I", len(context)) + context + raw
    if not hmac.compare_digest(hmac.digest(seal_key, sealed, "sha256")[:16], mac):
        raise Damage("the seal of its manifest does not verify")
    code_known = manifest.k >= 1 and manifest.k + manifest.m <= 256
    sizes_known = 1 <= manifest.segment_bytes <= SEGMENT_BYTES_MAX
    if manifest.kind != 2 and not (manifest.kind == 1 and code_known and sizes_known):
        raise Damage("its manifest has values that this script does not know")
    return manifest, data_key


def open_version(context: bytes, stamp: bytes, held: list[Held], keys: dict[str, AESSIV]) -> Version:
    """Raises `Damage` when no node has a manifest of this version that verifies."""
    opened: tuple[Record, Any, bytes] | None = None
    shards: list[tuple[int, CellSource]] = []
    damage: list[str] = []
    for each in held:
        if each.entry.state == ABORTED:
            continue
        try:
            record = each.node.record(each.entry, context)
            if opened is None or (record.manifest, record.mac) != (opened[0].manifest, opened[0].mac):
                manifest, data_key = open_seal(context, record.manifest, record.mac, keys)
                if manifest.stamp != stamp or (manifest.kind == 2) != each.entry.tombstone:
                    raise Damage("its manifest is of another version")
                opened = opened or (record, manifest, data_key)
        except Damage as error:
            if str(error) not in damage:
                damage.append(str(error))
            continue
        if record.shard is not None and each.entry.shard_index is not None:
            shards.append((each.entry.shard_index, record.shard))
        elif each.entry.shard_index is not None:
            damage.append(f"shard {each.entry.shard_index} is missing")
    if opened is None:
        raise Damage("; ".join(damage) or "no record of it is left")
    manifest, data_key = opened[1:]
    good = [shard for shard in shards if shard[0] < manifest.k + manifest.m]
    good.sort(key=lambda shard: shard[0])
    return Version(manifest, AESGCM(data_key), good, damage)


# ---------------------------------------------------------------- the output


class Problems:
    """One line per problem, on standard error."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self.serious = False

    def add(self, text: str, *, serious: bool = True) -> None:
        self.serious = self.serious or serious
        if text not in self._told:
            if len(self._told) < 1000:
                self._told.add(text)
            print(text, file=sys.stderr)


def file_name(text: str, *, fold: bool = False) -> str:
    """A name for any key: percent-encoded; with a hash when too long, or, with `fold`, when it has capitals."""
    raw = text.encode(errors=_ANY)
    name = "".join(chr(byte) if chr(byte) in _SAFE else f"%{byte:02X}" for byte in raw)
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > FILE_NAME_BYTES_MAX or (fold and raw != raw.lower()):
        name = re.sub("%[0-9A-F]?$", "", name[:120]) + "~" + hashlib.sha256(raw).hexdigest()
    return name


_SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


class Output:
    """The directory that objects are written to, and its index.jsonl: a line per version, appended as they come."""

    def __init__(self, directory: Path, *, resume: bool) -> None:
        """Raises `Refusal` and `OSError`."""
        self._directory, self._index_path = directory, directory / "index.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()) and not (resume and self._index_path.is_file()):
            raise Refusal(f"{directory} is not empty; go on with --resume if an earlier run was cut off")
        self.done: dict[str, dict[str, Any]] = {}  # by file: the lines of an earlier run
        if resume and self._index_path.exists():
            for line in self._index_path.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                    self.done[entry["file"]] = entry
                except (ValueError, KeyError, TypeError):
                    continue  # the line that the earlier run was cut off in
        self._index: IO[bytes] = self._index_path.open("ab")
        if self._index.tell():
            self._index.write(b"\n")
        self._start = self._index.tell()
        self.fold = (directory / "INDEX.jsonl").exists()
        _sync(directory)

    def file(self, tenant: str, bucket: str, key: str, older: str) -> str:
        name = file_name(key, fold=self.fold) + (f"~older-{older}" if older else "")
        return "/".join(("objects", file_name(tenant), file_name(bucket), name))

    def is_written(self, entry: dict[str, Any]) -> bool:
        """Whether an earlier run wrote this version; then `entry` gets its checksum."""
        held = self.done.get(entry["file"])
        if held is None or any(held.get(name) != entry[name] for name in ("version", "size_bytes", "key")):
            return False
        path = self._directory / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["size_bytes"]:
            return False
        entry["sha256"] = held["sha256"]
        return True

    def write(self, file: str, pieces: Iterable[bytes]) -> str:
        """Write a whole file or none; return its SHA-256. Raises what `pieces` raises, and `OSError`."""
        path = self._directory / file
        for parent in (path.parents[2], path.parents[1], path.parents[0]):
            if not parent.exists():
                parent.mkdir()
                _sync(parent.parent)
        digest = hashlib.sha256()
        partial = path.parent / "~partial"
        try:
            with partial.open("wb") as out:
                for piece in pieces:
                    digest.update(piece)
                    out.write(piece)
                out.flush()
                os.fsync(out.fileno())
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
        _sync(path.parent)
        return digest.hexdigest()

    def note(self, entry: dict[str, Any]) -> None:
        self._index.write(json.dumps(entry).encode() + b"\n")
        self._index.flush()

    def finish(self) -> None:
        """Drop the lines of earlier runs: this one has told everything anew."""
        self._index.close()
        fresh = self._directory / "index.jsonl~"
        with self._index_path.open("rb") as whole, fresh.open("wb") as out:
            whole.seek(self._start)
            while piece := whole.read(1 << 20):
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        fresh.rename(self._index_path)
        _sync(self._directory)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ---------------------------------------------------------------- recovery


@dataclass(slots=True)
class Recovery:
    """One run. `output` is None when objects are only listed."""

    nodes: list[NodeDirectory]
    keys: dict[str, AESSIV]
    output: Output | None
    older: bool
    problems: Problems
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("recovered", "deleted", "lost", "unsettled", "older"), 0)
    )

    def run(self, tenant: str | None, bucket: str | None, prefix: str) -> None:
        """Go through all names in the order of tenant, bucket and key. Raises `OSError`."""
        places: dict[tuple[str, str], list[tuple[NodeDirectory, bytes]]] = {}
        for node in self.nodes:
            for owner, name, code in node.buckets(self.problems):
                if tenant in (None, owner) and bucket in (None, name):
                    places.setdefault((owner, name), []).append((node, code))
        for (owner, name), held in sorted(places.items()):
            rows = heapq.merge(
                *(node.keys(code, self.problems) for node, code in held), key=lambda row: row[0]
            )
            for key, group in itertools.groupby(rows, key=lambda row: row[0]):
                if key.startswith(prefix.encode()):
                    versions, damaged = self._versions(group)
                    self._object((owner, name, key.decode(errors=_ANY)), versions, damaged)

    def _versions(
        self, rows: Iterable[tuple[bytes, NodeDirectory, bytes, bytes]]
    ) -> tuple[dict[bytes, list[Held]], int]:
        """What the nodes hold of one key, by stamp, and how many of their rows are damaged."""
        versions: dict[bytes, list[Held]] = {}
        damaged = 0
        for _, node, row_key, row in rows:
            try:
                for entry in decode_row(row_key, row):
                    versions.setdefault(entry.stamp, []).append(Held(node, entry))
            except Damage:
                damaged += 1
        return versions, damaged

    def _object(self, name: tuple[str, str, str], versions: dict[bytes, list[Held]], damaged: int) -> None:
        """Recover the newest version of a name; with `older`, one more when that cannot be had or is unsettled."""
        if damaged:
            self.problems.add(f"{_show(name)}: damaged in {damaged} indexes", serious=False)
        context = "\0".join(name).encode(errors=_ANY)
        alive = [
            (stamp, settled)
            for stamp in sorted(versions, reverse=True)
            if (settled := self._settled(context, stamp, versions[stamp])) is not None
        ]
        if not alive and damaged:
            self._lost(name, None, "its rows are damaged", [])
        for place, (stamp, settled) in enumerate(alive):
            flags = ([] if settled else ["unsettled"]) + (["older"] if place else [])
            more = place + 1 < len(alive)
            whole = self._version(name, context, stamp, versions[stamp], flags, more)
            if (whole and (settled or place)) or not self.older:
                break

    def _settled(self, context: bytes, stamp: bytes, held: list[Held]) -> bool | None:
        """Whether a version is known to be established; None when its writer gave it up."""
        states = [each.entry.state for each in held]
        if SETTLED in states or (set(states) != {ABORTED} and self._is_marked(context, stamp)):
            return True
        if LOCKED in states:
            try:
                manifest = open_version(context, stamp, held, self.keys).manifest
                if manifest.k and states.count(LOCKED) > (manifest.k + manifest.m) // 2:
                    return True
            except Damage:
                pass  # told when the version itself is opened
        return None if ABORTED in states else False

    def _is_marked(self, context: bytes, stamp: bytes) -> bool:
        """Whether some node knows that this stamp's writer had everything up to it acknowledged."""
        tenant = context.partition(b"\0")[0]
        for node in self.nodes:
            try:
                if stamp <= node.mark(tenant, stamp[8:]):
                    return True
            except Damage:
                self.problems.add(f"{node.path}: the mark of a writer is damaged", serious=False)
        return False

    def _version(
        self,
        name: tuple[str, str, str],
        context: bytes,
        stamp: bytes,
        held: list[Held],
        flags: list[str],
        more: bool,
    ) -> bool:
        """Recover one version; False when it cannot be had."""
        hint = "; an older version is kept: --older writes it" if more and not self.older else ""
        try:
            version = open_version(context, stamp, held, self.keys)
            if version.manifest.kind == 2:
                self._deleted(name, stamp, flags, hint)
                return True
            entry = self._entry(name, stamp, flags)
            entry["size_bytes"] = version.manifest.size_bytes
            entry["content_type"], entry["metadata"] = version.metadata()
            self._write(name, entry, version)
        except Damage as error:
            self._lost(name, stamp, f"{error}{hint}", flags)
            return False
        for text in version.damage:
            self.problems.add(f"{_show(name)}: {text}; worked around", serious=False)
        if "unsettled" in flags:
            self.counts["unsettled"] += 1
            text = f"unsettled, nobody can say any more whether it was acknowledged{hint}"
            self.problems.add(f"{_show(name)}: {text}", serious=False)
        self.counts["older" if "older" in flags else "recovered"] += 1
        self._note(entry)
        return True

    def _write(self, name: tuple[str, str, str], entry: dict[str, Any], version: Version) -> None:
        if self.output is None:
            entry["shards"] = len({index for index, _ in version.shards})
            if entry["shards"] < version.manifest.k:
                raise Damage(f"{entry['shards']} shards are left of {version.manifest.k} that are needed")
            return
        older = entry["version"] if "older" in entry["flags"] else ""
        entry["file"] = self.output.file(*name, older)
        if not self.output.is_written(entry):
            entry["sha256"] = self.output.write(entry["file"], version.plaintext())

    def _deleted(self, name: tuple[str, str, str], stamp: bytes, flags: list[str], hint: str) -> None:
        self.counts["deleted"] += "older" not in flags
        if "unsettled" in flags:
            # The delete may never have been acknowledged, so what it hides may be a record that is missed.
            self.counts["unsettled"] += 1
            self.problems.add(f"{_show(name)}: deleted, but unsettled{hint}", serious=bool(hint))
        self._note(self._entry(name, stamp, [*flags, "deleted"]))

    def _lost(self, name: tuple[str, str, str], stamp: bytes | None, reason: str, flags: list[str]) -> None:
        self.counts["lost"] += "older" not in flags
        which = "an older version is lost too" if "older" in flags else "LOST"
        which += " (and unsettled: it may never have been acknowledged)" if "unsettled" in flags else ""
        self.problems.add(f"{_show(name)}: {which}: {reason}")
        entry = self._entry(name, stamp, [*flags, "lost"])
        entry["reason"] = reason
        self._note(entry)

    def _entry(self, name: tuple[str, str, str], stamp: bytes | None, flags: list[str]) -> dict[str, Any]:
        """A line of index.jsonl (docs/recovery.md)."""
        tenant, bucket, key = name
        return {
            "tenant": tenant,
            "bucket": bucket,
            "key": key,
            "version": None if stamp is None else stamp.hex(),
            "size_bytes": None,
            "sha256": None,
            "content_type": "",
            "metadata": {},
            "file": None,
            "flags": flags,
        }

    def _note(self, entry: dict[str, Any]) -> None:
        if self.output is None:
            print(json.dumps(entry))
        else:
            self.output.note(entry)


def _show(name: tuple[str, str, str]) -> str:
    """A name on a terminal: without control characters."""
    return json.dumps("/".join(name))


def open_nodes(paths: list[Path], problems: Problems) -> list[NodeDirectory]:
    """The directories that can be read. Raises `Refusal` when there is none."""
    nodes: dict[bytes, NodeDirectory] = {}
    for path in paths:
        try:
            node = NodeDirectory(path)
            if node.store_id in nodes:
                raise Damage(f"the same node as {nodes[node.store_id].path}, or a copy of it")
            nodes[node.store_id] = node
        except (Damage, OSError) as error:
            problems.add(f"{path}: skipped: {error}")
    if not nodes:
        raise Refusal("none of the directories given can be read as a node's")
    return list(nodes.values())


def recover(options: argparse.Namespace) -> int:
    """Raises `Refusal` and `OSError`."""
    if options.output is None and not options.list:
        raise Refusal("say where to write with --output DIR, or only list with --list")
    for path in options.nodes:
        if options.output is not None and options.output.resolve().is_relative_to(path.resolve()):
            raise Refusal(f"{options.output} lies in the node directory {path}")
    keys = read_keys(options.keyring, read_passphrase(options.passphrase_file))
    problems = Problems()
    nodes = open_nodes(options.nodes, problems)
    output = None if options.list else Output(options.output, resume=options.resume)
    recovery = Recovery(nodes, keys, output, options.older, problems)
    recovery.run(options.tenant, options.bucket, options.prefix)
    if output is not None:
        output.finish()
    sys.stdout.flush()
    told = ", ".join(f"{count} {what}" for what, count in recovery.counts.items())
    print(f"{len(nodes)} node directories read: {told}", file=sys.stderr if options.list else sys.stdout)
    return 1 if problems.serious else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Rebuild objects from the directories of stopped nodes and the key ring.",
        epilog="Exit status: 0 everything found was recovered; 1 something is lost, or could not be read; 2 usage.",
    )
    parser.add_argument("--keyring", type=Path, required=True, help="the key ring file")
    parser.add_argument("--passphrase-file", type=Path, help=f"default: ${PASSPHRASE_VARIABLE}, or a prompt")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write; empty, or new")
    parser.add_argument("--list", action="store_true", help="write nothing, list what there is as JSON lines")
    parser.add_argument("--resume", action="store_true", help="go on in DIR after an earlier run")
    parser.add_argument(
        "--older", action="store_true", help="write older versions of lost or unsettled ones too"
    )
    parser.add_argument("--tenant", help="only this tenant")
    parser.add_argument("--bucket", help="only buckets of this name")
    parser.add_argument("--prefix", default="", help="only keys that begin so")
    parser.add_argument("nodes", type=Path, nargs="+", metavar="NODE_DIR", help="a node's data directory")
    os.umask(0o077)
    try:
        return recover(parser.parse_args(arguments))
    except Refusal as error:
        print(f"recover: {error}", file=sys.stderr)
    except BrokenPipeError:  # whoever read the list has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(f"recover: stopped: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("recover: interrupted; go on with --resume", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
