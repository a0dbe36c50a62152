"""Locks per object: first come, first served, with a fencing token. A lock is a hint; what protects data is in
docs/consistency.md, "Conditional writes"."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b

from coffre.cluster.clock import Clock
from coffre.cluster.coordination._values import encode
from coffre.cluster.coordination.seam import RANGE_LIMIT_MAX, Compare, Coordination, Put
from coffre.cluster.coordination.sessions import Session
from coffre.cluster.errors import (
    DeadlineExceeded,
    NotFound,
    OutcomeUnknown,
    ReadAgain,
    ResourceExhausted,
    RetryableError,
    Unavailable,
)
from coffre.cluster.names import ObjectName
from coffre.proto import coordination_pb2 as pb

__all__ = ["KeyLocks", "LockHeld", "lock_prefix"]

_CLAIM_BYTES = 8
_ATTEMPTS_MAX = 3


def lock_prefix(name: ObjectName) -> str:
    """Where the claims to an object's lock are. The name itself stays out of coordination."""
    digest = blake2b(name.context(), digest_size=16, person=b"coffre lock v1")
    return f"locks/{name.tenant}/{digest.hexdigest()}/"


@dataclass(frozen=True, slots=True)
class LockHeld:
    """A lock. Of two holders, the later has the higher `token`."""

    token: int
    _session: Session
    _lease: int

    def check(self) -> None:
        """Raise `Unavailable` when this holder cannot be sure any more that nobody else has the lock."""
        if not self._session.holds(self._lease):
            raise Unavailable("the lock on this key was lost: coordination did not answer in time")


class KeyLocks:
    """The locks of one client. All hang on its session: they vanish when it dies."""

    def __init__(
        self, coordination: Coordination, session: Session, clock: Clock, entropy: Callable[[int], bytes]
    ) -> None:
        self._coordination = coordination
        self._session = session
        self._clock = clock
        self._entropy = entropy

    @asynccontextmanager
    async def hold(self, name: ObjectName, patience: float) -> AsyncGenerator[LockHeld]:
        """Hold the lock of `name` inside the context.

        Raises `DeadlineExceeded` when others had it for `patience` seconds, `Unavailable` when coordination cannot be
        reached.
        """
        prefix = lock_prefix(name)
        deadline = self._clock.monotonic() + patience
        for _ in range(_ATTEMPTS_MAX):
            lease = await self._session.lease()
            claim = prefix + self._entropy(_CLAIM_BYTES).hex()
            try:
                token = await self._claim(claim, lease)
                if token and await self._wait(prefix, claim, deadline):
                    yield LockHeld(token, self._session, lease)
                    return
            finally:
                if self._session.holds(lease):
                    await self._release(claim)
        raise Unavailable("the lock on this key could not be kept long enough to use it")

    async def _claim(self, claim: str, lease: int) -> int:
        """Line up; return the claim's revision, or 0 when the lease has ended."""
        try:
            done = await self._coordination.commit(
                [Compare(claim, 0)], [Put(claim, encode(pb.LockClaim()), lease)]
            )
        except NotFound:
            if self._session.holds(lease):
                self._session.drop()
            return 0
        except OutcomeUnknown:
            self._session.drop()  # if the claim is there, it goes with its lease
            return 0
        return done.revision if done.succeeded else 0

    async def _wait(self, prefix: str, claim: str, deadline: float) -> bool:
        """Return True once nobody is before `claim`, False when the claim is gone."""
        while True:
            page = await self._coordination.range(prefix, limit=RANGE_LIMIT_MAX)
            if page.more:
                raise ResourceExhausted(f"more than {RANGE_LIMIT_MAX} wait for the lock on this key")
            created = {entry.key: entry.created for entry in page.entries}
            if claim not in created:
                return False
            before = [key for key in created if created[key] < created[claim]]
            if not before:
                return True
            await self._until_gone(max(before, key=created.__getitem__), page.revision, deadline)

    async def _until_gone(self, key: str, revision: int, deadline: float) -> None:
        """Return when `key` is gone, or to be looked for again. Raises `DeadlineExceeded`."""
        left = deadline - self._clock.monotonic()
        timer = asyncio.ensure_future(self._clock.sleep(max(left, 0.0)))
        async with aclosing(self._coordination.watch(key, revision)) as watching:
            gone = asyncio.ensure_future(anext(watching))
            try:
                await asyncio.wait((gone, timer), return_when=asyncio.FIRST_COMPLETED)
                if not gone.done():
                    raise DeadlineExceeded("others hold the lock on this key")
                try:
                    gone.result()
                except ReadAgain:
                    return
            finally:
                for task in (gone, timer):
                    task.cancel()
                await asyncio.gather(gone, timer, return_exceptions=True)

    async def _release(self, claim: str) -> None:
        try:
            await self._coordination.commit([], deletes=[claim])
        except RetryableError:
            # Nobody can tell whether the claim is still there. It goes with its lease, if that is not renewed.
            self._session.drop()
