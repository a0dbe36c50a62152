"""What the client takes and returns: options, object infos, list pages, places of shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coffre.client._checks import count_of, seconds_of
from coffre.cluster.errors import InvalidArgument

__all__ = [
    "ClientOptions",
    "ListPage",
    "ObjectInfo",
    "RecodeReport",
    "ShardPlace",
]

COMPRESS_LEVEL_MAX = 22  # of zstd


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How a client behaves. Times in seconds. Raises `InvalidArgument` for values that cannot be."""

    compress_level: int | None = 3  # of zstd, 1 to 22; None: never compress
    timeout: float = 5.0  # of one round trip
    patience: float = 2.0  # how long reads and writes try again while too few nodes answer
    hedge_delay: float = 0.05  # after which a read asks one more node
    straggler_grace: float = 0.1  # how long a durable write waits for the remaining nodes
    lock_patience: float = 30.0  # how long a conditional write waits for others of the same key
    stall_timeout: float = (
        10.0  # after which a streamed write leaves a stuck node behind (1 s if it hung before)
    )

    def __post_init__(self) -> None:
        if self.compress_level is not None:
            count_of("compress_level", self.compress_level, 1, COMPRESS_LEVEL_MAX)
        for name in ("timeout", "stall_timeout"):
            _given(name, seconds_of(name, getattr(self, name)))
        for name in ("patience", "hedge_delay", "straggler_grace", "lock_patience"):
            _given(name, seconds_of(name, getattr(self, name), or_least=True))


def _given(name: str, value: float | None) -> None:
    if value is None:
        raise InvalidArgument(f"{name} is a number, not None")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of one version without reading its data."""

    bucket: str
    key: str
    version: str  # 32 hexadecimal digits
    size_bytes: int
    unixtime_ms: int
    content_type: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    deleted: bool = False  # a tombstone, in a list of versions
    # Why this client cannot open it, most often since its key ring lacks the key; "" when it can. Content type and
    # metadata are not known then; of what is damaged all over, nothing but the key is.
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing in key order. `next_token` is None on the last page."""

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...]
    next_token: str | None

    @property
    def entries(self) -> list[ObjectInfo | str]:
        """Objects and common prefixes together, in key order."""
        return sorted((*self.objects, *self.prefixes), key=_position)


@dataclass(frozen=True, slots=True)
class ShardPlace:
    """Where one shard of an object lies, and how it is."""

    shard_index: int
    parity: bool
    node_id: str
    site: str
    operator: str
    state: str  # "ok", "damaged", "missing" or "unreachable"
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RecodeReport:
    """How far the re-coding of a bucket has come. Bytes are of plaintext."""

    policy: str  # what its objects are to be coded by
    objects: int = 0  # that were coded otherwise when it began
    size_bytes: int = 0
    done_objects: int = 0  # coded anew
    done_bytes: int = 0
    overtaken: int = 0  # written or deleted by others meanwhile
    failed: Mapping[str, str] = field(default_factory=dict)  # why, by key; at most 100 of them
    failures: int = 0


def _position(entry: ObjectInfo | str) -> bytes:
    return (entry if isinstance(entry, str) else entry.key).encode()
