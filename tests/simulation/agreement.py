"""Coordination in a simulated world: the shipped engine in a process that fails, behind the service of some nodes.

Clients reach it as they do outside: `RemoteCoordination`, messages to a coordinator, its `CoordinationHandler`, and
the store behind it (an ensemble of its own, or one that lives in the node). Rows outlive the process, as on a disk.
"""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from coffre.cluster.clock import Clock
from coffre.cluster.coordination import (
    RANGE_LIMIT_MAX,
    Changes,
    Commit,
    Compare,
    Coordination,
    Entry,
    KeyLocks,
    Lease,
    Page,
    Put,
)
from coffre.cluster.coordination._engine import Engine, Write
from coffre.cluster.coordination.locks import LockHeld, lock_prefix
from coffre.cluster.coordination.memory import MemoryRows
from coffre.cluster.errors import Unavailable
from coffre.cluster.map import ClusterMap
from coffre.cluster.names import ObjectName
from coffre.node.following import MapHolder
from coffre.node.serving.coordination import CoordinationHandler

from tests.simulation.network import Destination
from tests.simulation.virtual_time import Actor, VirtualLoop

__all__ = [
    "Agreement",
    "AgreementPlan",
    "LeaseClock",
    "StoreProcess",
    "Trouble",
    "Witness",
    "WitnessedLocks",
    "draw_agreement",
]

_Result = TypeVar("_Result")
CLOCK_STEP_SECONDS = 1e-6  # no sleep is shorter: the time of the world has no room for less
FORGOTTEN_REVISIONS = (
    1000  # a store that is set up anew begins that much above the lost one, as one by the clock does
)


class Trouble(enum.Enum):
    """What can go wrong with coordination. tests/simulation/troubles.py says how each is made."""

    REFUSAL = "refusal"
    SILENCE = "silence"
    RESTART = "restart"
    AMNESIA = "amnesia"
    EARLY = "early"
    LATE = "late"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class AgreementPlan:
    """What a seed draws about coordination and conditional writes. Times in seconds of the world."""

    coordinators: tuple[int, ...]  # nodes that serve it
    embedded: bool  # the store lives in the one coordinator, and dies with it
    share: float  # of the operations that are conditional writes
    sync_seconds: float
    drift: float  # of the store's clock
    troubles: dict[Trouble, float]  # mean seconds between two

    @property
    def keeps_leases(self) -> bool:
        """Whether the store's clock never runs ahead of a client's: then no lease ends before its holder knows."""
        rash = {Trouble.EARLY, Trouble.AMNESIA, Trouble.PAUSE}
        return not self.drift and not rash & self.troubles.keys()


def draw_agreement(seed: int, cluster_map: ClusterMap, hurry: float) -> AgreementPlan:
    rng = random.Random(f"{seed}/conditional")
    numbers = [node.number for node in cluster_map.nodes]
    coordinators = tuple(sorted(rng.sample(numbers, rng.choice([1, 1, 2, 3]))))
    return AgreementPlan(
        coordinators,
        embedded=len(coordinators) == 1 and rng.random() < 0.5,
        share=rng.choice([0.0, 0.2, 0.4, 0.7]),
        sync_seconds=rng.choice([0.0005, 0.004, 0.02]),
        drift=rng.uniform(-1, 1) * rng.choice([0.0, 0.0, 0.0001, 0.02]),
        troubles={trouble: hurry * rng.choice([1.0, 3.0, 8.0]) for trouble in Trouble if rng.random() < 0.4},
    )


class LeaseClock:
    """The clock that leases run on: it may jump ahead, or run slow for a while. It never goes back."""

    def __init__(self, world: Callable[[], float], rate: float = 1.0) -> None:
        self._world = world
        self._rate = rate
        self._slowness = 1.0
        self._read_at = world()
        self._read = 0.0

    def unixtime_ms(self) -> int:
        return 1_700_000_000_000 + int(self.monotonic() * 1000)

    def monotonic(self) -> float:
        now = self._world()
        self._read += (now - self._read_at) * self._rate / self._slowness
        self._read_at = now
        return self._read

    async def sleep(self, seconds: float) -> None:
        pace = max(seconds * self._slowness / self._rate, CLOCK_STEP_SECONDS)
        await asyncio.sleep(pace)

    def jump(self, seconds: float) -> None:
        """Let every lease be so much older."""
        self._read = self.monotonic() + seconds

    def set_slowness(self, slowness: float) -> None:
        """Take `slowness` seconds of the world for one."""
        self.monotonic()
        self._slowness = slowness


class _SyncedRows(MemoryRows):
    """Rows that take their time to be safe. A crash before that leaves them as they were."""

    def __init__(self, pause: Callable[[], Awaitable[None]], first_revision: int = 0) -> None:
        super().__init__(first_revision)
        self._pause = pause

    async def write(self, write: Write) -> None:
        await self._pause()
        await super().write(write)


class StoreProcess:
    """`Coordination` by the shipped engine, in a process that is stopped, cut off and begun anew."""

    def __init__(
        self,
        loop: VirtualLoop,
        clock: Clock,
        entropy: Callable[[int], bytes],
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        """`pause`: waits for as long as a sync takes."""
        self._loop = loop
        self._clock = clock
        self._entropy = entropy
        self._pause = pause
        self.incarnation = 0
        self._refusals = self._silences = 0
        self._outages = 0
        self._reachable = asyncio.Event()
        self._reachable.set()
        self.rows: MemoryRows = _SyncedRows(pause)
        self._start()

    def _start(self) -> None:
        self._actor = Actor(self._loop, f"coordination.{self.incarnation}")
        self._engine = self._actor.run(lambda: Engine(self.rows, self._clock, self._entropy))

    # ---------------------------------------------------------------- what goes wrong

    def restart(self, *, forget: bool = False) -> None:
        """Stop at once, and start with what the disk has; with `forget`, a new disk."""
        self._actor.kill()
        self._engine.interrupt_watches()
        self.incarnation += 1
        if forget:
            self.rows = _SyncedRows(self._pause, self.rows.revision + FORGOTTEN_REVISIONS)
        self._start()

    def refuse(self, more: int) -> None:
        """One reason more, or less, to fail every call at once."""
        self._set(self._refusals + more, self._silences)

    def silence(self, more: int) -> None:
        """One reason more, or less, to answer nobody. Calls wait, and are done when it has ended."""
        self._set(self._refusals, self._silences + more)

    def heal(self) -> None:
        self._set(0, 0)

    def _set(self, refusals: int, silences: int) -> None:
        was_out = self.outage
        self._refusals, self._silences = refusals, silences
        if not was_out and (refusals or silences):
            self._outages += 1
            self._engine.interrupt_watches()
        if silences:
            self._reachable.clear()
        else:
            self._reachable.set()

    @property
    def outage(self) -> int:
        """The number of the outage that lasts; 0 when none does."""
        return self._outages if self._refusals or self._silences else 0

    # ---------------------------------------------------------------- the seam

    async def get(self, key: str) -> Entry | None:
        return await self._do(lambda engine: engine.get(key))

    async def range(self, prefix: str, *, limit: int = RANGE_LIMIT_MAX, after: str = "") -> Page:
        return await self._do(lambda engine: engine.range(prefix, limit=limit, after=after))

    async def commit(
        self, compares: Sequence[Compare], puts: Sequence[Put] = (), deletes: Sequence[str] = ()
    ) -> Commit:
        return await self._do(lambda engine: engine.commit(compares, puts, deletes))

    async def grant(self, seconds: int) -> Lease:
        return await self._do(lambda engine: engine.grant(seconds))

    async def keep_alive(self, lease: int) -> None:
        await self._do(lambda engine: engine.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        await self._do(lambda engine: engine.revoke(lease))

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[Changes]:
        await self._reach()
        async with aclosing(self._engine.watch(prefix, revision)) as watching:
            async for changes in watching:
                yield changes

    async def close(self) -> None:
        await self._engine.close()

    async def _reach(self) -> None:
        await self._reachable.wait()
        if self._refusals:
            raise Unavailable("coordination cannot be reached")

    async def _do(self, call: Callable[[Engine], Coroutine[Any, Any, _Result]]) -> _Result:
        """A call in the process of the store: done or not, its caller hears nothing when that ends."""
        await self._reach()
        incarnation = self.incarnation
        task = self._actor.spawn(call(self._engine))
        try:
            return await task
        except asyncio.CancelledError:
            if self.incarnation == incarnation:
                raise
            raise Unavailable("coordination closed the connection") from None


class Agreement:
    """The coordinators: the handler of each lives and dies with its node."""

    def __init__(
        self,
        store: StoreProcess,
        nodes: dict[int, Destination],
        maps: Callable[[int], MapHolder],
        clock: Clock,
        *,
        embedded: bool = False,
        handler: Callable[[int, Coordination, MapHolder, Clock], CoordinationHandler] = CoordinationHandler,
    ) -> None:
        """`maps`: the map of a node that is up. `clock`: of the handlers. `handler`: makes one."""
        self.store = store
        self._nodes = nodes
        self._maps = maps
        self._clock = clock
        self._embedded = embedded
        self._make = handler
        self._handlers: dict[int, tuple[int, CoordinationHandler]] = {}

    def handler(self, node: int) -> CoordinationHandler:
        """What a coordinator that is up answers with."""
        incarnation = self._nodes[node].incarnation
        known = self._handlers.get(node)
        if known is None or known[0] != incarnation:
            if known is not None and self._embedded:
                self.store.restart()
            known = incarnation, self._make(node, self.store, self._maps(node), self._clock)
            self._handlers[node] = known
        return known[1]


# -------------------------------------------------------------------- who holds a lock


class Witness:
    """Sees who takes which lock, and whether the store agrees."""

    def __init__(self, store: StoreProcess, fail: Callable[[str], None], *, strict: bool) -> None:
        """`strict`: no lease ends before its holder counts it as lost, so who is sure must be right."""
        self._store = store
        self._fail = fail
        self._strict = strict
        self._holders: dict[str, dict[int, str]] = {}  # by name's prefix: token and holder
        self.on_belief: Callable[[str], None] | None = None  # called once, with the next holder who is sure

    def _live(self, prefix: str) -> set[int]:
        """The tokens of the claims to a lock that have not ended."""
        rows, _ = self._store.rows.scan(prefix, "", RANGE_LIMIT_MAX)
        return {row.entry.created for row in rows}

    def taken(self, name: ObjectName, token: int, who: str) -> None:
        prefix = lock_prefix(name)
        holders = self._holders.setdefault(prefix, {})
        live = self._live(prefix)
        others = [holder for other, holder in holders.items() if other in live]
        if token in live and others:
            self._fail(f"{who} takes the lock of {name.key} while {others} have it")
        holders[token] = who

    def believed(self, name: ObjectName, token: int, who: str) -> None:
        """A holder is sure that it still is one."""
        if self._strict and token not in self._live(lock_prefix(name)):
            self._fail(f"{who} is sure of the lock of {name.key}, which has ended")
        told, self.on_belief = self.on_belief, None
        if told is not None:
            told(who)

    def left(self, name: ObjectName, token: int) -> None:
        self._holders[lock_prefix(name)].pop(token, None)


@dataclass(frozen=True, slots=True)
class _WitnessedLock(LockHeld):
    """A lock that tells when its holder is sure of it."""

    believed: Callable[[], None]

    def check(self) -> None:
        LockHeld.check(self)
        self.believed()


class WitnessedLocks(KeyLocks):
    """The locks of one client as shipped, with a witness."""

    def __init__(self, locks: KeyLocks, witness: Witness, who: str) -> None:
        super().__init__(locks._coordination, locks._session, locks._clock, locks._entropy)
        self._witness = witness
        self._who = who

    @asynccontextmanager
    async def hold(self, name: ObjectName, patience: float) -> AsyncGenerator[LockHeld]:
        async with super().hold(name, patience) as lock:
            token = lock.token
            self._witness.taken(name, token, self._who)
            try:
                yield _WitnessedLock(
                    token, lock._session, lock._lease, lambda: self._witness.believed(name, token, self._who)
                )
            finally:
                self._witness.left(name, token)
