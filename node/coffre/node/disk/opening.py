"""Opening a data directory: locked, checked whose it is, and mended of what a kill left (docs/formats/node.md)."""

from __future__ import annotations

import fcntl
import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

import lmdb
from coffre.cluster.errors import ConfigurationError, IntegrityError
from coffre.node.disk.ailments import Ailments
from coffre.node.disk.committer import DiskSpace
from coffre.node.disk.index import FORMAT, Index
from coffre.node.disk.open_shards import OpenShards
from coffre.node.disk.rows import VOLUME, Counters, LargeState, decode_large, seal, unseal
from coffre.node.disk.volumes import Volumes, VolumeState, sync_directory
from coffre.node.store import StoreOptions

__all__ = ["Parts", "StoreOwner", "open_directory"]

_VOLUME_BYTES_MAX = 1 << 31
_OWNER = b"owner"


@dataclass(frozen=True, slots=True)
class StoreOwner:
    """The node that a store belongs to, for ever."""

    cluster_id: str
    node_id: str

    def __str__(self) -> str:
        return f"node {self.node_id} of cluster {self.cluster_id}"

    def encode(self) -> bytes:
        """As it rests in the index."""
        return b"%s\0%s" % (self.cluster_id.encode(), self.node_id.encode())

    @classmethod
    def decode(cls, raw: bytes) -> StoreOwner:
        """Raises `IntegrityError`."""
        cluster_id, nul, node_id = raw.partition(b"\0")
        if not nul:
            raise IntegrityError("the store does not say which node it belongs to")
        return cls(cluster_id.decode(), node_id.decode())


class Parts:
    """What an open directory consists of."""

    def __init__(self, root: Path, options: StoreOptions, lock: int, owner: StoreOwner | None) -> None:
        self.lock = lock
        self.large = root / "large"
        self.open_shards = OpenShards(self.large)
        self.ailments = Ailments(root)
        self.index = Index(root / "index", options.map_bytes, self.ailments)
        try:
            self.store_id, self.counters = _identify(self.index, root, owner)
            self.volumes = Volumes(root / "volumes", self.store_id)
            self._load_volumes()
            self.damaged = self.volumes.check()
            self.space = DiskSpace(root, options, self.volumes, self.index)
            self._sweep_large()
        except BaseException:
            self.index.close()
            raise

    def _load_volumes(self) -> None:
        with self.index.reading() as txn, txn.cursor(db=self.index.volumes) as cursor:
            for key, value in cursor:
                length, live_bytes = VOLUME.unpack(unseal(key, value))
                self.volumes.table[int.from_bytes(key, "big")] = VolumeState(length, live_bytes)

    def _sweep_large(self) -> None:
        """Remove the files and rows of large shards that were not finished, or freed."""
        known: set[str] = set()
        gone: list[bytes] = []
        with self.index.reading() as txn, txn.cursor(db=self.index.large) as cursor:
            for key, value in cursor:
                file = decode_large(key, value)
                if file.state in (LargeState.STAGED, LargeState.ADOPTED):
                    known.add(f"{int.from_bytes(key, 'big'):016x}")
                    self.space.large_bytes += file.file_bytes
                else:
                    gone.append(key)
        for directory in self.large.iterdir():
            for path in directory.iterdir():
                if path.name not in known:
                    path.unlink()
            sync_directory(directory)
        if gone:
            with self.index.env.begin(write=True) as txn:
                for key in gone:
                    txn.delete(key, db=self.index.large)


def _identify(index: Index, root: Path, owner: StoreOwner | None) -> tuple[bytes, Counters]:
    """Check the format of an index and whose it is, or begin a new one. Returns the store's id and counters."""
    with index.env.begin(write=True) as txn:
        raw = txn.get(b"format", db=index.meta)
        if raw is None:
            if any((root / "volumes").iterdir()) or any((root / "large").iterdir()):
                raise ConfigurationError(
                    f"{root} has volumes but its index is gone: restore the index, or replace this node"
                )
            store_id = uuid.uuid4().bytes
            txn.put(b"format", seal(b"format", struct.pack(">I", FORMAT)), db=index.meta)
            txn.put(b"store", seal(b"store", store_id), db=index.meta)
            txn.put(b"counters", seal(b"counters", Counters().encode()), db=index.meta)
            if owner is not None:
                txn.put(_OWNER, seal(_OWNER, owner.encode()), db=index.meta)
            return store_id, Counters()
        (format_,) = struct.unpack(">I", unseal(b"format", raw))
        if format_ != FORMAT:
            raise ConfigurationError(
                f"{root} is in format {format_}; this release of Coffre knows format {FORMAT} alone"
            )
        if owner is not None:
            _check_owner(root, owner, txn.get(_OWNER, db=index.meta))
        store_id = unseal(b"store", txn.get(b"store", b"", db=index.meta))
        return store_id, Counters.decode(unseal(b"counters", txn.get(b"counters", b"", db=index.meta)))


def _check_owner(root: Path, owner: StoreOwner, raw: bytes | None) -> None:
    if raw is None:
        raise ConfigurationError(
            f"the store in {root} does not say which node it belongs to, so nobody serves it"
        )
    found = StoreOwner.decode(unseal(_OWNER, raw))
    if found != owner:
        raise ConfigurationError(
            f"the store in {root} belongs to {found}, and this is {owner}: is the right disk mounted there, and is "
            "data in node.toml the right path? (A copy of another node's directory is never served.)"
        )


def open_directory(root: Path, options: StoreOptions, owner: StoreOwner | None) -> Parts:
    """Lock, check and mend a data directory. Blocks. Raises `ConfigurationError`."""
    if not 4096 <= options.volume_bytes <= _VOLUME_BYTES_MAX:
        raise ConfigurationError(f"a volume has between 4096 and {_VOLUME_BYTES_MAX} bytes")
    try:
        for path in (root, root / "volumes", root / "large"):
            path.mkdir(parents=True, exist_ok=True, mode=0o750)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigurationError(f"the data directory {root} cannot be used: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(f"{root} is in use by another process") from None
        parts = Parts(root, options, lock, owner)
        sync_directory(root / "index")
        sync_directory(root)
        sync_directory(root.absolute().parent)
    except (IntegrityError, lmdb.Error) as error:
        os.close(lock)
        raise ConfigurationError(
            f"the index in {root} is damaged ({error}); if its disk failed, replace this node"
        ) from None
    except OSError as error:
        os.close(lock)
        raise ConfigurationError(f"the data directory {root} cannot be used: {error}") from None
    except BaseException:
        os.close(lock)
        raise
    return parts
