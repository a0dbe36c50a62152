"""What one seed stands for: a cluster, its network and clocks, a workload, and which faults come how often."""

from __future__ import annotations

import enum
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from coffre.cluster.errors import PolicyViolation
from coffre.cluster.map import ClusterMap, Domain, MapNode, Placement, Policy

from tests.simulation.agreement import AgreementPlan, draw_agreement
from tests.simulation.clocks import ClockPlan, draw_clocks
from tests.simulation.maps import CLUSTER_ID, ChangePlan, draw_changes, with_recoding
from tests.simulation.network import Quality
from tests.simulation.repairers import RepairPlan, draw_repair, shipped_repair

__all__ = ["CODINGS", "Fault", "Plan", "draw_calm", "draw_plan"]

PARTITIONS = 8
CODINGS = ((2, 1), (3, 2), (4, 2), (4, 2), (4, 3), (6, 3))
HASTY_PAUSE_SECONDS = 2.0
CHANGING_PAUSE_SECONDS = 1.0
UNASKED_SECONDS = 1e9
CALM_CLOCKS = ClockPlan({}, wrong=0, sleeper=False, round_seconds=UNASKED_SECONDS, delay=0.0)


class Fault(enum.Enum):
    """What can go wrong. tests/simulation/weather.py says how each is made."""

    CRASH = "crash"
    BLACKOUT = "blackout"
    CUT = "cut"
    ISOLATE = "isolate"
    SLOW = "slow"
    JUMP = "jump"
    FULL = "full"
    ROT = "rot"
    DEATH = "death"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was drawn before a run begins. Times in seconds of the world."""

    seed: int
    cluster_map: ClusterMap
    quality: Quality
    sync_seconds: float
    drift: float  # clocks run up to so much too fast or too slow
    offset: float  # and are off by up to so many seconds
    faults: dict[Fault, float]  # mean seconds between two
    clients: int
    workers: int  # operations under way at once, per client
    operations: int  # of each worker
    keys: int
    large: float  # part of the puts that have several segments
    pause: float  # mean between two operations of a worker
    versions_kept: int
    agreement: AgreementPlan
    repair: RepairPlan | None = None  # somebody repairs, so full redundancy must return
    changes: ChangePlan | None = None  # of the map
    stalls: float = 0.0  # part of the syncs that last for seconds, while the map changes
    clocks: ClockPlan | None = None  # clocks that are very wrong, processes that stand still

    def summary(self) -> str:
        policy = self.cluster_map.policy()
        spells = () if self.clocks is None else self.clocks.spells
        faults = " ".join(kind.value for kind in (*self.faults, *self.agreement.troubles, *spells))
        return (
            f"{policy.k}+{policy.m} on {len(self.cluster_map.nodes)} nodes, {self.clients} clients; {faults}"
            f"{self._repair()}"
        )

    def _repair(self) -> str:
        if self.repair is None:
            return ""
        changes = ""
        if self.changes is not None:
            kinds = [kind.value for kind in (*self.changes.storm, *self.changes.calm)]
            changes = f", map: {' '.join(kinds)}"
        return (", hasty repair" if self.repair.is_hasty else ", repair") + changes


def draw_plan(seed: int) -> Plan:
    rng = random.Random(f"{seed}/plan")
    enabled = [fault for fault in Fault if rng.random() < 0.45]
    hurry = rng.choice([0.3, 1.0, 3.0])  # how much happens at once
    versions_kept = rng.choice([1, 1, 1, 2])
    cluster_map = _draw_map(rng, versions_kept)
    agreement = draw_agreement(seed, cluster_map, hurry)
    plan = Plan(
        seed,
        replace(cluster_map, coordinators=agreement.coordinators),
        Quality(
            delay=rng.choice([0.0002, 0.001, 0.01]),
            spread=rng.choice([0.0005, 0.003, 0.02]),
            loss=rng.choice([0.0, 0.0, 0.002, 0.02]),
            breaks=rng.choice([0.0, 0.0, 0.01]),
            duplication=rng.choice([0.0, 0.0, 0.02]),
            stay_behind=rng.choice([0.1, 0.5, 1.0]),
        ),
        sync_seconds=rng.choice([0.0005, 0.004, 0.02]),
        drift=rng.choice([0.0, 0.0001, 0.02]),
        offset=rng.choice([0.0, 0.02, 2.0, 20.0]),
        faults={fault: hurry * rng.choice([0.7, 2.0, 5.0]) for fault in enabled},
        clients=rng.randrange(2, 5),
        workers=rng.choice([1, 2, 2, 3]),
        operations=rng.randrange(8, 16),
        keys=rng.choice([1, 2, 3, 5]),
        large=rng.choice([0.0, 0.1, 0.3]),
        pause=hurry * rng.choice([0.01, 0.1, 0.3]),
        versions_kept=versions_kept,
        agreement=agreement,
    )
    return _with_changes(_with_clocks(_with_repair(plan)), hurry)


def _with_clocks(plan: Plan) -> Plan:
    clocks = draw_clocks(plan.seed, hasty=plan.repair is not None and plan.repair.is_hasty)
    if clocks is None:
        return plan
    # Somebody must repair, by what the product calls old.
    repair = replace(plan.repair or shipped_repair(plan.seed), round_seconds=clocks.round_seconds)
    quality = replace(plan.quality, spread=plan.quality.spread + clocks.delay)
    return replace(plan, clocks=clocks, repair=repair, quality=quality, pause=max(plan.pause, 0.3))


def _with_repair(plan: Plan) -> Plan:
    jumps = Fault.JUMP in plan.faults
    repair = draw_repair(plan.seed, jumps=jumps, offset=plan.offset, drift=plan.drift)
    if repair is None or not repair.is_hasty:
        return replace(plan, repair=repair)
    # What is old must exist while clients still work.
    return replace(plan, repair=repair, pause=max(plan.pause, HASTY_PAUSE_SECONDS))


def _with_changes(plan: Plan, hurry: float) -> Plan:
    changes = draw_changes(plan.seed, hurry) if plan.repair is not None else None
    if changes is None:
        return plan
    if plan.versions_kept == 1:
        changes = with_recoding(changes, plan.seed)
    # They take their time, and clients are to be at work meanwhile.
    stalls = random.Random(f"{plan.seed}/stalls").choice([0.0, 0.0, 0.01, 0.05])
    return replace(plan, changes=changes, stalls=stalls, pause=max(plan.pause, CHANGING_PAUSE_SECONDS))


def draw_calm(seed: int, nodes: int) -> Plan:
    """So many nodes with 4+2 and one key; nothing goes wrong by itself, and nobody repairs unasked. For a story.

    With more than six nodes the policy lets each stand in for any other.
    """
    rng = random.Random(f"{seed}/calm")
    cluster_map = _draw_map(rng, 1, codings=((4, 2),), count=nodes, roomy=nodes > 6)
    agreement = draw_agreement(seed, cluster_map, 1.0)
    return Plan(
        seed,
        replace(cluster_map, coordinators=agreement.coordinators),
        Quality(delay=rng.choice([0.0002, 0.001, 0.005]), stay_behind=0.0),
        sync_seconds=rng.choice([0.0005, 0.004]),
        drift=0.0,
        offset=rng.choice([0.0, 0.02, 2.0]),
        faults={},
        clients=0,
        workers=1,
        operations=0,
        keys=1,
        large=0.0,
        pause=1.0,
        versions_kept=1,
        agreement=replace(agreement, drift=0.0, troubles={}),
        repair=replace(shipped_repair(seed), round_seconds=UNASKED_SECONDS, sweep_seconds=UNASKED_SECONDS),
        clocks=CALM_CLOCKS,
    )


def _draw_map(
    rng: random.Random,
    versions_kept: int,
    *,
    codings: Sequence[tuple[int, int]] = CODINGS,
    count: int = 0,
    roomy: bool = False,
) -> ClusterMap:
    """A map whose policy can be kept, of so many nodes, or of 6 to 12. `roomy`: any nodes keep it."""
    while True:
        k, m = rng.choice(codings)
        many = count or rng.randrange(max(6, k + m), 13)
        sites, operators = rng.randrange(2, 5), 1 if roomy else rng.randrange(1, 4)
        survives = Domain.NODE if roomy else rng.choice(list(Domain))
        nodes = tuple(
            MapNode(
                number,
                f"n{number}",
                f"127.0.0.1:{7000 + number}",
                f"server{number // 2}" if survives is not Domain.SITE else f"server{number}",
                f"site{(number // 2) % sites}",
                f"operator{rng.randrange(operators)}",
                "FR",
                rng.choice([1, 1, 2]) << 40,
            )
            for number in range(1, many + 1)
        )
        policy = Policy(f"{k}+{m}", k, m, ("FR",), survives, versions_kept=versions_kept)
        cluster_map = ClusterMap(CLUSTER_ID, 1, PARTITIONS, nodes, (policy,), policy.name)
        placement = Placement(cluster_map, policy)
        try:
            for partition in range(PARTITIONS):
                placement.primaries(partition)
        except PolicyViolation:
            continue
        return cluster_map
