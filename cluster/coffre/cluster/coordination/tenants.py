"""The tenants that operators have entered."""

from __future__ import annotations

from dataclasses import dataclass

from coffre.cluster.coordination._values import decode, encode, read_all
from coffre.cluster.coordination.seam import Compare, Coordination, Entry, Put
from coffre.cluster.errors import AlreadyExists, Conflict, IntegrityError, NotFound
from coffre.cluster.names import check_tenant
from coffre.proto import coordination_pb2 as pb

__all__ = ["Tenant", "create_tenant", "get_tenant", "list_tenants", "suspend_tenant"]

TENANTS = "tenants/"


@dataclass(frozen=True, slots=True)
class Tenant:
    """`suspended` says what an operator wishes; a certificate alone opens a tenant's buckets today."""

    name: str
    created_unixtime_ms: int
    suspended: bool = False


def _key(name: str) -> str:
    check_tenant(name)
    return TENANTS + name


def _put(tenant: Tenant) -> Put:
    value = pb.Tenant(
        name=tenant.name, created_unixtime_ms=tenant.created_unixtime_ms, suspended=tenant.suspended
    )
    return Put(_key(tenant.name), encode(value))


def _read(entry: Entry) -> Tenant:
    value = decode(pb.Tenant, entry.value)
    if _key(value.name) != entry.key:
        raise IntegrityError("a tenant in coordination is not the one of its key")
    return Tenant(value.name, value.created_unixtime_ms, value.suspended)


async def create_tenant(coordination: Coordination, tenant: Tenant) -> None:
    """Raises `AlreadyExists`."""
    done = await coordination.commit([Compare(_key(tenant.name), 0)], [_put(tenant)])
    if not done.succeeded:
        raise AlreadyExists(f"tenant {tenant.name} exists")


async def _entry(coordination: Coordination, name: str) -> Entry:
    entry = await coordination.get(_key(name))
    if entry is None:
        raise NotFound(f"tenant {name} was never created")
    return entry


async def get_tenant(coordination: Coordination, name: str) -> Tenant:
    """Raises `NotFound`."""
    return _read(await _entry(coordination, name))


async def list_tenants(coordination: Coordination) -> list[Tenant]:
    return [_read(entry) for entry in await read_all(coordination, TENANTS)]


async def suspend_tenant(coordination: Coordination, name: str, *, suspended: bool) -> Tenant:
    """Raises `NotFound`, `Conflict` when somebody else changed the tenant meanwhile."""
    entry = await _entry(coordination, name)
    before = _read(entry)
    after = Tenant(before.name, before.created_unixtime_ms, suspended)
    done = await coordination.commit([Compare(entry.key, entry.modified)], [_put(after)])
    if not done.succeeded:
        raise Conflict(f"tenant {name} was changed meanwhile")
    return after
