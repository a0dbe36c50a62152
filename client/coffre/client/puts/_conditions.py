"""Conditional writes (docs/consistency.md): a lock so that one of many goes first, and a base that the nodes check."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from coffre.client._began import Began
from coffre.client._ground import Ground
from coffre.client.reading import Lookup, Reader
from coffre.client.sealing import Draft, OpenManifest
from coffre.client.writing import Shards, Verify, Writer
from coffre.cluster.coordination import KeyLocks
from coffre.cluster.errors import AlreadyExists, InvalidArgument, PreconditionFailed, Unavailable
from coffre.cluster.names import ObjectName
from coffre.cluster.versions import Stamp

__all__ = ["Condition", "ConditionalWriter", "Untouched", "condition_of"]

RETRY_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Condition:
    """What must be so: no object there (`version` is None), or its newest version is this one."""

    version: Stamp | None

    def base(self, newest: OpenManifest | None, name: ObjectName) -> bytes:
        """The base of a version decided on `newest`. Raises `AlreadyExists`, `PreconditionFailed`."""
        live = newest is not None and not newest.tombstone
        if self.version is None and live:
            raise AlreadyExists(f"{name.bucket}/{name.key} exists", current_version=_current(newest))
        if self.version is not None and not (live and self._is_met(newest)):
            raise PreconditionFailed(
                f"{name.bucket}/{name.key} is not at version {self.version} any more",
                current_version=_current(newest) if live else None,
            )
        return newest.stamp.to_bytes() if newest is not None else b""

    def _is_met(self, newest: OpenManifest | None) -> bool:
        """Whether a version is the one that was asked for, coded anew or not."""
        return newest is not None and newest.identity == self.version


def _current(newest: OpenManifest | None) -> str | None:
    return None if newest is None else newest.info().version


@dataclass(frozen=True, slots=True)
class Untouched(Condition):
    """The newest version is this very one, not another with the same content: for who codes it anew."""

    def _is_met(self, newest: OpenManifest | None) -> bool:
        return newest is not None and newest.stamp == self.version


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
        self, ground: Ground, writer: Writer, reader: Reader, lookup: Lookup, locks: KeyLocks | None
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._lookup = lookup
        self._locks = locks
        self._clock = ground.clock
        self._patience = ground.options.patience
        self._lock_patience = ground.options.lock_patience

    async def check(self, name: ObjectName, condition: Condition) -> None:
        """Fail early, before data is moved: the condition did not hold just now."""
        await self._decide(name, condition)

    async def establish(
        self, draft: Draft, shards: Shards | None, condition: Condition, verify: Verify | None = None
    ) -> Stamp:
        """Write a version if the condition holds, and return its stamp. Raises as `Condition.base` and `Writer`.

        `verify`: as for `Writer.establish_once`; it runs without the lock, so that nobody waits for it.
        """
        if self._locks is None:
            raise Unavailable("conditional writes need coordination, and this client has none")
        async with AsyncExitStack() as stack:
            lock = await stack.enter_async_context(self._locks.hold(draft.name, self._lock_patience))
            unlocked: Verify | None = None
            verified = False
            if verify is not None:

                async def unlocked(stamp: Stamp) -> Began:
                    nonlocal verified
                    verified = True
                    await stack.aclose()
                    return await verify(stamp)

            deadline = self._clock.monotonic() + self._patience
            refused = False
            while True:
                draft.manifest.base = await self._decide(draft.name, condition, thorough=refused)
                draft.manifest.conditional = True
                lock.check()
                stamp = await self._writer.establish_once(draft, shards, deadline, unlocked)
                if stamp is not None:
                    return stamp
                if verified:  # and given up by others, who wanted to write: they go first
                    raise PreconditionFailed(f"{draft.name.bucket}/{draft.name.key} is being written")
                if self._clock.monotonic() >= deadline:
                    raise Unavailable(
                        "nodes hold other writes of this key, which are not established: try again"
                    )
                refused = True
                await self._clock.sleep(RETRY_SECONDS)

    async def _decide(self, name: ObjectName, condition: Condition, *, thorough: bool = False) -> bytes:
        found = await self._lookup.patiently(lambda: self._reader.resolve(name, thorough=thorough))
        return condition.base(None if found is None else found.opened, name)
