"""The tenants that operators have entered."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from coffre.cluster.coordination._values import decode, encode, read_all
from coffre.cluster.coordination.seam import Compare, Coordination, Entry, Put
from coffre.cluster.errors import AlreadyExists, Conflict, IntegrityError, NotFound, ReadAgain
from coffre.cluster.names import check_tenant
from coffre.proto import coordination_pb2 as pb

__all__ = ["Tenant", "create_tenant", "get_tenant", "list_tenants", "suspend_tenant", "watch_tenants"]

TENANTS = "tenants/"


@dataclass(frozen=True, slots=True)
class Tenant:
    """`suspended`: nodes refuse its certificates. `decided_unixtime_ms`: when an operator last said so, or took that
    back. It only grows, and an entry that is older than what a node knows takes nothing back there."""

    name: str
    created_unixtime_ms: int
    suspended: bool = False
    decided_unixtime_ms: int = 0


def _key(name: str) -> str:
    check_tenant(name)
    return TENANTS + name


def _put(tenant: Tenant) -> Put:
    value = pb.Tenant(
        name=tenant.name,
        created_unixtime_ms=tenant.created_unixtime_ms,
        suspended=tenant.suspended,
        decided_unixtime_ms=tenant.decided_unixtime_ms,
    )
    return Put(_key(tenant.name), encode(value))


def _read(entry: Entry) -> Tenant:
    value = decode(pb.Tenant, entry.value)
    if _key(value.name) != entry.key:
        raise IntegrityError("a tenant in coordination is not the one of its key")
    return Tenant(value.name, value.created_unixtime_ms, value.suspended, value.decided_unixtime_ms)


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
    """All tenants that coordination knows of, in the order of their names."""
    return [_read(entry) for entry in await read_all(coordination, TENANTS)]


async def suspend_tenant(
    coordination: Coordination, name: str, *, suspended: bool, unixtime_ms: int
) -> Tenant:
    """Suspend a tenant, or take that back; one that was never entered is entered.

    Raises `Conflict` when somebody else changed the tenant meanwhile.
    """
    entry = await coordination.get(_key(name))
    before = _read(entry) if entry is not None else Tenant(name, unixtime_ms)
    decided = max(unixtime_ms, before.decided_unixtime_ms + 1)
    after = Tenant(name, before.created_unixtime_ms, suspended, decided)
    done = await coordination.commit([Compare(_key(name), entry.modified if entry else 0)], [_put(after)])
    if not done.succeeded:
        raise Conflict(f"tenant {name} was changed meanwhile")
    return after


async def watch_tenants(coordination: Coordination) -> AsyncGenerator[list[Tenant]]:
    """Yield all tenants, and again whenever one has changed.

    Raises `Unavailable` when coordination cannot be reached any more.
    """
    while True:
        page = await coordination.range(TENANTS, limit=1)  # what changes from here on is not missed
        yield await list_tenants(coordination)
        async with aclosing(coordination.watch(TENANTS, page.revision)) as watching:
            try:
                await anext(watching)
            except ReadAgain:
                continue
