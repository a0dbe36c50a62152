"""Conditional writes at work: each is a compare-and-swap in the history, and what they promise about coordination."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Coroutine
from typing import Any

from coffre.client import ObjectInfo
from coffre.cluster.errors import (
    AlreadyExists,
    CoffreError,
    IntegrityError,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    RetryableError,
)
from coffre.cluster.versions import Stamp

from tests.simulation.history import Kind, Operation
from tests.simulation.workload import Worker, keys_of
from tests.simulation.world import BUCKET, Member, World

__all__ = ["ConditionalWorker", "Must", "examine_conditions"]

RACERS = 3
SECONDS_AHEAD_MAX = (
    40.0  # nodes refuse stamps more than 60 s ahead, and clocks of clients are up to 20 s ahead
)
NEVER_THERE = -1  # stands for what no object ever is: a version that is a tombstone
Version = tuple[str, int]  # of an object, and the value that it stands for


class Must(enum.Enum):
    """What may become of a conditional write."""

    ANYTHING = "anything"
    BE_DECIDED = "be decided"  # it happens, or its condition does not hold
    HAPPEN = "happen"
    BE_REFUSED = "be refused"  # its condition does not hold
    FAIL = "fail"  # in a way that may be tried again, and leaves nothing


class ConditionalWorker(Worker):
    """A worker, part of whose operations are conditional writes, on versions that it just read or knows of old."""

    def __init__(self, world: World, member: Member, name: str) -> None:
        super().__init__(world, member, name, world.chance(f"work of {name}"))
        self._chance = world.chance(f"conditional work of {name}")
        self._known: dict[str, list[Version]] = {}

    async def one(self) -> None:
        if self._chance.random() >= self.world.plan.agreement.share:
            await super().one()
            return
        key = self._chance.choice(keys_of(self.world))
        if self._chance.random() < 0.4:
            await self.create(key)
            return
        version = await self._version(key)
        if version is None:
            await self.create(key)
        elif self._chance.random() < 0.7:
            await self.replace(key, version)
        else:
            await self.remove(key, version)

    async def _version(self, key: str) -> Version | None:
        known = self._known.setdefault(key, [])
        if known and self._chance.random() < 0.3:
            return self._chance.choice(known)  # it may be stale
        return await self.newest(key)

    async def newest(self, key: str) -> Version | None:
        """The newest version of an object; None when there is none, or it cannot be told."""
        began = self.world.history.tick()
        found: Version | None = None
        try:
            info = await self.member.client.head(BUCKET, key)
            found = info.version, int(info.content_type)
            self._known.setdefault(key, []).append(found)
        except NotFound:
            pass
        except CoffreError as error:
            self._unread(f"head {key}", error, must=False)
            return None
        self.world.history.read(key, self.name, found[1] if found else None, began, "head")
        return found

    # ---------------------------------------------------------------- writing

    async def create(self, key: str, must: Must = Must.ANYTHING) -> bool:
        """Put an object if there is none; whether that happened."""
        value, data = self.something()
        call = self.member.client.put(BUCKET, key, data, content_type=str(value), if_absent=True)
        return await self._swap(self._begin(key, value, None, f"create, {len(data)} bytes"), call, must)

    async def replace(self, key: str, version: Version, must: Must = Must.ANYTHING) -> bool:
        value, data = self.something()
        call = self.member.client.put(BUCKET, key, data, content_type=str(value), if_version=version[0])
        operation = self._begin(key, value, version[1], f"if at {version[0]}, {len(data)} bytes")
        return await self._swap(operation, call, must)

    async def remove(self, key: str, version: Version, must: Must = Must.ANYTHING) -> bool:
        call = self.member.client.delete(BUCKET, key, if_version=version[0])
        return await self._swap(self._begin(key, None, version[1], f"if at {version[0]}"), call, must)

    def _begin(self, key: str, value: int | None, expected: int | None, what: str) -> Operation:
        operation = self.world.history.begin(Kind.SWAP, key, self.name, value, what)
        operation.expected = expected
        return operation

    async def _swap(self, operation: Operation, call: Coroutine[Any, Any, ObjectInfo], must: Must) -> bool:
        history, outage = self.world.history, self.world.agreement.store.outage
        key, value, expected = operation.key, operation.value, operation.expected
        self._note("begins to swap", key, expected, "for", value)
        outcome: CoffreError | None = None
        try:
            info = await call
        except CoffreError as error:
            outcome = error
            if isinstance(error, (AlreadyExists, PreconditionFailed)):
                operation.refused = True
                history.end(operation)
            elif not isinstance(error, OutcomeUnknown):
                history.drop(operation)
            self._note("did not swap", key, expected, "for", value, repr(error))
        else:
            history.end(operation)
            self.world.acknowledged.add(info.version)
            known = info.version, NEVER_THERE if value is None else value
            self._known.setdefault(key, []).append(known)
            self._note("has swapped", key, expected, "for", value, info.version)
            if outage and outage == self.world.agreement.store.outage:
                self.world.fail(f"{operation} was agreed while coordination was out")
        self._judge(operation, outcome, must)
        return outcome is None

    def _judge(self, operation: Operation, outcome: CoffreError | None, must: Must) -> None:
        refused = isinstance(outcome, (AlreadyExists, PreconditionFailed))
        retryable = isinstance(outcome, RetryableError)
        if not (outcome is None or refused or retryable or isinstance(outcome, IntegrityError)):
            self.world.fail(f"{operation} failed for good, and not for its condition: {outcome!r}")
        kept = {
            Must.ANYTHING: True,
            Must.BE_DECIDED: outcome is None or refused,
            Must.HAPPEN: outcome is None,
            Must.BE_REFUSED: refused,
            Must.FAIL: retryable and not isinstance(outcome, OutcomeUnknown),
        }
        if not kept[must]:
            self.world.fail(f"{operation} was to {must.value}, and came to {outcome!r}")


# -------------------------------------------------------------------- when everything else answers


async def examine_conditions(world: World) -> None:
    """Plain operations need no coordination, conditional ones do; and with it, of many that race one wins.

    New clients do this: the stamps of one whose clock was wrong may still be too far ahead for the nodes.
    """
    await world.sleep(max(0.0, _seconds_ahead(world) - SECONDS_AHEAD_MAX))
    rng = world.chance("examination of conditions")
    key = rng.choice(keys_of(world))
    members = [world.member() for _ in range(RACERS)]
    world.set_clocks()
    workers = [ConditionalWorker(world, member, f"{member.name} (after)") for member in members]
    await _without(world, workers[-1], key, silent=rng.random() < 0.5)
    await workers[-1].delete(key, must=True)
    created = await asyncio.gather(*(worker.create(key, Must.BE_DECIDED) for worker in workers))
    if sum(created) != 1:
        world.fail(f"of {len(workers)} that race to create {key}, {sum(created)} won")
    first = await workers[0].newest(key)
    if first is None:
        world.fail(f"{key} was created, and is not there")
        return
    await workers[-1].replace(key, first, Must.HAPPEN)
    await workers[0].replace(key, first, Must.BE_REFUSED)
    await workers[0].get(key, must=True)


def _seconds_ahead(world: World) -> float:
    """How far the newest stamp is ahead of the nodes: nobody writes above one that a wrong clock put too far."""
    hosts = world.hosts.values()
    stamps = [Stamp.from_bytes(held.stamp) for host in hosts for held in host.store.holdings()]
    newest_ms = max((stamp.unixtime_ms for stamp in stamps), default=0)
    return (newest_ms - min(host.clock.unixtime_ms() for host in hosts)) / 1000


async def _without(world: World, worker: ConditionalWorker, key: str, *, silent: bool) -> None:
    """Coordination is out: nothing that does without it notices."""
    store = world.agreement.store
    world.journal.note("weather:", "coordination is out")
    outage = store.silence if silent else store.refuse
    outage(1)
    await worker.put(key, must=True)
    version = await worker.newest(key)
    await worker.get(key, must=True)
    await worker.list("", 1000, must=True)
    if version is not None:
        await worker.replace(key, version, Must.FAIL)
    await worker.delete(key, must=True)
    await worker.create(key, Must.FAIL)
    outage(-1)
