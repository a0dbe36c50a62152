"""The index of a store: an LMDB environment whose map grows by itself, and the way from names to its keys.

LMDB keys have at most 511 bytes and names up to 1,150, so a key of the objects table is a directory's number
and at most 400 bytes of the object's key; a longer key goes on in a directory below. docs/formats/node.md,
"Index".
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
from coffre.cluster.errors import ConfigurationError, IntegrityError
from coffre.cluster.names import ObjectName
from coffre.node.disk.ailments import Ailments
from coffre.node.disk.marks import Marks
from coffre.node.disk.rows import (
    REST_BYTES_MAX,
    Counters,
    Row,
    decode_directory,
    decode_row,
    directory_code,
    encode_directory,
)
from coffre.node.store import Recent

__all__ = ["FORMAT", "Index", "ReadGate", "WriteKeys", "partition_prefix"]

FORMAT = 1
_ROOT, _CHILD, _NAME = b"\0", b"\1", b"\2"
_ROOTS_CACHED_MAX = 10_000
_GROW_AT = 0.7
_TABLES = (
    b"objects",
    b"graves",
    b"directories",
    b"partitions",
    b"digests",
    b"staging",
    b"large",
    b"volumes",
    b"repairs",
    b"writers",
)


class ReadGate:
    """Lets readers in together, and the writer that grows the map alone: LMDB moves the map under its
    readers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of the condition; taking it directly is cheaper
        self._changed = threading.Condition(self._lock)
        self._readers = 0
        self._shut = False

    def enter(self) -> None:
        """Begin to read; waits while the map grows."""
        with self._lock:
            while self._shut:
                self._changed.wait()
            self._readers += 1

    def leave(self) -> None:
        """End what `enter` began."""
        with self._lock:
            self._readers -= 1
            if self._shut and not self._readers:
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no reader is inside, and keep them out."""
        with self._changed:
            self._shut = True
            while self._readers:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._shut = False
                self._changed.notify_all()


class Reading:
    """A read transaction as a context: LMDB's errors inside it become `IntegrityError`."""

    __slots__ = ("_ailments", "_env", "_gate", "_txn")

    def __init__(self, env: lmdb.Environment, gate: ReadGate, ailments: Ailments) -> None:
        self._env = env
        self._gate = gate
        self._ailments = ailments

    def __enter__(self) -> lmdb.Transaction[bytes]:
        self._gate.enter()
        try:
            self._txn = txn = self._env.begin()
        except BaseException as error:
            self._gate.leave()
            if isinstance(error, lmdb.Error):
                self._ailments.index_read_badly(error)
                raise _unreadable(error) from error
            raise
        return txn

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._txn.abort()
        self._gate.leave()
        if isinstance(error, IntegrityError):
            self._ailments.row_damaged()
        if isinstance(error, lmdb.Error):
            self._ailments.index_read_badly(error)
            raise _unreadable(error) from error


def _unreadable(error: lmdb.Error) -> IntegrityError:
    return IntegrityError(f"this node's index does not read well: {error}")


def partition_prefix(partition: int) -> bytes:
    """What the rows of a partition begin with: docs/formats/node.md, table `partitions`."""
    return partition.to_bytes(2, "big")


class Index:
    """The open environment. Reads are for any thread, inside `reading`; the write transaction is the
    committer's."""

    def __init__(self, path: Path, map_bytes: int, ailments: Ailments) -> None:
        """Raises `ConfigurationError` when LMDB cannot read what is there."""
        path.mkdir(exist_ok=True)
        data = path / "data.mdb"
        size_bytes = data.stat().st_size if data.exists() else 0
        self.path = path
        self.ailments = ailments
        self.gate = ReadGate()
        self._roots: dict[tuple[str, str], bytes] = {}
        # Digest and versions of partitions (65,536 at most), as committed; for the committer's thread.
        self.counted: dict[int, list[int]] = {}
        self.recent = Recent()
        try:
            self.env = lmdb.open(
                str(path),
                map_size=_round_up(max(map_bytes, size_bytes * 2)),
                max_dbs=len(_TABLES) + 1,
                max_readers=512,
                max_spare_txns=8,
                meminit=False,
                mode=0o640,
            )
            # What a killed process left in the page cache may be on no disk yet, and is soon told to others.
            self.env.sync(True)
            self.commits_found = self.commits() if size_bytes else 0
            with self.env.begin(write=True) as txn:
                self.meta = self.env.open_db(b"meta", txn=txn)
                tables = [self.env.open_db(name, txn=txn) for name in _TABLES]
        except lmdb.Error as error:
            raise ConfigurationError(
                f"the index in {path} cannot be read ({error}); if its disk failed, replace this node"
            ) from None
        (
            self.objects,
            self.graves,
            self.directories,
            self.partitions,
            self.digests,
            self.staging,
            self.large,
            self.volumes,
            self.repairs,
            writers,
        ) = tables
        self.marks = Marks(writers)

    def close(self) -> None:
        with self.gate.alone():
            self.env.close()

    def commits(self) -> int:
        """LMDB's number of the last transaction that is on the disk: it only grows.

        That of a reader, which counts a transaction once its meta page is synced. The environment's own (`last_txnid`)
        reads the page out of memory, while it may be on its way to the disk.
        """
        with self.reading() as txn:
            return int(txn.id())

    # ---------------------------------------------------------------- size

    def used_bytes(self) -> int:
        """What the index takes on disk."""
        info = self.env.info()
        return (info["last_pgno"] + 1) * 4096

    def grow_if_needed(self) -> None:
        """Double the map when it is 70 % full. For the committer's thread, outside a transaction."""
        info = self.env.info()
        if (info["last_pgno"] + 1) * 4096 > info["map_size"] * _GROW_AT:
            self.grow()

    def grow(self) -> None:
        """Make LMDB's map larger, when no transaction is open."""
        map_bytes = self.env.info()["map_size"]
        with self.gate.alone():
            self.env.set_mapsize(_round_up(map_bytes * 2))

    # ---------------------------------------------------------------- reading

    def reading(self) -> Reading:
        """A read transaction. Keep it short: it holds back the growth of the map and the reuse of pages."""
        return Reading(self.env, self.gate, self.ailments)

    def find(self, txn: lmdb.Transaction[bytes], name: ObjectName) -> bytes | None:
        """The key of an object's row; None when its directory does not exist, so neither does the row."""
        code = self.root(txn, name.tenant, name.bucket)
        rest = name.context()[len(name.tenant) + len(name.bucket) + 2 :]
        while code is not None and len(rest) > REST_BYTES_MAX:
            code = self._directory(txn, _CHILD + code + rest[:REST_BYTES_MAX])
            rest = rest[REST_BYTES_MAX:]
        return None if code is None else code + rest

    def row(self, txn: lmdb.Transaction[bytes], key: bytes) -> bytes | None:
        """The row of a key, encoded: deleted keys rest in a table of their own, where no list meets them."""
        value = txn.get(key, db=self.objects)
        return txn.get(key, db=self.graves) if value is None else value

    def root(self, txn: lmdb.Transaction[bytes], tenant: str, bucket: str) -> bytes | None:
        """The code of a bucket's directory."""
        code = self._roots.get((tenant, bucket))
        if code is None:
            code = self._directory(txn, root_key(tenant, bucket))
            if code is not None:
                self.remember_root(tenant, bucket, code)
        return code

    def remember_root(self, tenant: str, bucket: str, code: bytes) -> None:
        """Keep the code of a directory that is committed: directories are never removed or renumbered."""
        if len(self._roots) >= _ROOTS_CACHED_MAX:
            self._roots.clear()
        self._roots[tenant, bucket] = code

    def _directory(self, txn: lmdb.Transaction[bytes], key: bytes) -> bytes | None:
        value = txn.get(key, db=self.directories)
        return None if value is None else directory_code(decode_directory(key, value))

    def name_of(self, txn: lmdb.Transaction[bytes], key: bytes) -> ObjectName:
        """The object of a row's key: the way back. Raises `IntegrityError`."""
        code_bytes = key[0] + 1
        code, rest = key[:code_bytes], key[code_bytes:]
        while True:
            where = txn.get(_NAME + code, db=self.directories)
            if where is None or txn.get(where, db=self.directories) is None:
                raise IntegrityError("a directory of this node's index is missing")
            if self._directory(txn, where) != code:
                raise IntegrityError("a directory row of this node's index does not verify")
            if where[:1] == _ROOT:
                tenant, bucket = where[1:].split(b"\0")
                return ObjectName(tenant.decode(), bucket.decode(), rest.decode())
            code_bytes = where[1] + 1
            code, rest = where[1 : 1 + code_bytes], where[1 + code_bytes :] + rest

    def scan(
        self, txn: lmdb.Transaction[bytes], code: bytes, start: bytes
    ) -> Iterator[tuple[bytes, bytes, Row]]:
        """(key below the directory, key of the row, row) from `start` on, in the order of the keys' bytes; without the
        graves."""
        rows = self._scan_rows(txn, code, start)
        chunks = self._scan_directories(txn, code, start)
        row, chunk = next(rows, None), next(chunks, None)
        if row is not None and chunk is None:
            yield row
            yield from rows
            return
        while row is not None or chunk is not None:
            # A directory's keys begin with its whole chunk, so they follow the row of just those bytes.
            if row is not None and (chunk is None or row[0] <= chunk[0]):
                yield row
                row = next(rows, None)
                continue
            assert chunk is not None
            stem, below = chunk
            rest = start[REST_BYTES_MAX:] if start[:REST_BYTES_MAX] == stem else b""
            for key, row_key, held in self.scan(txn, below, rest):
                yield stem + key, row_key, held
            chunk = next(chunks, None)

    def _scan_rows(
        self, txn: lmdb.Transaction[bytes], code: bytes, start: bytes
    ) -> Iterator[tuple[bytes, bytes, Row]]:
        cursor = txn.cursor(db=self.objects)
        if not cursor.set_range(code + start[:REST_BYTES_MAX]):
            return
        size = len(code)
        for key, value in cursor:
            rest = key[size:]
            if key[:size] != code:
                return
            if rest >= start:
                yield rest, key, decode_row(key, value)

    def buckets(self, txn: lmdb.Transaction[bytes], tenant: str, after: bytes) -> Iterator[str]:
        """The buckets of a tenant behind `after`, in order, that have a directory."""
        cursor = txn.cursor(db=self.directories)
        prefix = root_key(tenant, "")
        found = cursor.set_range(prefix + after + (b"\0" if after else b""))  # the next one that can be
        while found and cursor.key().startswith(prefix):
            yield cursor.key()[len(prefix) :].decode()
            found = cursor.next()

    def _scan_directories(
        self, txn: lmdb.Transaction[bytes], code: bytes, start: bytes
    ) -> Iterator[tuple[bytes, bytes]]:
        cursor = txn.cursor(db=self.directories)
        prefix = _CHILD + code
        found = cursor.set_range(prefix + start[:REST_BYTES_MAX])
        while found:
            key, value = cursor.item()
            if not key.startswith(prefix):
                return
            yield key[len(prefix) :], directory_code(decode_directory(key, value))
            found = cursor.next()


class WriteKeys:
    """Names to keys inside one write transaction: makes directories, and tells the index of them once
    committed."""

    def __init__(self, index: Index, txn: lmdb.Transaction[bytes], counters: Counters) -> None:
        self._index = index
        self._txn = txn
        self._counters = counters
        self._roots: dict[tuple[str, str], bytes] = {}

    def key(self, name: ObjectName, rest: bytes) -> bytes:
        """The key of a row; `rest` is the encoded key of the object."""
        where = (name.tenant, name.bucket)
        code = self._index._roots.get(where) or self._roots.get(where)
        if code is None:
            code = self._roots[where] = self._enter(root_key(name.tenant, name.bucket))
        while len(rest) > REST_BYTES_MAX:
            code = self._enter(_CHILD + code + rest[:REST_BYTES_MAX])
            rest = rest[REST_BYTES_MAX:]
        return code + rest

    def _enter(self, key: bytes) -> bytes:
        code = self._index._directory(self._txn, key)
        if code is None:
            self._counters.directories += 1
            number = self._counters.directories
            code = directory_code(number)
            self._txn.put(key, encode_directory(key, number), db=self._index.directories)
            self._txn.put(_NAME + code, key, db=self._index.directories)
        return code

    def committed(self) -> None:
        """Remember the directories that the transaction made: it is durable now."""
        for (tenant, bucket), code in self._roots.items():
            self._index.remember_root(tenant, bucket, code)


def root_key(tenant: str, bucket: str) -> bytes:
    return b"\0%s\0%s" % (tenant.encode(), bucket.encode())


def _round_up(size_bytes: int) -> int:
    return -(-size_bytes // (1 << 16)) * (1 << 16)
