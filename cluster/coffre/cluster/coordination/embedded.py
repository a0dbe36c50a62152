"""A coordination store on LMDB: a commit is one synced transaction. Every byte: docs/formats/coordination.md."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import lmdb
from coffre.cluster.clock import Clock
from coffre.cluster.coordination._engine import Engine, LeaseRow, Row, Write
from coffre.cluster.coordination.seam import RANGE_BYTES_MAX, Entry
from coffre.cluster.errors import ConfigurationError, IntegrityError, ResourceExhausted, Unsupported
from coffre.codec import crc32c

__all__ = ["EmbeddedCoordination"]

FORMAT = 1
MAP_BYTES = 8 << 30  # of address space, not of disk: no more fits
FULL_BYTES = 1 << 20  # with less free space, a failed write is a full disk
_ROW = struct.Struct(">BQQQ")  # format, created, modified, lease
_LEASE = struct.Struct(">BI")  # format, seconds
_META = struct.Struct(">BQ")  # format, revision
_STATE = b"state"


class EmbeddedCoordination(Engine):
    """`Coordination` in a folder of its own. One process at a time: the folder is locked."""

    def __init__(self, rows: _LmdbRows, clock: Clock, entropy: Callable[[int], bytes]) -> None:
        super().__init__(rows, clock, entropy)
        self._lmdb = rows

    @classmethod
    async def open(
        cls, directory: Path, clock: Clock, entropy: Callable[[int], bytes]
    ) -> EmbeddedCoordination:
        """Open the store, and make it if there is none.

        Raises `ConfigurationError` when another process has it, `Unsupported` for a later format, `IntegrityError` when
        it is damaged.
        """
        rows = _LmdbRows(directory, first_revision=clock.unixtime_ms())
        try:
            return cls(rows, clock, entropy)
        except BaseException:
            rows.close()
            raise

    async def close(self) -> None:
        if not self._closed:
            await super().close()
            self._lmdb.close()


class _LmdbRows:
    """Rows in LMDB. Reads are short and in the caller's thread; what syncs is in a thread of its own."""

    def __init__(self, directory: Path, first_revision: int) -> None:
        self._directory = directory
        self._lock = _take(directory)
        try:
            self._env = lmdb.open(
                str(directory),
                map_size=MAP_BYTES,
                max_dbs=3,
                mode=0o600,
                writemap=False,
                metasync=True,
                sync=True,
            )
        except lmdb.Error as error:
            os.close(self._lock)
            raise ConfigurationError(f"cannot open the coordination store in {directory}: {error}") from None
        self._entries = self._env.open_db(b"entries")
        self._leases = self._env.open_db(b"leases")
        self._meta = self._env.open_db(b"meta")
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="coffre-coordination")
        with self._env.begin(write=True) as txn:
            raw = txn.get(_STATE, db=self._meta)
            if raw is None:
                raw = _seal(_STATE, _META.pack(FORMAT, first_revision))
                txn.put(_STATE, raw, db=self._meta)
        form, self.revision = _META.unpack(_unseal(_STATE, bytes(raw)))
        _check_format(form)

    def get(self, key: str) -> Row | None:
        name = key.encode()
        with self._reading() as txn:
            raw = txn.get(name, db=self._entries)
        return None if raw is None else _decode_row(name, raw)

    def scan(self, prefix: str, after: str, limit: int) -> tuple[list[Row], bool]:
        start, skip, first = max(prefix, after).encode(), after.encode(), prefix.encode()
        found: list[Row] = []
        size_bytes = 0
        with self._reading() as txn, txn.cursor(db=self._entries) as cursor:
            if not cursor.set_range(start):
                return found, False
            for key, raw in cursor:
                if not key.startswith(first):
                    break
                if key == skip:
                    continue
                size_bytes += len(raw)
                if len(found) == limit or (found and size_bytes > RANGE_BYTES_MAX):
                    return found, True
                found.append(_decode_row(key, raw))
        return found, False

    def leases(self) -> list[LeaseRow]:
        with self._reading() as txn, txn.cursor(db=self._leases) as cursor:
            return [_decode_lease(key, raw) for key, raw in cursor]

    def leased(self) -> list[tuple[str, int]]:
        with self._reading() as txn, txn.cursor(db=self._entries) as cursor:
            rows = (_decode_row(key, raw) for key, raw in cursor)
            return [(row.entry.key, row.lease) for row in rows if row.lease]

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        """Raises `IntegrityError` when LMDB cannot read what is there."""
        try:
            with self._env.begin() as txn:
                yield txn
        except lmdb.Error as error:
            raise IntegrityError(f"this coordination store does not read well: {error}") from None

    async def write(self, write: Write) -> None:
        """Raises `ResourceExhausted` when the disk or the map is full; then nothing has changed. What else LMDB raises
        says that nobody knows."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._commit, write)
        except (lmdb.MapFullError, lmdb.DiskError) as error:
            raise ResourceExhausted(f"the coordination store cannot be written: {error}") from None
        except lmdb.Error as error:
            # LMDB calls a short write an input/output error; the pages written so far belong to nobody.
            if isinstance(error, lmdb.PanicError) or not self._is_full():
                raise
            raise ResourceExhausted("the disk of the coordination store is full") from None
        self.revision = write.revision

    def _is_full(self) -> bool:
        stat = os.statvfs(self._directory)
        return stat.f_bavail * stat.f_frsize < FULL_BYTES

    def _commit(self, write: Write) -> None:
        with self._env.begin(write=True) as txn:
            for number, lease in write.leases.items():
                name = number.to_bytes(8, "big")
                if lease is None:
                    txn.delete(name, db=self._leases)
                else:
                    txn.put(name, _seal(name, _LEASE.pack(FORMAT, lease.seconds)), db=self._leases)
            for key, row in write.rows.items():
                name = key.encode()
                if row is None:
                    txn.delete(name, db=self._entries)
                else:
                    txn.put(name, _encode_row(name, row), db=self._entries)
            state = _seal(_STATE, _META.pack(FORMAT, write.revision))
            txn.put(_STATE, state, db=self._meta)

    def close(self) -> None:
        self._writer.shutdown()
        self._env.close()
        os.close(self._lock)


def _take(directory: Path) -> int:
    """Make the folder if need be, and lock it for this process: two writers would give revisions twice."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot use {directory} for coordination: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigurationError(f"another process uses the coordination store in {directory}") from None
    return lock


def _seal(key: bytes, body: bytes) -> bytes:
    """A row's value: the body, and a CRC32C over key and body. LMDB itself notices no flipped bit."""
    return body + crc32c(body, crc32c(key)).to_bytes(4, "big")


def _unseal(key: bytes, raw: bytes) -> bytes:
    body = raw[:-4]
    if len(raw) < 5 or crc32c(body, crc32c(key)).to_bytes(4, "big") != raw[-4:]:
        raise IntegrityError("a row of the coordination store does not verify")
    return body


def _check_format(found: int) -> None:
    if found != FORMAT:
        raise Unsupported(f"coordination store format {found} is not known to this release")


def _encode_row(key: bytes, row: Row) -> bytes:
    head = _ROW.pack(FORMAT, row.entry.created, row.entry.modified, row.lease)
    return _seal(key, head + row.entry.value)


def _decode_row(key: bytes, raw: bytes) -> Row:
    body = _unseal(key, bytes(raw))
    form, created, modified, lease = _ROW.unpack_from(body)
    _check_format(form)
    return Row(Entry(key.decode(), body[_ROW.size :], created, modified), lease)


def _decode_lease(key: bytes, raw: bytes) -> LeaseRow:
    form, seconds = _LEASE.unpack(_unseal(key, bytes(raw)))
    _check_format(form)
    return LeaseRow(int.from_bytes(key, "big"), seconds)
