"""Names of tenants, buckets and objects, and the partition that an object's name falls into."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

from coffre.cluster.errors import InvalidArgument

__all__ = [
    "BUCKET_BYTES_MAX",
    "KEY_BYTES_MAX",
    "ObjectName",
    "check_bucket",
    "check_tenant",
    "is_bucket",
    "partition_of",
]

KEY_BYTES_MAX = 1024
BUCKET_BYTES_MAX = 63
_LABEL = re.compile(r"[a-z0-9][a-z0-9.-]{0,61}[a-z0-9]|[a-z0-9]")


@dataclass(frozen=True, slots=True)
class ObjectName:
    """Where an object is: (tenant, bucket, key). The key is any 1 to 1,024 bytes of UTF-8."""

    tenant: str
    bucket: str
    key: str
    _context: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        prefix = _prefix(self.tenant, self.bucket)
        try:
            key = self.key.encode()
        except UnicodeEncodeError:
            raise InvalidArgument("a key must be valid Unicode; this one has a lone surrogate") from None
        if not 1 <= len(key) <= KEY_BYTES_MAX:
            raise InvalidArgument(f"a key has 1 to {KEY_BYTES_MAX} bytes of UTF-8; this one has {len(key)}")
        object.__setattr__(self, "_context", prefix + key)

    def context(self) -> bytes:
        """Unambiguous bytes for key derivation and authentication: no two names share them."""
        return self._context


@lru_cache(maxsize=1024)
def _prefix(tenant: str, bucket: str) -> bytes:
    """What the contexts of a bucket's objects begin with. Raises `InvalidArgument`."""
    check_tenant(tenant)
    check_bucket(bucket)
    return b"%s\0%s\0" % (tenant.encode(), bucket.encode())


def check_tenant(tenant: str) -> None:
    """Raise `InvalidArgument` unless `tenant` is a DNS-like label of at most 63 characters."""
    if not _LABEL.fullmatch(tenant):
        raise InvalidArgument(
            f"{tenant!r} is not a tenant name: a-z, 0-9, '-' and '.', at most 63 characters"
        )


def is_bucket(bucket: str) -> bool:
    """Whether `bucket` is a DNS-like label of at most 63 characters."""
    return _LABEL.fullmatch(bucket) is not None


def check_bucket(bucket: str) -> None:
    """Raise `InvalidArgument` unless `bucket` is a DNS-like label of at most 63 characters."""
    if not is_bucket(bucket):
        raise InvalidArgument(
            f"{bucket!r} is not a bucket name: a-z, 0-9, '-' and '.', at most 63 characters"
        )


def partition_of(name: ObjectName, partitions: int) -> int:
    """The hash slot (0..partitions-1) of an object: BLAKE2b-64 of its name, modulo the number of slots."""
    return int.from_bytes(blake2b(name.context(), digest_size=8).digest(), "big") % partitions
