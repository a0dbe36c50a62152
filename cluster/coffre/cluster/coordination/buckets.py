"""Buckets that were created on purpose. A put into one that never was goes on working, under the default policy."""

from __future__ import annotations

from dataclasses import dataclass

from coffre.cluster.coordination._values import decode, encode, read_all
from coffre.cluster.coordination.seam import Compare, Coordination, Entry, Put
from coffre.cluster.errors import AlreadyExists, IntegrityError, NotFound
from coffre.cluster.names import check_bucket, check_tenant
from coffre.proto import coordination_pb2 as pb

__all__ = ["Bucket", "bucket_prefix", "create_bucket", "delete_bucket", "get_bucket", "list_buckets"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """`policy`: the name of a storage policy of the map, empty for the default one."""

    tenant: str
    name: str
    policy: str
    created_unixtime_ms: int


def bucket_prefix(tenant: str) -> str:
    """What the keys of a tenant's buckets begin with. Raises `InvalidArgument` for a name that is none."""
    check_tenant(tenant)
    return f"buckets/{tenant}/"


def _key(tenant: str, name: str) -> str:
    check_bucket(name)
    return bucket_prefix(tenant) + name


def _read(entry: Entry) -> Bucket:
    value = decode(pb.Bucket, entry.value)
    if _key(value.tenant, value.name) != entry.key:
        raise IntegrityError("a bucket in coordination is not the one of its key")
    return Bucket(value.tenant, value.name, value.policy, value.created_unixtime_ms)


async def create_bucket(coordination: Coordination, bucket: Bucket) -> None:
    """Raises `AlreadyExists`."""
    key = _key(bucket.tenant, bucket.name)
    value = pb.Bucket(
        tenant=bucket.tenant,
        name=bucket.name,
        policy=bucket.policy,
        created_unixtime_ms=bucket.created_unixtime_ms,
    )
    done = await coordination.commit([Compare(key, 0)], [Put(key, encode(value))])
    if not done.succeeded:
        raise AlreadyExists(f"bucket {bucket.name} exists")


async def get_bucket(coordination: Coordination, tenant: str, name: str) -> Bucket:
    """Raises `NotFound` when it was never created."""
    entry = await coordination.get(_key(tenant, name))
    if entry is None:
        raise NotFound(f"bucket {name} was never created")
    return _read(entry)


async def list_buckets(coordination: Coordination, tenant: str) -> list[Bucket]:
    """All buckets of a tenant, by name."""
    return [_read(entry) for entry in await read_all(coordination, bucket_prefix(tenant))]


async def delete_bucket(coordination: Coordination, tenant: str, name: str) -> None:
    """Forget that a bucket was created; its objects are not touched. Raises `NotFound`."""
    key = _key(tenant, name)
    entry = await coordination.get(key)
    if entry is None:
        raise NotFound(f"bucket {name} was never created")
    done = await coordination.commit([Compare(key, entry.modified)], deletes=[key])
    if not done.succeeded:
        raise NotFound(f"bucket {name} was deleted meanwhile")
