"""Clients at work: each operation goes into the history as what its caller can know of it."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from dataclasses import dataclass
from hashlib import shake_128
from typing import Any

from coffre.client import ObjectInfo
from coffre.cluster.errors import CoffreError, InternalError, NotFound, OutcomeUnknown, StaleMap, Unavailable

from tests.simulation.history import Kind, Operation
from tests.simulation.segments import SEGMENT_BYTES
from tests.simulation.world import BUCKET, Member, World

__all__ = ["Worker", "body", "keys_of"]


def keys_of(world: World) -> list[str]:
    return [f"{'ab'[number % 2]}/{number}" for number in range(world.plan.keys)]


def body(value: int, size_bytes: int) -> bytes:
    """What an object holds that stands for `value`; no two values share a body."""
    head = b"%d:" % value
    return head + shake_128(head).digest(size_bytes)


@dataclass(slots=True)
class Worker:
    """One operation after the other, through one client. Values count up across the world, so none is written twice."""

    world: World
    member: Member
    name: str
    rng: random.Random

    async def run(self, operations: int) -> None:
        pause = self.world.plan.pause
        for _ in range(operations):
            await self.member.clock.sleep(self.rng.expovariate(1 / pause))
            await self.one()

    async def one(self) -> None:
        key = self.rng.choice(keys_of(self.world))
        draw = self.rng.random()
        if draw < 0.36:
            await self.put(key)
        elif draw < 0.48:
            await self.delete(key)
        elif draw < 0.80:
            await self.get(key)
        elif draw < 0.90:
            await self.head(key)
        else:
            await self.list(self.rng.choice(["", "", "a/", "b/"]), self.rng.choice([1, 2, 1000]))

    # ---------------------------------------------------------------- writing

    def something(self) -> tuple[int, bytes]:
        """A value that was never written, and what an object holds that stands for it."""
        value = self.world.history.tick()
        large = self.rng.random() < self.world.plan.large
        size_bytes = (
            self.rng.randrange(SEGMENT_BYTES, 20 * SEGMENT_BYTES) if large else self.rng.randrange(300)
        )
        return value, body(value, size_bytes)

    async def put(self, key: str, *, must: bool = False, again: bool = False) -> None:
        value, data = self.something()
        operation = self.world.history.begin(Kind.PUT, key, self.name, value, f"{len(data)} bytes")
        call = self.member.client.put(BUCKET, key, data, content_type=str(value))
        error = await self._write(operation, call, must=must, stale=must and not again)
        if must and not again and isinstance(error, StaleMap):  # "put the object again"
            await self.put(key, must=True, again=True)

    async def delete(self, key: str, *, must: bool = False) -> None:
        operation = self.world.history.begin(Kind.DELETE, key, self.name)
        await self._write(operation, self.member.client.delete(BUCKET, key), must=must)

    async def _write(
        self,
        operation: Operation,
        call: Coroutine[Any, Any, ObjectInfo],
        *,
        must: bool = False,
        stale: bool = False,
    ) -> CoffreError | None:
        """Returns what it failed with for sure. `stale`: it may be that the map had changed meanwhile."""
        history = self.world.history
        self._note("begins", operation.kind.value, operation.key, operation.value)
        try:
            info = await call
        except OutcomeUnknown as error:
            self._missed(operation, error, must=must)
            self._note("cannot tell of", operation.kind.value, operation.key, operation.value, error)
        except CoffreError as error:
            self._refused(error)
            self._missed(operation, error, must=must and not (stale and isinstance(error, StaleMap)))
            self._note("failed to", operation.kind.value, operation.key, operation.value, repr(error))
            history.drop(operation)
            return error
        else:
            history.end(operation)
            self.world.acknowledged.add(info.version)
            self._note("has", operation.kind.value, operation.key, operation.value, info.version)
        return None

    def _missed(self, operation: Operation, error: CoffreError, *, must: bool) -> None:
        if must:
            self.world.fail(f"{operation} failed although everything that it needs answers: {error!r}")

    # ---------------------------------------------------------------- reading

    async def get(self, key: str, *, must: bool = False) -> None:
        began = self.world.history.tick()
        value: int | None = None
        try:
            value = self._value_of(key, await self.member.client.get(BUCKET, key))
        except NotFound:
            pass
        except CoffreError as error:
            self._unread(f"get {key}", error, must=must)
            return
        self.world.history.read(key, self.name, value, began, "get")
        self._note("gets", key, value)

    def _value_of(self, key: str, data: bytes) -> int:
        head, _, rest = data.partition(b":")
        value = int(head) if head.isdigit() else -1
        if data != body(value, len(rest)):
            self.world.fail(f"{self.name} got bytes of {key} that nobody wrote: {data[:40]!r}")
        return value

    async def head(self, key: str, *, must: bool = False) -> None:
        began = self.world.history.tick()
        value: int | None = None
        try:
            value = int((await self.member.client.head(BUCKET, key)).content_type)
        except NotFound:
            pass
        except CoffreError as error:
            self._unread(f"head {key}", error, must=must)
            return
        self.world.history.read(key, self.name, value, began, "head")
        self._note("heads", key, value)

    async def list(self, prefix: str, page_size: int, *, must: bool = False) -> None:
        """A list reads every key that it might have shown, each at some time while it ran."""
        began = self.world.history.tick()
        found: dict[str, int] = {}
        untold: set[str] = set()
        try:
            async for entry in self.member.client.list(BUCKET, prefix=prefix, page_size=page_size):
                if isinstance(entry, ObjectInfo) and entry.unreadable and entry.key not in untold:
                    untold.add(entry.key)  # what a lost node had decides it; nothing is said of it
                elif isinstance(entry, ObjectInfo) and entry.key not in found:
                    found[entry.key] = int(entry.content_type)
                else:
                    self.world.fail(f"{self.name} lists {entry} twice, or a prefix that nobody asked for")
        except CoffreError as error:
            self._unread(f"list {prefix}", error, must=must)
            return
        if list(found) != sorted(found):
            self.world.fail(f"{self.name} lists out of order: {list(found)}")
        for key in keys_of(self.world):
            if key.startswith(prefix) and key not in untold:
                self.world.history.read(key, self.name, found.pop(key, None), began, "list")
        if found:
            self.world.fail(f"{self.name} lists what nobody asked for: {found}")
        self._note("lists", prefix, page_size)

    def _unread(self, what: str, error: CoffreError, *, must: bool) -> None:
        """A read that returned nothing says nothing, but must not happen when nothing is broken."""
        self._refused(error)
        self._note("failed to", what, repr(error))
        held_up = isinstance(error, Unavailable) and self.member.client.cluster_map.lost  # docs/repair.md
        if must and not held_up:
            self.world.fail(f"{what} failed although everything answers: {error!r}")

    def _refused(self, error: CoffreError) -> None:
        if isinstance(error, InternalError):
            self.world.fail(f"{self.name} met a bug: {error!r}")

    def _note(self, *what: object) -> None:
        self.world.journal.note(self.name, *what)
