"""One simulated cluster: nodes and clients as processes that live, die and come back, and what must hold of them.

A member of any other kind (a repairer, say) is one more `Actor`, with a transport from `transport()` and a clock from
`clock()`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from coffre.client import AsyncClient, ClientOptions, KeyRing
from coffre.cluster.clock import DriftingClock
from coffre.cluster.coordination import RemoteCoordination
from coffre.cluster.identity import Identity, NodeAttributes, Role
from coffre.cluster.map import ClusterMap, Domain, MapNode, NodeState, Placement, Policy
from coffre.cluster.membership import ClusterMaps, VerifiedMap
from coffre.cluster.versions import STAMP_AHEAD_MS_MAX, unixtime_ms_of
from coffre.node.memory.rows import record_of
from coffre.node.store import (
    Accept,
    Condemn,
    Entry,
    Forget,
    Mark,
    Mutation,
    Outcome,
    Refuse,
    State,
    StoreOptions,
)
from coffre.proto import coffre_pb2 as pb

from tests.simulation.agreement import Agreement, LeaseClock, StoreProcess, Witness, WitnessedLocks
from tests.simulation.coordinators import MemberTransport
from tests.simulation.disk import SimulatedStore
from tests.simulation.history import History
from tests.simulation.host import Host, await_map
from tests.simulation.journal import Journal
from tests.simulation.maps import MapBook, authority
from tests.simulation.network import Network
from tests.simulation.plan import Plan
from tests.simulation.virtual_time import Actor, VirtualLoop

__all__ = ["BUCKET", "TENANT", "Failure", "Member", "World", "coding_of"]

TENANT = "clinic"
BUCKET = "records"
YOUNG_SECONDS = 1800.0  # nobody but its writer decides about what is younger
CLOCKS_APART_SECONDS = 300.0  # of those that agree, and of stamps


@dataclass(frozen=True, slots=True)
class Failure:
    """A promise that was broken, when that showed, and the key that it is about, if it is about one."""

    what: str
    seconds: float
    key: str = ""


class Member:
    """A client process: a real client, and what kills it."""

    def __init__(
        self,
        name: str,
        actor: Actor,
        client: AsyncClient,
        transport: MemberTransport,
        clock: DriftingClock,
        *,
        works: bool,
    ) -> None:
        self.name = name
        self.works = works  # else nobody takes its place when it dies
        self.actor = actor
        self.client = client
        self.clock = clock
        self.alive = True
        self.asleep = False  # until the end
        self._transport = transport

    def kill(self) -> None:
        """The process ends at once, whatever it was doing: nothing is cleaned up, nobody is told."""
        self.alive = False
        self._transport.die()
        self.actor.kill()


class World:
    """Everything that one run consists of."""

    def __init__(self, plan: Plan, loop: VirtualLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.policy = plan.cluster_map.policy()
        self.journal = Journal(loop.time)
        self.history = History(loop.time)
        self.failures: list[Failure] = []
        self.members: list[Member] = []
        self.acknowledged: set[str] = set()  # versions that a put returned
        self.faults: Counter[str] = Counter()
        self.limits: list[asyncio.Timeout] = []  # of the run itself, which no leap counts against
        self._refused: set[bytes] = set()  # versions that somebody has ever voted against
        self._clocks: list[DriftingClock] = []  # of newcomers, which may join when clocks have been set
        self.maps = MapBook(self._first_map(), self.fail)
        self.rotten: int | None = None  # the node whose disk rots
        self.network = Network(self.chance("network"), self.journal, plan.quality)
        self.agreement = self._agreement()
        first = self.maps.newest
        self.hosts: dict[int, Host] = {}
        for entry in first.map.nodes:
            self.hosts[entry.number] = self._host(entry, self.clock(f"node {entry.number}"), first)
        self.network.nodes.update(self.hosts)
        self.witness = Witness(
            self.agreement.store, self.fail, strict=plan.agreement.keeps_leases and plan.clocks is None
        )
        self._keys = KeyRing.generate(self.chance("keys").randbytes)

    def chance(self, purpose: str) -> random.Random:
        """Random numbers of one purpose, so that one more draw here changes nothing elsewhere."""
        return random.Random(f"{self.plan.seed}/{purpose}")

    def fail(self, what: str) -> None:
        """A promise is broken."""
        self.journal.note("FAILED", what)
        self.failures.append(Failure(what, self.loop.time()))

    async def sleep(self, seconds: float) -> None:
        """Let so many seconds of the world pass."""
        await DriftingClock(self.loop.time).sleep(seconds)

    def leap(self, seconds: float) -> None:
        """Let time pass in which nobody does anything."""
        self.loop.leap(seconds)
        for limit in self.limits:
            when = limit.when()
            if when is not None and not limit.expired():
                limit.reschedule(when + seconds)

    @property
    def cluster_map(self) -> ClusterMap:
        """The newest map that anybody has."""
        return self.maps.newest.map

    def _first_map(self) -> VerifiedMap:
        first = self.plan.cluster_map
        return VerifiedMap(first, b"" if self.plan.changes is None else authority().signer.sign(first))

    # ---------------------------------------------------------------- members

    def clock(self, owner: str) -> DriftingClock:
        rng = self.chance(f"clock of {owner}")
        clock = DriftingClock(self.loop.time, rate=1 + rng.uniform(-1, 1) * self.plan.drift)
        clock.set_wrong_by(rng.uniform(-1, 1) * self.plan.offset)
        return clock

    def transport(self, identity: Identity, name: str, known: ClusterMap | None = None) -> MemberTransport:
        return MemberTransport(self.network, identity, name, self.agreement, known or self.cluster_map)

    def _agreement(self) -> Agreement:
        plan, rng = self.plan.agreement, self.chance("disk of coordination")
        self.lease_clock = LeaseClock(self.loop.time, 1 + plan.drift)

        async def pause() -> None:
            pace = rng.expovariate(1 / plan.sync_seconds)
            await asyncio.sleep(pace)

        entropy = self.chance("entropy of coordination").randbytes
        store = StoreProcess(self.loop, self.lease_clock, entropy, pause)
        clock = self.clock("coordinators")
        return Agreement(
            store, self.network.nodes, lambda node: self.hosts[node].maps, clock, embedded=plan.embedded
        )

    def _host(self, entry: MapNode, clock: DriftingClock, found: VerifiedMap, *, new: bool = False) -> Host:
        name = f"node {entry.number}"

        def watch(mutations: Sequence[Mutation], outcomes: Sequence[Outcome]) -> None:
            self._watch(entry.number, mutations, outcomes)

        options = StoreOptions(versions_kept=self.plan.versions_kept)
        rng, store_id = self.chance(f"disk of {name}"), self.chance(f"store of {name}").randbytes(16)
        store = SimulatedStore(
            clock,
            options,
            rng,
            self.plan.sync_seconds,
            watch,
            store_id=store_id,
            stalls=self.plan.stalls,
            chance=self.chance(f"stalls of {name}"),
        )
        return Host(self, entry, store, clock, found, new=new)

    def newcomer(self, attributes: NodeAttributes, known: VerifiedMap) -> None:
        """Start one more node, with an empty disk and a map of before: it serves once a newer one has it."""
        name = f"newcomer {attributes.node_id}"
        identity = Identity(known.map.cluster_id, Role.NODE, attributes.node_id, attributes)
        clock, transport = self.clock(name), self.transport(identity, name, known.map)
        clock.shift_ms(int((self.loop.time() - clock.monotonic()) * 1000))  # it drifts from now on
        self._clocks.append(clock)

        async def join() -> None:
            entry, found = await await_map(attributes, known, transport, clock)
            self.journal.note(name, "is node", entry.number)
            host = self._host(entry, clock, found, new=True)
            self.hosts[entry.number] = self.network.nodes[entry.number] = host

        Actor(self.loop, name).spawn(join())

    def bury(self, number: int) -> None:
        """Switch a node off for ever, and throw away its disk."""
        host = self.hosts.pop(number)
        host.gone = True
        if host.up:
            host.crash()

    def member(self, *, works: bool = True) -> Member:
        """One more client."""
        name = f"client {len(self.members) + 1}"
        identity = Identity(self.cluster_map.cluster_id, Role.TENANT, TENANT)
        found = self.chance(f"map of {name}").choice(self.maps.all)  # whoever starts may have an old one
        transport, clock, actor = (
            self.transport(identity, name, found.map),
            self.clock(name),
            Actor(self.loop, name),
        )
        coordination, maps = RemoteCoordination(transport), None
        if self.plan.changes is not None:
            maps = ClusterMaps(transport, coordination, authority().certificate, clock)
        client = actor.run(
            lambda: AsyncClient(
                found.map,
                transport,
                self._keys,
                TENANT,
                options=ClientOptions(compress_level=None),
                clock=clock,
                entropy=self.chance(f"entropy of {name}").randbytes,
                coordination=coordination,
                maps=maps,
            )
        )
        assert client._parts.conditional._locks is not None
        client._parts.conditional._locks = WitnessedLocks(
            client._parts.conditional._locks, self.witness, name
        )
        member = Member(name, actor, client, transport, clock, works=works)
        self.members.append(member)
        return member

    # ---------------------------------------------------------------- the end of all faults

    def heal(self) -> None:
        """Everything runs, is reachable and has room; clocks are right again. Damage stays."""
        self.network.heal()
        self.agreement.store.heal()
        self.witness.on_belief = None
        self.lease_clock.set_slowness(1.0)
        for host in self.hosts.values():
            host.store.slowness = 1.0
            host.store.stalls = 0.0
            host.store.set_capacity(None)
            if not host.up:
                host.restart()
        self.set_clocks()
        self.journal.note("the faults end")

    def set_clocks(self) -> None:
        """Let nodes and clients have the right time, whatever their clocks have made of the time that passed."""
        repaired = self.plan.repair is not None  # then time goes on for so long that drift counts
        for clock in [*(host.clock for host in self.hosts.values()), *self._clocks]:
            clock.set_wrong_by(self.loop.time() - clock.monotonic() if repaired else 0)
        for clock in [member.clock for member in self.members if repaired and not member.asleep]:
            clock.set_wrong_by(self.loop.time() - clock.monotonic())

    # ---------------------------------------------------------------- what nodes take

    def _watch(self, node: int, mutations: Sequence[Mutation], outcomes: Sequence[Outcome]) -> None:
        for mutation, outcome in zip(mutations, outcomes, strict=True):
            said = outcome.state.name if outcome.state is not None else "-"
            error = type(outcome.error).__name__ if outcome.error is not None else "-"
            stamps = sorted(mutation.stamps) if isinstance(mutation, Forget) else [mutation.stamp]
            stamp = " ".join(each.hex() for each in stamps)
            name = "" if isinstance(mutation, Mark) else mutation.name.key
            self.journal.note("node", node, type(mutation).__name__, name, stamp, said, error)
            if isinstance(mutation, Accept) and outcome.error is None and not mutation.tombstone:
                self._check_placement(node, mutation)
            if (
                isinstance(mutation, Refuse | Condemn)
                and outcome.error is None
                and self.plan.clocks is not None
            ):
                self._check_age(node, mutation)
            if outcome.state is State.ABORTED and not isinstance(mutation, Forget | Mark):
                self._refused.add(mutation.stamp)

    def _check_age(self, node: int, mutation: Refuse | Condemn) -> None:
        """Whatever clocks say: the first vote against what is young is its writer's, and a deletion stays for a day."""
        old_ms = self._right_ms() - unixtime_ms_of(mutation.stamp)
        if isinstance(mutation, Condemn):
            assert self.plan.repair is not None
            if old_ms < (self.plan.repair.retention_seconds - CLOCKS_APART_SECONDS) * 1000:
                self.fail(
                    f"node {node} condemned a deletion of {mutation.name.key} that is {old_ms / 1000:.0f} s old"
                )
        elif mutation.stamp not in self._refused and -STAMP_AHEAD_MS_MAX < old_ms < YOUNG_SECONDS * 1000:
            self.fail(
                f"node {node} refused a version of {mutation.name.key} that is {old_ms / 1000:.0f} s old"
            )

    def _right_ms(self) -> int:
        return DriftingClock(self.loop.time).unixtime_ms()

    def _policy_of(self, accept: Accept) -> Policy:
        """The policy that a version is coded by, in whatever map it is."""
        policies = self.cluster_map.policies
        if len(policies) == 1:
            return self.policy
        k, m = coding_of(accept)
        return next(policy for policy in policies if (policy.k, policy.m) == (k, m))

    def policy_of(self, held: Entry) -> Policy:
        """The policy that a version which a node holds is coded by."""
        return self._policy_of(record_of(held).accept)

    def _check_placement(self, node: int, accept: Accept) -> None:
        """The policy, counted once more without the code that places shards."""
        places = [self.maps.nodes[number] for number in accept.placement]
        policy = self._policy_of(accept)
        own = self.hosts[node].maps.map
        # A version that is brought to others lies where its writer's map, or any since, let it lie.
        maps = [found.map for found in self.maps.all] if accept.lock else [own]
        # To a primary it may be brought whoever has a shard for it meanwhile, and is named beside it.
        brought = accept.lock and any(
            node in Placement(own, each).primaries(accept.partition)
            for each in (policy, *(own.policy(name) for name in own.policies_in_use))
        )
        spread = [] if brought else places
        broken = [
            what
            for what, holds in (
                ("shards", len(places) == policy.n == len(set(accept.placement))),
                ("jurisdiction", all(place.jurisdiction in policy.jurisdictions for place in places)),
                (
                    "server",
                    policy.survives is not Domain.SERVER or _most(p.server for p in spread) <= policy.m,
                ),
                ("site", policy.survives is not Domain.SITE or _most(p.site for p in spread) <= policy.m),
                (
                    "operator",
                    min(map(_operators, maps)) < 2 or _most(p.operator for p in spread) < policy.k,
                ),
                ("index", accept.shard_index is None or accept.placement[accept.shard_index] == node),
            )
            if not holds
        ]
        if broken:
            self.fail(
                f"node {node} took {accept.name.key} at {accept.placement} against the policy: {broken}"
            )


def coding_of(accept: Accept) -> tuple[int, int]:
    """The k and m of a version."""
    manifest = pb.Manifest.FromString(accept.manifest)
    return manifest.k, manifest.m


def _operators(cluster_map: ClusterMap) -> int:
    return len({entry.operator for entry in cluster_map.nodes if entry.state is not NodeState.REMOVED})


def _most(groups: Iterable[str]) -> int:
    return max(Counter(groups).values(), default=0)
