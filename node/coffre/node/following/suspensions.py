"""Which tenants are suspended: told by coordination, kept in the node's store, so that a restart forgets none."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import aclosing
from typing import Protocol

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import Coordination, Tenant, watch_tenants
from coffre.cluster.errors import CoffreError, IntegrityError, RetryableError
from coffre.cluster.names import check_tenant
from coffre.node.following.mapholder import MapHolder

__all__ = ["Suspensions"]

_log = logging.getLogger("coffre.node")
_TITLE = "suspended"
_FORMAT = b"\1"
_TIME_BYTES = 8
PAUSE_SECONDS = 0.5  # before coordination is tried again


class Notes(Protocol):
    """What is needed of a `ShardStore`."""

    async def keep_note(self, title: str, note: bytes, *, sync: bool = False) -> None: ...

    async def note(self, title: str) -> bytes: ...


class Suspensions:
    """Keeps `MapHolder.suspended` up to date.

    A tenant stays suspended until coordination says that a later decision took it back. That coordination knows nothing
    of a tenant (it was lost, and filled again) takes nothing back. A node that cannot read what it kept serves no
    tenant until it has heard from coordination.
    """

    def __init__(self, maps: MapHolder, notes: Notes, clock: Clock) -> None:
        self._maps = maps
        self._notes = notes
        self._clock = clock
        self._decided: dict[str, int] = {}  # of suspended tenants: when
        self._kept: dict[str, int] | None = {}  # None: nobody knows

    async def load(self) -> None:
        """Before the node serves."""
        try:
            self._decided = _decode(await self._notes.note(_TITLE))
        except IntegrityError as error:
            _log.error("no tenant is served until coordination answers: %s", error)
            self._kept = self._maps.suspended = None
        else:
            self._kept = dict(self._decided)
            self._maps.suspended = frozenset(self._decided)

    async def run(self, coordination: Coordination) -> None:
        """Until cancelled."""
        said: type[CoffreError] | None = None
        while True:
            try:
                async with aclosing(watch_tenants(coordination)) as watching:
                    async for tenants in watching:
                        await self.adopt(tenants)
                        said = None
            except CoffreError as error:
                if type(error) is not said:  # once: it is tried again and again
                    said = type(error)
                    level = logging.INFO if isinstance(error, RetryableError) else logging.ERROR
                    about = {"error": said.__name__, "reason": str(error)}
                    _log.log(level, "cannot follow suspensions", extra=about)
            await self._clock.sleep(PAUSE_SECONDS)

    async def adopt(self, tenants: Iterable[Tenant]) -> None:
        """Take what coordination says: first in use, then on disk. Raises what the store raises."""
        for tenant in tenants:
            known = self._decided.get(tenant.name)
            if tenant.suspended:
                self._decided[tenant.name] = max(tenant.decided_unixtime_ms, known or 0)
            elif known is not None and tenant.decided_unixtime_ms > known:
                del self._decided[tenant.name]
        suspended = frozenset(self._decided)
        if suspended != self._maps.suspended:
            self._maps.suspended = suspended
            _log.info("suspensions changed", extra={"suspended": len(suspended)})
        if self._decided != self._kept:
            kept = dict(self._decided)
            await self._notes.keep_note(_TITLE, _encode(kept), sync=True)
            self._kept = kept


def _encode(decided: dict[str, int]) -> bytes:
    rows = (ms.to_bytes(_TIME_BYTES, "big") + name.encode() + b"\0" for name, ms in sorted(decided.items()))
    return _FORMAT + b"".join(rows)


def _decode(raw: bytes) -> dict[str, int]:
    """Raises `IntegrityError`."""
    if not raw:
        return {}
    try:
        if raw[:1] != _FORMAT:
            raise ValueError
        decided: dict[str, int] = {}
        rest = raw[1:]
        while rest:
            end = rest.index(b"\0", _TIME_BYTES)
            name = rest[_TIME_BYTES:end].decode()
            check_tenant(name)
            decided[name] = int.from_bytes(rest[:_TIME_BYTES], "big")
            rest = rest[end + 1 :]
    except (ValueError, CoffreError):
        raise IntegrityError("this node cannot read which tenants are suspended") from None
    return decided
