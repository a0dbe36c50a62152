"""Conditional writes (docs/consistency.md): a lock so that one of many goes first, and a base that the nodes check."""

from __future__ import annotations

from dataclasses import dataclass

from coffre.client._lookup import Lookup
from coffre.client._reads import Reader
from coffre.client._sealing import Draft
from coffre.client._writes import Shards, Writer
from coffre.cluster.clock import Clock
from coffre.cluster.coordination.locks import KeyLocks
from coffre.cluster.errors import AlreadyExists, InvalidArgument, PreconditionFailed, Unavailable
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp

__all__ = ["Condition", "ConditionalWriter", "condition_of"]

RETRY_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be so: no object there (`version` is None), or its newest version is this one."""

    version: Stamp | None

    def base(self, newest: Stamp | None, *, tombstone: bool, name: ObjectName) -> bytes:
        """The base of a version decided on `newest`. Raises `AlreadyExists`, `PreconditionFailed`."""
        if self.version is None and newest is not None and not tombstone:
            raise AlreadyExists(f"{name.bucket}/{name.key} exists")
        if self.version is not None and (tombstone or self.version != newest):
            raise PreconditionFailed(f"{name.bucket}/{name.key} is not at version {self.version} any more")
        return newest.to_bytes() if newest is not None else b""


def condition_of(if_absent: bool, if_version: str | None) -> Condition | None:
    """What the arguments of a call ask for; None for a plain write. Raises `InvalidArgument`."""
    if if_version is None:
        return Condition(None) if if_absent else None
    if if_absent:
        raise InvalidArgument("a write is either if absent or if at a version")
    return Condition(Stamp.parse(if_version))


class ConditionalWriter:
    """Decides and writes under the lock of a key; without coordination it raises `Unavailable`."""

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        lookup: Lookup,
        locks: KeyLocks | None,
        clock: Clock,
        *,
        patience: float,
        lock_patience: float,
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._lookup = lookup
        self._locks = locks
        self._clock = clock
        self._patience = patience
        self._lock_patience = lock_patience

    async def check(self, name: ObjectName, condition: Condition) -> None:
        """Fail early, before data is moved: the condition did not hold just now."""
        await self._decide(name, condition)

    async def establish(self, draft: Draft, shards: Shards | None, condition: Condition) -> Stamp:
        """Write a version if the condition holds, and return its stamp. Raises as `Condition.base` and `Writer`."""
        if self._locks is None:
            raise Unavailable("conditional writes need coordination, and this client has none")
        async with self._locks.hold(draft.name, self._lock_patience) as lock:
            deadline = self._clock.monotonic() + self._patience
            refused = False
            while True:
                draft.manifest.base = await self._decide(draft.name, condition, thorough=refused)
                draft.manifest.conditional = True
                lock.check()
                stamp = await self._writer.establish_once(draft, shards, deadline)
                if stamp is not None:
                    return stamp
                if self._clock.monotonic() >= deadline:
                    raise Unavailable(
                        "nodes hold other writes of this key, which are not established: try again"
                    )
                refused = True
                await self._clock.sleep(RETRY_SECONDS)

    async def _decide(self, name: ObjectName, condition: Condition, *, thorough: bool = False) -> bytes:
        found = await self._lookup.patiently(lambda: self._reader.resolve(name, thorough=thorough))
        if found is None:
            return condition.base(None, tombstone=False, name=name)
        return condition.base(found.opened.stamp, tombstone=found.opened.tombstone, name=name)
